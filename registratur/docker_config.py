"""Credentials in the file of Docker's command line, config.json, which podman's auth.json and image pull secrets are like.

Each belongs to the host that its key names, or to a part of that host's repositories (``host/team``), and goes nowhere else.
Credential helpers are programs. Whoever may start one brings `registratur.credential_helpers.ask`; a daemon does not, and is told
so by an error.

Source: https://docs.docker.com/reference/cli/docker/login/#credential-stores, containers-auth.json(5).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeAlias, TypeVar

from registratur.credentials import Credentials
from registratur.errors import InvalidEndpointError, MalformedContentError, UnauthorizedError
from registratur.fields import Fields
from registratur.names import DOCKER_HOST, spellings
from registratur.reference import DEFAULT_REGISTRY

HUB_ADDRESS = "https://index.docker.io/v1/"
"""What Docker's tools call docker.io when they speak of credentials."""

_SIZE_LIMIT = 4 * 1024 * 1024  # bytes
_VERSIONS = frozenset({"v1", "v2"})

_T = TypeVar("_T")

Ask: TypeAlias = Callable[[str, str], Awaitable[Credentials | None]]
"""Asks the helper of a name for a server's credentials."""


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """What such a file says, under keys in one spelling: ``host`` or ``host/part``. Never shown."""

    source: str
    auths: Mapping[str, Credentials] = field(default_factory=dict, repr=False, hash=False)
    helpers: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Names of helpers by host."""
    store: str = ""
    """Name of the helper for all other hosts, or ""."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file. Blocks. Raises MalformedContentError, OSError."""
        with file.open("rb") as opened:
            data = opened.read(_SIZE_LIMIT + 1)
        if len(data) > _SIZE_LIMIT:
            raise MalformedContentError(f"{file} has more than {_SIZE_LIMIT} bytes, which no such file has")
        return cls.parse(data, str(file))

    @classmethod
    def parse(cls, data: bytes, source: str) -> Self:
        """Read the text of a file. Raises MalformedContentError, which shows no secret."""
        document = Fields.parse(source, data)
        entries = _quietly(lambda: document.child("auths"), f"{source}: auths")
        auths: dict[str, Credentials] = {}
        for key in _quietly(lambda: document.keys("auths"), f"{source}: auths"):
            found = _quietly(partial(_credentials, entries, key), f"{source}: auths.{key}")
            if found is not None:
                auths[_normal(key)] = found
        helpers = _quietly(lambda: document.mapping("credHelpers"), f"{source}: credHelpers")
        store = _quietly(lambda: document.string("credsStore"), f"{source}: credsStore")
        return cls(source, auths, {_normal(key): name for key, name in helpers.items() if name}, store)

    def known(self, registry: str, repository: str = "") -> Credentials | None:
        """Return the credentials that stand in the file, those of the longest part of the repository's path first.

        Raises UnauthorizedError where the file has a helper for just that registry.
        """
        if (helper := self.helper(registry)) is not None and helper != self.store:
            raise UnauthorizedError(
                f"{registry}: {self.source} has its credentials with the helper {helper!r}, a program, which is not run here; "
                "give them with the pull (imagePullSecrets, or a credential provider of the kubelet), or write them into "
                "'auths' of that file"
            )
        return self._written(registry, repository)

    def remarks(self) -> list[str]:
        """Return what somebody should know who runs no helpers."""
        names = sorted({*self.helpers.values(), *filter(None, [self.store])})
        return [
            f"{self.source} names the credential helper {name!r}, a program, which is not run here; what it knows is missing"
            for name in names
        ]

    async def find(self, registry: str, repository: str, ask: Ask) -> Credentials | None:
        """Return the credentials for a repository, also from helpers. Raises UnauthorizedError where a helper fails."""
        helper = self.helper(registry)
        if helper is not None:
            found = await ask(helper, server_name(registry))
            if found is not None:
                return found
        return self._written(registry, repository)

    def helper(self, registry: str) -> str | None:
        """Return the name of the helper that has a registry's credentials, None if there is none."""
        named = next((self.helpers[name] for name in _names(registry) if name in self.helpers), None)
        return named or self.store or None

    def _written(self, registry: str, repository: str) -> Credentials | None:
        for name in _names(registry):
            path = repository.split("/") if repository else []
            for length in range(len(path), -1, -1):
                key = "/".join((name, *path[:length]))
                if key in self.auths:
                    return self.auths[key]
        return None


def server_name(registry: str) -> str:
    """Return what Docker's tools call a registry in such files, and before helpers."""
    return HUB_ADDRESS if _normal(registry) == DEFAULT_REGISTRY else registry


def is_for(key: str, registry: str) -> bool:
    """Tell whether a key of such a file names a registry, all of it, in whatever spelling."""
    return _normal(key) in _names(registry)


def _names(registry: str) -> list[str]:
    try:
        return [*dict.fromkeys(map(_normal, spellings(registry)))]
    except InvalidEndpointError:
        return []


def _normal(key: str) -> str:
    """Return a key in its one spelling: without scheme and API version, the host in lower case."""
    rest = key.partition("://")[2] if "://" in key else key
    host, _, path = rest.partition("/")
    parts = [part for part in path.split("/") if part]
    if parts and parts[0] in _VERSIONS:
        parts = parts[1:]
    host = host.lower()
    if host.removesuffix(":443") in ("index.docker.io", "hub.docker.com", DOCKER_HOST, DEFAULT_REGISTRY):
        host = DEFAULT_REGISTRY
    return "/".join((host, *parts))


def _credentials(entries: Fields, key: str) -> Credentials | None:
    entry = entries.child(key)
    found = Credentials(
        username=entry.string("username"),
        password=entry.string("password"),
        identity_token=entry.string("identitytoken"),
        registry_token=entry.string("registrytoken"),
        auth=entry.string("auth"),
        server_address=_normal(key).partition("/")[0],
    )
    has_any = found.username or found.auth or found.identity_token or found.registry_token
    return found if has_any else None  # an empty entry says that a helper has them


def _quietly(read: Callable[[], _T], what: str) -> _T:
    """Return what `read` reads; its error would show the value."""
    try:
        return read()
    except MalformedContentError:
        raise MalformedContentError(f"{what}: is not what it has to be in Docker's config.json") from None
