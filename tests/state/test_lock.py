"""One daemon per state directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cri.state import StateError, StateLock
from tests.state.conftest import KINDS, replace_by

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


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling", "random", "empty"])
def test_whatever_the_lock_file_is_there_is_one_daemon(tmp_path: Path, kind: str) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    replace_by(kind)(lock)
    with StateLock.acquire(tmp_path):
        assert lock.read_text() == f"{os.getpid()}\n"
        # And whatever becomes of it while that one runs.
        for other in KINDS:
            if lock.is_dir():
                shutil.rmtree(lock)
            replace_by(other)(lock)
            with pytest.raises(StateError, match="in use by another daemon"):
                StateLock.acquire(tmp_path)
    StateLock.acquire(tmp_path).release()


def test_a_daemon_of_an_earlier_release_is_kept_out_and_keeps_out(tmp_path: Path) -> None:
    """Those lock the file alone."""
    with StateLock.acquire(tmp_path), (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(StateError, match="in use by another daemon"):
            StateLock.acquire(tmp_path)
    StateLock.acquire(tmp_path).release()


def test_a_refused_lock_leaves_nothing_open(tmp_path: Path) -> None:
    with StateLock.acquire(tmp_path):
        before = len(list(Path("/dev/fd").iterdir()))
        with pytest.raises(StateError):
            StateLock.acquire(tmp_path)
        assert len(list(Path("/dev/fd").iterdir())) == before
