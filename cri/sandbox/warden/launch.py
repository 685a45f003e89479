"""Fork, and the part of a new process's way to its program that is the same on every kernel.

The child tells of itself over a socket pair: either that it is about to execute the program, and as whom, or why it could
not. The socket closes at exec, so the end of the stream means that the program runs.
"""

from __future__ import annotations

import errno
import os
import socket
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from cri.sandbox.host import HostError, StartError, UnfitRequestError, UnknownContainerError
from cri.sandbox.spec import Credentials, TerminalSize
from cri.sandbox.warden import protocol

ChildBody = Callable[[socket.socket], NoReturn]
"""What a forked child does: it gets its end of the report, and never returns. The warden's end is closed in it."""

_MAX_SIZE = 0xFFFF
FIND = "find"
"""The operation of an UnknownContainerError, by which wardens of every release tell it."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Stdio:
    """Descriptors for a process's standard streams; None is /dev/null. With `tty`, all of them are a new terminal."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a child told before it executed its program."""

    credentials: Credentials
    home: str
    pty: int | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """A process on its way to its program: what it tells of itself comes from `report`."""

    pid: int
    report: socket.socket


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
            ours.close()  # so that the child sees when the warden dies
            child(theirs)
        except BaseException as error:  # noqa: BLE001  # the fork must end here, whatever happens
            _report_failure(theirs, error)
        finally:
            os._exit(127)
    theirs.close()
    ours.setblocking(False)
    return Child(pid, ours)


def announce(channel: socket.socket, report: Report) -> None:
    """Tell the warden that the program comes next."""
    message: dict[str, Any] = {
        "uid": report.credentials.uid,
        "gid": report.credentials.gid,
        "groups": report.credentials.groups,
        "home": report.home,
        "pty": report.pty is not None,
    }
    protocol.send(channel, message, [] if report.pty is None else [report.pty])


def set_terminal_size(terminal: int, size: TerminalSize) -> None:
    """Have the program find its terminal in this size. The kernel counts with 16 bits (tty(4), ioctl_tty(2))."""
    termios.tcsetwinsize(terminal, (min(size.height, _MAX_SIZE), min(size.width, _MAX_SIZE)))


def read_report(message: protocol.Message, descriptors: list[int]) -> Report:
    """The report in a message. Raises the HostError that the child reports."""
    if "error" in message:
        raise unpack_error(message["error"])
    credentials = Credentials(message["uid"], message["gid"], tuple(message["groups"]))
    return Report(credentials, message["home"], descriptors[0] if message["pty"] else None)


def pack_error(error: HostError) -> dict[str, Any]:
    """An error as it travels in messages."""
    return {
        "start": isinstance(error, StartError),
        "unfit": isinstance(error, UnfitRequestError),
        "operation": error.operation,
        "subject": error.subject,
        "reason": error.reason,
        "errno": error.errno,
    }


def unpack_error(data: Mapping[str, Any]) -> HostError:
    """The error in a message."""
    kind = StartError if data["start"] else UnknownContainerError if data["operation"] == FIND else HostError
    if data.get("unfit"):  # wardens of earlier releases do not say
        kind = UnfitRequestError
    return kind(data["operation"], data["subject"], data["reason"], data["errno"])


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


def candidates(argv: tuple[str, ...], env: Mapping[str, str]) -> list[str]:
    """The files that may be the program `argv[0]`: itself, or its name in each directory of the PATH in `env`."""
    name = argv[0] if argv else ""
    if not name:
        raise StartError("exec", '""', "no command specified", errno.ENOENT)
    if "/" in name:
        return [name]
    return [f"{folder or '.'}/{name}" for folder in env.get("PATH", DEFAULT_PATH).split(":")]


def not_executed(argv: tuple[str, ...], failure: int) -> StartError:
    """The error of a program that could not be executed, in the words that users of other runtimes know."""
    name = argv[0]
    if failure == errno.ENOENT and "/" not in name:
        reason = "executable file not found in $PATH"
    elif failure == errno.ENOENT:
        reason = f"stat {name}: no such file or directory"
    else:
        reason = os.strerror(failure).lower()
    return StartError("exec", f'"{name}"', reason, failure)


def _report_failure(report: socket.socket, error: BaseException) -> None:
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        error = HostError("prepare", str(error.filename or "the process"), reason, error.errno)
    elif not isinstance(error, HostError):
        error = HostError("prepare", "the process", f"{type(error).__name__}: {error}")
    protocol.send(report, {"error": pack_error(error)})
