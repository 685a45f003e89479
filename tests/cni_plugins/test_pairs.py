"""What of the interface plugins needs no kernel: settings, names, MACs, routes."""

import re
import sys
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins import ConfigurationError, links
from cni_plugins.pair_names import Names, checked_mac, mac
from cni_plugins.pairs import gateway_routes
from cni_plugins.steps import all_of, undoing
from cni_plugins.types import IPConfig, OwnStack, Result, Route

words = st.text(max_size=30)


@pytest.fixture
def plugin(make_context, make_plugin):
    return lambda type_, **settings: make_plugin(make_context(links_=object()), type_, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"bridge": "sixteen-letters-"},
        {"bridge": "a/b"},
        {"interfacePrefix": "-"},
        {"interfacePrefix": "cafes"},
        {"mtu": 67},
        {"mtu": 70000},
        {"mtu": "1500"},
        {"isGateway": "yes"},
        {"hairpinMode": True, "promiscMode": True},
        {"vlan": 100},
        {"vlanTrunk": [{"id": 7}]},
        {"macspoofchk": True},
        {"disableContainerInterface": True},
        {"dns": {"nameservers": 7}},
    ],
)
def test_a_bridge_that_cannot_work_is_refused(plugin, settings):
    with pytest.raises(ConfigurationError, match=f"network pods: plugin bridge: {next(reversed(settings))} "):
        plugin("bridge", **settings)


def test_an_ipam_of_unknown_type_is_named(plugin):
    with pytest.raises(ConfigurationError, match="'dhcp' is not installed"):
        plugin("bridge", ipam={"type": "dhcp"})


def test_what_is_off_is_not_refused(plugin):
    plugin("bridge", vlan=0, vlanTrunk=[], macspoofchk=False, disableContainerInterface=False, mtu=0)


def test_ptp_needs_addresses(plugin):
    with pytest.raises(ConfigurationError, match="plugin ptp: ipam: type"):
        plugin("ptp")


@given(words, words)
def test_host_ends_are_short_legal_and_each_attachment_s_own(one, two):
    names = Names("pod", "network", "bridge cni0")
    name = names.host(one)
    assert re.fullmatch(r"pod[a-z2-7]{11}", name)
    assert names.has(name)
    assert name == names.host(one)
    assert (name == names.host(two)) == (one == two)


def test_networks_know_their_own_host_ends():
    names = [
        Names("pod", network, scope) for network in ("one", "two") for scope in ("bridge cni0", "bridge cni1")
    ]
    for mine in names:
        for other in names:
            assert other.has(mine.host("abc/eth0")) == (mine is other)
    assert not Names("pod", "one", "ptp").has("pods0")


def test_two_interfaces_of_one_pod_are_two():
    names = Names("pod", "one", "bridge cni0")
    assert names.host("abc/eth0") != names.host("abc/eth1")
    assert names.mac("pod", "abc/eth0") != names.mac("pod", "abc/eth1")


@given(words, words)
def test_macs_are_unicast_local_and_each_end_s_own(scope, owner):
    host, pod = mac("host", scope, owner), mac("pod", scope, owner)
    assert host != pod
    for one in (host, pod):
        assert checked_mac(one, "here") == one
        assert int(one[:2], 16) & 0b11 == 0b10


@pytest.mark.parametrize(
    "text", ["02:00:00:00:00", "01:00:5e:00:00:01", "00:00:00:00:00:00", "x", "02:00:00:00:00:0g"]
)
def test_a_mac_that_no_interface_can_have_is_refused(text):
    with pytest.raises(ConfigurationError, match="unicast"):
        checked_mac(text, "here")


def test_a_mac_is_read_in_either_notation():
    assert checked_mac("02-AB-00-00-00-01", "here") == "02:ab:00:00:00:01"


def test_routes_without_a_gateway_lead_to_the_first_of_their_family():
    four, six = ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")
    result = Result(
        ips=(
            IPConfig(ip_interface("10.0.0.2/24"), ip_address("10.0.0.1")),
            IPConfig(ip_interface("10.1.0.2/24"), ip_address("10.1.0.1")),
        ),
        routes=(Route(four, priority=7), Route(four, ip_address("10.1.0.9")), Route(six)),
    )
    assert gateway_routes(result) == [
        Route(four, ip_address("10.0.0.1"), priority=7),
        Route(four, ip_address("10.1.0.9")),
        Route(six),
    ]


def test_undoing_goes_backwards_and_only_after_a_failure():
    done = []
    with undoing() as undo:
        undo(lambda: done.append(1))
    assert done == []

    def fail():
        raise ConfigurationError("no way back")

    with pytest.raises(ValueError, match="first") as caught, undoing() as undo:
        for step in (lambda: done.append(1), fail, lambda: done.append(2)):
            undo(step)
        raise ValueError("first")
    assert done == [2, 1]
    assert caught.value.__notes__ == ["and the undo failed: no way back"]


def test_all_of_takes_every_step_and_tells_of_every_failure():
    done = []

    def fail(text):
        raise ConfigurationError(text)

    with pytest.raises(ConfigurationError, match="one") as caught:
        all_of([lambda: fail("one"), lambda: done.append(1), lambda: fail("two"), lambda: done.append(2)])
    assert done == [1, 2]
    assert caught.value.__notes__ == ["and two"]
    all_of([])


def test_a_system_without_a_driver_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(ConfigurationError, match="no network driver for plan9"):
        links.for_this_system(OwnStack())
