"""Fork, and the part of a new process's way to its program that is the same on every kernel.

The child tells of itself over a socket pair: either that it is about to execute the program, and as whom, or why it could
not. The socket closes at exec, so the end of the stream means that the program runs.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from cri.sandbox.host import HostError, StartError
from cri.sandbox.spec import Credentials
from cri.sandbox.warden import protocol

ChildBody = Callable[[socket.socket], NoReturn]
"""What a forked child does: it gets its end of the report, and never returns."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Stdio:
    """Descriptors for a process's standard streams; None is /dev/null. With `tty`, all of them are a new terminal."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process on its way to its program."""

    pid: int
    report: socket.socket


@dataclass(frozen=True, slots=True)
class Report:
    """What a child told before it executed its program."""

    credentials: Credentials
    pty: int | None


def fork(child: ChildBody) -> Child:
    """Fork; the new process runs `child`, which must end in `execute`. What it raises is reported instead."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        try:
            child(theirs)
        except BaseException as error:  # noqa: BLE001  # the fork must end here, whatever happens
            _report_failure(theirs, error)
        finally:
            os._exit(127)
    theirs.close()
    ours.setblocking(False)
    return Child(pid, ours)


def announce(report: socket.socket, credentials: Credentials, pty: int | None) -> None:
    """Tell the warden that the program comes next. Fails if the warden has died, so that none runs unwatched."""
    message: dict[str, Any] = {
        "uid": credentials.uid,
        "gid": credentials.gid,
        "groups": credentials.groups,
        "pty": pty is not None,
    }
    protocol.send(report, message, [] if pty is None else [pty])


def read_report(message: protocol.Message, descriptors: list[int]) -> Report:
    """The report in a message. Raises the HostError that the child reports."""
    if "error" in message:
        raise unpack_error(message["error"])
    credentials = Credentials(message["uid"], message["gid"], tuple(message["groups"]))
    return Report(credentials, descriptors[0] if message["pty"] else None)


def pack_error(error: HostError) -> dict[str, Any]:
    """An error as it travels in messages."""
    return {
        "start": isinstance(error, StartError),
        "operation": error.operation,
        "subject": error.subject,
        "reason": error.reason,
        "errno": error.errno,
    }


def unpack_error(data: Mapping[str, Any]) -> HostError:
    """The error in a message."""
    kind = StartError if data["start"] else HostError
    return kind(data["operation"], data["subject"], data["reason"], data["errno"])


def use_stdio(stdio: Stdio, owner: Credentials) -> None:
    """Put the descriptors to 0, 1, 2, and make them the user's, who may want to open /dev/stdout by name."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    given = [null if fd is None else fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
    # Out of the way of 0, 1 and 2 first: dup2 would close a source that happens to be a target.
    moved = [fd if fd > 2 else os.dup(os.dup(os.dup(fd))) for fd in given]
    for target, fd in enumerate(moved):
        os.dup2(fd, target)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, owner.uid, -1)


def environment(env: Mapping[str, str], *, home: str, hostname: str, tty: bool) -> dict[str, str]:
    """A process's environment: what the spec gives, and what every runtime adds where it gives nothing."""
    added = {"PATH": DEFAULT_PATH, "HOME": home}
    if hostname:
        added["HOSTNAME"] = hostname
    if tty:
        added["TERM"] = "xterm"
    return added | dict(env)


def parse_env(entries: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE entries as a mapping; the last of a name counts."""
    return {key: value for key, _, value in (entry.partition("=") for entry in entries) if key}


def execute(argv: tuple[str, ...], env: Mapping[str, str]) -> NoReturn:
    """Become the program `argv[0]`, looked up in the PATH of `env`. Raises StartError."""
    name = argv[0] if argv else ""
    if not name:
        raise StartError("exec", '""', "no command specified", errno.ENOENT)
    if "/" in name:
        candidates = [name]
    else:
        candidates = [f"{folder or '.'}/{name}" for folder in env.get("PATH", DEFAULT_PATH).split(":")]
    failure = errno.ENOENT
    for candidate in candidates:
        try:
            os.execve(candidate, argv, env)
        except OSError as error:
            # A directory without permission, or none at all, does not end the search; execvp(3).
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and failure != errno.EACCES:
                failure = error.errno or 0
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                break
        except ValueError as error:
            raise StartError("exec", f'"{name}"', str(error), errno.EINVAL) from None
    if failure == errno.ENOENT and "/" not in name:
        reason = "executable file not found in $PATH"
    elif failure == errno.ENOENT:
        reason = f"stat {name}: no such file or directory"
    else:
        reason = os.strerror(failure).lower()
    raise StartError("exec", f'"{name}"', reason, failure)


def _report_failure(report: socket.socket, error: BaseException) -> None:
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        error = HostError("prepare", str(error.filename or "the process"), reason, error.errno)
    elif not isinstance(error, HostError):
        error = HostError("prepare", "the process", f"{type(error).__name__}: {error}")
    protocol.send(report, {"error": pack_error(error)})
