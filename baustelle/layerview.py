"""Places in what a layer and those below it show together, as it was before one of the layer's entries."""

import errno
import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeGuard

from baustelle.descent import Descent, kept_times
from baustelle.errors import UnpackError
from baustelle.layertree import Node
from baustelle.merged import Found, look
from baustelle.paths import IMPLIED_DIRECTORY_MODE, MAX_LINKS, MAX_STEPS

_FREE_STEPS = 1 << 20
_NOW = sys.maxsize


@dataclass(frozen=True, slots=True)
class Seen:
    """A file that is no directory, in the directory `fd`, which is open until the view moves."""

    fd: int
    name: bytes
    found: os.stat_result
    layer: int | None
    """Which of those below has it, counted from the highest; None: the layer itself."""
    path: list[bytes]
    """Without links."""
    node: Node | None
    """The layer's, if the layer has it."""


@dataclass(slots=True)
class _Level:
    name: bytes
    node: Node | None
    own: bool
    """The layer's own directory is entered."""
    below: list[Descent]


class LayerView:
    """A place that moves. Use as a context manager. Nothing of this is overlayfs' own: the layer need not be mounted.

    What the layer had at a place and replaced itself meanwhile is forgotten. Errors are OSError.
    """

    def __init__(
        self, root_fd: int, roots: Sequence[int], tree: Node, check: Callable[[], None], steps: int
    ) -> None:
        """The layer in `root_fd`, with its fitted `tree`, on `roots`, highest first.

        So many `steps`, and a million, may be made by `find` in all.
        """
        with ExitStack() as end:
            self._place = end.enter_context(Descent(root_fd))
            self._roots = [end.enter_context(Descent(fd)) for fd in roots]
            self._end = end.pop_all()
        self._levels = [_Level(b"", tree, own=True, below=self._roots)]
        self._check = check
        self._steps = 0
        self._allowed_steps = _FREE_STEPS + steps
        self._before = _NOW

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        while len(self._levels) > 1:
            self._leave()
        self._end.close()

    def find(self, path: bytes, before: int) -> Seen:
        """The file that a path without empty parts, . and .. led to before entry `before`. Links on the way are followed.

        Raises FileNotFoundError, IsADirectoryError and others; UnpackError if there were too many steps in all.
        """
        self._begin(before)
        *above, name = path.split(b"/")
        pending = above[::-1]
        links, steps = 0, self._steps
        while pending:
            one = pending.pop()
            if one == b"..":
                if len(self._levels) > 1:
                    self._leave()
            elif one not in {b"", b"."}:
                self._steps += 1
                if self._steps - steps > MAX_STEPS:
                    raise _error(errno.ELOOP, one)
                if self._steps > self._allowed_steps:
                    raise UnpackError("layer: its hard links lead through more directories than it has bytes")
                target = self._enter(one)
                if target is None:
                    continue
                links += 1
                if links > MAX_LINKS:
                    raise _error(errno.ELOOP, one)
                if target.startswith(b"/"):
                    self._begin(before)
                pending += target.split(b"/")[::-1]
        return self._last(name)

    def show(self, path: Sequence[bytes]) -> Seen:
        """What shows at a path in the end, links not followed. The layer's directories on the way are made. As `find`."""
        self._begin(_NOW)
        for name in path[:-1]:
            if self._enter(name, make=True) is not None:
                raise _error(errno.ENOTDIR, name)
        return self._last(path[-1])

    @property
    def own_fd(self) -> int:
        """The layer's own directory, after `show`."""
        return self._place.fd

    def _begin(self, before: int) -> None:
        self._before = before
        while len(self._levels) > 1:
            self._leave()

    def _enter(self, name: bytes, *, make: bool = False) -> bytes | None:
        """Go down to a directory; or the target of a link."""
        self._check()
        level = self._levels[-1]
        child, found = self._look(name)
        own = child is not None and self._was(child.brought)
        if own:
            mode = os.stat(name, dir_fd=self._place.fd, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                return os.readlink(name, dir_fd=self._place.fd)
            if not stat.S_ISDIR(mode):
                raise _error(errno.ENOTDIR, name)
        elif found.link is not None:
            return found.link
        elif not found.directories or (self._came(child) and not child.is_directory()):
            gone = found.directories or not found.anything
            raise _error(errno.ENOENT if gone else errno.ENOTDIR, name)
        elif make:
            assert level.node is not None
            own, child = True, self._make(name, level.node)
        if own:
            self._place.down(name)
        entered: list[Descent] = []
        self._levels.append(_Level(name, child, own, entered))
        for one in found.directories:
            one.down(name)
            entered.append(one)
        return None

    def _make(self, name: bytes, node: Node) -> Node:
        child = node.below(name)
        if not child.is_directory():
            with kept_times(self._place.fd):
                os.mkdir(name, dir_fd=self._place.fd)
            os.chmod(name, IMPLIED_DIRECTORY_MODE, dir_fd=self._place.fd)
            child.made = True
        return child

    def _last(self, name: bytes) -> Seen:
        self._check()
        level = self._levels[-1]
        child, found = self._look(name)
        path = [*(one.name for one in self._levels[1:]), name]
        if child is not None and self._was(child.brought):
            seen = os.stat(name, dir_fd=self._place.fd, follow_symlinks=False)
            if stat.S_ISDIR(seen.st_mode):
                raise _error(errno.EISDIR, name)
            return Seen(self._place.fd, name, seen, None, path, child)
        if found.directories or (self._came(child) and child.is_directory()):
            raise _error(errno.EISDIR, name)
        if found.anything:
            for one in level.below:
                try:
                    seen = os.stat(name, dir_fd=one.fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                return Seen(one.fd, name, seen, self._roots.index(one), path, None)
        raise _error(errno.ENOENT, name)

    def _look(self, name: bytes) -> tuple[Node | None, Found]:
        level = self._levels[-1]
        child = level.node.children.get(name) if level.node is not None else None
        hidden = level.node is not None and self._was(level.node.opaque)
        if hidden or (child is not None and self._was(child.hidden)):
            return child, Found()
        return child, look(name, level.below)

    def _came(self, child: Node | None) -> TypeGuard[Node]:
        """Whether it came, or was made for what came, with the very entry: which then is in the way of its own target."""
        return child is not None and child.brought == self._before

    def _was(self, number: int) -> bool:
        return 0 < number < self._before

    def _leave(self) -> None:
        level = self._levels.pop()
        if level.own:
            os.close(self._place.up())
        for one in level.below:
            os.close(one.up())


def _error(number: int, name: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(name))
