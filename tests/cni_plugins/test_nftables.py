"""nf_tables' messages: the codec against itself, and what we make against what nft(8) makes of the same words."""

import subprocess
import sys
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.errors import MalformedMessageError
from cni_plugins.linux import conntrack, expressions, host_ports, masquerades, nftables
from cni_plugins.linux.nftables import DIALECT, Element, NetfilterHeader, Nftables, goto, join
from cni_plugins.nat import HostPort, Masquerade
from cni_plugins.netlink.client import Request
from cni_plugins.netlink.codec import (
    BE16,
    BE32,
    NESTED,
    U8,
    Choice,
    Listed,
    Nested,
    Table,
    decode_attributes,
    encode_attributes,
)
from cni_plugins.netlink.messages import Acknowledgement, Message

little = pytest.mark.skipif(sys.byteorder != "little", reason="recorded on a little-endian machine")

PORTS = [
    HostPort("tcp", 8080, ip_interface("10.88.0.2/16"), 80),
    HostPort("udp", 53, ip_interface("fd00:88::2/64"), 5353, host_ip=ip_address("2001:db8::1")),
    HostPort("sctp", 99, ip_interface("10.88.0.2/16"), 98, ip_address("192.0.2.1"), masquerade_all=True),
]
MASQUERADE = Masquerade(
    (ip_address("10.88.0.2"), ip_address("fd00:88::2")),
    (ip_network("10.0.0.0/9"), ip_network("192.0.2.7/32"), ip_network("fd00::/8"), ip_network("0.0.0.0/0")),
)
WHOLE = {
    "hostports": (host_ports.skeleton, host_ports.pieces("one", PORTS, ["pods0", "pod1"])),
    "masquerades": (masquerades.skeleton, masquerades.pieces("one", MASQUERADE)),
}


def requests(table):
    skeleton, pieces = WHOLE[table]
    return [
        nftables.table_add(table),
        *skeleton(table),
        *(request for piece in pieces for request in piece.create(table)),
    ]


@little
def test_a_rule_is_laid_out_as_nft_sends_it():
    """Recorded with `nft --debug=mnl add rule inet t c drop`, which flags what is nested, and asks for no acknowledgement."""
    recorded = bytes.fromhex(
        "58000000 060a010c 01000000 00000000 01000000 06000100 74000000 06000200 63000000"
        "34000480 30000180 0e000100 696d6d65 64696174 65000000 1c000280 08000100 00000000 10000280 0c000280 08000100 00000000"
    )
    request = nftables.rule_add("t", "c", expressions.verdict(nftables.DROP))
    (decoded,) = DIALECT.decode(recorded)
    assert decoded.attributes == request.message.attributes
    assert decoded.header == request.message.header
    unflagged = recorded.replace(b"\x80", b"\0")
    assert DIALECT.encode(request.message)[16:] == unflagged[16:]


@pytest.mark.parametrize("table", WHOLE)
def test_every_request_is_read_back_as_it_was(table):
    for request in requests(table):
        assert DIALECT.decode(DIALECT.encode(request.message)) == [request.message]
        for piece in WHOLE[table][1]:
            for undo in piece.destroy(table):
                assert DIALECT.decode(DIALECT.encode(undo.message)) == [undo.message]


def test_concatenations_fill_whole_registers():
    assert join(b"\x06", b"\x00\x50") == b"\x06\0\0\0\x00\x50\0\0"
    assert join(ip_address("fd00::1").packed, b"\x11", b"\x00\x35") == (
        ip_address("fd00::1").packed + b"\x11\0\0\0\x00\x35\0\0"
    )


be32, be16, u8 = (st.integers(0, 2**bits - 1) for bits in (32, 16, 8))
names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
values = st.fixed_dictionaries({"value": st.binary(min_size=1, max_size=24)})
known = st.one_of(
    st.builds(lambda **data: {"name": "payload", "data": data}, dreg=be32, base=be32, offset=be32, len=be32),
    st.builds(lambda **data: {"name": "cmp", "data": data}, sreg=be32, op=be32, data=values),
    st.builds(lambda **data: {"name": "ct", "data": data}, dreg=be32, key=be32, direction=u8),
    st.builds(lambda **data: {"data": data, "name": "lookup"}, set=names, sreg=be32),
    st.builds(
        lambda code, chain: {"name": "immediate", "data": {"data": {"verdict": {"code": code, "chain": chain}}}},
        st.integers(-5, 5),
        names,
    ),
    st.builds(
        lambda name, data: {"name": name, 2: data},
        names.filter(lambda name: name not in nftables.EXPRESSION._choices["data"].tables),
        st.binary(max_size=12),
    ),
)  # fmt: skip
rules = st.builds(
    lambda *values: Message(nftables.NEWRULE, NetfilterHeader(), dict(zip(("table", "chain", "expressions"), values, strict=True))),
    names,
    names,
    st.lists(known, max_size=5),
)  # fmt: skip


@given(rules)
def test_rules_are_read_back_as_they_were(message):
    assert DIALECT.decode(DIALECT.encode(message)) == [message]


@given(rules, st.data())
def test_a_cut_rule_is_refused(message, data):
    datagram = DIALECT.encode(message)
    with pytest.raises(MalformedMessageError):
        DIALECT.decode(datagram[: data.draw(st.integers(1, len(datagram) - 1))])


@given(st.lists(be16, max_size=9), be32, be16, be16)
def test_lists_and_choices(numbers, one, other, plain):
    table = Table(kind=(1, U8), numbers=(3, Listed(7, BE16)), plain=(4, BE16)).choose(
        data=Choice(2, "kind", {1: Table(number=(1, BE32)), 2: Table(number=(1, BE16))})
    )
    for values in (
        {"data": {"number": one}, "numbers": numbers, "kind": 1},
        {"kind": 2, "data": {"number": other}, "plain": plain},
        {"kind": 3, 2: b"what it is nobody knows"},
        {2: b"nor here"},
    ):
        assert decode_attributes(encode_attributes(values, table), table) == values
    with pytest.raises(MalformedMessageError, match="data"):
        encode_attributes({"kind": 3, "data": {}}, table)
    with pytest.raises(MalformedMessageError, match="in a list of 7"):
        decode_attributes(encode_attributes({3: b"\4\0\1\0"}, table), table)


def test_what_insists_on_being_called_nested_is():
    table = Table(filter=(NESTED | 25, Nested(Table(original=(1, BE32)))))
    encoded = encode_attributes({"filter": {"original": 1}}, table)
    assert encoded[2:4] == (0x8019).to_bytes(2, sys.byteorder)
    assert decode_attributes(encoded, table) == {"filter": {"original": 1}}


tuples = st.builds(
    lambda source, destination, number, ports: {
        "ip": {f"src{source.version}": source, f"dst{destination.version}": destination},
        "proto": {"number": number, "src_port": ports[0], "dst_port": ports[1]},
    },
    st.ip_addresses(),
    st.ip_addresses(),
    u8,
    st.tuples(be16, be16),
)


@given(tuples, tuples, be32)
def test_connections_are_read_back_as_they_were(original, reply, number):
    message = Message(conntrack.NEW, NetfilterHeader(2), {"original": original, "reply": reply, "id": number})
    assert conntrack.DIALECT.decode(conntrack.DIALECT.encode(message)) == [message]


def test_a_comment_is_one_that_nft_reads():
    for owner in ("o", "o" * 200, "ö" * 200, "a\0b"):
        (request,) = Element("s", b"k", owner=owner).create("t")
        kind, length, *text = request.message.attributes["elements"][0]["userdata"]
        assert kind == 0
        assert length == len(text) <= 128
        assert text.index(0) == length - 1, "it ends with its only zero"
        assert owner.replace("\0", "").startswith(bytes(text[:-1]).decode())


def test_the_same_exceptions_are_one_chain_whatever_their_order():
    forward = masquerades.ExceptionChain.of(MASQUERADE.exceptions)
    assert forward == masquerades.ExceptionChain.of(
        (*reversed(MASQUERADE.exceptions), MASQUERADE.exceptions[0])
    )
    assert forward.name != masquerades.ExceptionChain.of(MASQUERADE.exceptions[1:]).name


def nft(host, *words, **settings):
    finished = host.run(
        lambda: subprocess.run(["nft", *words], capture_output=True, text=True, check=False, **settings)
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def dump(host, kind, table):
    """What the kernel has, without what it has numbered."""
    with Nftables(host) as client:
        found = [
            dict(message.attributes)
            for message in client.dump(
                Request(Message(kind, NetfilterHeader(), {"table": table}), "list", table)
            )
        ]
    for one in found:
        # Handles, positions, identifiers, and what nft notes down for itself.
        for name in ("handle", "id", "userdata", 6, 7, 8, "use"):
            one.pop(name, None)
    return [one for one in found if one["table"] == table]


@pytest.mark.node
@pytest.mark.parametrize("table", WHOLE)
def test_the_kernel_has_what_nft_would_have_made(host, table):
    """Ours is listed by nft, and loaded by it into a kernel without: rule by rule the kernel then has the same."""
    with Nftables(host) as client:
        client.commit(requests(table))
    ours = {kind: dump(host, kind, table) for kind in (nftables.GETCHAIN, nftables.GETRULE, nftables.GETSET)}
    listed = nft(host, "list", "ruleset")
    nft(host, "flush", "ruleset")
    nft(host, "-f", "-", input=listed)
    assert len(ours[nftables.GETRULE]) > 5
    for kind, before in ours.items():
        after = dump(host, kind, table)
        assert sorted(map(repr, after)) == sorted(map(repr, before))


@pytest.mark.node
def test_a_thousand_requests_fit_into_a_transaction(host):
    many = [
        Element("any4", number.to_bytes(8, "big"), data=bytes(8), owner="o" * 99) for number in range(3000)
    ]
    with Nftables(host) as client:
        client.commit(
            [
                nftables.table_add("ports"),
                *host_ports.skeleton("ports"),
                *(r for e in many for r in e.create("ports")),
            ]
        )
        assert len(client.elements("ports", "any4")) == 3000
        assert client.elements("ports", "none") == client.elements("none", "any4") == []


def test_a_verdict_s_words_name_operation_and_object():
    (request,) = Element("s", b"k", data=goto("c"), what="address 10.0.0.1 of me").create("t")
    error = nftables.refusal(request, Acknowledgement(1, 17, "because"))
    assert str(error).startswith(
        "cannot add address 10.0.0.1 of me in set s of nftables table t: File exists (because)"
    )
