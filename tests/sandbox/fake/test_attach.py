"""Attaching on the host in memory follows the contract of the real one."""

import asyncio
import os
from pathlib import Path

import pytest

from cri.sandbox.fake import FakeHost, FakeKernel
from cri.sandbox.host import DisconnectedError, HostError, WardenGoneError
from cri.sandbox.spec import ContainerSpec, ProcessSpec, SandboxSpec


class Fake:
    """A pod in memory."""

    def __init__(self, directory):
        self.directory = directory
        self.host = FakeHost(FakeKernel(), directory)
        self.sandbox = SandboxSpec("pod", "pod", "ns", str(directory), str(directory))

    async def start(self, *argv, name="c", **process):
        if not self.host.wardens:
            await self.host.open(lambda _: None)
            self.warden = await self.host.create_sandbox(self.sandbox)
        directory = self.directory / name
        directory.mkdir()
        spec = ContainerSpec(name, "pod", str(directory), (), ProcessSpec(argv, **process))
        await self.host.create_container(spec)
        await self.warden.start(spec)
        return name

    async def attach(self, container, pipes, **streams):
        """The attachment, and our ends."""
        given = dict.fromkeys(("stdin", "stdout", "stderr"))
        ours = {}
        for name, wanted in streams.items():
            if wanted:
                reads, writes = pipes()
                ours[name], given[name] = (writes, reads) if name == "stdin" else (reads, writes)
        try:
            return await self.warden.attach(container, **given), ours
        finally:
            for fd in given.values():
                if fd is not None:
                    os.close(fd)


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


@pytest.fixture
def pipes():
    return os.pipe


async def read(fd, size):
    async with asyncio.timeout(5):
        return await asyncio.to_thread(os.read, fd, size)


async def test_cat(fake, pipes):
    container = await fake.start("cat", stdin=True, stdin_once=True)
    attachment, ours = await fake.attach(container, pipes, stdin=True, stdout=True, stderr=True)
    other, theirs = await fake.attach(container, pipes, stdout=True)
    os.write(ours["stdin"], b"hello")
    assert await read(ours["stdout"], 100) == b"hello"
    assert await read(theirs["stdout"], 100) == b"hello"
    fake.warden.print(container, "stderr", b"oops")
    assert await read(ours["stderr"], 100) == b"oops"
    await other.close()
    assert await read(theirs["stdout"], 100) == b""
    os.close(ours.pop("stdin"))
    assert await attachment.wait() == ""
    assert await read(ours["stdout"], 100) == b""
    assert (await fake.warden.containers())[0].exited.exit_code == 0
    await attachment.close()
    for fd in (*ours.values(), *theirs.values()):
        os.close(fd)


async def test_refusals(fake, pipes):
    deaf = await fake.start("sleep")
    with pytest.raises(HostError, match="it was created without one"):
        await fake.warden.attach(deaf, stdin=0, stdout=None, stderr=None)
    with pytest.raises(HostError, match="it is not running"):
        await fake.warden.attach("nobody", stdin=None, stdout=1, stderr=None)
    await fake.warden.kill(deaf)
    with pytest.raises(HostError, match="it is not running"):
        await fake.warden.attach(deaf, stdin=None, stdout=1, stderr=None)


async def test_who_never_reads_is_let_go(fake, pipes):
    container = await fake.start("sleep")
    attachment, ours = await fake.attach(container, pipes, stdout=True)
    fake.warden.print(container, "stdout", b"x" * (2 << 20))
    async with asyncio.timeout(5):
        assert "it has taken too little" in await attachment.wait()
    os.close(ours["stdout"])


@pytest.mark.parametrize("kind", ["disconnect", "shutdown", "kill"])
async def test_the_end_of_the_connection(fake, pipes, kind):
    container = await fake.start("cat", stdin=True)
    attachment, ours = await fake.attach(container, pipes, stdin=True, stdout=True)
    before = len(list(Path("/dev/fd").iterdir()))
    if kind == "disconnect":
        await fake.warden.disconnect()
    elif kind == "shutdown":
        await fake.warden.shutdown()
    else:
        fake.host.kill_warden("pod")
    with pytest.raises(DisconnectedError if kind == "disconnect" else WardenGoneError):
        await attachment.wait()
    assert await read(ours["stdout"], 10) == b""
    assert len(list(Path("/dev/fd").iterdir())) < before
    for fd in ours.values():
        os.close(fd)
    await fake.warden.shutdown()
