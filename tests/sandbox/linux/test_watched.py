"""What a container with SYS_PTRACE, as debug profiles have it, finds of all that comes into its process namespace: nothing of the node.

CVE-2016-9962's kind, through a real warden: execs, and starts of neighbours where the pod shares its processes.
"""

import asyncio
import itertools
import subprocess
from pathlib import Path

import pytest

from cri.sandbox.linux import capabilities
from cri.sandbox.spec import MountSpec, Namespaces, Security, Sharing

pytestmark = pytest.mark.node

WATCH = Path(__file__).parents[1] / "launcher/watch.c"
EXECS = 2000
STARTS = 60
AT_ONCE = 4
TRACER = Security(add_capabilities=("SYS_PTRACE",))
HARMLESS = {"/", "/dev/null", "/bin/busybox", "/bin/true", "/memfd:cri-jails-launcher", "sock", "pipe"}


@pytest.mark.parametrize("sharing", [Sharing.CONTAINER, Sharing.POD])
async def test_who_watches_finds_nothing_of_the_node(node, tmp_path, sharing):
    namespaces = Namespaces(pid=sharing)
    pod = await node.pod(namespaces=namespaces)
    program = tmp_path / "program"
    program.mkdir()
    subprocess.run(["cc", "-static", "-O1", "-o", program / "watch", WATCH], check=True)
    secret = tmp_path / "node-only"
    secret.write_text("a file of the node")
    mounts = (MountSpec(str(program), "/watch", readonly=True),)
    argv = ("/watch/watch", "2", str(4 * EXECS), str(secret))
    watcher = pod.container(*argv, name="watcher", security=TRACER, mounts=mounts)
    await pod.start(watcher)
    async with asyncio.timeout(10):
        while "watching" not in pod.output(watcher):
            await asyncio.sleep(0.01)

    numbers = itertools.count()

    async def execute():
        while next(numbers) < EXECS:
            running = await pod.start_exec(watcher, "true")
            assert await running.wait() == 0
            await running.close()

    async def start_neighbours():
        for number in range(STARTS if sharing is Sharing.POD else 0):
            spec = pod.container("true", name=f"neighbour-{number}", security=TRACER)
            await pod.start(spec)
            assert (await pod.exit_of(spec)).exit_code == 0

    async with asyncio.timeout(100):
        await asyncio.gather(start_neighbours(), *(execute() for _ in range(AT_ONCE)))

    lines = pod.output(watcher).splitlines()[1:]
    assert len(lines) > EXECS // 20  # most end before they are seen
    allowed = {"-", f"{capabilities.wanted(TRACER):016x}"}
    found = set()
    for line in lines:
        number, got, permitted, *links = line.split(" ")
        assert got == "0", line
        if int(number) > 2:
            assert permitted in allowed, line
            # The launcher's copy lies in memory: as a name, it has been deleted.
            found |= {link for link in links if link != "(deleted)"}
    assert found <= HARMLESS, found - HARMLESS
    assert "/memfd:cri-jails-launcher" in found  # it was seen early enough
