"""The unix socket of the endpoint: never two servers on one path, never a moment with the wrong rights.

gRPC binds by itself, and it removes whatever is at the path first. So it is given a name in a directory of mode 0700 that
nobody else can enter, made beside the final path. Once the server answers, mode and group are set and the socket is
renamed to its final path: rename(2) replaces a stale socket in one step, and connecting goes by the inode, not by the
name that was bound. The daemon's umask stays as it is.

A socket that somebody removes leads nowhere, and gRPC neither notices nor listens again once it serves. So whoever serves
looks from time to time (`is_there`), and lets a further server listen at a `successor`.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

MAX_PATH_BYTES = 103
"""`sun_path` has 104 bytes with the final NUL on FreeBSD (unix(4)); Linux has 108."""

MODE = 0o660

_HIDDEN = "/.XXXXXXXX/s"
"""How long the name in the private directory is, after the directory of the final path."""


class SocketError(Exception):
    """The socket cannot be made: another server answers there, or the path or group will not do."""


def check_path(path: Path) -> None:
    """Raise SocketError for a path that is too long for a unix socket, or not absolute."""
    if not path.is_absolute():
        raise SocketError(f"the socket path {path} is not absolute")
    size = max(len(os.fsencode(path)), len(os.fsencode(path.parent)) + len(_HIDDEN))
    if size > MAX_PATH_BYTES:
        raise SocketError(
            f"the socket path {path} needs {size} bytes, a unix socket's may have {MAX_PATH_BYTES}: "
            "choose a shorter runtime_dir or socket"
        )


class ListeningSocket:
    """A place for a server to listen: `prepare`, let the server bind and start, `publish`; in the end `discard`."""

    def __init__(self, path: Path, group: str = "", directory_mode: int = 0o755) -> None:
        """`directory_mode` is that of the path's directory, should it have to be made."""
        check_path(path)
        self.path = path
        self._gid = _group_id(group)
        self._hidden: Path | None = None
        self._inode: tuple[int, int] | None = None
        self._directory_mode = directory_mode

    def prepare(self) -> str:
        """Make sure that nobody listens at the path; the address for gRPC to bind. Raises SocketError."""
        refuse_live(self.path)
        try:
            if not self.path.parent.is_dir():
                self.path.parent.mkdir(parents=True)
                self.path.parent.chmod(self._directory_mode)
            self._directory_mode = stat.S_IMODE(self.path.parent.stat().st_mode)
            self._hidden = Path(tempfile.mkdtemp(prefix=".", dir=self.path.parent))
        except OSError as error:
            raise SocketError(f"cannot make the socket {self.path}: {error.strerror}") from error
        return f"unix:{quote(str(self._hidden))}/s"

    def publish(self) -> None:
        """Give the bound socket its rights and its path. Raises SocketError."""
        assert self._hidden is not None
        bound = self._hidden / "s"
        try:
            if self._gid is not None:
                os.chown(bound, -1, self._gid)
            bound.chmod(MODE)
            found = bound.stat()
            refuse_live(self.path)
            bound.rename(self.path)
            self._hidden.rmdir()
        except OSError as error:
            raise SocketError(f"cannot make the socket {self.path}: {error.strerror}") from error
        self._hidden = None
        self._inode = (found.st_dev, found.st_ino)

    def is_there(self) -> bool:
        """Whether clients still find at the path what was published; also if that cannot be looked at."""
        try:
            found = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return (found.st_dev, found.st_ino) == self._inode

    def successor(self) -> ListeningSocket:
        """A place at the same path, in a directory of the same mode, for when this one is lost.

        What is no socket and has its path is put aside; what answers there is `prepare`'s to refuse. Raises SocketError.
        """
        put_aside(self.path)
        group = "" if self._gid is None else str(self._gid)
        return ListeningSocket(self.path, group, self._directory_mode)

    def discard(self) -> None:
        """Remove what is ours: the private directory, and the socket unless another server has replaced it."""
        if self._hidden is not None:
            (self._hidden / "s").unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._hidden.rmdir()
            self._hidden = None
        if self._inode is not None:
            with contextlib.suppress(FileNotFoundError):
                found = self.path.lstat()
                if (found.st_dev, found.st_ino) == self._inode:
                    self.path.unlink()
            self._inode = None


def _group_id(group: str) -> int | None:
    if not group:
        return None
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise SocketError(
            f"there is no group {group!r} for the socket; make it, or set socket_group"
        ) from None


def put_aside(path: Path) -> Path | None:
    """Rename what has a socket's path and is no socket; where to, if so. Raises SocketError.

    For paths that are ours only: anywhere else the configuration may be wrong, and `refuse_live` says so.
    """
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            return None
        aside = path.with_name(f"{path.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        return path.rename(aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SocketError(f"cannot put aside what is at {path}: {error.strerror}; move it away") from error


def refuse_live(path: Path) -> None:
    """Raise SocketError if something answers at the path, or is there and no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"cannot look at {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise SocketError(f"{path} is there, and is no socket; move it away, or choose another socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog answers EAGAIN, and somebody lives behind it
        result = probe.connect_ex(str(path))
    if result not in (errno.ECONNREFUSED, errno.ENOENT):
        raise SocketError(
            f"another server answers at {path}; stop it, or choose another socket"
            if result in (0, errno.EAGAIN, errno.EINPROGRESS)
            else f"cannot tell whether a server answers at {path}: {os.strerror(result)}"
        )
