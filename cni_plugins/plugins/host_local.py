"""CNI's host-local plugin: addresses of ranges that are this node's alone.

    {"type": "host-local",
     "ranges": [[{"subnet": "10.88.0.0/16", "rangeStart": "10.88.1.20", "rangeEnd": "10.88.3.50"}],
                [{"subnet": "fd00:88::/64", "gateway": "fd00:88::ffff"}]],
     "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": "/etc/resolv.conf"}

Every inner list is a range set, and gives a pod one address. A single range may stand at the top instead. Capabilities are
`ips` and `ipRanges`. `dataDir` is passed over: leases are in the ledger, which is of one boot.

Leases are a network's, whatever configurations it has had. A range in which another network has leases is refused while it
has them, and no pod of any network gets the gateway of a range that has been leased from since the node booted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import ClassVar

from cni_plugins import ipam
from cni_plugins.errors import ConfigurationError, NotAttachedError
from cni_plugins.leases import Leases
from cni_plugins.pairs import own_ips
from cni_plugins.plugin import Context, Request
from cni_plugins.ranges import RangeSet, refuse_overlaps
from cni_plugins.settings import Settings
from cni_plugins.steps import all_of
from cni_plugins.types import DNS, Address, InterfaceAddress, IPConfig, Result


class HostLocalPlugin(ipam.IpamPlugin):
    """Leases of addresses, in rounds, so that a released one rests long."""

    type: ClassVar[str] = "host-local"

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        self._context = context
        # The form with a single range at the top comes first, if there are both.
        parts = [[settings]] if settings.values.get("subnet") else []
        parts += [_set(settings, number) for number in range(len(settings.sequence("ranges")))]
        self._sets = [RangeSet.from_settings(ranges, settings.where) for ranges in parts]
        if not self._sets and "ipRanges" not in settings.whole.capabilities:
            raise settings.wrong("ranges", "a list of range sets, such as [[{'subnet': '10.88.0.0/16'}]]")
        _refuse_overlaps(self._sets, settings.where)
        self.versions = {each.ranges[0].subnet.version for each in self._sets}
        self._routes = ipam.routes(settings)
        self._resolv_conf = settings.text("resolvConf")

    def add(self, request: Request) -> Result:
        """Lease an address of every range set.

        Raises AddressesExhaustedError, ClaimedError, ConfigurationError, LedgerError.
        """
        dns = _read_resolv_conf(self._resolv_conf, self._settings) if self._resolv_conf else DNS()
        wanted = self._wanted(request)
        addresses = self._leases().lease(request.owner, wanted)
        configs = [
            IPConfig(*ranges.with_prefix(address))
            for (ranges, _), address in zip(wanted, addresses, strict=True)
        ]
        return Result(ips=tuple(configs), routes=self._routes, dns=dns)

    def delete(self, request: Request) -> None:
        """Release all that the attachment has."""
        self._leases().release(request.owner)

    def check(self, request: Request) -> None:
        """Find the lease of every address that is of our ranges."""
        held = self._leases().held(request.owner)
        sets = self._range_sets(request)
        ours = [
            ip.address.ip for ip in request.previous.ips if any(each.range_of(ip.address.ip) for each in sets)
        ]
        missing = [str(address) for address in ours if address not in held]
        if missing or not held:
            what = " and ".join(missing) or "any address"
            raise NotAttachedError(
                f"network {self._context.network}: {request.owner} has no lease for {what}; delete and add it again"
            )

    def gc(self, requests: Sequence[Request]) -> None:
        """Release what nobody has any more, and lease to everybody what they have: the ledger may have lost that."""
        leases = self._leases()
        all_of(
            [
                partial(leases.release_others, {request.owner for request in requests}),
                *(
                    partial(leases.have, request.owner, addresses)
                    for request in requests
                    if (addresses := self._of_ours(request))
                ),
            ]
        )

    def _of_ours(self, request: Request) -> list[Address]:
        """Return the addresses of an attachment that must not be given to others: of another configuration's, some of it."""
        addresses = [ip.address.ip for ip in own_ips(request)]
        if request.ours:
            return addresses
        return [address for address in addresses if any(each.range_of(address) for each in self._sets)]

    def found(self, request: Request, addresses: Sequence[InterfaceAddress]) -> Result:
        """See `IpamPlugin`."""
        sets = self._range_sets(request)
        ips = []
        for address in addresses:
            ranges = next((each for each in sets if each.range_of(address.ip)), None)
            ips.append(IPConfig(*ranges.with_prefix(address.ip)) if ranges else IPConfig(address))
        return Result(ips=tuple(ips), routes=self._routes)

    def status(self) -> list[str]:
        """Tell of ranges that are another network's already, and of a gateway whose address a pod has."""
        problem = self._leases().problem(self._sets)
        return [problem] if problem else []

    def _leases(self) -> Leases:
        return Leases.of(self._context.ledger, self._context.network)

    def _range_sets(self, request: Request) -> list[RangeSet]:
        """Return the runtime's range sets, then the configuration's, as the reference plugin has it."""
        where = f"{self._settings.where}: capability argument ipRanges"
        runtime = [
            RangeSet.from_settings([Settings(one, where) for one in each], where)
            for each in request.runtime.ip_ranges
        ]
        sets = [*runtime, *self._sets]
        if not sets:
            raise ConfigurationError(
                f"{where}: there is none, and the configuration has no ranges; give either"
            )
        if runtime:
            _refuse_overlaps(sets, where)
        return sets

    def _wanted(self, request: Request) -> list[tuple[RangeSet, Address | None]]:
        """Pair every range set with the first requested address that is in it."""
        requested = self._requested(request)
        wanted = []
        for ranges in self._range_sets(request):
            address = next((one for one in requested if ranges.range_of(one)), None)
            if address is not None:
                requested.remove(address)
                if any(address == each.gateway for each in ranges.ranges):
                    raise ConfigurationError(
                        f"{self._settings.where}: the requested address {address} is the gateway's; take another one"
                    )
            wanted.append((ranges, address))
        if requested:
            left = ", ".join(map(str, requested))
            raise ConfigurationError(
                f"{self._settings.where}: no range is left for the requested {left}; every range set gives one address"
            )
        return wanted

    def _requested(self, request: Request) -> list[Address]:
        words = [
            *ipam.environment(request, "IP"),
            *ipam.arguments(self._settings),
            *map(str, request.runtime.ips),
        ]
        try:
            return list(dict.fromkeys(ip_interface(word).ip for word in words))
        except ValueError as error:
            raise ConfigurationError(
                f"{self._settings.where}: a requested address is none: {error}"
            ) from error


def _set(settings: Settings, number: int) -> list[Settings]:
    """Return the ranges of the n-th range set."""
    key = f"ranges[{number}]"
    return Settings({key: settings.sequence("ranges")[number]}, settings.where, settings.whole).parts(key)


def _refuse_overlaps(sets: Sequence[RangeSet], where: str) -> None:
    refuse_overlaps([each for ranges in sets for each in ranges.ranges], where)


def _read_resolv_conf(path: str, settings: Settings) -> DNS:
    """Read what resolv.conf(5) tells a resolver. Raises ConfigurationError if the file cannot be read."""
    try:
        lines = Path(path).read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"{settings.where}: resolvConf {path}: {error.strerror}; name a file in the form of resolv.conf(5)"
        ) from error
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    domain = ""
    for line in lines:
        keyword, *words = line.split() or [""]
        match keyword:
            case "nameserver":
                nameservers += words[:1]
            case "domain":
                domain = words[0] if words else domain
            case "search":
                search += words
            case "options":
                options += words
    return DNS(tuple(nameservers), domain, tuple(search), tuple(options))
