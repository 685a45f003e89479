"""A state directory of 64 MiB that is filled to the last byte, or that cannot be written at all."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from cri import health
from cri.errors import InternalError
from cri.health import NodeHealth
from cri.reserves import DiskReserve
from cri.sandbox.host import Condition
from cri.state import ContainerRecord, ImageRecord, SandboxRecord, Store

pytestmark = pytest.mark.node


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr("cri.state.writer.RETRY_SECONDS", 0.2)


@pytest.fixture
def reserve(disk):
    reserve = DiskReserve(disk.root / "reserve")
    assert reserve.take()
    yield reserve
    reserve.close()


def pods(count: int = 40) -> list:
    return [
        one
        for n in range(count)
        for one in (
            SandboxRecord(id=f"s{n}", name="n", namespace="d", uid="u", state="READY", config=b"c" * 3000),
            ContainerRecord(id=f"c{n}", sandbox_id=f"s{n}", name="n", state="RUNNING", config=b"c" * 9000),
            ImageRecord(id=f"sha256:{n}"),
        )
    ]


async def well() -> Condition:
    return Condition(ok=True)


def rows(path: Path, table: str = "containers") -> set[str]:
    other = sqlite3.connect(path)
    found = {id_ for (id_,) in other.execute(f"SELECT id FROM {table}")}
    other.close()
    return found


async def until_written(store: Store) -> None:
    async with asyncio.timeout(10):
        while store.problem:
            await asyncio.sleep(0.05)


async def remove_all(store: Store) -> None:
    """As the life cycles do it: a step that is written down, and then the end."""
    for container in list(store.containers.values()):
        await store.follow(save=[container.replace(state="REMOVING", config=b"c" * 9000)])
        await store.follow(delete=[container])
    for sandbox in list(store.sandboxes.values()):
        await store.follow(save=[sandbox.replace(state="REMOVING")])
        await store.follow(delete=[sandbox])
    for image in list(store.images.values()):
        await store.delete(image)


async def test_filled_to_the_last_byte_everything_can_be_removed(disk, reserve: DiskReserve) -> None:
    store = await Store.open(disk.root / "state.db", make_room=reserve.give_up)
    node = NodeHealth(well, store, reserve, [disk.root])
    await store.save(*pods())
    disk.fill()
    assert (await node.condition()).reason == "DiskFull"
    await remove_all(store)
    assert store.problem == ""
    assert rows(store.path) == rows(store.path, "sandboxes") == rows(store.path, "images") == set()
    found = await node.condition()
    assert (found.ok, found.reason) == (False, "DiskFull")
    assert str(disk.root) in found.message
    disk.free()
    assert (await node.condition()).ok
    assert not reserve.spent
    await store.close()


async def test_a_daemon_starts_on_a_full_disk(disk, reserve: DiskReserve) -> None:
    store = await Store.open(disk.root / "state.db")
    await store.save(*pods())
    await store.close()
    reserve.close()
    disk.fill()
    assert reserve.take(), "what an earlier daemon has left is taken over"
    again = await Store.open(store.path, make_room=reserve.give_up)
    assert (len(again.containers), again.rebuilt, again.problem) == (40, "", "")
    await remove_all(again)
    await again.close()
    assert rows(store.path) == set()


async def test_a_full_disk_without_a_reserve_loses_nothing(disk) -> None:
    store = await Store.open(disk.root / "state.db")
    await store.save(*pods())
    await store.close()
    before = {path.name for path in disk.root.iterdir()}
    disk.fill()
    again = await Store.open(store.path)
    assert (len(again.containers), again.rebuilt, again.new) == (40, "", False)
    await remove_all_that_is_followed(again)
    assert not again.containers
    left = {path.name for path in disk.root.iterdir() if not path.name.startswith("filler")}
    assert left <= {*before, "state.db-wal", "state.db-shm"}
    disk.free()
    await until_written(again)
    assert rows(store.path) == rows(store.path, "sandboxes") == set()
    await again.close()


async def remove_all_that_is_followed(store: Store) -> None:
    for records in (store.containers, store.sandboxes):
        for record in list(records.values()):
            await store.follow(delete=[record])


async def test_a_damaged_database_on_a_full_disk_stays_until_it_can_be_replaced(disk) -> None:
    store = await Store.open(disk.root / "state.db")
    await store.save(*pods(5))
    await store.close()
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * 4096)  # the sandboxes
    before = store.path.read_bytes()
    disk.fill()
    again = await Store.open(store.path)
    assert (len(again.sandboxes), len(again.containers)) == (0, 5)
    assert again.rebuilt
    assert again.problem
    assert store.path.read_bytes() == before
    await again.follow(delete=[again.containers["c1"]])
    disk.free()
    await until_written(again)
    await again.close()
    assert rows(store.path) == {"c0", "c2", "c3", "c4"}
    assert list(disk.root.glob("state.db.damaged-*"))


async def test_a_disk_that_fails_and_is_mounted_anew(disk, reserve: DiskReserve) -> None:
    """As after an I/O error: nothing is written any more, until the operator has mounted it again."""
    store = await Store.open(disk.root / "state.db", make_room=reserve.give_up)
    node = NodeHealth(well, store, reserve, [disk.root])
    await store.save(*pods(3))
    disk.remount("abort")
    await store.follow(delete=[store.containers["c1"]])
    assert store.problem
    found = await node.condition()
    assert (found.ok, found.reason) in ((False, "DiskReadOnly"), (False, "StateNotWritable"))
    with pytest.raises(InternalError, match=r"cannot record container c2 in .*state\.db"):
        await store.delete(store.containers["c2"])
    disk.mount_anew()
    await until_written(store)
    assert rows(store.path) == {"c0", "c2"}
    assert (await node.condition()).ok
    assert reserve.give_up()
    await store.close()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
async def test_a_daemon_starts_on_a_read_only_disk(disk, closed: bool) -> None:
    import subprocess
    import sys

    program = (
        "import asyncio, os, sys; from pathlib import Path; from cri.state import ContainerRecord, Store\n"
        "async def main():\n"
        "    store = await Store.open(Path(sys.argv[1]))\n"
        "    for n in range(5): await store.save(ContainerRecord(id=f'c{n}', sandbox_id='s', name='n', state='RUNNING'))\n"
        "    if sys.argv[2] == 'True': await store.close()\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    path = disk.root / "state.db"
    subprocess.run([sys.executable, "-c", program, str(path), str(closed)], check=False)
    disk.remount("ro")
    store = await Store.open(path)
    assert (set(store.containers), store.rebuilt, store.new) == (
        {"c0", "c1", "c2", "c3", "c4"},
        "",
        False,
    )
    assert store.problem
    await store.follow(delete=[store.containers["c1"]], save=[store.containers["c0"].replace(state="EXITED")])
    disk.remount("rw")
    await until_written(store)
    await store.save(ContainerRecord(id="new", sandbox_id="s", name="n", state="CREATED"))
    await store.close()
    again = await Store.open(path)
    assert set(again.containers) == {"c0", "c2", "c3", "c4", "new"}
    assert (again.containers["c0"].state, again.rebuilt) == ("EXITED", "")
    await again.close()


async def test_a_read_only_disk_without_a_database(disk) -> None:
    disk.remount("ro")
    store = await Store.open(disk.root / "state.db")
    assert (store.new, bool(store.problem)) == (True, True)
    disk.remount("rw")
    await until_written(store)
    await store.save(*pods(1))
    await store.close()
    assert rows(store.path) == {"c0"}
