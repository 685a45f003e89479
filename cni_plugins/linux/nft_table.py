"""An nftables table of ours: what is in it belongs to owners, and every change to it is one transaction.

The kernel has the objects; who owns them is remembered here, and after a restart of the process told by `restore`.
A change costs as much as what changes, whatever else is in the table. Where the kernel turns out to have something else
than is remembered (somebody has flushed it), the change makes the whole table anew.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from cni_plugins.errors import KernelError
from cni_plugins.linux.nftables import Element, Nftables, comment_of, table_add, table_del
from cni_plugins.linux.standing import Standing
from cni_plugins.netlink.client import Request, UnansweredError
from cni_plugins.types import Address, SocketSource


class Piece(Protocol):
    """A part of the table that comes and goes with its owners. Equal pieces of several owners are one."""

    @property
    def shared(self) -> bool:
        """Whether it may be several owners'."""

    def create(self, table: str) -> list[Request]:
        """Return the requests to make it; one that is shared may be there."""

    def destroy(self, table: str) -> list[Request]:
        """Return the requests to remove it."""

    def __hash__(self) -> int: ...


class Change(NamedTuple):
    """What a change makes and removes, in the order in which it has to happen."""

    created: list[Piece]
    destroyed: list[Piece]


class NftTable:
    """One table, with the objects that `skeleton` makes as long as anybody owns something in it.

    `sets` are those whose elements have owners; `about` returns the pod's address, packed, that a piece is for the sake of,
    or nothing. `lock` is the caller's to hold around `plan` and `apply`, and around `restore`.
    """

    def __init__(
        self,
        host: SocketSource,
        name: str,
        skeleton: Callable[[str], Sequence[Request]],
        sets: Sequence[str],
        about: Callable[[Piece], bytes],
    ) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.nftables = Standing(lambda: Nftables(host))
        self._skeleton = skeleton
        self._sets = sets
        self._owned: dict[str, tuple[Piece, ...]] = {}
        self._uses: Counter[Piece] = Counter()
        self._about = about
        self._addresses: Counter[bytes] = Counter()
        """How many pieces are about an address."""
        self._restored = False  # until then there may be more in the table than is remembered
        self._certain = True  # that the kernel has what is remembered

    @property
    def pieces(self) -> set[Piece]:
        """All that anybody owns."""
        return set(self._uses)

    @property
    def owned(self) -> dict[str, tuple[Piece, ...]] | None:
        """All that anybody owns, by owner; None as long as that is not known."""
        return dict(self._owned) if self._restored else None

    def concerns(self, address: Address) -> bool:
        """Tell whether anybody owns what is about a pod's address, whatever else is in the table."""
        return self._addresses[address.packed] > 0

    def owned_by(self, owner: str) -> tuple[Piece, ...]:
        """What one owner owns."""
        return self._owned.get(owner, ())

    def owner_of(self, piece: Callable[[Piece], bool], but: str) -> str | None:
        """Return who, other than one, owns a piece that is meant."""
        return next(
            (owner for owner, pieces in self._owned.items() if owner != but and any(map(piece, pieces))), None
        )

    def missing(self, owner: str) -> list[str]:
        """Return what one owner owns that the kernel does not have, in words. Raises KernelError."""
        elements = [piece for piece in self.owned_by(owner) if isinstance(piece, Element)]
        if not elements:
            return []
        with self.nftables.lent() as nftables:
            return [
                f"{element.what} in nftables table {self.name}"
                for element in elements
                if not element.is_in(nftables, self.name)
            ]

    def lost(self) -> list[str]:
        """Say so if somebody owns something in the table, and it is not there or empty. Raises KernelError."""
        with self.lock:
            if not self._owned:
                return []
            with self.nftables.lent() as nftables:
                objects = nftables.objects(self.name)
        return (
            []
            if objects
            else [f"nftables table {self.name} is {'not there' if objects is None else 'empty'}"]
        )

    def plan(self, owner: str, pieces: Sequence[Piece]) -> Change:
        """Return what it takes to make an owner have these pieces and no others."""
        wanted = dict.fromkeys(pieces)
        before = dict.fromkeys(self._owned.get(owner, ()))
        # What is shared may be that of owners who are not remembered yet.
        leaving = (piece for piece in reversed(before) if self._restored or not piece.shared)
        return Change(
            [piece for piece in wanted if piece not in before and not self._uses[piece]],
            [piece for piece in leaving if piece not in wanted and self._uses[piece] == 1],
        )

    def apply(self, owner: str, pieces: Sequence[Piece]) -> None:
        """Make an owner have these pieces and no others. Raises KernelError, and then nothing is changed."""
        if not pieces and owner not in self._owned:
            if not self._restored:
                self._delete_elements_of(owner)
            return
        change = self.plan(owner, pieces)
        alone = len(self._owned) == (owner in self._owned)  # the first makes the table, the last removes it
        again = not change.created and not change.destroyed  # who asks for it again has a reason to
        if self._restored and (alone or again or not self._certain):
            self._replace(self._with(owner, pieces))
        elif not again:
            try:
                self._commit(self._steps(change))
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                self._replace(self._with(owner, pieces))
        self._uses.subtract(self._owned.pop(owner, ()))
        if pieces:
            self._owned[owner] = tuple(dict.fromkeys(pieces))
            self._uses.update(self._owned[owner])
        for piece in change.destroyed:
            del self._uses[piece]
            self._count(piece, -1)
        for piece in change.created:
            self._count(piece, 1)

    def restore(self, owned: Mapping[str, Sequence[Piece]]) -> None:
        """Make the table exactly this. Raises KernelError, and then nothing is changed."""
        after = {owner: tuple(dict.fromkeys(pieces)) for owner, pieces in owned.items() if pieces}
        self._replace(after)
        self._owned = after
        self._uses = Counter(piece for pieces in after.values() for piece in pieces)
        self._addresses = Counter(filter(None, map(self._about, self._uses)))
        self._restored = True

    def _count(self, piece: Piece, number: int) -> None:
        if address := self._about(piece):
            self._addresses[address] += number
            if not self._addresses[address]:
                del self._addresses[address]

    def rehearse(self, pieces: Sequence[Piece]) -> None:
        """Have the kernel judge such a table, and make none. Raises KernelError."""
        name = f"{self.name}-rehearsal"
        with self.nftables.lent() as nftables:
            nftables.rehearse(_whole(name, self._skeleton, pieces))

    def _delete_elements_of(self, owner: str) -> None:
        """Delete what somebody owns who is not remembered. What may be others' as well goes with the next `restore`."""
        with self.nftables.lent() as nftables:
            requests = [
                request
                for name in self._sets
                for found in nftables.elements(self.name, name)
                if comment_of(found) == owner
                for request in Element(name, found["key"]["value"], what=f"what {owner} has").destroy(
                    self.name
                )
            ]
        if requests:
            self._commit(requests)

    def _steps(self, change: Change) -> list[Request]:
        return [
            *(request for piece in change.destroyed for request in piece.destroy(self.name)),
            *(request for piece in change.created for request in piece.create(self.name)),
        ]

    def _with(self, owner: str, pieces: Sequence[Piece]) -> dict[str, tuple[Piece, ...]]:
        after = {**self._owned, owner: tuple(dict.fromkeys(pieces))}
        return {owner: pieces for owner, pieces in after.items() if pieces}

    def _replace(self, owned: Mapping[str, tuple[Piece, ...]]) -> None:
        self._commit(self._anew(owned))

    def _anew(self, owned: Mapping[str, tuple[Piece, ...]]) -> list[Request]:
        # Deleting what may not be there is an error: so it is made first.
        requests = [table_add(self.name), table_del(self.name)]
        if owned:
            everything = dict.fromkeys(piece for pieces in owned.values() for piece in pieces)
            requests += _whole(self.name, self._skeleton, list(everything))
        return requests

    def _commit(self, requests: list[Request]) -> None:
        before, self._certain = self._certain, False
        try:
            with self.nftables.lent() as nftables:
                nftables.commit(requests)
        except UnansweredError as error:
            self._undo(error)
            raise
        except KernelError:
            self._certain = before
            raise
        self._certain = True

    def _undo(self, error: UnansweredError) -> None:
        """Make the table what is remembered, if that is all that should be in it."""
        if not self._restored:
            return
        try:
            with self.nftables.lent() as nftables:
                nftables.commit(self._anew(self._owned))
        except KernelError as second:
            error.add_note(f"and the undo failed: {second}")
        else:
            self._certain = True


def _whole(name: str, skeleton: Callable[[str], Sequence[Request]], pieces: Sequence[Piece]) -> list[Request]:
    return [
        table_add(name),
        *skeleton(name),
        *(request for piece in pieces for request in piece.create(name)),
    ]
