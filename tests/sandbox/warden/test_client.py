"""The daemon's side, with wardens that an older release has started."""

import array
import asyncio
import contextlib
import os
import socket
import termios

import pytest

from cri.sandbox.host import HostError
from cri.sandbox.spec import ProcessSpec, TerminalSize
from cri.sandbox.warden import protocol
from cri.sandbox.warden.client import WardenClient

PROCESS_OF_VERSION_1 = {"argv", "env", "cwd", "user", "tty", "stdin", "stdin_once"}


class Peer:
    """A warden that speaks a version of the protocol, and answers what is asked of it."""

    def __init__(self, version):
        self.lost = []
        self.requests = []
        self.terminal_unasked = False
        ours, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        protocol.send(self.channel, {"hello": "pod", "pid": 7, "version": version})
        self.client = WardenClient("pod", ours, self.lost.append)
        self.channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self.channel, self._serve)

    def _serve(self):
        received = protocol.receive(self.channel)
        if received is None:
            self.close()
            return
        message, descriptors = received
        self.requests.append(message)
        protocol.close_all(descriptors)
        if message["op"] == "exec":
            self._exec(message)
            return
        protocol.send(self.channel, {"id": message["id"], "ok": None})
        if message["op"] == "shutdown":
            self.close()

    def _exec(self, message):
        outcome = {"exec": "exec-1", "pid": 8}
        if not message["process"]["tty"] and not self.terminal_unasked:
            protocol.send(self.channel, {"id": message["id"], "ok": outcome})
            return
        master, self.terminal = os.openpty()
        protocol.send(self.channel, {"id": message["id"], "ok": outcome}, [master])
        os.close(master)

    def close(self):
        asyncio.get_running_loop().remove_reader(self.channel)
        self.channel.close()


@pytest.fixture
async def peer():
    made = []

    def make(version):
        made.append(Peer(version))
        return made[-1]

    yield make
    for one in made:
        await one.client.disconnect()
        if one.channel.fileno() >= 0:
            one.close()


async def test_a_pod_of_version_1_is_stopped_and_removed(peer):
    old = peer(1)
    await old.client.hello()
    await old.client.signal("c", 15)
    await old.client.kill("c")
    await old.client.forget("c")
    await old.client.shutdown()
    assert [request["op"] for request in old.requests] == ["signal", "kill", "forget", "shutdown"]
    assert old.lost == []


async def test_attach_to_a_pod_of_version_1_says_what_to_do(peer):
    old = peer(1)
    await old.client.hello()
    with pytest.raises(HostError, match=r"attach to container c: .* older release.*; make the pod anew"):
        await old.client.attach("c", stdin=None, stdout=1, stderr=None)
    assert old.requests == []


@pytest.mark.parametrize("version", [1, 2])
async def test_an_exec_and_the_size_of_its_terminal(peer, version):
    warden = peer(version)
    await warden.client.hello()
    process = ProcessSpec(("sh",), tty=True, terminal_size=TerminalSize(132, 43))
    running = await warden.client.exec("c", process, stdin=None, stdout=None, stderr=None)
    sent = warden.requests[0]["process"]
    try:
        if version == 1:  # what it does not know, it would refuse
            assert set(sent) == PROCESS_OF_VERSION_1
            assert termios.tcgetwinsize(warden.terminal) == (43, 132)
        else:
            assert sent["terminal_size"] == {"width": 132, "height": 43}
    finally:
        await running.close()
        os.close(warden.terminal)


async def test_a_terminal_that_was_not_asked_for_is_let_go(peer):
    """Earlier releases passed on the container's with every exec in it."""
    warden = peer(2)
    warden.terminal_unasked = True
    await warden.client.hello()
    running = await warden.client.exec("c", ProcessSpec(("sh",)), stdin=None, stdout=None, stderr=None)
    assert running.pty is None
    assert os.read(warden.terminal, 1) == b""  # hung up: nobody has the other end
    await running.close()
    os.close(warden.terminal)


@pytest.mark.parametrize("version", [None, 0, 3, "1"])
async def test_other_versions_are_refused(peer, version):
    with pytest.raises(
        HostError, match=f"it speaks version {version} of the protocol, this release versions 1 to 2"
    ):
        await peer(version).client.hello()


async def test_an_answer_whose_descriptors_do_not_fit_is_an_error_and_not_the_end(peer):
    warden = peer(2)
    await warden.client.hello()
    asyncio.get_running_loop().remove_reader(warden.channel)
    asking = asyncio.ensure_future(warden.client.socket(socket.AF_INET, socket.SOCK_STREAM))
    await asyncio.sleep(0)
    message, _ = protocol.receive(warden.channel)
    many = array.array("i", [warden.channel.fileno()] * (protocol.MAX_DESCRIPTORS + 1))
    data = protocol.encode({"id": message["id"], "ok": None})
    with contextlib.suppress(BlockingIOError):
        warden.channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)], socket.MSG_EOR)
    async with asyncio.timeout(5):
        with pytest.raises(HostError, match="the daemon has too many files open"):
            await asking
    asyncio.get_running_loop().add_reader(warden.channel, warden._serve)
    await warden.client.kill("c")
    assert warden.lost == []
