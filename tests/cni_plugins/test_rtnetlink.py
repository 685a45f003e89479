"""The client against the kernel, in a namespace of its own, and against a kernel that is silent."""

import errno
import socket
import struct
from ipaddress import ip_address, ip_interface

import pytest

from cni_plugins import KernelError, rtnetlink
from cni_plugins.rtnetlink import LinkEnd, Routes, address_add, link_set, route_add_default


@pytest.fixture
def routes(host):
    with Routes.of(host) as routes:
        yield routes


@pytest.fixture
def pair(routes, pod):
    ends = LinkEnd("one", "02:00:00:00:00:01"), LinkEnd("eth0", "02:00:00:00:00:02")
    routes.link_add_veth(*ends, pod.move_target, mtu=1400)
    return ends


@pytest.mark.node
def test_a_pair_has_both_ends_as_asked_for(routes, pod, pair):
    one, eth0 = pair
    with Routes.of(pod) as inside:
        for client, end in ((routes, one), (inside, eth0)):
            link = client.link(end.name)
            assert (link.kind, link.mac, link.mtu, link.up, link.loopback) == (
                "veth",
                end.mac,
                1400,
                False,
                False,
            )
            assert client.link_index(end.name) == link.index
            assert link in client.links()


@pytest.mark.node
def test_addresses_and_routes_come_back_as_given(routes, pair):
    routes.link_set("one", up=True)
    for address, gateway in (("10.88.0.2/16", "10.88.0.1"), ("fd00:88::2/64", "fd00:88::1")):
        routes.address_add("one", ip_interface(address))
        assert ip_interface(address) in routes.addresses("one")
        routes.route_add_default("one", ip_address(gateway))
        assert ip_address(gateway) in routes.default_gateways("one")
    assert routes.addresses("lo") == []


@pytest.mark.node
def test_an_ipv6_address_is_usable_at_once(routes, host, pod, pair):
    routes.link_set("one", up=True)
    with Routes.of(pod) as inside:
        inside.link_set("eth0", up=True)
    routes.address_add("one", ip_interface("fd00:88::2/64"))
    with host.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.bind(("fd00:88::2", 0))  # EADDRNOTAVAIL as long as the address is tentative


@pytest.mark.node
def test_a_batch_reports_its_first_refusal_and_the_kernel_s_words(routes, pair):
    index = routes.link_index("one")
    with pytest.raises(KernelError) as caught:
        routes.perform(
            link_set("one", up=True),
            address_add(index, "one", ip_interface("10.88.0.2/16")),
            address_add(index, "one", ip_interface("10.88.0.2/16")),
            link_set("missing", up=True),
        )
    error = caught.value
    assert (error.errno, error.object) == (errno.EEXIST, "interface one")
    assert error.operation == "add address 10.88.0.2/16 to"
    assert routes.link("one").up


@pytest.mark.node
@pytest.mark.parametrize("call", ["link", "link_index", "link_del", "addresses", "default_gateways"])
def test_a_missing_interface_is_named(routes, call):
    with pytest.raises(KernelError, match="interface missing: No such device") as caught:
        getattr(routes, call)("missing")
    assert caught.value.errno == errno.ENODEV


class Silent:
    """A datagram socket that takes netlink's options and never hears an answer."""

    def __init__(self):
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def setsockopt(self, level, option, value):
        if level == socket.SOL_SOCKET:
            self.near.setsockopt(level, option, value)

    def send(self, data):
        return self.near.send(data)

    def recv(self, size):
        return self.near.recv(size)

    def close(self):
        self.near.close()
        self.far.close()


def test_a_kernel_that_is_silent_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(rtnetlink, "_ANSWER_TIMEOUT", struct.pack("@ll", 0, 20_000))
    with Routes(Silent()) as routes, pytest.raises(KernelError, match="cannot delete interface x") as caught:
        routes.link_del("x")
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_socket_of_another_kind_is_refused_and_closed():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(KernelError, match="prepare a netlink socket"):
        Routes(sock)
    assert sock.fileno() == -1


def test_requests_say_what_only_one_kernel_would_assume():
    six = address_add(3, "eth0", ip_interface("fd00:88::2/64")).message.attributes
    assert six["cacheinfo"][:2] == (0xFFFFFFFF, 0xFFFFFFFF), (
        "FreeBSD adds nothing that is to live for no time"
    )
    for gateway, anywhere in (("10.88.0.1", "0.0.0.0"), ("fd00:88::1", "::")):
        route = route_add_default(3, "eth0", ip_address(gateway)).message
        assert route.attributes["dst"] == ip_address(anywhere), "FreeBSD wants a destination"
