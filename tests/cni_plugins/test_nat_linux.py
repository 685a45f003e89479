"""Linux's address translation between real stacks: pods on a bridge, a node that routes, and an outside beyond it."""

import contextlib
import errno
import json
import os
import random
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_plugins import ConfigurationError, KernelError
from cni_plugins.linux import conntrack, nftables
from cni_plugins.linux.localnet import route_localnet
from cni_plugins.linux.nat import NftNat
from cni_plugins.linux.nftables import NetfilterHeader, Nftables
from cni_plugins.nat import HostPort, Masquerade
from cni_plugins.netlink.client import NETLINK_NETFILTER, Client, Request
from cni_plugins.netlink.messages import Message

pytestmark = pytest.mark.node

GATEWAY = {4: ip_address("10.88.0.1"), 6: ip_address("fd00:88::1")}
NODE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
OTHER = {4: ip_address("192.0.2.9"), 6: ip_address("2001:db8::9")}  # the node has it, too
OUTSIDE = {4: ip_address("192.0.2.2"), 6: ip_address("2001:db8::2")}
KNOWN = {
    4: ip_address("198.51.100.1"),
    6: ip_address("2001:db8:51::1"),
}  # outside as well, and knows the pods
SUBNETS = ip_network("10.88.0.0/24"), ip_network("fd00:88::/64")
EXCEPTIONS = (*SUBNETS, ip_network("198.51.100.0/24"), ip_network("2001:db8:51::/64"))
LOOPBACK = ip_address("127.0.0.1")
both = pytest.mark.parametrize("version", [4, 6])


def run(namespace, *words, check=True):
    finished = namespace.run(lambda: subprocess.run(words, capture_output=True, text=True, check=False))
    assert not check or finished.returncode == 0, f"{words}: {finished.stderr}"
    return finished.stdout


def ip(namespace, *commands):
    for command in commands:
        run(namespace, "ip", *command.split())


def ruleset(namespace):
    """The tables that nft sees, without what changes by itself: handles are counted up for ever."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key != "handle"}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    objects = json.loads(run(namespace, "nft", "-j", "list", "ruleset"))["nftables"]
    return sorted((plain(one) for one in objects if "metainfo" not in one), key=json.dumps)


def link(host, end, other, peer, *settings):
    ip(
        host,
        f"link add {end} type veth peer name {peer} netns /proc/{os.getpid()}/fd/{other.move_target}",
        *settings,
    )


class Pod:
    def __init__(self, namespace, number):
        self.stack = namespace
        self.addresses = {
            4: ip_interface(f"10.88.0.{number}/24"),
            6: ip_interface(f"fd00:88::{number:x}/64"),
        }
        self.ips = {version: address.ip for version, address in self.addresses.items()}


def hurry(namespace):
    """Whoever routes asks for neighbours only once it has found its link-local address to be its own."""
    for which in ("all", "default"):
        namespace.sysctl(f"net.ipv6.conf.{which}.accept_dad", "0")


@pytest.fixture
def outside(host, make_namespace):
    """The node is `host`; beyond it is a stack that has no route to the pods but from its addresses `KNOWN`."""
    outside = make_namespace()
    hurry(host)
    hurry(outside)
    link(host, "up0", outside, "eth0", "link set up0 up", "link set lo up", "link add pods0 type bridge")
    ip(host, "link set pods0 up")
    for version, length in ((4, 24), (6, 64)):
        for name, address in (("up0", NODE), ("up0", OTHER), ("pods0", GATEWAY)):
            ip(host, f"addr add {address[version]}/{length} dev {name}" + " nodad" * (version == 6))
    host.sysctl("net.ipv4.ip_forward", "1")
    host.sysctl("net.ipv6.conf.all.forwarding", "1")
    # The pods' subnet is reached from KNOWN only: a table of its own.
    ip(
        outside,
        "link set lo up",
        "link set eth0 up",
        f"addr add {OUTSIDE[4]}/24 dev eth0",
        f"addr add {OUTSIDE[6]}/64 dev eth0 nodad",
        f"addr add {KNOWN[4]}/32 dev lo",
        f"addr add {KNOWN[6]}/128 dev lo nodad",
        f"rule add from {KNOWN[4]} table 7",
        f"-6 rule add from {KNOWN[6]} table 7",
        f"route add {SUBNETS[0]} via {NODE[4]} table 7",
        f"-6 route add {SUBNETS[1]} via {NODE[6]} table 7",
    )
    ip(host, f"route add {KNOWN[4]} via {OUTSIDE[4]}", f"-6 route add {KNOWN[6]} via {OUTSIDE[6]}")
    return outside


@pytest.fixture
def make_pod(host, outside, make_namespace):
    count = 1

    def make():
        nonlocal count
        count += 1
        pod = Pod(make_namespace(), count)
        hurry(pod.stack)
        link(host, f"pod{count}", pod.stack, "eth0", f"link set pod{count} master pods0 up")
        ip(
            pod.stack,
            "link set lo up",
            "link set eth0 up",
            f"addr add {pod.addresses[4]} dev eth0",
            f"addr add {pod.addresses[6]} dev eth0 nodad",
            f"route add default via {GATEWAY[4]}",
            f"-6 route add default via {GATEWAY[6]}",
        )
        return pod

    return make


@pytest.fixture
def nat(host):
    nat = NftNat(host, "pods")
    nat.restore_ports({})
    nat.restore_masquerades({})
    return nat


def family(address):
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def address_of(name):
    return ip_address(name[0])


class Server:
    """A listener inside a stack, that tells who has come."""

    def __init__(self, stack, kind, address, port):
        self.kind = kind
        self.socket = stack.socket(family(address), kind)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((str(address), port))
        self.socket.settimeout(3)
        if kind == socket.SOCK_STREAM:
            self.socket.listen()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def seen(self):
        """Answer one client; return its address."""
        if self.kind == socket.SOCK_STREAM:
            accepted, peer = self.socket.accept()
            with accepted:
                accepted.settimeout(3)
                accepted.sendall(accepted.recv(100))
        else:
            data, peer = self.socket.recvfrom(100)
            self.socket.sendto(data, peer)
        return address_of(peer)


def connect(stack, kind, to, port, *, patience=2):
    sock = stack.socket(family(to), kind)
    sock.settimeout(patience)
    try:
        sock.connect((str(to), port))
        sock.sendall(b"hello")
    except BaseException:
        sock.close()
        raise
    return sock


def talk(stack, server, to, port):
    """Say hello and hear it back; return the address that the server saw."""
    with connect(stack, server.kind, to, port) as sock:
        seen = server.seen()
        assert sock.recv(100) == b"hello"
        return seen


def refused(stack, kind, to, port, patience=0.3):
    """True if nobody answers there."""
    try:
        with connect(stack, kind, to, port, patience=patience) as sock:
            return sock.recv(1) == b""
    except (TimeoutError, ConnectionRefusedError, OSError):
        return True


TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
kinds = pytest.mark.parametrize(("kind", "protocol"), [(TCP, "tcp"), (UDP, "udp")])
ANY = {4: ip_address("0.0.0.0"), 6: ip_address("::")}


# Masquerading.


@both
@kinds
def test_outside_sees_the_node_and_exceptions_see_the_pod(nat, make_pod, outside, *, version, kind, protocol):
    pod = make_pod()
    nat.masquerade("one", Masquerade(tuple(pod.ips.values()), EXCEPTIONS))
    with Server(outside, kind, OUTSIDE[version], 99) as server:
        assert talk(pod.stack, server, OUTSIDE[version], 99) in (NODE[version], OTHER[version])
    with Server(outside, kind, KNOWN[version], 99) as server:
        assert talk(pod.stack, server, KNOWN[version], 99) == pod.ips[version]


def test_only_who_is_masqueraded_is(nat, make_pod, outside):
    pod, other = make_pod(), make_pod()
    nat.masquerade("one", Masquerade((pod.ips[4],)))
    with Server(outside, UDP, OUTSIDE[4], 99) as server:
        assert talk(pod.stack, server, OUTSIDE[4], 99) == NODE[4]
        with connect(other.stack, UDP, OUTSIDE[4], 99):
            assert server.socket.recvfrom(100)[1][0] == str(other.ips[4])
        nat.unmasquerade("one")
        nat.kill_states([pod.ips[4]])
        with connect(pod.stack, UDP, OUTSIDE[4], 99):
            assert server.socket.recvfrom(100)[1][0] == str(pod.ips[4])


def test_chains_are_shared_and_go_with_their_last_owner(nat, host):
    wanted = Masquerade((ip_address("10.88.0.2"),), EXCEPTIONS)
    nat.masquerade("one", wanted)
    nat.masquerade("two", Masquerade((ip_address("10.88.0.3"),), tuple(reversed(EXCEPTIONS))))
    nat.masquerade("three", Masquerade((ip_address("10.88.0.4"),)))

    def chains():
        return [one for one in ruleset(host) if one.get("chain", {}).get("name", "").startswith("except-")]

    assert len(chains()) == 2
    nat.masquerade("one", Masquerade((ip_address("10.88.0.2"),)))
    assert len(chains()) == 2
    nat.unmasquerade("two")
    assert len(chains()) == 1
    nat.unmasquerade("one")
    nat.unmasquerade("three")
    assert ruleset(host) == []


def test_multicast_is_left_as_it_is(nat, host):
    nat.masquerade("one", Masquerade((ip_address("10.88.0.2"),)))
    rules = run(host, "nft", "list", "chain", "inet", "cni-pods-masquerade", "postrouting")
    assert rules.index("ip daddr 224.0.0.0/4 return") < rules.index("ip6 daddr ff00::/8 return")
    assert rules.index("ip6 daddr ff00::/8 return") < rules.index("vmap")


# Host ports.


@both
@kinds
def test_a_host_port_leads_to_the_pod(nat, make_pod, outside, *, version, kind, protocol):
    pod = make_pod()
    nat.publish("one", [HostPort(protocol, 8080, pod.addresses[version], 80)])
    with Server(pod.stack, kind, pod.ips[version], 80) as server:
        for address in (NODE, OTHER):
            assert talk(outside, server, address[version], 8080) == OUTSIDE[version]
        assert refused(outside, kind, NODE[version], 8081)
        other = UDP if kind == TCP else TCP
        assert refused(outside, other, NODE[version], 8080), "only for its protocol"
        nat.withdraw("one")
        nat.kill_states([pod.ips[version]])
        assert refused(outside, kind, NODE[version], 8080)


@both
def test_a_host_ip_opens_the_port_there_only(nat, make_pod, outside, host, version):
    pod, second = make_pod(), make_pod()
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[version], 80, host_ip=OTHER[version])])
    with Server(pod.stack, TCP, pod.ips[version], 80) as server:
        assert talk(outside, server, OTHER[version], 8080) == OUTSIDE[version]
        assert talk(host, server, OTHER[version], 8080) in (OTHER[version], NODE[version], GATEWAY[version])
        assert refused(outside, TCP, NODE[version], 8080)
        nat.publish("two", [HostPort("tcp", 8080, second.addresses[version], 80, host_ip=NODE[version])])
        with Server(second.stack, TCP, second.ips[version], 80) as another:
            assert talk(outside, another, NODE[version], 8080) == OUTSIDE[version]
        assert talk(outside, server, OTHER[version], 8080) == OUTSIDE[version]


@kinds
def test_the_node_reaches_a_host_port_on_its_loopback(nat, make_pod, host, kind, protocol):
    pod = make_pod()
    nat.publish("one", [HostPort(protocol, 8080, pod.addresses[4], 80)])
    with Server(pod.stack, kind, pod.ips[4], 80) as server:
        assert talk(host, server, LOOPBACK, 8080) == GATEWAY[4]
    assert host.sysctl("net.ipv4.conf.pods0.route_localnet") == "1"
    assert host.sysctl("net.ipv4.conf.up0.route_localnet") == "0"
    nat.withdraw("one")
    assert host.sysctl("net.ipv4.conf.pods0.route_localnet") == "0"


@both
@kinds
def test_the_node_reaches_a_host_port_on_its_addresses(nat, make_pod, host, *, version, kind, protocol):
    pod = make_pod()
    nat.publish("one", [HostPort(protocol, 8080, pod.addresses[version], 80)])
    with Server(pod.stack, kind, pod.ips[version], 80) as server:
        for address in (NODE, GATEWAY):
            # On its way out the kernel has not chosen a source that the pod would not answer to.
            assert talk(host, server, address[version], 8080) in (NODE[version], GATEWAY[version])


def test_what_listens_on_the_node_s_ipv6_loopback_is_left_alone(nat, make_pod, host):
    pod = make_pod()
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[6], 80)])
    with Server(host, TCP, ip_address("::1"), 8080) as server:
        assert talk(host, server, ip_address("::1"), 8080) == ip_address("::1")


def test_pods_get_not_to_the_node_s_loopback(nat, make_pod, host):
    """With route_localnet alone they would: the test shows it once the guard is gone."""
    pod = make_pod()
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[4], 80)])
    ip(
        pod.stack,
        "addr del 127.0.0.1/8 dev lo",
        "rule add pref 0 to 127.0.0.0/8 table 9",
        f"route add 127.0.0.0/8 via {GATEWAY[4]} table 9",
    )
    pod.stack.sysctl("net.ipv4.conf.eth0.route_localnet", "1")
    with Server(host, UDP, LOOPBACK, 77) as server, pod.stack.socket(socket.AF_INET, UDP) as sock:
        sock.bind((str(pod.ips[4]), 0))
        server.socket.settimeout(0.3)
        sock.sendto(b"x", ("127.0.0.1", 77))
        with pytest.raises(TimeoutError):
            server.socket.recv(10)
        run(host, "nft", "flush", "chain", "inet", "cni-pods-hostports", "guard")
        sock.sendto(b"x", ("127.0.0.1", 77))
        assert server.socket.recv(10) == b"x"


@both
@kinds
@pytest.mark.parametrize("bridged", ["0", "1"])
def test_pods_reach_themselves_and_neighbours_by_the_node(
    nat, make_pod, host, *, version, kind, protocol, bridged
):
    """Also where the bridge shows its packets to netfilter; itself a pod reaches there with hairpin mode only."""
    host.sysctl("net.bridge.bridge-nf-call-iptables", bridged)
    host.sysctl("net.bridge.bridge-nf-call-ip6tables", bridged)
    pod, neighbour = make_pod(), make_pod()
    if bridged == "1":
        ip(host, "link set pod2 type bridge_slave hairpin on")
    nat.masquerade("one", Masquerade((pod.ips[version],), SUBNETS))
    nat.publish("one", [HostPort(protocol, 8080, pod.addresses[version], 80)])
    with Server(pod.stack, kind, pod.ips[version], 80) as server:
        for address in (NODE, OTHER, GATEWAY):
            assert talk(neighbour.stack, server, address[version], 8080) in (GATEWAY[version], NODE[version])
            assert talk(pod.stack, server, address[version], 8080) in (GATEWAY[version], NODE[version])


@both
@kinds
def test_the_same_port_of_somebody_else_is_not_the_node_s(
    nat, make_pod, outside, host, *, version, kind, protocol
):
    pod, other = make_pod(), make_pod()
    nat.masquerade("two", Masquerade(tuple(other.ips.values()), SUBNETS))
    nat.publish("one", [HostPort(protocol, 8080, pod.addresses[version], 80)])
    with Server(outside, kind, OUTSIDE[version], 8080) as server:
        for stack in (other.stack, host):
            assert talk(stack, server, OUTSIDE[version], 8080) in (NODE[version], OTHER[version])


@both
def test_neighbours_talk_directly_as_before(nat, make_pod, version):
    pod, neighbour = make_pod(), make_pod()
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[version], 8080)])
    with Server(pod.stack, TCP, pod.ips[version], 8080) as server:
        assert talk(neighbour.stack, server, pod.ips[version], 8080) == neighbour.ips[version]


@both
def test_all_clients_may_be_masqueraded(nat, make_pod, outside, version):
    pod = make_pod()
    ports = [
        HostPort("tcp", 8080, pod.addresses[version], 80, masquerade_all=True),
        HostPort("tcp", 8081, pod.addresses[version], 80),
    ]
    nat.publish("one", ports)
    with Server(pod.stack, TCP, pod.ips[version], 80) as server:
        assert talk(outside, server, NODE[version], 8080) in (NODE[version], GATEWAY[version])
        assert talk(outside, server, NODE[version], 8081) == OUTSIDE[version]


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 & -(value & 1))
    return value ^ 0xFFFFFFFF


def sctp_init(source_port, port):
    """RFC 9260: the common header with verification tag 0, and an INIT chunk."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 7)
    head = struct.pack("!HHI", source_port, port, 0)
    checksum = struct.pack("<I", crc32c(head + bytes(4) + chunk))
    return head + checksum + chunk


@both
def test_sctp_is_led_to_the_pod_too(nat, make_pod, outside, version):
    """No SCTP in this kernel: packets are made by hand, and the checksum is the kernel's."""
    pod = make_pod()
    nat.publish("one", [HostPort("sctp", 36412, pod.addresses[version], 99)])
    raw = family(NODE[version]), socket.SOCK_RAW, socket.IPPROTO_SCTP
    with pod.stack.socket(*raw) as server, outside.socket(*raw) as client:
        server.settimeout(3)
        client.sendto(sctp_init(5000, 36412), (str(NODE[version]), 0))
        packet, peer = server.recvfrom(200)
        assert address_of(peer) == OUTSIDE[version]
        assert (packet[20:] if version == 4 else packet) == sctp_init(5000, 99)


# Connections.


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def forge(sender, device, router, router_device, source, to):
    """Put a UDP packet for port 8080 of an address on a wire, as no sound stack would send it."""

    def mac(stack, name):
        return bytes.fromhex(
            json.loads(run(stack, "ip", "-j", "link", "show", name))[0]["address"].replace(":", "")
        )

    udp = struct.pack("!HHHH", 5555, 8080, 12, 0) + b"evil"
    if to.version == 6:
        pseudo = source.packed + to.packed + struct.pack("!II", len(udp), socket.IPPROTO_UDP)
        udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp)) + udp[8:]
        header = struct.pack("!IHBB", 6 << 28, len(udp), socket.IPPROTO_UDP, 64) + source.packed + to.packed
    else:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0)
        header += source.packed + to.packed
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    kind = 0x86DD if to.version == 6 else 0x0800
    with sender.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((device, kind))
        frame = mac(router, router_device) + mac(sender, device) + struct.pack("!H", kind) + header + udp
        wire.send(frame)


@both
@pytest.mark.parametrize("host_ip", [None, "loopback"])
def test_the_node_s_loopback_is_nobody_else_s(
    nat, make_pod, outside, host, make_namespace, *, version, host_ip
):
    """Not the wire's, not those of another bridge's pods, whatever the kernel checks of sources."""
    pod, neighbour, stranger = make_pod(), make_pod(), make_namespace()
    link(host, "more0", stranger, "eth0", "link set more0 up", "addr add 10.99.0.1/24 dev more0")
    ip(host, "addr add fd00:99::1/64 dev more0 nodad")
    ip(
        stranger,
        "link set eth0 up",
        "addr add 10.99.0.2/24 dev eth0",
        "addr add fd00:99::2/64 dev eth0 nodad",
    )
    theirs = {4: ip_address("10.99.0.2"), 6: ip_address("fd00:99::2")}
    loopback = {4: LOOPBACK, 6: ip_address("::1")}[version]
    ports = [HostPort("udp", 8080, pod.addresses[version], 80, loopback if host_ip else None)]
    nat.publish("one", ports)
    for name in ("all", "up0", "more0", "pods0"):
        host.sysctl(f"net.ipv4.conf.{name}.rp_filter", "0")
    senders = (
        (outside, "up0", OUTSIDE[version]),
        (stranger, "more0", theirs[version]),
        (neighbour.stack, "pods0", neighbour.ips[version]),
    )
    with Server(pod.stack, UDP, pod.ips[version], 80) as server:
        server.socket.settimeout(0.3)
        for sender, device, source in senders:
            forge(sender, "eth0", host, device, source, loopback)
            with pytest.raises(TimeoutError):
                server.socket.recv(10)
        if host_ip is None:  # the forgery is good
            forge(outside, "eth0", host, "up0", OUTSIDE[version], NODE[version])
            assert server.socket.recv(10) == b"evil"
        if version == 4:
            server.socket.settimeout(3)
            assert talk(host, server, LOOPBACK, 8080) == GATEWAY[4]


def test_a_client_that_kept_sending_reaches_a_port_that_opens(nat, make_pod, outside, host):
    pod = make_pod()
    port = HostPort("udp", 8080, pod.addresses[4], 80)
    with outside.socket(socket.AF_INET, UDP) as client, Server(pod.stack, UDP, pod.ips[4], 80) as server:
        client.connect((str(NODE[4]), 8080))
        client.settimeout(2)
        for _ in range(2):
            client.send(b"hello")
            with contextlib.suppress(ConnectionRefusedError):
                client.recv(10)
        nat.publish("one", [port])
        client.send(b"hello")
        assert server.seen() == OUTSIDE[4]
        second = make_pod()
        nat.withdraw("one")
        nat.publish("two", [HostPort("udp", 8080, second.addresses[4], 80)])
        with Server(second.stack, UDP, second.ips[4], 80) as another:
            client.send(b"hello")
            assert another.seen() == OUTSIDE[4], "nor does it stay with the pod before"


@both
def test_what_only_passes_by_to_such_a_port_stays(nat, make_pod, outside, host, version):
    pod, other = make_pod(), make_pod()
    nat.masquerade("two", Masquerade(tuple(other.ips.values())))
    with (
        Server(outside, UDP, OUTSIDE[version], 53) as server,
        connect(other.stack, UDP, OUTSIDE[version], 53) as client,
    ):
        data, peer = server.socket.recvfrom(100)
        nat.publish("one", [HostPort("udp", 53, pod.addresses[version], 53)])
        server.socket.sendto(data, peer)
        assert client.recv(10) == b"hello", "its connection, and so its translation, is there still"


def connections(host, version):
    family_ = socket.AF_INET6 if version == 6 else socket.AF_INET
    request = Request(Message(conntrack.GET, NetfilterHeader(family_)), "list", "connections")
    with Client(host, NETLINK_NETFILTER, conntrack.DIALECT) as client:
        return [message.attributes for message in client.dump(request)]


@both
@pytest.mark.parametrize("old_kernel", [False, True])
def test_killed_states_are_gone_and_others_stay(
    nat, make_pod, outside, host, *, version, old_kernel, monkeypatch
):
    if old_kernel:
        monkeypatch.setattr(conntrack, "_forget_at_once", lambda *_: False)
    pod, other = make_pod(), make_pod()
    for one in (pod, other):
        nat.masquerade(str(one.ips[4]), Masquerade(tuple(one.ips.values()), SUBNETS))
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[version], 80)])
    with (
        Server(outside, TCP, OUTSIDE[version], 99) as server,
        Server(pod.stack, TCP, pod.ips[version], 80) as inside,
        connect(pod.stack, TCP, OUTSIDE[version], 99),
        connect(other.stack, TCP, OUTSIDE[version], 99),
        connect(outside, TCP, NODE[version], 8080),
        connect(other.stack, TCP, pod.ips[version], 80),
    ):
        assert {server.seen(), server.seen()} <= {NODE[version], OTHER[version]}
        inside.seen()
        before = connections(host, version)
        assert sum(pod.ips[version] in conntrack.ends(dict(one)) for one in before) >= 2
        nat.withdraw("one")
        nat.unmasquerade(str(pod.ips[4]))
        for _ in range(5):  # a late acknowledgement brings one of them back
            nat.kill_states([pod.ips[version]])
            after = connections(host, version)
            ends = [conntrack.ends(dict(one)) for one in after]
            if not any(pod.ips[version] in each for each in ends):
                break
        assert not any(pod.ips[version] in each for each in ends)
        assert sum(other.ips[version] in each for each in ends) >= 1
    nat.kill_states([pod.ips[version]])
    nat.kill_states([])


@both
@pytest.mark.parametrize("last", ["withdraw", "unmasquerade"])
def test_the_last_end_of_a_translation_has_states_killed(nat, make_pod, host, monkeypatch, *, version, last):
    """So a pod that has both costs one walk over all connections."""
    pod = make_pod()
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[version], 80)])
    nat.masquerade("one", Masquerade((pod.ips[version],), SUBNETS))
    with Server(pod.stack, UDP, pod.ips[version], 80), connect(host, UDP, pod.ips[version], 80):
        walks = []
        ask, list_ = conntrack.Conntrack.ask, conntrack.Conntrack.list
        monkeypatch.setattr(conntrack.Conntrack, "ask", lambda *all_: walks.append(1) or ask(*all_))
        monkeypatch.setattr(conntrack.Conntrack, "list", lambda *all_: walks.append(1) or list_(*all_))
        for end in sorted((nat.withdraw, nat.unmasquerade), key=lambda end: end.__name__ == last):
            assert not walks
            assert any(pod.ips[version] in conntrack.ends(dict(one)) for one in connections(host, version))
            end("one")
            nat.kill_states([pod.ips[version]])
        assert walks
        assert not any(pod.ips[version] in conntrack.ends(dict(one)) for one in connections(host, version))


@both
def test_connections_of_others_are_not_even_decoded(nat, make_pod, outside, host, monkeypatch, *, version):
    monkeypatch.setattr(conntrack, "_forget_at_once", lambda *_: False)
    pod = make_pod()
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[version], 80)])  # that connections are tracked
    loopback = ip_address("::1") if version == 6 else LOOPBACK
    with Server(pod.stack, UDP, pod.ips[version], 80), connect(host, UDP, pod.ips[version], 80):
        for port in range(1000, 1300):
            with host.socket(family(loopback), UDP) as sock:
                sock.sendto(b"x", (str(loopback), port))
        nat.withdraw("one")
        assert len(connections(host, version)) > 300
        decoded = []
        ends = conntrack.ends
        monkeypatch.setattr(conntrack, "ends", lambda one: decoded.append(one) or ends(one))
        nat.kill_states([pod.ips[4], pod.ips[6]])
        assert 1 <= len(decoded) <= 10
        assert not any(pod.ips[version] in ends(dict(one)) for one in connections(host, version))
        assert len(connections(host, version)) >= 300


def test_many_udp_ports_are_looked_for_in_one_walk(nat, make_pod, outside, host, monkeypatch):
    pod = make_pod()
    nat.publish("one", [HostPort("tcp", 8080, pod.addresses[4], 80)])  # that connections are tracked
    with outside.socket(socket.AF_INET, UDP) as client:
        for number in range(5300, 5350):
            client.sendto(b"x", (str(NODE[4]), number))
        wanted = [one for one in range(5300, 5350) if one % 2]

        def ports():
            return {one["original"]["proto"].get("dst_port") for one in connections(host, 4)}

        assert ports() >= set(range(5300, 5350))
        nat.publish("many", [HostPort("udp", number, pod.addresses[4], 53) for number in wanted])
        assert ports() >= set(range(5300, 5350)) - set(wanted)
        assert not ports() & set(wanted)


def test_a_connection_survives_what_happens_to_the_tables(nat, make_pod, outside):
    pod = make_pod()
    ports = {"one": [HostPort("tcp", 8080, pod.addresses[4], 80)]}
    masquerades = {"one": Masquerade((pod.ips[4],), SUBNETS)}
    nat.restore_ports(ports)
    nat.restore_masquerades(masquerades)
    with Server(pod.stack, TCP, pod.ips[4], 80) as server, Server(outside, TCP, OUTSIDE[4], 99) as away:
        inward, outward = connect(outside, TCP, NODE[4], 8080), connect(pod.stack, TCP, OUTSIDE[4], 99)
        inside, beyond = server.socket.accept()[0], away.socket.accept()[0]
        with inward, outward, inside, beyond:
            for change in (
                lambda: nat.restore_ports(ports),
                lambda: nat.restore_masquerades(masquerades),
                lambda: nat.publish("two", [HostPort("udp", 53, pod.addresses[4], 53)]),
                lambda: nat.withdraw("two"),
                lambda: nat.restore_masquerades({}),
            ):
                change()
                for near, far in ((inward, inside), (outward, beyond)):
                    near.sendall(b"still there")
                    far.settimeout(3)
                    assert far.recv(100).endswith(b"still there")
                    far.sendall(b"yes")
                    assert near.recv(100) == b"yes"


# The tables.


def host_port(number, owner=2, protocol="tcp", host_ip=None):
    address = ip_interface(f"10.88.{owner // 256}.{owner % 256}/16")
    return HostPort(protocol, number, address, 80, host_ip=host_ip)


def masquerade(owner):
    return Masquerade((ip_address(f"10.88.{owner // 256}.{owner % 256}"),), EXCEPTIONS)


@pytest.fixture
def foreign(host):
    """Somebody else's table, which must never change."""
    run(
        host,
        "nft",
        "add table inet somebody; add chain inet somebody c { type nat hook prerouting priority 0 ; }",
    )
    return ruleset(host)


def test_the_tables_are_there_while_somebody_needs_them(nat, host, foreign):
    nat.publish("one", [host_port(80)])
    nat.masquerade("one", masquerade(2))
    names = {one["table"]["name"] for one in ruleset(host) if "table" in one}
    assert names == {"somebody", "cni-pods-hostports", "cni-pods-masquerade"}
    nat.withdraw("one")
    nat.unmasquerade("one")
    assert ruleset(host) == foreign
    nat.withdraw("one")
    nat.unmasquerade("never")
    assert ruleset(host) == foreign


def test_what_nft_lists_nft_can_load(nat, host):
    nat.publish("one", [host_port(80), HostPort("udp", 53, ip_interface("fd00:88::2/64"), 53)])
    nat.masquerade("one", Masquerade((ip_address("10.88.0.2"), ip_address("fd00:88::2")), EXCEPTIONS))
    before = ruleset(host)
    listed = run(host, "nft", "list", "ruleset")
    run(host, "nft", "flush", "ruleset")
    host.run(lambda: subprocess.run(["nft", "-f", "-"], input=listed, text=True, check=True))
    assert ruleset(host) == before


def test_publishing_replaces_what_the_owner_had(nat, host):
    nat.publish("one", [host_port(80), host_port(81)])
    nat.publish("one", [host_port(80), host_port(82)])
    again = ruleset(host)
    nat.publish("one", [host_port(82), host_port(80)])
    assert ruleset(host) == again
    fresh = NftNat(host, "pods")
    fresh.restore_ports({"one": [host_port(80), host_port(82)]})
    assert ruleset(host) == again
    nat.publish("one", [])
    assert ruleset(host) == []


def test_a_pod_s_address_may_become_another_owner_s(nat, host):
    nat.masquerade("one", masquerade(2))
    nat.publish("one", [host_port(80)])
    nat.masquerade("one", masquerade(3))
    nat.publish("one", [host_port(80, 3)])
    nat.masquerade("two", masquerade(2))
    listed = run(host, "nft", "list", "ruleset")
    assert 'tcp . 80 comment "one" : 10.88.0.3 . 80' in listed
    assert '10.88.0.2 comment "two"' in listed
    assert '10.88.0.3 comment "one"' in listed


def test_a_port_of_somebody_else_s_is_refused_and_nothing_is_changed(nat, host):
    nat.publish("one", [host_port(80)])
    before = ruleset(host)
    with pytest.raises(KernelError, match=r"host port 80/tcp of two.*it is one's") as caught:
        nat.publish("two", [host_port(79, 3), host_port(80, 3)])
    assert caught.value.errno == errno.EEXIST
    assert ruleset(host) == before
    nat.publish("two", [host_port(79, 3)])
    with pytest.raises(KernelError, match=r"it is one's"):
        nat.publish("two", [host_port(80, 3)])
    nat.withdraw("one")
    nat.publish("two", [host_port(80, 3)])
    nat.withdraw("two")
    assert ruleset(host) == []


def test_a_refused_request_undoes_those_before_it(host):
    good = nftables.table_add("t")
    bad = nftables.chain_del("t", "none")
    with Nftables(host) as client:
        with pytest.raises(KernelError, match="delete chain none of nftables table t"):
            client.commit([good, bad, nftables.chain_add("t", "c")])
        assert ruleset(host) == []
        client.rehearse([good])
        assert ruleset(host) == []
        client.commit([good])
        assert len(ruleset(host)) == 1


def test_the_next_change_heals_what_somebody_flushed(nat, host):
    nat.publish("one", [host_port(80)])
    nat.masquerade("one", masquerade(2))
    nat.publish("two", [host_port(81, 3)])
    nat.masquerade("two", masquerade(3))
    wanted = ruleset(host)
    for change in (
        lambda: (nat.withdraw("two"), nat.unmasquerade("two")),
        lambda: (nat.publish("one", [host_port(80)]), nat.masquerade("one", masquerade(2))),
        lambda: (nat.publish("three", [host_port(83, 4)]), nat.masquerade("three", masquerade(4))),
    ):
        run(host, "nft", "flush", "ruleset")
        change()
        nat.withdraw("three")
        nat.unmasquerade("three")
        nat.publish("two", [host_port(81, 3)])
        nat.masquerade("two", masquerade(3))
        assert ruleset(host) == wanted
    run(host, "nft", "flush", "ruleset")
    nat.restore_ports({"one": [host_port(80)], "two": [host_port(81, 3)]})
    nat.restore_masquerades({"one": masquerade(2), "two": masquerade(3)})
    assert ruleset(host) == wanted


def test_a_new_process_withdraws_what_a_former_one_published(host, outside):
    former = NftNat(host, "pods")
    former.publish("one", [host_port(80)])
    former.publish("dead", [host_port(81, 3)])
    former.masquerade("one", masquerade(2))
    former.masquerade("dead", masquerade(3))
    now = NftNat(host, "pods")
    now.restore_ports({"one": [host_port(80)]})
    now.restore_masquerades({"one": masquerade(2)})
    assert "dead" not in run(host, "nft", "list", "ruleset")
    now.publish("two", [host_port(81, 3)])
    now.withdraw("one")
    assert '"one"' not in run(host, "nft", "list", "table", "inet", "cni-pods-hostports")
    now.withdraw("two")
    now.unmasquerade("one")
    assert ruleset(host) == []


def test_before_it_is_told_a_new_process_leaves_what_it_finds(host, outside):
    NftNat(host, "pods").publish("one", [host_port(80)])
    before = ruleset(host)
    now = NftNat(host, "pods")
    now.publish("two", [host_port(81, 3)])
    now.withdraw("two")
    assert ruleset(host) == before


def test_before_it_is_told_a_new_process_ends_what_a_former_one_s_owner_has(host, outside):
    former = NftNat(host, "pods")
    for number, owner in enumerate(("one", "two", "o" * 127, "ö" * 100 + "1", "ö" * 100 + "2"), start=2):
        six = HostPort(
            "udp", 53, ip_interface(f"fd00:88::{number}/64"), 53, ip_address(f"2001:db8::{number}")
        )
        former.publish(owner, [host_port(80 + number, number), six])
        former.masquerade(owner, masquerade(number))
    now = NftNat(host, "pods")
    for owner in ("one", "o" * 127, "ö" * 100 + "1"):
        now.withdraw(owner)
        now.unmasquerade(owner)
    listed = run(host, "nft", "list", "ruleset")
    assert '"one"' not in listed
    assert '"ooo' not in listed
    assert listed.count('"two"') == 5
    assert listed.count('"ööö') == 10, "who of the two has what cannot be told from half a name"
    now.publish("new", [host_port(82, 9)])
    with pytest.raises(KernelError, match="not known here"):
        now.publish("new", [host_port(83, 9)])


@pytest.mark.parametrize(
    "harm",
    [
        "flush ruleset",
        "delete element inet cni-pods-hostports any4 { tcp . 80 }",
        "delete element inet cni-pods-hostports published4 { 10.88.0.2 . tcp . 80 }",
        "delete element inet cni-pods-masquerade sources4 { 10.88.0.2 }",
    ],
)
def test_what_somebody_removed_is_missing(nat, host, harm):
    nat.publish("one", [host_port(80), host_port(81, 2, "udp", ip_address("192.0.2.1"))])
    nat.masquerade("one", masquerade(2))
    nat.publish("two", [host_port(82, 3)])
    nat.publish("six", [HostPort("tcp", 80, ip_interface("fd00:88::2/64"), 80)])
    assert not any(map(nat.missing, ("one", "two", "six", "nobody")))
    run(host, "nft", *harm.split())
    assert "of one in nftables table cni-pods-" in nat.missing("one")[0]
    assert bool(nat.missing("two")) == (harm == "flush ruleset")
    nat.publish("one", [])
    nat.unmasquerade("one")
    assert nat.missing("one") == []


def test_what_somebody_put_in_its_place_is_missing_too(nat, host):
    nat.publish("one", [host_port(80)])
    run(host, "nft", "delete element inet cni-pods-hostports any4 { tcp . 80 }")
    run(host, "nft", "add element inet cni-pods-hostports any4 { tcp . 80 : 10.0.0.1 . 80 }")
    assert nat.missing("one") == ["host port 80/tcp of one in nftables table cni-pods-hostports"]


def test_restoring_nothing_leaves_nothing(host, make_pod):
    pod = make_pod()
    former = NftNat(host, "pods")
    former.publish("one", [HostPort("tcp", 80, pod.addresses[4], 80)])
    assert host.sysctl("net.ipv4.conf.pods0.route_localnet") == "1"
    NftNat(host, "pods").restore_ports({})
    assert ruleset(host) == []
    assert host.sysctl("net.ipv4.conf.pods0.route_localnet") == "0"
    assert not route_localnet(host, "none")


def test_two_hundred_owners_come_and_go_in_parallel(nat, host, foreign):
    def live(number):
        owner = f"pod-{number}"
        ports = [host_port(1000 + number, number), host_port(1000 + number, number, "udp")]
        for _ in range(2):
            nat.publish(owner, ports)
            nat.masquerade(owner, masquerade(number))
            nat.withdraw(owner)
            nat.unmasquerade(owner)
        nat.publish(owner, ports)
        nat.masquerade(owner, masquerade(number))
        return owner

    numbers = list(range(2, 202))
    random.shuffle(numbers)
    with ThreadPoolExecutor(8) as threads:
        owners = list(threads.map(live, numbers))
        present = ruleset(host)
        assert all(f'"pod-{number}"' in json.dumps(present) for number in numbers)
        fresh = NftNat(host, "pods")
        fresh.restore_ports(
            {f"pod-{n}": [host_port(1000 + n, n), host_port(1000 + n, n, "udp")] for n in numbers}
        )
        fresh.restore_masquerades({f"pod-{n}": masquerade(n) for n in numbers})
        assert len(ruleset(host)) == len(present)
        random.shuffle(owners)
        list(threads.map(nat.withdraw, owners))
        list(threads.map(nat.unmasquerade, owners))
    assert ruleset(host) == foreign


class Faulty:
    """A host whose sockets fail: the `at`th time that one is made, prepared, sent to or received from."""

    def __init__(self, host):
        self.host = host
        self.at = -1
        self.count = 0

    def socket(self, *arguments):
        self.step()
        return FaultySocket(self, self.host.socket(*arguments))

    def step(self):
        self.count += 1
        if self.count == self.at:
            raise OSError(errno.ENOBUFS, "by the test")


class FaultySocket:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def __init__(self, source, sock):
        self.source, self.sock = source, sock

    def __getattr__(self, name):
        found = getattr(self.sock, name)
        if name not in ("setsockopt", "send", "recv"):
            return found

        def call(*arguments):
            self.source.step()
            return found(*arguments)

        return call


def changes(nat):
    return {
        "publish": lambda: nat.publish("two", [host_port(81, 3, "tcp")]),
        "publish_udp": lambda: nat.publish("two", [host_port(81, 3, "udp")]),
        "republish": lambda: nat.publish("one", [host_port(82)]),
        "withdraw": lambda: nat.withdraw("one"),
        "masquerade": lambda: nat.masquerade("two", masquerade(3)),
        "unmasquerade": lambda: nat.unmasquerade("one"),
        "restore_ports": lambda: nat.restore_ports({"two": [host_port(81, 3)]}),
        "restore_masquerades": lambda: nat.restore_masquerades({"two": masquerade(3)}),
    }


@pytest.mark.parametrize("name", changes(None))
def test_whatever_fails_nothing_is_changed(host, outside, name):
    ip(host, "addr add 10.88.0.1/16 dev pods0")
    faulty = Faulty(host)
    nat = NftNat(faulty, "pods")
    nat.restore_ports({"one": [host_port(80)], "three": [host_port(83, 4)]})
    nat.restore_masquerades({"one": masquerade(2), "three": masquerade(4)})
    before = ruleset(host), host.sysctl("net.ipv4.conf.pods0.route_localnet")
    for at in range(1, 100):
        faulty.count, faulty.at = 0, at
        try:
            changes(nat)[name]()
        except KernelError:
            assert (ruleset(host), host.sysctl("net.ipv4.conf.pods0.route_localnet")) == before, f"call {at}"
        else:
            break
    assert at > 2, "something has failed"
    assert ruleset(host) != before[0]


def test_whatever_fails_the_first_port_leaves_nothing(host, outside):
    ip(host, "addr add 10.88.0.1/16 dev pods0")
    faulty = Faulty(host)
    for at in range(1, 100):
        nat = NftNat(faulty, "pods")
        nat.restore_ports({})
        faulty.count, faulty.at = 0, at
        try:
            nat.publish("one", [host_port(80, protocol="udp")])
        except KernelError:
            assert ruleset(host) == [], f"call {at}"
            assert host.sysctl("net.ipv4.conf.pods0.route_localnet") == "0", f"call {at}"
        else:
            break
    assert at > 10, "something has failed"
    assert host.sysctl("net.ipv4.conf.pods0.route_localnet") == "1"


def test_what_was_not_answered_is_put_right_by_the_next_change(host, monkeypatch):
    faulty = Faulty(host)
    nat = NftNat(faulty, "pods")
    nat.restore_ports({"one": [host_port(80)]})
    monkeypatch.setattr(FaultySocket, "__getattr__", _deaf)
    with pytest.raises(KernelError) as caught:
        nat.publish("two", [HostPort("tcp", 81, ip_interface("fd00:88::3/64"), 80)])
    assert "and the undo failed" in caught.value.__notes__[0]
    monkeypatch.undo()
    nat.publish("three", [host_port(82, 4)])
    listed = run(host, "nft", "list", "ruleset")
    assert [owner in listed for owner in ("one", "two", "three")] == [True, False, True]


def _deaf(self, name):
    if name == "recv":
        raise OSError(errno.EIO, "by the test")
    return getattr(self.sock, name)


def test_problems_name_the_remedy(host, nat, outside):
    assert nat.problems() == []
    assert ruleset(host) == []

    class Without:
        def socket(self, family, kind, protocol):
            if protocol == NETLINK_NETFILTER:
                raise OSError(errno.EPROTONOSUPPORT, "no netfilter")
            return host.socket(family, kind, protocol)

    tables, masquerading, states = NftNat(Without(), "pods").problems()
    assert "nft_fib_inet" in tables
    assert "nft_masq" in masquerading
    assert "nf_conntrack_netlink" in states


@pytest.mark.parametrize("network", ["pods", "a" * 300, "a b", "größe", "", "0net", "-x", 'x"; drop'])
def test_any_network_has_a_table_that_nft_can_name(host, network):
    nat = NftNat(host, network)
    nat.restore_ports(
        {"o" * 200: [host_port(80)], "ö" * 200: [host_port(81, 3)], 'a"b\\': [host_port(82, 4)]}
    )
    name = next(one["table"]["name"] for one in ruleset(host) if "table" in one)
    run(host, "nft", "delete", "table", "inet", name)


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (dict(protocol="icmp"), "protocol 'icmp'"),
        (dict(host_port=0), "port 0"),
        (dict(pod_port=65536), "port 65536"),
        (dict(host_ip=ip_address("::1")), "another family"),
        (dict(host_ip=ip_address("0.0.0.0")), "no hostIP"),
    ],
)
def test_ports_that_cannot_be_are_refused(nat, host, port, words):
    settings = dict(protocol="tcp", host_port=80, pod=ip_interface("10.88.0.2/16"), pod_port=80)
    with pytest.raises(ConfigurationError, match=words):
        nat.publish("one", [HostPort(**{**settings, **port})])
    with pytest.raises(ConfigurationError, match="map it once"):
        nat.publish("one", [HostPort(**settings), HostPort(**{**settings, "pod_port": 81})])
    assert ruleset(host) == []
