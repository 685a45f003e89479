"""Moves what a layer has below a link of a lower layer to where that link leads."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from baustelle import overlay, removal
from baustelle.descent import Descent
from baustelle.layertree import Node
from baustelle.merged import Found, adopt, look
from baustelle.paths import IMPLIED_DIRECTORY_MODE

_ASIDE = b".wh..wh.cri-jails"  # what begins so is in no layer
_MAX_LINKS = 40
_MAX_STEPS = 64 * 1024


def graft(
    root_fd: int, roots: Sequence[int], tree: Node, names: list[bytes], check: Callable[[], None]
) -> None:
    """Move the content of the layer's directory `names`, in whose place the layers below have a link.

    `roots` are theirs, highest first. What the layer has there under its own name stays. Raises OSError.
    """
    with ExitStack() as end:
        path = _Path(
            end.enter_context(Descent(root_fd)),
            [end.enter_context(Descent(fd)) for fd in roots],
            tree,
            check,
        )
        *above, name = names
        for one in above:
            path.enter(one)
        source = end.enter_context(Descent(path.place.fd))
        os.rename(name, _ASIDE, src_dir_fd=source.fd, dst_dir_fd=source.fd)
        source.down(_ASIDE)
        moved = path.node.take(name)
        if path.follow(name, brought=bool(moved.brought)):
            _merge(source, moved, path.place, path.node, check)
        os.close(source.up())
        removal.remove_tree(_ASIDE, dir_fd=source.fd, check=check)


@dataclass(slots=True)
class _Level:
    node: Node
    below: list[Descent]


class _Path:
    """A place in the layer, and the same place in the layers below it."""

    def __init__(self, place: Descent, below: list[Descent], tree: Node, check: Callable[[], None]) -> None:
        self.place = place
        self._levels = [_Level(tree, below)]
        self._check = check
        self._steps = 0

    @property
    def node(self) -> Node:
        """The layer's node of this place."""
        return self._levels[-1].node

    def enter(self, name: bytes) -> None:
        """Go down to a directory that the layer has."""
        found = self._below(name)
        self._go(name, found)

    def follow(self, name: bytes, *, brought: bool) -> bool:
        """Go to where the link `name` of the layers below leads; what is missing is made, if it is to be `brought`."""
        target = self._below(name).link
        links = 0
        pending: list[bytes] = []
        while True:
            if target is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(name))
                if target.startswith(b"/"):
                    while len(self._levels) > 1:
                        self._leave()
                pending += target.split(b"/")[::-1]
                target = None
            if not pending:
                return True
            one = pending.pop()
            if one == b"..":
                if len(self._levels) > 1:
                    self._leave()
            elif one not in {b"", b"."}:
                target, entered = self._step(one, brought=brought)
                if target is None and not entered:
                    return False

    def _step(self, name: bytes, *, brought: bool) -> tuple[bytes | None, bool]:
        """The target of a link; or whether a directory was entered."""
        self._check()
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(name))
        try:
            seen = os.stat(name, dir_fd=self.place.fd, follow_symlinks=False)
        except FileNotFoundError:
            own = None
        else:
            own = None if overlay.is_whiteout(seen) else seen
        if own is not None and stat.S_ISLNK(own.st_mode):
            return os.readlink(name, dir_fd=self.place.fd), False
        found = self._below(name)
        child = self.node.children.get(name)
        if found.link is not None and (child is None or child.entry is None):
            return found.link, False
        if own is None:
            if not found.directories and not brought:
                return None, False
            self._make(name)
        elif not stat.S_ISDIR(own.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(name))
        self._go(name, found)
        return None, True

    def _make(self, name: bytes) -> None:
        node = self.node.below(name)
        if node.hidden:  # the whiteout is in the place
            removal.unlink(name, self.place.fd)
        os.mkdir(name, dir_fd=self.place.fd)
        os.chmod(name, IMPLIED_DIRECTORY_MODE, dir_fd=self.place.fd)
        node.made = True
        if node.hidden:
            _mark(name, self.place.fd)

    def _below(self, name: bytes) -> Found:
        child = self.node.children.get(name)
        if self.node.opaque or (child is not None and child.hidden):
            return Found()
        return look(name, self._levels[-1].below)

    def _go(self, name: bytes, found: Found) -> None:
        self.place.down(name)
        for one in found.directories:
            one.down(name)
        self._levels.append(_Level(self.node.below(name), found.directories))

    def _leave(self) -> None:
        level = self._levels.pop()
        os.close(self.place.up())
        for one in level.below:
            os.close(one.up())


def _merge(source: Descent, moved: Node, target: Descent, node: Node, check: Callable[[], None]) -> None:
    """Move all from one directory of the layer to another. Where both have the same, that of `target` stays."""
    if moved.brought:
        node.bring(moved.brought)
    levels = [(moved, node, _names(source.fd))]
    while levels:
        check()
        here, there, names = levels[-1]
        if (here.opaque or here.hidden) and not there.opaque:
            overlay.mark_opaque(target.fd)
            there.opaque = here.opaque or here.hidden
        if not names:
            levels.pop()
            if here.named > there.named:
                adopt(target.fd, source.fd)
                there.entry, there.named = here.entry, here.named
            if levels:
                os.close(source.up())
                os.close(target.up())
            continue
        name = names.pop()
        child = here.below(name)
        if _move(name, source.fd, target.fd, child, there):
            continue
        if child.brought:
            there.children[name].bring(child.brought)
        source.down(name)
        target.down(name)
        levels.append((child, there.children[name], _names(source.fd)))


def _move(name: bytes, source: int, target: int, child: Node, there: Node) -> bool:
    """Move one file or tree, or leave it. False for a directory that is in both."""
    mine = os.stat(name, dir_fd=source, follow_symlinks=False)
    try:
        other = os.stat(name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        _rename(name, source, target, child, there)
        if overlay.is_whiteout(mine):
            overlay.mark_holding_whiteouts(target)
        return True
    known = there.below(name)
    if overlay.is_whiteout(other):
        if not overlay.is_whiteout(mine):
            removal.unlink(name, target)
            _rename(name, source, target, child, there)
            child.hidden = child.hidden or known.hidden
            if stat.S_ISDIR(mine.st_mode):
                child.opaque = child.opaque or known.hidden
                _mark(name, target)
        return True
    if stat.S_ISDIR(other.st_mode) and not known.brought and not stat.S_ISDIR(mine.st_mode):
        # A directory for whiteouts only, or on the way here.
        removal.remove_tree(name, dir_fd=target)
        _rename(name, source, target, child, there)
        if overlay.is_whiteout(mine):
            overlay.mark_holding_whiteouts(target)
        return True
    both = stat.S_ISDIR(other.st_mode) and stat.S_ISDIR(mine.st_mode)
    if child.last > known.last and not both and not overlay.is_whiteout(mine):
        _replace(name, source, target, child, there, mine=mine, other=other)
        return True
    if not stat.S_ISDIR(other.st_mode):
        return True
    if not stat.S_ISDIR(mine.st_mode):
        number = child.brought or child.hidden
        known.hidden, known.opaque = known.hidden or number, known.opaque or number
        _mark(name, target)
    return not stat.S_ISDIR(mine.st_mode)


def _replace(
    name: bytes,
    source: int,
    target: int,
    child: Node,
    there: Node,
    *,
    mine: os.stat_result,
    other: os.stat_result,
) -> None:
    """Of two that the layer has at one path, let the last win."""
    if stat.S_ISDIR(other.st_mode):
        removal.remove_tree(name, dir_fd=target)
    else:
        removal.unlink(name, target)
    _rename(name, source, target, child, there)
    child.hidden = child.hidden or child.brought
    if stat.S_ISDIR(mine.st_mode):
        child.opaque = child.opaque or child.brought
        _mark(name, target)


def _rename(name: bytes, source: int, target: int, child: Node, there: Node) -> None:
    os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    there.put(name, child)
    child.above = there


def _mark(name: bytes, dir_fd: int) -> None:
    with Descent(dir_fd) as place:
        place.down(name)
        overlay.mark_opaque(place.fd)


def _names(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]
