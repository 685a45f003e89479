"""What becomes of objects whose records are lost, damaged, or of a newer release."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path

import pytest

from baustelle.removal import remove_tree
from cri.errors import FailedPreconditionError
from cri.sandbox import recovery
from cri.sandbox.machine import ContainerState, SandboxState

DAMAGE = {
    "no JSON": "{",
    "an empty text": "",
    "another type": "[1, 2]",
    "a wrong type inside": '{"id": 7}',
    "of a newer release": '{"of_a_newer_release": true}',
}


async def running(node, make, name="pod"):
    sandbox_id = await node.pods.run_sandbox(make.pod(name), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    await node.pods.start_container(container_id)
    return sandbox_id, container_id


async def damaged(node, table, key, **columns):
    """Another daemon, after somebody has changed the database."""
    await node.crash()
    with sqlite3.connect(node.directory / "state.db") as database:
        for column, value in columns.items():
            database.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (value, key))
    database.close()
    return await node.start()


def copies(node) -> None:
    for path in node.directory.glob("*/*/record.json"):
        path.unlink()


async def check_all_can_go(node, pods) -> None:
    for sandbox_id in list(pods.sandboxes):
        await pods.stop_sandbox(sandbox_id)
        await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("table", ["sandboxes", "containers"])
async def test_a_damaged_record_is_restored_from_the_copy(node, make, table, damage) -> None:
    sandbox_id, container_id = await running(node, make)
    other, other_container = await running(node, make, "other")
    key = sandbox_id if table == "sandboxes" else container_id
    before = dict(getattr(node.store, table)[key].values())
    pods = await damaged(node, table, key, spec=DAMAGE[damage])
    for one in (container_id, other_container):
        assert pods.containers[one].state is ContainerState.RUNNING
    for one in (sandbox_id, other):
        assert pods.sandboxes[one].state is SandboxState.READY
        assert pods.sandboxes[one].addresses
    assert len(node.kernel.processes) == 2
    assert getattr(node.store, table)[key].values() == before, "it is written down again"
    await check_all_can_go(node, pods)


@pytest.mark.parametrize("damage", DAMAGE)
async def test_without_a_copy_a_sandbox_runs_on_and_can_be_ended(node, make, damage) -> None:
    sandbox_id, container_id = await running(node, make)
    copies(node)
    pods = await damaged(node, "sandboxes", sandbox_id, spec=DAMAGE[damage])
    sandbox = pods.sandboxes[sandbox_id]
    assert sandbox.foreign
    assert sandbox.state is SandboxState.READY
    assert sandbox.config.metadata.name == "pod"
    assert pods.containers[container_id].state is ContainerState.RUNNING
    assert len(node.kernel.processes) == 1
    assert node.store.sandboxes[sandbox_id].spec == DAMAGE[damage], "its record is left alone"
    with pytest.raises(FailedPreconditionError, match="cannot be understood"):
        await pods.create_container(sandbox_id, make.container("sleep", name="another"))
    await check_all_can_go(node, pods)


@pytest.mark.parametrize("damage", DAMAGE)
async def test_without_a_copy_a_container_runs_on_and_can_be_ended(node, make, damage) -> None:
    _, container_id = await running(node, make)
    copies(node)
    pods = await damaged(node, "containers", container_id, spec=DAMAGE[damage])
    container = pods.containers[container_id]
    assert container.foreign
    assert container.state is ContainerState.RUNNING, "as its warden says"
    assert node.store.containers[container_id].spec == DAMAGE[damage]
    await pods.stop_container(container_id, 0)
    assert container.state is ContainerState.EXITED
    await pods.remove_container(container_id)
    assert container_id not in node.store.containers
    await check_all_can_go(node, pods)


async def test_one_that_no_warden_knows_is_shown_as_unknown(node, make) -> None:
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    copies(node)
    pods = await damaged(node, "containers", container_id, spec="{", state="of a newer release")
    assert pods.containers[container_id].state is ContainerState.UNKNOWN
    with pytest.raises(FailedPreconditionError):
        await pods.start_container(container_id)
    await pods.stop_container(container_id, 0)
    assert pods.containers[container_id].state is ContainerState.EXITED
    await check_all_can_go(node, pods)


@pytest.mark.parametrize("column", ["state", "config"])
@pytest.mark.parametrize("table", ["sandboxes", "containers"])
async def test_other_columns(node, make, table, column) -> None:
    sandbox_id, container_id = await running(node, make)
    key = sandbox_id if table == "sandboxes" else container_id
    value = {"state": "upside down", "config": b"\xff\xff\xff"}[column]
    pods = await damaged(node, table, key, **{column: value})
    assert pods.sandboxes[sandbox_id].state is SandboxState.READY
    assert pods.containers[container_id].state is ContainerState.RUNNING
    assert len(node.kernel.processes) == 1
    await check_all_can_go(node, pods)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"container_id": 1}', "\x00\x01"])
async def test_a_damaged_exit_record(node, make, text) -> None:
    sandbox_id, container_id = await running(node, make)
    await node.crash()
    node.host.kill_warden(sandbox_id)
    (node.directory / "containers" / container_id / "exit.json").write_text(text)
    pods = await node.start()
    record = pods.containers[container_id].record
    assert (record.state, record.exit_code) == (ContainerState.EXITED.value, 255)
    assert "exit record cannot be read" in record.message
    await check_all_can_go(node, pods)


async def test_a_lost_database(node, make) -> None:
    sandbox_id, container_id = await running(node, make)
    stopped, ended = await running(node, make, "stopped")
    created = await node.pods.create_container(sandbox_id, make.container("sleep", name="created"))
    addresses = node.pods.sandboxes[sandbox_id].addresses
    await node.pods.stop_sandbox(stopped)
    await node.crash()
    for path in node.directory.glob("state.db*"):
        path.unlink()
    pods = await node.start()
    assert pods.sandboxes[sandbox_id].state is SandboxState.READY
    assert pods.sandboxes[sandbox_id].addresses == addresses
    assert pods.containers[container_id].state is ContainerState.RUNNING
    assert pods.containers[created].state is ContainerState.CREATED
    assert pods.sandboxes[stopped].state is SandboxState.NOTREADY
    assert pods.containers[ended].state is ContainerState.EXITED
    assert pods.containers[ended].record.exit_code == 137
    assert len(node.kernel.processes) == 1
    assert set(node.store.sandboxes) == {sandbox_id, stopped}
    assert set(node.store.containers) == {container_id, created, ended}
    await pods.start_container(created)
    await check_all_can_go(node, pods)


async def test_a_lost_record_of_a_running_container(node, make) -> None:
    _, container_id = await running(node, make)
    await node.store.delete(node.store.containers[container_id])
    pods = await node.restart()
    assert pods.containers[container_id].state is ContainerState.RUNNING
    assert container_id in node.store.containers
    await check_all_can_go(node, pods)


async def test_directories_that_no_record_names_are_collected_in_time(node, make, monkeypatch) -> None:
    sandbox_id, container_id = await running(node, make)
    for parent, name in (
        ("sandboxes", "a" * 64),
        ("containers", "b" * 64),
        ("containers", "c" * 64),
        ("containers", "lost+found"),
    ):
        stray = node.directory / parent / name
        if name[0] == "c":
            stray.write_text("content")
        else:
            stray.mkdir()
            (stray / "inside").write_text("content")
    pods = await node.restart()
    assert (node.directory / "sandboxes" / ("a" * 64)).exists(), "young ones stay"
    monkeypatch.setattr(recovery, "STRAY_SECONDS", 0.05)
    time.sleep(0.1)
    pods = await node.restart()
    assert {path.name for path in (node.directory / "sandboxes").iterdir()} == {sandbox_id}
    assert {path.name for path in (node.directory / "containers").iterdir()} == {container_id, "lost+found"}
    remove_tree(node.directory / "containers/lost+found")
    await make.eventually(lambda: not list((node.directory / "removed").iterdir()))
    await check_all_can_go(node, pods)


async def test_what_an_earlier_daemon_has_removed_is_deleted(node) -> None:
    left = node.directory / "removed" / "0123"
    (left / "upper/deep").mkdir(parents=True)
    (node.directory / "removed" / "file").write_text("content")
    await node.restart()
    async with asyncio.timeout(5):
        while list((node.directory / "removed").iterdir()):
            await asyncio.sleep(0.01)


async def test_a_key_that_leads_elsewhere(node, make, tmp_path_factory) -> None:
    """It must not become a path, whoever has written it."""
    sandbox_id, _ = await running(node, make)
    record = node.store.sandboxes[sandbox_id]
    precious = tmp_path_factory.mktemp("precious")
    (precious / "file").write_text("content")
    for key in (f"../../{precious.name}", "..", "."):
        await node.store.save(record.replace(id=key))
    pods = await node.restart()
    assert set(pods.sandboxes) == {sandbox_id}
    assert (precious / "file").exists()
    await pods.remove_sandbox(sandbox_id)


async def test_a_copy_of_another_one_is_no_copy(node, make) -> None:
    sandbox_id, container_id = await running(node, make)
    other, _ = await running(node, make, "other")
    target = node.directory / "sandboxes" / sandbox_id / "record.json"
    target.write_bytes((node.directory / "sandboxes" / other / "record.json").read_bytes())
    pods = await damaged(node, "sandboxes", sandbox_id, spec="{")
    assert pods.sandboxes[sandbox_id].foreign
    assert pods.containers[container_id].state is ContainerState.RUNNING
    await check_all_can_go(node, pods)


async def test_the_copy_holds_what_the_record_holds(node, make) -> None:
    sandbox_id, container_id = await running(node, make)
    for directory, record in (
        (f"sandboxes/{sandbox_id}", node.store.sandboxes[sandbox_id]),
        (f"containers/{container_id}", node.store.containers[container_id]),
    ):
        told = json.loads(Path(node.directory, directory, "record.json").read_text())
        assert told.keys() == record.values().keys()
        assert told["spec"] == record.spec


async def test_a_sandbox_whose_directory_is_gone(node, make) -> None:
    sandbox_id, container_id = await running(node, make)
    remove_tree(node.directory / "sandboxes" / sandbox_id)
    pods = await node.restart()
    assert pods.containers[container_id].state is ContainerState.RUNNING
    await check_all_can_go(node, pods)


@pytest.mark.parametrize("text", ["", "{", "[]", None])
async def test_a_damaged_copy_is_made_anew(node, make, text) -> None:
    sandbox_id, container_id = await running(node, make)
    for place in (f"sandboxes/{sandbox_id}", f"containers/{container_id}"):
        path = node.directory / place / "record.json"
        path.unlink()
        if text is not None:
            path.write_text(text)
    await node.restart()
    copies = [json.loads(path.read_text()) for path in node.directory.glob("*/*/record.json")]
    assert {copy["id"] for copy in copies} == {sandbox_id, container_id}


@pytest.mark.parametrize("name", ["hosts", "hostname", "resolv.conf"])
async def test_a_lost_file_of_a_pod_is_written_again(node, make, name) -> None:
    sandbox_id, _ = await running(node, make)
    path = node.directory / "sandboxes" / sandbox_id / name
    before = path.read_text()
    path.unlink()
    path.mkdir()
    (path / "inside").touch()
    await node.restart()
    assert path.read_text() == before
    path.unlink()
    await node.restart()
    assert path.read_text() == before
