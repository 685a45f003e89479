"""What IPAM plugins share: the addresses that are asked for, and the routes of a configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cni_plugins.plugin import Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import InterfaceAddress, IPConfig, Result, Route

_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")
_MOST = (1 << 32) - 1


class IpamPlugin(Plugin):
    """A plugin that gives addresses, and knows from its configuration of which kinds."""

    translates = False
    versions: Collection[int] = ()
    """The IP versions of the addresses that every pod gets."""

    def found(self, request: Request, addresses: Sequence[InterfaceAddress]) -> Result:  # noqa: ARG002
        """Return what `add` has returned for a pod that has these addresses, as far as that can be known."""
        return Result(ips=tuple(map(IPConfig, addresses)))


def routes(settings: Settings) -> tuple[Route, ...]:
    """Read `routes`, in the order of the configuration. Raises ConfigurationError."""
    return tuple(map(_route, settings.parts("routes")))


def environment(request: Request, name: str) -> list[str]:
    """Return what CNI_ARGS has under a name, at its commas."""
    return [word.strip() for word in request.attachment.args.get(name, "").split(",") if word.strip()]


def arguments(settings: Settings) -> tuple[str, ...]:
    """Return the addresses in `args` of a plugin's configuration (CNI conventions, `args: {cni: {ips}}`)."""
    return settings.whole.part("args").part("cni").texts("ips")


def _route(settings: Settings) -> Route:
    dst = settings.network("dst")
    if dst is None:
        raise settings.wrong("dst", "a subnet such as 0.0.0.0/0")
    gw = settings.address("gw")
    if gw is not None and gw.version != dst.version:
        raise settings.wrong("gw", f"an IPv{dst.version} address, as {dst} is")
    numbers = {
        name: settings.integer(name, most=_MOST)
        for name in _ROUTE_NUMBERS
        if settings.values.get(name) is not None
    }
    return Route(dst, gw, **numbers)
