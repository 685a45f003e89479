"""The client against the kernel, in a namespace of its own, and against a kernel that is silent."""

import errno
import socket
import struct
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_plugins import KernelError
from cni_plugins.netlink import client
from cni_plugins.rtnetlink import LinkEnd, Routes, address_add, link_set, route_add
from cni_plugins.types import Route


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
    for address, gateway, anywhere in (
        ("10.88.0.2/16", "10.88.0.1", "0.0.0.0/0"),
        ("fd00:88::2/64", "fd00:88::1", "::/0"),
    ):
        routes.address_add("one", ip_interface(address))
        assert ip_interface(address) in routes.addresses("one")
        on_link = ip_network("192.0.2.1/32" if "." in gateway else "2001:db8::1/128")
        wanted = [
            Route(ip_network(anywhere), ip_address(gateway), mtu=1300, advmss=1200, priority=5, table=700),
            Route(ip_network(anywhere), ip_address(gateway)),
            Route(on_link),
        ]
        for route in wanted:
            routes.route_add("one", route)
        found = routes.routes("one")
        first = next(r for r in found if r.table == 700 and r.dst == ip_network(anywhere))
        assert (first.gw, first.mtu, first.advmss, first.priority) == (ip_address(gateway), 1300, 1200, 5)
        assert {(route.dst, route.gw) for route in wanted} <= {(route.dst, route.gw) for route in found}
    assert routes.addresses("lo") == []
    assert routes.routes("lo") == []


@pytest.mark.node
def test_flags_are_set_and_cleared_and_others_left(routes, host, pair):
    routes.link_set("one", up=True, promiscuous=True)
    assert routes.link("one").promiscuous
    routes.link_set("one", promiscuous=False, mtu=1300)
    link = routes.link("one")
    assert (link.promiscuous, link.up, link.mtu) == (False, True, 1300)
    routes.link_set("one", all_multicast=True)
    assert "ALLMULTI" in host.command("ip", "link", "show", "one")


@pytest.mark.node
def test_forwarding_is_each_family_s(routes, host):
    assert [routes.forwards(version) for version in (4, 6)] == [False, False]
    host.command("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    assert [routes.forwards(version) for version in (4, 6)] == [False, True]


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
@pytest.mark.parametrize("call", ["link", "link_index", "link_del", "addresses", "routes"])
def test_a_missing_interface_is_named(routes, call):
    with pytest.raises(KernelError, match="interface missing: No such device") as caught:
        getattr(routes, call)("missing")
    assert caught.value.errno == errno.ENODEV
    assert routes.find("missing") is None


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


class Source:
    """A stack whose sockets are all this one."""

    def __init__(self, sock):
        self.sock = sock

    def socket(self, family, kind, protocol):
        return self.sock


def test_a_kernel_that_is_silent_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(client, "_ANSWER_TIMEOUT", struct.pack("@ll", 0, 20_000))
    with (
        Routes(Source(Silent())) as routes,
        pytest.raises(KernelError, match="cannot delete interface x") as caught,
    ):
        routes.link_del("x")
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_socket_of_another_kind_is_refused_and_closed():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(KernelError, match="prepare a netlink socket"):
        Routes(Source(sock))
    assert sock.fileno() == -1


def test_requests_say_what_only_one_kernel_would_assume():
    six = address_add(3, "eth0", ip_interface("fd00:88::2/64")).message.attributes
    assert six["cacheinfo"][:2] == (0xFFFFFFFF, 0xFFFFFFFF), (
        "FreeBSD adds nothing that is to live for no time"
    )
    for anywhere in ("0.0.0.0/0", "::/0"):
        route = route_add(3, "eth0", Route(ip_network(anywhere))).message
        assert route.attributes["dst"] == ip_network(anywhere)[0], "FreeBSD wants a destination"
    for changes in ({"mtu": 1400}, {"mac": "02:00:00:00:00:01"}, {"promiscuous": False}):
        header = link_set("eth0", **changes).message.header
        assert header.change, "FreeBSD takes an empty mask for a full one, and the link goes down"
        assert not header.change & 1
