"""Who has which address of a network: leases, written down before they are used.

What decides is the ledger; what is here finds a free address without asking it, so that fifty thousand leases cost no more
than none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from ipaddress import ip_address

from cni_plugins.errors import AddressesExhaustedError, ClaimedError
from cni_plugins.ledger import Ledger
from cni_plugins.ranges import RangeSet, Round
from cni_plugins.types import Address

_ROUNDS = 32  # range sets that are remembered: each pod may have brought its own


class Leases:
    """The leases of one network, whatever configurations it has. Safe for threads; get it by `of`."""

    def __init__(self, ledger: Ledger, network: str) -> None:
        self._ledger = ledger
        self._network = network
        self._pool = pool(network)
        self._lock = threading.Lock()
        """For the memory only: nobody writes to the disk under it."""
        self._owners: dict[Address, str] = {}
        self._held: dict[str, list[Address]] = {}
        self._rounds: OrderedDict[RangeSet, Round] = OrderedDict()
        for value, owner in ledger.claims(self._pool):
            self._hold(owner, ip_address(value))

    @classmethod
    def of(cls, ledger: Ledger, network: str) -> Leases:
        """Return the leases of a network, the same object for all who share a ledger."""
        return ledger.index(pool(network), lambda: cls(ledger, network))

    def lease(self, owner: str, wanted: Sequence[tuple[RangeSet, Address | None]]) -> list[Address]:
        """Give an owner an address of every range set, the requested one where there is one; all or none.

        What it has of a set already is what it gets again. Raises AddressesExhaustedError, ClaimedError for a requested
        address that is another one's, LedgerError.
        """
        fresh: list[Address] = []
        notes: dict[str, str] = {}
        try:
            with self._lock:
                addresses = []
                for number, (ranges, requested) in enumerate(wanted):
                    last = self._note(number)
                    address = self._known(owner, ranges, requested)
                    if address is None:
                        address = self._take(owner, ranges, requested, last)
                        fresh.append(address)
                        notes[last] = str(address)
                    addresses.append(address)
            self._ledger.claim_all(self._pool, [*map(str, addresses)], owner, notes)
        except BaseException:
            with self._lock:
                self._give(owner, fresh)
            raise
        return addresses

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
                f"network {self._network}: address {requested}, wanted by {owner}, belongs to {holder}; "
                "delete that one first, or request another address"
            )
        return requested if requested in mine else None

    def _take(self, owner: str, ranges: RangeSet, requested: Address | None, last: str) -> Address:
        rotation = self._round(ranges, last)
        address = requested if requested is not None else rotation.pick()
        if address is None:
            raise AddressesExhaustedError(
                f"network {self._network}: no address of {ranges} is free for {owner}, {rotation.leased} are leased; "
                "remove pods, or configure a larger subnet or range"
            )
        self._hold(owner, address)
        return address

    def _round(self, ranges: RangeSet, last: str) -> Round:
        found = self._rounds.get(ranges)
        if found is None:
            noted = self._ledger.noted(last)
            found = Round(ranges, self._owners, ip_address(noted) if noted else None)
            self._rounds[ranges] = found
            if len(self._rounds) > _ROUNDS:
                self._rounds.popitem(last=False)
        self._rounds.move_to_end(ranges)
        return found

    def _hold(self, owner: str, address: Address) -> None:
        self._owners[address] = owner
        self._held.setdefault(owner, []).append(address)
        for each in self._rounds.values():
            each.take(address)

    def _give(self, owner: str, addresses: Sequence[Address]) -> None:
        held = self._held.get(owner, [])
        for address in addresses:
            if address in held:
                held.remove(address)
                del self._owners[address]
                for each in self._rounds.values():
                    each.give(address)
        if not held:
            self._held.pop(owner, None)

    def _note(self, number: int) -> str:
        """Where the ledger keeps which address of the n-th set was leased last."""
        return f"{self._pool}: last of set {number}"


def pool(network: str) -> str:
    """Return the name that the ledger has a network's leases under."""
    return f"addresses of network {network}"
