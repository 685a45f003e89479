"""Real pods on a real bridge, in namespaces of our own."""

import contextlib
import errno
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface, IPv4Network, ip_address, ip_interface

import pytest

from cni_plugins import (
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
from cni_plugins.rtnetlink import LinkEnd, Routes

pytestmark = pytest.mark.node


def names(stack):
    with Routes.of(stack) as routes:
        return {link.name for link in routes.links()}


def family(address):
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def talk(client, server, address):
    """Send a line over TCP from one stack to an address of another; return what arrived."""
    with server.socket(family(address), socket.SOCK_STREAM) as listener:
        listener.settimeout(5)
        listener.bind((str(address), 0))
        listener.listen()
        with client.socket(family(address), socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            sock.connect((str(address), listener.getsockname()[1]))
            sock.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                return accepted.recv(5)


def ping(stack, address, patience=2):
    """One ICMP echo; true if the answer came within `patience` seconds."""
    six = address.version == 6
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with stack.socket(family(address), socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(patience)
        body = struct.pack("!HH", 0x4321, 1) + b"cri"
        data = struct.pack("!BBH", 128 if six else 8, 0, 0) + body
        if not six:
            padded = data + b"\0" * (len(data) % 2)
            total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
            total = (total & 0xFFFF) + (total >> 16)
            data = data[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + data[4:]
        sock.sendto(data, (str(address), 0))
        with contextlib.suppress(TimeoutError):
            while True:
                answer = sock.recv(2048)
                answer = answer if six else answer[20:]
                if answer[0] == (129 if six else 0) and answer[4:] == body:
                    return True
        return False


def test_loopback_comes_up_and_may_be_repeated(pod):
    for _ in range(2):
        loopback.up(pod)
    with Routes.of(pod) as routes:
        assert routes.link("lo").up
        assert set(routes.addresses("lo")) == {ip_interface("127.0.0.1/8"), ip_interface("::1/128")}
    assert talk(pod, pod, ip_address("127.0.0.1")) == b"hello"
    assert talk(pod, pod, ip_address("::1")) == b"hello"


def test_pods_reach_each_other_and_the_gateway_over_both_families(bridge, host, make_namespace, reserve):
    one, two = make_namespace(), make_namespace()
    bridge.add("one", one, addresses=reserve("one"))
    bridge.add("two", two, addresses=reserve("two"))
    for address in reserve("two"):
        assert talk(one, two, address.ip) == b"hello"
    for subnet in bridge.config.subnets:
        assert talk(one, host, bridge.config.gateway(subnet)) == b"hello"
        assert ping(one, bridge.config.gateway(subnet))
    for address in reserve("one"):
        assert ping(host, address.ip)


def test_the_result_says_what_was_made(bridge, pod, reserve):
    result = bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    with Routes.of(pod) as routes:
        link = routes.link("eth0")
        assert link.mac == result.interfaces[2].mac
        assert set(reserve("sandbox")) <= set(routes.addresses("eth0"))
        assert set(routes.default_gateways("eth0")) == {ip_address("10.88.0.1"), ip_address("fd00:88::1")}
    assert result.to_json() == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": bridge.config.name, "mac": result.interfaces[0].mac},
            {"name": bridge.host_interface("sandbox"), "mac": result.interfaces[1].mac},
            {"name": "eth0", "mac": link.mac, "sandbox": "sandbox"},
        ],
        "ips": [
            {"address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 2},
            {"address": "fd00:88::2/64", "gateway": "fd00:88::1", "interface": 2},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}, {"dst": "::/0", "gw": "fd00:88::1"}],
        "dns": {},
    }
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    assert bridge.attachments() == {bridge.host_interface("sandbox")}


def test_an_isolated_pod_reaches_the_gateway_only(host, make_namespace):
    bridge = Bridge(BridgeConfig("critiso", (IPv4Network("10.88.0.0/24"),), isolate=True), host)
    bridge.ensure()
    one, two = make_namespace(), make_namespace()
    bridge.add("one", one, addresses=[IPv4Interface("10.88.0.2/24")])
    bridge.add("two", two, addresses=[IPv4Interface("10.88.0.3/24")])
    assert ping(one, ip_address("10.88.0.1"))
    assert not ping(one, ip_address("10.88.0.3"), patience=0.3)


def test_the_host_end_has_no_address_of_its_own(bridge, pod, host, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    with Routes.of(host) as routes:
        assert routes.addresses(bridge.host_interface("sandbox")) == []


def test_ensure_may_be_repeated_and_repairs(bridge, host):
    name = bridge.config.name
    with Routes.of(host) as routes:
        before = routes.link(name)
        routes.link_set(name, up=False, mtu=1400)
    bridge.ensure()
    with Routes.of(host) as routes:
        assert routes.link(name) == before
        gateways = {ip_interface("10.88.0.1/16"), ip_interface("fd00:88::1/64")}
        assert gateways <= set(routes.addresses(name))


def test_many_ensures_at_once_make_one_bridge(config, host):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: Bridge(config, host).ensure(), range(16)))
    assert config.name in names(host)


def test_a_foreign_interface_of_that_name_is_left_alone(config, host):
    with Routes.of(host) as routes:
        mac = "02:00:00:00:00:0"
        routes.link_add_veth(
            LinkEnd(config.name, mac + "1"), LinkEnd("peer", mac + "2"), host.move_target, mtu=1500
        )
    with pytest.raises(ForeignInterfaceError, match=config.name):
        Bridge(config, host).ensure()
    with pytest.raises(ForeignInterfaceError, match=config.name):
        Bridge(config, host).remove()
    assert config.name in names(host)


def test_a_second_add_is_refused_and_harms_nothing(bridge, pod, make_namespace, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    with pytest.raises(AttachmentExistsError, match=bridge.host_interface("sandbox")):
        bridge.add("sandbox", make_namespace(), addresses=reserve("sandbox"))
    with pytest.raises(AttachmentExistsError, match="eth0"):
        bridge.add("other", pod, addresses=reserve("other"))
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    assert bridge.attachments() == {bridge.host_interface("sandbox")}


def test_delete_succeeds_on_what_is_gone(bridge, pod, host, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    for _ in range(2):
        bridge.delete("sandbox")
    assert names(pod) == {"lo"}
    assert names(host) == {"lo", bridge.config.name}
    with pytest.raises(NotAttachedError, match="sandbox"):
        bridge.check("sandbox", pod)
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))


def test_check_names_everything_that_is_wrong(bridge, pod, host, reserve):
    bridge.add("sandbox", pod, addresses=[reserve("sandbox")[0]])
    with Routes.of(pod) as routes:
        routes.link_set("eth0", mac="02:00:00:00:00:01", up=False)
    with Routes.of(host) as routes:
        routes.link_set(bridge.host_interface("sandbox"), master=0)
    with pytest.raises(AttachmentBrokenError) as caught:
        bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    for fault in (
        "eth0 is down",
        "02:00:00:00:00:01",
        "is not in bridge",
        "fd00:88::2/64",
        "route via fd00:88::1",
    ):
        assert fault in str(caught.value)
    assert bridge.attachments() == {bridge.host_interface("sandbox")}, "still found outside of its bridge"


def test_remove_spares_a_bridge_with_members(bridge, pod, host, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    assert not bridge.remove()
    for name in bridge.attachments():
        bridge.delete_interface(name)
    assert bridge.remove()
    assert bridge.remove()
    assert names(host) == {"lo"}


def test_what_cannot_work_is_refused_before_anything_is_made(bridge, pod, host):
    for address in ("10.89.0.2/16", "10.88.0.2/24", "10.88.0.1/16"):
        with pytest.raises(ConfigurationError, match="no pod's address"):
            bridge.add("sandbox", pod, addresses=[ip_interface(address)])
    with pytest.raises(ConfigurationError, match="interface name"):
        bridge.add("sandbox", pod, "eth0/../x", addresses=[])
    assert names(host) == {"lo", bridge.config.name}


def test_without_its_bridge_nothing_can_be_attached(config, host, pod, reserve):
    with pytest.raises(NotAttachedError, match="ensure"):
        Bridge(config, host).add("sandbox", pod, addresses=reserve("sandbox"))
    assert Bridge(config, host).attachments() == set()


class Saboteur:
    """A stack whose sockets spoil the nth request that changes something, counted over all of them.

    "refuse" turns it into one that the kernel itself refuses; "break" fails the send, as a signal or a lack
    of memory does, for it and what travels with it.
    """

    def __init__(self, stack, counter, mode):
        self.stack, self.counter, self.mode = stack, counter, mode

    @property
    def move_target(self):
        return self.stack.move_target

    def socket(self, family, kind, protocol):
        return SpoiledSocket(self.stack.socket(family, kind, protocol), self.counter, self.mode)


class SpoiledSocket:
    def __init__(self, sock, counter, mode):
        self.sock, self.counter, self.mode = sock, counter, mode

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def send(self, datagram):
        data, offset = bytearray(datagram), 0
        while offset < len(data):
            length, kind = struct.unpack_from("=IH", data, offset)
            if self.counter.spoil(kind):
                if self.mode == "break":
                    raise OSError(errno.ENOBUFS, "no buffer space")
                struct.pack_into("=H", data, offset + 4, 0x7FF0)
            offset += length
        return self.sock.send(bytes(data))


class Counter:
    def __init__(self, nth):
        self.nth, self.seen = nth, []

    def spoil(self, kind):
        self.seen.append(kind)
        return len(self.seen) == self.nth


@pytest.mark.parametrize("mode", ["refuse", "break"])
def test_a_failure_of_any_request_leaves_nothing(config, host, pod, reserve, mode):
    config = BridgeConfig(config.name, config.subnets, isolate=True)
    Bridge(config, host).ensure()
    for nth in range(1, 100):
        counter = Counter(nth)
        bridge = Bridge(config, Saboteur(host, counter, mode))
        try:
            bridge.add("sandbox", Saboteur(pod, counter, mode), addresses=reserve("sandbox"))
        except KernelError as error:
            failure = error
        else:
            break
        assert failure.errno in {errno.EOPNOTSUPP, errno.ENOBUFS}
        assert names(host) == {"lo", config.name}, f"after request {nth} of {counter.seen}"
        assert names(pod) == {"lo"}
    assert nth >= 10, (
        "every request was spoiled once: find, create, 2 for the host end, find, 2 + 1 + 2 in the pod"
    )
    Bridge(config, host).check("sandbox", pod, addresses=reserve("sandbox"))


def test_an_undo_that_fails_too_is_told_with_the_first_error(bridge, pod, host, reserve):
    class Dead:
        move_target = pod.move_target

        def socket(self, family, kind, protocol):
            host_alive.clear()
            raise OSError(errno.EBADF, "the pod is dead")

    class Dying:
        def socket(self, family, kind, protocol):
            if not host_alive.is_set():
                raise OSError(errno.EMFILE, "too many files")
            return host.socket(family, kind, protocol)

    host_alive = threading.Event()
    host_alive.set()
    with pytest.raises(KernelError) as caught:
        Bridge(bridge.config, Dying()).add("sandbox", Dead(), addresses=reserve("sandbox"))
    assert caught.value.errno == errno.EBADF
    assert "undo failed" in caught.value.__notes__[0]
    assert bridge.attachments() == {bridge.host_interface("sandbox")}, "which reconciliation finds"


def test_fifty_at_once_leave_nothing(bridge, host, make_namespace, reserve):
    pods = {f"sandbox-{n}": make_namespace() for n in range(50)}
    with ThreadPoolExecutor(50) as threads:
        results = list(
            threads.map(lambda item: bridge.add(item[0], item[1], addresses=reserve(item[0])), pods.items())
        )
        assert len({ip.address for result in results for ip in result.ips}) == 100
        assert bridge.attachments() == {bridge.host_interface(name) for name in pods}
        first, *_, last = pods
        assert talk(pods[first], pods[last], reserve(last)[0].ip) == b"hello"
        list(threads.map(bridge.delete, pods))
    assert bridge.attachments() == set()
    assert names(host) == {"lo", bridge.config.name}
    assert all(names(pod) == {"lo"} for pod in pods.values())


def test_it_works_on_the_machine_s_own_stack_too(config, pod, reserve):
    bridge = Bridge(config)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(bridge.remove)
        bridge.ensure()
        cleanup.callback(bridge.delete, "sandbox")
        bridge.add("sandbox", pod, addresses=reserve("sandbox"))
        assert ping(pod, ip_address("10.88.0.1"))
    assert config.name not in {name for _, name in socket.if_nameindex()}


def test_a_disconnected_pod_is_off_the_network_and_its_remains_are_found(bridge, pod, host, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    assert ping(pod, ip_address("10.88.0.1"))
    for _ in range(2):
        bridge.disconnect("sandbox")
    assert not ping(pod, ip_address("10.88.0.1"), patience=0.3)
    assert bridge.attachments() == {bridge.host_interface("sandbox")}
    bridge.delete("sandbox")
    bridge.disconnect("sandbox")
    assert bridge.attachments() == set()


def test_a_dead_pod_takes_its_pair_along(bridge, host, pod, reserve):
    make = type(pod)
    dying = make()
    bridge.add("sandbox", dying, addresses=reserve("sandbox"))
    bridge.disconnect("sandbox")
    dying.close()
    bridge.delete("sandbox")  # whether the kernel was quicker or not
    assert bridge.attachments() == set()
    dying = make()
    bridge.add("sandbox", dying, addresses=reserve("sandbox"))
    dying.close()
    deadline = time.monotonic() + 5
    while bridge.attachments() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert names(host) == {"lo", bridge.config.name}


def test_a_dead_descriptor_is_refused_with_its_reason(bridge, host, reserve):
    class Gone:
        move_target = 1 << 20

    with pytest.raises(
        KernelError, match=f"veth pair {bridge.host_interface('sandbox')} and eth0.*make the pod anew"
    ):
        bridge.add("sandbox", Gone(), addresses=reserve("sandbox"))
    assert names(host) == {"lo", bridge.config.name}


def test_a_pod_that_has_a_default_route_keeps_it(bridge, pod, reserve):
    bridge.add("sandbox", pod, addresses=reserve("sandbox"))
    with pytest.raises(KernelError, match=r"default route via 10\.88\.0\.1 on interface net1"):
        bridge.add("other", pod, "net1", addresses=reserve("other"))
    bridge.check("sandbox", pod, addresses=reserve("sandbox"))
    assert names(pod) == {"lo", "eth0"}
