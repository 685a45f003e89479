"""The warden that waits for its sandbox."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cri.sandbox.spec import Namespaces, Sharing

pytestmark = pytest.mark.node


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def spare(node, *, but=()):
    """The pid of the one that waits. It has its name last."""
    async with asyncio.timeout(20):
        while True:
            for pid in children(node.host._spawner._pid):
                if pid not in but and name(pid) == "cri-jails-spare":
                    await asyncio.sleep(0.05)  # until the spawner has heard of it
                    return pid
            await asyncio.sleep(0.02)


def namespace(pid, kind):
    return Path(f"/proc/{pid}/ns/{kind}").readlink()


async def test_the_next_sandbox_gets_it_and_another_takes_its_place(node):
    waiting = await spare(node)
    pod = await node.pod(hostname="taken")
    assert pod.warden.pid == waiting
    assert name(waiting) == "cri-jails-pod"
    assert (await pod.run("hostname"))[1] == "taken"
    for kind in ("net", "ipc", "uts"):
        assert namespace(waiting, kind) != namespace("self", kind)
    assert await spare(node) != waiting


async def test_a_pod_that_shares_with_the_node_gets_a_warden_of_its_own(node):
    waiting = await spare(node)
    for own in (Namespaces(network=Sharing.NODE), Namespaces(ipc=Sharing.NODE)):
        pod = await node.pod(namespaces=own)
        assert pod.warden.pid != waiting
        kind = "net" if own.network is Sharing.NODE else "ipc"
        assert namespace(pod.warden.pid, kind) == namespace("self", kind)
    assert name(waiting) == "cri-jails-spare"


async def test_one_that_was_killed_costs_nobody_a_pod(node):
    killed = await spare(node)
    os.kill(killed, signal.SIGKILL)
    pod = await node.pod()
    assert pod.warden.pid != killed
    assert (await pod.run("true"))[0].exit_code == 0
    await spare(node, but=(killed,))


async def test_pods_at_once_get_one_each(node):
    waiting = await spare(node)
    pods = await asyncio.gather(*(node.pod() for _ in range(5)))
    pids = {pod.warden.pid for pod in pods}
    assert len(pids) == 5
    assert waiting in pids


async def test_it_ends_with_the_spawner(node):
    waiting = await spare(node)
    (launcher,) = children(waiting)
    node.host._spawner.close()
    async with asyncio.timeout(5):
        while Path(f"/proc/{waiting}").exists() or Path(f"/proc/{launcher}").exists():
            await asyncio.sleep(0.01)


async def test_what_a_first_container_touches_has_been_touched(node):
    """A page that a fork touches first is copied. A start without a rehearsal takes over 400 of them."""

    def faults(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])

    waiting = await spare(node)
    pod = await node.pod()
    assert pod.warden.pid == waiting
    before = faults(waiting)
    await pod.start(pod.container("sleep", "100"))
    assert faults(waiting) - before < 150
