"""Commands, daemons, and a supervisor that no process escapes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_LOG_TAIL = 15  # lines of a daemon's log that an error shows


class CommandError(Exception):
    """A command or daemon did not do what the run needs; the message says which and what it printed."""


def run(*argv: str | Path, cwd: Path | None = None, seconds: float = 600) -> str:
    """Return the standard output of a command.

    Raises:
        CommandError: if it fails, or takes longer than SECONDS.

    """
    command = " ".join(map(str, argv))
    try:
        done = subprocess.run(argv, cwd=cwd, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{command}` did not end within {seconds:.0f} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CommandError(f"`{command}` failed with {done.returncode}: {said}")
    return done.stdout


class Daemon:
    """A long-running child in its own session, whose output goes to a log file. ENV replaces the environment."""

    def __init__(
        self,
        name: str,
        argv: list[str | Path],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt at the terminal is for us, not for it
            )

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until READY returns true.

        Raises:
            CommandError: if the daemon ends, or is not ready within SECONDS; shows the end of its log.

        """
        deadline = time.monotonic() + seconds
        while not ready():
            if (code := self._process.poll()) is not None:
                raise CommandError(f"{self.name} ended with {code} while starting:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise CommandError(f"{self.name} is not ready after {seconds:.0f} s:\n{self._log_tail()}")
            time.sleep(0.05)

    def stop(self, seconds: float = 20) -> None:
        """End the daemon with SIGTERM, after SECONDS with SIGKILL."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"{self.name} ignored SIGTERM for {seconds:.0f} s and was killed", file=sys.stderr)
            self._process.kill()
            self._process.wait()

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:])


def supervise(body: Callable[[], int]) -> tuple[int, list[str]]:
    """Run BODY in a child; return its exit code, and the processes that it left behind and that were ended.

    The caller becomes a child subreaper: daemons, shims and containers that lose their parent become its
    children, whatever they do about sessions and groups. So whoever is still alive after BODY is a leak.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper (prctl)")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_run_body(body))
    for signo in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signo, lambda *_: os.kill(child, signal.SIGTERM))
    code = None
    while code is None:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
    return code, _end_children()


def _run_body(body: Callable[[], int]) -> int:
    # SIGINT reaches the whole foreground group and once more through the supervisor; the forwarded
    # SIGTERM alone is enough to run the `finally` blocks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    code = 1
    try:
        code = body()
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
    except SystemExit as leaving:
        if isinstance(leaving.code, int):
            code = leaving.code
        else:
            print(leaving.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  # a forked child must not unwind into its parent's frames
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _exit_on_signal(signo: int, _frame: object) -> None:
    signal.signal(signo, signal.SIG_IGN)  # the cleaning up that follows is not to be interrupted
    sys.exit(128 + signo)


def _children() -> dict[int, str]:
    """Return pid and command of every living child of this process."""
    me, found = os.getpid(), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it may end while we look
            # proc(5): pid (comm) state ppid ...; comm may itself hold blanks and parentheses
            state, parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == me and state != "Z":
                command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = command.strip()
    return found


def _end_children(settle: float = 2.0) -> list[str]:
    """Kill every child that does not end by itself within SETTLE seconds, and those it leaves; return what they were."""
    deadline = time.monotonic() + settle
    while _children() and time.monotonic() < deadline:
        time.sleep(0.1)
    killed = []
    while children := _children():
        for pid, command in children.items():
            killed.append(f"{pid}: {command}")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    return killed
