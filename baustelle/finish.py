"""What is left to be done in a layer's tree when all of its entries are there: marks, attributes, file flags."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from baustelle import overlay, removal
from baustelle.descent import Descent
from baustelle.errors import UnpackError
from baustelle.layerflags import LayerFlags
from baustelle.layertree import Node


@dataclass(slots=True)
class _Level:
    """A directory on the way down."""

    node: Node
    name: bytes
    children: Iterator[tuple[bytes, Node]]
    bare: bool
    """Nothing of the layers below shows in here."""
    whiteouts: bool = False


class Finisher:
    """One walk over a layer's tree, children first: no restrictive mode and no flag is in the way of a later step."""

    def __init__(
        self,
        *,
        marks: bool,
        attributes: Callable[[int, Node], None],
        flags: LayerFlags,
        check: Callable[[], None],
    ) -> None:
        """`marks`: write those of overlayfs. `attributes` gives an open directory its own; `check` may end all by raising."""
        self._marks = marks
        self._attributes = attributes
        self._flags = flags
        self._check = check

    def run(self, root_fd: int, tree: Node) -> None:
        """Finish all. Raises UnpackError."""
        levels: list[_Level] = []
        try:
            with Descent(root_fd) as place:
                self._enter(levels, tree, b"")
                while self._go_on(place, levels):
                    self._check()
        except OSError as error:
            path = os.fsdecode(b"/".join([level.name for level in levels[1:]]) or b"/")
            marks = "; overlayfs' marks need root on Linux" if self._marks else ""
            raise UnpackError(f"layer directory {path[:300]!r}: {error.strerror}{marks}") from error

    def _enter(self, levels: list[_Level], node: Node, name: bytes) -> None:
        bare = bool(node.opaque or (node.hidden and node.brought))
        if levels and levels[-1].bare:
            bare = True
        levels.append(_Level(node, name, iter(node.children.items()), bare))

    def _go_on(self, place: Descent, levels: list[_Level]) -> bool:
        """Look at one more name, or leave the directory. False when all is done."""
        level = levels[-1]
        for name, child in level.children:
            if self._is_left(place, level, name, child) if self._marks else child.is_directory():
                place.down(name)
                self._enter(levels, child, name)
            else:
                self._flags.write(place.fd, name, child)
            return True
        if len(levels) == 1:
            self._complete(place.fd, level, None)
            self._flags.write(place.fd, b".", level.node)
            return False
        fd = place.up()
        try:
            self._complete(fd, level, levels[-2])
        finally:
            os.close(fd)
        self._flags.write(place.fd, level.name, level.node)
        levels.pop()
        return True

    def _is_left(self, place: Descent, level: _Level, name: bytes, child: Node) -> bool:
        """Write a whiteout if there is to be one. Whether there is a directory of this name to be finished."""
        if child.brought:
            return child.is_directory()
        if child.is_directory():  # made for whiteouts only
            if not (level.bare or child.hidden):
                return True
            removal.remove_tree(name, dir_fd=place.fd, check=self._check)
        if child.hidden and not level.bare:
            overlay.write_whiteout(place.fd, name)
            level.whiteouts = True
        return False

    def _complete(self, fd: int, level: _Level, above: _Level | None) -> None:
        if self._marks:
            if level.bare and not (above is not None and above.bare):
                overlay.mark_opaque(fd)
            if level.whiteouts:
                overlay.mark_holding_whiteouts(fd)
        self._attributes(fd, level.node)
