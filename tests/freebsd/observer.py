"""What root in a jail can find out about another process there: sysctl(3) as procstat(1) uses it, procfs(4), ptrace(2).

It is a fork of the test that has gone into the jail with all its modules, since an image has no interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
CTL_KERN, KERN_PROC = 1, 14
PROC, ARGS, PATHNAME, VMMAP, FILEDESC, ENV, AUXV, CWD = 8, 7, 12, 32, 33, 35, 36, 42
PT_ATTACH, PT_DETACH = 10, 11
FORBIDDEN = {"descriptors": FILEDESC, "directory": CWD, "map": VMMAP, "environment": ENV, "auxiliary": AUXV}
"""What shows more than that a process is there."""
DIRECTORIES = {-1: "cwd", -2: "root", -3: "jail", -5: "text"}
"""KF_FD_TYPE_* of sys/user.h."""
OWN = ("/bin/", "/lib/", "/libexec/", "/etc/", "/usr/lib/", "/var/run/ld")
"""What a program of a container opens, by itself."""
_PROCESS, _PID = 1088, 72
"""struct kinfo_proc."""
_PATH = 368
"""struct kinfo_file: where its path begins."""


def call(function: str, *arguments: Any) -> int:
    result = getattr(LIBC, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)
    return int(result)


def ask(*name: int, room: int = 1 << 18) -> bytes:
    """A variable below kern.proc. Raises OSError."""
    mib = (ctypes.c_int * (2 + len(name)))(CTL_KERN, KERN_PROC, *name)
    buffer = ctypes.create_string_buffer(room)
    size = ctypes.c_size_t(room)
    call("sysctl", mib, len(mib), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return buffer.raw[: size.value]


def pids() -> list[int]:
    """Who is seen."""
    found = ask(PROC)
    return [struct.unpack_from("=i", found, at + _PID)[0] for at in range(0, len(found), _PROCESS)]


def title(pid: int) -> str:
    """argv[0]."""
    with contextlib.suppress(OSError):
        return ask(ARGS, pid).partition(b"\0")[0].decode(errors="replace")
    return ""


def files(pid: int) -> dict[int, str]:
    """What it has open, and its directories: paths, or what kind of thing it is. Raises OSError."""
    data, at, found = ask(FILEDESC, pid), 0, {}
    while at + 16 <= len(data):
        size, kind, number = struct.unpack_from("=3i", data, at)
        if size <= 0:
            break
        path = data[at + _PATH : at + size].partition(b"\0")[0].decode(errors="replace")
        found[number] = path or f"type {kind}"
        at += size
    return found


def attach(pid: int) -> None:
    """Trace it, which stops it. Raises OSError."""
    call("ptrace", PT_ATTACH, pid, None, 0)
    os.waitpid(pid, 0)


def detach(pid: int) -> None:
    call("ptrace", PT_DETACH, pid, ctypes.c_void_p(1), 0)


def outcome(action: Callable[[], Any]) -> str:
    """`done`, or the name of the error."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def answer(question: Callable[[], str]) -> str:
    """The answer, or the name of the error."""
    try:
        return question()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


@contextlib.contextmanager
def in_jail(jid: int, body: Callable[[Callable[[], bool]], Any]) -> Iterator[Callable[[], Any]]:
    """Run `body` in the jail, as root; it is given what says whether to go on. What is yielded stops it, and has its result."""
    told, tell = os.pipe()
    stopped, stop = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            keep = sorted((tell, stopped))
            os.closerange(3, keep[0])
            os.closerange(keep[0] + 1, keep[1])
            os.closerange(keep[1] + 1, 4096)
            call("jail_attach", jid)
            os.write(tell, b"\n")
            result = body(lambda: not select.select([stopped], [], [], 0)[0])
            os.write(tell, json.dumps(result).encode())
        except BaseException as error:
            os.write(tell, json.dumps({"raised": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.close(stopped)
    try:
        assert os.read(told, 1) == b"\n"

        def finish() -> Any:
            os.close(stop)
            with os.fdopen(os.dup(told), "rb") as stream:
                result = json.loads(stream.read())
            assert "raised" not in result, result
            return result

        yield finish
    finally:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)


def look(pid: int, proc: str = "") -> dict[str, str]:
    """What root of the jail gets of a process: `done`, or an error's name, by what was tried."""
    seen = {what: outcome(lambda number=number: ask(number, pid)) for what, number in FORBIDDEN.items()}
    seen["path"] = answer(lambda: ask(PATHNAME, pid).rstrip(b"\0").decode())
    seen["trace"] = outcome(lambda: attach(pid))
    if proc:
        for name in ("mem", "map", "regs"):
            seen[f"proc {name}"] = outcome(Path(proc, str(pid), name).read_bytes)
        for name in ("file", "exe"):
            seen[f"proc {name}"] = answer(lambda name=name: str(Path(proc, str(pid), name).readlink()))
    return seen


def watch(go_on: Callable[[], bool], known: set[int]) -> dict[str, Any]:
    """Look at every process that comes, again and again: how many were on their way, and what was wrong."""
    known = known | {os.getpid()}
    launchers: set[int] = set()
    programs: set[int] = set()
    wrong: list[str] = []
    while go_on():
        for pid in set(pids()) - known:
            if title(pid) == "cri-jails-launcher":
                launchers.add(pid)
            wrong += _look_at_files(pid, programs)
            if outcome(lambda: attach(pid)) == "done":  # noqa: B023
                wrong += _look_at_files(pid, programs)
                with contextlib.suppress(OSError):
                    detach(pid)
            with contextlib.suppress(OSError):
                path = ask(PATHNAME, pid).rstrip(b"\0").decode()
                if path and not path.startswith("/bin/"):
                    wrong.append(f"{pid}: path {path}")
    return {"launchers": len(launchers), "programs": len(programs), "wrong": wrong[:20]}


def _look_at_files(pid: int, programs: set[int]) -> list[str]:
    try:
        found = files(pid)
    except OSError:  # it is not to be looked at, or has gone
        return []
    programs.add(pid)
    return [f"{pid}: {what}" for what in _foreign(found)]


def _foreign(found: dict[int, str]) -> Iterator[str]:
    for number, path in found.items():
        if number in (0, 1, 2):
            if path not in {"/dev/null", "type 3"}:  # a pipe
                yield f"descriptor {number} is {path}"
        elif number in (-1, -2, -3):
            if path != "/":
                yield f"{DIRECTORIES[number]} is {path}"
        elif not path.startswith(OWN):  # the program, and what it opens by itself
            yield f"{DIRECTORIES.get(number, f'descriptor {number}')} is {path}"


if sys.platform.startswith("freebsd"):
    LIBC.ptrace.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
