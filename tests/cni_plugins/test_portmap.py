"""portmap over a recorder: what it asks of the kernel, and who has which port."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.errors import ClaimedError, ConfigurationError, KernelError, NotAttachedError
from cni_plugins.host_ports import POOL, Holder, HostPorts, Port
from cni_plugins.nat import PROTOCOLS, HostPort
from cni_plugins.runtime_config import PortMapping
from cni_plugins.types import Interface, IPConfig, Result

V4, V6 = ip_interface("10.1.0.5/24"), ip_interface("fd00::5/64")


def attached(*addresses, ifname="eth0"):
    """What a bridge plugin has made."""
    interfaces = (Interface("cni0"), Interface("veth1"), Interface(ifname, sandbox="/run/netns/pod"))
    return Result(interfaces, tuple(IPConfig(address, interface=2) for address in addresses))


@pytest.fixture
def portmap(make_context, make_plugin):
    """Make a portmap plugin on one ledger, of any network."""
    ledgers = []

    def make(network="pods", **settings):
        context = make_context(network=network, ledger=ledgers[0] if ledgers else None)
        ledgers.append(context.ledger)
        return make_plugin(context, "portmap", **settings)

    return make


@pytest.fixture
def request_for(make_request):
    def make(*mappings, owner="pod", addresses=(V4, V6), previous=None):
        previous = attached(*addresses) if previous is None else previous
        return make_request(None, owner, previous=previous, port_mappings=mappings)

    return make


def nat(plugin):
    return plugin._context.nat()


def claims(plugin):
    return plugin._context.ledger.claims(POOL)


def test_a_mapping_leads_to_the_first_address_of_each_family(portmap, request_for):
    plugin = portmap()
    request = request_for(
        PortMapping(8080, 80),
        PortMapping(53, 5353, "udp", ip_address("192.0.2.1")),
        addresses=(V6, V4, ip_interface("10.9.0.5/24"), ip_interface("fd09::5/64")),
    )
    assert plugin.add(request) is request.previous
    assert nat(plugin).ports == {
        "pod/eth0": (
            HostPort("tcp", 8080, V6, 80),
            HostPort("tcp", 8080, V4, 80),
            HostPort("udp", 53, V4, 5353, ip_address("192.0.2.1")),
        )
    }


def test_addresses_of_other_interfaces_are_not_the_pod_s(portmap, request_for):
    plugin = portmap()
    interfaces = (Interface("cni0"), Interface("eth9", sandbox="x"), Interface("eth0", sandbox="x"))
    ips = (
        IPConfig(ip_interface("10.0.0.1/24"), interface=0),
        IPConfig(ip_interface("10.0.0.2/24"), interface=1),
        IPConfig(V4, interface=2),
    )
    plugin.add(request_for(PortMapping(80, 80), previous=Result(interfaces, ips)))
    assert nat(plugin).ports == {"pod/eth0": (HostPort("tcp", 80, V4, 80),)}


def test_who_sees_whose_address(portmap, request_for):
    for settings, pod, everybody in (
        ({}, V4, False),
        ({"masqAll": True, "markMasqBit": 5, "backend": "nftables"}, V4, True),
        ({"snat": False, "masqAll": True}, ip_interface("10.1.0.5/32"), False),
    ):
        plugin = portmap(**settings)
        request = request_for(PortMapping(80, 80), addresses=(V4,))
        plugin.add(request)
        assert nat(plugin).ports["pod/eth0"] == (HostPort("tcp", 80, pod, 80, masquerade_all=everybody),)
        plugin.delete(request)


def test_without_mappings_nothing_is_asked_of_the_kernel(portmap, request_for):
    plugin = portmap()
    plugin._context = replace(plugin._context, nat=lambda: pytest.fail("asked for address translation"))
    request = request_for()
    assert plugin.add(request) is request.previous
    plugin.check(request)
    plugin.delete(request)
    assert not claims(plugin)


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        ((PortMapping(80, 80), PortMapping(80, 8080)), "80 tcp on 0.0.0.0.*80 tcp on 0.0.0.0"),
        (
            (PortMapping(80, 80), PortMapping(80, 80, host_ip=ip_address("192.0.2.1"))),
            "80 tcp on 192.0.2.1.*80 tcp on 0.0.0.0",
        ),
        (
            (PortMapping(80, 80, host_ip=ip_address("2001:db8::1")), PortMapping(80, 80)),
            "80 tcp on ::.*80 tcp on 2001:db8::1",
        ),
    ],
)
@pytest.mark.parametrize("network", ["pods", "others"])
def test_a_port_that_another_pod_has_names_that_one(portmap, request_for, mappings, message, network):
    first, second = mappings
    plugin, other = portmap(), portmap(network)
    plugin.add(request_for(first, owner="holder"))
    with pytest.raises(
        ClaimedError, match=f"host port {message} belongs to holder/eth0 of network pods"
    ) as caught:
        other.add(request_for(PortMapping(443, 443), second, owner="late"))
    assert f"wanted by late/eth0 of network {network}" in str(caught.value)
    assert "late/eth0" not in nat(other).ports
    assert not any("late" in holder for _, holder in claims(plugin))
    plugin.delete(request_for(first, owner="holder"))
    other.add(request_for(second, owner="late"))


def test_what_cannot_be_mistaken_for_each_other_does_not_conflict(portmap, request_for):
    plugin = portmap()
    mappings = [
        PortMapping(80, 80, "tcp", ip_address("192.0.2.1")),
        PortMapping(80, 80, "tcp", ip_address("192.0.2.2")),
        PortMapping(80, 80, "tcp", ip_address("2001:db8::1")),
        PortMapping(80, 80, "udp"),
        PortMapping(80, 80, "sctp"),
        PortMapping(81, 80, "tcp"),
    ]
    for number, mapping in enumerate(mappings):
        plugin.add(request_for(mapping, owner=f"pod{number}"))
    assert len(nat(plugin).ports) == len(mappings)


def test_two_pods_of_different_families_may_have_one_port(portmap, request_for):
    plugin = portmap()
    plugin.add(request_for(PortMapping(80, 80), owner="four", addresses=(V4,)))
    plugin.add(request_for(PortMapping(80, 80), owner="six", addresses=(V6,)))
    assert [value for value, _ in claims(plugin)] == ["80 tcp on 0.0.0.0", "80 tcp on ::"]


@pytest.mark.parametrize(("everything", "pod"), [("0.0.0.0", V4), ("::", V6)])
def test_every_address_of_one_family_opens_that_one(portmap, request_for, everything, pod):
    plugin = portmap()
    plugin.add(request_for(PortMapping(80, 8080, host_ip=ip_address(everything))))
    assert nat(plugin).ports == {"pod/eth0": (HostPort("tcp", 80, pod, 8080),)}
    assert [value for value, _ in claims(plugin)] == [f"80 tcp on {everything}"]


def test_every_address_of_one_family_does_not_conflict_with_the_other(portmap, request_for):
    plugin = portmap()
    plugin.add(request_for(PortMapping(80, 80, host_ip=ip_address("0.0.0.0")), owner="four"))
    plugin.add(request_for(PortMapping(80, 80, host_ip=ip_address("::")), owner="six"))
    with pytest.raises(ClaimedError, match="four/eth0"):
        plugin.add(request_for(PortMapping(80, 80, host_ip=ip_address("192.0.2.1")), owner="late"))
    with pytest.raises(ClaimedError, match=r"belongs to (four|six)/eth0"):
        plugin.add(request_for(PortMapping(80, 80), owner="late"))


def test_a_port_that_is_mapped_twice_is_named(portmap, request_for):
    plugin = portmap()
    with pytest.raises(
        ConfigurationError, match=r"80 tcp on 192\.0\.2\.1 and 80 tcp on 0\.0\.0\.0 is wanted twice"
    ):
        plugin.add(request_for(PortMapping(80, 80, host_ip=ip_address("192.0.2.1")), PortMapping(80, 81)))
    assert not claims(plugin)


def test_a_mapping_that_leads_nowhere_is_refused(portmap, request_for):
    plugin = portmap()
    with pytest.raises(ConfigurationError, match="80 tcp leads nowhere, as the pod has no IPv6 address"):
        plugin.add(request_for(PortMapping(80, 80, host_ip=ip_address("2001:db8::1")), addresses=(V4,)))
    with pytest.raises(ConfigurationError, match="80 tcp leads nowhere, as the pod has no IPv4 address"):
        plugin.add(request_for(PortMapping(80, 80, host_ip=ip_address("0.0.0.0")), addresses=(V6,)))
    with pytest.raises(ConfigurationError, match="the pod has no address"):
        plugin.add(request_for(PortMapping(80, 80), addresses=()))
    with pytest.raises(ConfigurationError, match="nothing comes before it"):
        plugin.add(request_for(previous=Result()))


def test_ports_that_the_kernel_refuses_are_nobody_s(portmap, request_for, monkeypatch):
    plugin = portmap()

    def refuse(*_):
        raise KernelError(12, "publish", "ports")

    with monkeypatch.context() as patch:
        patch.setattr(nat(plugin), "publish", refuse)
        with pytest.raises(KernelError):
            plugin.add(request_for(PortMapping(80, 80), owner="unlucky"))
    assert not claims(plugin)
    plugin.add(request_for(PortMapping(80, 80), owner="next"))


def test_adding_again_and_after_a_restart_is_the_same(portmap, request_for):
    request = request_for(PortMapping(80, 80))
    for plugin in (portmap(), portmap()):
        plugin._context.ledger._indexes.clear()
        plugin.add(request)
        plugin.add(request)
        plugin.check(request)
        with pytest.raises(ClaimedError, match="pod/eth0 of network pods"):
            plugin.add(request_for(PortMapping(80, 80), owner="other"))


def test_delete_closes_the_ports_and_cuts_the_connections_once(portmap, request_for):
    plugin = portmap()
    request = request_for(PortMapping(80, 80), PortMapping(81, 81))
    plugin.add(request)
    plugin.delete(request)
    assert nat(plugin).ports == {}
    assert nat(plugin).killed == [V4.ip, V6.ip]
    assert not claims(plugin)
    plugin.delete(request)
    assert nat(plugin).killed == [V4.ip, V6.ip]


def test_check_misses_a_port(portmap, request_for):
    plugin = portmap()
    plugin.add(request_for(PortMapping(80, 80)))
    with pytest.raises(
        NotAttachedError, match=r"pod/eth0 has not the host port 81 tcp on 0\.0\.0\.0, 81 tcp on ::"
    ):
        plugin.check(request_for(PortMapping(80, 80), PortMapping(81, 81)))


def test_check_asks_the_kernel(portmap, request_for):
    plugin = portmap()
    plugin.add(request_for(PortMapping(80, 80)))
    plugin.check(request_for(PortMapping(80, 80)))
    nat(plugin).lost = ["host port 80/tcp of pod/eth0"]
    with pytest.raises(
        NotAttachedError, match="has removed host port 80/tcp of pod/eth0; delete pod/eth0 and add"
    ):
        plugin.check(request_for(PortMapping(80, 80)))
    assert plugin.check(request_for()) is None, "it has no host port to lose"


def test_gc_opens_what_is_wanted_and_releases_the_rest_of_its_network(portmap, request_for):
    plugin, other = portmap(), portmap("others")
    live, quiet = request_for(PortMapping(80, 80), owner="live"), request_for(owner="quiet")
    plugin.add(live)
    plugin.add(request_for(PortMapping(81, 81), owner="dead"))
    other.add(request_for(PortMapping(82, 82), owner="live"))
    expected = {"live/eth0": nat(plugin).ports["live/eth0"]}
    nat(plugin).ports = {"stranger": ()}
    plugin.gc([live, quiet])
    assert nat(plugin).ports == expected
    assert {holder for _, holder in claims(plugin)} == {
        "live/eth0 of network pods",
        "live/eth0 of network others",
    }


def test_status_is_the_translation_s(portmap):
    plugin = portmap()
    nat(plugin).troubles = ["pf is off; turn it on"]
    assert plugin.status() == [], "nobody has a host port"
    HostPorts.of(plugin._context.ledger).claim(Holder("a/eth0", "pods"), [Port("tcp", 4, 80, None)])
    assert plugin.status() == ["pf is off; turn it on"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditionsV4": ["-s", "192.0.2.0/24"]}, "conditionsV4 is for iptables.*remove it"),
        ({"conditionsV6": ["-s", "2001:db8::/32"]}, "conditionsV6 is for iptables"),
        ({"externalSetMarkChain": "MARK", "markMasqBit": 3}, "exclude each other"),
        ({"markMasqBit": 32}, "from 0 to 31"),
        ({"snat": "yes"}, "true or false"),
    ],
)
def test_settings_that_cannot_work_are_refused(portmap, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        portmap(**settings)


@given(
    st.sampled_from(PROTOCOLS),
    st.integers(1, 65535),
    st.one_of(
        st.tuples(st.just(4), st.none() | st.ip_addresses(v=4)),
        st.tuples(st.just(6), st.none() | st.ip_addresses(v=6)),
    ),
)
def test_what_is_written_down_can_be_read(protocol, number, host):
    version, host_ip = host
    host_ip = None if host_ip is not None and host_ip.is_unspecified else host_ip
    port = Port(protocol, version, number, host_ip)
    assert Port.from_text(str(port)) == port
    holder = Holder(f"{protocol}/eth{number}", "of")
    assert Holder.from_text(str(holder)) == holder
