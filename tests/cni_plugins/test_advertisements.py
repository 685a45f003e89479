"""Router advertisements: a pod becomes the router of nobody, and the node keeps the one that it has."""

import socket
import struct
import time
from ipaddress import ip_address

import pytest

from cni_plugins.linux import sysctl
from cni_plugins.pair_names import mac
from cni_plugins.rtnetlink import LinkEnd, Routes

pytestmark = pytest.mark.node

NODE = ("accept_ra", "autoconf", "accept_redirects")
IPAM_4 = {"type": "host-local", "subnet": "10.88.0.0/16"}


def parameter(stack, name, key="accept_ra"):
    return sysctl.read(stack, f"net/ipv6/conf/{name}/{key}")


def advertise(stack, name):
    """Send one advertisement of a router, as a pod with CAP_NET_RAW can."""
    index = stack.run(socket.if_nametoindex, name)
    with stack.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, index))


def way(stack):
    """The default route of IPv6, as ip(8) tells of it."""
    return stack.command("ip", "-6", "route", "show", "default").strip()


def until(question, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not (found := question()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def link_local(stack, name):
    """Whether the interface's own address has been checked."""
    told = stack.command("ip", "-6", "addr", "show", "dev", name, "scope", "link")
    return "inet6" in told and "tentative" not in told


@pytest.fixture
def listening(host):
    """A node whose administrator has interfaces take advertisements even if it forwards."""
    sysctl.write(host, "net/ipv6/conf/default/accept_ra", "2")
    return host


@pytest.mark.parametrize("type_", ["bridge", "ptp"])
@pytest.mark.parametrize("families", [4, 6])
def test_a_pod_does_not_become_the_node_s_router(
    listening, make_context, make_plugin, make_request, make_namespace, bridge_name, ipam, type_, families
):
    settings = {"bridge": bridge_name} if type_ == "bridge" else {}
    given = ipam if families == 6 else IPAM_4
    plugin = make_plugin(make_context(listening), type_, isGateway=True, ipam=given, **settings)
    pods = [make_namespace(), make_namespace()]
    results = [plugin.add(make_request(pod, f"pod{at}")) for at, pod in enumerate(pods)]
    near = [one.name for one in results[0].interfaces if not one.sandbox]
    assert [parameter(listening, name, key) for name in near for key in NODE] == ["0"] * len(near) * len(NODE)
    assert until(lambda: all(link_local(pod, "eth0") for pod in pods))
    before = way(listening), [way(pod) for pod in pods]
    advertise(pods[0], "eth0")
    time.sleep(0.5)
    assert (way(listening), [way(pod) for pod in pods]) == before


def test_what_an_earlier_release_has_made_is_put_right_by_gc(
    host, make_context, make_plugin, make_request, pod, bridge_name
):
    plugin = make_plugin(make_context(host), "bridge", bridge=bridge_name, isGateway=True, ipam=IPAM_4)
    request = make_request(pod)
    result = plugin.add(request)
    near = [one.name for one in result.interfaces if not one.sandbox]
    for again in range(2):
        for name in near[: 2 - again]:  # the bridge also after its plugin has seen to it
            sysctl.write(host, f"net/ipv6/conf/{name}/accept_ra", "2")
        plugin.gc([make_request(None, previous=result)])
        assert [parameter(host, name) for name in near] == ["0", "0"]


def test_a_bridge_left_without_pods_is_put_right_by_the_next_one(
    host, make_context, make_plugin, make_request, pod, bridge_name
):
    with Routes.of(host) as routes:
        routes.link_add_bridge(bridge_name, mac("bridge", bridge_name))
        routes.link_set(bridge_name, up=True)
    assert parameter(host, bridge_name) == "1"
    plugin = make_plugin(make_context(host), "bridge", bridge=bridge_name, isGateway=True, ipam=IPAM_4)
    plugin.add(make_request(pod))
    assert parameter(host, bridge_name) == "0"


def test_somebody_else_s_bridge_keeps_its_router(
    host, make_context, make_plugin, make_request, make_namespace, bridge_name, ipam
):
    """It may be the node's way to the world, and its pods may have addresses from there."""
    with Routes.of(host) as routes:
        routes.link_add_bridge(bridge_name, "02:00:00:00:00:77")
        routes.link_set(bridge_name, up=True)
    context = make_context(host)
    four, six = make_namespace(), make_namespace()
    make_plugin(context, "bridge", bridge=bridge_name, ipam=IPAM_4).add(make_request(four, "four"))
    make_plugin(context, "bridge", bridge=bridge_name, ipam=ipam).add(make_request(six, "six"))
    assert parameter(host, bridge_name) == "1"
    assert (parameter(four, "eth0"), parameter(six, "eth0")) == ("1", "0")


def test_a_pod_may_ask_for_advertisements(host, make_context, make_plugin, make_request, pod, bridge_name):
    pod.sysctl("net.ipv6.conf.default.accept_ra", "2")
    plugin = make_plugin(make_context(host), "bridge", bridge=bridge_name, isGateway=True, ipam=IPAM_4)
    plugin.add(make_request(pod))
    assert parameter(pod, "eth0") == "2"


def test_only_the_way_to_the_router_goes_on_listening(host, make_namespace, make_context):
    """The kernel takes advertised routes from a node that begins to forward, unless accept_ra is 2."""
    router = make_namespace()
    with Routes.of(host) as routes:
        routes.link_add_veth(
            LinkEnd("up.0", "02:00:00:00:00:01"), LinkEnd("down0", "02:00:00:00:00:02"), router.move_target
        )
        for name in ("other0", "managed0"):
            routes.link_add_bridge(name, f"02:00:00:00:01:0{len(name) % 10}")
            routes.link_set(name, up=True)
        routes.link_set("up.0", up=True)
    with Routes.of(router) as routes:
        routes.link_set("down0", up=True)
    sysctl.write(host, "net/ipv6/conf/managed0/accept_ra", "0")
    assert until(lambda: link_local(host, "up.0") and link_local(router, "down0"))
    advertise(router, "down0")
    assert until(lambda: "proto ra" in way(host))
    links = make_context(host).links
    for _ in range(2):
        links.enable_forwarding({4, 6})
        assert links.not_forwarding({4, 6}) == []
        assert [parameter(host, name) for name in ("up.0", "other0", "managed0")] == ["2", "1", "0"]
        assert "proto ra" in way(host)
    advertise(router, "down0")
    time.sleep(0.3)
    assert way(host).count("proto ra") == 1


def test_a_static_way_is_no_reason_to_listen(host, make_context):
    with Routes.of(host) as routes:
        routes.link_add_bridge("up0", "02:00:00:00:00:01")
        routes.link_set("up0", up=True)
    host.command("ip", "-6", "route", "add", "default", "via", str(ip_address("fe80::1")), "dev", "up0")
    make_context(host).links.enable_forwarding({6})
    assert parameter(host, "up0") == "1"


def test_parameters_that_are_not_there_are_passed_over(host):
    sysctl.settle(host, {"net/ipv6/conf/nothing/accept_ra": "0", "net/ipv6/conf/lo/accept_ra": "0"})
    assert parameter(host, "lo") == "0"
