"""Fits a layer that was unpacked by itself, for overlayfs, onto the layers below it: then it shows what applying it makes.

A layer that does not name a directory in which it has something got one that is root's, 0755: overlayfs would show that
instead of the one below. Where there is a link below, it would hide that link, instead of leading through it. And a
directory that was made for whiteouts only is one too many where there is none below.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from baustelle import overlay, removal
from baustelle.borrow import lend
from baustelle.descent import DIRECTORY, Descent
from baustelle.errors import UnpackError
from baustelle.graft import graft
from baustelle.layertree import LayerTree, Node
from baustelle.merged import Found, adopt, look

_MAX_LINKS = 40  # as many as Linux follows in one path


def restack(
    root: Path, tree: LayerTree, below: Sequence[Path], check: Callable[[], None] = lambda: None
) -> None:
    """Fit the layer in `root` onto the layers `below`, highest first, which are fitted already. Blocks.

    `tree` is that of `Unpacked`; it is changed. `check` is called many times a second, to raise what shall end the work.
    Nothing is written to the layers below. Raises UnpackError.
    """
    try:
        with ExitStack() as end:
            root_fd = os.open(root, DIRECTORY)
            end.callback(os.close, root_fd)
            roots = []
            for path in below:
                roots.append(os.open(path, DIRECTORY))
                end.callback(os.close, roots[-1])
                if overlay.is_opaque(roots[-1]):
                    break
            for _ in range(_MAX_LINKS + 1):
                links = _Fitting(root_fd, roots, check).run(tree)
                if not links and tree.borrows:
                    lend(root_fd, roots, tree, check)
                    _Fitting(root_fd, roots, check).run(tree)  # adopts what was made on the way
                if not links:
                    return
                for names in links:
                    graft(root_fd, roots, tree, names, check)
    except OSError as error:
        raise UnpackError(f"layer in {root}: it does not fit onto those below: {error}") from error
    raise UnpackError(f"layer in {root}: links of the layers below lead in a circle")


@dataclass(slots=True)
class _Level:
    """A directory of the layer on the way down, and those of the same path in the layers below."""

    node: Node
    name: bytes
    children: Iterator[tuple[bytes, Node]]
    below: list[Descent] = field(default_factory=list)


class _Fitting:
    """One walk over a layer's tree. Each directory is looked up in those layers only that have the one above it."""

    def __init__(self, root_fd: int, roots: Sequence[int], check: Callable[[], None]) -> None:
        self._root_fd = root_fd
        self._roots = roots
        self._check = check
        self._links: list[list[bytes]] = []

    def run(self, tree: Node) -> list[list[bytes]]:
        """Adopt what is below; the paths at which there are links below."""
        with ExitStack() as end:
            place = end.enter_context(Descent(self._root_fd))
            below = [end.enter_context(Descent(fd)) for fd in self._roots]
            levels = [_Level(tree, b"", iter([*tree.children.items()]), below)]
            if tree.entry is None and below:
                adopt(place.fd, below[0].fd)
            while levels:
                self._check()
                self._go_on(place, levels)
        return self._links

    def _go_on(self, place: Descent, levels: list[_Level]) -> None:
        level = levels[-1]
        for name, child in level.children:
            if not child.is_directory():
                continue
            hidden = bool(child.hidden or level.node.opaque)
            if hidden and not child.brought:
                with contextlib.suppress(NotADirectoryError):  # a whiteout
                    removal.remove_tree(name, dir_fd=place.fd, check=self._check)
                continue
            found = Found() if hidden else look(name, level.below)
            if found.link is not None and child.entry is None:
                self._links.append([*(one.name for one in levels[1:]), name])
                continue
            if not child.brought and not found.directories:  # a file has nothing below it to be deleted
                removal.remove_tree(name, dir_fd=place.fd, check=self._check)
                level.node.put(name, Node(level.node))
                return
            place.down(name)
            for one in found.directories:
                one.down(name)
            if child.entry is None and found.directories:
                adopt(place.fd, found.directories[0].fd)
            levels.append(_Level(child, name, iter([*child.children.items()]), found.directories))
            return
        levels.pop()
        if levels:
            os.close(place.up())
            for one in level.below:
                os.close(one.up())
