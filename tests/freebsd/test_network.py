"""Whole networks of VNET jails: pods, this host as their node, and a jail outside. By root.

The network is the default one, as the daemon renders it; `CNI` attaches the pods to it. What the host has when a test
ends must be what it had when the test began; every test is checked for that.

CNI_KILLS is how often a process is killed (50 times, which takes an emulated machine three to six minutes), CNI_PODS how
many pods come and go at once (50).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import re
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

if not sys.platform.startswith("freebsd"):
    pytest.skip("FreeBSD only: VNET jails and pf(4)", allow_module_level=True)

from cni_plugins import (
    CNI,
    Attachment,
    AttachmentBrokenError,
    KernelError,
    Ledger,
    NetworkError,
    NetworkList,
    NotAttachedError,
    PortMapping,
    RuntimeConfig,
    UnknownAttachmentError,
    leases,
)
from cni_plugins.freebsd import ioctl, nat, pf
from cni_plugins.freebsd.links import GROUP
from cni_plugins.netlink import client
from cni_plugins.types import OwnStack
from cri import config, default_network

pytestmark = [pytest.mark.node, pytest.mark.timeout(1800)]  # an emulated machine is slow

HOST = OwnStack()
BRIDGE = "cnitest0"
V4, V6 = "10.244.0.0/16", "fd00:244::/64"
OF_PODS = re.compile(r"10\.24[45]\.\d+\.\d+|fd00:244:[0-9a-f:]+")
GATEWAY, GATEWAY6 = "10.244.0.1", "fd00:244::1"
NODE, OTHER, OUTSIDE = "192.0.2.1", "192.0.2.9", "192.0.2.2"
NODE6, OUTSIDE6 = "2001:db8:2::1", "2001:db8:2::2"
LINES = 'nat-anchor "cni-rdr/*"\nrdr-anchor "cni-rdr/*"\n'
PASS = f"{LINES}pass all\n"
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
SOON = 1.5
"""Seconds that are enough for an answer that should not come."""


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, input=text)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


class Servers:
    """Answer over tcp and udp with the address that a question came from; one thread for all."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def serve(self, stack, port: int) -> None:
        for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for kind in (TCP, UDP):
                server = stack.socket(family, kind, 0)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.bind((anywhere, port))
                server.setblocking(False)
                if kind == TCP:
                    server.listen(64)
                self._selector.register(server, selectors.EVENT_READ)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._wake:
                    return
                with contextlib.suppress(OSError):
                    self._answer(key.fileobj)

    @staticmethod
    def _answer(server: socket.socket) -> None:
        if server.type == TCP:
            connection, peer = server.accept()
            with connection:
                connection.sendall(peer[0].encode())
        else:
            _, peer = server.recvfrom(100)
            server.sendto(peer[0].encode(), peer)

    def close(self) -> None:
        os.close(self._woken)
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if key.fileobj != self._wake:
                key.fileobj.close()
        self._selector.close()
        os.close(self._wake)


def ask(asking, address: str, port: int, kind: int = TCP, seconds: float = 10.0) -> str | None:
    """Whom the server takes the client for; None if it cannot be reached."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with asking.socket(family, kind, 0) as sock:
        sock.settimeout(seconds)
        if kind == TCP:  # nothing is to stay in TIME_WAIT, which would keep the jail from dying
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            sock.connect((address, port))
            if kind == UDP:
                sock.send(b"?")
            return sock.recv(100).decode()
        except OSError:
            return None


class Pod:
    """A jail with the addresses that it was given."""

    def __init__(self, name: str, jail, result) -> None:
        self.name, self.jail = name, jail
        self.v4, self.v6 = ([str(one.address.ip) for one in result.ips] + [""])[:2]
        self.socket, self.run = jail.socket, jail.run

    def attachment(self, ifname: str = "eth0") -> Attachment:
        return Attachment(self.name, ifname, f"jail:{self.name}")


class World:
    """A node with pods: the daemon's part in it, which may be started again."""

    def __init__(self, make_jail, outside, path: Path) -> None:
        self.make_jail, self.outside, self.path = make_jail, outside, path
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.path, "boot")
        self.cni = CNI(self.ledger)

    def stop(self) -> None:
        assert self.cni.close() == []
        self.ledger.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def add(self, name: str, jail, network: NetworkList, *ports: PortMapping, ifname: str = "eth0") -> Pod:
        runtime = RuntimeConfig(port_mappings=ports)
        result = self.cni.add(network, Attachment(name, ifname, f"jail:{name}", runtime), jail)
        return Pod(name, jail, result)

    def pod(self, name: str, network: NetworkList, *ports: PortMapping) -> Pod:
        jail = self.make_jail()
        jail.run("ifconfig", "lo0", "127.0.0.1/8", "up")
        return self.add(name, jail, network, *ports)

    def gc(self, *names: str, networks=None) -> None:
        assert self.cni.gc(lambda: names, [network()] if networks is None else networks) == []

    def check(self, pod: Pod, network: NetworkList) -> None:
        self.cni.check(network, pod.attachment(), pod.jail)


def network(*, name=BRIDGE, subnets=(V4, V6), mtu=0, routes=True, **bridge) -> NetworkList:
    """The default network, and what its bridge has besides."""
    settings = replace(config.load(environment={}, flags={}).network, bridge=name, mtu=mtu)
    told = default_network.render(settings, subnets).to_json()
    told["plugins"][0].update(bridge)
    if not routes:
        del told["plugins"][0]["ipam"]["routes"]
    return NetworkList.from_json(told)


def routed() -> NetworkList:
    """The same with `ptp`."""
    told = network().to_json()
    told["plugins"][0] = {"type": "ptp", "ipam": told["plugins"][0]["ipam"]}
    return NetworkList.from_json(told)


def anchors() -> dict[str, str]:
    names = run("pfctl", "-a", "cni-rdr", "-sA").split()
    return {name: run("pfctl", "-a", name, "-sn") for name in names}


def seen(*live: Pod) -> dict[str, list[str]]:
    """What the host has; of live pods it is left out whom they talked to."""
    living = {GATEWAY, GATEWAY6, *(address for pod in live for address in (pod.v4, pod.v6))}

    def of_strays(*command: str) -> list[str]:
        return sorted(line for line in run(*command).splitlines() if {*OF_PODS.findall(line)} - living)

    return {
        "interfaces": sorted(run("ifconfig", "-l").split()),
        "pods": sorted(run("ifconfig", "-g", GROUP).split()),
        "addresses": [line.strip() for line in run("ifconfig").splitlines() if line.startswith("\tinet")],
        "routes": [" ".join(line.split()[:4]) for line in run("netstat", "-rn").splitlines()],
        "neighbours": of_strays("arp", "-an") + of_strays("ndp", "-an"),
        # Neighbour discovery has states, too, which end by themselves in seconds and translate nothing.
        "states": [line for line in of_strays("pfctl", "-ss") if " ipv6-icmp " not in line],
        "rules": sorted(f"{name}: {rules}" for name, rules in anchors().items()),
    }


def changes(before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, tuple]:
    """What is gone, and what is new."""
    return {
        kind: (gone, new)
        for kind in before
        if (gone := [one for one in before[kind] if one not in after[kind]])
        + (new := [one for one in after[kind] if one not in before[kind]])
    }


@pytest.fixture(scope="module")
def outside(new_jail):
    """A jail at the other end of a cable to the node; it knows nothing of pods."""
    with contextlib.ExitStack() as cleanup:
        for name in ("net.inet.ip.forwarding", "net.inet6.ip6.forwarding", "net.inet6.ip6.rfc6204w3"):
            cleanup.callback(run, "sysctl", f"{name}={run('sysctl', '-n', name).strip()}")
        jail = new_jail()
        cleanup.callback(jail.close)
        near = run("ifconfig", "epair", "create").strip()
        cleanup.callback(
            run, "ifconfig", near, "destroy"
        )  # before the jail, which would send the other end home
        for words in (
            f"inet {NODE}/24 up",
            f"inet {OTHER}/32 alias",
            "inet6 no_dad",
            f"inet6 {NODE6}/64",
        ):
            run("ifconfig", near, *words.split())
        jail.connect(near[:-1] + "b", {4: f"{OUTSIDE}/24", 6: f"{OUTSIDE6}/64"})
        yield jail


@pytest.fixture
def servers():
    made = Servers()
    yield made
    made.close()


@pytest.fixture
def world(new_jail, outside, load_pf_conf, servers, tmp_path):
    load_pf_conf(PASS)
    before = seen()
    with contextlib.ExitStack() as cleanup:

        def make_jail():
            jail = new_jail()
            cleanup.callback(jail.close)
            return jail

        made = World(make_jail, outside, tmp_path / "network.db")
        try:
            made.gc()
            yield made
        finally:  # before the jails
            made.gc()
            made.stop()
    assert changes(before, seen()) == {}


# -- who reaches whom


def test_pods_reach_each_other_the_node_and_the_world(world, servers) -> None:
    one, two = (world.pod(name, network()) for name in ("one", "two"))
    for server in (one, two, HOST, world.outside):
        servers.serve(server, 8080)
    for kind in (TCP, UDP):
        assert ask(one, two.v4, 8080, kind) == one.v4
        assert ask(one, two.v6, 8080, kind) == one.v6
        assert ask(one, GATEWAY, 8080, kind) == one.v4
        assert ask(one, GATEWAY6, 8080, kind) == one.v6
        assert ask(HOST, one.v4, 8080, kind) == GATEWAY
        assert ask(HOST, one.v6, 8080, kind) == GATEWAY6
        assert ask(one, OUTSIDE, 8080, kind) == NODE, "the world must see the node's address"
        assert ask(one, OUTSIDE6, 8080, kind) == NODE6
    assert ask(one, NODE, 8080) == one.v4  # over udp the answer would come from the nearest address
    assert ask(one, NODE6, 8080) == one.v6
    assert world.cni.status(network()) == []
    for pod in (one, two):
        world.check(pod, network())


def test_routed_pods_reach_each_other_the_node_and_the_world(world, servers) -> None:
    told = routed()
    one = world.pod("one", told, PortMapping(80, 8080))
    two = world.pod("two", told)
    for server in (one, two, HOST, world.outside):
        servers.serve(server, 8080)
    for kind in (TCP, UDP):
        assert ask(one, two.v4, 8080, kind) == one.v4
        assert ask(one, two.v6, 8080, kind) == one.v6
        assert ask(one, GATEWAY, 8080, kind) == one.v4
        assert ask(HOST, one.v4, 8080, kind) is not None
        assert ask(HOST, one.v6, 8080, kind) is not None
        assert ask(one, OUTSIDE, 8080, kind) == NODE
        assert ask(one, OUTSIDE6, 8080, kind) == NODE6
    for address, source in ((NODE, OUTSIDE), (NODE6, OUTSIDE6)):
        assert ask(world.outside, address, 80) == source
        assert ask(two, address, 80) is not None
        assert ask(one, address, 80) is not None
    for pod in (one, two):
        world.check(pod, told)
    before = seen(one, two)
    run("ifconfig", before["pods"][0], "down")
    world.gc("one", "two", networks=[told])
    assert changes(before, seen(one, two)) == {}
    assert ask(one, two.v4, 8080) == one.v4


def test_what_is_excepted_keeps_the_pod_s_address(world, servers) -> None:
    told = network().to_json()
    told["plugins"][1]["nonMasqueradeCIDRs"].append("192.0.2.0/24")
    pod = world.pod("one", NetworkList.from_json(told))
    servers.serve(world.outside, 8080)
    assert ask(pod, OUTSIDE, 8080, seconds=SOON) is None, "nobody out there knows the way to a pod"
    world.outside.run("route", "add", V4, NODE)
    try:
        assert ask(pod, OUTSIDE, 8080) == pod.v4
        assert ask(pod, OUTSIDE6, 8080) == NODE6
    finally:
        world.outside.run("route", "delete", V4)


def test_a_host_port_leads_from_the_world_to_the_pod(world, servers) -> None:
    ports = (PortMapping(80, 8080), PortMapping(53, 8080, "udp"))
    pod = world.pod("one", network(), *ports)
    servers.serve(pod, 8080)
    for address, source in ((NODE, OUTSIDE), (OTHER, OUTSIDE), (NODE6, OUTSIDE6)):
        assert ask(world.outside, address, 80) == source
        assert ask(world.outside, address, 53, UDP) == source
        assert ask(world.outside, address, 53, seconds=SOON) is None, "only the protocol that was mapped"
    world.cni.delete_all("one")
    assert ask(world.outside, NODE, 80, seconds=SOON) is None


def test_a_host_port_on_one_address_is_on_no_other(world, servers) -> None:
    only = PortMapping(80, 8080, "tcp", ip_address(OTHER))
    pod = world.pod("one", network(), only, PortMapping(53, 8080, "udp", ip_address(NODE6)))
    servers.serve(pod, 8080)
    assert ask(world.outside, OTHER, 80) == OUTSIDE
    assert ask(world.outside, NODE, 80, seconds=SOON) is None
    assert ask(world.outside, NODE6, 53, UDP) == OUTSIDE6
    assert ask(world.outside, NODE, 53, UDP, seconds=SOON) is None


def test_a_host_port_from_the_node_the_neighbours_and_the_pod_itself(world, servers) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080), PortMapping(53, 8080, "udp"))
    neighbour = world.pod("two", network())
    servers.serve(pod, 8080)
    for address in (NODE, "127.0.0.1", GATEWAY, NODE6, GATEWAY6):
        assert ask(HOST, address, 80) is not None, address
        assert ask(HOST, address, 53, UDP) is not None, address
    for asking in (neighbour, pod):
        for address in (NODE, NODE6, GATEWAY, GATEWAY6):
            assert ask(asking, address, 80) is not None, (asking.name, address)
            assert ask(asking, address, 53, UDP) is not None, (asking.name, address)


def test_a_port_that_is_taken_names_its_owner_and_harms_nobody(world, servers) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080))
    servers.serve(pod, 8080)
    before = seen(pod)
    with pytest.raises(NetworkError, match="one/eth0"):
        world.pod("two", network(), PortMapping(81, 8080), PortMapping(80, 8080, "tcp", ip_address(NODE)))
    assert changes(before, seen(pod)) == {}
    assert ask(world.outside, NODE, 80) == OUTSIDE
    assert ask(world.outside, NODE, 81, seconds=SOON) is None


def test_isolated_pods_hear_only_the_gateway(world, servers) -> None:
    one, two = (world.pod(name, network(portIsolation=True)) for name in ("one", "two"))
    for server in (two, HOST, world.outside):
        servers.serve(server, 8080)
    assert ask(one, two.v4, 8080, seconds=SOON) is None
    assert ask(one, two.v6, 8080, seconds=SOON) is None
    assert ask(one, GATEWAY, 8080) == one.v4
    assert ask(one, OUTSIDE, 8080) == NODE


def test_several_networks_side_by_side(world, servers) -> None:
    one = world.pod("one", network())
    other = world.pod("other", network(name="cnitest1", subnets=("10.245.0.0/24",)))
    servers.serve(one, 8080)
    assert ask(other, one.v4, 8080) == other.v4 or ask(other, one.v4, 8080) == GATEWAY
    third = network(name="cnitest2", subnets=("10.245.1.0/24",), routes=False)
    world.add("one", one.jail, third, ifname="eth1")
    assert len(world.ledger.entries(container="one")) == 2
    world.cni.delete_all("one")
    assert one.run("ifconfig", "-l").split() == ["lo0"]


@pytest.mark.parametrize("mtu", [1450, 9000])
def test_an_mtu_holds_from_end_to_end(world, mtu) -> None:
    one, two = (world.pod(name, network(mtu=mtu)) for name in ("one", "two"))
    assert f"mtu {mtu}" in one.run("ifconfig", "eth0")
    assert f"mtu {mtu}" in run("ifconfig", BRIDGE)
    with one.socket(socket.AF_INET, UDP, 0) as sender, two.socket(socket.AF_INET, UDP, 0) as receiver:
        receiver.bind((two.v4, 9))
        receiver.settimeout(10)
        sender.setsockopt(socket.IPPROTO_IP, 67, 1)  # IP_DONTFRAG
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        sender.connect((two.v4, 9))
        assert sender.send(bytes(mtu - 28)) == len(receiver.recv(1 << 16))
        with pytest.raises(OSError, match="too long"):
            sender.send(bytes(mtu - 27))


# -- coming and going


def test_pods_come_and_go_at_once_and_leave_nothing(world, servers) -> None:
    servers.serve(world.outside, 8080)
    told, order = network(), random.Random(4)
    jails = [world.make_jail() for _ in range(int(os.environ.get("CNI_PODS", "50")))]
    keep = world.pod("keep", told)
    before = seen(keep)

    def live(number: int) -> str:
        name = f"pod-{number}"
        port = PortMapping(20000 + number, 80, "udp" if number % 2 else "tcp")
        pod = world.add(name, jails[number], told, port)
        assert ask(pod, OUTSIDE, 8080, seconds=60) == NODE
        time.sleep(order.random() / 2)
        world.cni.delete_all(name, pod.jail)
        return pod.v4

    with ThreadPoolExecutor(8) as pool:
        addresses = list(pool.map(live, order.sample(range(len(jails)), len(jails))))
    assert len(set(addresses)) == len(jails)
    assert [entry.owner for entry in world.ledger.entries()] == ["keep/eth0"]
    # The kernel takes up to twenty minutes to forget who was on a link; whoever has an address next is heard of at once.
    assert changes({**before, "neighbours": []}, {**seen(keep), "neighbours": []}) == {}
    for jail in jails:
        assert jail.run("ifconfig", "-l").split() == ["lo0"]


def test_delete_twice_without_add_and_after_the_jail_is_gone(world) -> None:
    before = seen()
    told = network()
    world.cni.delete(told, Attachment("never"))
    one = world.pod("one", told, PortMapping(80, 80))
    two = world.pod("two", told)
    world.cni.delete(told, Attachment("two"), two.jail)
    two.jail.close()
    one.jail.close()  # what it was lent comes home, as the only eth0 of the host
    assert _eventually(lambda: "eth0" in run("ifconfig", "-l").split())
    for _ in range(2):
        world.cni.delete(told, Attachment("one"))
        world.cni.delete(told, Attachment("two"))
    world.restart()
    assert changes(before, seen()) == {}


def test_an_address_that_was_another_pod_s_is_reached_at_once(world, servers) -> None:
    told = network(subnets=("10.245.0.0/29", "fd00:244::/125"))
    neighbour = world.pod("neighbour", told)
    before = set()
    for number in range(9):
        pod = world.pod(f"pod-{number}", told)
        servers.serve(pod, 8080)
        for address, gateway, other in (
            (pod.v4, "10.245.0.1", neighbour.v4),
            (pod.v6, GATEWAY6, neighbour.v6),
        ):
            assert ask(HOST, address, 8080, seconds=3) == gateway, (number, address)
            assert ask(neighbour, address, 8080, seconds=3) == other, (number, address)
        world.cni.delete_all(pod.name)
        if {pod.v4, pod.v6} <= before:
            break
        before |= {pod.v4, pod.v6}
    else:
        pytest.fail("no address came again")


def test_check_finds_what_is_broken(world) -> None:
    told = network()
    pod = world.pod("one", told, PortMapping(80, 8080))
    world.check(pod, told)
    with pytest.raises(UnknownAttachmentError):
        world.cni.check(told, Attachment("never", netns="jail:never"), pod.jail)
    pod.run("route", "delete", "default")
    with pytest.raises(AttachmentBrokenError, match=r"lacks the route to 0\.0\.0\.0/0 via 10\.244\.0\.1"):
        world.check(pod, told)
    pod.run("route", "add", "default", GATEWAY)
    world.check(pod, told)
    (end,) = run("ifconfig", "-g", GROUP).split()
    run("ifconfig", BRIDGE, "deletem", end)
    with pytest.raises(AttachmentBrokenError, match=f"not in bridge {BRIDGE}"):
        world.check(pod, told)
    world.gc("one")
    world.check(pod, told)
    run("ifconfig", end, "destroy")
    with pytest.raises(NotAttachedError):
        world.check(pod, told)


def test_a_new_daemon_knows_what_the_old_one_has_made(world, servers) -> None:
    told = network()
    pod = world.pod("one", told, PortMapping(80, 8080))
    servers.serve(pod, 8080)
    world.pod("two", told)
    world.restart()
    world.gc("one")
    assert ask(world.outside, NODE, 80) == OUTSIDE
    with pytest.raises(NetworkError, match="one/eth0"):
        world.pod("three", told, PortMapping(80, 8080))
    again = world.pod("four", told)
    assert again.v4 not in (pod.v4, GATEWAY)
    servers.serve(again, 8080)
    assert ask(pod, again.v4, 8080) == pod.v4


def _flush_rules() -> None:
    for anchor in anchors():  # which is gone before pfctl has finished, so it complains
        subprocess.run(["pfctl", "-a", anchor, "-F", "all"], capture_output=True, check=False, timeout=120)


def _destroy_bridge() -> None:
    run("ifconfig", BRIDGE, "destroy")


@pytest.mark.parametrize("damage", [_flush_rules, _destroy_bridge])
def test_what_somebody_has_removed_is_put_back(world, servers, damage) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080))
    neighbour = world.pod("two", network())
    for server in (pod, world.outside):
        servers.serve(server, 8080)
    before = seen(pod, neighbour)
    damage()
    assert ask(world.outside, NODE, 80, seconds=SOON) is None
    world.gc("one", "two")
    assert ask(world.outside, NODE, 80) == OUTSIDE
    for asking in (pod, neighbour):
        assert ask(asking, OUTSIDE, 8080) == NODE
    assert ask(neighbour, NODE, 80) is not None
    assert changes(before, seen(pod, neighbour)) == {}


def test_connections_survive_a_gc(world) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080))
    with pod.socket(socket.AF_INET, TCP, 0) as server, world.outside.socket(socket.AF_INET, TCP, 0) as far:
        server.settimeout(10)
        server.bind(("0.0.0.0", 8080))
        server.listen()
        far.settimeout(10)
        far.connect((NODE, 80))
        near, _ = server.accept()
        with near:
            near.settimeout(10)
            for _ in range(3):
                world.gc("one")
                far.sendall(b"still there?")
                assert near.recv(100) == b"still there?"
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# -- failures


def test_status_says_what_the_operator_has_to_do(world, load_pf_conf) -> None:
    told = network()
    assert world.cni.status(told) == []
    for line in LINES.splitlines():
        load_pf_conf(PASS.replace(f"{line}\n", ""))
        (problem,) = world.cni.status(told)
        assert f"pf.conf has no line `{line}`" in problem
    load_pf_conf(PASS)
    run("pfctl", "-d")
    (problem,) = world.cni.status(told)
    assert problem == "pf is not enabled: run `sysrc pf_enable=YES` and `service pf start`"
    run("pfctl", "-e")
    assert world.cni.status(told) == []


def test_without_pf_a_pod_is_there_after_all(world, servers) -> None:
    """Disabled, it takes rules all the same, and they count as soon as it is enabled."""
    run("pfctl", "-d")
    pod = world.pod("one", network(), PortMapping(80, 8080))
    for server in (pod, HOST, world.outside):
        servers.serve(server, 8080)
    assert ask(pod, GATEWAY, 8080) == pod.v4
    assert ask(world.outside, NODE, 80, seconds=SOON) is None
    run("pfctl", "-e")
    assert ask(world.outside, NODE, 80) == OUTSIDE
    assert ask(pod, OUTSIDE, 8080) == NODE


CALLS = [
    (client.Client, "_send"),
    (ioctl.Interfaces, "_call"),
    (pf.Pf, "_call"),
    (nat, "local_addresses"),
    (ioctl, "sysctl_read"),
    (ioctl, "sysctl_write"),
]
"""All that reaches the kernel, but for sockets and files."""


class Failures:
    """Of the kernel's calls one fails, without being made."""

    def __init__(self, code: int, fail_at: int) -> None:
        self.code, self.fail_at = code, fail_at
        self.count = itertools.count()
        self.failed: list[str] = []

    def over(self, name: str, real):
        def call(*arguments, **keywords):
            if next(self.count) == self.fail_at:
                self.failed.append(name)
                raise KernelError(self.code, name, "a call of the test")
            return real(*arguments, **keywords)

        return call


def test_a_failure_of_any_kernel_call_of_add_leaves_nothing(world, monkeypatch) -> None:
    told = network()
    warm = world.pod("warm", told)  # the bridge is there, as on a node at work
    jail = world.make_jail()
    before = seen(warm)
    ports = (PortMapping(80, 8080), PortMapping(53, 53, "udp"))
    failed = []
    for number in itertools.count():
        failures = Failures(errno.ENOBUFS, number)
        with monkeypatch.context() as patching:
            for holder, name in CALLS:
                patching.setattr(holder, name, failures.over(name, getattr(holder, name)))
            try:
                world.add(f"pod-{number}", jail, told, *ports)
            except NetworkError:
                assert failures.failed
            else:
                assert not failures.failed, f"{failures.failed} failed, and nobody noticed"
        world.cni.delete_all(f"pod-{number}")  # what the undoing could not do, and what it wrote down
        assert changes(before, seen(warm)) == {}, (number, failures.failed)
        assert [entry.owner for entry in world.ledger.entries()] == ["warm/eth0"]
        assert jail.run("ifconfig", "-l").split() == ["lo0"]
        if not failures.failed:
            break
        failed += failures.failed
    assert {"_send", "_call"} <= set(failed)
    assert len(failed) > 30, f"so few calls cannot be all: {failed}"


def _attach_and_detach(path: Path, jails, told: NetworkList, number: int, ready: int) -> None:
    """What the process does that is killed: three pods come and go."""
    for jail in jails:
        jail.reconnect()
    cni = CNI(Ledger(path, "boot"))

    def live(worker: int) -> None:
        for turn in itertools.count():
            name = f"{number}-{worker}-{turn}"
            runtime = RuntimeConfig(port_mappings=(PortMapping(30000 + worker, 80),))
            cni.add(told, Attachment(name, "eth0", f"jail:{name}", runtime), jails[worker])
            cni.delete_all(name)

    os.write(ready, b"1")
    with ThreadPoolExecutor(len(jails)) as pool:
        list(pool.map(live, range(len(jails))))


def test_a_process_killed_at_any_moment_leaves_nothing_without_an_owner(world, servers) -> None:
    told = network()
    keep = world.pod("keep", told, PortMapping(80, 8080))
    jails = [world.make_jail() for _ in range(3)]
    before = seen(keep)
    moments, half_made = random.Random(secrets.randbits(32)), 0
    kills = int(os.environ.get("CNI_KILLS", "50"))
    for number in range(kills):
        world.stop()
        told_ready, ready = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(told_ready)
                _attach_and_detach(world.path, jails, told, number, ready)
            finally:
                os._exit(1)
        os.close(ready)
        assert os.read(told_ready, 1) == b"1"
        os.close(told_ready)
        time.sleep(moments.random())
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        world.start()
        half_made += len(world.ledger.entries()) > 1
        world.gc("keep")
        assert [entry.owner for entry in world.ledger.entries()] == ["keep/eth0"]
        assert [owner for _, owner in world.ledger.claims(leases.pool(BRIDGE))] == ["keep/eth0"] * 2
        assert changes(before, seen(keep)) == {}, number
        for jail in jails:
            assert jail.run("ifconfig", "-l").split() == ["lo0"]
    assert half_made > kills / 2, "the moments were not in the middle of anything"
    servers.serve(keep, 8080)
    assert ask(world.outside, NODE, 80) == OUTSIDE


def _eventually(true, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
