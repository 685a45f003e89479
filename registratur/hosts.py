"""Which endpoints serve a registry name (mirrors, then the registry itself), and how each is reached."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from registratur.credentials import Credentials
from registratur.errors import InvalidEndpointError

WILDCARD = "*"
_REAL_HOST = {"docker.io": "registry-1.docker.io"}
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How one host is reached.

    `ca_file` is trusted besides nothing else; `skip_verify` turns the check of certificates off.
    `credentials` are the operator's own: for a mirror they are the only ones ever sent, for a registry
    they serve when a pull brings none.
    """

    ca_file: Path | None = None
    skip_verify: bool = False
    credentials: Credentials | None = None


_NO_OPTIONS = HostOptions()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL (without ``/v2``) that answers for `registry`."""

    url: URL
    registry: str
    is_mirror: bool

    def address(self, repository: str, kind: str, target: str) -> URL:
        """Return the URL of a manifest or blob (distribution-spec, Pull).

        A mirror keeps the repository's path and learns from ``ns`` whose it is, as with containerd.
        """
        url = self.url.with_path(f"{self.url.path.rstrip('/')}/v2/{repository}/{kind}/{target}")
        return url.with_query(ns=self.registry) if self.is_mirror else url

    def __str__(self) -> str:
        return str(self.url)


@dataclass(frozen=True, slots=True)
class HostsConfig:
    """The operator's view of the registries.

    `mirrors` maps a registry name, or ``"*"`` for all that have no entry of their own, to base URLs such as
    ``http://127.0.0.1:5000``, tried in order. `options` maps ``host`` or ``host:port`` to how that host
    is reached. With `mirrors_only` a registry that has mirrors is never contacted itself (air-gapped nodes).

    Plain http is spoken to endpoints written with ``http://`` and to registries on the loopback
    interface without TLS options, to nobody else.
    """

    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Mapping[str, HostOptions] = field(default_factory=dict)
    mirrors_only: bool = False

    def __post_init__(self) -> None:
        for registry, urls in self.mirrors.items():
            for url in urls:
                _base_url(url, f"mirror of {registry}")

    def endpoints(self, registry: str) -> tuple[Endpoint, ...]:
        """Return where to ask for `registry`, in order, never empty. Raises InvalidEndpointError."""
        own = self._own_url(registry)
        found: list[Endpoint] = []
        for text in self.mirrors.get(registry, self.mirrors.get(WILDCARD, ())):
            url = _base_url(text, f"mirror of {registry}")
            found.append(Endpoint(url, registry, is_mirror=url.authority != own.authority))
        reaches_itself = any(not endpoint.is_mirror for endpoint in found)
        if not reaches_itself and not (found and self.mirrors_only):
            found.append(Endpoint(own, registry, is_mirror=False))
        return tuple(found)

    def options_for(self, url: URL) -> HostOptions:
        """Return the options of the host behind `url`; an entry with a port beats one without."""
        with_port = f"{url.host_subcomponent}:{url.port}"
        return self.options.get(with_port) or self.options.get(url.host_subcomponent or "") or _NO_OPTIONS

    def credentials_for(self, endpoint: Endpoint, given: Credentials | None) -> Credentials | None:
        """Return what `endpoint` may see: `given` if it is for this very registry, else the operator's."""
        if given is not None and not endpoint.is_mirror:
            hosts = (endpoint.registry, endpoint.url.authority)
            if any(given.belong_to(host) for host in hosts):
                return given
        return self.options_for(endpoint.url).credentials

    def _own_url(self, registry: str) -> URL:
        host = _REAL_HOST.get(registry, registry)
        secure = _base_url(f"https://{host}", "registry")
        options = self.options_for(secure)
        wants_tls = options.ca_file is not None or options.skip_verify
        if is_loopback(secure.host or "") and not wants_tls:
            return _base_url(f"http://{host}", "registry")
        return secure


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
