"""What is told of the use of containers and pods, beside what rctl, ps and netstat say in the same moment."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cri.sandbox.host import HostError, Measured
from cri.sandbox.spec import DiskUsage
from cri.stats import Stats

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

NEAR = 0.05
BURN = ("sh", "-c", "while :; do :; done")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def racct(jail: str) -> dict[str, int]:
    """What rctl(8) says that a jail uses."""
    lines = run("rctl", "-u", f"jail:{jail}").splitlines()
    return {name: int(amount) for name, _, amount in (line.partition("=") for line in lines)}


def near(told: float, kernel: float, least: float = 0.0) -> bool:
    return abs(told - kernel) <= max(NEAR * kernel, least)


def names(machine, container: str) -> tuple[str, str]:
    """The jails of a container's pod, and its own."""
    pod = f"cri-{machine.pods.container(container).spec.sandbox_id}"
    return pod, f"{pod}.c{container}"


async def usages(machine, pod: str):
    """What is told of a pod and its containers right now."""
    sandbox = machine.pods.sandbox(pod)
    ends = await machine.network.far_ends([pod])
    containers = [one.spec for one in sandbox.containers.values() if not one.ended.is_set()]
    return await machine.host.usages(
        [Measured(sandbox.spec, sandbox.warden, containers, interfaces=ends[pod])]
    )


async def test_processor_time(machine):
    pod = await machine.pod()
    burning = await machine.container(pod, *BURN, name="burning")
    idle = await machine.container(pod, name="idle")
    stats = Stats(machine.host, machine.pods, None, machine.directory, 1.0, machine.network.far_ends)
    await asyncio.sleep(10)
    first = (await stats.pods())[0]
    await asyncio.sleep(20)
    (figures,) = await stats.pods()
    of_pod, own = names(machine, burning)
    used, whole = racct(own), racct(of_pod)
    by_id = {one.container.id: one.sample for one in figures.containers}
    told = by_id[burning].usage.cpu
    # racct tells whole seconds, and looks once a second.
    assert near(told.total, used["cputime"] * 1e9, 2e9)
    assert near(figures.sample.usage.cpu.total, whole["cputime"] * 1e9, 2e9)
    pid = machine.pods.container(burning).record.pid
    minutes, _, seconds = run("ps", "-o", "time=", "-p", str(pid)).strip().rpartition(":")
    assert near(told.total, (int(minutes) * 60 + float(seconds)) * 1e9, 2e9)
    assert near(told.user + told.system, told.total, 2e9)
    span = by_id[burning].taken - first.sample.taken
    spent = told.total - {one.container.id: one.sample for one in first.containers}[burning].usage.cpu.total
    assert near(by_id[burning].nano_cores, spent / span)
    assert by_id[burning].nano_cores > 2e8
    assert by_id[idle].nano_cores < 2e7


async def test_memory_processes_and_descriptors(machine):
    pod = await machine.pod()
    script = "x=$(dd if=/dev/zero bs=1m count=24 2>/dev/null | tr '\\0' x); echo ready; sleep 3600; :"
    container = await machine.container(pod, "sh", "-c", script)
    async with asyncio.timeout(120):
        while not machine.log(container):
            await asyncio.sleep(0.2)
    await asyncio.sleep(2)
    of_pod, own = names(machine, container)
    found, used, whole = await usages(machine, pod), racct(own), racct(of_pod)
    usage = found[container]
    assert used["memoryuse"] > 24 << 20
    assert near(usage.memory.usage, used["memoryuse"])
    assert near(found[pod].memory.usage, whole["memoryuse"])
    jid = run("jls", "-j", own, "jid").strip()
    lines = run("ps", "-J", jid, "-o", "pid=", "-o", "rss=").splitlines()
    assert near(usage.memory.rss, sum(int(line.split()[1]) for line in lines) * 1024, 1 << 20)
    assert usage.memory.swap is None
    assert usage.memory.page_faults > 1000
    counts = usage.processes
    assert counts.processes == len(lines) == used["maxproc"] == 2
    assert (counts.threads, counts.descriptors) == (used["nthr"], used["openfiles"])
    assert counts.sockets is None
    assert usage.io.devices == ()


async def test_the_network_of_a_pod(machine):
    pod = await machine.pod()
    container = await machine.container(pod, "nc", "-lu", "9")
    (address,) = machine.pods.sandbox(pod).addresses
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(500):
            sender.sendto(bytes(1000), (address, 9))
            if number % 20 == 0:
                await asyncio.sleep(0.02)
    await machine.sh(
        container, f"dd if=/dev/zero bs=1000 count=50 | nc -u -w 1 {address.rpartition('.')[0]}.1 7"
    )
    await asyncio.sleep(1)
    (told,) = (await usages(machine, pod))[pod].interfaces
    of_pod, _ = names(machine, container)
    lines = run("netstat", "-j", of_pod, "-ibn", "-I", "eth0").splitlines()
    counters = dict(zip(lines[0].split(), lines[1].split(), strict=False))
    assert told.name == "eth0"
    assert told.received_bytes > 500_000
    assert told.sent_bytes > 50_000
    assert near(told.received_bytes, int(counters["Ibytes"]))
    assert near(told.sent_bytes, int(counters["Obytes"]))
    assert near(told.received_packets, int(counters["Ipkts"]), 2)
    assert near(told.sent_packets, int(counters["Opkts"]), 2)


async def test_the_writable_layer(machine):
    container = await machine.container(await machine.pod())
    spec = machine.pods.container(container).spec
    before = await machine.host.root_usage(spec)
    await machine.sh(
        container, "dd if=/dev/random of=/file bs=1m count=20; dd if=/dev/random of=/tmp/f bs=1m count=5"
    )
    run("sync")
    until = time.monotonic() + 60
    while (after := await machine.host.root_usage(spec)).bytes < before.bytes + (24 << 20):
        assert time.monotonic() < until, (before, after)  # ZFS counts when it writes to disk
        await asyncio.sleep(1)
    assert near(after.bytes - before.bytes, 25 << 20)
    assert after.inodes >= before.inodes + 2
    stats = Stats(machine.host, machine.pods, SimpleNamespace(usage=lambda: DiskUsage(0, 0)), Path("/x"))
    (figures,) = await stats.containers([machine.pods.container(container)])
    assert near(figures.layer.usage.bytes, after.bytes)


async def test_what_has_ended(machine):
    pod = await machine.pod()
    container = await machine.container(pod, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    spec = machine.pods.container(container).spec
    await machine.ended(container)
    sandbox = machine.pods.sandbox(pod)
    found = await machine.host.usages([Measured(sandbox.spec, sandbox.warden, [spec])])
    assert isinstance(found[container], HostError)
    assert found[pod].processes.processes == 0
    await machine.pods.remove_sandbox(pod)
    found = await machine.host.usages([Measured(sandbox.spec, None, [])])
    assert isinstance(found[pod], HostError)
