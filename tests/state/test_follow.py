"""What has happened is true whatever the disk says, and reaches it as soon as that takes it."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from cri.errors import InternalError
from cri.state import ContainerRecord, Store
from tests.state.conftest import container, sandbox


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cri.state.writer.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("cri.state.database.BUSY_SECONDS", 0.1)


@pytest.fixture
async def store(tmp_path: Path):
    store = await Store.open(tmp_path / "state.db")
    yield store
    await store.close()


class Lock:
    """Another process's lock: nothing can be written while it is held."""

    def __init__(self, path: Path) -> None:
        self._other = sqlite3.connect(path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._other.execute("ROLLBACK")
        self._other.close()


def refuse(path: Path, key: str) -> None:
    """Let the disk refuse one container for ever."""
    with sqlite3.connect(path) as other:
        other.execute(
            f"CREATE TRIGGER no BEFORE INSERT ON containers WHEN NEW.id = '{key}' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    other.close()


async def wait_until_written(store: Store) -> None:
    async with asyncio.timeout(5):
        while store.problem:
            await asyncio.sleep(0.02)


def on_disk(store: Store) -> dict[str, int]:
    other = sqlite3.connect(store.path)
    rows = dict(other.execute("SELECT id, attempt FROM containers"))
    other.close()
    return rows


async def test_memory_changes_at_once(store: Store) -> None:
    following = asyncio.ensure_future(store.follow(save=[container()]))
    await asyncio.sleep(0)
    assert "c1" in store.containers
    await following
    assert on_disk(store) == {"c1": 0}
    assert store.problem == ""


async def test_what_the_disk_refuses_is_kept_and_written_later(store: Store) -> None:
    await store.save(container("gone"), container("old"))
    lock = Lock(store.path)
    await store.follow(save=[container("c1", attempt=1)], delete=[container("gone")])
    assert set(store.containers) == {"c1", "old"}
    assert "state.db cannot be written: database is locked" in store.problem
    assert on_disk(store) == {"gone": 0, "old": 0}
    lock.release()
    await wait_until_written(store)
    assert on_disk(store) == {"c1": 1, "old": 0}


async def test_what_is_kept_goes_first(store: Store) -> None:
    lock = Lock(store.path)
    await store.follow(save=[container("c1", attempt=1)])
    await store.follow(save=[container("c2", attempt=1)])
    await store.follow(save=[container("c1", attempt=2)])
    with pytest.raises(InternalError, match=r"container c1.*locked"):
        await store.save(container("c1", attempt=3))
    assert store.containers["c1"].attempt == 2
    lock.release()
    await store.save(container("c2", attempt=9))
    assert on_disk(store) == {"c1": 2, "c2": 9}
    assert store.problem == ""


async def test_a_save_wins_over_what_was_kept_before(store: Store) -> None:
    refuse(store.path, "c1")
    await store.follow(save=[container("c1", attempt=1), sandbox("s1")])
    assert "container" in store.problem or "no" in store.problem
    other = sqlite3.connect(store.path)
    other.execute("DROP TRIGGER no")
    other.close()
    await store.save(container("c1", attempt=2))
    await wait_until_written(store)
    await store.save(container("c3"))
    assert on_disk(store)["c1"] == 2
    assert store.containers["c1"].attempt == 2


async def test_one_that_is_refused_for_ever_holds_up_no_other(store: Store) -> None:
    refuse(store.path, "bad")
    await store.follow(save=[container("bad")])
    await store.follow(save=[container("good")])
    await store.save(container("other"))
    assert on_disk(store) == {"good": 0, "other": 0}
    assert set(store.containers) == {"bad", "good", "other"}
    assert store.problem


async def test_a_later_save_that_was_asked_for_earlier_does_not_undo_it(store: Store) -> None:
    """A save is under way when the container ends: its old state must not come back, not even for a moment."""
    await store.save(container(state="CREATED"))
    saving = [asyncio.ensure_future(store.save(container(state="RUNNING"))) for _ in range(5)]
    await asyncio.sleep(0)
    following = asyncio.ensure_future(store.follow(save=[container(state="EXITED")]))
    seen = set()
    while not following.done() or not all(one.done() for one in saving):
        await asyncio.sleep(0)
        seen.add(store.containers["c1"].state)
    assert seen == {"EXITED"}
    await store.save(container(state="REMOVING"))
    assert store.containers["c1"].state == "REMOVING"


async def test_a_wrong_value_is_the_callers_fault(store: Store) -> None:
    with pytest.raises(InternalError, match="exit_code: must be int"):
        await store.follow(save=[container(exit_code="x")])
    assert not store.containers


async def test_what_is_kept_is_tried_at_the_end(store: Store) -> None:
    lock = Lock(store.path)
    await store.follow(save=[container("c1")])
    lock.release()
    await store.close()
    assert on_disk(store) == {"c1": 0}


async def test_what_is_lost_at_the_end_is_named(store: Store, capsys) -> None:
    lock = Lock(store.path)
    await store.follow(save=[container("lost")], delete=[sandbox("gone")])
    await store.close()
    lock.release()
    printed = capsys.readouterr().out
    assert "changes that the disk refuses are lost" in printed
    assert "container lost" in printed
    assert "pod sandbox gone" in printed
    await store.follow(save=[container("late")])
    assert "late" in store.containers


async def test_the_problem_goes_away_without_a_change(store: Store) -> None:
    lock = Lock(store.path)
    with pytest.raises(InternalError):
        await store.save(container())
    assert store.problem
    lock.release()
    await wait_until_written(store)


async def test_a_cancelled_caller_takes_nothing_back(store: Store) -> None:
    following = asyncio.ensure_future(store.follow(save=[container()]))
    await asyncio.sleep(0)
    following.cancel()
    await store.save(sandbox())
    assert on_disk(store) == {"c1": 0}


async def test_a_row_that_goes_while_the_disk_refuses(store: Store) -> None:
    await store.save(container())
    await store.close()
    other = sqlite3.connect(store.path)
    other.execute("UPDATE containers SET id = x'6331', pid = 'x'")
    other.commit()
    other.close()
    again = await Store.open(store.path)
    ((kind, key),) = again.unreadable
    assert (kind, key) == (ContainerRecord, "b'c1'")
    lock = Lock(store.path)
    await again.delete_unreadable(kind, key)
    assert not again.unreadable
    lock.release()
    await wait_until_written(again)
    assert on_disk(store) == {}
    await again.close()
