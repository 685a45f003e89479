"""What of the bridge needs no kernel: configuration, names, MACs, results, the public face."""

import json
import re
import sys
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cni_plugins
from cni_plugins import Bridge, BridgeConfig, ConfigurationError, Interface, IPConfig, Result, Route
from cni_plugins.bridge import _mac

V4, V6 = ip_network("10.88.0.0/16"), ip_network("fd00:88::/64")


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sixteen-letters-"},
        {"name": "a/b"},
        {"name": ""},
        {"interface_prefix": "toolong"},
        {"subnets": ()},
        {"subnets": (V4, ip_network("10.89.0.0/16"))},
        {"subnets": (ip_network("10.88.0.0/32"),)},
        {"gateways": (ip_address("10.90.0.1"),)},
        {"mtu": 1000},
        {"mtu": 70000},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(settings):
    with pytest.raises(ConfigurationError):
        BridgeConfig(**{"name": "pods0", "subnets": (V4, V6), **settings})


def test_the_gateway_is_the_first_address_unless_told_otherwise():
    config = BridgeConfig("pods0", (V4, V6), gateways=(ip_address("10.88.255.254"),))
    assert config.gateway_for(ip_interface("10.88.0.9/16")) == ip_address("10.88.255.254")
    assert config.gateway_for(ip_interface("fd00:88::9/64")) == ip_address("fd00:88::1")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: the driver for it")
@given(st.text(), st.text())
def test_host_interfaces_are_short_legal_and_each_attachment_s_own(one, two):
    bridge = Bridge(BridgeConfig("pods0", (V4,)))
    name = bridge.host_interface(one)
    assert re.fullmatch(r"pod[0-9a-f]{11}", name)
    assert name == bridge.host_interface(one)
    assert (name == bridge.host_interface(two)) == (one == two)


@given(st.text(), st.text())
def test_macs_are_unicast_local_and_each_end_s_own(bridge, attachment):
    host, pod = _mac("host", bridge, attachment), _mac("pod", bridge, attachment)
    assert host != pod
    for mac in (host, pod):
        assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac)
        assert int(mac[:2], 16) & 0b11 == 0b10


def test_a_result_has_the_specification_s_form():
    result = Result(
        interfaces=(Interface("pods0", "02:00:00:00:00:01"), Interface("eth0", "02:00:00:00:00:02", "abc")),
        ips=(
            IPConfig(ip_interface("10.88.0.2/16"), ip_address("10.88.0.1"), 0),
            IPConfig(ip_interface("::2/64")),
        ),
        routes=(Route(ip_network("0.0.0.0/0"), ip_address("10.88.0.1")), Route(ip_network("::/0"))),
    )
    assert json.loads(json.dumps(result.to_json())) == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "pods0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "abc"},
        ],
        "ips": [{"address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 0}, {"address": "::2/64"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}, {"dst": "::/0"}],
        "dns": {},
    }


def test_a_system_without_a_driver_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(ConfigurationError, match="no network driver for plan9"):
        Bridge(BridgeConfig("pods0", (V4,)))


def test_the_public_names_are_these():
    assert sorted(cni_plugins.__all__) == [
        "AddressInUseError",
        "AddressesExhaustedError",
        "Allocator",
        "AttachmentBrokenError",
        "AttachmentExistsError",
        "Bridge",
        "BridgeConfig",
        "ConfigurationError",
        "ForeignInterfaceError",
        "IPConfig",
        "Interface",
        "KernelError",
        "MalformedMessageError",
        "NetworkError",
        "NetworkStack",
        "NotAttachedError",
        "Result",
        "Route",
        "loopback",
    ]
    assert all(hasattr(cni_plugins, name) for name in cni_plugins.__all__)
