"""The directories that a layer's entries go into: found link by link, made where they are missing, kept open for the next."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from baustelle import removal
from baustelle.descent import DIRECTORY
from baustelle.errors import UnpackError
from baustelle.layerflags import LayerFlags
from baustelle.layertree import Node
from baustelle.paths import Walk, make_implied_directory

_KEPT_OPEN = 64
_FREE_STEPS = 1 << 20


@dataclass(slots=True)
class Parent:
    """An open directory, and the link-free path that leads to it from the root."""

    fd: int
    names: list[bytes]
    node: Node


class Parents:
    """Directories by the words of the archive. Use as a context manager.

    Links are followed inside the root. A `Parent` stays open until `begin` is called again, whatever becomes of its
    path. As many directories may be opened on the way to entries as the archive has bytes, and a million: no short
    name makes much work by links.
    """

    def __init__(
        self, root_fd: int, tree: Node, flags: LayerFlags, *, stacked: bool, may_chown: bool
    ) -> None:
        """`stacked`: the layers below are not in the root; `may_chown`: what is made shall be root's."""
        self._root_fd = root_fd
        self._tree = tree
        self._flags = flags
        self._stacked = stacked
        self._may_chown = may_chown
        self._open: dict[bytes, Parent] = {}
        self._stale: list[Parent] = []
        self._steps = 0
        self._allowed_steps = _FREE_STEPS
        self._number = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()
        self.begin(0, self._number)

    def begin(self, position: int, number: int) -> None:
        """Entry `number` begins, after so many bytes of the archive: nothing that was found for others is in use."""
        for parent in self._stale:
            os.close(parent.fd)
        self._stale.clear()
        self._allowed_steps = _FREE_STEPS + position
        self._number = number

    def forget(self) -> None:
        """Paths may lead elsewhere now."""
        self._stale.extend(self._open.values())
        self._open.clear()

    def find(self, path: bytes, *, create: bool = True, replace: bool = True) -> Parent:
        """The directory that a path without empty parts, . and .. leads to; the root for an empty one.

        `create` makes what is missing; `replace` puts a directory in the place of a file that a layer below has on the
        way. Raises OSError, UnpackError.
        """
        parent = self._open.pop(path, None)
        if parent is None:
            while len(self._open) >= _KEPT_OPEN:
                os.close(self._open.pop(next(iter(self._open))).fd)
            parent = self._walk(
                path,
                self._make if create else None,
                self._make_in_place if replace and not self._stacked else None,
            )
            self._flags.lift(parent.fd, parent.node)
        self._open[path] = parent  # the last, so that it is closed last
        return parent

    def _walk(
        self,
        path: bytes,
        on_missing: Callable[[Walk, bytes], None] | None,
        on_obstacle: Callable[[Walk, bytes], bool] | None,
    ) -> Parent:
        above, _, name = path.rpartition(b"/")
        near = self._open.get(above) if path else None
        path = b"/".join([name if near else path, b"."])
        start = near or Parent(self._root_fd, [], self._tree)
        with _LayerWalk(self._root_fd, path, self._tree, start, on_missing, on_obstacle) as walk:
            walk.last()
            self._steps += walk.steps
            if self._steps > self._allowed_steps:
                raise UnpackError("layer: its names lead through more directories than it has bytes")
            # Listing needs a descriptor open for reading, which a walk's is not.
            return Parent(os.open(b".", DIRECTORY, dir_fd=walk.fd), walk.names, walk.node)

    def _make(self, walk: Walk, name: bytes) -> None:
        assert isinstance(walk, _LayerWalk)
        self._lift(walk)
        make_implied_directory(walk, name)
        if self._may_chown:  # the group may be that of the directory above
            os.chown(name, 0, 0, dir_fd=walk.fd, follow_symlinks=False)
        walk.node.below(name).made = True

    def _make_in_place(self, walk: Walk, name: bytes) -> bool:
        """Put a directory in the place of a file that a layer below has, as the layer has something in there."""
        assert isinstance(walk, _LayerWalk)
        if (known := walk.node.children.get(name)) is not None and known.brought:
            return False
        self._lift(walk)
        removal.unlink(name, walk.fd)
        walk.node.replace(name, self._number)
        self._make(walk, name)
        return True

    def _lift(self, walk: "_LayerWalk") -> None:
        fd = os.open(b".", DIRECTORY, dir_fd=walk.fd)
        try:
            self._flags.lift(fd, walk.node)
        finally:
            os.close(fd)


class _LayerWalk(Walk):
    """A walk that knows the node of the place it has reached."""

    def __init__(
        self,
        root_fd: int,
        path: bytes,
        tree: Node,
        start: Parent,
        on_missing: Callable[[Walk, bytes], None] | None,
        on_obstacle: Callable[[Walk, bytes], bool] | None,
    ) -> None:
        super().__init__(
            root_fd, path, start=(start.fd, start.names), on_missing=on_missing, on_obstacle=on_obstacle
        )
        self._tree = tree
        self.node = start.node

    def _enter(self, name: bytes) -> None:
        links = self._links
        super()._enter(name)
        if self._links == links:
            self.node = self.node.below(name)

    def _move(self, names: list[bytes]) -> None:
        super()._move(names)
        self.node = self._tree.at(names)
