"""Which pod gets which address, as CNI's host-local plugin decides it, in memory.

The subnet is this node's alone. The caller writes every reservation down before it uses it, and restores
them, oldest first, after a restart.
"""

from __future__ import annotations

import threading
from ipaddress import IPv4Network, ip_interface

from cni_plugins.errors import AddressesExhaustedError, AddressInUseError, ConfigurationError
from cni_plugins.types import Address, InterfaceAddress, Network, default_gateway


class Allocator:
    """Hands out a subnet's addresses, one per owner, going round so that a released one rests long.

    `gateway` (by default the subnet's first usable address), the network's and the broadcast address are never
    handed out. `range_start` and `range_end`, both inclusive, narrow what is. Raises ConfigurationError if
    they contradict the subnet. Safe for threads; nothing blocks.
    """

    def __init__(
        self,
        subnet: Network,
        gateway: Address | None = None,
        *,
        range_start: Address | None = None,
        range_end: Address | None = None,
    ) -> None:
        self.subnet = subnet
        self.gateway: Address = gateway if gateway is not None else default_gateway(subnet)
        first, last = _usable(subnet)
        self.range_start: Address = range_start if range_start is not None else first
        self.range_end: Address = range_end if range_end is not None else last
        self._require_host("gateway", self.gateway)
        self._require_host("range_start", self.range_start)
        self._require_host("range_end", self.range_end)
        self._first, self._size = int(self.range_start), int(self.range_end) - int(self.range_start) + 1
        if self._size < 1:
            raise ConfigurationError(
                f"subnet {subnet}: range_start {self.range_start} is above range_end {self.range_end}; swap them"
            )
        self._lock = threading.Lock()
        self._by_owner: dict[str, Address] = {}
        self._owners: dict[Address, str] = {}
        self._next = 0  # offset in the range of the address after the one handed out last

    def reserve(self, owner: str) -> InterfaceAddress:
        """Return the owner's address with the subnet's prefix length; the same one as long as it is reserved.

        Raises AddressesExhaustedError.
        """
        with self._lock:
            address = self._by_owner.get(owner)
            if address is None:
                address = self._find_free()
                self._hold(owner, address)
            return self._with_prefix(address)

    def restore(self, owner: str, address: Address | InterfaceAddress) -> None:
        """Reserve a known address for an owner, even outside the range (which may have been narrowed since).

        Raises ConfigurationError if it is no host's address in this subnet, AddressInUseError if the owner has
        another one, or another owner or the gateway has it.
        """
        ip: Address = getattr(address, "ip", address)
        self._require_host(f"address of {owner}", ip)
        with self._lock:
            holder = "the gateway" if ip == self.gateway else self._owners.get(ip, owner)
            if holder != owner:
                raise AddressInUseError(f"address {ip} of {owner} belongs to {holder}; release one of them")
            if self._by_owner.get(owner, ip) != ip:
                raise AddressInUseError(f"{owner} has {self._by_owner[owner]}, not {ip}; release it first")
            self._hold(owner, ip)

    def release(self, owner: str) -> None:
        """Free the owner's address, if it has one."""
        with self._lock:
            address = self._by_owner.pop(owner, None)
            if address is not None:
                del self._owners[address]

    def reservations(self) -> dict[str, InterfaceAddress]:
        """Return what every owner has, oldest reservation first."""
        with self._lock:
            return {owner: self._with_prefix(address) for owner, address in self._by_owner.items()}

    def _find_free(self) -> Address:
        # Among one more than are taken at least one is free, so a large subnet is never walked to its end.
        for step in range(min(self._size, len(self._owners) + 2)):
            address = self.range_start + (self._next + step) % self._size
            if address not in self._owners and address != self.gateway:
                return address
        raise AddressesExhaustedError(
            f"subnet {self.subnet}: no address from {self.range_start} to {self.range_end} is free, "
            f"{len(self._owners)} are reserved; remove pods, or configure a larger subnet or range"
        )

    def _hold(self, owner: str, address: Address) -> None:
        self._by_owner[owner] = address
        self._owners[address] = owner
        self._next = (int(address) - self._first + 1) % self._size

    def _with_prefix(self, address: Address) -> InterfaceAddress:
        return ip_interface((address, self.subnet.prefixlen))

    def _require_host(self, what: str, address: Address) -> None:
        first, last = _usable(self.subnet)
        if address.version != self.subnet.version or not int(first) <= int(address) <= int(last):
            raise ConfigurationError(
                f"subnet {self.subnet}: {what} {address} is no usable address in it; take one from {first} to {last}"
            )


def _usable(subnet: Network) -> tuple[Address, Address]:
    """Return the first and last address that a host may have (RFC 3021 and RFC 6164 for the pairs)."""
    if subnet.num_addresses < 2:
        raise ConfigurationError(
            f"subnet {subnet} has no room for a gateway and a pod; take a shorter prefix"
        )
    if subnet.num_addresses == 2:
        return subnet[0], subnet[1]
    # IPv6 has no broadcast, but its first address is every router's (RFC 4291, 2.6.1).
    return subnet[1], subnet[-2] if isinstance(subnet, IPv4Network) else subnet[-1]
