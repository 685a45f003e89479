"""Which endpoints serve a registry name (mirrors, then the registry itself), and how each is reached."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from yarl import URL

from registratur.credentials import Credentials
from registratur.errors import InvalidEndpointError
from registratur.names import DOCKER_HOST, registry_name, spellings
from registratur.proxies import Proxy
from registratur.reference import DEFAULT_REGISTRY

WILDCARD = "*"
_REAL_HOST = {DEFAULT_REGISTRY: DOCKER_HOST}
_DEFAULT_PORT = {"http": 80, "https": 443}
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How one host is reached.

    `ca_file` is trusted besides nothing else; `skip_verify` turns the check of certificates off.
    `credentials` are the operator's own: for a mirror they are the only ones ever sent, for a registry
    they serve when a pull brings none. `proxy` is the one to go through, whatever the environment says: None leaves it
    to that, an empty string is none at all.
    """

    ca_file: Path | None = None
    skip_verify: bool = False
    credentials: Credentials | None = None
    proxy: str | None = field(default=None, repr=False)


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
    ``http://127.0.0.1:5000``, tried in order; an entry may have none. `options` maps ``host`` or ``host:port`` to how
    that host is reached, ``"*"`` to how all others are. Names have no case; making one of what no reference can name, of
    one name twice, or of what is no URL raises InvalidEndpointError. With `mirrors_only` a registry that has mirrors is never contacted itself (air-gapped nodes).

    Plain http is spoken to endpoints written with ``http://`` and to registries on the loopback
    interface without TLS options, to nobody else.
    """

    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Mapping[str, HostOptions] = field(default_factory=dict)
    mirrors_only: bool = False

    def __post_init__(self) -> None:
        for what in ("mirrors", "options"):
            object.__setattr__(self, what, _by_name(getattr(self, what)))
        for registry, urls in self.mirrors.items():
            for url in urls:
                _base_url(url, f"mirror of {registry}")
        for host, options in self.options.items():
            if options.proxy:
                Proxy.parse(options.proxy, f"proxy for {host}")

    def endpoints(self, registry: str) -> tuple[Endpoint, ...]:
        """Return where to ask for `registry`, in order, never empty. Raises InvalidEndpointError."""
        own = self._own_url(registry)
        found: list[Endpoint] = []
        named = next((name for name in spellings(registry) if name in self.mirrors), WILDCARD)
        for text in self.mirrors.get(named, ()):
            url = _base_url(text, f"mirror of {registry}")
            found.append(Endpoint(url, registry, is_mirror=url.authority != own.authority))
        reaches_itself = any(not endpoint.is_mirror for endpoint in found)
        if not reaches_itself and not (found and self.mirrors_only):
            found.append(Endpoint(own, registry, is_mirror=False))
        return tuple(found)

    def push_endpoint(self, registry: str) -> Endpoint:
        """Return where a push to `registry` goes. Raises InvalidEndpointError where it may go nowhere."""
        for endpoint in self.endpoints(registry):
            if not endpoint.is_mirror:
                return endpoint
        raise InvalidEndpointError(
            f"{registry}: nothing is pushed to it: the configuration has its mirrors asked only"
        )

    def options_for(self, url: URL) -> HostOptions:
        """Return the options of the host behind `url`; an entry with a port beats one without, that one ``"*"``."""
        return self._named_options(url) or self.options.get(WILDCARD) or _NO_OPTIONS

    def proxy_for(self, url: URL) -> Proxy | bool:
        """Return the proxy that is configured for `url`; True where the environment decides, False where there is none.

        What is said of ``"*"`` is not said of this machine.
        """
        named = self._named_options(url)
        options = named or self.options.get(WILDCARD) or _NO_OPTIONS
        if options.proxy is None or (named is None and is_loopback(url.host or "")):
            return True
        return Proxy.parse(options.proxy, f"proxy for {url.host}") if options.proxy else False

    def credentials_for(self, endpoint: Endpoint, given: Credentials | None) -> Credentials | None:
        """Return what `endpoint` may see: `given` if it is for this very registry, else the operator's."""
        if given is not None and not endpoint.is_mirror:
            hosts = (endpoint.registry, endpoint.url.authority)
            if any(given.belong_to(host) for host in hosts):
                return given
        return self.options_for(endpoint.url).credentials

    def _named_options(self, url: URL) -> HostOptions | None:
        host = (url.host_subcomponent or "").lower()
        names = [f"{host}:{url.port}", host]
        if host == DOCKER_HOST:
            names.append(DEFAULT_REGISTRY)
        return next((self.options[name] for name in names if name in self.options), None)

    def _own_url(self, registry: str) -> URL:
        name = registry_name(registry)
        secure = _base_url(f"https://{_REAL_HOST.get(name, name)}", "registry")
        options = self._named_options(secure) or _NO_OPTIONS
        wants_tls = options.ca_file is not None or options.skip_verify
        if is_loopback(secure.host or "") and not wants_tls:
            return _base_url(f"http://{name}", "registry")
        return secure


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
