"""Results in the specification's JSON: of every version that configurations may be written for.

Until 0.2.0 a result has one address per IP version and no interfaces, and each address has the routes of its version.

Sources: the CNI specification 1.1.0, "Section 5: Result Types", and the same section of its predecessors; for 0.1.0 and
0.2.0 "Result" of the specification 0.2.0, and libcni's pkg/types/020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from cni_plugins.errors import MalformedResultError
from cni_plugins.types import CNI_VERSION, DNS, Interface, IPConfig, Result, Route

_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")
_FLAT_VERSIONS = ("0.1.0", "0.2.0")
_FLAT_KEYS = {4: "ip4", 6: "ip6"}
_MOST_NAME = 15  # bytes of an interface's name: IFNAMSIZ without the final zero
_MOST = (1 << 32) - 1
"""Of the numbers in a result the kernels know none that is bigger."""


def to_json(result: Result, version: str = CNI_VERSION) -> dict[str, Any]:
    """Return a result in the form of one version, ready for json.dumps; empty fields are left out."""
    newest = version == CNI_VERSION
    told: dict[str, Any] = {"cniVersion": version}
    if version in _FLAT_VERSIONS:
        told |= {key: _flat(result, ip_version) for ip_version, key in _FLAT_KEYS.items()}
    else:
        told |= {
            "interfaces": [_interface(interface, newest=newest) for interface in result.interfaces],
            "ips": [_ip(ip, with_version=version.startswith("0.")) for ip in result.ips],
            "routes": [_route(route, newest=newest) for route in result.routes],
        }
    told["dns"] = result.dns.to_json()
    return {key: value for key, value in told.items() if value or key == "dns"}


def from_json(told: Mapping[str, Any]) -> Result:
    """Read a result of any of the versions. Raises MalformedResultError, naming the field."""
    try:
        flat = [_object(told[key], key) for key in _FLAT_KEYS.values() if told.get(key)]
        return Result(
            interfaces=tuple(map(_interface_from_json, _objects(told, "interfaces"))),
            ips=(
                *(_ip_from_json(one, "ip") for one in flat),
                *(_ip_from_json(one, "address") for one in _objects(told, "ips")),
            ),
            routes=tuple(_route_from_json(one) for part in (*flat, told) for one in _objects(part, "routes")),
            dns=dns_from_json(told.get("dns") or {}),
        )
    except KeyError as error:
        raise MalformedResultError(f"no result of CNI: {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise MalformedResultError(f"no result of CNI: {type(error).__name__}: {error}") from error


def dns_from_json(told: Mapping[str, Any]) -> DNS:
    """Read the DNS part of a result, of a configuration or of a capability argument. Raises TypeError, ValueError."""
    _object(told, "dns")
    lists = {key: tuple(_words(told, key)) for key in ("nameservers", "search", "options")}
    # The capability "dns" calls two of them otherwise (CNI conventions).
    lists["nameservers"] = lists["nameservers"] or tuple(_words(told, "servers"))
    lists["search"] = lists["search"] or tuple(_words(told, "searches"))
    return DNS(domain=_word(told.get("domain") or "", "domain"), **lists)


def _words(told: Mapping[str, Any], key: str) -> list[str]:
    return [_word(one, key) for one in _list(told, key)]


def _word(told: Any, what: str) -> str:
    """A word for a resolver's file, where a space or a line's end would make it two."""
    word = _text(told, what)
    if not word.isprintable() or " " in word:
        raise ValueError(f"{what}: {word!r} is not one printable word")
    return word


def _text(told: Any, what: str) -> str:
    if not isinstance(told, str):
        raise TypeError(f"{what} is {told!r}, but must be a string")
    return told


def _number(told: Any, what: str) -> int:
    if isinstance(told, bool) or not isinstance(told, int) or not 0 <= told <= _MOST:
        raise ValueError(f"{what} is {told!r}, but must be a whole number from 0 to {_MOST}")
    return told


def _list(told: Mapping[str, Any], key: str) -> list[Any]:
    found = told.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise TypeError(f"{key} is {found!r}, but must be a list")
    return found


def _objects(told: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [_object(one, key) for one in _list(told, key)]


def _object(told: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(told, Mapping):
        raise TypeError(f"{what} is {told!r}, but must be an object")
    return told


def _interface_from_json(told: Mapping[str, Any]) -> Interface:
    name = _text(told["name"], "name")
    if not 0 < len(name.encode()) <= _MOST_NAME or "/" in name or not name.isprintable() or " " in name:
        raise ValueError(f"{name!r} is no interface name of at most {_MOST_NAME} bytes")
    return Interface(
        name,
        _text(told.get("mac") or "", "mac"),
        _text(told.get("sandbox") or "", "sandbox"),
        _number(told.get("mtu") or 0, "mtu"),
    )


def _ip_from_json(told: Mapping[str, Any], key: str) -> IPConfig:
    gateway, interface = told.get("gateway"), told.get("interface")
    return IPConfig(
        ip_interface(_text(told[key], key)),
        ip_address(_text(gateway, "gateway")) if gateway else None,
        None if interface is None else _number(interface, "interface"),
    )


def _route_from_json(told: Mapping[str, Any]) -> Route:
    gateway = told.get("gw")
    return Route(
        ip_network(_text(told["dst"], "dst"), strict=False),
        ip_address(_text(gateway, "gw")) if gateway else None,
        **{name: _number(told[name], name) for name in _ROUTE_NUMBERS if told.get(name) is not None},
    )


def _flat(result: Result, version: int) -> dict[str, Any]:
    """Return what the old forms have for an IP version: its first address, and its routes; nothing without an address."""
    first = next((ip for ip in result.ips if ip.address.version == version), None)
    if first is None:
        return {}
    told: dict[str, Any] = {"ip": str(first.address)}
    if first.gateway is not None:
        told["gateway"] = str(first.gateway)
    if routes := [_route(route, newest=False) for route in result.routes if route.dst.version == version]:
        told["routes"] = routes
    return told


def _interface(interface: Interface, *, newest: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": interface.name}
    if interface.mac:
        told["mac"] = interface.mac
    if newest and interface.mtu:
        told["mtu"] = interface.mtu
    if interface.sandbox:
        told["sandbox"] = interface.sandbox
    return told


def _ip(ip: IPConfig, *, with_version: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"version": str(ip.address.version)} if with_version else {}
    if ip.interface is not None:
        told["interface"] = ip.interface
    told["address"] = str(ip.address)
    if ip.gateway is not None:
        told["gateway"] = str(ip.gateway)
    return told


def _route(route: Route, *, newest: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"dst": str(route.dst)}
    if route.gw is not None:
        told["gw"] = str(route.gw)
    if newest:
        told |= {
            key: value for key, value in asdict(route).items() if key in _ROUTE_NUMBERS and value is not None
        }
    return told
