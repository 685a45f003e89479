"""Who has which address of a network: leases, written down before they are used.

What decides is the ledger; what is here finds a free address without asking it, so that fifty thousand leases cost no more
than none.

All networks of a node share its routes, so none of them leases from a range in which another has leases, and none gives a
pod the address of a gateway, whosever that is. Gateways are remembered until the node boots anew: a bridge may have the
address long after the last pod that needed it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_address

from cni_plugins.errors import AddressesExhaustedError, ClaimedError, ConfigurationError
from cni_plugins.intervals import Intervals
from cni_plugins.ledger import Ledger
from cni_plugins.ranges import AddressRange, RangeSet, Round
from cni_plugins.types import Address

_ROUNDS = 32  # range sets that are remembered: each pod may have brought its own
_POOL = "addresses of network "
_GATEWAYS = "gateways"


class NodeLeases:
    """The leases of all networks that share a ledger, and the gateways. Safe for threads; get it by `of`."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.lock = threading.Lock()
        """For the memory only: nobody writes to the disk under it."""
        self.gateways: set[Address] = {ip_address(value) for value, _ in ledger.claims(_GATEWAYS)}
        self.networks: dict[str, Leases] = {}
        for name in ledger.pools(_POOL):
            self.network(name.removeprefix(_POOL))

    @classmethod
    def of(cls, ledger: Ledger) -> NodeLeases:
        """Return the leases of a ledger, the same object for all."""
        return ledger.index("leases of the node", lambda: cls(ledger))

    def network(self, name: str) -> Leases:
        """Return the leases of one network, the same object for all who ask."""
        with self.lock:
            if name not in self.networks:
                self.networks[name] = Leases(self, name)
            return self.networks[name]


class Leases:
    """The leases of one network, whatever configurations it has. Safe for threads; get it by `of`."""

    def __init__(self, node: NodeLeases, network: str) -> None:
        self._node = node
        self._ledger = node.ledger
        self._lock = node.lock
        self.name = network
        self._pool = pool(network)
        self._owners: dict[Address, str] = {}
        self._held: dict[str, list[Address]] = {}
        self._leased = {4: Intervals.of(), 6: Intervals.of()}
        """The addresses in their order."""
        self._rounds: OrderedDict[RangeSet, Round] = OrderedDict()
        for value, owner in self._ledger.claims(self._pool):
            self._hold(owner, ip_address(value))

    @classmethod
    def of(cls, ledger: Ledger, network: str) -> Leases:
        """Return the leases of a network, the same object for all who share a ledger."""
        return NodeLeases.of(ledger).network(network)

    def lease(self, owner: str, wanted: Sequence[tuple[RangeSet, Address | None]]) -> list[Address]:
        """Give an owner an address of every range set, the requested one where there is one; all or none.

        What it has of a set already is what it gets again. Raises AddressesExhaustedError, ClaimedError for a requested
        address that is another one's, ConfigurationError for what `problem` tells, LedgerError.
        """
        fresh: list[Address] = []
        gateways: list[Address] = []
        notes: dict[str, str] = {}
        try:
            with self._lock:
                addresses = []
                for number, (ranges, requested) in enumerate(wanted):
                    last = self._note(number)
                    address = self._known(owner, ranges, requested)
                    if address is None:
                        self._refuse_problem(ranges)
                        gateways += self._reserve(ranges.gateways)
                        address = self._take(owner, ranges, requested, last)
                        fresh.append(address)
                        notes[last] = str(address)
                    addresses.append(address)
            if gateways:
                self._ledger.claim_all(_GATEWAYS, [*map(str, gateways)], _GATEWAYS)
            self._ledger.claim_all(self._pool, [*map(str, addresses)], owner, notes)
        except BaseException:
            with self._lock:
                self._give(owner, fresh)
                self._node.gateways.difference_update(gateways)
            raise
        return addresses

    def problem(self, wanted: Iterable[RangeSet]) -> str | None:
        """Return why nothing can be leased of some range sets, as far as that is not for want of free addresses."""
        with self._lock:
            return next((problem for ranges in wanted if (problem := self._problem(ranges))), None)

    def release(self, owner: str) -> None:
        """Take back all that an owner has; succeeds if that is nothing. Raises LedgerError."""
        released = self._ledger.release(self._pool, owner)
        with self._lock:
            self._give(owner, [*map(ip_address, released)])

    def release_others(self, owners: Collection[str]) -> None:
        """Take back what owners have that are not among these. Raises LedgerError."""
        with self._lock:
            strays = self._held.keys() - owners
        for owner in strays:
            self.release(owner)

    def have(self, owner: str, addresses: Collection[Address]) -> None:
        """Lease to an owner what it was found to have, wherever that is. Raises ClaimedError if it is another one's."""
        with self._lock:
            fresh = [address for address in addresses if self._owners.get(address) != owner]
            for address in fresh:
                if (holder := self._owners.get(address)) is not None:
                    raise ClaimedError(
                        f"network {self.name}: {owner} has the address {address}, which belongs to {holder}; "
                        "remove one of these pods"
                    )
            for address in fresh:
                self._hold(owner, address)
        if fresh:
            self._ledger.claim_all(self._pool, [*map(str, fresh)], owner, found=True)

    def held(self, owner: str) -> list[Address]:
        """Return what an owner has."""
        with self._lock:
            return list(self._held.get(owner, ()))

    def _known(self, owner: str, ranges: RangeSet, requested: Address | None) -> Address | None:
        mine = [address for address in self._held.get(owner, ()) if ranges.range_of(address)]
        if requested is None:
            return mine[0] if mine else None
        holder = self._owners.get(requested, owner)
        if holder != owner:
            raise ClaimedError(
                f"network {self.name}: address {requested}, wanted by {owner}, belongs to {holder}; "
                "delete that one first, or request another address"
            )
        return requested if requested in mine else None

    def within(self, addresses: AddressRange) -> int:
        """Return how many addresses of a range are leased, by whatever range set; the caller has the node's lock."""
        leased = self._leased[addresses.subnet.version].next_from(int(addresses.start))
        if leased is None or leased > int(addresses.end):
            return 0
        return sum(address in addresses for address in self._owners)

    def owner_of(self, address: Address) -> str | None:
        """Return who has an address; the caller has the node's lock."""
        return self._owners.get(address)

    def reserve(self, gateway: Address) -> None:
        """Lease this address to nobody; the caller has the node's lock."""
        for each in self._rounds.values():
            each.reserve(gateway)

    def _refuse_problem(self, ranges: RangeSet) -> None:
        if problem := self._problem(ranges):
            raise ConfigurationError(problem)

    def _problem(self, ranges: RangeSet) -> str | None:
        for other in self._node.networks.values():
            for each in ranges.ranges:
                if other is not self and (leased := other.within(each)):
                    return (
                        f"network {self.name}: {each} overlaps network {other.name}, which has leased {leased} of these "
                        "addresses; give one of the two another subnet or range, or delete the pods of the other"
                    )
                holder = other.owner_of(each.gateway)
                if holder is not None and each.gateway not in self._node.gateways:
                    return (
                        f"network {self.name}: the gateway {each.gateway} of {each} is the address of {holder} "
                        f"in network {other.name}; delete that pod, or configure another gateway"
                    )
        return None

    def _reserve(self, gateways: Iterable[Address]) -> list[Address]:
        """Make sure that no pod gets these addresses; return those that are new."""
        fresh = [gateway for gateway in gateways if gateway not in self._node.gateways]
        self._node.gateways.update(fresh)
        for network in self._node.networks.values():
            for gateway in fresh:
                network.reserve(gateway)
        return fresh

    def _take(self, owner: str, ranges: RangeSet, requested: Address | None, last: str) -> Address:
        if requested in self._node.gateways:
            raise ClaimedError(
                f"network {self.name}: address {requested}, wanted by {owner}, is that of a gateway of this node's "
                "pods; request another address"
            )
        rotation = self._round(ranges, last)
        address = requested if requested is not None else rotation.pick()
        if address is None:
            raise AddressesExhaustedError(
                f"network {self.name}: no address of {ranges} is free for {owner}, {rotation.leased} are leased; "
                "remove pods, or configure a larger subnet or range"
            )
        self._hold(owner, address)
        return address

    def _round(self, ranges: RangeSet, last: str) -> Round:
        found = self._rounds.get(ranges)
        if found is None:
            noted = self._ledger.noted(last)
            found = Round(ranges, self._owners, ip_address(noted) if noted else None, self._node.gateways)
            self._rounds[ranges] = found
            if len(self._rounds) > _ROUNDS:
                self._rounds.popitem(last=False)
        self._rounds.move_to_end(ranges)
        return found

    def _hold(self, owner: str, address: Address) -> None:
        self._owners[address] = owner
        self._held.setdefault(owner, []).append(address)
        self._leased[address.version].add(int(address))
        for each in self._rounds.values():
            each.take(address)

    def _give(self, owner: str, addresses: Sequence[Address]) -> None:
        held = self._held.get(owner, [])
        for address in addresses:
            if address in held:
                held.remove(address)
                del self._owners[address]
                self._leased[address.version].remove(int(address))
                for each in self._rounds.values():
                    each.give(address)
        if not held:
            self._held.pop(owner, None)

    def _note(self, number: int) -> str:
        """Where the ledger keeps which address of the n-th set was leased last."""
        return f"{self._pool}: last of set {number}"


def pool(network: str) -> str:
    """Return the name that the ledger has a network's leases under."""
    return f"{_POOL}{network}"
