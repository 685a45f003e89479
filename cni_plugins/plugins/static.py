"""CNI's static plugin: addresses that the configuration or the runtime names.

    {"type": "static", "addresses": [{"address": "10.88.0.5/16", "gateway": "10.88.0.1"}],
     "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.88.0.1"]}}

CNI_ARGS may add addresses (`IP`) and gateways for those (`GATEWAY`), with commas between them. `args: {cni: {ips}}` or
else the capability `ips` comes instead of all of those. Whether somebody else has an address is nobody's to know here.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_interface
from typing import Any, ClassVar

from cni_plugins import ipam
from cni_plugins.errors import AttachmentBrokenError, ConfigurationError
from cni_plugins.plugin import Context, Request
from cni_plugins.results import dns_from_json
from cni_plugins.settings import Settings
from cni_plugins.types import Address, InterfaceAddress, IPConfig, Result


class StaticPlugin(ipam.IpamPlugin):
    """Addresses that somebody else has thought about."""

    type: ClassVar[str] = "static"

    def __init__(self, settings: Settings, context: Context) -> None:  # noqa: ARG002 - nothing of it is needed
        self._settings = settings
        self._addresses = tuple(map(self._address, settings.parts("addresses")))
        self.versions = {ip.address.version for ip in self._addresses}
        self._routes = ipam.routes(settings)
        try:
            self._dns = dns_from_json(settings.mapping("dns"))
        except (TypeError, ValueError) as error:
            raise settings.wrong("dns", f"what CNI has for it ({error})") from error

    def add(self, request: Request) -> Result:
        """Return the addresses, all with a prefix. Raises ConfigurationError for one without."""
        return Result(ips=self._ips(request), routes=self._routes, dns=self._dns)

    def delete(self, request: Request) -> None:
        """Nothing was made."""

    def check(self, request: Request) -> None:
        """Find every address in the result."""
        there = {ip.address for ip in request.previous.ips}
        missing = [str(ip.address) for ip in self._ips(request) if ip.address not in there]
        if missing:
            raise AttachmentBrokenError(
                f"{self._settings.where}: {request.owner} lacks {', '.join(missing)}; delete and add it again"
            )

    def found(self, request: Request, addresses: Sequence[InterfaceAddress]) -> Result:
        """See `IpamPlugin`."""
        known = {ip.address.ip: ip for ip in self._ips(request)}
        ips = tuple(known.get(address.ip, IPConfig(address)) for address in addresses)
        return Result(ips=ips, routes=self._routes)

    def _ips(self, request: Request) -> tuple[IPConfig, ...]:
        replacing = [*map(str, request.runtime.ips)] or ipam.arguments(self._settings)
        if replacing:
            return tuple(IPConfig(self._parsed(word)) for word in replacing)
        named = [IPConfig(self._parsed(word)) for word in ipam.environment(request, "IP")]
        for gateway in map(self._gateway, ipam.environment(request, "GATEWAY")):
            named = [IPConfig(ip.address, gateway) if gateway in ip.address.network else ip for ip in named]
        return (*self._addresses, *named)

    def _address(self, settings: Settings) -> IPConfig:
        address, gateway = self._parsed(settings.text("address")), settings.address("gateway")
        if gateway is not None and gateway.version != address.version:
            raise settings.wrong("gateway", f"an IPv{address.version} address, as {address} is")
        return IPConfig(address, gateway)

    def _parsed(self, word: Any) -> InterfaceAddress:
        try:
            if "/" in word:
                return ip_interface(word)
        except ValueError:
            pass
        raise ConfigurationError(
            f"{self._settings.where}: {word!r} is no address with a prefix, such as 10.88.0.5/16"
        )

    def _gateway(self, word: str) -> Address:
        try:
            return ip_address(word)
        except ValueError as error:
            raise ConfigurationError(f"{self._settings.where}: GATEWAY in CNI_ARGS: {error}") from error
