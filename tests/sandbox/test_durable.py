"""Files that survive a power cut, and things of another type in their place."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from cri.sandbox import durable, small_files
from cri.sandbox.durable import (
    SharedSync,
    make_directory,
    remove_any,
    sync_tree,
    write_file,
)
from cri.sandbox.rubbish import Rubbish


def as_directory(path):
    path.mkdir()
    (path / "inside").write_text("x")


KINDS = {
    "directory": as_directory,
    "fifo": os.mkfifo,
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "file": lambda path: path.write_text("old"),
    "nothing": lambda path: None,
}


@pytest.fixture(params=KINDS)
def thing(request, tmp_path):
    path = tmp_path / "thing"
    KINDS[request.param](path)
    return request.param, path


def test_only_a_regular_file_is_read(thing):
    kind, path = thing
    if kind == "file":
        assert small_files.read(path, 3) == b"old"
        with pytest.raises(OSError, match="more than 2"):
            small_files.read(path, 2)
    else:
        with pytest.raises(OSError, match="thing"):
            small_files.read(path, 100)


def test_a_file_is_written_whatever_is_there(thing):
    _, path = thing
    write_file(path, b"new")
    assert small_files.read(path, 100) == b"new"
    assert [one.name for one in path.parent.iterdir()] == ["thing"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "thing"
    path.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["thing"]


def test_anything_is_removed(thing):
    _, path = thing
    remove_any(path)
    assert not os.path.lexists(path)


def test_a_directory_is_made_and_what_is_none_put_aside(thing):
    kind, path = thing
    aside = make_directory(path)
    assert path.is_dir()
    assert (aside is None) == (kind in ("directory", "nothing"))
    if aside is not None:
        assert os.path.lexists(aside)
        path.rmdir()
        path.write_text("again")
        assert make_directory(path) != aside


def test_a_link_to_a_directory_is_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    assert make_directory(tmp_path / "link") is None
    assert (tmp_path / "link").is_symlink()


def test_all_of_a_tree_is_synced(tmp_path, monkeypatch):
    for folder in ("a", "a/b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(folder)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/hostname")
    synced = []
    monkeypatch.setattr(
        durable.os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    sync_tree(tmp_path)
    inside = sorted(path.removeprefix(str(tmp_path)) for path in synced)
    assert inside == ["", "/a", "/a/b", "/a/b/file", "/a/file", "/c", "/c/file"]


async def test_a_sync_is_shared_by_those_who_wait_for_the_next():
    began, go, runs = threading.Semaphore(0), threading.Semaphore(0), []

    def sync():
        runs.append(1)
        began.release()
        go.acquire(timeout=5)

    shared = SharedSync(sync)
    first = asyncio.create_task(shared())
    await asyncio.to_thread(began.acquire)
    later = [asyncio.create_task(shared()) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in later)
    go.release()
    await first
    await asyncio.to_thread(began.acquire)
    assert not any(task.done() for task in later), (
        "what was written after the first began is not on disk with it"
    )
    go.release()
    await asyncio.gather(*later)
    assert len(runs) == 2


async def test_a_sync_that_fails_fails_for_all_who_share_it_and_for_nobody_else():
    failing = [OSError(5, "Input/output error"), None]

    def sync():
        if (error := failing.pop(0)) is not None:
            raise error

    shared = SharedSync(sync)
    results = await asyncio.gather(shared(), shared(), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    await shared()


async def test_a_caller_who_gives_up_takes_the_sync_from_nobody():
    go = threading.Event()
    shared = SharedSync(lambda: go.wait(5) and None)
    one, other = asyncio.create_task(shared()), asyncio.create_task(shared())
    await asyncio.sleep(0.05)
    one.cancel()
    go.set()
    await other


def test_rubbish_is_deleted_after_its_name_is_on_disk(tmp_path):
    there = []
    doomed = [tmp_path / name for name in ("a", "b", "c")]
    for path in doomed:
        as_directory(path)
    rubbish = Rubbish(lambda: there.append(len(list(tmp_path.iterdir()))))
    for path in doomed:
        rubbish.put(path)
    rubbish.wait()
    assert list(tmp_path.iterdir()) == []
    assert there[0] == 3
    as_directory(doomed[0])
    assert rubbish.put(doomed[0])
    rubbish.wait()
    assert list(tmp_path.iterdir()) == []


def test_without_the_sync_nothing_is_deleted(tmp_path):
    def fail():
        raise OSError(5, "Input/output error")

    as_directory(tmp_path / "a")
    rubbish = Rubbish(fail)
    rubbish.put(tmp_path / "a")
    rubbish.wait()
    assert (tmp_path / "a/inside").exists()
