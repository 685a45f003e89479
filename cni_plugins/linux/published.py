"""The host ports that are open: their table, the interfaces that route 127.0.0.0/8 for them, and the connections.

The table's guard keeps others off the node's loopback for as long as an interface routes it. So the table changes before
an interface is opened, and after it is closed; what was done is taken back if what follows it fails.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Network
from typing import TypeAlias

from cni_plugins.errors import KernelError, NetworkError
from cni_plugins.linux import host_ports
from cni_plugins.linux.conntrack import Connections
from cni_plugins.linux.localnet import interfaces_to, route_localnet
from cni_plugins.linux.nft_table import NftTable, Piece
from cni_plugins.linux.nftables import Element
from cni_plugins.nat import HostPort
from cni_plugins.types import Address, SocketSource

_LOOPBACK = IPv4Network("127.0.0.0/8")
_Undo: TypeAlias = list[Callable[[], object]]


class PublishedPorts:
    """The host ports of one network, by owner."""

    def __init__(self, host: SocketSource, table: str, connections: Connections) -> None:
        self._host = host
        self.table = NftTable(host, table, host_ports.skeleton, host_ports.OWNED, host_ports.leads_to)
        self._connections = connections

    def publish(self, owner: str, ports: Sequence[HostPort]) -> None:
        """Make an owner's ports these. Raises KernelError, ConfigurationError; then nothing is changed."""
        pieces = host_ports.pieces(owner, ports, self._interfaces({owner: ports})[owner])
        with _or_undone(self.table.lock) as undo:
            with self.table.lock:
                change = self.table.plan(owner, pieces)
                before = self.table.owned_by(owner)
                self._close([*filter(None, map(_interface, change.destroyed))], undo)
                try:
                    self.table.apply(owner, pieces)
                except KernelError as error:
                    if error.errno == errno.EEXIST:
                        raise self._naming_the_owner(error, owner, pieces) from error
                    raise
                undo.append(partial(self.table.apply, owner, before))
                self._open([*filter(None, map(_interface, change.created))], undo)
            fresh = [port for port in ports if host_ports.way_in(owner, port) in change.created]
            self._connections.remind(fresh)

    def lead_to(self, address: Address) -> bool:
        """Tell whether a port of anybody's is open that leads to a pod's address."""
        with self.table.lock:
            return self.table.concerns(address)

    def restore(self, wanted: Mapping[str, Sequence[HostPort]]) -> None:
        """Make the ports exactly these. Raises KernelError, ConfigurationError.

        Then nothing is changed, unless what was before is not known here.
        """
        interfaces = self._interfaces(wanted)
        pieces = {
            owner: host_ports.pieces(owner, ports, interfaces[owner]) for owner, ports in wanted.items()
        }
        opened = {name for names in interfaces.values() for name in names}
        with _or_undone(self.table.lock) as undo:
            with self.table.lock:
                already, known, before = self._opened(), self._leading(), self.table.owned
                self._close(sorted(already - opened), undo)
                self.table.restore(pieces)
                if before is not None:
                    undo.append(partial(self.table.restore, before))
                self._open(sorted(opened - already), undo)
                self._open(sorted(opened & already), [])  # in case that somebody has closed them
            fresh = [
                port
                for owner, ports in wanted.items()
                for port in ports
                if _way(host_ports.way_in(owner, port)) not in known
            ]
            self._connections.remind(fresh)

    def _open(self, names: Sequence[str], undo: _Undo) -> None:
        for name in names:
            undo.append(partial(route_localnet, self._host, name, on=False))
            route_localnet(self._host, name)

    def _close(self, names: Sequence[str], undo: _Undo) -> None:
        for name in names:
            undo.append(partial(route_localnet, self._host, name))
            route_localnet(self._host, name, on=False)

    def _naming_the_owner(self, error: KernelError, owner: str, pieces: Sequence[Piece]) -> KernelError:
        keys = {(piece.set, piece.key) for piece in pieces if isinstance(piece, Element) and piece.owner}

        def meant(piece: Piece) -> bool:
            return isinstance(piece, Element) and (piece.set, piece.key) in keys

        other = self.table.owner_of(meant, but=owner)
        text = f"it is {other}'s" if other else "somebody who is not known here has it"
        return KernelError(error.errno, error.operation, error.object, text)

    def _interfaces(self, wanted: Mapping[str, Sequence[HostPort]]) -> dict[str, list[str]]:
        """Return, by owner, the interfaces that have to route 127.0.0.0/8 to its pod."""
        pods: dict[str, list[Address]] = {
            owner: [port.pod.ip for port in ports if _is_on_loopback(port)] for owner, ports in wanted.items()
        }
        addresses = dict.fromkeys(address for each in pods.values() for address in each)
        found = interfaces_to(self._host, addresses) if addresses else {}
        return {
            owner: list(dict.fromkeys(found[address] for address in each if address in found))
            for owner, each in pods.items()
        }

    def _opened(self) -> set[str]:
        """Return the interfaces that we, or a former process whose table there is, let route 127.0.0.0/8."""
        with self.table.nftables.lent() as nftables:
            found = nftables.elements(self.table.name, host_ports.LOCALNET)
        listed = {_name(element["key"]["value"]) for element in found}
        return listed.union(filter(None, map(_interface, self.table.pieces)))

    def _leading(self) -> set[tuple[str, bytes, object]]:
        """Return what the kernel leads where."""
        with self.table.nftables.lent() as nftables:
            return {
                (name, element["key"]["value"], element["data"]["value"])
                for name in host_ports.WAYS_IN
                for element in nftables.elements(self.table.name, name)
            }


def _way(element: Element) -> tuple[str, bytes, object]:
    return element.set, element.key, element.data


@contextmanager
def _or_undone(lock: threading.Lock) -> Iterator[_Undo]:
    """Give a list for what takes back each step; if one fails, those before it are, the last one first."""
    steps: _Undo = []
    try:
        yield steps
    except BaseException as error:
        with lock:
            for step in reversed(steps):
                try:
                    step()
                except NetworkError as second:
                    error.add_note(f"and the undo failed: {second}")
        raise


def _is_on_loopback(port: HostPort) -> bool:
    return port.pod.version == 4 and (port.host_ip is None or port.host_ip in _LOOPBACK)


def _interface(piece: Piece) -> str:
    """Return the interface that a piece lets route 127.0.0.0/8, if it is such a one."""
    return _name(piece.key) if isinstance(piece, Element) and piece.set == host_ports.LOCALNET else ""


def _name(key: bytes) -> str:
    return os.fsdecode(key.rstrip(b"\0"))
