"""The ptp plugin's ADD: pods that are routed to, in namespaces of our own."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_plugins import ConfigurationError, results
from cni_plugins.rtnetlink import Routes

pytestmark = pytest.mark.node

GATEWAYS = ip_address("10.88.0.1"), ip_address("fd00:88::1")


@pytest.fixture
def make_ptp(make_context, make_plugin, host, ipam):
    context = make_context(host)

    def make(**settings):
        return make_plugin(context, "ptp", **{"ipam": ipam, **settings})

    return make


def test_pods_reach_each_other_and_the_host_over_both_families(
    make_ptp, make_request, make_namespace, host, talk, ping
):
    ptp, pods = make_ptp(), [make_namespace() for _ in range(3)]
    found = [ptp.add(make_request(pod, f"p{at}")) for at, pod in enumerate(pods)]
    for gateway in GATEWAYS:
        assert ping(pods[0], gateway)
        assert talk(pods[0], host, gateway) == b"hello"
    for pod, result in zip(pods[1:], found[1:], strict=True):
        for ip in result.ips:
            assert ping(host, ip.address.ip)
            assert talk(pods[0], pod, ip.address.ip) == b"hello"


def test_the_result_says_what_was_made(make_ptp, make_request, pod, host):
    ptp, request = make_ptp(dns={"search": ["example.org"]}), make_request(pod, netns="/run/netns/here")
    result = ptp.add(request)
    host_end, pod_end = result.interfaces
    assert results.to_json(result, "1.0.0") == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": host_end.name, "mac": host_end.mac},
            {"name": "eth0", "mac": pod_end.mac, "sandbox": "/run/netns/here"},
        ],
        "ips": [
            {"address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 1},
            {"address": "fd00:88::2/64", "gateway": "fd00:88::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"search": ["example.org"]},
    }
    with Routes.of(pod) as routes:
        found = {route.dst: route.gw for route in routes.routes("eth0")}
        assert routes.link("eth0").mac == pod_end.mac
    assert found[ip_network("10.88.0.1")] is None
    assert found[ip_network("10.88.0.0/16")] == found[ip_network("0.0.0.0/0")] == GATEWAYS[0]
    assert found[ip_network("fd00:88::1")] is None
    assert found[ip_network("fd00:88::/64")] == found[ip_network("::/0")] == GATEWAYS[1]
    with Routes.of(host) as routes:
        assert routes.link(host_end.name).mac == host_end.mac
        assert set(routes.addresses(host_end.name)) == {
            ip_interface("10.88.0.1/32"),
            ip_interface("fd00:88::1/128"),
        }
        assert {ip_network("10.88.0.2"), ip_network("fd00:88::2")} <= {
            route.dst for route in routes.routes(host_end.name)
        }
        assert routes.forwards(4)
        assert routes.forwards(6)
    ptp.check(replace(request, previous=result))


def test_without_routes_of_ipam_the_subnet_is_all_there_is(make_ptp, make_request, make_namespace, ipam):
    bare = ipam | {"routes": []}
    one, two = make_namespace(), make_namespace()
    make_ptp(ipam=bare).add(make_request(one, "one"))
    result = make_ptp(ipam=bare, isDefaultGateway=True).add(make_request(two, "two"))
    assert [str(route.dst) for route in result.routes] == ["0.0.0.0/0", "::/0"]
    for stack, expected in ((one, set()), (two, set(GATEWAYS))):
        with Routes.of(stack) as routes:
            assert {route.gw for route in routes.routes("eth0") if not route.dst.prefixlen} == expected


def test_two_addresses_of_one_subnet_share_their_gateway(make_ptp, make_request, pod, host, ping):
    static = {"type": "static", "addresses": [{"address": "10.9.0.7/24"}, {"address": "10.9.0.8/24"}]}
    ptp, request = make_ptp(ipam=static), make_request(pod)
    result = ptp.add(request)
    assert [ip.gateway for ip in result.ips] == [ip_address("10.9.0.1")] * 2
    for ip in result.ips:
        assert ping(host, ip.address.ip)
    ptp.check(replace(request, previous=result))


@pytest.mark.parametrize("mtu", [1450, 9000])
def test_the_mtu_is_the_same_at_both_ends_and_honoured(make_ptp, make_request, pod, ping, mtu):
    result = make_ptp(mtu=mtu).add(make_request(pod))
    assert {interface.mtu for interface in result.interfaces} == {mtu}
    for gateway in GATEWAYS:
        assert ping(pod, gateway, size=mtu)
        with pytest.raises(OSError, match="Message too long"):
            ping(pod, gateway, size=mtu + 1)


def test_the_host_s_own_address_is_nobody_s_gateway(make_ptp, make_request, pod, host):
    host.command("ip", "link", "add", "up0", "type", "bridge")
    host.command("ip", "address", "add", "fd00:88::1/64", "dev", "up0", "nodad")
    with pytest.raises(ConfigurationError, match=r"fd00:88::1 is the host's own .* of interface up0"):
        make_ptp().add(make_request(pod))
    with Routes.of(host) as routes:
        assert {link.name for link in routes.links()} == {"lo", "up0"}


def test_routed_pods_share_the_gateway_with_each_other_and_with_a_bridge_of_pods(
    make_ptp, make_plugin, make_request, make_namespace, ipam
):
    ptp = make_ptp()
    ptp.add(make_request(make_namespace(), "one"))
    bridge = make_plugin(ptp._context, "bridge", isGateway=True, ipam=ipam)
    bridge.add(make_request(make_namespace(), "two"))
    make_ptp().add(make_request(make_namespace(), "three"))


def test_ipv6_that_is_switched_off_is_told(make_ptp, make_request, pod, host):
    assert make_ptp().status() == []
    host.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    (problem,) = make_ptp().status()
    with pytest.raises(ConfigurationError, match="IPv6 is switched off in the node") as caught:
        make_ptp().add(make_request(pod))
    assert problem.startswith(str(caught.value).split(",", 1)[0])
