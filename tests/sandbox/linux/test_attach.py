"""Attaching to real containers: what they print, what they are told, their terminals."""

import asyncio
import contextlib
import fcntl
import os
import re
import resource
import struct
import termios
import time
from pathlib import Path

import pytest

from cri.sandbox.host import DisconnectedError, HostError, WardenGoneError
from cri.sandbox.spec import ProcessSpec, TerminalSize

pytestmark = pytest.mark.node


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Client:
    """Somebody who is attached, with our ends of the streams."""

    def __init__(self, warden, spec):
        self._warden = warden
        self._spec = spec
        self.stdin = self.stdout = self.stderr = -1

    async def attach(self, *, stdin=False, stdout=True, stderr=False):
        theirs = []
        given = dict.fromkeys(("stdin", "stdout", "stderr"))
        try:
            for name, wanted in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
                if wanted:
                    reads, writes = os.pipe()
                    ours, end = (writes, reads) if name == "stdin" else (reads, writes)
                    given[name] = end
                    theirs.append(end)
                    setattr(self, name, ours)
            self.attachment = await self._warden.attach(self._spec.id, **given)
        finally:
            for fd in theirs:
                os.close(fd)
        return self

    def say(self, data):
        os.write(self.stdin, data)

    async def hear(self, size, seconds=10):
        """So many bytes, or less at the end."""
        got = b""
        async with asyncio.timeout(seconds):
            while len(got) < size:
                more = await asyncio.to_thread(os.read, self.stdout, size - len(got))
                if not more:
                    break
                got += more
        return got

    async def hear_until(self, text, seconds=10):
        got = b""
        async with asyncio.timeout(seconds):
            while text not in got:
                more = await asyncio.to_thread(os.read, self.stdout, 65536)
                assert more, got
                got += more
        return got

    async def wait(self, seconds=10):
        async with asyncio.timeout(seconds):
            return await self.attachment.wait()

    def end_stdin(self):
        os.close(self.stdin)
        self.stdin = -1

    async def close(self):
        if hasattr(self, "attachment"):
            with contextlib.suppress(HostError):
                await self.attachment.close()
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.stdin = self.stdout = self.stderr = -1


@pytest.fixture
async def clients():
    made = []

    async def attach(warden, spec, **streams):
        made.append(Client(warden, spec))
        return await made[-1].attach(**streams)

    before = descriptors(os.getpid())
    yield attach
    for client in made:
        await client.close()
    assert descriptors(os.getpid()) <= before + 1  # a warden more, or less


async def cat(pod, **process):
    spec = pod.container(process=ProcessSpec(("cat",), stdin=True, **process))
    await pod.start(spec)
    return spec


async def test_two_talk_to_cat_and_both_hear_it(pod, clients):
    spec = await cat(pod)
    first = await clients(pod.warden, spec, stdin=True)
    second = await clients(pod.warden, spec, stdin=True)
    first.say(b"one\n")
    assert await first.hear(4) == b"one\n"
    second.say(b"two\n")
    assert await first.hear(4) == b"two\n"
    assert await second.hear(8) == b"one\ntwo\n"
    assert pod.output(spec) == "one\ntwo"
    first.end_stdin()
    second.say(b"still there\n")
    assert await first.hear(12) == b"still there\n"
    await first.attachment.close()
    assert await first.hear(1) == b""
    second.say(b"you?\n")
    assert await second.hear(17) == b"still there\nyou?\n"
    await pod.warden.kill(spec.id)
    assert await second.wait() == ""
    assert await second.hear(1) == b""


async def test_stdin_once_ends_cat(pod, clients):
    spec = await cat(pod, stdin_once=True)
    client = await clients(pod.warden, spec, stdin=True)
    data = bytes(range(256)) * 4096
    hearing = asyncio.ensure_future(client.hear(len(data) + 1))
    await asyncio.to_thread(client.say, data)
    client.end_stdin()
    assert await hearing == data
    assert await client.wait() == ""
    assert (await pod.exit_of(spec)).exit_code == 0


async def test_stdin_once_counts_a_client_that_is_gone(node, pod, clients):
    spec = await cat(pod, stdin_once=True)
    other = await node.host.find_warden(pod.spec)
    client = await clients(other, spec, stdin=True)
    client.say(b"last\n")
    await other.disconnect()
    with pytest.raises(DisconnectedError):
        await client.wait()
    assert (await pod.exit_of(spec)).exit_code == 0
    assert pod.output(spec) == "last"


async def test_stdin_that_is_closed_or_was_never_there(pod, clients):
    spec = pod.container(
        process=ProcessSpec(("sh", "-c", "cat; echo done; sleep 100"), stdin=True, stdin_once=True)
    )
    await pod.start(spec)
    client = await clients(pod.warden, spec, stdin=True)
    client.end_stdin()
    assert await client.hear(5) == b"done\n"
    with pytest.raises(HostError, match="has been closed: somebody's stdin has ended"):
        await clients(pod.warden, spec, stdin=True)
    await clients(pod.warden, spec)
    deaf = pod.container("sleep", "100", name="d")
    await pod.start(deaf)
    with pytest.raises(HostError, match="it was created without one"):
        await clients(pod.warden, deaf, stdin=True)
    with pytest.raises(HostError, match="no stream was asked for"):
        await clients(pod.warden, deaf, stdout=False)


async def test_a_container_that_does_not_run(pod, clients):
    spec = pod.container("true")
    with pytest.raises(HostError, match="its warden has not started it"):
        await clients(pod.warden, spec)
    await pod.start(spec)
    await pod.exit_of(spec)
    with pytest.raises(HostError, match="it is not running"):
        await clients(pod.warden, spec)


async def test_outputs_are_apart(pod, clients):
    script = "read x; echo out; echo err >&2; exec >&- 2>&-; sleep 100"
    spec = pod.container(process=ProcessSpec(("sh", "-c", script), stdin=True))
    await pod.start(spec)
    client = await clients(pod.warden, spec, stdin=True, stderr=True)
    client.say(b"go\n")
    assert await client.hear(100) == b"out\n"
    assert os.read(client.stderr, 100) == b"err\n"
    assert os.read(client.stderr, 100) == b""
    assert await client.wait() == ""
    assert not (await pod.warden.containers())[0].exited


def resize(pty, width, height):
    fcntl.ioctl(pty, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


async def test_a_terminal_and_its_size(pod, clients):
    process = ProcessSpec(("sh",), tty=True, stdin=True, stdin_once=True, terminal_size=TerminalSize(101, 37))
    spec = pod.container(process=process)
    await pod.start(spec)
    client = await clients(pod.warden, spec, stdin=True, stderr=True)
    assert os.read(client.stderr, 1) == b""  # a terminal has one output
    client.say(b"stty size\n")
    await client.hear_until(b"37 101\r\n")
    resize(client.attachment.pty, 81, 25)
    client.say(b"stty size\n")
    await client.hear_until(b"25 81\r\n")
    client.end_stdin()
    other = await clients(pod.warden, spec, stdin=True)
    other.say(b"echo $((40 + 2))\n")
    await client.hear_until(b"42\r\n")
    other.say(b"exit 3\n")
    assert (await pod.exit_of(spec)).exit_code == 3
    assert await client.wait() == await other.wait() == ""


async def test_an_exec_finds_its_terminal_in_size(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    for size, seen in ((TerminalSize(132, 43), (43, 132)), (TerminalSize(9**9, 1), (1, 65535))):
        process = ProcessSpec(("stty", "size"), tty=True, terminal_size=size)
        running = await pod.warden.exec(spec.id, process, stdin=None, stdout=None, stderr=None)
        assert await running.wait() == 0
        assert termios.tcgetwinsize(running.pty) == seen
        if size.width < 10_000:  # busybox believes no more
            assert os.read(running.pty, 100) == b"%d %d\r\n" % seen
        await running.close()


async def test_who_never_reads_delays_the_log_by_a_second(pod, clients):
    spec = pod.container(
        process=ProcessSpec(("sh", "-c", "read x; dd if=/dev/zero bs=1M count=20 | tr '\\0' x"), stdin=True)
    )
    await pod.start(spec)
    client = await clients(pod.warden, spec, stdin=True)
    start = time.monotonic()
    client.say(b"go\n")
    assert "it has taken too little for 1 s" in await client.wait()
    assert (await pod.exit_of(spec)).exit_code == 0
    took = time.monotonic() - start
    assert 0.9 <= took < 4
    assert sum(map(len, pod.output(spec).split("\n"))) >= 20 << 20


async def test_a_slow_reader_gets_every_byte(pod, clients):
    script = "read x; seq 1 750000"
    spec = pod.container(process=ProcessSpec(("sh", "-c", script), stdin=True))
    await pod.start(spec)
    client = await clients(pod.warden, spec, stdin=True)
    client.say(b"go\n")
    expected = b"".join(b"%d\n" % number for number in range(1, 750_001))
    assert len(expected) > 5_000_000
    got = b""
    while piece := await client.hear(256 * 1024):
        got += piece
        await asyncio.sleep(0.1)
    assert got == expected
    assert await client.wait() == ""
    assert pod.output(spec).encode() + b"\n" == expected


async def test_a_connection_that_dies_detaches_and_the_process_goes_on(node, pod, clients):
    spec = await cat(pod)
    other = await node.host.find_warden(pod.spec)
    gone = await clients(other, spec, stdin=True)
    await other.disconnect()
    assert await gone.hear(1) == b""
    with pytest.raises(BrokenPipeError):
        while True:
            gone.say(b"x")
            await asyncio.sleep(0.01)
    client = await clients(pod.warden, spec, stdin=True)
    client.say(b"hello\n")
    assert await client.hear(6) == b"hello\n"
    os.kill(pod.warden.pid, 9)
    with pytest.raises(WardenGoneError):
        await client.wait()


async def test_a_cancelled_attach_leaves_nothing(pod, clients):
    spec = await cat(pod)
    await asyncio.sleep(0.1)
    before = descriptors(pod.warden.pid)
    for delay in (0, 0.0002, 0.0005, 0.001, 0.003, 0.01):
        client = Client(pod.warden, spec)
        attaching = asyncio.ensure_future(client.attach(stdin=True))
        await asyncio.sleep(delay)
        attaching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await attaching
        await client.close()
    async with asyncio.timeout(5):
        while descriptors(pod.warden.pid) != before:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while pod.warden._attachments._unwanted:
            await asyncio.sleep(0.01)
    assert not pod.warden._attachments._live
    assert not pod.warden._attachments._early


async def test_many_attach_and_leave(pod, clients):
    spec = pod.container("sh", "-c", "while :; do echo tick; done")
    await pod.start(spec)
    await asyncio.sleep(0.1)
    before = descriptors(pod.warden.pid)

    async def one():
        client = await Client(pod.warden, spec).attach()
        got = await client.hear(20_000)
        await client.close()
        return len(got) == 20_000 and got in b"tick\n" * 4001

    for _ in range(5):
        assert all(await asyncio.gather(*(one() for _ in range(20))))
    assert descriptors(pod.warden.pid) == before
    assert not pod.warden._attachments._live
    await pod.warden.kill(spec.id)


async def test_more_than_a_warden_has_descriptors_for_are_refused(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    reads, writes = os.pipe()

    async def attach():
        return await pod.warden.attach(spec.id, stdin=None, stdout=writes, stderr=None)

    attached = [await attach() for _ in range(256)]
    with pytest.raises(
        HostError, match="256 clients are attached to its pod's containers already; detach one"
    ):
        await attach()
    assert await pod.exec(spec, "echo", "fine") == (0, "fine\n")
    await attached.pop().close()
    attached.append(await attach())
    for one in attached:
        await one.close()
    os.close(reads)
    os.close(writes)


async def test_requests_whose_descriptors_do_not_fit_are_answered(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    await asyncio.sleep(0.1)
    pid = pod.warden.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = [number for number in range(max(used) + 20) if number not in used]
    null = os.open("/dev/null", os.O_RDWR)

    def requests():
        yield pod.warden.attach(spec.id, stdin=None, stdout=null, stderr=null)
        for tty in (False, True):
            process = ProcessSpec(("sleep", "100"), tty=tty)
            given = None if tty else null
            yield pod.warden.exec(spec.id, process, stdin=given, stdout=given, stderr=given)

    async with asyncio.timeout(20):
        for number in range(10):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[number], before[1]))
            for request in requests():
                try:
                    opened = await request
                except HostError as error:
                    assert not isinstance(error, WardenGoneError)  # noqa: PT017
                else:
                    assert number > 0
                    await opened.close()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    os.close(null)
    assert await pod.exec(spec, "echo", "fine") == (0, "fine\n")
    async with asyncio.timeout(5):
        while descriptors(pid) != len(used):
            await asyncio.sleep(0.01)


async def test_an_end_that_is_told_before_the_answer(pod, clients):
    spec = pod.container("sh", "-c", "exec >&- 2>&-; sleep 100")
    await pod.start(spec)
    await asyncio.sleep(0.3)
    client = await clients(pod.warden, spec)
    assert await client.wait() == ""
    assert await client.hear(1) == b""
    await client.attachment.close()
    assert not pod.warden._attachments._early
    assert not pod.warden._attachments._unwanted


async def test_killed_execs_are_forgotten(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    for _ in range(5):
        running = await pod.start_exec(spec, "sleep", "100")
        await running.close()
    async with asyncio.timeout(5):
        while pod.warden._execs._unwanted:
            await asyncio.sleep(0.01)
    assert not pod.warden._execs._live
    assert not pod.warden._execs._early


async def test_a_log_of_a_busy_program_is_fast_and_well_formed(pod):
    """100 MB in short lines; it fails only for what is wrong by an order of magnitude."""
    spec = pod.container("sh", "-c", "yes 'a line of 20 bytes.' | head -c 100000005")
    start = time.monotonic()
    await pod.start(spec)
    await pod.exit_of(spec, 60)
    took = time.monotonic() - start
    print(f"{100 / took:.0f} MB/s")
    await asyncio.sleep(0.1)
    whole = re.compile(rb"[0-9T:.-]{29}Z stdout F a line of 20 bytes[.]\n")
    lines = 0
    others = []
    with Path(spec.log_path).open("rb") as log:
        for record in log:
            if whole.fullmatch(record):
                lines += 1
            else:
                others.append(record[-17:])
    assert (lines, others) == (5_000_000, [b"Z stdout P a lin\n"])
    assert took < 30
