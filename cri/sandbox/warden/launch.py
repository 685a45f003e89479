"""The part of a new process's way to its program that is the same on every kernel."""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cri.sandbox.host import HostError, StartError, UnfitRequestError, UnknownContainerError
from cri.sandbox.spec import ContainerSpec, Credentials, ProcessSpec, TerminalSize

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


def set_terminal_size(terminal: int, size: TerminalSize) -> None:
    """Have the program find its terminal in this size. The kernel counts with 16 bits (tty(4), ioctl_tty(2))."""
    termios.tcsetwinsize(terminal, (min(size.height, _MAX_SIZE), min(size.width, _MAX_SIZE)))


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


def environment_of(spec: ContainerSpec, process: ProcessSpec, *, home: str, hostname: str) -> dict[str, str]:
    """That of a process in a container: its first, or one beside it, which has the first's and its own."""
    own = process is spec.process
    entries = spec.process.env if own else (*spec.process.env, *process.env)
    return environment(parse_env(entries), home=home, hostname=spec.hostname or hostname, tty=process.tty)


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
