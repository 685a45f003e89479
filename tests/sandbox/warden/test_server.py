"""Requests and their answers, when descriptors run out."""

import array
import errno
import gc
import os
import socket
from pathlib import Path

import pytest

from cri.sandbox.host import HostError
from cri.sandbox.warden import protocol
from cri.sandbox.warden.server import Server, given_streams


class Daemon:
    """The other end of a server's connection."""

    def __init__(self, loop):
        self.loop = loop
        self.handled = []
        self.left = []
        self.ours, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        self.server = Server(loop, {"hello": "pod"}, self.handle, self.left.append)
        self.server.connect(self.ours)
        assert protocol.receive(self.channel) == ({"hello": "pod"}, [])

    def handle(self, connection, message, _):
        self.handled.append((connection, message))

    def ask(self, data, descriptors=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self.channel.sendmsg([data], rights if descriptors else [], socket.MSG_EOR)
        self.loop.idle(0.02)

    def answer(self):
        return protocol.receive(self.channel)[0]


@pytest.fixture
def daemon(loop):
    made = Daemon(loop)
    yield made
    made.channel.close()
    made.ours.close()


def open_descriptors():
    gc.collect()  # what other tests have left
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.parametrize("big", [False, True])
def test_a_request_whose_descriptors_are_lost_is_answered(daemon, big):
    many = [daemon.channel.fileno()] * (protocol.MAX_DESCRIPTORS + 1)
    if big:
        padding = "x" * protocol.MAX_PACKET
        protocol.send(daemon.channel, {"id": 5, "op": "exec", "padding": padding}, many)
        daemon.loop.idle(0.02)
    else:
        daemon.ask(b'{"id":5,"op":"exec"}', many)
    answer = daemon.answer()
    assert answer["id"] == 5
    assert answer["error"]["errno"] == errno.EMFILE
    daemon.ask(b'{"id":6}')
    assert [message for _, message in daemon.handled] == [{"id": 6}]


def test_what_cannot_be_copied_is_not_sent(daemon):
    daemon.ask(b'{"id":1}')
    ((connection, _),) = daemon.handled
    spare = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()
    with pytest.raises(OSError, match="Bad file descriptor"):
        daemon.server.post(connection, {"id": 1, "ok": None}, [spare, 1_000_000])
    assert open_descriptors() == before
    os.close(spare)
    with pytest.raises(BlockingIOError):
        daemon.answer()
    daemon.server.post(connection, {"id": 1, "ok": None})
    assert daemon.answer() == {"id": 1, "ok": None}


def test_a_daemon_that_cannot_be_greeted_is_not_served(loop):
    left = []
    server = Server(loop, {"hello": "pod"}, lambda *_: None, left.append)
    server.announced.append(1_000_000)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server.connect(ours)
        assert protocol.receive(theirs) is None
    assert len(left) == 1


def test_streams_by_their_names():
    assert given_streams({"stdio": [True, False, True]}, [7, 8]) == {"stdin": 7, "stderr": 8}
    assert given_streams({"stdio": [False, False, False]}, []) == {}
    for stdio, descriptors in (
        ([True, True, True], [7]),
        ([False] * 3, [7]),
        ([True], [7]),
        (7, []),
        (None, []),
    ):
        with pytest.raises(HostError, match=r"understand request 'exec': it has . descriptors for stdio"):
            given_streams({"op": "exec", "stdio": stdio}, descriptors)
