"""Many execs, one after the other and at once: each is answered with its own output, and none leaves anything behind.

SOAK_EXECS is how many (2000, which takes an emulated machine some ten minutes), SOAK_AT_ONCE how many at the same time (200).
"""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from .conftest import Machine, run

EXECS = int(os.environ.get("SOAK_EXECS", "2000"))
AT_ONCE = int(os.environ.get("SOAK_AT_ONCE", "200"))

pytestmark = [pytest.mark.node, pytest.mark.timeout(3600)]


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(run("procstat", "-f", str(pid)).splitlines())


def resident(pid: int) -> int:
    """Kilobytes of a process in memory."""
    return int(run("ps", "-o", "rss=", "-p", str(pid)))


class Watched:
    """A container with its warden, and this process, which is its daemon: what they hold."""

    def __init__(self, machine: Machine, container: str) -> None:
        self.machine = machine
        self.container = container
        spec = machine.pods.container(container).spec
        self.jid = machine.kernel.jail_find(f"cri-{spec.sandbox_id}.c{container}").jid
        processes = run("ps", "-axo", "pid,command").splitlines()
        (self.warden,) = (int(line.split()[0]) for line in processes if "cri-jails-pod ns/soak " in line)

    async def exec(self, number: int, limit: float = 60.0) -> None:
        """One exec, with an output, an error and a code of its own."""
        script = f"echo {number}; echo error {number} >&2; exit {number % 100}"
        result = await self.machine.exec(self.container, "sh", "-c", script, limit=limit)
        expected = (b"%d\n" % number, b"error %d\n" % number, number % 100)
        assert (result.stdout, result.stderr, result.exit_code) == expected

    def open(self) -> tuple[int, int]:
        return descriptors(self.warden), descriptors(os.getpid())

    async def settled(self, before: tuple[int, int]) -> None:
        """Wait until only the container's own process is in the jail, nobody is left to reap, and descriptors are as before."""
        until = time.monotonic() + 30
        while True:
            inside = [process.pid for process in self.machine.kernel.processes([self.jid])]
            children = [line.split() for line in run("ps", "-axo", "ppid,state,pid").splitlines()]
            zombies = [
                words for words in children if words[0] == str(self.warden) and words[1].startswith("Z")
            ]
            now = self.open()
            grown = [after - then for after, then in zip(now, before, strict=True) if after > then]
            if len(inside) == 1 and not zombies and not grown:
                return
            assert time.monotonic() < until, (inside, zombies, now, before)
            await asyncio.sleep(0.2)


@pytest.fixture
async def watched(machine) -> Watched:
    return Watched(machine, await machine.container(await machine.pod("soak")))


async def test_thousands_of_execs(watched: Watched) -> None:
    for number in range(50):
        await watched.exec(number)
    before, memory = watched.open(), resident(watched.warden)
    for number in range(EXECS):
        await watched.exec(number)
    await watched.settled(before)
    print(f"\nthe warden: {memory} KiB before {EXECS} execs, {resident(watched.warden)} KiB after")
    assert resident(watched.warden) < memory + 512


async def test_hundreds_at_once(watched: Watched) -> None:
    await watched.exec(0)
    before = watched.open()
    begun = time.monotonic()
    await asyncio.gather(*(watched.exec(number, limit=600) for number in range(AT_ONCE)))
    print(f"\n{AT_ONCE} execs at once took {time.monotonic() - begun:.1f} s")
    await watched.settled(before)
