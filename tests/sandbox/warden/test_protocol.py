"""Messages between daemon, spawner and warden."""

import gc
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.warden import protocol

bytes_as_text = st.binary(max_size=40).map(os.fsdecode)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | bytes_as_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(bytes_as_text, inner, max_size=4),
    max_leaves=12,
)
messages = st.dictionaries(bytes_as_text.filter(lambda key: key != "spilled"), values, max_size=6)


def open_descriptors() -> int:
    gc.collect()  # what other tests have left
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@given(messages)
def test_any_text_survives(message):
    data = protocol.encode(message)
    assert data.isascii()
    assert protocol.decode(data) == message


@given(st.binary(max_size=200))
def test_garbage_is_refused(data):
    try:
        message = protocol.decode(data)
    except protocol.ProtocolError:
        return
    assert isinstance(message, dict)


@pytest.mark.parametrize(
    "size", [1, protocol.MAX_PACKET - 8, protocol.MAX_PACKET, protocol.MAX_PACKET + 1, 3_000_000]
)
def test_small_and_big_messages_with_descriptors(pair, size):
    ours, theirs = pair
    reading, writing = os.pipe()
    before = open_descriptors()
    protocol.send(ours, {"x": "y" * size}, [reading, writing])
    message, descriptors = protocol.receive(theirs)
    assert message == {"x": "y" * size}
    assert len(descriptors) == 2
    assert not any(os.get_inheritable(fd) for fd in descriptors)
    os.write(descriptors[1], b"through")
    assert os.read(reading, 10) == b"through"
    protocol.close_all(descriptors)
    assert open_descriptors() == before
    protocol.close_all([reading, writing])


def test_end_of_connection(pair):
    ours, theirs = pair
    ours.close()
    assert protocol.receive(theirs) is None


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"x",
        b'{"spilled":5}',
        b'{"spilled":-1}',
        b'{"spilled":"x"}',
        b'{"spilled":99999999999}',
        b"{" * protocol.MAX_PACKET * 2,
    ],
)
@pytest.mark.parametrize("with_descriptor", [False, True])
def test_bad_packets_leave_no_descriptor_open(pair, packet, with_descriptor):
    ours, theirs = pair
    with Path("/dev/null").open() as file:
        before = open_descriptors()
        if not packet and not with_descriptor:
            return
        socket.send_fds(ours, [packet], [file.fileno()] if with_descriptor else [], socket.MSG_EOR)
        with pytest.raises(protocol.ProtocolError):
            protocol.receive(theirs)
        assert open_descriptors() == before
    protocol.send(ours, {"still": "usable"})
    assert protocol.receive(theirs) == ({"still": "usable"}, [])


def test_too_many_descriptors(pair):
    ours, theirs = pair
    with Path("/dev/null").open() as file:
        socket.send_fds(ours, [b"{}"], [file.fileno()] * (protocol.MAX_DESCRIPTORS + 1))
        before = open_descriptors()
        with pytest.raises(protocol.ProtocolError):
            protocol.receive(theirs)
        assert open_descriptors() == before


def test_peer(pair):
    assert protocol.peer(pair[0]) == (os.geteuid(), os.getpid())


def test_socket_paths_have_a_limit():
    assert protocol.check_path("/run/x.sock") == "/run/x.sock"
    with pytest.raises(ValueError, match="choose a shorter runtime directory"):
        protocol.check_path("/" + "x" * 120)


def test_what_is_sent_in_a_row_stays_apart():
    """FreeBSD 15 joins packets whose sender does not say that they end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for number in range(3):
            protocol.send(ours, {"n": number})
        assert [protocol.receive(theirs) for _ in range(3)] == [({"n": number}, []) for number in range(3)]


def test_a_peer_that_does_not_read_costs_no_message_but_the_last():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for end in (ours, theirs):
            protocol.prepare(end)
            end.setblocking(False)
        sent = 0
        with pytest.raises(OSError, match=r"unavailable|No buffer space"):
            while True:
                protocol.send(ours, {"n": sent, "text": "x" * 3000})
                sent += 1
        assert sent * 3000 > 100_000
        for number in range(sent):
            message, _ = protocol.receive(theirs)
            assert message["n"] == number
        with pytest.raises((BlockingIOError, protocol.ProtocolError)):
            protocol.receive(theirs)


def test_copies_are_all_or_none():
    with Path("/dev/null").open() as file:
        before = open_descriptors()
        copies = protocol.duplicate([file.fileno(), file.fileno()])
        assert open_descriptors() == before + 2
        protocol.close_all(copies)
        with pytest.raises(OSError, match="Bad file descriptor"):
            protocol.duplicate([file.fileno(), 1_000_000])
        assert open_descriptors() == before
