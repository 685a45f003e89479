"""Which endpoints serve a registry name (mirrors, then the registry itself), and how each is reached."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final, Self, TypeVar

from yarl import URL

from registratur.credentials import Credentials
from registratur.docker_config import DockerConfig
from registratur.errors import InvalidEndpointError
from registratur.names import DOCKER_HOST, registry_name, spellings
from registratur.proxies import Proxy
from registratur.reference import DEFAULT_REGISTRY

WILDCARD = "*"
PULL: Final = "pull"
RESOLVE: Final = "resolve"
PUSH: Final = "push"
READING = frozenset({PULL, RESOLVE})
EVERYTHING = frozenset({PULL, RESOLVE, PUSH})
"""What a host may be asked for: content by its digest, what a tag means, and to take something."""
_REAL_HOST = {DEFAULT_REGISTRY: DOCKER_HOST}
_DEFAULT_PORT = {"http": 80, "https": 443}
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How one host is reached.

    `ca_file` is trusted besides nothing else, `extra_ca_files` besides that, or besides the system's; `skip_verify` turns the
    check of certificates off. `client_certificates` are pairs of files (PEM): a certificate, and its key, if that is not in
    the same one. `headers` go with every request to that host, and to no other. `connect_timeout` is in seconds.
    `credentials` are the operator's own: for a mirror they are the only ones ever sent, for a registry
    they serve when a pull brings none. `proxy` is the one to go through, whatever the environment says: None leaves it
    to that, an empty string is none at all.
    """

    ca_file: Path | None = None
    skip_verify: bool = False
    credentials: Credentials | None = None
    proxy: str | None = field(default=None, repr=False)
    extra_ca_files: tuple[Path, ...] = ()
    client_certificates: tuple[tuple[Path, Path | None], ...] = ()
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect_timeout: float | None = None

    @property
    def is_about_tls(self) -> bool:
        """Say whether they make sense of a host that speaks TLS only."""
        return bool(self.ca_file or self.extra_ca_files or self.client_certificates or self.skip_verify)

    def over(self, others: Self) -> Self:
        """Return these, and those of `others` in what these say nothing of."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(
            others, **{name: value for name, value in said.items() if value not in (None, (), False)}
        )


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """A host that is asked for what a registry has: a base URL, what it may be asked for, and how it is reached.

    An empty `url` is the registry's own. With `override_path` the API begins right behind the URL, without ``/v2``.
    """

    url: str
    capabilities: frozenset[str] = EVERYTHING
    override_path: bool = False
    options: HostOptions | None = None


_NO_OPTIONS = HostOptions()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL (without ``/v2``) that answers for `registry`; `options` come before those of its host."""

    url: URL
    registry: str
    is_mirror: bool
    capabilities: frozenset[str] = EVERYTHING
    override_path: bool = False
    options: HostOptions | None = None

    def address(self, repository: str, kind: str, target: str) -> URL:
        """Return the URL of a manifest or blob (distribution-spec, Pull).

        A mirror keeps the repository's path and learns from ``ns`` whose it is, as with containerd.
        """
        url = self.base.with_path(f"{self.base.path}{repository}/{kind}/{target}")
        return url.with_query(ns=self.registry) if self.is_mirror else url

    @property
    def base(self) -> URL:
        """The URL that everything of the API is below, with a slash at its end."""
        version = "" if self.override_path else "/v2"
        return self.url.with_path(f"{self.url.path.rstrip('/')}{version}/")

    def __str__(self) -> str:
        return str(self.url)


@dataclass(frozen=True, slots=True)
class HostsConfig:
    """The operator's view of the registries.

    `mirrors` maps a registry name, or ``"*"`` for all that have no entry of their own, to base URLs such as
    ``http://127.0.0.1:5000``, tried in order; an entry may have none. They are only read from; a RegistryHost says itself
    what it is for. `servers` maps names to who is asked behind the mirrors, instead of the registry itself. `options` maps
    ``host`` or ``host:port`` to how that host is reached, ``"*"`` to how all others are. `broken` maps the names of
    registries of which nobody knows how to reach them to the reason: they are not asked at all. `keychain` has more of the
    operator's credentials, by host.

    Names have no case; making one of what no reference can name, of one name twice, or of what is no URL raises
    InvalidEndpointError. With `mirrors_only` a registry that has mirrors is never contacted itself (air-gapped nodes).

    Plain http is spoken to endpoints written with ``http://`` and to registries on the loopback
    interface without TLS options, to nobody else.
    """

    mirrors: Mapping[str, Sequence[str | RegistryHost]] = field(default_factory=dict)
    options: Mapping[str, HostOptions] = field(default_factory=dict)
    mirrors_only: bool = False
    servers: Mapping[str, RegistryHost] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    keychain: DockerConfig | None = None

    def __post_init__(self) -> None:
        for what in ("mirrors", "options", "servers", "broken"):
            object.__setattr__(self, what, _by_name(getattr(self, what)))
        hosts = [
            (name, RegistryHost(one) if isinstance(one, str) else one)
            for name, some in self.mirrors.items()
            for one in some
        ]
        hosts += [(name, one) for name, one in self.servers.items() if one.url]
        for name, one in hosts:
            _base_url(one.url, f"mirror of {name}")
        reached = [*self.options.items(), *((name, one.options) for name, one in hosts)]
        for name, options in reached:
            if options is not None and options.proxy:
                Proxy.parse(options.proxy, f"proxy for {name}")

    def endpoints(self, registry: str, capability: str = PULL) -> tuple[Endpoint, ...]:
        """Return where to ask `registry` for something, in order, never empty. Raises InvalidEndpointError."""
        able = [one for one in self._endpoints(registry) if capability in one.capabilities]
        if not able:
            verb = {PULL: "pull from", RESOLVE: "ask for a tag of", PUSH: "push to"}[capability]
            raise InvalidEndpointError(
                f"{registry}: the configuration names no host to {verb} it; give one the capability {capability!r}, "
                "or have the registry itself asked"
            )
        return tuple(able)

    def options_for(self, url: URL) -> HostOptions:
        """Return the options of the host behind `url`; an entry with a port beats one without, that one ``"*"``."""
        return self._named_options(url) or self.options.get(WILDCARD) or _NO_OPTIONS

    def proxy_for(self, url: URL, options: HostOptions | None = None) -> Proxy | bool:
        """Return the proxy that is configured for `url`; True where the environment decides, False where there is none.

        `options` are those that `url` is reached with, if there are others than the host's. What is said of ``"*"`` is not
        said of this machine.
        """
        named = self._named_options(url)
        wild = self.options.get(WILDCARD) or _NO_OPTIONS
        known = options or named or wild
        is_wild = named is None and known.proxy == wild.proxy
        if known.proxy is None or (is_wild and is_loopback(url.host or "")):
            return True
        return Proxy.parse(known.proxy, f"proxy for {url.host}") if known.proxy else False

    def credentials_for(
        self, endpoint: Endpoint, given: Credentials | None, repository: str = ""
    ) -> Credentials | None:
        """Return what `endpoint` may see: `given` if it is for this very registry, else the operator's.

        Raises UnauthorizedError if these are where they cannot be had.
        """
        if given is not None and not endpoint.is_mirror:
            hosts = (endpoint.registry, endpoint.url.authority)
            if any(given.belong_to(host) for host in hosts):
                return given
        own = None if endpoint.options is None else endpoint.options.credentials
        found = own or self.options_for(endpoint.url).credentials
        if found is not None or self.keychain is None:
            return found
        host = endpoint.url.authority if endpoint.is_mirror else endpoint.registry
        return self.keychain.known(host, repository)

    def _endpoints(self, registry: str) -> list[Endpoint]:
        names = [*spellings(registry)]
        known = (self.mirrors, self.servers, self.broken)
        named = next((name for name in names if any(name in one for one in known)), WILDCARD)
        if named in self.broken:
            raise InvalidEndpointError(f"{registry}: {self.broken[named]}")
        own = self._own_url(registry)
        found = [_endpoint(host, registry, own) for host in self.mirrors.get(named, ())]
        server = self.servers.get(named)
        if server is None:
            reaches_itself = any(not endpoint.is_mirror for endpoint in found)
            if not reaches_itself and not (found and self.mirrors_only):
                found.append(Endpoint(own, registry, is_mirror=False))
            return found
        last = _endpoint(server, registry, own)
        done = [one.capabilities for one in found if one.url == last.url]
        return [*found, replace(last, capabilities=last.capabilities.difference(*done))]

    def _named_options(self, url: URL) -> HostOptions | None:
        host = (url.host_subcomponent or "").lower()
        names = [f"{host}:{url.port}", host]
        if host == DOCKER_HOST:
            names.append(DEFAULT_REGISTRY)
        named = next((self.options[name] for name in names if name in self.options), None)
        server = next((self.servers[name] for name in names if name in self.servers), None)
        if server is None or server.options is None or not _is_own(server, names):
            return named
        return server.options.over(named or _NO_OPTIONS)

    def _own_url(self, registry: str) -> URL:
        name = registry_name(registry)
        secure = _base_url(f"https://{_REAL_HOST.get(name, name)}", "registry")
        options = self._named_options(secure) or _NO_OPTIONS
        if is_loopback(secure.host or "") and not options.is_about_tls:
            return _base_url(f"http://{name}", "registry")
        return secure


def _endpoint(host: str | RegistryHost, registry: str, own: URL) -> Endpoint:
    text = host if isinstance(host, str) else host.url
    url = _base_url(text, f"mirror of {registry}") if text else own
    is_mirror = url.authority != own.authority
    if isinstance(host, str):
        # A registry that is listed as its own mirror is written so for its scheme, or its path.
        return Endpoint(url, registry, is_mirror, READING if is_mirror else EVERYTHING)
    return Endpoint(url, registry, is_mirror, host.capabilities, host.override_path, host.options)


def _is_own(server: RegistryHost, names: Sequence[str]) -> bool:
    """Say whether a server is the very host that its registry is named after."""
    return not server.url or _base_url(server.url, "server").authority in names


def _by_name(entries: Mapping[str, _V]) -> dict[str, _V]:
    """Return entries by the one spelling of their names. Raises InvalidEndpointError for two of one name."""
    found: dict[str, _V] = {}
    for given, entry in entries.items():
        name = given if given == WILDCARD else registry_name(given)
        if name in found:
            raise InvalidEndpointError(
                f"registry {name} is named twice, in two spellings; make one entry of both"
            )
        found[name] = entry
    return found


def is_loopback(host: str) -> bool:
    """Say whether a host name means this machine: localhost, 127.0.0.0/8 or ::1. No name is resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origin(url: URL) -> tuple[str, str, int]:
    """Return scheme, host and port: what two URLs must share to share secrets."""
    return url.scheme, (url.host or "").lower(), url.port or _DEFAULT_PORT.get(url.scheme, 0)


def _base_url(text: str, what: str) -> URL:
    try:
        url = URL(text)
        usable = url.scheme in _DEFAULT_PORT and url.host and url.port
    except ValueError:
        usable = None
    if not usable:
        raise InvalidEndpointError(f"{what}: {text!r} is no http:// or https:// URL with a host")
    if url.user or url.password or url.query_string or url.fragment:
        raise InvalidEndpointError(
            f"{what}: the URL of {url.host} must not hold credentials, a query or a fragment"
        )
    return url
