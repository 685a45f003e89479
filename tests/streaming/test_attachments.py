from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from cri.sandbox.host import Attachment
from cri.streaming.attachments import run_attach
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams


class Attached(Attachment):
    """A warden's end: holds copies of the descriptors, as a warden does."""

    def __init__(self, **streams: int | None) -> None:
        self.pty = None
        self.fds = {name: os.dup(fd) for name, fd in streams.items() if fd is not None}
        self.reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait(self) -> str:
        return await asyncio.shield(self.reason)

    async def close(self) -> None:
        self.end("it was detached")

    def end(self, reason: str = "") -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}
        if not self.reason.done():
            self.reason.set_result(reason)

    def print(self, text: bytes, name: str = "stdout") -> None:
        os.write(self.fds[name], text)


class Warden:
    def __init__(self) -> None:
        self.attached: asyncio.Queue[Attached] = asyncio.Queue()

    async def attach(self, container_id: str, **streams: int | None) -> Attached:
        made = Attached(**streams)
        self.attached.put_nowait(made)
        return made


@pytest.fixture
def keeper() -> Warden:
    return Warden()


@pytest.fixture
def begin(keeper, container, client, streams):
    """Starts sessions; the task, and the warden's end."""

    async def start(idle_timeout: float = 60, streams: Streams = streams, **process: bool):
        spec = replace(container, process=replace(container.process, **process))
        running = asyncio.create_task(run_attach(keeper, spec, streams, client, idle_timeout))
        return running, await keeper.attached.get()

    return start


async def ended(running: asyncio.Task[Outcome]) -> Outcome:
    async with asyncio.timeout(5):
        return await running


async def test_outputs_arrive_apart_until_the_container_ends(begin, client):
    running, attached = await begin()
    attached.print(b"out")
    attached.print(b"err", "stderr")
    await client.see(b"out")
    attached.print(b" and the last")
    attached.end()
    assert await ended(running) == Outcome()
    assert client.output == {Output.STDOUT: b"out and the last", Output.STDERR: b"err"}


async def test_a_terminal_has_one_output(begin):
    running, attached = await begin(tty=True)
    assert set(attached.fds) == {"stdin", "stdout"}
    attached.end()
    await ended(running)


async def test_stdin_arrives_and_its_end_too_where_it_is_for_the_program(begin, client):
    running, attached = await begin(stdin_once=True)
    client.input.put_nowait(b"some")
    client.input.put_nowait(b"")
    await asyncio.sleep(0.1)
    assert os.read(attached.fds["stdin"], 100) == b"some"
    assert os.read(attached.fds["stdin"], 100) == b""
    attached.print(b"still here")
    await client.see(b"still here")
    assert not running.done()
    attached.end()
    await ended(running)


@pytest.mark.parametrize("process", [{}, {"tty": True}, {"tty": True, "stdin_once": True}])
async def test_a_client_leaves_by_the_end_of_its_stdin(begin, client, process):
    running, attached = await begin(**process)
    attached.print(b"the last")
    client.input.put_nowait(b"")
    assert await ended(running) == Outcome()
    assert client.output[Output.STDOUT] == b"the last"
    assert attached.reason.result() == "it was detached"


async def test_a_client_that_goes_is_detached(begin, client):
    running, attached = await begin()
    client.leave()
    with pytest.raises(ClientGoneError):
        await ended(running)
    assert attached.reason.result() == "it was detached"


async def test_whoever_is_let_go_is_told_why(begin, client):
    running, attached = await begin()
    attached.end("it has read nothing")
    assert await ended(running) == Outcome(error="detached: it has read nothing")


async def test_an_attachment_in_which_nothing_moves_is_ended(begin, client):
    running, attached = await begin(idle_timeout=0.3)
    assert await ended(running) == Outcome(error="detached: nothing had moved for 0.3 s")
    assert not attached.fds
