"""Makes a layer's hard links to files that only the layers below have, on overlayfs.

Such a file is copied up into the layer, as overlayfs does with one that is written to: to its own path, to all other
names that it has in its layer, and to the names that this layer gives it. All that still show are one inode then, as if the
layer had been applied.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from baustelle import removal
from baustelle.bounds import Budget
from baustelle.copyfile import copy_file
from baustelle.descent import Descent, kept_times
from baustelle.entrypaths import shown
from baustelle.errors import UnpackError
from baustelle.layertree import Borrowed, LayerTree, Node
from baustelle.layerview import LayerView, Seen

_ASIDE = b".wh..wh.cri-jails-%d"  # what begins so is in no layer

_BLOCK = 512  # bytes that st_blocks counts by

_Inode = tuple[int, int]


def lend(root_fd: int, roots: Sequence[int], tree: LayerTree, check: Callable[[], None]) -> None:
    """Put the files of the layers below in the places that are held for them. Raises OSError, UnpackError.

    `roots` are those of the layers below, highest first, onto which the layer in `root_fd` is fitted, but for the
    directories that this makes on the way. `check` is called many times a second, to raise what shall end the work.
    """
    held = {one for _, _, one in _held(root_fd, tree, check)}
    steps = sum(len(one.target) for one in tree.borrows)
    with kept_times(root_fd), LayerView(root_fd, roots, tree, check, steps) as view:
        lending = _Lending(root_fd, roots, view, check, tree.budget)
        for one in tree.borrows:
            lending.fetch(one, needed=one in held)
        for fd, name, one in _held(root_fd, tree, check):
            lending.hand_out(fd, name, one)
        lending.keep_names()
        lending.clear()


@dataclass(slots=True)
class _Copy:
    """A file under a name that is no layer's."""

    aside: bytes
    source: Seen


class _Lending:
    def __init__(
        self,
        root_fd: int,
        roots: Sequence[int],
        view: LayerView,
        check: Callable[[], None],
        budget: Budget,
    ) -> None:
        self._root_fd = root_fd
        self._roots = roots
        self._view = view
        self._check = check
        self._budget = budget
        self._copies: dict[_Inode, _Copy] = {}
        self._of: dict[Borrowed, _Copy] = {}

    def fetch(self, wanted: Borrowed, *, needed: bool) -> None:
        """Look for a file; have a copy of it, or of the layer's own that goes by this path through a link below."""
        try:
            seen = self._view.find(wanted.target, wanted.number)
        except OSError as error:
            raise UnpackError(_reason(wanted, error)) from error
        path = b"/".join(seen.path)
        if path.startswith(wanted.name + b"/"):  # the name has taken the directory's place
            raise UnpackError(_reason(wanted, FileNotFoundError()))
        made = wanted.link or wanted.name.startswith(path + b"/")
        if made and not stat.S_ISLNK(seen.found.st_mode):  # a directory has taken the file's place
            raise UnpackError(_reason(wanted, IsADirectoryError()))
        if not needed:
            return
        if seen.node is not None and seen.node.borrowed in self._of:
            self._of[wanted] = self._of[seen.node.borrowed]
            return
        copy = self._copies.get(_inode(seen.found))
        if copy is None:
            copy = _Copy(_ASIDE % len(self._copies), seen)
            self._copies[_inode(seen.found)] = copy
            if seen.layer is None:
                os.link(
                    seen.name, copy.aside, src_dir_fd=seen.fd, dst_dir_fd=self._root_fd, follow_symlinks=False
                )
            else:
                self._budget.take_bytes(seen.found.st_blocks * _BLOCK)
                copy_file(seen.name, seen.found, seen.fd, self._root_fd, copy.aside, self._check)
        self._of[wanted] = copy

    def hand_out(self, fd: int, name: bytes, wanted: Borrowed) -> None:
        """Put the file in a place that is held for it."""
        with kept_times(fd):
            os.unlink(name, dir_fd=fd)
            self._link(self._of[wanted], name, fd)

    def keep_names(self) -> None:
        """Copy up the names that the files have in their layers, as far as they show."""
        several: dict[int, dict[_Inode, _Copy]] = {}
        for inode, copy in self._copies.items():
            if copy.source.layer is None:
                continue
            if copy.source.found.st_nlink == 1:
                self._keep(copy, copy.source.path)
            else:
                several.setdefault(copy.source.layer, {})[inode] = copy
        for layer, copies in several.items():
            for path, inode in _names(self._roots[layer], copies, self._check):
                self._keep(copies[inode], path)

    def clear(self) -> None:
        """Remove the names that are no layer's."""
        for copy in self._copies.values():
            removal.unlink(copy.aside, self._root_fd)

    def _keep(self, copy: _Copy, path: list[bytes]) -> None:
        try:
            shown = self._view.show(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return
        if _inode(shown.found) == _inode(copy.source.found):
            with kept_times(self._view.own_fd):
                self._link(copy, path[-1], self._view.own_fd)

    def _link(self, copy: _Copy, name: bytes, fd: int) -> None:
        os.link(copy.aside, name, src_dir_fd=self._root_fd, dst_dir_fd=fd, follow_symlinks=False)


def _held(root_fd: int, tree: Node, check: Callable[[], None]) -> Iterator[tuple[int, bytes, Borrowed]]:
    """The places that are held for files of the layers below: directory, name, file."""
    with Descent(root_fd) as place:
        levels = [iter([*tree.children.items()])]
        while levels:
            check()
            name, child = next(levels[-1], (b"", None))
            if child is None:
                levels.pop()
                if levels:
                    os.close(place.up())
            elif child.borrowed is not None:
                yield place.fd, name, child.borrowed
            elif child.brought and child.is_directory():
                place.down(name)
                levels.append(iter([*child.children.items()]))


def _names(
    fd: int, wanted: dict[_Inode, _Copy], check: Callable[[], None]
) -> Iterator[tuple[list[bytes], _Inode]]:
    """All names of files below an open directory: path, inode."""
    device = os.fstat(fd).st_dev
    with Descent(fd) as place:
        path: list[bytes] = []
        levels: list[list[bytes]] = []
        entered = True
        while entered or levels:
            check()
            if entered:
                below = []
                with os.scandir(place.fd) as found:
                    entries = [
                        (os.fsencode(one.name), one.is_dir(follow_symlinks=False), one.inode())
                        for one in found
                    ]
                for name, is_directory, number in entries:
                    if is_directory:
                        below.append(name)
                    elif (device, number) in wanted:
                        yield [*path, name], (device, number)
                levels.append(below)
            entered = bool(levels[-1])
            if entered:
                path.append(levels[-1].pop())
                place.down(path[-1])
                continue
            levels.pop()
            if levels:
                path.pop()
                os.close(place.up())


def _inode(found: os.stat_result) -> _Inode:
    return found.st_dev, found.st_ino


def _reason(wanted: Borrowed, error: OSError) -> str:
    name, target = (shown(one) for one in (wanted.name, wanted.target))
    if isinstance(error, FileNotFoundError):
        return f"layer entry {name}: its hard link target {target} is not in the layer, nor in one below"
    if isinstance(error, IsADirectoryError):
        return f"layer entry {name}: its hard link target {target} is a directory"
    return f"layer entry {name}: its hard link target {target}: {error.strerror}"
