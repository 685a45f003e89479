"""Whatever a start stumbles over: the container has ended, says so, runs nowhere, and can be removed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random

import pytest

from cri.sandbox import container as containers
from cri.sandbox.host import (
    DisconnectedError,
    HostError,
    StartError,
    UnknownContainerError,
    WardenGoneError,
    WardenSilentError,
)
from cri.sandbox.machine import ContainerState

PATIENCE = 2.0

ERRORS = (
    HostError("mount on", "/data", "Not a directory", errno.ENOTDIR),
    StartError("exec", '"nothing"', "no such file or directory", errno.ENOENT),
    UnknownContainerError("find", "container c", "its warden has not started it"),
    WardenGoneError("reach", "warden", "it has ended"),
    WardenSilentError("reach", "warden", "it has said nothing"),
    OSError(errno.EIO, "Input/output error", "/log"),
    ValueError("a value"),
    KeyError("a key"),
    TypeError("a type"),
    AssertionError("an assertion"),
    MemoryError(),
    RecursionError("too deep"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ExceptionGroup("two", [ValueError("one"), KeyError("other")]),
    TimeoutError(),
    asyncio.CancelledError(),
)


def names(error: BaseException) -> str:
    return type(error).__name__


async def created(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    return node.pods.sandboxes[sandbox_id], node.pods.containers[container_id]


async def check(node, sandbox, container, *, code: int = 128, reason: str = "StartError") -> None:
    async with asyncio.timeout(PATIENCE):
        await container.ended.wait()
        assert container.state is ContainerState.EXITED
        assert (container.record.exit_code, container.record.reason) == (code, reason)
        assert not node.kernel.processes
        await node.pods.stop_container(container.id, 30)
        await node.pods.remove_container(container.id)
        await node.pods.stop_sandbox(sandbox.id)
        await node.pods.remove_sandbox(sandbox.id)
    assert node.left() == []


@pytest.mark.parametrize("error", ERRORS, ids=names)
@pytest.mark.parametrize("runs", [False, True], ids=["nothing runs", "it runs"])
async def test_the_warden_raises(node, make, monkeypatch, error, runs) -> None:
    sandbox, container = await created(node, make)
    start = sandbox.warden.start

    async def fail(spec, log=None):
        if runs and not isinstance(error, StartError | WardenGoneError | UnknownContainerError):
            await start(spec, log)
        raise error

    monkeypatch.setattr(sandbox.warden, "start", fail)
    with pytest.raises(type(error)):
        await container.start()
    await check(node, sandbox, container)


@pytest.mark.parametrize("error", ERRORS, ids=names)
async def test_the_log_cannot_be_opened(node, make, monkeypatch, error) -> None:
    sandbox, container = await created(node, make)

    async def fail(directory: str, path: str) -> None:
        raise error

    monkeypatch.setattr(containers.container_log, "open_log", fail)
    with pytest.raises(type(error)):
        await container.start()
    await check(node, sandbox, container)


@pytest.mark.parametrize("error", ERRORS, ids=names)
async def test_it_cannot_be_written_down_that_it_runs(node, make, monkeypatch, error) -> None:
    sandbox, container = await created(node, make)
    follow = node.store.follow
    failing = [error]

    async def fail(**changes) -> None:
        if failing:
            raise failing.pop()
        await follow(**changes)

    monkeypatch.setattr(node.store, "follow", fail)
    with pytest.raises(type(error)):
        await container.start()
    await check(node, sandbox, container)


@pytest.mark.parametrize("error", [one for one in ERRORS if isinstance(one, Exception)], ids=names)
async def test_nor_can_what_it_had_be_given_back(node, make, monkeypatch, error) -> None:
    sandbox, container = await created(node, make)
    stop = node.host.stop_container
    failing = [error]

    async def start(spec, log=None):
        raise StartError("exec", "nothing", "no")

    async def fail(spec) -> None:
        if failing:
            raise failing.pop()
        await stop(spec)

    monkeypatch.setattr(sandbox.warden, "start", start)
    monkeypatch.setattr(node.host, "stop_container", fail)
    with pytest.raises(StartError):
        await container.start()
    await check(node, sandbox, container)


async def test_a_client_that_goes_away_changes_nothing(node, make) -> None:
    sandbox, container = await created(node, make)
    calling = asyncio.create_task(node.pods.start_container(container.id))
    await asyncio.sleep(0)
    calling.cancel()
    await make.eventually(lambda: container.state is ContainerState.RUNNING)
    await node.pods.stop_container(container.id, 0)
    await check(node, sandbox, container, code=137, reason="Error")


async def test_a_daemon_that_ends_leaves_a_start_to_the_next_one(node, make, monkeypatch) -> None:
    sandbox, container = await created(node, make)
    start = sandbox.warden.start

    async def disconnected(spec, log=None):
        await start(spec, log)
        raise DisconnectedError("wait for", "warden", "the daemon is stopping")

    monkeypatch.setattr(sandbox.warden, "start", disconnected)
    with pytest.raises(DisconnectedError):
        await container.start()
    assert container.state is ContainerState.STARTING
    pods = await node.restart()
    assert pods.containers[container.id].state is ContainerState.RUNNING
    assert len(node.kernel.processes) == 1


@pytest.mark.parametrize("seed", range(100))
async def test_a_stop_meets_a_start(node, make, monkeypatch, seed) -> None:
    moment = random.Random(seed)
    sandbox, container = await created(node, make)
    start = sandbox.warden.start

    async def slow(spec, log=None):
        for _ in range(moment.randrange(4)):
            await asyncio.sleep(0)
        started = await start(spec, log)
        for _ in range(moment.randrange(4)):
            await asyncio.sleep(0)
        return started

    monkeypatch.setattr(sandbox.warden, "start", slow)
    starting = asyncio.create_task(container.start())
    for _ in range(moment.randrange(8)):
        await asyncio.sleep(0)
    if container.state is ContainerState.CREATED:
        await asyncio.sleep(0)  # a stop of what has not been begun is no stop of it
    stop = node.pods.stop_container(container.id, 0) if seed % 2 else node.pods.stop_sandbox(sandbox.id)
    async with asyncio.timeout(PATIENCE):
        await stop
        with contextlib.suppress(HostError):
            await starting
    assert container.state is ContainerState.EXITED
    assert (container.record.exit_code, container.record.reason) in ((128, "StartError"), (137, "Error"))
    assert not node.kernel.processes
    code, reason = container.record.exit_code, container.record.reason
    await check(node, sandbox, container, code=code, reason=reason)


async def test_a_start_that_hangs_is_ended_by_a_stop(node, make, monkeypatch) -> None:
    sandbox, container = await created(node, make)

    async def hang(spec, log=None):
        await asyncio.Event().wait()

    monkeypatch.setattr(containers, "START_KILL_PATIENCE", 0.05)
    monkeypatch.setattr(sandbox.warden, "start", hang)
    starting = asyncio.create_task(container.start())
    await make.eventually(lambda: container.state is ContainerState.STARTING)
    await node.pods.stop_container(container.id, 60)
    await check(node, sandbox, container)
    starting.cancel()
    await asyncio.wait([starting])


async def test_what_the_warden_does_not_know_does_not_run(node, make) -> None:
    sandbox, container = await created(node, make)
    await container.start()
    await sandbox.warden.forget(container.id)
    node.kernel.processes.clear()
    async with asyncio.timeout(PATIENCE):
        await node.pods.stop_container(container.id, 0)
    assert container.state is ContainerState.EXITED
    await check(node, sandbox, container, code=255, reason="Error")
