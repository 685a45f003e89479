"""What of a dump is decoded, and how clients are lent; the rest is in test_nat_linux.py."""

import struct
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.errors import KernelError, MalformedMessageError
from cni_plugins.linux import conntrack
from cni_plugins.linux.conntrack import DIALECT, Mentioning
from cni_plugins.linux.nftables import NetfilterHeader
from cni_plugins.linux.standing import Standing
from cni_plugins.netlink.client import UnansweredError
from cni_plugins.netlink.messages import Done, Message

addresses = st.ip_addresses()
DONE = struct.pack("=IHHIIi", 20, 3, 2, 7, 0, 0)


def message(source):
    name = f"src{source.version}"
    return DIALECT.encode(
        Message(conntrack.NEW, NetfilterHeader(2), {"original": {"ip": {name: source}}, "id": 1})
    )


@given(st.lists(addresses), st.sets(addresses, min_size=1))
def test_whatever_mentions_one_is_decoded_and_the_end_always(sources, sought):
    datagram = b"".join(map(message, sources)) + DONE
    *found, end = Mentioning([one.packed for one in sought]).decode(datagram)
    assert isinstance(end, Done)
    everything = DIALECT.decode(datagram)
    assert [one for one in everything[:-1] if conntrack_source(one) in sought] == [
        one for one in found if conntrack_source(one) in sought
    ]
    # An address may be in other bytes, too; most are not.
    assert all(any(one.packed in message(conntrack_source(each)) for one in sought) for each in found)


def conntrack_source(message_):
    (source,) = message_.attributes["original"]["ip"].values()
    return source


@given(st.binary(), st.lists(addresses))
def test_bytes_that_are_no_messages_are_the_typed_error(garbage, sources):
    datagram = b"".join(map(message, sources)) + garbage
    try:
        DIALECT.decode(datagram)
    except MalformedMessageError:
        refused = True
    else:
        refused = False
    try:
        Mentioning([one.packed for one in sources] or [b"x"]).decode(datagram)
    except MalformedMessageError:
        assert refused, "only what is passed over may be wrong"


class Clerk:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


def test_nobody_waits_for_a_client():
    made = []
    standing = Standing(lambda: made.append(Clerk()) or made[-1])
    together = Barrier(3, timeout=5)

    def work(_):
        with standing.lent() as client:
            together.wait()
        return client

    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(work, range(3)))) == 3
    with standing.lent() as client:
        assert client in made
    assert len(made) == 3


def test_clients_go_with_who_lends_them():
    made = []
    standing = Standing(lambda: made.append(Clerk()) or made[-1])
    with standing.lent(), standing.lent():
        pass
    assert [one.closed for one in made] == [False, False]
    del standing
    assert [one.closed for one in made] == [True, True]


@pytest.mark.parametrize(
    ("error", "closed"),
    [
        (KernelError(1, "do", "it"), False),
        (UnansweredError(1, "do", "it"), True),
        (KeyboardInterrupt(), True),
    ],
)
def test_a_client_whose_next_answer_is_unsure_is_lent_no_more(error, closed):
    standing = Standing(Clerk)
    with pytest.raises(type(error)), standing.lent() as first:
        raise error
    with standing.lent() as second:
        assert first.closed == closed
        assert (second is first) != closed
