"""Limits of running containers, on this kernel's own cgroups."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cri.sandbox.host import HostError, LimitRefusedError
from cri.sandbox.linux.cgroup_hierarchies import own_parent
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.spec import ProcessSpec, Resources
from tests.sandbox.linux.shapes import as_by_an_earlier_release

pytestmark = pytest.mark.node

CPUS = sorted(os.sched_getaffinity(0))
FORKING = "while :; do for n in 1 2 3 4 5; do (sleep 0.01; :) & done; wait; done"


@pytest.fixture(params=["with an inner group", "of an earlier release"])
def v1(node, request):
    if request.param == "of an earlier release":
        node.changed = as_by_an_earlier_release
    if node.host._hierarchies.v2 or "cpuset" not in node.host._hierarchies.v1:
        pytest.skip("needs the controllers of cgroups version 1")
    return node


def group_of(node, spec) -> Group:
    return node.host._group(spec)


def value(group, controller, name):
    return Path(group.directories[controller], name).read_text().strip()


def limits(group):
    names = {
        "cpu": ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"),
        "pids": ("pids.max",),
        "memory": ("memory.limit_in_bytes",),
        "cpuset": ("cpuset.cpus", "cpuset.mems"),
    }
    return {
        name: value(group, controller, name)
        for controller, files in names.items()
        for name in files
        if Path(group.directories[controller], name).exists()
    }


@pytest.fixture
def half(v1):
    """A group that others have made for a pod, with half a CPU, and without CPUs in its cpuset."""
    path = f"/cri-test-{os.getpid()}"
    made = v1.host._hierarchies.group(path)
    for name in ("cpu", "memory", "pids", "cpuset"):
        Path(made.directories[name]).mkdir(exist_ok=True)
    Path(made.directories["cpu"], "cpu.cfs_quota_us").write_text("50000")
    yield path
    made.remove()


async def test_period_and_quota_below_a_parent(v1, half):
    pod = await v1.pod(limits_parent=half)
    spec = pod.container(
        "sleep", "100", limits_parent=half, resources=Resources(cpu_period=100_000, cpu_quota=50_000)
    )
    await pod.start(spec)
    group = group_of(v1, spec)
    for period, quota in (
        (50_000, 25_000),
        (200_000, 100_000),
        (10_000, 1_000),
        (100_000, 50_000),
        (50_000, -1),
    ):
        await v1.host.update_container(spec, Resources(cpu_period=period, cpu_quota=quota))
        assert (value(group, "cpu", "cpu.cfs_period_us"), value(group, "cpu", "cpu.cfs_quota_us")) == (
            str(period),
            str(quota),
        )
    with pytest.raises(HostError, match="Invalid argument"):
        await v1.host.update_container(spec, Resources(cpu_period=100_000, cpu_quota=60_000))
    assert value(group, "cpu", "cpu.cfs_period_us") == "50000"
    # And a cpuset, where the pod's has none.
    await v1.host.update_container(spec, Resources(cpuset_cpus=str(CPUS[-1])))
    assert value(group, "cpuset", "cpuset.cpus") == str(CPUS[-1])
    await pod.remove()


async def test_an_update_that_fails_changes_nothing(v1, pod):
    spec = pod.container("sleep", "100", resources=Resources(cpu_shares=100, memory_limit=64 << 20))
    await pod.start(spec)
    group = group_of(v1, spec)
    before = limits(group)
    for update in (
        Resources(cpu_shares=512, cpuset_cpus="9999"),
        Resources(cpu_shares=512, cpuset_mems="63"),
        Resources(cpu_shares=512, cpu_quota=5),
        Resources(cpu_shares=512, memory_limit=128 << 20, hugepage_limits={"3KB": 1}),
        Resources(cpu_shares=512, unified={"pids.max": "7"}),
        Resources(cpu_shares=512, oom_score_adj=5000),
    ):
        with pytest.raises(LimitRefusedError):
            await v1.host.update_container(spec, update)
        assert limits(group) == before
    assert Path(f"/proc/{(await pod.warden.containers())[0].started.pid}/oom_score_adj").read_text() == "0\n"
    await v1.host.update_container(spec, Resources(cpuset_cpus=str(CPUS[-1]), cpu_shares=512))
    before = limits(group)
    assert before["cpu.shares"] == "512"
    with pytest.raises(HostError):
        await v1.host.update_container(spec, Resources(cpuset_cpus=str(CPUS[0]), cpu_quota=5))
    assert limits(group) == before


async def bound(pid, cpus):
    """All threads of a process, once it has come to its program: one on its way in joins group after group."""
    try:
        threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
        if any(os.sched_getaffinity(thread) != cpus for thread in threads):
            await asyncio.sleep(0.5)
            assert [os.sched_getaffinity(thread) for thread in threads] == [cpus] * len(threads), Path(
                f"/proc/{pid}/cmdline"
            ).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended


async def test_a_cpuset_binds_what_runs(v1, pod):
    """All processes and threads, what they fork meanwhile, and execs that were there before, come then, and come later."""
    spec = pod.container("sh", "-c", f"({FORKING}) & ({FORKING}) & sleep 1000")
    started = await pod.start(spec)
    assert os.sched_getaffinity(started.pid) == set(CPUS)
    before = [await pod.start_exec(spec, "sh", "-c", "sleep 1000; :") for _ in range(3)]

    async def keep_executing():
        for _ in range(20):
            assert (await pod.exec(spec, "nproc"))[0] == 0

    meanwhile = [asyncio.ensure_future(keep_executing()) for _ in range(2)]
    await asyncio.sleep(0.2)
    await v1.host.update_container(spec, Resources(cpuset_cpus=str(CPUS[-1])))
    group = group_of(v1, spec)
    for _ in range(20):
        everybody = group.processes()
        assert len(everybody) >= 6
        for pid in everybody:
            await bound(pid, {CPUS[-1]})
        await asyncio.sleep(0.01)
    await asyncio.gather(*meanwhile)
    assert await pod.exec(spec, "nproc") == (0, "1\n")
    on_terminal = await pod.warden.exec(
        spec.id, ProcessSpec(("nproc",), tty=True), stdin=None, stdout=None, stderr=None
    )
    assert await on_terminal.wait() == 0
    assert os.read(on_terminal.pty, 10) == b"1\r\n"
    await on_terminal.close()
    for running in before:
        await running.close()
    await v1.host.update_container(spec, Resources(cpuset_cpus=f"{CPUS[0]}-{CPUS[-1]}"))
    assert (await pod.exec(spec, "nproc"))[1] == f"{len(CPUS)}\n"


async def test_limits_of_a_created_container(v1, pod):
    """Its first process has them."""
    spec = pod.container("sh", "-c", "nproc; cat /proc/self/oom_score_adj; sleep 1000")
    await pod.create(spec)
    wanted = Resources(cpuset_cpus=str(CPUS[-1]), cpu_shares=77, oom_score_adj=600)
    await v1.host.update_container(spec, wanted)
    plan = json.loads(Path(spec.directory, "spec.json").read_text())
    assert plan["spec"]["resources"]["oom_score_adj"] == 600
    started = await pod.warden.start(spec)
    assert os.sched_getaffinity(started.pid) == {CPUS[-1]}
    assert limits(group_of(v1, spec))["cpu.shares"] == "77"
    async with asyncio.timeout(5):
        while pod.output(spec) != "1\n600":
            await asyncio.sleep(0.02)


async def test_the_oom_score_of_what_runs(v1, pod):
    spec = pod.container("sh", "-c", "(sleep 1000; :) & sleep 1000")
    await pod.start(spec)
    await v1.host.update_container(spec, Resources(oom_score_adj=300))
    async with asyncio.timeout(5):
        while len(group_of(v1, spec).processes()) < 3:
            await asyncio.sleep(0.01)
    for pid in group_of(v1, spec).processes():
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "300\n"
    assert await pod.exec(spec, "cat", "/proc/self/oom_score_adj") == (0, "300\n")


async def test_an_oom_score_that_is_repeated_is_not_written(v1, pod):
    """Perhaps it cannot be: a node may not let the score be lowered, which keeps no container from starting."""
    spec = pod.container("sh", "-c", "echo 500 >/proc/self/oom_score_adj; exec sleep 1000")
    spec = replace(spec, resources=Resources(oom_score_adj=300, cpu_shares=20))
    await pod.start(spec)
    (pid,) = group_of(v1, spec).processes()
    score = Path(f"/proc/{pid}/oom_score_adj")
    async with asyncio.timeout(5):
        while score.read_text() != "500\n":
            await asyncio.sleep(0.01)
    await v1.host.update_container(spec, Resources(oom_score_adj=300, cpu_shares=30))
    assert score.read_text() == "500\n"
    assert limits(group_of(v1, spec))["cpu.shares"] == "30"
    await v1.host.update_container(spec, Resources(oom_score_adj=400))
    assert score.read_text() == "400\n"


async def test_a_late_group_that_is_not_kept_leaves_nothing(v1, pod):
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    where = Path(group_of(v1, spec).directories["cpuset"])
    had = where.exists()
    assert had == (v1.changed is not as_by_an_earlier_release)
    with pytest.raises(HostError):
        await v1.host.update_container(spec, Resources(cpuset_cpus="9999"))
    assert where.exists() == had
    await pod.warden.kill(spec.id)
    await pod.exit_of(spec)
    await v1.host.stop_container(spec)
    with pytest.raises(HostError, match="it is gone"):
        await v1.host.update_container(spec, Resources(cpuset_cpus=str(CPUS[-1])))
    assert not where.exists()


async def test_limits_of_a_pod_as_a_whole(v1, pod):
    """In the group that the containers' are in; first up then down, or the other way round."""
    spec = pod.container("sleep", "100", resources=Resources(cpu_period=100_000, cpu_quota=20_000))
    await pod.start(spec)
    whole = v1.host._hierarchies.group(own_parent(pod.spec.id))
    limited = Resources(cpu_period=100_000, cpu_quota=30_000, memory_limit=128 << 20, cpu_shares=99)
    await v1.host.update_sandbox(pod.spec, limited)
    assert value(whole, "cpu", "cpu.cfs_quota_us") == "30000"
    assert value(whole, "memory", "memory.limit_in_bytes") == str(128 << 20)
    before = limits(whole)
    with pytest.raises(LimitRefusedError, match="lowered after them"):
        await v1.host.update_sandbox(pod.spec, Resources(memory_limit=64 << 20, cpu_quota=10_000))
    assert limits(whole) == before
    with pytest.raises(LimitRefusedError, match="raised before those of its containers"):
        await v1.host.update_container(spec, Resources(cpu_quota=40_000, cpu_period=100_000))
    await v1.host.update_container(spec, Resources(cpu_quota=5_000, cpu_period=100_000))
    await v1.host.update_sandbox(pod.spec, Resources(cpu_quota=10_000))
    assert value(whole, "cpu", "cpu.cfs_quota_us") == "10000"
    await pod.remove()
    assert not whole.is_there()


async def test_cpus_of_a_pod_as_a_whole(v1, pod):
    """Narrowed after those of its containers; those of a release before had no set at all, and are taken in."""
    spec = pod.container("sleep", "100")
    started = await pod.start(spec)
    one = Resources(cpuset_cpus=str(CPUS[0]))
    if group_of(v1, spec).has_inner and len(CPUS) > 1:
        with pytest.raises(LimitRefusedError, match="narrowed after those of its containers"):
            await v1.host.update_sandbox(pod.spec, one)
        await v1.host.update_container(spec, one)
    await v1.host.update_sandbox(pod.spec, one)
    assert value(v1.host._hierarchies.group(own_parent(pod.spec.id)), "cpuset", "cpuset.cpus") == str(CPUS[0])
    await bound(started.pid, {CPUS[0]})
    if group_of(v1, spec).has_inner:
        other = pod.container("sleep", "100", name="other")
        await bound((await pod.start(other)).pid, {CPUS[0]})


async def test_of_a_pod_without_containers_nothing_is_left(v1, pod):
    whole = v1.host._hierarchies.group(own_parent(pod.spec.id))
    await v1.host.update_sandbox(pod.spec, Resources(memory_limit=128 << 20))
    assert value(whole, "memory", "memory.limit_in_bytes") == str(128 << 20)
    await pod.remove()
    assert not whole.is_there()


async def test_the_kubelets_group_is_left_to_it(v1, half):
    pod = await v1.pod(limits_parent=half)
    await v1.host.update_sandbox(pod.spec, Resources(cpu_quota=10_000, cpu_shares=99))
    group = v1.host._hierarchies.group(half)
    assert (value(group, "cpu", "cpu.cfs_quota_us"), value(group, "cpu", "cpu.shares")) == ("50000", "1024")
    assert not v1.host._hierarchies.group(own_parent(pod.spec.id)).is_there()
    await pod.remove()


async def test_less_memory_than_is_in_use_is_refused(v1, pod):
    eat = "x=a; while [ ${#x} -lt 20000000 ]; do x=$x$x; done; echo $x > /dev/null; while :; do sleep 1; done"
    spec = pod.container(
        "sh", "-c", eat, resources=Resources(memory_limit=256 << 20, memory_swap_limit=256 << 20)
    )
    await pod.start(spec)
    group = group_of(v1, spec)
    while int(value(group, "memory", "memory.usage_in_bytes")) < 30 << 20:
        await asyncio.sleep(0.05)
    before = limits(group)
    with pytest.raises(LimitRefusedError, match="more is in use than can be reclaimed"):
        await v1.host.update_container(spec, Resources(memory_limit=4 << 20, memory_swap_limit=4 << 20))
    assert limits(group) == before
    (state,) = await pod.warden.containers()
    assert state.exited is None


async def test_nothing_is_left_of_a_late_group(v1, pod):
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    await v1.host.update_container(spec, Resources(cpuset_cpus=str(CPUS[-1]), hugepage_limits={}))
    where = Path(group_of(v1, spec).directories["cpuset"])
    assert where.is_dir()
    await pod.warden.kill(spec.id)
    await pod.exit_of(spec)
    await v1.host.stop_container(spec)
    assert not where.exists()
    await pod.remove()
    assert not where.parent.exists()
