"""Files as a process sees them through the mounts of the kernel in memory.

Put in the place of the module `os` of code that walks where something is mounted, it shows that code the content of a
volume below a mount point, refuses what a devfs or a read-only mount refuses, and lets it remove what it should not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cri.sandbox.fake.freebsd.mounts import FakeMount, MountTable
from cri.sandbox.fake.freebsd.parameters import refuse
from cri.sandbox.freebsd.calls import MNT_RDONLY

Name = str | bytes | os.PathLike[str]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class MountedFiles:
    """What of the module `os` takes a path or a directory; all else is that of `os` itself."""

    def __init__(self, table: MountTable) -> None:
        self._table = table
        self._paths: dict[int, str] = {}
        """Of open files."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Name, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """Open a file."""
        seen = self._locate(path, dir_fd)
        if not flags & os.O_NOFOLLOW and not flags & os.O_CREAT:
            seen = self._table.lookup(seen)[1]
        real = self._table.real(seen)
        if flags & os.O_CREAT and not os.path.lexists(real):
            self._may_make(seen)
        elif flags & _WRITING:
            self._may_write(seen)
        fd = os.open(real, flags, mode)
        self._paths[fd] = seen
        return fd

    def close(self, fd: int) -> None:
        """Close it."""
        self._paths.pop(fd, None)
        os.close(fd)

    def stat(
        self, path: Name | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        """A file's attributes; every mount is a device of its own."""
        if isinstance(path, int):
            return self.fstat(path)
        seen = self._locate(path, dir_fd)
        if follow_symlinks:
            seen = self._table.lookup(seen)[1]
        return self._of_mount(os.lstat(self._table.real(seen)), seen)

    def lstat(self, path: Name, *, dir_fd: int | None = None) -> os.stat_result:
        """A file's attributes, those of a link."""
        return self.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    def fstat(self, fd: int) -> os.stat_result:
        """An open file's attributes."""
        return self._of_mount(os.fstat(fd), self._of(fd))

    def mkdir(self, path: Name, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """Make a directory."""
        seen = self._locate(path, dir_fd)
        if not os.path.lexists(self._table.real(seen)):
            self._may_make(seen)
        os.mkdir(self._table.real(seen), mode)  # noqa: PTH102

    def rmdir(self, path: Name, *, dir_fd: int | None = None) -> None:
        """Remove a directory that nothing is mounted on."""
        os.rmdir(self._doomed(path, dir_fd))  # noqa: PTH106

    def unlink(self, path: Name, *, dir_fd: int | None = None) -> None:
        """Remove a file that nothing is mounted on."""
        os.unlink(self._doomed(path, dir_fd))  # noqa: PTH108

    def readlink(self, path: Name, *, dir_fd: int | None = None) -> str | bytes:
        """Read a link."""
        target = os.readlink(self._table.real(self._locate(path, dir_fd)))  # noqa: PTH115
        return os.fsencode(target) if isinstance(path, bytes) else target

    def symlink(self, target: Name, path: Name, *, dir_fd: int | None = None) -> None:
        """Make a link; devfs has some too."""
        seen = self._locate(path, dir_fd)
        self._may_write(seen)
        Path(self._table.real(seen)).symlink_to(os.fsdecode(target))

    def rename(
        self, old: Name, new: Name, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        """Rename within a filesystem."""
        before, after = self._locate(old, src_dir_fd), self._locate(new, dst_dir_fd)
        if self._table.covering(before) is not self._table.covering(after):
            raise refuse(errno.EXDEV, subject=before)
        self._may_write(before)
        os.rename(self._table.real(before), self._table.real(after))  # noqa: PTH104

    def scandir(self, path: Name | int = ".") -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        """What is in a directory."""
        return os.scandir(self._directory(path))

    def listdir(self, path: Name | int = ".") -> list[str]:
        """The names in a directory."""
        return os.listdir(self._directory(path))  # noqa: PTH208

    def path_class(self) -> type[Path]:
        """Path, for what looks at mount points and makes links in a devfs."""
        files = self

        class MountedPath(type(Path())):  # type: ignore[misc]
            def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
                return files.stat(str(self), follow_symlinks=follow_symlinks)

            def symlink_to(self, target: Name, target_is_directory: bool = False) -> None:
                files.symlink(target, str(self))

        return MountedPath

    # -- inside

    def _of(self, fd: int) -> str:
        return self._paths.get(fd) or os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115

    def _locate(self, path: Name, dir_fd: int | None) -> str:
        """The path that is meant, links followed but at its end."""
        text = os.fsdecode(path)
        if not text.startswith("/"):
            text = f"{os.getcwd() if dir_fd is None else self._of(dir_fd)}/{text}"  # noqa: PTH109
        above, name = os.path.split(text.rstrip("/"))
        if name in ("", ".", ".."):
            return self._table.lookup(text)[1]
        return f"{self._table.lookup(above)[1].rstrip('/')}/{name}"

    def _directory(self, path: Name | int) -> str:
        return (
            self._table.real(self._of(path))
            if isinstance(path, int)
            else self._table.shown(os.fsdecode(path))
        )

    def _mount(self, seen: str) -> FakeMount:
        mount = self._table.covering(seen)
        assert mount is not None
        return mount

    def _may_write(self, seen: str) -> None:
        if self._mount(seen).mount.flags & MNT_RDONLY:
            raise refuse(errno.EROFS, subject=seen)

    def _may_make(self, seen: str) -> None:
        self._may_write(seen)
        if self._mount(seen).mount.kind in ("devfs", "fdescfs", "procfs", "linprocfs", "linsysfs"):
            raise refuse(errno.EOPNOTSUPP, subject=seen)

    def _doomed(self, path: Name, dir_fd: int | None) -> str:
        seen = self._locate(path, dir_fd)
        if self._mount(seen).mount.target == seen:
            raise refuse(errno.EBUSY, subject=seen)
        self._may_write(seen)
        return self._table.real(seen)

    def _of_mount(self, found: os.stat_result, seen: str) -> os.stat_result:
        mount = self._mount(seen)
        if mount.mount.target == "/":
            return found
        mode, inode, _, *others = found[:10]
        return os.stat_result((mode, inode, (1 << 40) + mount.mount.fsid[0], *others))
