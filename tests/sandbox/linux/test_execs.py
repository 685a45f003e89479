"""An exec's streams are its own, whatever streams the container has."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from cri.sandbox.exec import exec_sync
from cri.sandbox.spec import ProcessSpec

pytestmark = pytest.mark.node

ECHO = ProcessSpec(("sh", "-c", "while read line; do echo shell: $line; done"), tty=True, stdin=True)
"""What is said to the container comes back as the shell's."""


@pytest.fixture
async def shell(pod):
    """A container with a terminal and stdin."""
    spec = pod.container(process=ECHO)
    await pod.start(spec)
    return spec


@asynccontextmanager
async def streams(*names):
    """Pipes by name: the process's ends, and ours."""
    theirs, ours = {"stdin": None, "stdout": None, "stderr": None}, {}
    for name in names:
        reading, writing = os.pipe()
        theirs[name], ours[name] = (reading, writing) if name == "stdin" else (writing, reading)
    try:
        yield theirs, ours
    finally:
        for fd in (*theirs.values(), *ours.values()):
            if fd is not None:
                os.close(fd)


def hand_out(theirs):
    for name, fd in theirs.items():
        if fd is not None:
            os.close(fd)
            theirs[name] = None


async def read_all(fd):
    found = b""
    async with asyncio.timeout(10):
        while data := await asyncio.to_thread(os.read, fd, 65536):
            found += data
    return found


async def say(fd, text):
    await asyncio.to_thread(os.write, fd, text)


async def test_without_a_terminal_in_a_container_that_has_one(pod, shell):
    async with streams("stdin", "stdout", "stderr") as (theirs, ours):
        process = ProcessSpec(("sh", "-c", "tty; cat; echo err >&2; exit 6"))
        running = await pod.warden.exec(shell.id, process, **theirs)
        hand_out(theirs)
        assert running.pty is None
        await say(ours["stdin"], b"rm -rf /\n")
        os.close(ours.pop("stdin"))
        assert await read_all(ours["stdout"]) == b"not a tty\nrm -rf /\n"
        assert await read_all(ours["stderr"]) == b"err\n"
        assert await running.wait() == 6
        await running.close()
    assert pod.output(shell) == ""


async def test_on_a_terminal_of_its_own(pod, shell):
    for spec, expected in (
        (shell, b"/dev/pts/1\r\n"),
        (pod.container("sleep", "100", name="plain"), b"/dev/pts/0\r\n"),
    ):
        if spec is not shell:
            await pod.start(spec)
        running = await pod.warden.exec(
            spec.id, ProcessSpec(("tty",), tty=True), stdin=None, stdout=None, stderr=None
        )
        assert await running.wait() == 0
        assert os.read(running.pty, 100) == expected
        await running.close()


async def test_with_stdin_only(pod, shell):
    async with streams("stdin") as (theirs, ours):
        running = await pod.warden.exec(
            shell.id, ProcessSpec(("sh", "-c", "cat >/tmp/heard; echo lost")), **theirs
        )
        hand_out(theirs)
        assert running.pty is None
        await say(ours["stdin"], b"for the file\n")
        os.close(ours.pop("stdin"))
        assert await running.wait() == 0
        await running.close()
    assert await pod.exec(shell, "cat", "/tmp/heard") == (0, "for the file\n")
    assert pod.output(shell) == ""


async def test_several_at_once_beside_one_who_is_attached(pod, shell):
    async with streams("stdin", "stdout") as (theirs, ours):
        attachment = await pod.warden.attach(shell.id, **theirs)
        hand_out(theirs)
        execs = [
            pod.exec(shell, "sh", "-c", f"sleep 0.1; seq {number} {number + 500}") for number in range(8)
        ]
        outputs = asyncio.gather(*execs)
        await say(ours["stdin"], b"hello\n")
        assert await outputs == [
            (0, "".join(f"{line}\n" for line in range(number, number + 501))) for number in range(8)
        ]
        heard = b""
        async with asyncio.timeout(10):
            while b"shell: hello" not in heard:
                heard += await asyncio.to_thread(os.read, ours["stdout"], 65536)
        await attachment.close()
    assert [line.rstrip("\r") for line in pod.output(shell).split("\n")] == ["hello", "shell: hello"]


async def test_exec_sync_in_a_container_with_a_terminal(pod, shell):
    result = await exec_sync(pod.warden, shell, ["sh", "-c", "echo out; echo err >&2; tty; exit 3"], 10)
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\nnot a tty\n", b"err\n", 3)
    assert pod.output(shell) == ""
