"""Real VNET jails on a real bridge(4) of this host: cni_plugins on FreeBSD, by root.

What the host has when a test ends must be what it had when the test began; every test is checked for that.
"""

import array
import contextlib
import ctypes
import errno
import itertools
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface
from pathlib import Path

import pytest

if not sys.platform.startswith("freebsd"):
    pytest.skip("FreeBSD only: VNET jails", allow_module_level=True)

from cni_plugins import (
    Allocator,
    AttachmentBrokenError,
    AttachmentExistsError,
    Bridge,
    BridgeConfig,
    ConfigurationError,
    ForeignInterfaceError,
    KernelError,
    NotAttachedError,
    loopback,
)
from cni_plugins.freebsd.ioctl import Interfaces
from cni_plugins.freebsd.links import GROUP, FreeBSDLinks
from cni_plugins.rtnetlink import Routes, link_set
from cni_plugins.types import OwnStack

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]  # an emulated machine is slow

V4, V6 = IPv4Network("10.188.0.0/16"), IPv6Network("fd00:188::/64")
HOST = OwnStack()


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


class Pod:
    """A VNET jail with a child inside that makes sockets and hands them out, as a pod's warden does."""

    def __init__(self):
        self.name = f"cnitest{secrets.token_hex(3)}"
        run("jail", "-c", f"name={self.name}", "vnet", "persist", "allow.raw_sockets")
        self.move_target = int(run("jls", "-j", self.name, "jid"))
        self._lock = threading.Lock()
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = os.fork()
        if not self._child:
            try:
                os.closerange(3, far.fileno())  # other pods' sockets too: they would never see their end
                os.closerange(far.fileno() + 1, 1024)
                self._serve(far)
            finally:
                os._exit(0)
        far.close()

    def _serve(self, far):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.jail_attach(self.move_target):
            os.write(2, f"jail_attach: {os.strerror(ctypes.get_errno())}\n".encode())
            os._exit(1)
        while request := far.recv(64):
            try:
                made = socket.socket(*json.loads(request))
            except OSError as error:
                far.send(str(error.errno).encode())
                continue
            far.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
            made.close()

    def socket(self, family, kind, protocol=0):
        with self._lock:
            if self._child is None:
                raise OSError(errno.ENXIO, "the jail is gone")
            self._near.send(json.dumps([family, kind, protocol]).encode())
            # Not socket.recv_fds: it has no room for the padding, and the kernel then keeps the descriptor.
            code, ancillary, _, _ = self._near.recvmsg(16, socket.CMSG_SPACE(array.array("i").itemsize))
        if code != b"0":
            raise OSError(int(code), os.strerror(int(code)))
        (descriptor,) = array.array("i", ancillary[0][2])
        return socket.socket(family, kind, protocol, fileno=descriptor)

    def run(self, *command):
        return run("jexec", self.name, *command)

    def close(self):
        if self._child is not None:
            self._near.close()
            os.waitpid(self._child, 0)
            self._child = None
            run("jail", "-R", self.name)


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
def make_pod(leaves_nothing):
    with contextlib.ExitStack() as cleanup:

        def make():
            pod = Pod()
            cleanup.callback(pod.close)
            return pod

        yield make


@pytest.fixture
def pod(make_pod):
    return make_pod()


@pytest.fixture
def config():
    return BridgeConfig(f"cnit{secrets.token_hex(3)}", (V4, V6), mtu=1400, interface_prefix="cni")


@pytest.fixture
def make_bridge(make_pod):
    """Bridges that are removed before the pods are, with all that hangs on them."""
    with contextlib.ExitStack() as cleanup:

        def make(config):
            made = Bridge(config)
            cleanup.callback(clear, made)
            made.ensure()
            return made

        yield make


def clear(bridge):
    for name in bridge.attachments() | bridge.strays():
        bridge.delete_interface(name)
    assert bridge.remove()


@pytest.fixture
def bridge(config, make_bridge):
    return make_bridge(config)


@pytest.fixture
def reserve():
    allocators = Allocator(V4), Allocator(V6)
    return lambda owner: [allocator.reserve(owner) for allocator in allocators]


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


def test_loopback_comes_up_and_may_be_repeated(pod):
    for _ in range(2):
        loopback.up(pod)
    with Routes.of(pod) as routes:
        assert routes.link("lo0").up
        assert {ip_interface("127.0.0.1/8"), ip_interface("::1/128")} <= set(routes.addresses("lo0"))
    for address in ("127.0.0.1", "::1"):
        assert talk(pod, pod, ip_address(address)) == b"hello"


def test_pods_reach_each_other_and_the_host_over_both_families(bridge, make_pod, reserve):
    one, two = make_pod(), make_pod()
    bridge.add("one", one, addresses=reserve("one"))
    bridge.add("two", two, addresses=reserve("two"))
    for address in reserve("two"):
        assert talk(one, two, address.ip) == b"hello"
        assert ping(one, address.ip)
    for subnet in bridge.config.subnets:
        gateway = bridge.config.gateway(subnet)
        assert talk(one, HOST, gateway) == b"hello"
        assert ping(one, gateway)
    for address in reserve("one"):
        assert ping(HOST, address.ip)


def test_the_kernel_has_what_the_result_says(bridge, pod, reserve):
    result = bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    _, host_end, pod_end = result.interfaces
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    assert bridge.attachments() == {bridge.host_interface("sandbox")} == {host_end.name}
    inside = pod.run("ifconfig", "eth0")
    assert f"ether {pod_end.mac}" in inside
    assert "mtu 1400" in inside
    for address in reserve("sandbox"):
        assert f" {address.ip} " in inside
    assert "tentative" not in inside.split(str(reserve("sandbox")[1].ip))[1].splitlines()[0]
    assert pod.run("netstat", "-rn").count("default") == 2
    outside = run("ifconfig", host_end.name)
    assert f"ether {host_end.mac}" in outside
    assert "inet" not in outside, "addresses are the bridge's alone"
    assert f"description: cni_plugins {host_end.name}" in outside
    assert GROUP in outside
    assert f"member: {host_end.name} " in run("ifconfig", bridge.config.name)


def test_the_host_end_stays_bare_where_interfaces_take_ipv6_by_default(bridge, pod, reserve):
    before = run("sysctl", "-n", "net.inet6.ip6.accept_rtadv").strip()
    run("sysctl", "net.inet6.ip6.accept_rtadv=1")
    try:
        bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    finally:
        run("sysctl", f"net.inet6.ip6.accept_rtadv={before}")
    assert "inet" not in run("ifconfig", bridge.host_interface("sandbox")).replace("nd6", "")


def test_the_mtu_is_the_bridge_s_everywhere_and_honoured(bridge, make_pod, reserve):
    one, two = make_pod(), make_pod()
    bridge.add("one", one, addresses=reserve("one"))
    bridge.add("two", two, addresses=reserve("two"))
    for name in (bridge.config.name, bridge.host_interface("one")):
        assert "mtu 1400" in run("ifconfig", name)
    to = str(reserve("two")[0].ip)
    one.run("ping", "-c", "1", "-t", "10", "-D", "-s", str(1400 - 28), to)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        one.run("ping", "-c", "1", "-t", "10", "-D", "-s", str(1400 - 27), to)
    assert "Message too long" in caught.value.stdout + caught.value.stderr
    assert ping(one, ip_address(to), size=5000), "in fragments"


def test_isolated_pods_reach_the_gateway_only(config, make_bridge, make_pod, reserve):
    bridge = make_bridge(BridgeConfig(config.name, (V4, V6), isolate=True, interface_prefix="cni"))
    one, two = make_pod(), make_pod()
    bridge.add("one", one, addresses=reserve("one"))
    bridge.add("two", two, addresses=reserve("two"))
    for subnet, address in zip((V4, V6), reserve("two"), strict=True):
        assert ping(one, bridge.config.gateway(subnet))
        assert not ping(one, address.ip, patience=2)


def test_ensure_may_be_repeated_and_repairs(bridge):
    name = bridge.config.name
    with Routes.of(HOST) as routes:
        before = routes.link(name)
        routes.link_set(name, up=False, mtu=1300)
    bridge.ensure()
    with Routes.of(HOST) as routes:
        assert routes.link(name) == before
        assert (before.kind, before.mtu, before.up) == ("bridge", 1400, True)
        assert set(routes.addresses(name)) == {ip_interface("10.188.0.1/16"), ip_interface("fd00:188::1/64")}


def test_a_changed_mtu_reaches_members(config, bridge, pod, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    Bridge(BridgeConfig(config.name, (V4, V6), mtu=1300, interface_prefix="cni")).ensure()
    assert "mtu 1300" in run("ifconfig", bridge.host_interface("sandbox"))


def test_many_ensures_at_once_make_one_bridge(config, make_bridge):
    before = names()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: Bridge(config).ensure(), range(16)))
    assert names() - before == {config.name}
    make_bridge(config)


def test_a_bridge_that_a_killed_process_left_is_finished(config, make_bridge):
    before = names()
    with Routes.of(HOST) as routes:
        routes.link_create("bridge", f"cni_plugins {config.name}")
    make_bridge(config)
    assert names() - before == {config.name}


def test_a_foreign_interface_of_that_name_is_left_alone(config):
    run("ifconfig", run("ifconfig", "epair", "create").strip(), "name", config.name)
    try:
        for operation in (Bridge(config).ensure, Bridge(config).remove):
            with pytest.raises(ForeignInterfaceError, match=config.name):
                operation()
        assert config.name in names()
    finally:
        run("ifconfig", config.name, "destroy")


def test_a_second_add_is_refused_and_harms_nothing(bridge, pod, make_pod, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    with pytest.raises(AttachmentExistsError, match=bridge.host_interface("sandbox")):
        bridge.add("sandbox", make_pod(), addresses=reserve("sandbox"))
    with pytest.raises(AttachmentExistsError, match="eth0"):
        bridge.add("other", pod, addresses=reserve("other"))
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    assert bridge.attachments() == {bridge.host_interface("sandbox")}
    with pytest.raises(KernelError, match=r"default route via 10\.188\.0\.1 on interface net1"):
        bridge.add("other", pod, "net1", addresses=reserve("other"))
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))


def test_a_bad_name_or_address_is_refused_before_anything_happens(bridge, pod, reserve):
    with pytest.raises(ConfigurationError):
        bridge.add("sandbox", pod, "sixteen-letters-", addresses=reserve("sandbox"))
    assert bridge.attachments() == set()


def test_delete_destroys_the_end_in_the_jail_and_succeeds_on_what_is_gone(bridge, pod, reserve):
    before = names()
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    for _ in range(2):
        bridge.delete("sandbox")
    assert pod.run("ifconfig", "-l").split() == ["lo0"]
    assert names() == before
    with pytest.raises(NotAttachedError, match="sandbox"):
        bridge.check("sandbox", pod)
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))


def test_delete_after_the_jail_is_gone(bridge, make_pod, reserve):
    before = names()
    for wait in (0, 2):
        dying = make_pod()
        bridge.add("sandbox", dying, addresses=reserve("sandbox"))
        bridge.disconnect("sandbox")
        dying.close()
        time.sleep(wait)
        bridge.delete("sandbox")
        bridge.delete("sandbox")
        assert bridge.attachments() == set()
    assert names() == before


def test_disconnect_takes_a_pod_off_and_may_be_repeated(bridge, pod, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    assert ping(pod, ip_address("10.188.0.1"))
    for _ in range(2):
        bridge.disconnect("sandbox")
    assert not ping(pod, ip_address("10.188.0.1"), patience=1)
    assert bridge.attachments() == bridge.strays() == {bridge.host_interface("sandbox")}
    bridge.delete("sandbox")
    bridge.disconnect("sandbox")
    assert bridge.attachments() == set()


def test_check_names_everything_that_is_wrong(bridge, pod, reserve):
    bridge.add("sandbox", pod, addresses=[reserve("sandbox")[0]])
    with Routes.of(pod) as routes, Interfaces.of(pod) as interfaces:
        interfaces.set_mac("eth0", "02:00:00:00:00:01")
        routes.perform(link_set("eth0", up=False))
    with Interfaces.of(HOST) as interfaces:
        interfaces.bridge_delete(bridge.config.name, bridge.host_interface("sandbox"))
    with pytest.raises(AttachmentBrokenError) as caught:
        bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    for fault in (
        "eth0 is down",
        "02:00:00:00:00:01",
        "is not in bridge",
        "fd00:188::2/64",
        "via fd00:188::1",
    ):
        assert fault in str(caught.value)


def test_remove_spares_a_bridge_with_members(bridge, pod, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    assert not bridge.remove()
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))


def test_without_the_bridge_nothing_is_made(config, pod, reserve):
    before = names()
    with pytest.raises(NotAttachedError, match=config.name):
        Bridge(config).add("sandbox", pod, addresses=reserve("sandbox"))
    assert names() == before


def test_a_jail_that_is_gone_is_named(bridge, reserve):
    class Gone:
        move_target = 999_998

    before = names()
    with pytest.raises(KernelError, match=r"jail 999998.*make the pod anew"):
        bridge.add("sandbox", Gone(), addresses=reserve("sandbox"))
    assert names() == before


def test_fifty_at_once_come_and_go(bridge, make_pod, reserve):
    pods = {f"s{number}": make_pod() for number in range(50)}
    before, addresses = names(), {name: reserve(name) for name in pods}
    with ThreadPoolExecutor(8) as threads:
        started = time.monotonic()
        list(threads.map(lambda name: bridge.add(name, pods[name], addresses=addresses[name]), pods))
        added = time.monotonic()
        list(threads.map(lambda name: bridge.check(name, pods[name], addresses=addresses[name]), pods))
        assert len(bridge.attachments()) == 50
        assert ping(pods["s0"], addresses["s49"][0].ip)
        checked = time.monotonic()
        list(threads.map(bridge.disconnect, pods))
        disconnected = time.monotonic()
        list(threads.map(bridge.delete, pods))
        deleted = time.monotonic()
    print(
        f"50 pods, ms each: add {(added - started) * 20:.1f}, disconnect {(disconnected - checked) * 20:.1f},"
        f" delete {(deleted - disconnected) * 20:.1f}"
    )
    assert bridge.attachments() == set()
    assert names() == before
    assert all(pod.run("ifconfig", "-l").split() == ["lo0"] for pod in pods.values())


def test_jails_die_while_other_pairs_are_deleted(bridge, make_pod, reserve):
    """As when many pods are removed at once: each gives its interface back first, and all of them run into each other."""
    before = names()
    pods = {f"s{number}": make_pod() for number in range(16)}
    for name, pod in pods.items():
        bridge.add(name, pod, addresses=reserve(name))

    def end(name):
        bridge.delete(name)
        pods[name].close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(end, pods))
    assert names() == before


def test_a_bridge_cannot_have_the_name_of_an_interface_group():
    with pytest.raises(ConfigurationError, match="group"):
        Bridge(BridgeConfig("all", (V4,))).ensure()


STEPS = ["set_mac", "set_mtu", "rename", "join_group", "disable_ipv6", "bridge_add", "bridge_isolate", "move"]
NETLINK_STEPS = ["link_create", "link_set", "perform"]


@pytest.fixture
def isolated(config, make_bridge):
    return make_bridge(BridgeConfig(config.name, (V4, V6), isolate=True, interface_prefix="cni"))


MOMENTS = [(step, nth) for step in STEPS + NETLINK_STEPS for nth in (1, 2)]


def test_a_failure_at_any_step_leaves_nothing(isolated, pod, reserve, monkeypatch):
    """One jail serves for all, for making it is what takes time."""
    before, addresses, failed = names(), reserve("sandbox"), 0
    for step, nth in MOMENTS:
        for done in (False, True):  # what a step did before it failed is taken back too
            target = Routes if step in NETLINK_STEPS else Interfaces
            with monkeypatch.context() as patch:
                patch.setattr(
                    target, step, failing(getattr(target, step), nth, done and step != "link_create")
                )
                try:
                    isolated.add("sandbox", pod, addresses=addresses)
                except KernelError as error:
                    assert error.operation == "imagine", (step, nth, done)  # noqa: PT017
                    failed += 1
                else:  # there are not so many calls of this step
                    isolated.delete("sandbox")
            assert names() == before, (step, nth, done)
            assert pod.run("ifconfig", "-l").split() == ["lo0"], (step, nth, done)
    assert failed >= 2 * len(STEPS + NETLINK_STEPS)
    isolated.add("sandbox", pod, addresses=addresses)
    isolated.check("sandbox", pod, addresses=addresses)


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


def test_what_a_killed_process_leaves_is_found_and_taken_back(isolated, pod, reserve, monkeypatch):
    """Die in a child after each step, as SIGKILL would have it: no undo runs."""
    before, addresses, died = names(), reserve("sandbox"), 0
    host_end = isolated.host_interface("sandbox")
    for step, nth in MOMENTS:
        target = Routes if step in NETLINK_STEPS else Interfaces
        child = os.fork()
        if not child:
            monkeypatch.setattr(target, step, deadly(getattr(target, step), nth))
            isolated.add("sandbox", pod, addresses=addresses)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 7)
        died += code == 7
        assert isolated.attachments() == {host_end}, (step, nth)
        isolated.disconnect("sandbox")
        assert isolated.strays() == {host_end}, "what reconcile looks for"
        isolated.delete_interface(host_end)
        assert names() == before, (step, nth)
        assert pod.run("ifconfig", "-l").split() == ["lo0"], (step, nth)
    assert died >= len(STEPS + NETLINK_STEPS)


def deadly(real, nth):
    """Return a method whose nth call is the last thing that the process does."""
    count = itertools.count(1)

    def die(self, *arguments, **options):
        result = real(self, *arguments, **options)
        if next(count) == nth:
            os._exit(7)
        return result

    return die


def test_what_is_in_the_making_hides_behind_what_is_there(bridge, pod, reserve):
    """A leftover beside the finished attachment of its name: deleting the stray must not take the attachment."""
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    host_end = bridge.host_interface("sandbox")
    with Routes.of(HOST) as routes:
        routes.link_create("epair", f"cni_plugins {host_end}")
    assert bridge.strays() == set()
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    bridge.delete("sandbox")
    assert bridge.strays() == {host_end}
    bridge.delete("sandbox")
    assert bridge.strays() == set()


def test_links_are_described_as_the_kernel_has_them():
    links = {link.name: link for link in FreeBSDLinks(HOST).all()}
    assert links["lo0"].loopback
    assert {link.name: link.index for link in links.values()} == {n: i for i, n in socket.if_nameindex()}
