"""A container does not get at its limits: with uid 0, no capability, no_new_privs and the kubelet's masks, by `reach.c`."""

import asyncio
import contextlib
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cri.sandbox.host import HostError, LimitRefusedError, Measured
from cri.sandbox.linux.cgroup_hierarchies import OWN_PARENT, Hierarchies
from cri.sandbox.linux.cgroups import UNIFIED, Group
from cri.sandbox.spec import Namespaces, ProcessSpec, Resources, Security, Sharing
from tests.sandbox.linux.shapes import as_by_an_earlier_release, without_inner

pytestmark = pytest.mark.node

PROGRAM = Path(__file__).parent / "reach.c"
CPUS = sorted(os.sched_getaffinity(0))
KUBELETS = Security(
    add_capabilities=(),
    drop_capabilities=("ALL",),
    no_new_privileges=True,
    masked_paths=(
        *(
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
        ),
        *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"),
        "/sys/devices/virtual/powercap",
    ),
    readonly_paths=("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
)
LIMITS = Resources(
    memory_limit=128 << 20,
    memory_swap_limit=128 << 20,
    pids_limit=40,
    cpu_shares=300,
    cpu_period=100_000,
    cpu_quota=90_000,
    cpuset_cpus=str(CPUS[-1]),
)
FILES = (
    *("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max", "pids.max"),
    *("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.max", "cpu.weight", "cpu.rt_runtime_us"),
    *("cpuset.cpus", "cpuset.mems", "devices.list", "freezer.state", "cgroup.freeze", "cgroup.type"),
    *("cgroup.max.descendants", "cgroup.subtree_control", "notify_on_release"),
)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("reach") / "reach"
    subprocess.run(["cc", "-static", "-O1", "-o", path, PROGRAM], check=True)
    return path


@pytest.fixture
def world(node, program):
    """A node whose containers have the program, as a read-only volume would bring it."""
    (layer,) = (node.directory / "state").glob("**/bin/busybox")
    (layer.parent / "reach").write_bytes(program.read_bytes())
    (layer.parent / "reach").chmod(0o755)
    return node


async def create(pod, spec) -> Group:
    """A container, with the mark in its groups without which the program leaves them alone. They are no others'."""
    await pod.create(spec)
    group = pod.node.host._group(spec)
    for directory in (*group.directories.values(), *group.inner.directories.values()):
        mark = Path(directory, "notify_on_release")
        if mark.exists():
            mark.write_text("1")
    return group


def limits_of(group: Group) -> dict[str, str]:
    """Of the group, and of those above it that are ours."""
    found = {}
    for directory in group.directories.values():
        for path in (Path(directory), Path(directory).parent):
            found |= {str(path / name): (path / name).read_text() for name in FILES if (path / name).exists()}
    return found


async def output_of(pod, spec, end="done"):
    async with asyncio.timeout(60):
        while end not in (output := pod.output(spec)):
            await asyncio.sleep(0.05)
    return output


def hierarchies():
    return {line.split(":")[1] or "unified" for line in Path("/proc/self/cgroup").read_text().splitlines()}


def check_tried(output):
    """That it was in every hierarchy, by each way, and saw nobody there."""
    mounted = re.findall(r"^mounted (\S*)$", output, re.MULTILINE)
    assert {name or "unified" for name in mounted} == hierarchies()
    assert "somebody else's" not in output
    assert len(mounted) >= 3 * len(hierarchies())
    assert "not mounted none,name=new: Operation not permitted" in output
    assert re.search(r"^handle /tmp/0", output, re.MULTILINE)
    assert re.search(r"^wrote /tmp/0/memory/memory.limit_in_bytes", output, re.MULTILINE)
    assert not re.search(r"^(wrote|unmounted) /sys", output, re.MULTILINE)


async def test_the_program_does_no_harm_to_others(world):
    pod = await world.pod()
    spec = pod.container("reach", security=KUBELETS)
    await pod.start(spec)
    output = await output_of(pod, spec)
    assert set(re.findall(r"^mounted (\S*)$", output, re.MULTILINE)) <= {""}  # of version 2 it is alone there
    assert "somebody else's memory" in output


async def test_the_program_finds_limits_that_are_in_reach(world):
    """Else it would find none anywhere."""
    world.changed = without_inner
    pod = await world.pod()
    spec = pod.container("reach", security=KUBELETS, resources=LIMITS)
    group = await create(pod, spec)
    before = limits_of(group)
    await pod.warden.start(spec)
    await output_of(pod, spec)
    changed = {Path(path).name for path, value in limits_of(group).items() if value != before[path]}
    assert {"memory.limit_in_bytes", "pids.max", "cpu.cfs_quota_us", "cpu.shares"} <= changed


@pytest.mark.parametrize("how", ["first", "exec", "terminal"])
@pytest.mark.parametrize(
    "security", [KUBELETS, replace(KUBELETS, drop_capabilities=())], ids=["none", "default"]
)
async def test_limits_out_of_reach(world, how, security):
    pod = await world.pod()
    argv = ("reach", "stay", "here") if how == "first" else ("sleep", "1000")
    spec = pod.container(*argv, security=security, resources=LIMITS)
    group = await create(pod, spec)
    before = limits_of(group)
    assert len(before) > 20
    await pod.warden.start(spec)
    if how == "first":
        output = await output_of(pod, spec)
    elif how == "exec":
        code, output = await pod.exec(spec, "reach")
        assert code == 0
    else:
        running = await pod.warden.exec(
            spec.id, ProcessSpec(("reach",), tty=True), stdin=None, stdout=None, stderr=None
        )
        reading = asyncio.create_task(asyncio.to_thread(read_all, running.pty))
        assert await running.wait() == 0
        output = await reading
        await running.close()
    check_tried(output)
    seen = re.findall(r"^sees /tmp/.*/(.*)", output, re.MULTILINE)
    assert set(seen) == {"deeper"}
    assert limits_of(group) == before


def read_all(pty: int) -> str:
    parts = []
    with os.fdopen(os.dup(pty), "rb", buffering=0) as terminal:
        while True:
            try:
                part = terminal.read(4096)
            except OSError:  # nobody has its other end
                break
            if not part:
                break
            parts.append(part)
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("capabilities", [("SYS_ADMIN",), ("DAC_READ_SEARCH",), ("SYS_PTRACE",)])
async def test_capabilities_that_are_given_do_not_help(world, capabilities):
    pod = await world.pod()
    security = replace(KUBELETS, add_capabilities=capabilities)
    spec = pod.container("reach", security=security, resources=LIMITS)
    group = await create(pod, spec)
    before = limits_of(group)
    await pod.warden.start(spec)
    output = await output_of(pod, spec)
    if "DAC_READ_SEARCH" not in capabilities:  # with which any file of the node is in reach, by its handle
        assert limits_of(group) == before
    assert "mounted memory" in output


async def processes_of(host, pod, spec) -> int:
    found = await host.usages([Measured(pod.spec, pod.warden, [spec], itself=False)])
    return found[spec.id].processes.processes


async def test_limits_hold_after_all(world):
    pod = await world.pod()
    forking = pod.container("reach", "forks", "stay", name="f", security=KUBELETS, resources=LIMITS)
    group = await create(pod, forking)
    await pod.warden.start(forking)
    output = await output_of(pod, forking, "forked")
    assert 20 < int(re.findall(r"forked (\d+)", output)[0]) < 40
    assert len(group.processes()) == 40
    assert await processes_of(world.host, pod, forking) == 40
    assert all(os.sched_getaffinity(pid) == {CPUS[-1]} for pid in group.processes())
    using = pod.container("reach", "memory", name="m", security=KUBELETS, resources=LIMITS)
    await create(pod, using)
    await pod.warden.start(using)
    record, output = await pod.exit_of(using), pod.output(using)
    assert (record.oom_killed, record.exit_code) == (True, 137)
    assert "done" in output
    assert "used" not in output


@pytest.mark.parametrize("sharing", [Sharing.POD, Sharing.CONTAINER, Sharing.NODE])
async def test_every_process_is_in_the_inner_group_of_every_hierarchy(node, sharing):
    pod = await node.pod(namespaces=Namespaces(pid=sharing))
    spec = pod.container("sh", "-c", "sleep 1000 & sleep 1000")
    started = await pod.start(spec)
    running = await pod.start_exec(spec, "sleep", "1000")
    group = node.host._group(spec)
    expected = {path.removeprefix(root(path)) for path in group.inner.directories.values()}
    async with asyncio.timeout(5):
        while len(programs(group)) < 3:
            await asyncio.sleep(0.01)
    assert {started.pid, running.pid} <= programs(group)
    for pid in programs(group):
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        within = {line.split(":", 2)[2] for line in groups}
        assert {path.removesuffix("/exec-1") for path in within} == expected
        assert Path(f"/proc/{pid}/ns/cgroup").readlink() == Path(f"/proc/{started.pid}/ns/cgroup").readlink()
    assert Path(f"/proc/{started.pid}/ns/cgroup").readlink() != Path("/proc/self/ns/cgroup").readlink()
    _, output = await pod.exec(
        spec, "cat", "/proc/1/cgroup" if sharing is Sharing.CONTAINER else "/proc/self/cgroup"
    )
    assert all(line.split(":", 2)[2] in ("/", "/exec-2") for line in output.splitlines()), output
    await running.close()


def programs(group: Group) -> set[int]:
    """The processes in a group, but for those on their way in, which are about to end."""
    found = set()
    for pid in group.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"sh\0", b"sleep\0")):
                found.add(pid)
    return found


def root(path: str) -> str:
    return "/".join(path.split("/")[:5])


@pytest.fixture
def of_others(node):
    """A group that others have made for a pod."""
    path = f"/cri-test-{os.getpid()}"
    made = node.host._hierarchies.group(path)
    for directory in made.directories.values():
        Path(directory).mkdir(exist_ok=True)
    yield path
    made.kill_and_wait(5)
    made.remove()


async def test_the_init_of_a_pod_is_not_in_a_group_of_the_node_s(node, of_others):
    """Who may trace it, as SYS_PTRACE in the pod does, is where it is."""
    for parent in ("", of_others):
        pod = await node.pod(namespaces=Namespaces(pid=Sharing.POD), limits_parent=parent)
        children = Path(f"/proc/{pod.warden.pid}/task/{pod.warden.pid}/children").read_text().split()
        (init,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "cri-jails-init\n"]
        groups = {line.split(":", 2)[2] for line in Path(f"/proc/{init}/cgroup").read_text().splitlines()}
        own = f"/cri-jails/{pod.spec.id}"
        assert groups == {f"{above}/{pod.spec.id}/container" for above in (parent or own, own)}
        assert Path(f"/proc/{init}/ns/cgroup").readlink() != Path("/proc/self/ns/cgroup").readlink()
        assert (await pod.run("true"))[0].exit_code == 0
        await pod.remove()
        for path in node.host._hierarchies.group(parent or own, own).directories.values():
            assert not Path(path, pod.spec.id).exists()


async def test_programs_find_their_limits_where_they_look_for_them(node):
    pod = await node.pod()
    spec = pod.container("sleep", "1000", resources=LIMITS)
    await pod.start(spec)
    places = {
        "memory/memory.limit_in_bytes": str(128 << 20),
        "memory/memory.memsw.limit_in_bytes": str(128 << 20),
        "pids/pids.max": "40",
        "cpu/cpu.cfs_quota_us": "90000",
        "cpu/cpu.shares": "300",
        "cpuset/cpuset.cpus": str(CPUS[-1]),
    }
    for place, value in places.items():
        assert (await pod.exec(spec, "cat", f"/sys/fs/cgroup/{place}"))[1] == f"{value}\n"
    more = Resources(
        memory_limit=256 << 20, memory_swap_limit=512 << 20, pids_limit=50, cpu_period=50_000, cpu_quota=20_000,
        cpuset_cpus=str(CPUS[0]),
    )  # fmt: skip
    await node.host.update_container(spec, more)
    places |= {
        "memory/memory.limit_in_bytes": str(256 << 20),
        "memory/memory.memsw.limit_in_bytes": str(512 << 20),
        "pids/pids.max": "50",
        "cpu/cpu.cfs_quota_us": "20000",
        "cpu/cpu.cfs_period_us": "50000",
        "cpuset/cpuset.cpus": str(CPUS[0]),
    }
    for place, value in places.items():
        assert (await pod.exec(spec, "cat", f"/sys/fs/cgroup/{place}"))[1] == f"{value}\n"


# What a container may do in its own group, done from outside


def nest(directory: str, depth: int) -> None:
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


async def test_groups_of_a_container_s_own_go_with_it_however_deep_they_are(node):
    pod = await node.pod()
    spec = pod.container("sleep", "1000")
    started = await pod.start(spec)
    group = node.host._group(spec)
    for controller in ("pids", "freezer"):
        nest(group.inner.directories[controller], 1000)  # no path is as long
    first = Path(group.inner.directories["pids"], "deeper")
    (first / "cgroup.procs").write_text(str(started.pid))
    assert started.pid in group.processes()
    await pod.warden.kill(spec.id)
    await pod.exit_of(spec)
    await node.host.stop_container(spec)
    assert not any(Path(path).exists() for path in group.directories.values())


async def test_what_has_frozen_itself_is_killed_all_the_same(node):
    pod = await node.pod(namespaces=Namespaces(pid=Sharing.NODE))
    spec = pod.container("sh", "-c", "sleep 1000 & sleep 1000")
    started = await pod.start(spec)
    running = await pod.start_exec(spec, "sleep", "1000")
    group = node.host._group(spec)
    below = Path(group.inner.directories["freezer"], "below")
    below.mkdir()
    (below / "cgroup.procs").write_text(str(started.pid))
    for path in (below, below.parent):
        (path / "freezer.state").write_text("FROZEN")
    threaded = Path(group.inner.directories[UNIFIED], "threaded")
    threaded.mkdir()
    (threaded / "cgroup.type").write_text("threaded")
    (threaded.parent / "cgroup.freeze").write_text("1")
    await running.kill()
    assert await asyncio.wait_for(running.wait(), 5) == 137
    await running.close()
    for path in (below, below.parent):
        (path / "freezer.state").write_text("FROZEN")
    await pod.warden.kill(spec.id)
    assert (await pod.exit_of(spec, 5)).exit_code == 137
    await node.host.stop_container(spec)
    assert not below.parent.exists()


async def test_a_container_does_not_keep_its_limits_from_being_lowered(node):
    pod = await node.pod()
    spec = pod.container("sleep", "1000", resources=replace(LIMITS, cpuset_cpus=f"{CPUS[0]}-{CPUS[-1]}"))
    await pod.start(spec)
    group = node.host._group(spec)
    for controller, name, value in (
        ("cpu", "cpu.cfs_quota_us", "90000"),
        ("cpuset", "cpuset.cpus", str(CPUS[-1])),
        ("memory", "memory.limit_in_bytes", str(1 << 20)),
    ):
        below = Path(group.inner.directories[controller], "below")
        below.mkdir()
        (below / name).write_text(value)
    for _ in range(2):
        for cpu, quota in ((CPUS[0], 10_000), (CPUS[-1], 50_000)):
            lower = Resources(cpuset_cpus=str(cpu), cpu_quota=quota, memory_limit=64 << 20, pids_limit=10)
            await node.host.update_container(spec, lower)
            for one in (group, group.inner):
                assert Path(one.directories["cpuset"], "cpuset.cpus").read_text() == f"{cpu}\n"
                assert Path(one.directories["cpu"], "cpu.cfs_quota_us").read_text() == f"{quota}\n"
                assert Path(one.directories["memory"], "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    # One that is refused is put back, below too.
    with pytest.raises(LimitRefusedError):
        await node.host.update_container(spec, Resources(cpuset_cpus=str(CPUS[0]), cpu_quota=5))
    for one in (group, group.inner):
        assert Path(one.directories["cpuset"], "cpuset.cpus").read_text() == f"{CPUS[-1]}\n"
        assert Path(one.directories["cpu"], "cpu.cfs_quota_us").read_text() == "50000\n"


async def test_a_process_that_cannot_join_does_not_run(node):
    """Rather than outside of its limits: a container may take the CPUs from its own cpuset, once nobody is in it."""
    pod = await node.pod()
    spec = pod.container("sleep", "1000")
    started = await pod.start(spec)
    inner = Path(node.host._group(spec).inner.directories["cpuset"])
    below = inner / "below"
    below.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        (below / name).write_text((inner / name).read_text())
    (below / "cgroup.procs").write_text(str(started.pid))
    (below / "cpuset.cpus").write_text(str(CPUS[0]))
    with pytest.raises(OSError, match="busy"):
        (inner / "cpuset.cpus").write_text("\n")  # below has some
    (Path(node.host._group(spec).directories["cpuset"]) / "cgroup.procs").write_text(str(started.pid))
    (below / "cpuset.cpus").write_text("\n")
    (inner / "cpuset.cpus").write_text("\n")
    with pytest.raises(HostError, match="join cgroup: No space left"):
        await pod.start_exec(spec, "true")


async def test_containers_of_an_earlier_release_run_on(node):
    node.changed = as_by_an_earlier_release
    pod = await node.pod()
    spec = pod.container("sleep", "1000", resources=replace(LIMITS, cpuset_cpus=None))
    started = await pod.start(spec)
    group = node.host._group(spec)
    assert not group.has_inner
    assert (await pod.exec(spec, "cat", "/sys/fs/cgroup/pids/pids.max")) == (0, "40\n")
    running = await pod.start_exec(spec, "sleep", "1000")
    assert Path(group.directories["pids"], "exec-2", "cgroup.procs").read_text() == f"{running.pid}\n"
    assert {started.pid, running.pid} == group.processes()
    await node.host.update_container(spec, Resources(pids_limit=30, cpuset_cpus=str(CPUS[0])))
    assert os.sched_getaffinity(running.pid) == {CPUS[0]}
    assert not group.has_inner
    assert await processes_of(node.host, pod, spec) == 2
    await running.kill()
    assert await running.wait() == 137
    await running.close()
    await pod.warden.kill(spec.id)
    await pod.exit_of(spec)
    await node.host.stop_container(spec)
    assert not any(Path(path).exists() for path in group.directories.values())
    assert (await pod.run("true", name="other"))[0].exit_code == 0


# Version 2: here in a hybrid's unified hierarchy, which has one controller at most


@pytest.fixture
async def v2(world):
    found = [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    ]
    if not found:
        pytest.skip("needs cgroups of version 2")
    delegated = Path(found[0], "cgroup.subtree_control")
    before = delegated.read_text().split()
    others = {name: path for name, path in world.host._hierarchies.v1.items() if path != found[0]}
    world.host._hierarchies = world.host._ledger._hierarchies = Hierarchies(others, found[0])
    yield world
    for pod in world.pods:
        await pod.remove()
    world.host._hierarchies.group(OWN_PARENT).remove_if_empty()
    for one in set(delegated.read_text().split()) - set(before):
        delegated.write_text(f"-{one}")


@pytest.mark.parametrize("how", ["first", "exec"])
async def test_limits_out_of_reach_on_version_2(v2, how):
    sizes = v2.host._hierarchies.hugepages()
    limits = Resources(hugepage_limits=dict.fromkeys(sizes, 0))
    pod = await v2.pod()
    spec = pod.container(
        *(("reach", "stay", "here") if how == "first" else ("sleep", "1000")),
        security=KUBELETS,
        resources=limits,
    )
    group = await create(pod, spec)
    names = (*FILES, *(f"hugetlb.{size}.max" for size in sizes))
    files = [Path(group.directories[""], name) for name in names]
    before = {file: file.read_text() for file in files if file.exists()}
    assert before[Path(group.directories[""], "cgroup.max.descendants")] == "10000\n"
    started = await pod.warden.start(spec)
    if how == "first":
        output = await output_of(pod, spec)
    else:
        code, output = await pod.exec(spec, "reach")
        assert code == 0
    assert re.search(r"^mounted $", output, re.MULTILINE)
    assert re.search(r"^wrote /tmp/0/unified/cgroup.procs$", output, re.MULTILINE)
    for size in sizes if how == "first" else ():  # an exec's group has none
        assert f"wrote /tmp/0/unified/hugetlb.{size}.max" in output or size != "2MB"
    assert {file: file.read_text() for file in before} == before
    assert group.processes() >= {started.pid}
    assert Path(group.directories[""], "cgroup.procs").read_text() == ""


async def test_a_container_of_version_2_from_start_to_end(v2):
    pod = await v2.pod()
    spec = pod.container("sleep", "1000")
    started = await pod.start(spec)
    group = v2.host._group(spec)
    inner = Path(group.inner.directories[""])
    assert (inner / "cgroup.procs").read_text() == f"{started.pid}\n"
    assert (await pod.exec(spec, "cat", "/proc/self/cgroup"))[1].splitlines()[-1] == "0::/exec-1"
    async with asyncio.timeout(10):
        while (inner / "exec-1").exists():  # for a moment the kernel still counts who has been reaped
            await asyncio.sleep(0.01)
    running = await pod.start_exec(spec, "sh", "-c", "sleep 1000 & sleep 1000")
    assert str(running.pid) in (inner / "exec-2/cgroup.procs").read_text().split()
    async with asyncio.timeout(10):
        while not group.processes() > {started.pid, running.pid}:  # until the shell has forked
            await asyncio.sleep(0.01)
    (inner / "own").mkdir()
    (inner / "cgroup.freeze").write_text("1")
    await running.kill()
    assert await asyncio.wait_for(running.wait(), 5) == 137
    await running.close()
    await pod.warden.kill(spec.id)
    assert (await pod.exit_of(spec, 5)).exit_code == 137
    await v2.host.stop_container(spec)
    assert not inner.parent.exists()
    # Of an earlier release.
    v2.changed = as_by_an_earlier_release
    spec = pod.container("sleep", "1000", name="old")
    started = await pod.start(spec)
    group = v2.host._group(spec)
    assert Path(group.directories[""], "cgroup.procs").read_text() == f"{started.pid}\n"
    assert (await pod.exec(spec, "cat", "/proc/self/cgroup"))[1].splitlines()[-1] == "0::/exec-3"
    await pod.warden.kill(spec.id)
    await pod.exit_of(spec)
    await v2.host.stop_container(spec)
    assert not Path(group.directories[""]).exists()
