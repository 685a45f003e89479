"""Real VNET jails on a real bridge(4) of this host: cni_plugins on FreeBSD, by root.

What the host has when a test ends must be what it had when the test began; every test is checked for that.
"""

import contextlib
import errno
import itertools
import os
import secrets
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

if not sys.platform.startswith("freebsd"):
    pytest.skip("FreeBSD only: VNET jails", allow_module_level=True)

from cni_plugins import (
    AttachmentBrokenError,
    AttachmentExistsError,
    ConfigurationError,
    ForeignInterfaceError,
    KernelError,
    NotAttachedError,
    links,
    loopback,
    registry,
    results,
)
from cni_plugins.freebsd.ioctl import Interfaces
from cni_plugins.freebsd.links import GROUP, FreeBSDLinks
from cni_plugins.ledger import Ledger
from cni_plugins.plugin import Attachment, Context, Request
from cni_plugins.rtnetlink import Routes, link_set
from cni_plugins.runtime_config import RuntimeConfig
from cni_plugins.settings import Settings
from cni_plugins.types import OwnStack, Result

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]  # an emulated machine is slow

HOST = OwnStack()
GATEWAYS = ip_address("10.188.0.1"), ip_address("fd00:188::1")
IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.188.0.0/16"}], [{"subnet": "fd00:188::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def host_state():
    """What must be as before: interfaces, their groups, jails (dying ones have their time), open descriptors."""
    deadline = time.monotonic() + 60
    while "cnitest" in run("jls", "-d", "name") and time.monotonic() < deadline:
        time.sleep(0.1)
    descriptors = len(list(Path("/dev/fd").iterdir()))
    return (
        Counter(run("ifconfig", "-l").split()),
        run("ifconfig", "-g", GROUP),
        run("jls", "-d", "name"),
        descriptors,
    )


@pytest.fixture(autouse=True)
def leaves_nothing():
    before = host_state()
    yield
    assert host_state() == before


@pytest.fixture
def make_pod(leaves_nothing, new_jail):
    with contextlib.ExitStack() as cleanup:

        def make():
            pod = new_jail()
            cleanup.callback(pod.close)
            return pod

        yield make


@pytest.fixture
def pod(make_pod):
    return make_pod()


class Network:
    """A configured plugin, and what it takes to call it."""

    def __init__(self, type_, **settings):
        self.ledger = Ledger(None, "boot")
        context = Context(
            network="pods",
            host=HOST,
            links=links.for_this_system(HOST),
            ledger=self.ledger,
            nat=lambda: pytest.fail("nobody wants address translation"),
            delegate=lambda part: registry.find(part.type)(part, context),
            later=lambda what, work: pytest.fail(f"{what} is for now on FreeBSD"),
        )
        settings = {
            "type": type_,
            "isGateway": True,
            "mtu": 1400,
            "interfacePrefix": "cni",
            "ipam": IPAM,
            **settings,
        }
        self.settings = settings
        self.plugin = registry.find(type_)(Settings(settings, "network pods: plugin"), context)

    @property
    def name(self):
        return self.settings["bridge"]

    def request(self, name, pod, ifname="eth0", **runtime):
        config = RuntimeConfig(**runtime)
        return Request(Attachment(name, ifname, getattr(pod, "name", ""), config), pod, Result(), config)

    def add(self, name, pod, ifname="eth0", **runtime):
        """ADD; return the request for later calls."""
        request = self.request(name, pod, ifname, **runtime)
        return replace(request, previous=self.plugin.add(request))

    def host_end(self, name):
        return self.plugin._names.host(f"{name}/eth0")

    def host_ends(self):
        return {link.name for link in FreeBSDLinks(HOST).all() if self.plugin._names.has(link.name)}

    def clear(self):
        self.plugin.gc([])
        self.ledger.close()
        assert self.settings["type"] != "bridge" or self.plugin.remove_unused()


@pytest.fixture
def make_network(make_pod):
    """Networks that are removed before the pods are, with all that hangs on them."""
    with contextlib.ExitStack() as cleanup:

        def make(type_="bridge", **settings):
            made = Network(type_, **{"bridge": f"cnit{secrets.token_hex(3)}", **settings})
            cleanup.callback(made.clear)
            return made

        yield make


@pytest.fixture
def bridge(make_network):
    return make_network()


@pytest.fixture
def ptp(make_network):
    return make_network("ptp")


def addresses(request):
    return [ip.address.ip for ip in request.previous.ips]


def family(address):
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def talk(client, server, address):
    """Send a line over TCP from one stack to an address of another; return what arrived."""
    with server.socket(family(address), socket.SOCK_STREAM, 0) as listener:
        listener.settimeout(20)
        listener.bind((str(address), 0))
        listener.listen()
        with client.socket(family(address), socket.SOCK_STREAM, 0) as sock:
            sock.settimeout(20)
            sock.connect((str(address), listener.getsockname()[1]))
            sock.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                return accepted.recv(5)


def ping(stack, address, patience=10, size=3):
    """One ICMP echo; true if the answer came within `patience` seconds."""
    six = address.version == 6
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with stack.socket(family(address), socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(patience)
        body = struct.pack("!HH", 0x4321, 1) + bytes(size)
        data = struct.pack("!BBH", 128 if six else 8, 0, 0) + body
        if not six:
            padded = data + b"\0" * (len(data) % 2)
            total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
            total = (total & 0xFFFF) + (total >> 16)
            data = data[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + data[4:]
        sock.sendto(data, (str(address), 0))
        with contextlib.suppress(TimeoutError):
            while True:
                answer = sock.recv(65536)
                answer = answer if six else answer[20:]
                if answer[0] == (129 if six else 0) and answer[4:] == body:
                    return True
        return False


def names():
    return {name for _, name in socket.if_nameindex()}


def test_loopback_comes_up_and_may_be_repeated(pod, make_network):
    for _ in range(2):
        loopback.up(pod)
    plugin = make_network("loopback")
    request = plugin.add("sandbox", pod, "lo0")
    told = results.to_json(request.previous, "1.0.0")
    assert told["interfaces"] == [{"name": "lo0", "sandbox": pod.name}]
    assert told["ips"] == [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}]
    plugin.plugin.check(request)
    for address in ("127.0.0.1", "::1"):
        assert talk(pod, pod, ip_address(address)) == b"hello"


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_pods_reach_each_other_and_the_host_over_both_families(make_network, make_pod, kind):
    network = make_network(kind)
    pods = [make_pod() for _ in range(3)]
    attached = [network.add(f"p{at}", pod) for at, pod in enumerate(pods)]
    for gateway in GATEWAYS if kind == "bridge" else GATEWAYS[:1]:
        assert talk(pods[0], HOST, gateway) == b"hello"
        assert ping(pods[0], gateway)
    for pod, each in zip(pods[1:], attached[1:], strict=True):
        for address in addresses(each):
            assert ping(HOST, address)
            assert ping(pods[0], address)
            assert talk(pods[0], pod, address) == b"hello"
        network.plugin.check(each)


def test_the_kernel_has_what_the_result_says(bridge, pod):
    request = bridge.add("sandbox", pod)
    on_bridge, host_end, pod_end = request.previous.interfaces
    bridge.plugin.check(request)
    assert bridge.host_ends() == {bridge.host_end("sandbox")} == {host_end.name}
    assert (on_bridge.name, pod_end.name, pod_end.sandbox) == (bridge.name, "eth0", pod.name)
    inside = pod.run("ifconfig", "eth0")
    assert f"ether {pod_end.mac}" in inside
    assert "mtu 1400" in inside
    for address in addresses(request):
        assert f" {address} " in inside
    assert "tentative" not in inside.split(str(addresses(request)[1]))[1].splitlines()[0]
    assert pod.run("netstat", "-rn").count("default") == 2
    outside = run("ifconfig", host_end.name)
    assert f"ether {host_end.mac}" in outside
    assert "inet" not in outside, "addresses are the bridge's alone"
    assert f"description: cni_plugins {host_end.name}" in outside
    assert GROUP in outside
    assert f"member: {host_end.name} " in run("ifconfig", bridge.name)
    assert f"ether {on_bridge.mac}" in run("ifconfig", bridge.name)


def test_a_routed_pair_is_what_the_result_says(ptp, pod):
    request = ptp.add("sandbox", pod)
    host_end, pod_end = request.previous.interfaces
    assert [ip.interface for ip in request.previous.ips] == [1, 1]
    assert f"ether {pod_end.mac}" in pod.run("ifconfig", "eth0")
    outside = run("ifconfig", host_end.name)
    four, near = GATEWAYS[0], ip_address("fe80::1")
    assert f" {four} " in outside
    assert f" {near}%" in outside
    with Routes.of(pod) as routes:
        found = {route.dst: route.gw for route in routes.routes("eth0")}
    assert found[ip_network("10.188.0.0/16")] == found[ip_network("0.0.0.0/0")] == four
    assert found[ip_network("fd00:188::/64")] == found[ip_network("::/0")] == near
    assert found[ip_network(four)] is None
    ptp.plugin.delete(request)
    with Routes.of(HOST) as routes:
        assert not any(
            route.dst[0] in ip_network("10.188.0.0/16")
            for _, route in routes.all_routes()
            if route.dst.version == 4
        )


def test_routed_pairs_survive_each_other(ptp, make_pod):
    """All have the gateway's address; the one that goes must not take it from the others."""
    pods = [make_pod() for _ in range(3)]
    attached = [ptp.add(f"p{at}", pod) for at, pod in enumerate(pods)]
    for gone, left in ((0, (1, 2)), (2, (1,))):
        ptp.plugin.delete(attached[gone])
        for at in left:
            ptp.plugin.check(attached[at])
            assert ping(pods[at], GATEWAYS[0]), (gone, at)
            for address in addresses(attached[at]):
                assert ping(HOST, address)
    again = ptp.add("again", pods[0])
    ptp.plugin.gc([attached[1], again])
    for request in (attached[1], again):
        ptp.plugin.check(request)
        assert ping(request.stack, GATEWAYS[0])
    assert all(ping(pods[0], address) for address in addresses(attached[1]))


def test_a_gateway_forwards(bridge, pod):
    names = {"net.inet.ip.forwarding": "1", "net.inet6.ip6.forwarding": "1"}
    before = {name: run("sysctl", "-n", name).strip() for name in names}
    run("sysctl", *(f"{name}=0" for name in names))
    try:
        bridge.add("sandbox", pod)
        assert {name: run("sysctl", "-n", name).strip() for name in names} == names
    finally:
        run("sysctl", *(f"{name}={value}" for name, value in before.items()))


def test_the_host_end_stays_bare_where_interfaces_take_ipv6_by_default(bridge, pod):
    before = run("sysctl", "-n", "net.inet6.ip6.accept_rtadv").strip()
    run("sysctl", "net.inet6.ip6.accept_rtadv=1")
    try:
        bridge.add("sandbox", pod)
    finally:
        run("sysctl", f"net.inet6.ip6.accept_rtadv={before}")
    assert "inet" not in run("ifconfig", bridge.host_end("sandbox")).replace("nd6", "")


@contextlib.contextmanager
def parameters(**wanted):
    """Parameters of net.inet6.ip6 on the host, as before afterwards."""
    before = {name: run("sysctl", "-n", f"net.inet6.ip6.{name}").strip() for name in wanted}
    run("sysctl", *(f"net.inet6.ip6.{name}={value}" for name, value in wanted.items()))
    try:
        yield
    finally:
        run("sysctl", *(f"net.inet6.ip6.{name}={value}" for name, value in before.items()))


def parameter(name):
    return run("sysctl", "-n", f"net.inet6.ip6.{name}").strip()


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_no_address_is_looked_for_elsewhere(make_network, pod, kind):
    """Once a second the kernel marks those of links that are down, or disabled, for a check, during which nobody can use them.

    So it did in the middle of an ADD, which failed.
    """
    request = make_network(kind).add("sandbox", pod)
    pod.run("ifconfig", "eth0", "down")
    time.sleep(2.5)
    pod.run("ifconfig", "eth0", "up")
    inside = pod.run("ifconfig", "eth0")
    assert "tentative" not in inside.split(str(addresses(request)[1]))[1].splitlines()[0]


def advertise(pod, name):
    """Send an advertisement of a router, as a pod with allow.raw_sockets can."""
    with Routes.of(pod) as routes:
        index = routes.link_index(name)
    with pod.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, index))


def listens(*command):
    return "ACCEPT_RTADV" in run(*command)


def default_way():
    return "default" in run("netstat", "-rn", "-6")


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_no_end_takes_a_router_from_a_pod(make_network, pod, kind):
    """net.inet6.ip6.accept_rtadv decides for every interface that comes, of the host and of a jail alike."""
    assert not default_way(), "the node has a router of its own: nothing could be told here"
    network = make_network(kind)
    pod.sysctl("net.inet6.ip6.accept_rtadv", "1")
    with parameters(accept_rtadv=1, rfc6204w3=1):
        request = network.add("sandbox", pod)
        near = network.host_end("sandbox")
        assert not listens("ifconfig", near)
        assert not listens("jexec", pod.name, "ifconfig", "eth0")
        assert kind == "ptp" or not listens("ifconfig", network.name)
        time.sleep(2)  # addresses are checked first
        advertise(pod, "eth0")
        time.sleep(1)
        assert not default_way()
        if kind == "bridge":
            return
        # As an earlier release has left it: then it would be so.
        run("ifconfig", near, "inet6", "accept_rtadv")
        advertise(pod, "eth0")
        deadline = time.monotonic() + 10
        while not default_way() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert default_way()
        network.plugin.gc([request])
        assert not listens("ifconfig", near)


def test_advertised_routers_are_kept_where_the_node_has_one(bridge, pod, make_pod):
    with parameters(forwarding=0, rfc6204w3=0):
        bridge.add("sandbox", pod)
        assert (parameter("forwarding"), parameter("rfc6204w3")) == ("1", "0")
    uplink = run("ifconfig", "epair", "create").strip()
    try:
        run("ifconfig", uplink, "inet6", "-ifdisabled", "accept_rtadv", "up")
        run("ifconfig", uplink, "inet6", "fd00:99::2/64", "no_dad")
        run("route", "-6", "add", "default", "fd00:99::1")
        with parameters(forwarding=0, rfc6204w3=0):
            bridge.add("second", make_pod())
            assert (parameter("forwarding"), parameter("rfc6204w3")) == ("1", "1")
    finally:
        run("ifconfig", uplink, "destroy")
    assert not default_way()


@pytest.mark.parametrize(("kind", "mtu"), [("bridge", 1450), ("bridge", 9000), ("ptp", 9000)])
def test_the_mtu_is_the_same_everywhere_and_honoured(make_network, make_pod, kind, mtu):
    network = make_network(kind, mtu=mtu)
    one, two = make_pod(), make_pod()
    network.add("one", one)
    to = addresses(network.add("two", two))[0]
    for name in (network.name, network.host_end("one")) if kind == "bridge" else (network.host_end("one"),):
        assert f"mtu {mtu}" in run("ifconfig", name)
    one.run("ping", "-c", "1", "-t", "10", "-D", "-s", str(mtu - 28), str(to))
    with pytest.raises(AssertionError, match="Message too long"):
        one.run("ping", "-c", "1", "-t", "10", "-D", "-s", str(mtu - 27), str(to))
    assert ping(one, to, size=mtu + 100), "in fragments"


def test_frames_are_jumbo_only_if_all_agree(make_network, make_pod, bridge):
    jumbo = make_network(bridge=bridge.name, mtu=9000)
    one, two = make_pod(), make_pod()
    bridge.add("one", one)
    request = jumbo.add("two", two)
    assert {interface.mtu for interface in request.previous.interfaces} == {1400}
    assert "mtu 1400" in two.run("ifconfig", "eth0")


def test_isolated_pods_reach_the_gateway_only(make_network, make_pod):
    bridge = make_network(portIsolation=True)
    one, two = make_pod(), make_pod()
    bridge.add("one", one)
    for gateway, address in zip(GATEWAYS, addresses(bridge.add("two", two)), strict=True):
        assert ping(one, gateway)
        assert not ping(one, address, patience=2)


def test_a_bridge_is_put_right_by_the_next_pod(bridge, make_pod):
    bridge.add("one", make_pod())
    with Routes.of(HOST) as routes:
        before = routes.link(bridge.name)
        routes.link_set(bridge.name, up=False)
        bridge.add("two", make_pod())
        assert routes.link(bridge.name) == before
        assert (before.kind, before.mtu, before.up) == ("bridge", 1400, True)
        assert set(routes.addresses(bridge.name)) == {
            ip_interface("10.188.0.1/16"),
            ip_interface("fd00:188::1/64"),
        }


def test_promiscuous_mode_and_a_mac_that_is_asked_for(make_network, pod):
    bridge = make_network(promiscMode=True)
    request = bridge.add("sandbox", pod, mac="02:00:00:00:00:01")
    assert "ether 02:00:00:00:00:01" in pod.run("ifconfig", "eth0")
    assert "PROMISC" in run("ifconfig", bridge.name)
    bridge.plugin.check(request)


def test_routes_are_as_ipam_has_them(make_network, pod):
    wanted = [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.188.0.9", "mtu": 1300}]
    bridge = make_network(ipam=IPAM | {"routes": wanted})
    bridge.plugin.check(bridge.add("sandbox", pod))
    with Routes.of(pod) as routes:
        found = {route.dst: route for route in routes.routes("eth0")}
    assert found[ip_network("192.0.2.0/24")].mtu == 1300
    assert found[ip_network("192.0.2.0/24")].gw == ip_address("10.188.0.9")
    odd = make_network(bridge=bridge.name, ipam=IPAM | {"routes": [{"dst": "192.0.2.0/24", "priority": 7}]})
    with pytest.raises(ConfigurationError, match="priority"):
        odd.add("other", pod, "net1")
    assert pod.run("ifconfig", "-l").split() == ["lo0", "eth0"]


def test_without_ipam_a_pod_is_on_the_link_only(make_network, pod):
    bridge = make_network(ipam={})
    request = bridge.add("sandbox", pod)
    assert "UP" in pod.run("ifconfig", "eth0")
    bridge.plugin.check(request)


def test_a_pod_may_have_two_interfaces_on_one_bridge(make_network, make_pod):
    bridge = make_network(ipam=IPAM | {"routes": []})
    pod, other = make_pod(), make_pod()
    first, second = bridge.add("sandbox", pod), bridge.add("sandbox", pod, "net1")
    bridge.add("other", other)
    for request in (first, second):
        bridge.plugin.check(request)
    assert ping(other, addresses(first)[0])
    bridge.plugin.delete(first)
    bridge.plugin.check(second)
    assert pod.run("ifconfig", "-l").split() == ["lo0", "net1"]


def test_many_at_once_make_one_bridge(bridge, make_pod):
    before = names()
    pods = [make_pod() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda item: bridge.add(f"p{item[0]}", item[1]), enumerate(pods)))
    assert names() - before == {bridge.name, *bridge.host_ends()}
    assert len(bridge.host_ends()) == 8


def test_a_bridge_that_a_killed_process_left_is_finished(bridge, pod):
    before = names()
    with Routes.of(HOST) as routes:
        routes.link_create("bridge", f"cni_plugins {bridge.name}")
    bridge.add("sandbox", pod)
    assert names() - before == {bridge.name, bridge.host_end("sandbox")}


def test_a_foreign_interface_of_that_name_is_left_alone(bridge, pod):
    run("ifconfig", run("ifconfig", "epair", "create").strip(), "name", bridge.name)
    try:
        with pytest.raises(ForeignInterfaceError, match=bridge.name):
            bridge.add("sandbox", pod)
        assert any(bridge.name in problem for problem in bridge.plugin.status())
        assert not bridge.plugin.remove_unused()
        assert bridge.name in names()
    finally:
        run("ifconfig", bridge.name, "destroy")


def test_a_second_add_is_refused_and_harms_nothing(bridge, pod, make_pod):
    request = bridge.add("sandbox", pod)
    with pytest.raises(AttachmentExistsError, match=bridge.host_end("sandbox")):
        bridge.add("sandbox", make_pod())
    with pytest.raises(AttachmentExistsError, match="eth0"):
        bridge.add("other", pod)
    bridge.plugin.check(request)
    assert bridge.host_ends() == {bridge.host_end("sandbox")}
    with pytest.raises(KernelError, match=r"default route via 10\.188\.0\.1 on interface net1"):
        bridge.add("other", pod, "net1")
    bridge.plugin.check(request)


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_delete_destroys_the_end_in_the_jail_and_succeeds_on_what_is_gone(make_network, pod, kind):
    network = make_network(kind)
    network.plugin.delete(network.request("sandbox", pod))
    request = network.add("sandbox", pod)
    with_bridge = names() - network.host_ends()
    for each in (request, request, replace(request, stack=None, previous=Result())):
        network.plugin.delete(each)
    assert pod.run("ifconfig", "-l").split() == ["lo0"]
    assert names() == with_bridge
    with pytest.raises(NotAttachedError, match="sandbox"):
        network.plugin.check(request)
    network.add("sandbox", pod)


def test_delete_after_the_jail_is_gone(bridge, make_pod):
    for wait in (0, 2):
        dying = make_pod()
        request = bridge.add("sandbox", dying)
        run("ifconfig", bridge.name, "deletem", bridge.host_end("sandbox"))
        dying.close()
        time.sleep(wait)
        for _ in range(2):
            bridge.plugin.delete(replace(request, stack=None))
        assert bridge.host_ends() == set()


def test_check_names_everything_that_is_wrong(bridge, pod):
    request = bridge.add("sandbox", pod)
    with Routes.of(pod) as routes, Interfaces.of(pod) as interfaces:
        interfaces.set_mac("eth0", "02:00:00:00:00:01")
        routes.perform(link_set("eth0", up=False))
    pod.run("ifconfig", "eth0", "inet6", str(addresses(request)[1]), "delete")
    run("ifconfig", bridge.name, "inet6", str(GATEWAYS[1]), "delete")
    with Interfaces.of(HOST) as interfaces:
        interfaces.bridge_delete(bridge.name, bridge.host_end("sandbox"))
    with pytest.raises(AttachmentBrokenError) as caught:
        bridge.plugin.check(request)
    for fault in (
        "eth0 is down",
        "02:00:00:00:00:01",
        "is not in bridge",
        "lacks address fd00:188::2/64",
        "lacks address fd00:188::1/64",
        "lacks the route to 0.0.0.0/0 via 10.188.0.1",
    ):
        assert fault in str(caught.value)


def test_gc_puts_back_what_somebody_removed(make_network, make_pod):
    bridge = make_network(isolated=True)
    pods = [make_pod(), make_pod()]
    attached = [bridge.add(f"p{at}", pod) for at, pod in enumerate(pods)]
    lost = bridge.add("lost", make_pod())
    run("ifconfig", bridge.name, "destroy")
    assert not ping(pods[0], GATEWAYS[0], patience=1)
    bridge.plugin.gc(attached)
    assert bridge.host_ends() == {bridge.host_end("p0"), bridge.host_end("p1")}
    assert lost.stack.run("ifconfig", "-l").split() == ["lo0"]
    for request in attached:
        bridge.plugin.check(request)
        assert all(ping(request.stack, gateway) for gateway in GATEWAYS)
    assert not ping(pods[0], addresses(attached[1])[0], patience=1), "still isolated"


def test_gc_puts_back_the_host_s_side_of_a_routed_pair(ptp, make_pod):
    attached = [ptp.add(name, make_pod()) for name in ("one", "two")]
    host_end = ptp.host_end("one")
    run("ifconfig", host_end, "inet", str(GATEWAYS[0]), "delete")
    run("ifconfig", host_end, "inet6", "fe80::1", "delete")
    run("ifconfig", host_end, "down")
    ptp.plugin.gc(attached)
    for request in attached:
        ptp.plugin.check(request)
        assert ping(request.stack, GATEWAYS[0])
    assert all(ping(attached[0].stack, address) for address in addresses(attached[1]))


def test_a_bridge_with_members_stays(bridge, pod):
    request = bridge.add("sandbox", pod)
    assert not bridge.plugin.remove_unused()
    bridge.plugin.check(request)


def test_a_jail_that_is_gone_is_named(bridge):
    class Gone:
        move_target = 999_998

    before = names()
    with pytest.raises(KernelError, match=r"jail 999998.*make the pod anew"):
        bridge.add("sandbox", Gone())
    assert names() - before == {bridge.name}


@pytest.mark.parametrize(("kind", "count"), [("bridge", 50), ("ptp", 16)])
def test_many_come_and_go_at_once(make_network, make_pod, kind, count):
    network = make_network(kind)
    pods = {f"s{number}": make_pod() for number in range(count)}
    network.plugin.delete(network.add("first", pods["s0"]))
    before = names()
    with ThreadPoolExecutor(8) as threads:
        started = time.monotonic()
        attached = dict(zip(pods, threads.map(lambda name: network.add(name, pods[name]), pods), strict=True))
        added = time.monotonic()
        list(threads.map(network.plugin.check, attached.values()))
        assert len(network.host_ends()) == count
        assert ping(pods["s0"], addresses(attached[f"s{count - 1}"])[0])
        checked = time.monotonic()
        list(threads.map(network.plugin.delete, attached.values()))
        deleted = time.monotonic()
    each = 1000 / count
    print(
        f"{count} pods, ms each: add {(added - started) * each:.1f}, delete {(deleted - checked) * each:.1f}"
    )
    assert network.host_ends() == set()
    assert names() == before
    assert all(pod.run("ifconfig", "-l").split() == ["lo0"] for pod in pods.values())


def test_jails_die_while_other_pairs_are_deleted(bridge, make_pod):
    """As when many pods are removed at once: each gives its interface back first, and all of them run into each other."""
    pods = {f"s{number}": make_pod() for number in range(16)}
    attached = {name: bridge.add(name, pod) for name, pod in pods.items()}
    with_bridge = names() - bridge.host_ends()

    def end(name):
        bridge.plugin.delete(attached[name])
        pods[name].close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(end, pods))
    assert names() == with_bridge


def test_a_bridge_cannot_have_the_name_of_an_interface_group(pod):
    network = Network("bridge", bridge="all")
    with pytest.raises(ConfigurationError, match="group"):
        network.add("sandbox", pod)
    network.ledger.close()


STEPS = {
    "bridge": [
        "set_mac",
        "set_mtu",
        "rename",
        "join_group",
        "ignore_advertisements",
        "disable_ipv6",
        "bridge_add",
        "bridge_isolate",
        "move",
    ],
    "ptp": ["set_mac", "set_mtu", "rename", "join_group", "ignore_advertisements", "move"],
}
NETLINK_STEPS = ["link_create", "link_set", "perform", "find"]


def moments(kind, *times):
    return [(step, nth) for step in STEPS[kind] + NETLINK_STEPS for nth in times]


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_failure_at_any_step_leaves_nothing(make_network, pod, monkeypatch, kind):
    """One jail serves for all, for making it is what takes time."""
    network, failed = make_network(kind, isolated=True), set()
    network.plugin.delete(network.add("first", pod))
    before = names()
    for step, nth in moments(kind, 1, 2, 3, 4):
        for done in (False, True):  # what a step did before it failed is taken back too
            target = Routes if step in NETLINK_STEPS else Interfaces
            with monkeypatch.context() as patch:
                patch.setattr(
                    target, step, failing(getattr(target, step), nth, done and step != "link_create")
                )
                try:
                    network.add("sandbox", pod)
                except KernelError as error:
                    assert error.operation == "imagine", (step, nth, done)  # noqa: PT017
                    failed.add((step, nth))
                else:  # there are not so many calls of this step
                    network.plugin.delete(network.request("sandbox", pod))
            assert names() == before, (step, nth, done)
            assert pod.run("ifconfig", "-l").split() == ["lo0"], (step, nth, done)
            assert not network.plugin._ipam._leases().held("sandbox/eth0")
    assert {step for step, _ in failed} == {*STEPS[kind], *NETLINK_STEPS}
    network.plugin.check(network.add("sandbox", pod))


def failing(real, nth, done):
    """Return a method whose nth call fails, perhaps after it has done its work."""
    count = itertools.count(1)

    def fail(self, *arguments, **options):
        if next(count) != nth:
            return real(self, *arguments, **options)
        if done:
            real(self, *arguments, **options)
        raise KernelError(errno.ENOMEM, "imagine", real.__name__)

    return fail


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_what_a_killed_process_leaves_is_found_and_taken_back(make_network, pod, monkeypatch, kind):
    """Die in a child after each step, as SIGKILL would have it: no undo runs."""
    network, died = make_network(kind, isolated=True), set()
    network.plugin.delete(network.add("first", pod))
    before, host_end = names(), network.host_end("sandbox")
    for step, nth in moments(kind, 1, 2):
        target = Routes if step in NETLINK_STEPS else Interfaces
        child = os.fork()
        if not child:
            monkeypatch.setattr(target, step, deadly(getattr(target, step), nth))
            network.add("sandbox", pod)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 7)
        if code == 7:
            died.add(step)
        assert network.host_ends() <= {host_end}, (step, nth)
        if nth == 1:
            network.plugin.gc([])
        else:
            network.plugin.delete(network.request("sandbox", None))
        assert names() == before, (step, nth)
        assert pod.run("ifconfig", "-l").split() == ["lo0"], (step, nth)
    assert died == {*STEPS[kind], *NETLINK_STEPS}


def deadly(real, nth):
    """Return a method whose nth call is the last thing that the process does."""
    count = itertools.count(1)

    def die(self, *arguments, **options):
        result = real(self, *arguments, **options)
        if next(count) == nth:
            os._exit(7)
        return result

    return die


def test_what_is_in_the_making_hides_behind_what_is_there(bridge, pod):
    """A leftover beside the finished attachment of its name: deleting the stray must not take the attachment."""
    request = bridge.add("sandbox", pod)
    host_end = bridge.host_end("sandbox")
    with Routes.of(HOST) as routes:
        routes.link_create("epair", f"cni_plugins {host_end}")
    bridge.plugin.gc([request])
    bridge.plugin.check(request)
    bridge.plugin.delete(request)
    assert bridge.host_ends() == {host_end}
    bridge.plugin.delete(request)
    assert bridge.host_ends() == set()


def test_links_are_described_as_the_kernel_has_them():
    found = {link.name: link for link in FreeBSDLinks(HOST).all()}
    assert found["lo0"].loopback
    assert {link.name: link.index for link in found.values()} == {n: i for i, n in socket.if_nameindex()}
