"""Copies file trees whole: owners, modes, times, extended attributes, ACLs, file flags, hard links, devices, FIFOs, holes.

On FreeBSD links, devices and FIFOs keep all but extended attributes and ACLs. Sockets are left out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from baustelle import descent, fileflags
from baustelle.copyfile import copy_attributes, copy_file
from baustelle.descent import Descent
from cri.sandbox.spec import DiskUsage

_BLOCK = 512


def copy_tree(source: str, target: str, check: Callable[[], None] = lambda: None) -> None:
    """Copy the content and the attributes of the directory `source` to the directory `target`, which exists. Blocks.

    Nothing in the copy is a hard link to the source. File flags that the target's file system does not know are left
    out. However deep the tree is, few descriptors are needed. `check` is called before each file, to raise what shall
    end the copy half-way. Raises OSError.
    """
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy = _Copy(target_fd, check)
            copy.run(source_fd)
            copy.finish()
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def disk_usage(directory: str, check: Callable[[], None] = lambda: None) -> DiskUsage:
    """What a tree takes on disk, hard links counted once. Blocks.

    Files that vanish meanwhile do not count, nor does what is mounted in it: on FreeBSD that is in a container's root.
    `check` as for `copy_tree`. Raises OSError.
    """
    blocks = 0
    seen: set[tuple[int, int]] = set()

    def add(found: os.stat_result) -> None:
        nonlocal blocks
        if found.st_dev == device and (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            blocks += found.st_blocks

    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return DiskUsage(0, 0)
    try:
        device = os.fstat(top).st_dev
        for fd, files in descent.walk(top, one_filesystem=True):
            add(os.fstat(fd))
            for entry in files:
                check()
                with contextlib.suppress(FileNotFoundError):
                    add(entry.stat(follow_symlinks=False))
    finally:
        os.close(top)
    return DiskUsage(bytes=blocks * _BLOCK, inodes=len(seen))


@dataclass(slots=True)
class _Copy:
    """A copy under way."""

    top: int
    check: Callable[[], None]
    links: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    """Where in the copy the first name of a file with several is: its directory's path, and itself."""
    flags: list[tuple[str, str, int]] = field(default_factory=list)
    """Of those files, for the end: an immutable file gets no more links."""

    def run(self, source: int) -> None:
        """Copy all."""
        with Descent(source) as here, Descent(self.top) as there:
            levels = [("", self._files(here.fd, there.fd, ""))]
            while levels:
                path, below = levels[-1]
                if below:
                    name = below.pop()
                    os.mkdir(name, 0o700, dir_fd=there.fd)
                    here.down(name)
                    there.down(name)
                    inner = f"{path}/{name}"
                    levels.append((inner, self._files(here.fd, there.fd, inner)))
                    continue
                copy_attributes(here.fd, there.fd, os.fstat(here.fd))
                flags = fileflags.of(os.fstat(here.fd))
                levels.pop()
                if levels:
                    os.close(here.up())
                    os.close(there.up())
                if flags:
                    _set_flags(there.fd, path.rpartition("/")[2] or ".", flags)

    def finish(self) -> None:
        """Set the flags that had to wait."""
        for directory, name, flags in self.flags:
            fd = descent.open_far(self.top, directory)
            try:
                _set_flags(fd, name, flags)
            finally:
                os.close(fd)

    def _files(self, source: int, target: int, path: str) -> list[str]:
        """Copy the files of a directory; the names of the directories in it."""
        below = []
        for name in os.listdir(source):
            self.check()
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                below.append(name)
            elif (found.st_dev, found.st_ino) in self.links:
                self._link(*self.links[found.st_dev, found.st_ino], name, target)
            elif not stat.S_ISSOCK(found.st_mode):  # which belongs to a process that is not there
                copy_file(name, found, source, target, name, self.check)
                self._finish_file(name, found, target, path)
        return below

    def _link(self, directory: str, first: str, name: str, target: int) -> None:
        fd = descent.open_far(self.top, directory)
        try:
            os.link(first, name, src_dir_fd=fd, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(fd)

    def _finish_file(self, name: str, found: os.stat_result, target: int, path: str) -> None:
        flags = fileflags.of(found)
        if found.st_nlink > 1:
            self.links[found.st_dev, found.st_ino] = path, name
            if flags:
                self.flags.append((path, name, flags))
        elif flags:
            _set_flags(target, name, flags)


def _set_flags(directory: int, name: str, flags: int) -> None:
    try:
        fileflags.set_on_name(directory, name, flags)
    except OSError as error:
        if error.errno not in fileflags.NOT_STORABLE:
            raise
