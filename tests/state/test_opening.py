"""Opening whatever lies at the database's path: never a failure, nothing lost that can be read, and the rest put aside."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cri.state import ContainerRecord, SandboxRecord, Store
from tests.state.conftest import KINDS, container, replace_by, sandbox

ALL = 60
FOLDED = 31
"""Pods that are in the file itself; those behind them are in the log only."""


def aside(path: Path) -> list[str]:
    """What lies beside a database, and is not its own."""
    own = {path.name, f"{path.name}-wal", f"{path.name}-shm"}
    return sorted({one.name for one in path.parent.iterdir()} - own)


async def reopened(path: Path) -> Store:
    """Write something, close, and open again: it must be there, and nothing be amiss."""
    store = await Store.open(path)
    await store.save(sandbox("after"))
    assert store.problem == ""
    expected = set(store.sandboxes)
    await store.close()
    again = await Store.open(path)
    assert (set(again.sandboxes), again.rebuilt, again.new) == (expected, "", False)
    await again.close()
    return store


async def test_a_killed_daemon_leaves_nothing_to_mend(left: Path) -> None:
    store = await reopened(left)
    assert (len(store.sandboxes) - 1, len(store.containers), store.rebuilt) == (ALL, ALL, "")
    assert aside(left) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_the_database_is_something_else(left: Path, kind: str) -> None:
    replace_by(kind)(left)
    store = await Store.open(left)
    await store.close()
    # What is in the log alone can be read whatever became of the file.
    assert {f"s{n}" for n in range(FOLDED, ALL)} <= set(store.sandboxes)
    assert store.rebuilt
    assert not store.new
    assert all(name.startswith("state.db.damaged-20") for name in aside(left))
    assert aside(left)
    await reopened(left)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_log_is_something_else(left: Path, kind: str) -> None:
    replace_by(kind)(Path(f"{left}-wal"))
    store = await Store.open(left)
    await store.close()
    assert FOLDED <= len(store.sandboxes) < ALL
    assert "log" in store.rebuilt or "-wal" in store.rebuilt
    await reopened(left)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_index_of_the_log_costs_nothing(left: Path, kind: str) -> None:
    replace_by(kind)(Path(f"{left}-shm"))
    store = await reopened(left)
    assert (len(store.sandboxes) - 1, store.rebuilt) == (ALL, "")


async def test_all_of_it_is_gone(left: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{left}{suffix}").unlink()
    store = await Store.open(left)
    assert (len(store.sandboxes), store.new, store.rebuilt) == (0, True, "there was none")
    await store.close()


async def test_an_empty_file_is_as_good_as_none_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"")
    store = await Store.open(tmp_path / "state.db")
    assert (store.new, store.rebuilt) == (True, "it was empty")
    await store.close()


async def test_a_link_to_a_database_is_read_and_replaced(left: Path) -> None:
    elsewhere = left.parent / "elsewhere"
    elsewhere.mkdir()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{left}{suffix}").rename(elsewhere / f"other{suffix}")
    left.symlink_to(elsewhere / "other")
    store = await Store.open(left)
    await store.close()
    assert len(store.sandboxes) == ALL
    assert not left.is_symlink()
    await reopened(left)


async def test_a_damaged_page_costs_its_own_rows_only(closed: Path) -> None:
    connection = sqlite3.connect(closed)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'containers'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    data = bytearray(closed.read_bytes())
    # The root is an interior page: its first cell leads to the leftmost leaf. That one is made unreadable.
    first = int.from_bytes(data[(root - 1) * size + 12 :][:2])
    leaf = int.from_bytes(data[(root - 1) * size + first :][:4])
    data[(leaf - 1) * size : leaf * size] = b"\xaa" * size
    closed.write_bytes(data)
    store = await Store.open(closed)
    await store.close()
    assert len(store.sandboxes) == ALL
    assert ALL - 5 < len(store.containers) < ALL
    assert len(store.images) == 6


async def test_a_database_that_another_process_holds_is_copied(left: Path, monkeypatch) -> None:
    monkeypatch.setattr("cri.state.database.BUSY_SECONDS", 0.2)
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA locking_mode = EXCLUSIVE'); c.execute('BEGIN EXCLUSIVE'); c.execute('COMMIT')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(left)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        store = await Store.open(left)
        assert len(store.sandboxes) == ALL
        assert "locked" in store.rebuilt
        await store.save(sandbox("new"))
        await store.close()
        holder.kill()
    assert any(name.startswith("state.db.locked-20") for name in aside(left))
    await reopened(left)


async def test_a_transaction_that_somebody_forgot_is_waited_for_and_then_left_behind(
    left: Path, monkeypatch
) -> None:
    monkeypatch.setattr("cri.state.database.BUSY_SECONDS", 0.2)
    shell = sqlite3.connect(left, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    store = await Store.open(left)
    await store.save(sandbox("new"))
    assert len(store.sandboxes) == ALL + 1
    await store.close()
    shell.close()
    await reopened(left)


async def test_a_newer_schema_that_only_adds_is_used_and_kept(closed: Path) -> None:
    newer = sqlite3.connect(closed)
    newer.executescript(
        "ALTER TABLE containers ADD COLUMN grace INTEGER; UPDATE containers SET grace = 7;"
        "ALTER TABLE sandboxes ADD COLUMN zone VARCHAR NOT NULL DEFAULT 'a';"
        "CREATE TABLE volumes (id VARCHAR); PRAGMA user_version = 99"
    )
    newer.close()
    store = await Store.open(closed)
    assert (len(store.sandboxes), len(store.containers), store.rebuilt) == (ALL, ALL, "")
    await store.save(store.containers["c1"].replace(state="EXITED"), sandbox("new"))
    await store.close()
    assert aside(closed) == []
    after = sqlite3.connect(closed)
    assert after.execute("SELECT state, grace FROM containers WHERE id = 'c1'").fetchone() == ("EXITED", 7)
    assert after.execute("SELECT zone FROM sandboxes WHERE id = 'new'").fetchone() == ("a",)
    assert after.execute("PRAGMA user_version").fetchone() == (99,)
    after.close()


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (
            "CREATE TRIGGER new BEFORE INSERT ON containers BEGIN SELECT RAISE(ABORT, 'no grace'); END",
            0,
        ),
        ("ALTER TABLE containers RENAME COLUMN reason TO why", ALL),
        ("ALTER TABLE containers RENAME TO processes", None),
    ],
)
async def test_a_newer_schema_that_does_not_fit_is_put_aside(closed: Path, change: str, lost) -> None:
    newer = sqlite3.connect(closed)
    newer.executescript(f"{change}; PRAGMA user_version = 99")
    newer.close()
    store = await Store.open(closed)
    await store.close()
    assert (len(store.sandboxes), store.rebuilt[:26]) == (ALL, "it is of a newer release, ")
    assert [name for name in aside(closed) if name.startswith("state.db.newer-99-20")]
    if lost is None:
        assert not store.containers
        assert not store.unreadable
    else:
        assert (len(store.containers), len(store.unreadable)) == (ALL - lost, lost)
    await reopened(closed)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("pid", "many", "pid is str, not int"),
        ("config", "text", "config is str, not bytes"),
        ("credentials", "{", "credentials is no JSON"),
        ("credentials", "[1]", "credentials is list, not dict or NoneType"),
        ("credentials", "[" * 100_000, "credentials is no JSON"),
        ("name", b"\xff", "name is bytes, not str"),
        ("id", "../../etc", "its id is no name of an object"),
        ("id", b"c1", "id is bytes, not str"),
    ],
)
async def test_a_row_that_cannot_be_understood_costs_no_other(
    closed: Path, column: str, value: object, reason: str
) -> None:
    other = sqlite3.connect(closed)
    other.execute(f"UPDATE containers SET {column} = ? WHERE id = 'c1'", (value,))
    other.commit()
    other.close()
    store = await Store.open(closed)
    assert (len(store.containers), store.rebuilt, aside(closed)) == (ALL - 1, "", [])
    (one,) = store.unreadable.values()
    assert one.kind is ContainerRecord
    assert one.reason.startswith(reason)
    assert one.values["sandbox_id"] == "s1"
    assert store.unreadable[ContainerRecord, one.key] is one
    await store.save(container("c2", pid=8))
    await store.close()

    again = await Store.open(closed)
    assert list(again.unreadable) == [(ContainerRecord, one.key)]
    await again.delete_unreadable(ContainerRecord, one.key)
    await again.delete_unreadable(ContainerRecord, "never")
    assert not again.unreadable
    await again.close()
    last = await Store.open(closed)
    assert (len(last.containers), len(last.unreadable)) == (ALL - 1, 0)
    await last.close()


async def test_a_record_takes_the_place_of_a_row_that_cannot_be_understood(closed: Path) -> None:
    other = sqlite3.connect(closed)
    other.executescript(
        "UPDATE containers SET pid = 'x' WHERE id = 'c1'; UPDATE sandboxes SET addresses = '[1]' WHERE id = 's1'"
    )
    other.close()
    store = await Store.open(closed)
    assert set(store.unreadable) == {(ContainerRecord, "c1"), (SandboxRecord, "s1")}
    await store.save(container("c1"))
    await store.delete(sandbox("s1"))
    assert not store.unreadable
    await store.close()
    again = await Store.open(closed)
    assert (again.unreadable, "s1" in again.sandboxes, "c1" in again.containers) == ({}, False, True)
    await again.close()


async def test_rows_that_cannot_be_understood_survive_a_rebuild(closed: Path) -> None:
    other = sqlite3.connect(closed)
    other.executescript("UPDATE containers SET pid = 'x' WHERE id = 'c1'; PRAGMA wal_checkpoint(TRUNCATE);")
    (root,) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'images'").fetchone()
    other.close()
    with closed.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xaa" * 4096)
    store = await Store.open(closed)
    assert (len(store.containers), len(store.images), set(store.unreadable)) == (
        ALL - 1,
        0,
        {(ContainerRecord, "c1")},
    )
    await store.close()
    again = await Store.open(closed)
    assert (set(again.unreadable), again.rebuilt) == ({(ContainerRecord, "c1")}, "")
    await again.close()


async def test_a_rebuild_that_was_cut_short_is_finished(left: Path) -> None:
    """Killed between the two renames: the old one is aside, the new one not yet in place."""
    store = await Store.open(left)
    await store.close()
    left.rename(left.with_name("state.db.new"))
    again = await Store.open(left)
    assert (len(again.sandboxes), again.new) == (ALL, False)
    assert again.rebuilt
    await again.close()
    assert aside(left) == []


@pytest.mark.parametrize("kind", ["gone", "replaced", "directory"])
@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_what_disappears_under_the_daemon_is_made_anew_of_memory(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / "state.db"
    store = await Store.open(path)
    await store.save(*(sandbox(f"s{n}") for n in range(20)))
    file = Path(f"{path}{suffix}")
    file.unlink()
    if kind == "replaced":
        file.write_bytes(b"x" * 5000)
    elif kind == "directory":
        file.mkdir()
    await store.save(sandbox("after"))
    await store.follow(delete=[store.sandboxes["s0"]])
    expected = set(store.sandboxes)
    os.sync()
    await store.close()
    again = await Store.open(path)
    assert set(again.sandboxes) == expected
    assert (again.rebuilt, len(expected)) == ("", 20)
    await again.close()


async def test_opening_is_quick(left: Path) -> None:
    """A thousand containers: a part of a second, whatever the machine."""
    store = await Store.open(left)
    await store.save(*(container(f"many{n}", config=b"x" * 2000) for n in range(1000)))
    await store.close()
    began = time.process_time()
    again = await Store.open(left)
    taken = time.process_time() - began
    assert len(again.containers) == ALL + 1000
    await again.close()
    print(f"{taken:.3f} s of processor time for 1000 containers")


async def test_out_of_descriptors_at_the_start(left: Path, monkeypatch) -> None:
    """Nothing can be read then, and so nothing is known to be gone."""
    monkeypatch.setattr("cri.state.writer.RETRY_SECONDS", 0.1)
    real = os.open

    def refuse(path, *arguments, **named):
        if "state.db" in str(path):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        store = await Store.open(left)
    assert (store.new, "cannot be read" in store.rebuilt, bool(store.problem)) == (False, True, True)
    async with asyncio.timeout(5):
        while store.problem:
            await asyncio.sleep(0.02)
    await store.save(sandbox("new"))
    await store.close()
    again = await Store.open(left)
    assert len(again.sandboxes) == ALL + 1
    await again.close()
