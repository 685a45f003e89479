"""The bridge plugin's ADD: real pods on real bridges, in namespaces of our own."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_plugins import AttachmentExistsError, ConfigurationError, ForeignInterfaceError, KernelError, results
from cni_plugins.rtnetlink import LinkEnd, Routes
from cni_plugins.types import Interface, Result, Route

pytestmark = pytest.mark.node

GATEWAYS = ip_address("10.88.0.1"), ip_address("fd00:88::1")


def names(stack):
    with Routes.of(stack) as routes:
        return {link.name for link in routes.links()}


def link(stack, name):
    """An interface as ip(8) tells of it, with all details."""
    return json.loads(stack.command("ip", "-json", "-details", "link", "show", name))[0]


@pytest.fixture
def make_bridge(make_context, make_plugin, host, bridge_name, ipam):
    """Make a bridge plugin of some settings; those that hang on nothing but a test's subject are given."""

    def make(*, context=None, **settings):
        settings = {"bridge": bridge_name, "isGateway": True, "ipam": ipam, **settings}
        return make_plugin(context or make_context(host), "bridge", **settings)

    return make


@pytest.fixture
def attach(make_request):
    """Add a pod; return its addresses."""

    def run(plugin, stack, name="pod", ifname="eth0", **runtime):
        return [ip.address.ip for ip in plugin.add(make_request(stack, name, ifname, **runtime)).ips]

    return run


def test_pods_reach_each_other_and_the_gateway_over_both_families(
    make_bridge, host, make_namespace, attach, talk, ping
):
    bridge, one, two = make_bridge(), make_namespace(), make_namespace()
    ones, twos = attach(bridge, one, "one"), attach(bridge, two, "two")
    for address in twos:
        assert talk(one, two, address) == b"hello"
    for gateway in GATEWAYS:
        assert talk(one, host, gateway) == b"hello"
        assert ping(one, gateway)
    for address in ones:
        assert ping(host, address)


def test_the_result_says_what_was_made(make_bridge, make_request, host, pod, bridge_name):
    request = make_request(pod, netns="/run/netns/here")
    bridge = make_bridge(dns={"nameservers": ["192.0.2.53"]})
    result = bridge.add(request)
    on_bridge, host_end, pod_end = result.interfaces
    assert names(host) == {"lo", bridge_name, host_end.name}
    for stack, interface in ((host, on_bridge), (host, host_end), (pod, pod_end)):
        assert (link(stack, interface.name)["address"], link(stack, interface.name)["mtu"]) == (
            interface.mac,
            interface.mtu,
        )
    with Routes.of(pod) as routes:
        assert {ip_interface("10.88.0.2/16"), ip_interface("fd00:88::2/64")} <= set(routes.addresses("eth0"))
        assert {route.gw for route in routes.routes("eth0") if not route.dst.prefixlen} == set(GATEWAYS)
    assert results.to_json(result, "1.0.0") == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": bridge_name, "mac": on_bridge.mac},
            {"name": host_end.name, "mac": host_end.mac},
            {"name": "eth0", "mac": pod_end.mac, "sandbox": "/run/netns/here"},
        ],
        "ips": [
            {"address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 2},
            {"address": "fd00:88::2/64", "gateway": "fd00:88::1", "interface": 2},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    bridge.check(replace(request, previous=result))


def test_what_came_before_stays_in_the_result(make_bridge, make_request, pod):
    before = Result((Interface("dummy0"),), routes=(Route(ip_network("192.0.2.0/24")),))
    result = make_bridge().add(make_request(pod, previous=before))
    assert result.interfaces[0] == Interface("dummy0")
    assert [ip.interface for ip in result.ips] == [3, 3]
    assert result.interfaces[3].name == "eth0"
    assert result.routes[0] == before.routes[0]


@pytest.mark.parametrize("word", ["isolated", "portIsolation"])
def test_isolated_pods_reach_the_gateway_only(make_bridge, make_namespace, attach, ping, word):
    bridge, one, two = make_bridge(**{word: True}), make_namespace(), make_namespace()
    attach(bridge, one, "one")
    addresses = attach(bridge, two, "two")
    for gateway, address in zip(GATEWAYS, addresses, strict=True):
        assert ping(one, gateway)
        assert not ping(one, address, patience=0.3)


def test_the_host_end_has_no_address_of_its_own(make_bridge, make_request, pod, host):
    _, host_end, _ = make_bridge().add(make_request(pod)).interfaces
    with Routes.of(host) as routes:
        assert routes.addresses(host_end.name) == []


@pytest.mark.parametrize("mtu", [0, 1450, 9000])
def test_the_mtu_is_the_same_everywhere_and_honoured(
    make_bridge, make_namespace, host, bridge_name, attach, ping, mtu
):
    bridge, one, two = make_bridge(mtu=mtu), make_namespace(), make_namespace()
    attach(bridge, one, "one")
    addresses = attach(bridge, two, "two")
    expected = mtu or 1500
    assert link(one, "eth0")["mtu"] == link(host, bridge_name)["mtu"] == expected
    for address in (*addresses, *GATEWAYS):
        assert ping(one, address, size=expected)
        with pytest.raises(OSError, match="Message too long"):
            ping(one, address, size=expected + 1)


def test_frames_are_jumbo_only_if_all_agree(make_bridge, make_namespace, host, bridge_name, attach, ping):
    one, two, three = make_namespace(), make_namespace(), make_namespace()
    attach(make_bridge(mtu=1500), one, "one")
    jumbo = make_bridge(mtu=9000)
    attach(jumbo, two, "two")
    assert link(two, "eth0")["mtu"] == link(host, bridge_name)["mtu"] == 1500
    with Routes.of(one) as routes:
        routes.link_del("eth0")
    with Routes.of(two) as routes:
        routes.link_del("eth0")
    attach(jumbo, three, "three")
    assert link(three, "eth0")["mtu"] == link(host, bridge_name)["mtu"] == 9000


def test_an_mtu_too_small_for_ipv6_is_refused(make_bridge, make_request, pod, host):
    with pytest.raises(ConfigurationError, match="1280"):
        make_bridge(mtu=1000).add(make_request(pod))
    assert names(host) == {"lo"}


def test_hairpin_and_promiscuous_mode(make_bridge, make_request, make_namespace, host, bridge_name):
    bridge = make_bridge(hairpinMode=True)
    _, host_end, _ = bridge.add(make_request(make_namespace(), "one")).interfaces
    assert link(host, host_end.name)["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert not link(host, bridge_name)["promiscuity"]
    make_bridge(promiscMode=True).add(make_request(make_namespace(), "two"))
    assert link(host, bridge_name)["promiscuity"] == 1


def test_only_a_gateway_has_addresses_and_forwards(
    make_bridge, make_request, make_namespace, host, bridge_name
):
    result = make_bridge(isGateway=False).add(make_request(make_namespace(), "one"))
    with Routes.of(host) as routes:
        assert not any(address.ip in GATEWAYS for address in routes.addresses(bridge_name))
        assert not routes.forwards(4)
        assert not routes.forwards(6)
        assert [ip.gateway for ip in result.ips] == list(GATEWAYS), "as IPAM has it"
        make_bridge().add(make_request(make_namespace(), "two"))
        assert {ip_interface("10.88.0.1/16"), ip_interface("fd00:88::1/64")} <= set(
            routes.addresses(bridge_name)
        )
        assert routes.forwards(4)
        assert routes.forwards(6)


def test_a_default_gateway_leads_everything_to_itself(make_bridge, make_request, pod, ipam):
    static = {"type": "static", "addresses": [{"address": "10.9.0.7/24"}, {"address": "10.9.0.8/24"}]}
    result = make_bridge(isGateway=False, isDefaultGateway=True, ipam=static).add(make_request(pod))
    assert [ip.gateway for ip in result.ips] == [ip_address("10.9.0.1")] * 2
    assert result.routes == (Route(ip_network("0.0.0.0/0"), ip_address("10.9.0.1")),)
    with Routes.of(pod) as routes:
        assert any(
            not route.dst.prefixlen and route.gw == ip_address("10.9.0.1") for route in routes.routes("eth0")
        )


def test_routes_are_as_ipam_has_them(make_bridge, make_request, pod, ipam):
    wanted = [
        {"dst": "0.0.0.0/0"},
        {"dst": "192.0.2.0/24", "gw": "10.88.0.9", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "198.51.100.0/24", "table": 300},
        {"dst": "2001:db8::/32", "gw": "fd00:88::9", "priority": 9, "mtu": 1400},
    ]
    bridge, request = make_bridge(ipam=ipam | {"routes": wanted}), make_request(pod)
    result = bridge.add(request)
    with Routes.of(pod) as routes:
        found = {route.dst: route for route in routes.routes("eth0")}
    four, six = found[ip_network("192.0.2.0/24")], found[ip_network("2001:db8::/32")]
    assert (four.gw, four.mtu, four.advmss, four.priority) == (ip_address("10.88.0.9"), 1300, 1200, 7)
    assert (six.gw, six.mtu, six.priority) == (ip_address("fd00:88::9"), 1400, 9)
    assert found[ip_network("198.51.100.0/24")].table == 300
    assert found[ip_network("198.51.100.0/24")].gw == GATEWAYS[0]
    bridge.check(replace(request, previous=result))


def test_without_ipam_a_pod_is_on_the_link_only(make_bridge, make_request, pod, host, make_namespace):
    bridge, request = make_bridge(ipam={}), make_request(pod)
    result = bridge.add(request)
    assert (result.ips, result.routes) == ((), ())
    assert link(pod, "eth0")["operstate"] == "UP"
    bridge.check(replace(request, previous=result))
    bridge.delete(request)


def test_the_mac_may_be_asked_for(make_bridge, make_request, make_namespace):
    asked = {
        "02:00:00:00:00:01": (make_bridge(), {"mac": "02:00:00:00:00:01"}),
        "02:00:00:00:00:02": (make_bridge(), {"args": {"MAC": "02:00:00:00:00:02"}}),
        "02:00:00:00:00:03": (
            make_bridge(args={"cni": {"mac": "02:00:00:00:00:03"}}),
            {"mac": "02:00:00:00:00:04"},
        ),
    }
    for mac, (bridge, how) in asked.items():
        pod = make_namespace()
        request = make_request(pod, mac, **how)
        result = bridge.add(request)
        assert link(pod, "eth0")["address"] == result.interfaces[2].mac == mac
        bridge.check(replace(request, previous=result))
    with pytest.raises(ConfigurationError, match="unicast"):
        make_bridge().add(make_request(make_namespace(), mac="ff:ff:ff:ff:ff:ff"))


def test_a_pod_may_have_two_interfaces_on_one_bridge(
    make_context, make_bridge, make_request, make_namespace, host, ipam, ping
):
    context, pod, other = make_context(host), make_namespace(), make_namespace()
    bare = {key: value for key, value in ipam.items() if key != "routes"}
    bridge = make_bridge(context=context, ipam=bare)
    first, second = make_request(pod), make_request(pod, ifname="net1")
    attached = [replace(request, previous=bridge.add(request)) for request in (first, second)]
    assert len({one.previous.interfaces[1].name for one in attached}) == 2
    bridge.add(make_request(other, "other"))
    for one in attached:
        bridge.check(one)
        assert ping(other, one.previous.ips[0].address.ip)
    bridge.delete(attached[0])
    assert names(pod) == {"lo", "net1"}
    bridge.check(attached[1])


def test_several_bridges_and_ranges_at_once(
    make_context, make_plugin, make_request, make_namespace, host, ping
):
    def network(name, *subnets):
        ranges = [[{"subnet": subnet}] for subnet in subnets]
        settings = {"bridge": f"crit-{name}", "isDefaultGateway": True}
        return make_plugin(
            make_context(host, name), "bridge", **settings, ipam={"type": "host-local", "ranges": ranges}
        )

    blue, red = network("blue", "10.1.0.0/24", "10.2.0.0/24"), network("red", "10.3.0.0/24")
    one, two, three = make_namespace(), make_namespace(), make_namespace()
    blue.add(make_request(one, "one"))
    twos = [ip.address.ip for ip in blue.add(make_request(two, "two")).ips]
    threes = [ip.address.ip for ip in red.add(make_request(three, "three")).ips]
    assert len(twos) == 2
    for address in (*twos, *threes, ip_address("10.1.0.1"), ip_address("10.2.0.1"), ip_address("10.3.0.1")):
        assert ping(one, address)


def test_an_address_in_the_way_is_replaced_only_if_forced(
    make_bridge, make_request, pod, host, bridge_name, ipam
):
    moved = ipam | {"ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.255.254"}]], "routes": []}
    make_bridge().add(make_request(pod, ifname="eth9"))
    request = make_request(pod)
    with pytest.raises(ConfigurationError, match=r"10\.88\.0\.1/16.*forceAddress"):
        make_bridge(ipam=moved).add(request)
    assert names(pod) == {"lo", "eth9"}
    make_bridge(ipam=moved, forceAddress=True).add(request)
    with Routes.of(host) as routes:
        four = {address for address in routes.addresses(bridge_name) if address.version == 4}
    assert four == {ip_interface("10.88.255.254/16")}


def test_a_subnet_may_be_cut_or_moved_while_pods_are_there(
    make_bridge, make_request, make_namespace, host, ping
):
    """As a kubelet's pod CIDR does that comes after the first pod."""
    attached = []
    for subnet in ("10.88.0.0/16", "10.88.0.0/24", "10.88.7.0/24", "10.89.0.0/16", "10.88.0.0/15"):
        bridge = make_bridge(
            ipam={
                "type": "host-local",
                "subnet": subnet,
                "rangeStart": f"{subnet.partition('.0/')[0]}.{9 + len(attached)}",
            }
        )
        request = make_request(make_namespace(), subnet.replace("/", "-"))
        attached.append((bridge, replace(request, previous=bridge.add(request))))
    for bridge, _ in attached:
        bridge.gc([request for _, request in attached])
    for bridge, request in attached:
        bridge.check(request)
        assert ping(request.stack, request.previous.ips[0].gateway)


def test_addresses_become_the_node_s(make_context, make_bridge, make_request, pod, host):
    context = make_context(host)
    bridge, request = make_bridge(context=context, ipMasq=True), make_request(pod)
    attached = replace(request, previous=bridge.add(request))
    masquerades = dict(context.nat().masquerades)
    ((owner, wanted),) = masquerades.items()
    assert owner.split()[0] == request.owner
    assert wanted.addresses == (ip_address("10.88.0.2"), ip_address("fd00:88::2"))
    assert {ip_network("10.88.0.0/16"), ip_network("fd00:88::/64")} <= set(wanted.exceptions)
    context.nat().masquerades.clear()
    bridge.gc([attached])
    assert context.nat().masquerades == masquerades
    bridge.delete(attached)
    assert context.nat().masquerades == {}


def test_a_bridge_is_put_right_by_the_next_pod(make_bridge, make_request, make_namespace, host, bridge_name):
    make_bridge().add(make_request(make_namespace(), "one"))
    with Routes.of(host) as routes:
        before = routes.link(bridge_name)
        routes.link_set(bridge_name, up=False)
        make_bridge().add(make_request(make_namespace(), "two"))
        assert routes.link(bridge_name) == before
        assert {ip_interface("10.88.0.1/16"), ip_interface("fd00:88::1/64")} <= set(
            routes.addresses(bridge_name)
        )


def test_many_at_once_make_one_bridge(make_bridge, make_request, make_namespace, host, bridge_name):
    bridge = make_bridge()
    pods = [make_namespace() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(lambda item: bridge.add(make_request(item[1], f"p{item[0]}")), enumerate(pods))
        )
    assert names(host) == {"lo", bridge_name} | {result.interfaces[1].name for result in found}
    assert len({ip.address for result in found for ip in result.ips}) == 16


def test_a_foreign_interface_of_that_name_is_left_alone(
    make_context, make_bridge, make_request, host, pod, bridge_name
):
    with Routes.of(host) as routes:
        mac = "02:00:00:00:00:0"
        routes.link_add_veth(LinkEnd(bridge_name, mac + "1"), LinkEnd("peer", mac + "2"), host.move_target)
    context = make_context(host)
    bridge = make_bridge(context=context)
    with pytest.raises(ForeignInterfaceError, match=bridge_name):
        bridge.add(make_request(pod))
    assert any(bridge_name in problem for problem in bridge.status())
    assert not bridge.remove_unused()
    assert names(host) == {"lo", bridge_name, "peer"}


def test_a_second_add_is_refused_and_harms_nothing(make_bridge, make_request, pod, make_namespace, ping):
    bridge, request = make_bridge(), make_request(pod)
    attached = replace(request, previous=bridge.add(request))
    with pytest.raises(AttachmentExistsError, match=attached.previous.interfaces[1].name):
        bridge.add(make_request(make_namespace()))
    with pytest.raises(AttachmentExistsError, match="eth0"):
        bridge.add(make_request(pod, "other"))
    bridge.check(attached)
    third = bridge.add(make_request(make_namespace(), "third"))
    assert attached.previous.ips[0].address not in {ip.address for ip in third.ips}, "it is still leased"


def test_a_pod_that_has_a_default_route_keeps_it(make_bridge, make_request, pod):
    bridge, request = make_bridge(), make_request(pod)
    attached = replace(request, previous=bridge.add(request))
    with pytest.raises(KernelError, match=r"default route via 10\.88\.0\.1 on interface net1"):
        bridge.add(make_request(pod, ifname="net1"))
    bridge.check(attached)
    assert names(pod) == {"lo", "eth0"}


def test_a_stack_that_is_gone_is_refused_with_its_reason(make_bridge, make_request, host, bridge_name):
    class Gone:
        move_target = 1 << 20

    bridge = make_bridge()
    with pytest.raises(KernelError, match=r"veth pair .* and eth0.*make the pod anew"):
        bridge.add(make_request(Gone()))
    with pytest.raises(ConfigurationError, match="no network stack"):
        bridge.add(make_request(None))
    assert names(host) == {"lo", bridge_name}


def test_it_works_on_the_machine_s_own_stack_too(
    make_context, make_bridge, make_request, pod, bridge_name, ping
):
    # Without a gateway: whether the machine forwards is not ours to decide.
    bridge = make_bridge(context=make_context(), isGateway=False, ipam={})
    request = make_request(pod)
    try:
        bridge.add(request)
        assert bridge_name in {name for _, name in socket.if_nameindex()}
        bridge.delete(request)
    finally:
        assert bridge.remove_unused()
    assert bridge_name not in {name for _, name in socket.if_nameindex()}


# -- what the host has of its own


def test_the_host_s_own_address_is_nobody_s_gateway(make_bridge, make_request, make_namespace, pod, host):
    host.command("ip", "link", "add", "up0", "type", "bridge")
    host.command("ip", "address", "add", "10.88.0.1/24", "dev", "up0")
    request = make_request(pod)
    with pytest.raises(ConfigurationError, match=r"10\.88\.0\.1 is the host's own .*/24 of interface up0"):
        make_bridge().add(request)
    assert names(host) == {"lo", "up0"}
    make_bridge(isGateway=False).add(request)


def test_two_bridges_cannot_be_one_gateway(
    make_bridge, attach, make_namespace, bridge_name, make_context, host
):
    context = make_context(host)
    attach(make_bridge(context=context), make_namespace(), "one")
    with pytest.raises(ConfigurationError, match=f"of interface {bridge_name}"):
        attach(make_bridge(context=context, bridge="another"), make_namespace(), "two")
    again = make_bridge(context=context)  # as after a restart
    attach(again, make_namespace(), "three")


@pytest.mark.parametrize("where", ["host", "pod"])
def test_ipv6_that_is_switched_off_is_told(make_bridge, make_request, host, pod, where, ipam):
    stack = {"host": host, "pod": pod}[where]
    stack.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    bridge, request = make_bridge(), make_request(pod)
    whose = {"host": "the node", "pod": "the pod"}[where]
    with pytest.raises(
        ConfigurationError, match=rf"IPv6 is switched off in {whose}, by sysctl .* set it to 0"
    ):
        bridge.add(request)
    four = {"type": "host-local", "subnet": "10.88.0.0/16"}
    assert bool(bridge.status()) is (where == "host")
    assert make_bridge(isGateway=False).status() == make_bridge(ipam=four).status() == []
    make_bridge(ipam=four).add(request)
    for name in ("all", "default"):
        stack.sysctl(f"net.ipv6.conf.{name}.disable_ipv6", "0")
    bridge.delete(request)
    assert bridge.status() == []
    bridge.add(request)
