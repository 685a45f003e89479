"""Whole networks in namespaces of their own: pods, the node that they are on, and a host beyond its router."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni_plugins import (
    CNI,
    Attachment,
    KernelError,
    Ledger,
    NetworkError,
    NetworkList,
    PortMapping,
    RuntimeConfig,
    leases,
)
from cni_plugins.netlink import client

pytestmark = pytest.mark.node

V4, V6 = "10.44.0.0/16", "fd44::/64"
NODE, OTHER, OUTSIDE = "192.0.2.1", "192.0.2.9", "198.51.100.7"
NODE6, OUTSIDE6 = "2001:db8:1::1", "2001:db8:2::7"


def attachment(name: str, ifname: str = "eth0", **values) -> Attachment:
    return Attachment(name, ifname, f"/run/netns/{name}", **values)


def ip(namespace, *words: str) -> list:
    command = ["ip", "-j", *" ".join(words).split()]
    made = namespace.run(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    assert made.returncode == 0, (command, made.stderr)
    return json.loads(made.stdout or "[]")


def sysctl(namespace, path: str, value: str) -> None:
    namespace.run(Path("/proc/sys/net", path).write_text, value)


def join(one, one_name: str, other, other_name: str) -> None:
    """A cable."""
    path = f"/proc/{os.getpid()}/fd/{other.move_target}"
    ip(one, f"link add {one_name} type veth peer name {other_name} netns {path}")
    for namespace, name in ((one, one_name), (other, other_name)):
        sysctl(namespace, f"ipv6/conf/{name}/accept_dad", "0")
        ip(namespace, f"link set {name} up")


class World:
    """node -- router -- outside; the router knows nothing of pods."""

    def __init__(self, make_namespace, path: Path) -> None:
        self.make_namespace = make_namespace
        self.node, self.router, self.outside = (make_namespace() for _ in range(3))
        for namespace in (self.node, self.router, self.outside):
            ip(namespace, "link set lo up")
        join(self.node, "up0", self.router, "r0")
        join(self.router, "r1", self.outside, "out0")
        for namespace, name, addresses in (
            (self.node, "up0", (f"{NODE}/24", f"{OTHER}/24", f"{NODE6}/64")),
            (self.router, "r0", ("192.0.2.254/24", "2001:db8:1::fe/64")),
            (self.router, "r1", ("198.51.100.254/24", "2001:db8:2::fe/64")),
            (self.outside, "out0", (f"{OUTSIDE}/24", f"{OUTSIDE6}/64")),
        ):
            for address in addresses:
                ip(namespace, f"addr add {address} dev {name}", "nodad" if ":" in address else "")
        sysctl(self.router, "ipv4/ip_forward", "1")
        sysctl(self.router, "ipv6/conf/all/forwarding", "1")
        ip(self.node, "route add default via 192.0.2.254")
        ip(self.node, "-6 route add default via 2001:db8:1::fe")
        ip(self.outside, "route add default via 198.51.100.254")
        ip(self.outside, "-6 route add default via 2001:db8:2::fe")
        self.bare = seen(self.node)
        self.path = path
        self.ledger = Ledger(path, "boot")
        self.cni = CNI(self.ledger, self.node)
        assert (
            self.cni.gc(list, [network(name=name) for name in ("pods", "many", "alone", "more", "third")])
            == []
        )
        self.pods = {}
        self.opened = contextlib.ExitStack()

    def restart(self) -> None:
        """As a new daemon would."""
        self.stop()
        self.ledger = Ledger(self.path, "boot")
        self.cni = CNI(self.ledger, self.node)

    def stop(self) -> None:
        self.cni.close()
        self.ledger.close()

    def close(self) -> None:
        self.opened.close()
        self.stop()

    def pod(self, name: str, network: NetworkList, *ports: PortMapping):
        namespace = self.make_namespace()
        result = self.cni.add(
            network, attachment(name, runtime=RuntimeConfig(port_mappings=ports)), namespace
        )
        ip(namespace, "link set lo up")
        self.pods[name] = namespace, result
        return Pod(name, namespace, [one.address.ip for one in result.ips])

    def serve(self, pod, port: int) -> None:
        """Answer over tcp and udp with the address that the question came from."""
        for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                server = self.opened.enter_context(pod.socket(family, kind, 0))
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.bind((everywhere, port))
                if kind == socket.SOCK_STREAM:
                    server.listen(64)
                threading.Thread(target=_answer, args=(server, kind), daemon=True).start()


class Pod:
    def __init__(self, name, namespace, addresses) -> None:
        self.name, self.namespace = name, namespace
        self.v4, self.v6 = ([str(one) for one in addresses] + [""])[:2]
        self.socket = namespace.socket
        self.run = namespace.run


def _answer(server: socket.socket, kind: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            if kind == socket.SOCK_STREAM:
                connection, peer = server.accept()
                with connection:
                    connection.sendall(peer[0].encode())
            else:
                _, peer = server.recvfrom(100)
                server.sendto(peer[0].encode(), peer)


def ask(client_, address: str, port: int, kind: int = socket.SOCK_STREAM, seconds: float = 2.0) -> str | None:
    """Whom the server takes the client for; None if it cannot be reached."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with client_.socket(family, kind, 0) as asking:
        asking.settimeout(seconds)
        try:
            asking.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                asking.send(b"?")
            return asking.recv(100).decode()
        except OSError:
            return None


UDP = socket.SOCK_DGRAM


@pytest.fixture
def world(make_namespace, tmp_path):
    made = World(make_namespace, tmp_path / "network.db")
    yield made
    made.close()


def network(*extra: dict, name: str = "pods", subnets=(V4, V6), routes=True, **bridge) -> NetworkList:
    anywhere = {True: "::/0", False: "0.0.0.0/0"}
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": anywhere[":" in subnet]} for subnet in subnets if routes],
    }
    plugins = [
        {
            "type": "bridge",
            "bridge": f"br-{name}",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": ipam,
            **bridge,
        },
        {"type": "masquerade"},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        *extra,
    ]
    return NetworkList.from_json({"name": name, "cniVersion": "1.1.0", "plugins": plugins})


def seen(namespace) -> dict[str, list]:
    """What a host has."""
    ruleset = namespace.run(
        lambda: (
            subprocess.run(
                ["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True
            ).stdout
        )
    )
    return {
        "links": sorted(link["ifname"] for link in ip(namespace, "link")),
        "addresses": sorted(
            (link["ifname"], one["local"]) for link in ip(namespace, "addr") for one in link["addr_info"]
        ),
        "routes": sorted(map(str, ip(namespace, "route") + ip(namespace, "-6 route"))),
        "qdiscs": sorted(str(one) for one in ip_tc(namespace)),
        "rules": sorted(
            _without_handle(one) for one in json.loads(ruleset)["nftables"] if "metainfo" not in one
        ),
    }


def changes(before: dict[str, list], after: dict[str, list]) -> dict[str, tuple]:
    """What is gone, and what is new."""
    return {
        kind: (gone, new)
        for kind in before
        if (gone := [one for one in before[kind] if one not in after[kind]])
        + (new := [one for one in after[kind] if one not in before[kind]])
    }


def _without_handle(rule: dict) -> str:
    """What a restore makes anew has another number."""
    ((kind, values),) = rule.items()
    return str((kind, {key: value for key, value in values.items() if key != "handle"}))


def ip_tc(namespace) -> list:
    made = namespace.run(
        lambda: subprocess.run(["tc", "-j", "qdisc"], capture_output=True, text=True, check=True)
    )
    return [one for one in json.loads(made.stdout or "[]") if one.get("kind") != "noqueue"]


# -- who reaches whom


def test_a_node_is_ready_before_its_first_pod(world) -> None:
    assert world.cni.status(network()) == []
    assert changes(world.bare, seen(world.node)) == {}


def test_pods_reach_each_other_the_node_and_the_world(world) -> None:
    one, two = (world.pod(name, network()) for name in ("one", "two"))
    for server in (one, two, world.node, world.outside):
        world.serve(server, 8080)
    for kind in (socket.SOCK_STREAM, UDP):
        assert ask(one, two.v4, 8080, kind) == one.v4
        assert ask(one, two.v6, 8080, kind) == one.v6
        assert ask(one, "10.44.0.1", 8080, kind) == one.v4
        assert (
            kind == UDP or ask(one, NODE, 8080, kind) == one.v4
        )  # its udp answers come from the nearest address
        assert ask(world.node, one.v4, 8080, kind) == "10.44.0.1"
        assert ask(world.node, one.v6, 8080, kind) == "fd44::1"
        assert ask(one, OUTSIDE, 8080, kind) == NODE, "the world must see the node's address"
        assert ask(one, OUTSIDE6, 8080, kind) == NODE6
    assert world.cni.status(network()) == []
    for pod in (one, two):
        world.cni.check(network(), Attachment(pod.name), pod.namespace)


def test_what_is_excepted_keeps_the_pod_s_address(world) -> None:
    told = network().to_json()
    told["plugins"][1]["nonMasqueradeCIDRs"] = ["198.51.100.0/24", V4, V6]
    pod = world.pod("one", NetworkList.from_json(told))
    ip(world.router, f"route add {V4} via {NODE}")
    world.serve(world.outside, 8080)
    assert ask(pod, OUTSIDE, 8080) == pod.v4
    assert ask(pod, OUTSIDE6, 8080) == NODE6


def test_a_host_port_leads_from_the_world_to_the_pod(world) -> None:
    ports = (PortMapping(80, 8080), PortMapping(53, 8080, "udp"))
    pod = world.pod("one", network(), *ports)
    world.serve(pod, 8080)
    for address, source in ((NODE, OUTSIDE), (OTHER, OUTSIDE), (NODE6, OUTSIDE6)):
        assert ask(world.outside, address, 80) == source
        assert ask(world.outside, address, 53, UDP) == source
        assert ask(world.outside, address, 53, seconds=0.3) is None, "only the protocol that was mapped"
    world.cni.delete_all("one")
    assert ask(world.outside, NODE, 80, seconds=0.3) is None


def test_a_host_port_on_one_address_is_on_no_other(world) -> None:
    only = PortMapping(80, 8080, "tcp", ip_address(OTHER))
    pod = world.pod("one", network(), only, PortMapping(53, 8080, "udp", ip_address(NODE6)))
    world.serve(pod, 8080)
    assert ask(world.outside, OTHER, 80) == OUTSIDE
    assert ask(world.outside, NODE, 80, seconds=0.3) is None
    assert ask(world.outside, NODE6, 53, UDP) == OUTSIDE6
    assert ask(world.outside, NODE, 53, UDP, seconds=0.3) is None


def test_a_host_port_from_the_node_the_neighbours_and_the_pod_itself(world) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080), PortMapping(53, 8080, "udp"))
    neighbour = world.pod("two", network())
    world.serve(pod, 8080)
    for address in (NODE, "127.0.0.1", "10.44.0.1", NODE6):
        assert ask(world.node, address, 80) is not None, address
        assert ask(world.node, address, 53, UDP) is not None, address
    for client_ in (neighbour, pod):
        for address in (NODE, NODE6, "10.44.0.1"):
            assert ask(client_, address, 80) is not None, (client_.name, address)
            assert ask(client_, address, 53, UDP) is not None, (client_.name, address)


def test_a_port_that_is_taken_names_its_owner_and_harms_nobody(world) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080))
    world.serve(pod, 8080)
    before = seen(world.node)
    with pytest.raises(NetworkError, match="one/eth0"):
        world.pod("two", network(), PortMapping(81, 8080), PortMapping(80, 8080, "tcp", ip_address(NODE)))
    world.cni.settle()
    assert changes(before, seen(world.node)) == {}
    assert ask(world.outside, NODE, 80) == OUTSIDE
    assert ask(world.outside, NODE, 81, seconds=0.3) is None


def test_isolated_pods_hear_only_the_gateway(world) -> None:
    isolated = network(name="alone", portIsolation=True)
    one, two = (world.pod(name, isolated) for name in ("one", "two"))
    for server in (two, world.outside):
        world.serve(server, 8080)
    assert ask(one, two.v4, 8080, seconds=0.3) is None
    assert ask(one, OUTSIDE, 8080) == NODE


def test_several_networks_side_by_side(world) -> None:
    one = world.pod("one", network())
    other = world.pod("other", network(name="more", subnets=("10.45.0.0/24",)))
    world.serve(one, 8080)
    assert ask(other, one.v4, 8080) is not None
    both = attachment("one", "eth1")
    third = network(name="third", subnets=("10.46.0.0/24",), routes=False)
    assert str(world.cni.add(third, both, one.namespace).ips[0].address) == "10.46.0.2/24"
    assert len(world.ledger.entries(container="one")) == 2
    world.cni.delete_all("one")
    assert [link["ifname"] for link in ip(one, "link")] == ["lo"] or world.cni.settle() is None


@pytest.mark.parametrize("mtu", [1450, 9000])
def test_an_mtu_holds_from_end_to_end(world, mtu) -> None:
    one, two = (world.pod(name, network(mtu=mtu)) for name in ("one", "two"))
    assert ip(one, "link show eth0")[0]["mtu"] == mtu
    assert ip(world.node, "link show br-pods")[0]["mtu"] == mtu
    with one.socket(socket.AF_INET, UDP, 0) as sender, two.socket(socket.AF_INET, UDP, 0) as receiver:
        receiver.bind((two.v4, 9))
        receiver.settimeout(2)
        sender.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        sender.connect((two.v4, 9))
        assert sender.send(bytes(mtu - 28)) == len(receiver.recv(1 << 16))
        with pytest.raises(OSError, match="too long"):
            sender.send(bytes(mtu - 27))


# -- coming and going


def test_two_hundred_pods_come_and_go_at_once_and_leave_nothing(world) -> None:
    before = seen(world.node)
    told = network(name="many", routes=False)
    namespaces = [world.make_namespace() for _ in range(20)]  # ten interfaces each: namespaces are dear
    order = random.Random(4)

    def live(number: int) -> str:
        name = f"pod-{number}"
        port = PortMapping(20000 + number, 80, "udp" if number % 2 else "tcp")
        made = attachment(name, f"eth{number}", runtime=RuntimeConfig(port_mappings=(port,)))
        result = world.cni.add(told, made, namespaces[number % 20])
        time.sleep(order.random() / 20)
        world.cni.delete_all(name)
        return str(result.ips[0].address)

    with ThreadPoolExecutor(16) as pool:
        addresses = list(pool.map(live, order.sample(range(200), 200)))
    assert all(addresses)
    world.cni.settle()
    world.restart()
    assert world.ledger.entries() == []
    assert changes(before, seen(world.node)) == {}


def test_no_two_pods_share_an_address(world) -> None:
    told = network(subnets=("10.47.0.0/24",), routes=False)
    namespaces = [world.make_namespace() for _ in range(10)]

    def add(number: int) -> str:
        made = attachment(f"pod-{number}", f"eth{number}")
        return str(world.cni.add(told, made, namespaces[number % 10]).ips[0].address.ip)

    with ThreadPoolExecutor(8) as pool:
        addresses = list(pool.map(add, range(100)))
    assert len(set(addresses)) == 100


def test_delete_twice_without_add_and_after_the_namespace_is_gone(world) -> None:
    before = seen(world.node)
    told = network()
    world.cni.delete(told, Attachment("never"))
    namespace = world.make_namespace()
    ports = RuntimeConfig(port_mappings=(PortMapping(80, 80),))
    world.cni.add(told, attachment("one", runtime=ports), namespace)
    world.cni.add(told, attachment("two"), world.make_namespace())
    namespace.close()
    for _ in range(2):
        world.cni.delete(told, Attachment("one"))
        world.cni.delete(told, Attachment("two"))
    world.restart()
    assert changes(before, seen(world.node)) == {}


def test_what_somebody_flushed_is_put_back(world) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080))
    world.serve(pod, 8080)
    world.serve(world.outside, 8080)
    for damage in (
        ["nft", "flush", "ruleset"],
        ["ip", "link", "del", "br-pods"],
    ):
        world.node.run(lambda damage=damage: subprocess.run(damage, check=True))
        assert ask(world.outside, NODE, 80, seconds=0.3) is None
        assert world.cni.gc(lambda: ["one"], [network()]) == []
        assert ask(world.outside, NODE, 80) == OUTSIDE
        assert ask(pod, OUTSIDE, 8080) == NODE


def test_connections_survive_a_gc(world) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080))
    with pod.socket(socket.AF_INET, socket.SOCK_STREAM, 0) as server:
        server.bind(("0.0.0.0", 8080))
        server.listen()
        with world.outside.socket(socket.AF_INET, socket.SOCK_STREAM, 0) as far:
            far.settimeout(2)
            far.connect((NODE, 80))
            near, _ = server.accept()
            with near:
                for _ in range(3):
                    assert world.cni.gc(lambda: ["one"], [network()]) == []
                    far.sendall(b"still there?")
                    assert near.recv(100) == b"still there?"


def test_a_new_daemon_knows_what_the_old_one_has_made(world) -> None:
    pod = world.pod("one", network(), PortMapping(80, 8080))
    world.serve(pod, 8080)
    world.pod("two", network())
    world.restart()
    assert world.cni.gc(lambda: ["one"], [network()]) == []
    assert ask(world.outside, NODE, 80) == OUTSIDE
    with pytest.raises(NetworkError, match="one/eth0"):
        world.pod("three", network(), PortMapping(80, 8080))
    again = world.pod("four", network())
    assert again.v4 not in (pod.v4, "10.44.0.1")


# -- failures


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOBUFS])
def test_a_failure_of_any_kernel_call_of_add_leaves_nothing(world, monkeypatch, code) -> None:
    told = network({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    warm = world.pod("warm", told)  # the bridge and the table are there, as on a node at work
    assert warm.v4
    world.cni.settle()
    before = seen(world.node)
    send = client.Client._send
    ports = (PortMapping(80, 8080), PortMapping(53, 53, "udp"))
    for number in itertools.count():
        countdown = itertools.count(-number)
        failed = []

        def failing(self, *arguments, countdown=countdown, failed=failed):
            if next(countdown) == 0:
                failed.append(arguments)
                raise KernelError(code, "send", "a message of the test")
            return send(self, *arguments)

        namespace = world.make_namespace()
        monkeypatch.setattr(client.Client, "_send", failing)
        try:
            world.cni.add(
                told, attachment(f"pod-{number}", runtime=RuntimeConfig(port_mappings=ports)), namespace
            )
        except NetworkError:
            assert failed
        else:
            assert not failed, "a kernel call failed, and nobody noticed"
        monkeypatch.setattr(client.Client, "_send", send)
        world.cni.settle()
        if not failed:
            break
        world.cni.delete_all(f"pod-{number}")  # what the undoing could not do, and what it wrote down
        world.cni.settle()
        assert changes(before, seen(world.node)) == {}
        assert [entry.owner for entry in world.ledger.entries()] == ["warm/eth0"]
        assert [link["ifname"] for link in ip(namespace, "link")] == ["lo"]
        namespace.close()
    assert number > 8, "so few calls cannot be all"


PROGRAM = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
import ctypes, socket, json
from cni_plugins import CNI, Attachment, Ledger, NetworkList, PortMapping, RuntimeConfig

class Pod:
    def __init__(self):
        self.thread = ThreadPoolExecutor(1)
        self.move_target = self.thread.submit(self.enter).result()
    def enter(self):
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    def socket(self, *arguments):
        return self.thread.submit(socket.socket, *arguments).result()

cni = CNI(Ledger(Path(sys.argv[1]), "boot"))
network = NetworkList.from_json(json.loads(sys.argv[2]))
stacks = [Pod() for _ in range(3)]

def live(worker):
    for round in range(1000):
        name = f"{sys.argv[3]}-{worker}-{round}"
        port = PortMapping(30000 + worker, 80)
        cni.add(network, Attachment(name, f"eth{worker}", "/ns", runtime=RuntimeConfig(port_mappings=(port,))), stacks[worker])
        cni.delete_all(name)

cni.add(network, Attachment("warm-up", "eth9", "/ns"), stacks[0])
cni.delete_all("warm-up")
print("ready", flush=True)
with ThreadPoolExecutor(3) as pool:
    list(pool.map(live, range(3)))
"""


@pytest.mark.timeout(300)
def test_a_process_killed_at_any_moment_leaves_nothing_without_an_owner(world) -> None:
    told = network()
    keep = world.pod("keep", told, PortMapping(80, 8080))
    world.serve(keep, 8080)
    world.cni.settle()
    before = seen(world.node)
    moments = random.Random(secrets.randbits(32))
    half_made = 0
    for number in range(25):
        world.stop()
        command = [sys.executable, "-c", PROGRAM, str(world.path), json.dumps(told.to_json()), str(number)]
        process = world.node.run(
            lambda command=command: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        with process:
            assert process.stdout.readline() == b"ready\n", process.stderr.read().decode()
            time.sleep(moments.random() * 0.1)
            process.kill()
            assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
        world.restart()
        half_made += len(world.ledger.entries()) > 1
        assert world.cni.gc(lambda: ["keep"], [told]) == []
        world.cni.settle()
        assert [entry.owner for entry in world.ledger.entries()] == ["keep/eth0"]
        assert [owner for _, owner in world.ledger.claims(leases.pool("pods"))] == ["keep/eth0"] * 2
        assert _eventually(lambda: seen(world.node) == before), changes(before, seen(world.node))
    assert half_made > 12, "the moments were not in the middle of anything"
    assert ask(world.outside, NODE, 80) == OUTSIDE


def _eventually(true, seconds: float = 3.0) -> bool:
    """Interfaces of a namespace whose last process was killed go a little later."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
