"""Who has which port of the node, over all networks: a port leads to one pod."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cni_plugins.errors import ClaimedError, ConfigurationError
from cni_plugins.ledger import Ledger
from cni_plugins.nat import HostPort
from cni_plugins.types import Address

POOL = "host-ports"
"""The ledger's pool of host ports."""

_ANY = {4: "0.0.0.0", 6: "::"}


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the node in one address family; `host_ip` None is all of the node's addresses of it."""

    protocol: str
    version: int
    number: int
    host_ip: Address | None = None

    @classmethod
    def of(cls, port: HostPort) -> Port:
        """Return what a translation takes of the node."""
        return cls(port.protocol, port.pod.version, port.host_port, port.host_ip)

    @classmethod
    def from_text(cls, text: str) -> Port:
        """The reverse of `str`."""
        number, protocol, _, host = text.split(" ")
        address = ip_address(host)
        return cls(protocol, address.version, int(number), None if address.is_unspecified else address)

    def __str__(self) -> str:
        return f"{self.number} {self.protocol} on {self.host_ip or _ANY[self.version]}"

    @property
    def place(self) -> tuple[str, int, int]:
        """What two ports must share to conflict, unless they are on two different addresses."""
        return self.protocol, self.version, self.number

    def conflicts(self, other: Port) -> bool:
        """Tell whether a packet could be for both."""
        return self.place == other.place and (
            self.host_ip is None or other.host_ip is None or self.host_ip == other.host_ip
        )


@dataclass(frozen=True, slots=True)
class Holder:
    """An attachment to a network, whose name has no blank."""

    owner: str
    network: str

    @classmethod
    def from_text(cls, text: str) -> Holder:
        """The reverse of `str`."""
        owner, _, network = text.rpartition(" of network ")
        return cls(owner, network)

    def __str__(self) -> str:
        return f"{self.owner} of network {self.network}"


class HostPorts:
    """The host ports of all networks of a ledger. Safe for threads; get it by `of`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        """For the memory only: nobody writes to the disk under it."""
        self._places: dict[tuple[str, int, int], dict[Port, Holder]] = {}
        self._held: dict[Holder, set[Port]] = {}
        for value, holder in ledger.claims(POOL):
            self._hold(Holder.from_text(holder), Port.from_text(value))

    @classmethod
    def of(cls, ledger: Ledger) -> HostPorts:
        """Return the host ports of a ledger, the same object for all who share it."""
        return ledger.index(POOL, lambda: cls(ledger))

    def claim(self, holder: Holder, ports: Sequence[Port], *, found: bool = False) -> None:
        """Give ports to an attachment, all or none; those that it has already are its. See `Ledger.claim_all` for `found`.

        Raises ClaimedError if another one has one, ConfigurationError if one is wanted twice, LedgerError.
        """
        _refuse_twice(holder, ports)
        with self._lock:
            for port in ports:
                self._refuse_claimed(holder, port)
            fresh = [port for port in ports if port not in self._held.get(holder, ())]
            for port in fresh:
                self._hold(holder, port)
        try:
            self._ledger.claim_all(POOL, [*map(str, ports)], str(holder), found=found)
        except BaseException:
            with self._lock:
                self._give(holder, fresh)
            raise

    def release(self, holder: Holder) -> bool:
        """Take back all that an attachment has; return whether that was anything. Raises LedgerError."""
        released = self._ledger.release(POOL, str(holder))
        with self._lock:
            self._give(holder, map(Port.from_text, released))
        return bool(released)

    def release_others(self, network: str, owners: Collection[str]) -> None:
        """Take back what a network's attachments have that are not among these. Raises LedgerError."""
        with self._lock:
            strays = [
                holder for holder in self._held if holder.network == network and holder.owner not in owners
            ]
        for holder in strays:
            self.release(holder)

    def held(self, holder: Holder) -> set[Port]:
        """Return what an attachment has."""
        with self._lock:
            return set(self._held.get(holder, ()))

    def any_of(self, network: str) -> bool:
        """Say whether an attachment of a network has any."""
        with self._lock:
            return any(holder.network == network for holder in self._held)

    def _refuse_claimed(self, wanting: Holder, port: Port) -> None:
        for other, holder in self._places.get(port.place, {}).items():
            if holder != wanting and port.conflicts(other):
                raise ClaimedError(
                    f"host port {port}, wanted by {wanting}, cannot be had: {other} belongs to {holder}; "
                    "delete that one first, or take another port"
                )

    def _hold(self, holder: Holder, port: Port) -> None:
        self._places.setdefault(port.place, {})[port] = holder
        self._held.setdefault(holder, set()).add(port)

    def _give(self, holder: Holder, ports: Iterable[Port]) -> None:
        held = self._held.get(holder, set())
        for port in ports:
            if port in held:
                held.remove(port)
                at_place = self._places[port.place]
                del at_place[port]
                if not at_place:
                    del self._places[port.place]
        if not held:
            self._held.pop(holder, None)


def _refuse_twice(holder: Holder, ports: Sequence[Port]) -> None:
    for at, port in enumerate(ports):
        for other in ports[at + 1 :]:
            if port.conflicts(other):
                both = f"{port}" if port == other else f"{port} and {other}"
                raise ConfigurationError(f"host port {both} is wanted twice by {holder}; map it once")
