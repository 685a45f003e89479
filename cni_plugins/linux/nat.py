"""Linux: address translation by nftables, in two tables of ours, and by ctnetlink.

`cni-<network>-hostports` and `cni-<network>-masquerade` exist while somebody has a port open or an address masqueraded,
and hold nothing else; `nft list ruleset` shows whose each element is. Two, because each is made anew as a whole without
regard to the other. Connections that are under way keep their translation when that happens; but where the last NAT chain
of the whole stack goes, the kernel stops translating them, too.

Needs Linux 5.2 or newer with nf_tables, its NAT, fib, and ct for the family inet, and ctnetlink.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from ipaddress import IPv4Interface, IPv6Interface

from cni_plugins.errors import KernelError
from cni_plugins.linux import host_ports, masquerades
from cni_plugins.linux.conntrack import Connections
from cni_plugins.linux.nft_table import NftTable
from cni_plugins.linux.published import PublishedPorts
from cni_plugins.nat import HostPort, Masquerade
from cni_plugins.types import Address, SocketSource

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # what nft(8) takes without quotes, and leaves room in lists


class NftNat:
    """`nat.Nat` for Linux.

    Who owns what is remembered in the process; `restore_ports` and `restore_masquerades` tell it to a new one. Every
    change is one transaction of the kernel, made on sockets of its own.
    """

    def __init__(self, host: SocketSource, network: str) -> None:
        if not _NAME.fullmatch(network):
            network = sha256(network.encode(errors="surrogateescape")).hexdigest()[:16]
        self._able = False
        self._connections = Connections(host)
        self._ports = PublishedPorts(host, f"cni-{network}-hostports", self._connections)
        self._masquerades = NftTable(
            host, f"cni-{network}-masquerade", masquerades.skeleton, masquerades.OWNED, masquerades.translated
        )

    def publish(self, owner: str, ports: Sequence[HostPort]) -> None:
        """See `nat.Nat`. The kernel's EEXIST for a port that is somebody else's names whose."""
        self._ports.publish(owner, ports)

    def withdraw(self, owner: str) -> None:
        """See `nat.Nat`."""
        self._ports.publish(owner, ())

    def masquerade(self, owner: str, wanted: Masquerade) -> None:
        """See `nat.Nat`."""
        pieces = masquerades.pieces(owner, wanted)
        with self._masquerades.lock:
            self._masquerades.apply(owner, pieces)

    def unmasquerade(self, owner: str) -> None:
        """See `nat.Nat`."""
        with self._masquerades.lock:
            self._masquerades.apply(owner, [])

    def restore_ports(self, wanted: Mapping[str, Sequence[HostPort]]) -> None:
        """See `nat.Nat`."""
        self._ports.restore(wanted)

    def restore_masquerades(self, wanted: Mapping[str, Masquerade]) -> None:
        """See `nat.Nat`."""
        pieces = {owner: masquerades.pieces(owner, one) for owner, one in wanted.items()}
        with self._masquerades.lock:
            self._masquerades.restore(pieces)

    def kill_states(self, addresses: Sequence[Address]) -> None:
        """See `nat.Nat`."""
        self._connections.forget([address for address in addresses if not self._is_translated(address)])

    def missing(self, owner: str) -> list[str]:
        """See `nat.Nat`."""
        found = []
        for table in (self._ports.table, self._masquerades):
            with table.lock:
                found += table.missing(owner)
        return found

    def lost(self) -> list[str]:
        """See `nat.Nat`. A table, that is, or all that was in it."""
        return [what for table in (self._ports.table, self._masquerades) for what in table.lost()]

    def _is_translated(self, address: Address) -> bool:
        with self._masquerades.lock:
            if self._masquerades.concerns(address):
                return True
        return self._ports.lead_to(address)

    def problems(self) -> list[str]:
        """See `nat.Nat`. The kernel is asked by transactions that are never ended, until it once has been able to.

        Whether it forwards packets is not asked: plugins that make a gateway see to it.
        """
        if self._able:
            return []
        found = []
        port = HostPort("sctp", 1, IPv4Interface("192.0.2.1/24"), 1)
        other = HostPort("sctp", 1, IPv6Interface("2001:db8::1/64"), 1)
        sample = Masquerade((port.pod.ip, other.pod.ip), (port.pod.network, other.pod.network))
        for table, pieces, modules in (
            (
                self._ports.table,
                host_ports.pieces("sample", [port, other], ["lo"]),
                "nft_nat, nft_fib_inet and nft_ct",
            ),
            (self._masquerades, masquerades.pieces("sample", sample), "nft_masq and nft_ct"),
        ):
            try:
                table.rehearse(pieces)
            except KernelError as error:
                found.append(
                    f"nftables does not take what is needed: {error}. Load the modules nf_tables, {modules}; "
                    "it has to be Linux 5.2 or newer, and CAP_NET_ADMIN is needed"
                )
        try:
            self._connections.check()
        except KernelError as error:
            found.append(
                f"connections of pods that are gone cannot be forgotten: {error}. Load the module nf_conntrack_netlink"
            )
        self._able = not found
        return found
