"""What is told of the use of containers and pods on Linux, and what the kernel's files say."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from cri.sandbox import usage_sums
from cri.sandbox.host import HostError, Measured
from cri.sandbox.linux import interface_usage, process_usage
from cri.sandbox.linux.cgroup_files import fields
from cri.sandbox.linux.cgroup_hierarchies import Hierarchies
from cri.sandbox.linux.cgroup_usage import devices_v2, pressure, usage_v1, usage_v2
from cri.sandbox.linux.kept_files import KeptFiles
from cri.sandbox.spec import Namespaces, Resources, Sharing
from cri.sandbox.usage import (
    CpuUsage,
    DeviceUsage,
    InterfaceUsage,
    IoUsage,
    MemoryUsage,
    ProcessUsage,
    Stall,
    Usage,
)

PSI = b"some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=12\n"
V2 = {
    "cpu.stat": b"usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 70\n",
    "container/cpu.stat": b"usage_usec 3000\nnr_periods 10\nnr_throttled 6\nthrottled_usec 60\n",
    "cpu.pressure": PSI,
    "memory.current": b"1000\n",
    "memory.max": b"4000\n",
    "memory.peak": b"1500\n",
    "memory.swap.current": b"30\n",
    "memory.swap.max": b"100\n",
    "memory.stat": b"anon 500\nfile 300\nkernel 50\nfile_mapped 20\ninactive_file 100\npgfault 17\npgmajfault 7\n",
    "memory.events": b"low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n",
    "io.stat": b"254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0\n",
    "pids.current": b"5\n",
    "pids.max": b"max\n",
}


def test_version_2() -> None:
    found = usage_v2(lambda path: V2.get(path.removeprefix("/g/")), "/g", "/g/container")
    assert found is not None
    cpu, memory = found.cpu, found.memory
    assert (cpu.total, cpu.user, cpu.system) == (3_000_000, 2_000_000, 1_000_000)
    assert (cpu.periods, cpu.throttled_periods, cpu.throttled) == (10, 6, 70_000)
    assert cpu.pressure is not None
    assert cpu.pressure.some == Stall(1_234_000, 1.5, 0.25, 0.0)
    assert memory.pressure is None
    assert (memory.usage, memory.working_set, memory.rss) == (1000, 900, 500)
    assert (memory.limit, memory.available, memory.peak) == (4000, 3100, 1500)
    assert (memory.cache, memory.mapped_file, memory.kernel) == (300, 20, 50)
    assert (memory.page_faults, memory.major_page_faults) == (10, 7)
    assert (memory.limit_hits, memory.oom_kills) == (3, 2)
    assert (memory.swap, memory.swap_limit, memory.swap_available) == (30, 100, 70)
    assert [(one.reads, one.writes) for one in found.io.devices] == [(3, 4)]
    assert (found.processes.threads, found.processes.threads_limit) == (5, None)


def test_a_group_that_is_gone_has_used_nothing() -> None:
    directories = {"memory": "/m", "cpuacct": "/a", "pids": "/p", "cpu": "/c"}
    assert usage_v1(lambda path: None, directories, directories) is None
    assert usage_v2(lambda path: None, "/g", "/g/container") is None


def test_without_a_controller_its_figures_are_lacking() -> None:
    found = usage_v1({"/a/cpuacct.usage": b"7\n"}.get, {"cpuacct": "/a"}, {"cpuacct": "/a/i"})
    assert found is not None
    assert found.cpu == CpuUsage(total=7)
    assert found.memory == MemoryUsage()
    only_cpu = usage_v2({"/g/cpu.stat": b"usage_usec 3\n"}.get, "/g", "/g/i")
    assert only_cpu is not None
    assert (only_cpu.memory, only_cpu.io) == (MemoryUsage(), IoUsage())


def test_devices_and_pressure() -> None:
    (device,) = devices_v2(b"250:9 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0\n")
    assert device == DeviceUsage("250:9", 250, 9, 1, 2, 3, 4)
    assert devices_v2(None) == ()
    assert pressure(None) is pressure(b"") is None
    before_5_13 = pressure(PSI.splitlines()[0])
    assert before_5_13 is not None
    assert before_5_13.full.total == 0


NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:      11       1    0    0    0     0          0         0       11       1    0    0    0     0       0          0
  net1:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
  eth0:     100       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
"""
ROUTE = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
net1	0002000A	00000000	0001	0	0	0	00FFFFFF	0	0	0
net1	00000000	0100000A	0003	0	0	200	00000000	0	0	0
eth0	00000000	0100580A	0003	0	0	100	00000000	0	0	0
"""
ZERO = "0" * 32
ROUTE6 = f"""\
fd000000000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     net1
{ZERO} 00 {ZERO} 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003     net1
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
"""


def test_interfaces() -> None:
    found = interface_usage.parse(NET_DEV)
    assert found[0] == InterfaceUsage("net1", 1, 2, 3, 4, 9, 10, 11, 12)
    assert [one.name for one in found] == ["net1", "eth0"]
    assert interface_usage.default_interface(ROUTE, ROUTE6) == "eth0"
    assert interface_usage.default_interface(ROUTE.splitlines()[0], ROUTE6) == "net1"
    assert interface_usage.default_interface("", "") == ""
    namespace = Path("/proc/self/ns/net").stat().st_ino
    assert interface_usage.interfaces(os.getpid(), namespace + 1) == ()
    assert interface_usage.interfaces(1 << 22, namespace) == ()
    assert (
        len(interface_usage.interfaces(os.getpid(), namespace))
        == sum(1 for _ in Path("/sys/class/net").iterdir()) - 1
    )


def test_sums() -> None:
    def usage(**memory) -> Usage:
        return Usage(
            timestamp=memory.pop("timestamp"),
            cpu=CpuUsage(total=1, user=2, throttled=None),
            memory=MemoryUsage(**memory),
            io=IoUsage((DeviceUsage("vda", 254, 0, 1, 2, 3, 4),)),
            processes=ProcessUsage(2, 3),
        )

    found = usage_sums.total([usage(timestamp=5, usage=1, swap=1, limit=7), usage(timestamp=4, usage=2)])
    assert found.timestamp == 4
    assert found.cpu == CpuUsage(total=2, user=4)
    assert found.memory == MemoryUsage(usage=3), "a limit has no sum, nor has what one of them lacks"
    assert found.io.devices == (DeviceUsage("vda", 254, 0, 2, 4, 6, 8),)
    assert found.processes == ProcessUsage(4, 6)
    assert usage_sums.total([]).cpu == CpuUsage()


def opened_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class TestKeptFiles:
    """Files are kept open, within limits."""

    def test_they_are_read_anew(self, tmp_path) -> None:
        files, path = KeptFiles(2), tmp_path / "file"
        path.write_text("1")
        with files.of("a") as read:
            assert read(str(path)) == b"1"
            assert read(str(tmp_path / "none")) is None
        path.write_text("x" * 10_000)
        with files.of("a") as read:
            assert read(str(path)) == b"x" * 10_000
        assert len(files) == 1

    def test_no_more_than_may_be(self, tmp_path) -> None:
        files = KeptFiles(3)
        for number in range(6):
            (tmp_path / str(number)).write_text(str(number))
        before = opened_files()
        for owner in ("a", "b"):
            with files.of(owner) as read:
                assert [read(str(tmp_path / str(number))) for number in range(6)] == [
                    str(number).encode() for number in range(6)
                ]
        assert len(files) == 3
        assert opened_files() == before + 3
        files.forget("a")
        with files.of("b") as read:
            assert read(str(tmp_path / "1")) == b"1"
        assert len(files) == 1
        files.close()
        assert opened_files() == before

    def test_a_process_that_may_open_few(self, monkeypatch) -> None:
        from cri.sandbox.linux import kept_files

        monkeypatch.setattr(kept_files.resource, "getrlimit", lambda _: (128, 128))
        assert kept_files.most_kept() == 0
        monkeypatch.setattr(kept_files.resource, "getrlimit", lambda _: (1024, 1024))
        assert kept_files.most_kept() == 192
        monkeypatch.setattr(kept_files.resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
        assert kept_files.most_kept() == kept_files.MOST


def test_descriptors_and_sockets() -> None:
    import socket

    before = process_usage.descriptors([os.getpid()])
    assert before is not None
    with socket.socket(), Path(os.devnull).open():
        assert process_usage.descriptors([os.getpid()]) == (before[0] + 2, before[1] + 1)
    assert process_usage.descriptors([1 << 22]) == (0, 0)
    assert process_usage.descriptors([os.getpid()] * (process_usage.MOST_PROCESSES + 1)) is None


FAILCNT = ("memory.failcnt", "memory.memsw.failcnt")
"""Not counted by every kernel: 6.18 says nothing but 0."""


async def told(pod, *specs, alone=True):
    found = await pod.node.host.usages([Measured(pod.spec, pod.warden, specs, alone=alone)])
    return found[pod.spec.id], *(found[spec.id] for spec in specs)


@pytest.mark.node
async def test_a_quota_that_is_met(pod):
    resources = Resources(cpu_quota=20_000, cpu_period=100_000)
    spec = pod.container("sh", "-c", "while :; do :; done", resources=resources)
    await pod.start(spec)
    _, before = await told(pod, spec)
    await asyncio.sleep(3)
    _, after = await told(pod, spec)
    seconds = (after.timestamp - before.timestamp) / 1e9
    spent = after.cpu.total - before.cpu.total
    assert 0 < spent <= 0.2e9 * seconds * 1.2
    assert after.cpu.user + after.cpu.system == pytest.approx(after.cpu.total, abs=3e7)
    assert after.cpu.periods - before.cpu.periods == pytest.approx(10 * seconds, abs=3)
    # The limit is shown inside, where it is met as well: the more of both.
    group = pod.node.host._group(spec)
    stats = [fields(f"{each.directories['cpu']}/cpu.stat") for each in (group, group.inner)]
    for name, told_ in (
        ("nr_throttled", after.cpu.throttled_periods),
        ("throttled_time", after.cpu.throttled),
    ):
        most = max(stat[name] for stat in stats)
        assert 0 < told_ <= most
        assert told_ >= most * 0.5, "what has come since"


@pytest.mark.node
def test_a_real_group_of_version_2(tmp_path):
    """Of a hybrid, if need be: it has no controllers, but processor time and PSI."""
    mounted = next(
        (
            path
            for path in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
            if Path(path, "cgroup.procs").exists()
        ),
        None,
    )
    if mounted is None or not Path(mounted, "cgroup.controllers").exists():
        pytest.skip("version 2 is not mounted")
    group = Hierarchies({}, mounted).group(f"/usage-{os.getpid()}")
    group.create()
    group.create_inner()
    try:
        (join,) = group.inner.join_files()
        busy = f"echo 0 > {join}; exec timeout 1 sh -c 'while :; do :; done'"
        subprocess.run(["sh", "-c", busy], check=False)
        files = KeptFiles(100)
        with files.of("x") as read:
            found = usage_v2(read, group.directories[""], group.inner.directories[""])
        files.close()
    finally:
        group.remove()
    assert found is not None
    assert found.cpu.total > 1e7
    assert found.cpu.user + found.cpu.system == pytest.approx(found.cpu.total, abs=1e7)
    assert found.cpu.pressure is None or found.cpu.pressure.some.total > 0
    with files.of("x") as read:
        assert usage_v2(read, group.directories[""], group.inner.directories[""]) is None


@pytest.mark.node
async def test_what_the_oom_killer_has_killed(pod):
    resources = Resources(memory_limit=16 << 20, memory_swap_limit=16 << 20)
    script = "for i in 1 2; do sh -c 'x=$(head -c 60000000 /dev/zero | tr \"\\0\" x); :'; done; echo done; sleep 100; :"
    spec = pod.container("sh", "-c", script, resources=resources)
    await pod.start(spec)
    async with asyncio.timeout(30):
        while "done" not in (await pod.exec(spec, "cat", "/proc/1/cmdline"))[1] or not Path(
            spec.log_path
        ).read_text().count("done"):
            await asyncio.sleep(0.1)
    of_pod, found = await told(pod, spec)
    assert found.memory.oom_kills >= 2
    assert of_pod.memory.oom_kills == found.memory.oom_kills
    directory = pod.node.host._group(spec).directories["memory"]
    files = [Path(directory, part, name) for part in ("", "container") for name in FAILCNT]
    assert found.memory.limit_hits == sum(int(file.read_text()) for file in files)
    assert found.memory.limit == 16 << 20
    assert (16 << 20) * 0.9 < found.memory.peak <= 16 << 20


@pytest.mark.node
async def test_what_goes_to_a_disk(pod):
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    _, before = await told(pod, spec)
    code, output = await pod.exec(
        spec, "sh", "-c", "dd if=/dev/zero of=/file bs=1048576 count=20 oflag=direct 2>&1"
    )
    if code:
        pytest.skip(f"nothing can be written past the cache here: {output}")
    _, after = await told(pod, spec)

    def written(usage) -> int:
        return sum(device.written_bytes for device in usage.io.devices)

    if not after.io.devices:
        pytest.skip("the files are on no block device")
    assert written(after) - written(before) == pytest.approx(20 << 20, rel=0.05)
    assert all(Path("/sys/class/block", device.name).exists() for device in after.io.devices)


@pytest.mark.node
async def test_pods_and_what_is_inside(node):
    pod = await node.pod()
    first, second = pod.container("sleep", "100", name="a"), pod.container("sleep", "100", name="b")
    for spec in (first, second):
        await pod.start(spec)
    whole, one, other = await told(pod, first, second)
    assert one.processes.processes == other.processes.processes == 1
    assert whole.processes.processes == whole.processes.threads == 2
    assert whole.memory.usage >= one.memory.usage + other.memory.usage
    assert whole.cpu.total >= one.cpu.total + other.cpu.total
    summed, one, other = await told(pod, first, second, alone=False)
    assert summed.memory.usage == one.memory.usage + other.memory.usage
    await pod.warden.kill(first.id)
    await pod.exit_of(first)
    await pod.node.host.stop_container(first)
    after, gone, _ = await told(pod, first, second)
    assert isinstance(gone, HostError)
    assert gone.errno == errno.ENOENT
    assert after.cpu.total >= whole.cpu.total, "what it had used stays used"
    kept = len(node.host._meter._files)
    assert kept > 0
    await pod.node.host.stop_container(second)
    await told(pod, second)
    assert len(node.host._meter._files) < kept


@pytest.mark.node
async def test_the_first_process_of_a_shared_process_namespace_counts(node):
    pod = await node.pod(namespaces=Namespaces(network=Sharing.POD, pid=Sharing.POD))
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    whole, inside = await told(pod, spec)
    assert (whole.processes.processes, inside.processes.processes) == (2, 1)
    assert whole.processes.threads == 2


@pytest.mark.node
async def test_a_container_that_makes_many_groups(pod):
    """It may take a moment to look through them, not more."""
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    group = pod.node.host._group(spec).inner
    top = Path(group.directories.get("pids") or group.directories[""])
    for number in range(2000):
        (top / f"g{number}").mkdir()
    began = time.monotonic()
    _, found = await told(pod, spec)
    took = time.monotonic() - began
    for number in range(2000):
        (top / f"g{number}").rmdir()
    assert found.processes.processes == found.processes.threads == 1
    assert took < 1
