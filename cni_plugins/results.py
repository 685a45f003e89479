"""Results in the specification's JSON: of every version that configurations may be written for.

Source: the CNI specification 1.1.0, "Section 5: Result Types", and the same section of its predecessors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from cni_plugins.errors import MalformedResultError
from cni_plugins.types import CNI_VERSION, DNS, Interface, IPConfig, Result, Route

_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")


def to_json(result: Result, version: str = CNI_VERSION) -> dict[str, Any]:
    """Return a result in the form of one version, ready for json.dumps; empty fields are left out."""
    newest = version == CNI_VERSION
    told = {
        "cniVersion": version,
        "interfaces": [_interface(interface, newest=newest) for interface in result.interfaces],
        "ips": [_ip(ip, with_version=version.startswith("0.")) for ip in result.ips],
        "routes": [_route(route, newest=newest) for route in result.routes],
        "dns": result.dns.to_json(),
    }
    return {key: value for key, value in told.items() if value or key == "dns"}


def from_json(told: Mapping[str, Any]) -> Result:
    """Read a result of any of the versions. Raises MalformedResultError, naming the field."""
    try:
        return Result(
            interfaces=tuple(
                Interface(one["name"], one.get("mac", ""), one.get("sandbox", ""), one.get("mtu", 0))
                for one in told.get("interfaces") or ()
            ),
            ips=tuple(
                IPConfig(
                    ip_interface(one["address"]),
                    ip_address(one["gateway"]) if one.get("gateway") else None,
                    one.get("interface"),
                )
                for one in told.get("ips") or ()
            ),
            routes=tuple(
                Route(
                    ip_network(one["dst"], strict=False),
                    ip_address(one["gw"]) if one.get("gw") else None,
                    **{name: one.get(name) for name in _ROUTE_NUMBERS},
                )
                for one in told.get("routes") or ()
            ),
            dns=dns_from_json(told.get("dns") or {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedResultError(f"no result of CNI: {type(error).__name__}: {error}") from error


def dns_from_json(told: Mapping[str, Any]) -> DNS:
    """Read the DNS part of a result, of a configuration or of a capability argument. Raises TypeError, ValueError."""
    lists = {
        name: tuple(map(str, told.get(key) or ()))
        for name, key in (("nameservers", "nameservers"), ("search", "search"), ("options", "options"))
    }
    # The capability "dns" calls two of them otherwise (CNI conventions).
    lists["nameservers"] = lists["nameservers"] or tuple(map(str, told.get("servers") or ()))
    lists["search"] = lists["search"] or tuple(map(str, told.get("searches") or ()))
    return DNS(domain=str(told.get("domain") or ""), **lists)


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
