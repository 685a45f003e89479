"""The store: what was saved is there again, and nothing changes when the disk refuses."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.errors import InternalError
from cri.state import ContainerRecord, ImageRecord, SandboxRecord, Store


@pytest.fixture
async def store(tmp_path: Path):
    store = await Store.open(tmp_path / "state.db")
    yield store
    await store.close()


def sandbox(id_: str = "s1", **values) -> SandboxRecord:
    return SandboxRecord(
        **{"id": id_, "name": "n", "namespace": "default", "uid": "u", "state": "READY"} | values
    )


def container(id_: str = "c1", **values) -> ContainerRecord:
    return ContainerRecord(**{"id": id_, "sandbox_id": "s1", "name": "n", "state": "CREATED"} | values)


def refuse(path: Path, table: str, key: str) -> None:
    """Let the disk refuse one record."""
    with sqlite3.connect(path) as other:
        other.execute(
            f"CREATE TRIGGER no BEFORE INSERT ON {table} WHEN NEW.id = '{key}' BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    other.close()


async def test_everything_is_there_after_a_restart(store: Store) -> None:
    records = [
        sandbox(addresses=["10.0.0.1", "fd00::1"], config=b"\x00\xff", created_at=2**62),
        container(
            credentials={"uid": 1, "gid": 2, "groups": [3]}, exit_code=137, signal=9, reason="OOMKilled"
        ),
        container("c2"),
        ImageRecord(
            id="sha256:1", tags=["a:1"], digests=["a@sha256:2"], chains=["x", "y"], pinned=True, size=2**40
        ),
    ]
    await store.save(*records)
    await store.close()
    again = await Store.open(store.path)
    found = [
        *again.sandboxes.values(),
        *again.containers.values(),
        *again.images.values(),
    ]
    await again.close()
    assert [one.values() for one in found] == [one.values() for one in records]
    assert found[1].credentials == {"uid": 1, "gid": 2, "groups": [3]}
    assert found[2].credentials is None
    assert found[3].pinned is True


texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.fixed_dictionaries(
        {"name": texts, "config": st.binary(), "created_at": numbers, "pid": numbers}
    )
)
def test_any_value_survives(tmp_path: Path, values) -> None:
    async def there_and_back() -> dict:
        store = await Store.open(tmp_path / "any.db")
        await store.save(container(**values))
        await store.close()
        again = await Store.open(tmp_path / "any.db")
        found = again.containers["c1"]
        await again.close()
        return found.values()

    assert asyncio.run(there_and_back()) == container(**values).values()


async def test_save_replaces_and_delete_forgets(store: Store) -> None:
    await store.save(container())
    await store.save(store.containers["c1"].replace(state="RUNNING", pid=7))
    assert (store.containers["c1"].state, store.containers["c1"].pid) == ("RUNNING", 7)
    await store.delete(store.containers["c1"])
    await store.delete(container("never-there"))
    assert not store.containers
    await store.close()
    again = await Store.open(store.path)
    assert not again.containers
    await again.close()


async def test_the_store_keeps_copies(store: Store) -> None:
    record = sandbox(addresses=["10.0.0.1"])
    saving = asyncio.ensure_future(store.save(record))
    await asyncio.sleep(0)
    record.state = "changed"
    record.addresses.append("changed")
    await saving
    assert (store.sandboxes["s1"].state, store.sandboxes["s1"].addresses) == ("READY", ["10.0.0.1"])


def test_replace_knows_the_fields_and_leaves_the_original() -> None:
    record = sandbox(addresses=["10.0.0.1"])
    changed = record.replace(state="NOTREADY")
    changed.addresses.append("fd00::1")
    assert (record.state, record.addresses) == ("READY", ["10.0.0.1"])
    assert (changed.state, changed.id) == ("NOTREADY", "s1")
    assert changed.model_dump()["addresses"] == ["10.0.0.1", "fd00::1"]
    with pytest.raises(TypeError, match="SandboxRecord has no field stat"):
        record.replace(stat="x")


async def test_the_mappings_are_read_only(store: Store) -> None:
    with pytest.raises(TypeError):
        store.sandboxes["s1"] = sandbox()


async def test_memory_changes_after_the_disk_and_before_the_answer(store: Store) -> None:
    saving = asyncio.ensure_future(store.save(sandbox()))
    await asyncio.sleep(0)
    assert "s1" not in store.sandboxes
    await saving
    assert "s1" in store.sandboxes


async def test_a_refused_write_changes_nothing_and_names_the_objects(store: Store) -> None:
    await store.save(container("old"))
    refuse(store.path, "containers", "bad")
    with pytest.raises(InternalError, match=r"container bad, pod sandbox s9.*full"):
        await store.apply(save=[container("bad"), sandbox("s9")], delete=[store.containers["old"]])
    assert set(store.containers) == {"old"}
    assert not store.sandboxes
    await store.close()
    again = await Store.open(store.path)
    assert set(again.containers) == {"old"}
    assert not again.sandboxes
    await again.close()


async def test_one_refused_change_spares_those_committed_with_it(store: Store) -> None:
    refuse(store.path, "containers", "c7")
    results = await asyncio.gather(
        *(store.save(container(f"c{n}")) for n in range(20)), return_exceptions=True
    )
    assert [n for n, result in enumerate(results) if result is not None] == [7]
    assert len(store.containers) == 19


async def test_changes_to_one_record_keep_their_order(store: Store) -> None:
    await asyncio.gather(*(store.save(container(attempt=n)) for n in range(200)))
    assert store.containers["c1"].attempt == 199


async def test_a_cancelled_save_happens_all_the_same(store: Store) -> None:
    saving = asyncio.ensure_future(store.save(sandbox()))
    await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    await store.save(sandbox("s2"))
    assert set(store.sandboxes) == {"s1", "s2"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (container(exit_code="many"), "container c1: exit_code: must be int, not str"),
        (container(pid=True), "container c1: pid: must be int, not bool"),
        (container(credentials=[]), "container c1: credentials: must be dict or NoneType, not list"),
        (container(credentials={"uid": object()}), "container c1.*JSON"),
        (container(name="\udcff"), "container c1.*surrogates"),
        (container(pid=2**63), "container c1: pid: must be an integer of 64 bits"),
        (ContainerRecord(id="c1"), "container c1.*missing"),
    ],
    ids=["type", "bool", "none", "json", "surrogate", "large", "missing"],
)
async def test_a_wrong_value_is_refused_and_named(store: Store, record, expected: str) -> None:
    with pytest.raises(InternalError, match=expected):
        await store.save(record)
    assert not store.containers
    await store.save(container("c2"))
    assert set(store.containers) == {"c2"}


async def test_a_closed_store_refuses(store: Store) -> None:
    await store.close()
    with pytest.raises(InternalError, match="closed"):
        await store.save(sandbox())


async def test_readers_do_not_wait_for_a_locked_database(store: Store) -> None:
    await store.save(sandbox())
    other = sqlite3.connect(store.path)
    other.execute("BEGIN IMMEDIATE")
    saving = asyncio.ensure_future(store.save(sandbox("s2")))
    await asyncio.sleep(0.05)
    assert set(store.sandboxes) == {"s1"}
    assert not saving.done()
    other.rollback()
    other.close()
    await saving
    assert set(store.sandboxes) == {"s1", "s2"}


async def test_a_daemon_that_dies_loses_no_answered_save(tmp_path: Path) -> None:
    import sys

    program = (
        "import asyncio, os, sys; from pathlib import Path; from cri.state import ImageRecord, Store\n"
        "async def main():\n"
        "    store = await Store.open(Path(sys.argv[1]))\n"
        "    for n in range(50): await store.save(ImageRecord(id=str(n)))\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "state.db"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path))
    assert await process.wait() == -9
    store = await Store.open(path)
    assert len(store.images) == 50
    await store.close()


async def test_transactions_are_timed_and_the_writer_answers(tmp_path):
    took: list[float] = []
    store = await Store.open(tmp_path / "state.db", took=took.append)
    before = len(took)
    await store.save(sandbox("a"))
    assert len(took) == before + 1
    assert took[-1] > 0
    later = store.followed(save=[sandbox("b")])
    await store.answers()
    assert later.done()  # it came before
    await store.close()
    await store.answers()  # nobody waits for a writer that has ended
