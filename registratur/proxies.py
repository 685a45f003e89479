"""Which proxy a request goes through, by the rules of Go's net/http, which every other runtime obeys.

HTTPS_PROXY is for https, HTTP_PROXY for http, ALL_PROXY (which Go has not, but curl) for what the two say nothing of;
NO_PROXY says which hosts are asked directly. Each also in lower case. localhost and loopback addresses never go through a
proxy of the environment.

Source: https://pkg.go.dev/golang.org/x/net/http/httpproxy; curl(1) for ALL_PROXY.
"""

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from yarl import URL

from registratur.errors import InvalidEndpointError

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_SCHEMES = ("http", "https")
_VARIABLES = {"https": ("HTTPS_PROXY", "https_proxy"), "http": ("HTTP_PROXY", "http_proxy")}
_ANY, _NONE = ("ALL_PROXY", "all_proxy"), ("NO_PROXY", "no_proxy")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that takes CONNECT, and requests in absolute form; who it lets pass is never shown."""

    url: URL
    authorization: str | None = field(default=None, repr=False)
    """The value of Proxy-Authorization (RFC 7617)."""

    @classmethod
    def parse(cls, text: str, what: str) -> Self:
        """Read `http://user:password@host:port`; without a scheme it is http.

        Raises InvalidEndpointError, which names `what` and never shows the text.
        """
        try:
            url = URL(text.strip() if "://" in text else f"http://{text.strip()}")
            usable = url.scheme in _SCHEMES and url.host and url.port
            user, password = url.user or "", url.password or ""
            pair = base64.b64encode(f"{user}:{password}".encode()).decode() if user or password else None
            usable = usable and ":" not in user
        except ValueError:
            usable, pair = None, None
        if not usable:
            raise InvalidEndpointError(
                f"{what}: no proxy of the form http://host:port or https://host:port; SOCKS is not spoken"
            )
        return cls(url.origin(), pair and f"Basic {pair}")


@dataclass(frozen=True, slots=True)
class _Domain:
    """A name's end; all names that end so, and with `itself` the name alone."""

    end: str
    itself: bool
    port: int | None

    def has(self, host: str, port: int) -> bool:
        there = host.endswith(self.end) or (self.itself and host == self.end[1:])
        return there and self.port in (None, port)


@dataclass(frozen=True, slots=True)
class Direct:
    """The hosts that are asked without a proxy: what a NO_PROXY says."""

    everything: bool = False
    networks: tuple[_Network, ...] = ()
    addresses: tuple[tuple[_Address, int | None], ...] = ()
    domains: tuple[_Domain, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a list with commas. What is no host, network or end of a name is passed over, as Go does."""
        networks: list[_Network] = []
        addresses: list[tuple[_Address, int | None]] = []
        domains: list[_Domain] = []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            if entry == "*":
                return cls(everything=True)
            if (network := _network(entry)) is not None:
                networks.append(network)
                continue
            host, port, usable = _host_and_port(entry)
            if not usable:
                continue
            if (address := _address(host)) is not None:
                addresses.append((address, port))
            else:
                end = _ascii(host[1:] if host.startswith("*.") else host)
                itself = not end.startswith(".")
                domains.append(_Domain(f".{end}" if itself else end, itself, port))
        return cls(False, tuple(networks), tuple(addresses), tuple(domains))

    def has(self, host: str, port: int) -> bool:
        """Tell whether a host, in lower case and ASCII, is asked directly."""
        if self.everything or host == "localhost":
            return True
        if (address := _address(host)) is None:
            return any(domain.has(host, port) for domain in self.domains)
        return (
            address.is_loopback
            or any(address in network for network in self.networks)
            or any(address == one and at in (None, port) for one, at in self.addresses)
        )


@dataclass(frozen=True, slots=True)
class Proxies:
    """What an environment says of proxies. The values are read when they are needed, and never shown."""

    by_scheme: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    """By the scheme of a request: the variable that decides, and its value."""
    direct: Direct = Direct()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read an environment."""
        found = {}
        for scheme, names in _VARIABLES.items():
            given = [
                (name, environment[name]) for name in (*names, *_ANY) if environment.get(name, "").strip()
            ]
            if given:
                found[scheme] = given[0]
        excepted = next((environment[name] for name in _NONE if environment.get(name)), "")
        return cls(found, Direct.parse(excepted))

    def is_direct(self, url: URL) -> bool:
        """Tell whether a URL's host is excepted from all proxies."""
        return self.direct.has((url.raw_host or "").lower(), url.port or 0)

    def proxy_for(self, url: URL) -> Proxy | None:
        """Return the proxy for a URL; None if it is asked directly. Raises InvalidEndpointError for a variable that is none."""
        name, value = self.by_scheme.get(url.scheme, ("", ""))
        if not value or self.is_direct(url):
            return None
        return Proxy.parse(value, f"environment variable {name}")


def _network(text: str) -> _Network | None:
    """Read an address with a number of bits; the rest of the address may be there, too."""
    address, slash, bits = text.partition("/")
    if not slash or not bits.isdecimal():
        return None
    try:
        return ipaddress.ip_network(f"{address}/{bits}", strict=False)
    except ValueError:
        return None


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _host_and_port(text: str) -> tuple[str, int | None, bool]:
    """Return host and port, and whether that is usable. An IPv6 address with a port has brackets."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", None, False
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    usable = bool(host) and (not port or port.isdecimal())
    return host, int(port[:9]) if port.isdecimal() else None, usable


def _ascii(host: str) -> str:
    try:
        return ".".join(
            label if label.isascii() else label.encode("idna").decode() for label in host.split(".")
        )
    except UnicodeError:
        return host
