"""Whatever call fails: what was begun is taken back, what is removed can be removed again, and volumes are not touched."""

from __future__ import annotations

import errno
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cri.sandbox import small_files, wire
from cri.sandbox.fake import InjectedError
from cri.sandbox.freebsd import jails
from cri.sandbox.freebsd.limits import limits_of
from cri.sandbox.host import HalfUpdatedError, HostError, LimitRefusedError, Measured
from cri.sandbox.spec import ContainerSpec, DeviceSpec, Resources, SandboxSpec, Security

RESOURCES = Resources(
    cpu_quota=50_000, cpu_period=100_000, memory_limit=1 << 26, cpuset_cpus="0-1", unified={"pids.max": "9"}
)


async def failures(
    machine, operation: Callable[[], Awaitable[object]], fail_with: int = errno.EIO
) -> AsyncIterator[tuple[bool, str]]:
    """Run an operation with each of its calls failing, one after the other; whether it succeeded all the same, and the call."""
    raw = []
    for index in itertools.count():
        machine.kernel.count_from_here(index, fail_with=fail_with)
        succeeded = False
        try:
            await operation()
            succeeded = True
        except HostError:
            pass
        except InjectedError as error:
            raw.append(str(error))
        calls = list(machine.kernel.calls)
        machine.kernel.count_from_here()
        if index >= len(calls):
            assert succeeded
            break
        yield succeeded, f"call {index}: {calls[index]}"
    assert not raw, "the port raises HostError only"


def every_kind_of_mount(machine, make) -> tuple:
    return (
        make.mount(machine.volume("data"), "/data"),
        make.mount(machine.volume("nested"), "/data/below/nested", readonly=True),
        make.mount(machine.volume("hosts", file=True), "/etc/hosts"),
        make.mount(
            machine.volume("token", file=True), "/var/run/secrets/token", readonly=True, options=("noexec",)
        ),
        make.mount(machine.volume("log", file=True), "/dev/termination-log"),
        make.mount("", "/scratch", tmpfs=True),
        make.mount("", "/image", image_layers=(make.chain,), image_path="etc"),
    )


KINDS = {
    "plain": {},
    "full": {
        "resources": RESOURCES,
        "devices": (DeviceSpec("/dev/bpf", "/dev/bpf"), DeviceSpec("/dev/usb/1", "/dev/thing", "r")),
        "security": Security(masked_paths=("/etc/passwd", "/bin", "/none")),
    },
    "read-only": {"security": Security(readonly_root=True), "resources": RESOURCES},
    "privileged": {"security": Security(privileged=True)},
    "linux": {"os": "linux", "resources": RESOURCES},
}


@pytest.fixture(params=KINDS)
def new_container(request, machine, make) -> Callable[[SandboxSpec], ContainerSpec]:
    def new(sandbox: SandboxSpec) -> ContainerSpec:
        mounts = () if request.param == "plain" else every_kind_of_mount(machine, make)
        return machine.container(sandbox, mounts=mounts, **KINDS[request.param])

    return new


@pytest.fixture
async def sandbox(machine) -> SandboxSpec:
    spec = machine.sandbox(privileged=True)
    await machine.host.create_sandbox(spec)
    return spec


async def test_create_sandbox(machine) -> None:
    before = machine.everything()
    made = []

    async def create() -> None:
        made[:] = [machine.sandbox(hostname="h")]
        made.append(await machine.host.create_sandbox(made[0]))

    count = 0
    async for succeeded, call in failures(machine, create):
        count += 1
        if succeeded:
            await machine.host.stop_sandbox(*made)
        # Of a sandbox that failed too, as the life cycle does it.
        await machine.host.remove_sandbox(made[0])
        assert machine.everything() == before, call
    assert count > 10


async def test_a_sandbox_without_a_warden_is_no_sandbox(machine) -> None:
    before = machine.everything()
    machine.spawner.failing = True
    spec = machine.sandbox()
    with pytest.raises(HostError, match="no process can be had"):
        await machine.host.create_sandbox(spec)
    await machine.host.remove_sandbox(spec)
    assert machine.everything() == before


async def test_create_container(machine, sandbox, new_container) -> None:
    new_container(sandbox)  # makes the volumes
    before = machine.everything()
    made = []

    async def create() -> None:
        made[:] = [new_container(sandbox)]
        await machine.host.create_container(made[0])

    count = 0
    async for succeeded, call in failures(machine, create):
        count += 1
        if succeeded:
            await machine.remove(made[0])
        assert machine.everything() == before, call
        assert not Path(made[0].directory, "rootfs").exists(), call
    assert count > 10


@pytest.mark.parametrize("method", ["stop_container", "remove_container"])
async def test_remove_container(machine, sandbox, new_container, method: str) -> None:
    new_container(sandbox)
    before = machine.everything()
    spec = None

    async def remove() -> None:
        nonlocal spec
        if spec is None:
            spec = new_container(sandbox)
            fail_at = machine.kernel.fail_at
            machine.kernel.count_from_here()
            await machine.host.create_container(spec)
            machine.kernel.spawn(jails.container_name(spec))
            machine.kernel.count_from_here(*fail_at)
        await getattr(machine.host, method)(spec)

    async for _, call in failures(machine, remove):
        assert spec is not None
        await machine.host.stop_container(spec)
        await machine.remove(spec)
        await machine.remove(spec)
        assert machine.everything() == before, call
        spec = None


async def test_create_and_undo_fail(machine, sandbox, make) -> None:
    """Then the life cycle, or the next daemon, removes the container."""
    mounts = every_kind_of_mount(machine, make)
    before = machine.everything()
    first = machine.container(sandbox, mounts=mounts, resources=RESOURCES)
    machine.kernel.count_from_here()
    await machine.host.create_container(first)
    length = len(machine.kernel.calls)
    await machine.remove(first)
    for one in range(1, length, 4):
        for more in (1, 2, 3, 5, 8, 13):
            spec = machine.container(sandbox, mounts=mounts, resources=RESOURCES)
            machine.kernel.count_from_here(one, one + more)
            with pytest.raises((HostError, InjectedError)):
                await machine.host.create_container(spec)
            machine.kernel.count_from_here()
            await machine.remove(spec)
            assert machine.everything() == before, (one, more)


async def test_stop_sandbox(machine) -> None:
    before = machine.everything()
    made: tuple | None = None

    async def stop() -> None:
        nonlocal made
        if made is None:
            fail_at = machine.kernel.fail_at
            machine.kernel.count_from_here()
            spec = machine.sandbox()
            warden = await machine.host.create_sandbox(spec)
            made = (spec, warden)
            machine.kernel.rctl_add(f"jail:{jails.pod_name(spec.id)}:maxproc:deny=5")
            machine.kernel.count_from_here(*fail_at)
        await machine.host.stop_sandbox(*made)

    async for _, call in failures(machine, stop):
        assert made is not None
        await machine.host.stop_sandbox(made[0], None)
        await machine.host.remove_sandbox(made[0])
        await machine.host.remove_sandbox(made[0])
        assert machine.everything() == before, call
        made = None


async def test_an_update_is_whole_or_put_back(machine, sandbox) -> None:
    """Whichever call fails once, and at no moment is the container without limits."""
    spec = machine.container(sandbox, resources=RESOURCES)
    await machine.host.create_container(spec)
    name = jails.container_name(spec)
    sizes = itertools.cycle([1 << 27, 1 << 28])
    state = machine.everything()

    def watch(_: str) -> None:
        kinds = {str(rule).split(":")[2] for rule in machine.kernel._rules if f":{name}:" in str(rule)}
        assert kinds >= {"memoryuse", "swapuse", "maxproc", "pcpu"}

    machine.kernel.on_call = watch

    async def update() -> None:
        await machine.host.update_container(
            spec, Resources(memory_limit=next(sizes), unified={"pids.max": "7"}, cpuset_cpus="2")
        )

    failed = 0
    async for succeeded, call in failures(machine, update):
        assert not succeeded, call
        assert machine.everything() == state, call
        failed += 1
    assert failed > 8
    await machine.host.update_container(spec, Resources(memory_limit=1 << 29))
    rules = machine.kernel.rctl_rules(f"jail:{name}:memoryuse")
    assert rules == [f"jail:{name}:memoryuse:sigkill={1 << 29}"]


async def test_what_cannot_be_put_back_is_told(machine, sandbox) -> None:
    """As when the kernel takes nothing any more from some call on."""
    spec = machine.container(sandbox, resources=RESOURCES)
    await machine.host.create_container(spec)
    name = jails.container_name(spec)
    told = set()
    for first in range(20):
        machine.kernel.count_from_here(*range(first, first + 50))
        changes = Resources(memory_limit=1 << 28, unified={"pids.max": "7"}, cpuset_cpus="2")
        with pytest.raises(HostError) as caught:
            await machine.host.update_container(spec, changes)
        machine.kernel.count_from_here()
        has = limits_of(machine.kernel.rctl_rules(f"jail:{name}:"))
        jail = machine.kernel.jail(name)
        if isinstance(caught.value, HalfUpdatedError):
            told.add(first)
            shown = wire.merged(RESOURCES, caught.value.changed)
            assert shown.cpuset_cpus == ("2" if jail.cpus == {2} else "0-1")
            least = int(shown.unified["pids.max"]), shown.memory_limit
            assert least <= (int(has.unified["pids.max"]), has.memory_limit)
        else:
            assert (has.memory_limit, has.unified) == (1 << 26, {"pids.max": "9"})
            assert jail.cpus == {0, 1}
        machine.kernel.jail_cpus(jail.jid, {0, 1})
        await machine.host.update_container(spec, Resources(memory_limit=1 << 26))
        if first > 8:
            break
    assert told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_swap_limit": 5}, "set memory_swap_limit_in_bytes to no less"),
        (
            {"memory_limit": 1 << 28, "memory_swap_limit": 1 << 27},
            "set memory_swap_limit_in_bytes to no less",
        ),
        ({"unified": {"pids.max": "some"}}, "a number or max was expected"),
        ({"unified": {"pids.max": "\u0663"}}, "a number or max was expected"),
        ({"unified": {"memory.high": "1"}}, "this system has nothing like it"),
        ({"memory_limit": 1 << 27, "cpuset_cpus": "9"}, "cpuset_cpus 9"),
        ({"cpuset_cpus": "2", "memory_limit": 1 << 70}, "limit jail"),
        ({"cpuset_cpus": "2", "cpu_quota": 1 << 62}, "limit jail"),
    ],
)
async def test_an_update_that_is_refused(machine, sandbox, changes, message) -> None:
    spec = machine.container(sandbox, resources=RESOURCES)
    await machine.host.create_container(spec)
    state = machine.everything()
    with pytest.raises(LimitRefusedError, match=message):
        await machine.host.update_container(spec, Resources(**changes))
    assert machine.everything() == state


@pytest.mark.parametrize("question", ["condition", "find_warden", "leftovers"])
async def test_questions_fail_as_the_port_has_it(machine, sandbox, question: str) -> None:
    spec = machine.container(sandbox, resources=RESOURCES)
    await machine.host.create_container(spec)
    state = machine.everything()
    arguments = {
        "condition": [],
        "find_warden": [sandbox],
        "leftovers": [[sandbox.id], [spec.id]],
    }[question]
    async for _, call in failures(machine, lambda: getattr(machine.host, question)(*arguments)):
        assert machine.everything() == state, call


async def test_what_is_used_fails_one_by_one(machine, sandbox) -> None:
    spec = machine.container(sandbox, resources=RESOURCES)
    await machine.host.create_container(spec)
    state = machine.everything()
    failed = 0
    asked = [Measured(sandbox, None, [spec], interfaces={"host": "eth0"})]
    while True:
        machine.kernel.count_from_here(failed)
        found = await machine.host.usages(asked)
        machine.kernel.count_from_here()
        assert found.keys() == {spec.id, sandbox.id}
        assert machine.everything() == state
        if not any(isinstance(one, HostError) for one in found.values()):
            break
        failed += 1
    assert failed == 6, "two jails, their processes, the interfaces, and racct of both"


async def test_a_full_disk(machine, sandbox, make, monkeypatch) -> None:
    """Whichever of the files cannot be written that the warden reads."""
    mounts = every_kind_of_mount(machine, make)
    before = machine.everything()
    write = small_files.write
    countdown = 0

    def fail(path: Path, data: bytes) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise OSError(errno.ENOSPC, "no space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(small_files, "write", fail)
    for place in range(1, 100):
        countdown = place
        spec = machine.container(sandbox, mounts=mounts, resources=RESOURCES)
        try:
            await machine.host.create_container(spec)
        except HostError:
            assert machine.everything() == before, f"write {place}"
        else:
            assert countdown > 0, "each of them matters"
            break
    assert place > 1
    countdown = 0
    await machine.remove(spec)
    assert machine.everything() == before


async def test_a_full_disk_can_be_emptied(machine, sandbox, make, monkeypatch) -> None:
    mounts = every_kind_of_mount(machine, make)
    before = machine.everything()
    spec = machine.container(sandbox, mounts=mounts, resources=RESOURCES)
    await machine.host.create_container(spec)

    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left on device", str(path))

    monkeypatch.setattr(small_files, "write", fail)
    await machine.remove(spec)
    assert machine.everything() == before
