"""The codec against bytes that iproute2 6 and Linux 6.18 really exchanged (little-endian), and against itself."""

import contextlib
import sys
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_plugins import MalformedMessageError, netlink
from cni_plugins.netlink import (
    Acknowledgement,
    AddressHeader,
    Done,
    LinkHeader,
    Message,
    RouteHeader,
    decode,
    encode,
)

SEQUENCE = 0x6B039F34
CREATE_EXCL = netlink.REQUEST | netlink.ACK | netlink.CREATE | netlink.EXCL
CHANGE = netlink.REQUEST | netlink.ACK

RECORDED = {
    "ip link add pod0 type veth peer name eth0": (
        Message(
            netlink.NEWLINK,
            LinkHeader(),
            {
                "name": "pod0",
                "info": {"kind": "veth", "data": {"peer": {"header": LinkHeader(), "name": "eth0"}}},
            },
            CREATE_EXCL,
            SEQUENCE,
        ),
        (
            "5c00000010000506349f036b00000000 00000000000000000000000000000000 09000300706f64300000000030001200"
            "08000100766574682400020020000100 00000000000000000000000000000000 090003006574683000000000"
        ),
    ),
    "ip link set pod0 up": (
        Message(netlink.NEWLINK, LinkHeader(0, 0, 3, netlink.IFF_UP, netlink.IFF_UP), {}, CHANGE, SEQUENCE),
        "2000000010000500349f036b00000000 00000000030000000100000001000000",
    ),
    "ip addr add 10.88.0.2/16 dev lo": (
        Message(
            netlink.NEWADDR,
            AddressHeader(2, 16, 0, 0, 1),
            {"local": ip_address("10.88.0.2"), "address": ip_address("10.88.0.2")},
            CREATE_EXCL,
            SEQUENCE,
        ),
        "2800000014000506349f036b00000000 0210000001000000080002000a580002 080001000a580002",
    ),
    "ip -6 addr add fd00:88::2/64 dev lo nodad": (
        Message(
            netlink.NEWADDR,
            AddressHeader(10, 64, netlink.IFA_F_NODAD, 0, 1),
            {"local": ip_address("fd00:88::2"), "address": ip_address("fd00:88::2")},
            CREATE_EXCL,
            SEQUENCE,
        ),
        (
            "4000000014000506349f036b00000000 0a4002000100000014000200fd000088 00000000000000000000000214000100"
            "fd000088000000000000000000000002"
        ),
    ),
    "ip link add br0 type bridge": (
        Message(
            netlink.NEWLINK, LinkHeader(), {"name": "br0", "info": {"kind": "bridge"}}, CREATE_EXCL, SEQUENCE
        ),
        (
            "3800000010000506349f036b00000000 00000000000000000000000000000000 0800030062723000 1000 1200 0a000100"
            "6272696467650000"
        ),
    ),
    "ip route add default via 10.88.0.1 dev lo": (
        Message(
            netlink.NEWROUTE,
            RouteHeader(2, protocol=3),
            {"gateway": ip_address("10.88.0.1"), "oif": 1},
            CREATE_EXCL,
            SEQUENCE,
        ),
        "2c00000018000506349f036b00000000 02000000fe0300010000000008000500 0a5800010800040001000000",
    ),
    "ip link set pod0 addrgenmode none": (
        Message(
            netlink.NEWLINK,
            LinkHeader(ifindex=3),
            {"families": {"inet6": {"addr_gen_mode": netlink.ADDR_GEN_MODE_NONE}}},
            CHANGE,
            SEQUENCE,
        ),
        "3000000010000500349f036b00000000 00000000030000000000000000000000 10001a000c000a000500080001000000",
    ),
    "ip link del pod0": (
        Message(netlink.DELLINK, LinkHeader(ifindex=3), {}, CHANGE, SEQUENCE),
        "2000000011000500349f036b00000000 00000000030000000000000000000000",
    ),
}


@pytest.mark.skipif(sys.platform != "linux" or sys.byteorder != "little", reason="Linux only: recorded there")
@pytest.mark.parametrize("command", RECORDED)
def test_messages_are_byte_for_byte_what_iproute2_sends(command):
    message, recorded = RECORDED[command]
    assert decode(bytes.fromhex(recorded)) == [message]
    if (
        "info" in message.attributes
    ):  # iproute2 leaves out the zero byte that ends a kind; the kernel takes both
        assert decode(encode(message)) == [message]
    else:
        assert encode(message) == bytes.fromhex(recorded)


@pytest.mark.skipif(sys.byteorder != "little", reason="Linux only: recorded on a little-endian machine")
@pytest.mark.parametrize(
    ("recorded", "answer"),
    [
        ("2400000002000001010000004d3200000000000028000000100005000100000000000000", Acknowledgement(1, 0)),
        ("2400000002000001020000004d320000edffffff2c000000110005000200000000000000", Acknowledgement(2, 19)),
        (
            (
                "3c00000002000003030000004d320000a1ffffff3800000010000506030000000000000018000100"
                "556e6b6e6f776e20646576696365207479706500"
            ),
            Acknowledgement(3, 95, "Unknown device type"),
        ),
        ("1400000003000200050000004d32000000000000", Done(5)),
    ],
)
def test_the_kernel_s_verdicts_are_read(recorded, answer):
    assert decode(bytes.fromhex(recorded)) == [answer]


@pytest.mark.skipif(sys.platform != "linux" or sys.byteorder != "little", reason="Linux only: recorded there")
def test_a_dump_of_addresses_is_read():
    recorded = (
        "4c00000014000200050000004d320000020880fe01000000080001007f000001080002007f000001070003006c6f0000"
        "080008008000000014000600ffffffffffffffff0ce003000ce00300"
        "5000000014000200050000004d3200000a8080fe0100000014000100000000000000000000000000000000011400"
        "0600ffffffffffffffff0ce003000ce00300080008008000000005000b0001000000"
    )
    four, six = decode(bytes.fromhex(recorded))
    assert four.header == AddressHeader(2, 8, 0x80, 254, 1)
    assert four.attributes["local"] == ip_address("127.0.0.1")
    assert four.attributes["label"] == "lo"
    assert six.attributes["address"] == ip_address("::1")
    assert six.attributes[11] == b"\x01", "what no table knows is kept under its number"


@pytest.mark.skipif(sys.byteorder != "little", reason="Linux only: recorded on a little-endian machine")
def test_freebsd_s_verdicts_are_read_too():
    """Recorded on 15.1: errors are not negated, and the cookie comes without the flag for attributes."""
    created, missing, refused = decode(
        bytes.fromhex(
            "3c00000002000001070000000000000000000000500000001000050607000000000000001800030008003100030000000c000300"
            "6570616972306100"
            "24000000020000010800000000000000130000002c000000120005000800000000000000"
            "5400000002000003090000000000000002000000200000001400050009000000000000002e000100556e61626c6520746f206669"
            "6e6420696e74657266616365207769746820696e646578203939393939000000"
        )
    )
    assert (created.sequence, created.errno) == (7, 0)
    assert netlink.LINK_COOKIE.decode(created.cookie)["name"] == "epair0a"
    assert missing == Acknowledgement(8, 19)
    assert refused == Acknowledgement(9, 2, "Unable to find interface with index 99999")


@pytest.mark.skipif(sys.byteorder != "little", reason="Linux only: recorded on a little-endian machine")
def test_a_link_of_freebsd_is_read():
    recorded = (
        "80010000100005000a00000000000000000006000300000042880001000000000c00030065706169723061000500100006000000"
        "05002100010000000a000100589cfc10bf4100000a000200ffffffffffff000008000400dc05000012001400636e695f706c7567"
        "696e732078000000340040000a000200589cfc10bf4100002400030008000200230000000c0005001b006000000000000c000400"
        "1b00600000000000c4001700"
        + "00"
        * 192
        + "08001e0000000000100012000a000100657061697200000024000000020000"
        "010a00000000000000000000002c000000120005000a00000000000000"
    )
    message, verdict = decode(bytes.fromhex(recorded))
    assert message.header.ifindex == 3
    names = ("name", "alias", "mac", "mtu", "kind")
    values = {
        **message.attributes,
        "mac": message.attributes["address"],
        "kind": message.attributes["info"]["kind"],
    }
    assert [values[name] for name in names] == [
        "epair0a",
        "cni_plugins x",
        "58:9c:fc:10:bf:41",
        1500,
        "epair",
    ]
    assert verdict == Acknowledgement(10, 0)


u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=15)
mac = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
unknown = st.dictionaries(st.integers(1000, 0x3FFF), st.binary(max_size=9), max_size=3)
link_headers = st.builds(LinkHeader, u8, u16, st.integers(-(2**31), 2**31 - 1), u32, u32)


def tables(**optional):
    """Dictionaries of some of these attributes, with unknown ones mixed in, in any order."""
    return (
        st.tuples(st.fixed_dictionaries({}, optional=optional), unknown)
        .map(lambda both: [*both[0].items(), *both[1].items()])
        .flatmap(st.permutations)
        .map(dict)
    )


plain = {"address": mac, "name": text, "mtu": u32, "master": u32, "operstate": u8, "netns_fd": u32}
bridge_data = tables(forward_delay=u32, vlan_filtering=u8, mcast_snooping=u8)
peers = st.builds(lambda header, values: {"header": header, **values}, link_headers, tables(**plain))
infos = st.one_of(
    st.fixed_dictionaries({"kind": st.just("bridge"), "data": bridge_data}),
    st.fixed_dictionaries({"data": st.fixed_dictionaries({"peer": peers}), "kind": st.just("veth")}),
    st.fixed_dictionaries(
        {"kind": text.filter(lambda k: k not in {"veth", "bridge"}), 2: st.binary(max_size=9)}
    ),
    st.fixed_dictionaries({"port_data": tables(isolated=u8, state=u8), "port_kind": st.just("bridge")}),
)
families = tables(inet6=tables(flags=u32, addr_gen_mode=u8))
ip = st.ip_addresses()
messages = st.one_of(
    st.builds(
        Message,
        st.sampled_from([16, 17, 18]),
        link_headers,
        tables(**plain, info=infos, families=families),
        u16,
        u32,
        u32,
    ),
    st.builds(
        Message,
        st.sampled_from([20, 21, 22]),
        st.builds(AddressHeader, u8, u8, u8, u8, u32),
        tables(
            address=ip,
            local=ip,
            label=text,
            broadcast=ip,
            flags=u32,
            cacheinfo=st.tuples(u32, u32, u32, u32),
        ),
        u16,
        u32,
        u32,
    ),
    st.builds(
        Message,
        st.sampled_from([24, 25, 26]),
        st.builds(RouteHeader, u8, u8, u8, u8, u8, u8, u8, u8, u32),
        tables(dst=ip, gateway=ip, oif=u32, priority=u32, table=u32),
        u16,
        u32,
        u32,
    ),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # as it is on an emulated machine
@given(st.lists(messages, max_size=4))
def test_what_was_encoded_is_decoded(batch):
    datagram = b"".join(map(encode, batch))
    assert len(datagram) % 4 == 0
    assert decode(datagram) == batch


@given(messages, st.data())
def test_a_cut_message_is_refused_never_half_read(message, data):
    datagram = encode(message)
    with pytest.raises(MalformedMessageError):
        decode(datagram[: data.draw(st.integers(1, len(datagram) - 1))])


@given(st.one_of(st.binary(max_size=200), st.tuples(messages, u16, u8)))
def test_any_bytes_give_messages_or_the_typed_error(noise):
    if not isinstance(noise, bytes):
        message, position, byte = noise
        changed = bytearray(encode(message))
        changed[position % len(changed)] = byte
        noise = bytes(changed)
    with contextlib.suppress(MalformedMessageError):
        decode(noise)


@pytest.mark.parametrize(
    "attributes",
    [
        {"mtu": 2**32},
        {"mtu": "1500"},
        {"name": "a\0b"},
        {"address": "02:00:zz"},
        {"nmae": "eth0"},
        {"info": {"kind": "dummy", "data": {"peer": {}}}},
        {"info": {"data": {"peer": {}}}},
        {9999: bytes(70000)},
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(attributes):
    with pytest.raises(MalformedMessageError, match=f"netlink attribute.*({next(iter(attributes))}|data)"):
        encode(Message(netlink.NEWLINK, LinkHeader(), attributes))


def test_a_header_that_does_not_fit_is_refused():
    with pytest.raises(MalformedMessageError, match="header"):
        encode(Message(netlink.NEWADDR, AddressHeader(prefixlen=256)))
