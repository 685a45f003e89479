"""One daemon per state directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cri.state import StateError, StateLock

HOLDER = """
import sys; from pathlib import Path; from cri.state.lock import StateLock
lock = StateLock.acquire(Path(sys.argv[1])); print("held", flush=True); sys.stdin.read()
"""


def test_another_process_is_refused_and_the_holder_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match=rf"in use by another daemon \(pid {holder.pid}\)"):
            StateLock.acquire(tmp_path)
        holder.kill()
    with StateLock.acquire(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_release_lets_the_next_one_in(tmp_path: Path) -> None:
    lock = StateLock.acquire(tmp_path)
    with pytest.raises(StateError):
        StateLock.acquire(tmp_path)
    lock.release()
    lock.release()
    StateLock.acquire(tmp_path).release()


def test_what_the_daemon_starts_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = StateLock.acquire(tmp_path)
    command = ["/bin/sh", "-c", "echo up; read x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
        assert child.stdout.readline() == b"up\n"
        lock.release()
        StateLock.acquire(tmp_path).release()
        child.kill()


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="gone/lock"):
        StateLock.acquire(tmp_path / "gone")
