"""Ranges of addresses as host-local's configuration has them, and the round through them that leases are taken from.

A range set is what one address of a pod comes from: ranges of one family, perhaps of several subnets. Source: the
documentation of CNI's host-local plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_interface, ip_network

from cni_plugins.errors import ConfigurationError
from cni_plugins.intervals import Intervals
from cni_plugins.settings import Settings
from cni_plugins.types import Address, InterfaceAddress, Network, default_gateway


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses of a subnet from `start` to `end`, both inclusive. The gateway may be among them, or in no subnet at all."""

    subnet: Network
    gateway: Address
    start: Address
    end: Address

    @classmethod
    def from_settings(cls, settings: Settings) -> AddressRange:
        """Read {subnet, rangeStart, rangeEnd, gateway}. Raises ConfigurationError for what contradicts itself."""
        subnet = _subnet(settings)
        first, last = _usable(subnet)
        gateway = settings.address("gateway") or default_gateway(subnet)
        if gateway.version != subnet.version or (
            gateway in subnet and not int(first) <= int(gateway) <= int(last)
        ):
            raise settings.wrong("gateway", f"an IPv{subnet.version} address that a host may have")
        made = cls(
            subnet, gateway, settings.address("rangeStart") or first, settings.address("rangeEnd") or last
        )
        for key, address in (("rangeStart", made.start), ("rangeEnd", made.end)):
            if address.version != subnet.version or not int(first) <= int(address) <= int(last):
                raise settings.wrong(key, f"an address of {subnet} from {first} to {last}")
        if int(made.start) > int(made.end):
            raise settings.wrong("rangeEnd", f"no address before rangeStart, {made.start}; swap them")
        return made

    def __contains__(self, address: Address) -> bool:
        return address.version == self.subnet.version and int(self.start) <= int(address) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start} to {self.end} of {self.subnet}"

    def overlaps(self, other: AddressRange) -> bool:
        """Tell whether an address is in both ranges; their subnets may be the same."""
        return other.start in self or other.end in self or self.start in other


@dataclass(frozen=True, slots=True)
class RangeSet:
    """Ranges of which each pod has one address."""

    ranges: tuple[AddressRange, ...]

    @classmethod
    def from_settings(cls, parts: Sequence[Settings], where: str) -> RangeSet:
        """Read a list of ranges; `where` is for messages. Raises ConfigurationError."""
        made = cls(tuple(map(AddressRange.from_settings, parts)))
        if not made.ranges:
            raise ConfigurationError(f"{where}: a range set has no range; give it one, or remove it")
        if len({each.subnet.version for each in made.ranges}) > 1:
            raise ConfigurationError(
                f"{where}: {made} are IPv4 and IPv6 in one set; make it two, each gives a pod one address"
            )
        refuse_overlaps(made.ranges, where)
        return made

    def __str__(self) -> str:
        return ", ".join(map(str, self.ranges))

    @property
    def gateways(self) -> dict[Address, AddressRange]:
        """The gateways of its ranges."""
        return {each.gateway: each for each in reversed(self.ranges)}

    def range_of(self, address: Address) -> AddressRange | None:
        """Return the range that has an address."""
        return next((each for each in self.ranges if address in each), None)

    def with_prefix(self, address: Address) -> tuple[InterfaceAddress, Address]:
        """Return an address of the set with its subnet's prefix, and its gateway."""
        found = self.range_of(address)
        if found is None:
            raise ConfigurationError(f"address {address} is not in {self}; take one from there")
        return ip_interface((address, found.subnet.prefixlen)), found.gateway


def refuse_overlaps(ranges: Sequence[AddressRange], where: str) -> None:
    """Raise ConfigurationError if an address is in two ranges."""
    for at, one in enumerate(ranges):
        for other in ranges[at + 1 :]:
            if one.overlaps(other):
                raise ConfigurationError(
                    f"{where}: the ranges {one} and {other} overlap; give every range addresses of its own"
                )


class Round:
    """Which addresses of a range set are free, and which of them is the next one.

    The next one is the first free one after the last one that was taken, through all ranges and round again, so that a
    released address rests as long as possible. Not safe for threads.
    """

    def __init__(
        self,
        ranges: RangeSet,
        held: Iterable[Address],
        last: Address | None,
        gateways: Iterable[Address] = (),
    ) -> None:
        self._ranges = ranges.ranges
        # No pod may have the gateway of another range either: both may be in one subnet.
        self._gateways = {*ranges.gateways, *gateways}
        held = [address for address in held if ranges.range_of(address)]
        taken = [*self._gateways, *held]
        self._free = [
            Intervals(int(each.start), int(each.end), [int(address) for address in taken if address in each])
            for each in self._ranges
        ]
        self.leased = len(held)
        """How many addresses are taken."""
        self._at, self._next = 0, int(self._ranges[0].start)
        if last is not None:
            self._go_behind(last)

    def pick(self) -> Address | None:
        """Take the next address; None if none is free."""
        order = [(at % len(self._free)) for at in range(self._at, self._at + len(self._free))]
        starts = [self._next, *(int(self._ranges[at].start) for at in order[1:])]
        # Last comes the part of the first range that is before the place where the round begins.
        order.append(self._at)
        starts.append(int(self._ranges[self._at].start))
        for at, start in zip(order, starts, strict=True):
            number = self._free[at].next_from(start)
            if number is not None:
                address = self._ranges[at].start + (number - int(self._ranges[at].start))
                self.take(address)
                return address
        return None

    def take(self, address: Address) -> None:
        """Take an address out that is free; nothing happens if it is in no range."""
        for each, free in zip(self._ranges, self._free, strict=True):
            if address in each and int(address) in free:
                free.remove(int(address))
                self.leased += 1
                self._go_behind(address)

    def reserve(self, gateway: Address) -> None:
        """Take an address out for good."""
        self._gateways.add(gateway)
        for each, free in zip(self._ranges, self._free, strict=True):
            if gateway in each:
                free.remove(int(gateway))

    def give(self, address: Address) -> None:
        """Put an address back; nothing happens if it is in no range."""
        for each, free in zip(self._ranges, self._free, strict=True):
            if address in each and address not in self._gateways and int(address) not in free:
                free.add(int(address))
                self.leased -= 1

    def _go_behind(self, address: Address) -> None:
        for at, each in enumerate(self._ranges):
            if address in each:
                self._at, self._next = at, int(address) + 1


def _subnet(settings: Settings) -> Network:
    text = settings.text("subnet")
    try:
        subnet = ip_network(text)
    except ValueError:
        raise settings.wrong("subnet", f"a subnet without host bits{_meant(text)}") from None
    if not isinstance(subnet, IPv4Network) and subnet.network_address.ipv4_mapped:
        raise settings.wrong("subnet", "an IPv4 subnet in the form of IPv4")
    return subnet


def _meant(text: str) -> str:
    try:
        return f", {ip_network(text, strict=False)}"
    except ValueError:
        return ", such as 10.88.0.0/16"


def _usable(subnet: Network) -> tuple[Address, Address]:
    """Return the first and last address that a host may have (RFC 3021 and RFC 6164 for the pairs)."""
    default_gateway(subnet)  # which says what is wrong with a subnet of one
    if subnet.num_addresses == 2:
        return subnet[0], subnet[1]
    # IPv6 has no broadcast, but its first address is every router's (RFC 4291, 2.6.1).
    return subnet[1], subnet[-2] if isinstance(subnet, IPv4Network) else subnet[-1]
