"""Pods and containers on the kernel in memory: what a client sees, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from baustelle.bundle import ImageDefaults
from cri.api.runtime import v1
from cri.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from cri.sandbox.host import HostError, StartError, UnfitRequestError
from cri.sandbox.machine import ContainerState, SandboxState


async def test_whole_life(node, make):
    pods = node.pods
    sandbox_id = await pods.run_sandbox(make.pod(), "")
    sandbox = pods.sandbox(sandbox_id)
    assert sandbox.state is SandboxState.READY
    assert sandbox.addresses == ["10.0.0.2"]
    container_id = await pods.create_container(sandbox_id, make.container("sleep"))
    container = pods.container(container_id)
    assert container.state is ContainerState.CREATED
    await pods.start_container(container_id)
    assert container.state is ContainerState.RUNNING
    assert container.record.pid in node.kernel.processes
    await pods.stop_container(container_id, 10)
    assert container.state is ContainerState.EXITED
    assert (container.record.exit_code, container.record.signal, container.record.reason) == (
        143,
        15,
        "Error",
    )
    assert container.record.finished_at >= container.record.started_at >= container.record.created_at
    await pods.remove_container(container_id)
    assert pods.find_container(container_id) is None
    await pods.stop_sandbox(sandbox_id)
    assert sandbox.state is SandboxState.NOTREADY
    assert sandbox.addresses == []
    await pods.remove_sandbox(sandbox_id)
    assert node.left() == []


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [(("true",), 0, "Completed"), (("exit", "3"), 3, "Error")],
    ids=["true", "exit 3"],
)
async def test_end_by_itself(node, make, command, code, reason):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container(*command))
    await node.pods.start_container(container_id)
    container = node.pods.container(container_id)
    await make.eventually(container.ended.is_set)
    assert (container.record.exit_code, container.record.reason) == (code, reason)


async def test_program_that_is_not_there(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("nosuch"))
    with pytest.raises(StartError, match="nosuch"):
        await node.pods.start_container(container_id)
    record = node.pods.container(container_id).record
    assert (record.state, record.reason, record.exit_code) == ("exited", "StartError", 128)
    assert "nosuch" in record.message
    with pytest.raises(FailedPreconditionError, match="only a created container"):
        await node.pods.start_container(container_id)


async def test_stop_of_what_ignores_term_takes_the_grace_and_not_more(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("stubborn"))
    await node.pods.start_container(container_id)
    began = time.monotonic()
    await node.pods.stop_container(container_id, 0.2)
    assert 0.2 <= time.monotonic() - began < 1
    record = node.pods.container(container_id).record
    assert (record.exit_code, record.signal) == (137, 9)


async def test_a_second_stop_with_less_grace_cuts_the_first_short(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("stubborn"))
    await node.pods.start_container(container_id)
    slow = asyncio.create_task(node.pods.stop_container(container_id, 60))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(2):
        await node.pods.stop_container(container_id, 0)
        await slow
    assert node.kernel.calls.count("kill 15") == 1


async def test_stop_sandbox_kills_while_a_stop_waits(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("stubborn"))
    await node.pods.start_container(container_id)
    slow = asyncio.create_task(node.pods.stop_container(container_id, 60))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(2):
        await node.pods.remove_sandbox(sandbox_id)
        await slow
    assert node.left() == []


async def test_stop_signal_of_config_goes_before_the_image(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    config = make.container("sleep", stop_signal=v1.Signal.SIGUSR1)
    container_id = await node.pods.create_container(sandbox_id, config)
    await node.pods.start_container(container_id)
    await node.pods.stop_container(container_id, 5)
    assert node.pods.container(container_id).record.signal == 10


@pytest.mark.parametrize(("text", "number"), [("37", 37), ("sigrtmin+3", 37), ("SIGQUIT", 3), ("", 15)])
async def test_stop_signal_of_the_image(node, make, text, number):
    node.images.defaults = ImageDefaults(cmd=("sleep",), stop_signal=text)
    node.images.os = "linux"
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    await node.pods.start_container(container_id)
    await node.pods.stop_container(container_id, 5)
    assert node.pods.container(container_id).record.signal == number


async def test_a_stop_signal_that_there_is_not(node, make):
    node.images.defaults = ImageDefaults(cmd=("sleep",), stop_signal="SIGNOPE")
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    with pytest.raises(InvalidArgumentError, match=r"stop signal 'SIGNOPE': .* is no signal of"):
        await node.pods.create_container(sandbox_id, make.container("sleep"))
    node.images.defaults = ImageDefaults(cmd=("sleep",))
    unknown = make.container("sleep", stop_signal=v1.Signal(999))
    with pytest.raises(InvalidArgumentError, match="stop_signal 999"):
        await node.pods.create_container(sandbox_id, unknown)
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    container = node.pods.container(container_id)
    container.record = container.record.replace(stop_signal="SIGNOPE")  # a record that was damaged
    await node.pods.start_container(container_id)
    await node.pods.stop_container(container_id, 5)
    assert container.record.signal == 15


async def test_idempotent_on_what_never_was(node):
    await node.pods.stop_sandbox("nosuch")
    await node.pods.remove_sandbox("nosuch")
    await node.pods.stop_container("nosuch", 1)
    await node.pods.remove_container("nosuch")
    with pytest.raises(NotFoundError, match="nosuch"):
        await node.pods.start_container("nosuch")


async def test_idempotent_on_what_is_done(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    for _ in range(2):
        await node.pods.stop_sandbox(sandbox_id)
    for _ in range(2):
        await node.pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_names_are_unique(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    with pytest.raises(AlreadyExistsError, match=sandbox_id):
        await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    with pytest.raises(AlreadyExistsError, match=container_id):
        await node.pods.create_container(sandbox_id, make.container("sleep"))
    await node.pods.remove_sandbox(sandbox_id)
    await node.pods.run_sandbox(make.pod(), "")


async def test_simultaneous_calls_make_one_sandbox(node, make):
    ids = await asyncio.gather(*(node.pods.run_sandbox(make.pod(), "") for _ in range(5)))
    assert len(set(ids)) == 1
    assert len(node.kernel.jails) == 1


async def test_retry_after_a_deadline_gets_the_sandbox_that_was_made(node, make):
    impatient = asyncio.create_task(node.pods.run_sandbox(make.pod(), ""))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    await make.eventually(lambda: [s for s in node.pods.visible_sandboxes() if s.state is SandboxState.READY])
    (made,) = node.pods.sandboxes
    assert await node.pods.run_sandbox(make.pod(), "") == made
    # Heard now; from here on the name is taken.
    with pytest.raises(AlreadyExistsError):
        await node.pods.run_sandbox(make.pod(), "")


async def test_short_ids(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    assert node.pods.sandbox(sandbox_id[:8]).id == sandbox_id
    for number in range(17):
        await node.pods.run_sandbox(make.pod(f"other{number}"), "")
    first_digits = [other[0] for other in node.pods.sandboxes]
    shared = next(digit for digit in first_digits if first_digits.count(digit) > 1)
    with pytest.raises(InvalidArgumentError, match="ambiguous"):
        node.pods.find_sandbox(shared)


async def test_no_container_in_a_stopped_sandbox(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    waiting = await node.pods.create_container(sandbox_id, make.container("sleep", name="waiting"))
    await node.pods.stop_sandbox(sandbox_id)
    with pytest.raises(FailedPreconditionError, match="notready"):
        await node.pods.create_container(sandbox_id, make.container("sleep"))
    with pytest.raises(FailedPreconditionError, match="not ready"):
        await node.pods.start_container(waiting)


async def test_unknown_handler_and_image(node, make):
    with pytest.raises(InvalidArgumentError, match="'kata' is not configured; there is: linux"):
        await node.pods.run_sandbox(make.pod(), "kata")
    sandbox_id = await node.pods.run_sandbox(make.pod(), "linux")
    config = make.container("sleep")
    config.image = v1.ImageSpec(image="other")
    with pytest.raises(NotFoundError, match="other"):
        await node.pods.create_container(sandbox_id, config)


async def test_undo_at_every_call_of_run_and_create(node, make):
    """Let every single kernel call fail once: the error is told, and nothing is left."""

    async def whole() -> None:
        sandbox_id = await node.pods.run_sandbox(make.pod(), "")
        mounts = [v1.Mount(container_path=f"/m{n}", host_path="/") for n in range(2)]
        await node.pods.create_container(sandbox_id, make.container("sleep", mounts=mounts))

    await whole()
    calls = list(node.kernel.calls)
    await node.pods.remove_sandbox(next(iter(node.pods.sandboxes)))
    assert len(calls) >= 7
    for index, call in enumerate(calls):
        node.kernel.count_from_here(fail_at=index)
        with pytest.raises(HostError, match="injected"):
            await whole()
        node.kernel.count_from_here()
        for sandbox_id in list(node.pods.sandboxes):
            assert not node.pods.containers, f"a container survived the failure of {call}"
            await node.pods.remove_sandbox(sandbox_id)
        assert node.left() == [], f"after the failure of call {index}, {call}"


async def test_removal_can_be_repeated_after_a_failure(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    await node.pods.start_container(container_id)
    for index in range(20):
        node.kernel.count_from_here(fail_at=index)
        try:
            await node.pods.remove_sandbox(sandbox_id)
        except (HostError, OSError):
            continue
        break
    assert node.left() == []


async def test_warden_death_makes_the_sandbox_not_ready(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    await node.pods.start_container(container_id)
    node.host.kill_warden(sandbox_id)
    container = node.pods.container(container_id)
    await make.eventually(lambda: container.state is ContainerState.EXITED)
    assert node.pods.sandbox(sandbox_id).state is SandboxState.NOTREADY
    assert (container.state, container.record.exit_code) == (ContainerState.EXITED, 255)
    assert "warden" in container.record.message
    assert node.pods.sandbox(sandbox_id).addresses == [], "the address is somebody else's from now on"
    await node.pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_removal_waits_for_a_container_that_is_being_created(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    reached, go_on = asyncio.Event(), asyncio.Event()
    create = node.host.create_container

    async def slow(spec: object, first: object = None) -> None:
        reached.set()
        await go_on.wait()
        await create(spec, first)

    node.host.create_container = slow
    creating = asyncio.create_task(node.pods.create_container(sandbox_id, make.container("sleep")))
    await reached.wait()
    removing = asyncio.create_task(node.pods.remove_sandbox(sandbox_id))
    await asyncio.sleep(0.05)
    assert not removing.done()
    go_on.set()
    # The jail is gone by now, so the creation fails; either way nothing may be left.
    await asyncio.gather(creating, return_exceptions=True)
    await removing
    assert node.left() == []


async def test_a_volume_that_is_not_there_is_made(node, make, tmp_path):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    wanted = tmp_path / "not" / "there"
    mounts = [v1.Mount(container_path="/volume", host_path=str(wanted))]
    await node.pods.create_container(sandbox_id, make.container("sleep", mounts=mounts))
    assert wanted.is_dir()


async def test_secrets_on_disk_are_for_root_only(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    envs = [v1.KeyValue(key="PASSWORD", value=b"secret")]
    await node.pods.create_container(sandbox_id, make.container("sleep", envs=envs))
    for path in node.directory.glob("state.db*"):
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (*node.directory.glob("containers/*"), *node.directory.glob("sandboxes/*")):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_a_retry_of_create_joins_though_its_termination_log_differs(node, make, tmp_path):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")

    def config(name: str) -> v1.ContainerConfig:
        mount = v1.Mount(container_path="/dev/termination-log", host_path=str(tmp_path / name))
        return make.container("sleep", mounts=[mount])

    impatient = asyncio.create_task(node.pods.create_container(sandbox_id, config("first")))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    container_id = await node.pods.create_container(sandbox_id, config("second"))
    assert list(node.pods.containers) == [container_id]


async def test_a_lost_sandbox_is_not_ready_even_if_it_cannot_be_cleaned_up(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    node.kernel.count_from_here(fail_at=0)
    node.host.kill_warden(sandbox_id)
    sandbox = node.pods.sandbox(sandbox_id)
    await make.eventually(lambda: sandbox.state is SandboxState.NOTREADY)
    await make.eventually(lambda: node.kernel.calls)
    node.kernel.count_from_here()
    await node.pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_a_warden_that_dies_while_its_sandbox_is_made(node, make):
    attach = node.network.attach

    async def dying(spec: object, warden: object) -> object:
        addresses = await attach(spec, warden)
        node.host.kill_warden(spec.id)
        return addresses

    node.network.attach = dying
    with pytest.raises(HostError, match="died"):
        await node.pods.run_sandbox(make.pod(), "")
    assert node.left() == []


async def test_a_jail_stays_as_long_as_its_network_cannot_be_taken_back(node, make):
    """It would end with an interface inside, and FreeBSD is not safe against that."""
    attach, detach = node.network.attach, node.network.detach

    async def refuse(sandbox_id: str) -> None:
        raise HostError("detach", f"sandbox {sandbox_id}", "by the test")

    async def fail_late(spec: object, warden: object) -> object:
        await attach(spec, warden)
        raise HostError("attach", "the pod", "by the test")

    node.network.attach, node.network.detach = fail_late, refuse
    with pytest.raises(HostError, match="attach the pod"):
        await node.pods.run_sandbox(make.pod(), "")
    assert [one for one in node.left() if one.startswith("jail")]
    (sandbox,) = node.pods.visible_sandboxes()
    assert sandbox.state is SandboxState.NOTREADY
    with pytest.raises(HostError, match="by the test"):
        await node.pods.stop_sandbox(sandbox.id)
    node.network.attach, node.network.detach = attach, detach
    await node.pods.remove_sandbox(sandbox.id)
    assert node.left() == []


async def test_what_may_be_a_secret_is_not_in_the_error(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    envs = [v1.KeyValue(key="PASSWORD", value=b"hunter2\0x")]
    with pytest.raises(InvalidArgumentError, match="'PASSWORD' has a NUL") as refused:
        await node.pods.create_container(sandbox_id, make.container("sleep", envs=envs))
    assert "hunter2" not in str(refused.value)


async def test_what_never_started_gives_back_what_it_had_with_its_pod(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    container_id = await node.pods.create_container(sandbox_id, make.container("sleep"))
    given_back = []
    stop = node.host.stop_container

    async def note(spec):
        given_back.append(spec.id)
        await stop(spec)

    node.host.stop_container = note
    await node.pods.stop_sandbox(sandbox_id)
    assert given_back == [container_id]
    await node.pods.remove_sandbox(sandbox_id)
    assert node.left() == []


async def test_a_volume_that_cannot_be_made_on_the_node(node, make, tmp_path):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    (tmp_path / "file").touch()
    mount = v1.Mount(container_path="/m", host_path=str(tmp_path / "file/below"))
    with pytest.raises(UnfitRequestError, match="to be mounted on /m: Not a directory"):
        await node.pods.create_container(sandbox_id, make.container("sleep", mounts=[mount]))
    assert not node.pods.containers


async def test_what_an_image_declares_is_mounted(node, make, tmp_path):
    """Unless the request has a mount there; it goes with its container."""
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    mounts = [
        v1.Mount(container_path="/data/", host_path=str(tmp_path)),
        v1.Mount(container_path="/i", image=v1.ImageSpec(image="image"), readonly=True),
    ]
    config = make.container("sleep", mounts=mounts)
    config.image = v1.ImageSpec(image="declared")
    container = node.pods.container(await node.pods.create_container(sandbox_id, config))
    found = {mount.target: mount.source for mount in container.spec.mounts}
    assert found["/data"] == str(tmp_path)
    assert found["/logs"] == f"{container.spec.directory}/volumes/1"
    assert Path(found["/logs"]).is_dir()
    assert container.config.mounts[1].image.image_ref == "sha256:1"
    await node.pods.remove_container(container.id)
    assert not Path(container.spec.directory).exists()
