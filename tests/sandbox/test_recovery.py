"""A daemon dies and another starts: what it finds is true."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from baustelle.removal import remove_tree
from cri.sandbox import trash
from cri.sandbox.machine import ContainerState, SandboxState


async def running(node, make, *command: str) -> tuple[str, str]:
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container(*command))
    await node.pods.start_container(container_id)
    return sandbox_id, container_id


async def test_what_runs_is_found_running(node, make):
    _, container_id = await running(node, make, "sleep")
    before = node.pods.container(container_id).record
    pods = await node.restart()
    assert pods.container(container_id).record == before
    await pods.stop_container(container_id, 5)
    assert pods.container(container_id).record.exit_code == 143


async def test_what_ended_meanwhile_shows_its_real_exit_code(node, make):
    _, container_id = await running(node, make, "sleep")
    pid = node.pods.container(container_id).record.pid
    await node.crash()
    node.kernel.kill(pid, 11)
    pods = await node.start()
    container = pods.container(container_id)
    assert container.state is ContainerState.EXITED
    assert (container.record.exit_code, container.record.signal) == (139, 11)


async def test_a_warden_that_died_meanwhile(node, make):
    sandbox_id, container_id = await running(node, make, "sleep")
    await node.crash()
    node.host.kill_warden(sandbox_id)
    pods = await node.start()
    assert pods.sandbox(sandbox_id).state is SandboxState.NOTREADY
    assert pods.container(container_id).record.exit_code == 255
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_an_exit_record_outlives_its_warden(node, make):
    sandbox_id, container_id = await running(node, make, "sleep")
    pid = node.pods.container(container_id).record.pid
    await node.crash()
    node.kernel.kill(pid, 2)
    node.host.kill_warden(sandbox_id)
    pods = await node.start()
    assert pods.container(container_id).record.exit_code == 130


async def test_half_made_sandbox_is_undone(node, make):
    """The daemon dies in the middle of RunPodSandbox: the jail is there, the record says CREATING."""
    attach = node.network.attach
    reached = asyncio.Event()

    async def hang(*args: object) -> list[str]:
        reached.set()
        await asyncio.sleep(3600)
        return []

    node.network.attach = hang
    task = asyncio.create_task(node.pods.run_sandbox(make.pod(), ""))
    await reached.wait()
    store = node.store
    record = next(iter(store.sandboxes.values()))
    assert record.state == "creating"
    assert not list(node.pods.visible_sandboxes())
    # A kill -9 gives no undo a chance: the work is left hanging where it is.
    (hanging,) = (running.task for running in node.pods._making._running.values())
    node.pods._making._running.clear()
    await node.crash()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    node.network.attach = attach
    await node.start()
    assert node.left() == []
    assert await node.pods.run_sandbox(make.pod(), "")
    hanging.cancel()
    await asyncio.wait([hanging])


async def test_a_ready_sandbox_without_a_network_was_being_stopped(node, make):
    """The daemon dies in the middle of StopPodSandbox: the network is given back, the jail is there."""
    sandbox_id, container_id = await running(node, make, "sleep")
    await node.network.detach(sandbox_id)
    pods = await node.restart()
    assert pods.sandbox(sandbox_id).state is SandboxState.NOTREADY
    assert pods.container(container_id).record.state == "exited"


async def test_jails_that_no_record_names_are_removed(node, make):
    await node.crash()
    node.kernel.jail_set("cstranger", vnet=True)
    await node.start()
    assert node.kernel.clean()


async def test_a_start_that_the_daemon_did_not_live_to_write_down(node, make):
    _, container_id = await running(node, make, "sleep")
    record = node.pods.container(container_id).record
    await node.store.save(record.replace(state="created", pid=0, started_at=0, credentials=None))
    pods = await node.restart()
    assert pods.container(container_id).record == record


async def test_an_unwritten_start_whose_warden_died_too(node, make):
    sandbox_id, container_id = await running(node, make, "sleep")
    record = node.pods.container(container_id).record
    await node.store.save(record.replace(state="created", pid=0, started_at=0))
    await node.crash()
    node.kernel.kill(record.pid, 2)
    node.host.kill_warden(sandbox_id)
    pods = await node.start()
    assert pods.container(container_id).record.exit_code == 130


async def test_a_container_without_a_sandbox_does_not_keep_the_daemon_from_starting(node, make):
    sandbox_id, container_id = await running(node, make, "sleep")
    await node.store.delete(node.store.sandboxes[sandbox_id])
    remove_tree(node.directory / "sandboxes" / sandbox_id)
    pods = await node.restart()
    assert pods.find_container(container_id) is None
    assert container_id not in node.store.containers
    assert not (node.directory / "containers" / container_id).exists()


async def test_what_cannot_be_undone_is_shown_and_can_be_removed(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    await node.store.save(node.store.sandboxes[sandbox_id].replace(state="creating"))
    await node.crash()
    node.kernel.count_from_here(fail_at=0)
    pods = await node.start()
    assert [sandbox.state for sandbox in pods.visible_sandboxes()] == [SandboxState.NOTREADY]
    node.kernel.count_from_here()
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_a_process_that_runs_though_its_record_says_it_ended_is_killed(node, make):
    _, container_id = await running(node, make, "sleep")
    record = node.pods.container(container_id).record
    await node.store.save(record.replace(state="exited", exit_code=128, reason="StartError"))
    await node.restart()
    assert record.pid not in node.kernel.processes


async def test_an_end_right_after_the_daemon_came_back_is_not_lost(node, make):
    _, container_id = await running(node, make, "sleep")
    record = node.pods.container(container_id).record
    await node.store.save(record.replace(state="created", pid=0, started_at=0))
    await node.crash()
    (warden,) = node.host.wardens.values()
    states = warden.containers

    async def ending_meanwhile() -> object:
        known = await states()
        node.kernel.kill(record.pid, 9)
        return known

    warden.containers = ending_meanwhile
    pods = await node.start()
    await asyncio.wait_for(pods.container(container_id).ended.wait(), 5)
    assert pods.container(container_id).record.exit_code == 137


async def test_half_made_container_is_undone(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    await node.store.save(node.store.containers[container_id].replace(state="creating"))
    pods = await node.restart()
    assert pods.find_container(container_id) is None
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


class CrashError(Exception):
    """The daemon dies here."""


async def ended(node, make) -> tuple[str, str]:
    sandbox_id, container_id = await running(node, make, "sleep")
    await node.pods.stop_container(container_id, 5)
    return sandbox_id, container_id


async def killed_in_removal(node, container_id: str) -> None:
    with pytest.raises(CrashError):
        await node.pods.remove_container(container_id)


async def test_a_removal_whose_record_did_not_go_is_finished(node, make, monkeypatch):
    """The daemon dies right after the answer, before the record is gone from disk."""
    sandbox_id, container_id = await ended(node, make)
    put = node.store._writer.put
    monkeypatch.setattr(node.store._writer, "put", lambda _: None)
    await node.pods.remove_container(container_id)
    assert container_id not in node.store.containers
    await asyncio.sleep(trash.PAUSE * 2)
    assert [path.name.partition(".")[0] for path in (node.directory / "removed").iterdir()] == [container_id]
    monkeypatch.setattr(node.store._writer, "put", put)
    pods = await node.restart()
    assert container_id not in pods.containers
    assert container_id not in node.store.containers
    await make.eventually(lambda: not list((node.directory / "removed").iterdir()))
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_a_removal_is_finished_though_not_even_the_end_was_written_down(node, make, monkeypatch):
    sandbox_id, container_id = await running(node, make, "sleep")
    put = node.store._writer.put
    handled = node.store._handled
    monkeypatch.setattr(
        node.store._writer, "put", lambda change: asyncio.get_running_loop().call_soon(handled, [change])
    )
    await node.pods.stop_container(container_id, 5)
    monkeypatch.setattr(node.store._writer, "put", lambda _: None)
    await node.pods.remove_container(container_id)
    monkeypatch.setattr(node.store._writer, "put", put)
    pods = await node.restart()
    assert container_id not in pods.containers
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


@pytest.mark.parametrize("where", ["host", "trash"])
async def test_an_ended_container_that_was_being_removed_is_there_still(node, make, monkeypatch, where):
    """It has ended as before, and is removed when somebody asks for it again."""
    sandbox_id, container_id = await ended(node, make)
    before = node.pods.container(container_id).record

    def die(*_: object) -> None:
        raise CrashError

    if where == "host":
        monkeypatch.setattr(node.host, "remove_container", die)
    else:
        monkeypatch.setattr(trash.Trash, "out_of_sight", die)
    await killed_in_removal(node, container_id)
    monkeypatch.undo()
    pods = await node.restart()
    assert pods.container(container_id).record == before
    await pods.remove_container(container_id)
    assert container_id not in pods.containers
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_what_was_never_started_is_not_started_after_half_a_removal(node, make, monkeypatch):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))

    def die(*_: object) -> None:
        raise CrashError

    monkeypatch.setattr(trash.Trash, "out_of_sight", die)
    await killed_in_removal(node, container_id)
    monkeypatch.undo()
    pods = await node.restart()
    assert container_id not in pods.containers
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_without_a_place_for_what_is_removed_the_record_goes_first(node, make):
    sandbox_id, container_id = await ended(node, make)
    (node.directory / "removed").rmdir()
    await node.pods.remove_container(container_id)
    pods = await node.restart()
    assert container_id not in pods.containers
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_a_place_that_cannot_be_read_keeps_no_daemon_from_starting(node, make, monkeypatch):
    _, container_id = await running(node, make, "sleep")
    await node.crash()

    def refuse(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(trash.Trash, "names", refuse)
    pods = await node.start()
    assert pods.container(container_id).state is ContainerState.RUNNING
