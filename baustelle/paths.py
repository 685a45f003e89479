"""Paths inside a root directory whose contents are not trusted.

An image decides what is in its root filesystem, so every name in it may be a symbolic link made to
lead somewhere else. The functions here resolve a path the way the kernel would after chroot(2):
an absolute link starts again at the root, and `..` at the root stays at the root. They open one
component at a time with O_NOFOLLOW and read links themselves, so nothing that is swapped while they
run can lead outside. openat2(2) with RESOLVE_IN_ROOT would do the same, but only on Linux.

A path that is resolved and then used again as text can be swapped in between: use `open_beneath`
and the descriptor where somebody else may write to the tree.

Standard library only.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_LINKS = 255
"""How many links one path may pass through before it counts as a loop (ELOOP). Linux allows 40, FreeBSD 32."""

MAX_STEPS = 64 * 1024
"""How many directories one path may lead through, those that its links name included, before it counts as a loop."""

IMPLIED_DIRECTORY_MODE = 0o755
"""Mode of directories that are made because something is put inside them."""

# O_PATH (Linux, FreeBSD 14) needs search permission only, as a path lookup should.
_O_PATH: int = getattr(os, "O_PATH", 0)
_DIRECTORY_FLAGS = _O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# What open(2) answers for a link under O_NOFOLLOW: Linux ELOOP, FreeBSD EMLINK; ENOTDIR with O_DIRECTORY.
_MAY_BE_LINK = frozenset({errno.ELOOP, errno.EMLINK, errno.ENOTDIR})


class Walk:
    """A walk down from the root, which stops before the last component so that the caller decides about it.

    `fd` is the directory that was reached (it may only be used with `dir_fd=`) and `names` are the
    link-free components that lead to it. Close it, or use it as a context manager. All errors are
    OSError and name the whole path.
    """

    def __init__(
        self,
        root_fd: int,
        path: str | bytes,
        *,
        start: tuple[int, list[bytes]] | None = None,
        on_missing: Callable[["Walk", bytes], None] | None = None,
        on_obstacle: Callable[["Walk", bytes], bool] | None = None,
    ) -> None:
        """Start at `root_fd`, or at a directory below it and its components, `start`.

        `on_missing(walk, name)` may make a directory that is needed but not there; `on_obstacle(walk, name)` may
        put one, and say so, in the place of what is neither directory nor link.
        """
        self.path = os.fsencode(path)
        if b"\0" in self.path:
            raise self._error(errno.EINVAL)
        if not self.path:
            raise self._error(errno.ENOENT)
        self._root_fd = root_fd
        self._on_missing = on_missing
        self._on_obstacle = on_obstacle
        self._pending = self.path.split(b"/")[::-1]
        self._links = 0
        self.steps = 0
        """How many directories were opened."""
        start_fd, names = start or (root_fd, [])
        self.names: list[bytes] = [*names]
        self.fd = os.open(b".", _DIRECTORY_FLAGS, dir_fd=start_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def detach(self) -> int:
        """Hand the directory's descriptor to the caller, who closes it."""
        fd, self.fd = self.fd, -1
        return fd

    def last(self) -> bytes | None:
        """Walk until one component is left and return it, without looking at what it is.

        None means that the path ends at the directory itself (`/`, `..`, a trailing slash).
        """
        while self._pending:
            name = self._pending.pop()
            if name in {b"", b"."}:
                continue
            if name == b"..":
                count = 1
                while self._pending and self._pending[-1] == b"..":
                    self._pending.pop()
                    count += 1
                self._up(count)
            elif not self._pending:
                return name
            else:
                self._enter(name)
        return None

    def follow(self, name: bytes) -> bool:
        """Queue the target of the link `name` in this directory. False if it is no link."""
        try:
            target = os.readlink(name, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise self._error(error.errno) from error
        self._links += 1
        if self._links > MAX_LINKS:
            raise self._error(errno.ELOOP)
        if not target:  # FreeBSD can make empty links; they lead nowhere
            raise self._error(errno.ENOENT)
        if target.startswith(b"/"):
            self._move([])
        self._pending.extend(target.split(b"/")[::-1])
        return True

    def error(self, cause: OSError) -> OSError:
        """`cause` told about the whole path instead of one component."""
        return self._error(cause.errno)

    def _enter(self, name: bytes) -> None:
        self._step()
        try:
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=self.fd)
        except FileNotFoundError as error:
            if self._on_missing is None:
                raise self._error(errno.ENOENT) from error
            self._on_missing(self, name)
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=self.fd)
        except OSError as error:
            if error.errno in _MAY_BE_LINK and self.follow(name):
                return
            if self._on_obstacle is None or not self._on_obstacle(self, name):
                raise self._error(error.errno) from error
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = fd
        self.names.append(name)

    def _up(self, count: int) -> None:
        # The kernel's own `..` would follow a directory that was moved out of the root meanwhile.
        if self.names:
            self._move(self.names[:-count])

    def _move(self, names: list[bytes]) -> None:
        fd = os.open(b".", _DIRECTORY_FLAGS, dir_fd=self._root_fd)
        for name in names:
            try:
                self._step()
                below = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
            except OSError as error:
                raise self._error(error.errno) from error
            finally:
                os.close(fd)
            fd = below
        os.close(self.fd)
        self.fd = fd
        self.names = names

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise self._error(errno.ELOOP)

    def _error(self, number: int | None) -> OSError:
        return OSError(number, os.strerror(number or 0), os.fsdecode(self.path))


def open_beneath(root_fd: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open `path` as if `root_fd` were the root directory, and return the descriptor (close-on-exec).

    `flags` and `mode` are those of open(2). O_NOFOLLOW concerns the last component only, as in open(2);
    O_CREAT through a dangling link creates the link's target, inside the root.
    Raises OSError with the errno of open(2); ELOOP after `MAX_LINKS` links.
    """
    nofollow = bool(flags & os.O_NOFOLLOW)
    with Walk(root_fd, path) as walk:
        while (name := walk.last()) is not None:
            try:
                fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=walk.fd)
            except OSError as error:
                if not nofollow and error.errno in _MAY_BE_LINK and walk.follow(name):
                    continue
                raise walk.error(error) from error
            if not nofollow and flags & _O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):
                os.close(fd)  # O_PATH opens the link itself where other flags fail
                walk.follow(name)
                continue
            return fd
        try:
            return os.open(b".", flags | os.O_CLOEXEC, mode, dir_fd=walk.fd)
        except OSError as error:
            raise walk.error(error) from error


def resolve_beneath(root: Path, path: str | bytes | Path) -> Path:
    """The link-free path of `path` inside `root`, for reading from a tree that nobody changes meanwhile.

    Raises OSError as `open_beneath`: the file must exist.
    """
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Walk(root_fd, os.fsencode(path)) as walk:
            while (name := walk.last()) is not None:
                if walk.follow(name):
                    continue
                return root.joinpath(*map(os.fsdecode, walk.names), os.fsdecode(name))
            return root.joinpath(*map(os.fsdecode, walk.names))
    finally:
        os.close(root_fd)


def make_mount_target(root_fd: int, path: str | bytes, *, directory: bool) -> list[str]:
    """Make sure that `path` inside the root is a directory, or else a file, to mount on.

    Missing parents become directories with mode 0755, a missing last component a directory or an empty
    file (0755, 0644). Links are followed inside the root, dangling ones by making their target.
    Returns what was created as link-free paths relative to the root, parents first, for
    `remove_mount_target`. If it fails, it has removed what it created.
    Raises NotADirectoryError or IsADirectoryError when the other kind is there already; else OSError.
    """
    created: list[str] = []

    def make_directory(walk: Walk, name: bytes) -> None:
        make_implied_directory(walk, name)
        created.append(os.fsdecode(b"/".join([*walk.names, name])))

    trimmed = os.fsencode(path).rstrip(b"/") or b"/"
    try:
        with Walk(root_fd, trimmed, on_missing=make_directory) as walk:
            missing = _find_mount_target(walk, directory=directory)
            if missing is not None and directory:
                make_directory(walk, missing)
            elif missing is not None:
                _make_empty_file(walk, missing)
                created.append(os.fsdecode(b"/".join([*walk.names, missing])))
    except BaseException:
        remove_mount_target(root_fd, created)
        raise
    return created


def _find_mount_target(walk: Walk, *, directory: bool) -> bytes | None:
    """Walk to the end of the path. The name to make there, or None if the right kind is there already."""
    while (name := walk.last()) is not None:
        try:
            found = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
        except FileNotFoundError:
            return name
        if stat.S_ISLNK(found.st_mode):
            walk.follow(name)
        elif stat.S_ISDIR(found.st_mode) == directory:
            return None
        else:
            raise walk.error(OSError(errno.ENOTDIR if directory else errno.EISDIR, ""))
    if not directory:
        raise walk.error(OSError(errno.EISDIR, ""))
    return None


def remove_mount_target(root_fd: int, created: list[str]) -> None:
    """Remove what `make_mount_target` created, except directories that are in use by now. Idempotent.

    Raises OSError for what cannot be removed, such as a target that is still mounted on (EBUSY).
    """
    for path in reversed(created):
        try:
            with Walk(root_fd, path) as walk:
                name = walk.last()
                if name is None:
                    continue
                if stat.S_ISDIR(os.stat(name, dir_fd=walk.fd, follow_symlinks=False).st_mode):
                    os.rmdir(name, dir_fd=walk.fd)
                else:
                    os.unlink(name, dir_fd=walk.fd)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST}:
                raise


def make_implied_directory(walk: Walk, name: bytes) -> None:
    """Make the directory `name` where the walk stands, 0755 whatever the umask is. For `on_missing`."""
    try:
        os.mkdir(name, IMPLIED_DIRECTORY_MODE, dir_fd=walk.fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=walk.fd)
    except OSError as error:
        raise walk.error(error) from error
    try:
        os.fchmod(fd, IMPLIED_DIRECTORY_MODE)
    finally:
        os.close(fd)


def _make_empty_file(walk: Walk, name: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o644, dir_fd=walk.fd)
    except OSError as error:
        raise walk.error(error) from error
    try:
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)
