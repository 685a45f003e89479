"""Results and capability arguments: there and back."""

import contextlib
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins import (
    DNS,
    ConfigurationError,
    Interface,
    IPConfig,
    PortMapping,
    Result,
    Route,
    RuntimeConfig,
    results,
)
from cni_plugins.errors import MalformedResultError
from cni_plugins.runtime_config import CAPABILITIES, Bandwidth
from cni_plugins.types import CNI_VERSIONS

RESULT = Result(
    interfaces=(
        Interface("br0", "02:00:00:00:00:01"),
        Interface("eth0", "02:00:00:00:00:02", "/ns", mtu=1450),
    ),
    ips=(
        IPConfig(ip_interface("10.0.0.2/24"), ip_address("10.0.0.1"), 1),
        IPConfig(ip_interface("fd00::2/64"), None, None),
    ),
    routes=(
        Route(ip_network("0.0.0.0/0"), ip_address("10.0.0.1"), mtu=1400, priority=100),
        Route(ip_network("fd01::/16")),
    ),
    dns=DNS(("10.96.0.10",), "example", ("a", "b"), ("ndots:5",)),
)


def test_the_form_of_the_latest_version() -> None:
    assert results.to_json(RESULT) == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/ns"},
        ],
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1}, {"address": "fd00::2/64"}],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400, "priority": 100},
            {"dst": "fd01::/16"},
        ],
        "dns": {
            "nameservers": ["10.96.0.10"],
            "domain": "example",
            "search": ["a", "b"],
            "options": ["ndots:5"],
        },
    }


def test_earlier_versions_have_less_or_more_to_say() -> None:
    old = results.to_json(RESULT, "0.4.0")
    assert [ip["version"] for ip in old["ips"]] == ["4", "6"]
    assert old["routes"][0] == {"dst": "0.0.0.0/0", "gw": "10.0.0.1"}
    assert "mtu" not in old["interfaces"][1]
    assert results.to_json(Result(), "1.0.0") == {"cniVersion": "1.0.0", "dns": {}}


def test_the_latest_version_loses_nothing() -> None:
    assert results.from_json(results.to_json(RESULT)) == RESULT
    for version in CNI_VERSIONS[2:]:
        assert results.from_json(results.to_json(RESULT, version)).ips == RESULT.ips


FLAT = {
    "ip4": {
        "ip": "10.0.0.2/24",
        "gateway": "10.0.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
    },
    "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "fd01::/16"}]},
    "dns": results.to_json(RESULT)["dns"],
}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_first_versions_had_an_address_per_family(version) -> None:
    second = IPConfig(ip_interface("10.0.0.3/24"))
    told = results.to_json(replace(RESULT, ips=(*RESULT.ips, second)), version)
    assert told == {"cniVersion": version, **FLAT}
    read = results.from_json(told)
    assert [ip.address for ip in read.ips] == [ip.address for ip in RESULT.ips]
    assert [route.dst for route in read.routes] == [route.dst for route in RESULT.routes]
    assert (read.dns, read.interfaces) == (RESULT.dns, ())
    assert results.from_json(FLAT) == read  # plugins of that time did not always say the version
    assert results.to_json(Result(), version) == {"cniVersion": version, "dns": {}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["ips", "ip4", "ip6", "interfaces", "routes", "dns", "address", "ip", "name", "dst"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["ips", "ip4", "interfaces", "routes", "dns"]), json_values))
def test_any_json_is_a_result_or_the_typed_error(told) -> None:
    with contextlib.suppress(MalformedResultError):
        read = results.from_json(told)
        assert results.from_json(results.to_json(read)) == read


@pytest.mark.parametrize(
    "told",
    [
        {"ips": [{"address": "10.0.0"}]},
        {"ips": [{}]},
        {"interfaces": ["eth0"]},
        {"routes": [{"dst": "x"}]},
        {"ips": 7},
        {"ips": [{"address": 5}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": -1}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": "0"}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": True}]},
        {"ips": [{"address": "10.0.0.2/24", "gateway": 1}]},
        {"ip4": {"gateway": "10.0.0.1"}},
        {"ip4": "10.0.0.2/24"},
        {"interfaces": [{"name": "x" * 16}]},
        {"interfaces": [{"name": ""}]},
        {"interfaces": [{"name": "é" * 8}]},
        {"interfaces": [{"name": "a/b"}]},
        {"interfaces": [{"name": "eth0", "mac": 5}]},
        {"interfaces": [{"name": "eth0", "mtu": 1 << 32}]},
        {"routes": [{"dst": "0.0.0.0/0", "mtu": 1e3}]},
        {"routes": [{"dst": "0.0.0.0/0", "priority": 1 << 64}]},
        {"routes": {"dst": "0.0.0.0/0"}},
        {"dns": ["10.0.0.1"]},
        {"dns": {"nameservers": ["10.0.0.1\nsearch evil"]}},
        {"dns": {"nameservers": [1]}},
        {"dns": {"search": "example"}},
        {"dns": {"domain": "a b"}},
    ],
)
def test_what_is_no_result_is_the_typed_error(told) -> None:
    with pytest.raises(MalformedResultError):
        results.from_json(told)


RUNTIME = RuntimeConfig(
    port_mappings=(PortMapping(8080, 80), PortMapping(53, 5353, "udp", ip_address("192.0.2.1"))),
    bandwidth=Bandwidth(1000, 2000, 0, 0),
    ips=(ip_interface("10.0.0.7/24"), ip_address("fd00::7")),
    mac="02:00:00:00:00:07",
    dns=DNS(("10.96.0.10",), search=("a",)),
    ip_ranges=(({"subnet": "10.0.0.0/24"},),),
)


def test_capability_arguments_have_the_conventions_form() -> None:
    told = RUNTIME.to_json()
    assert told["portMappings"][0] == {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    assert told["dns"] == {"servers": ["10.96.0.10"], "searches": ["a"]}
    assert set(told) == CAPABILITIES
    assert RuntimeConfig.from_json(told) == RUNTIME


def test_a_plugin_gets_what_it_declares() -> None:
    assert RUNTIME.only({"mac", "unknown"}) == RuntimeConfig(mac=RUNTIME.mac)


@pytest.mark.parametrize(
    ("told", "host_ip"),
    [("0.0.0.0", ip_address("0.0.0.0")), ("::", ip_address("::")), ("", None), (None, None)],
)
def test_every_address_of_a_family_is_not_every_address(told, host_ip) -> None:
    port = {"hostPort": 1, "containerPort": 1, "protocol": "TCP", "hostIP": told}
    read = RuntimeConfig.from_json({"portMappings": [port]})
    assert read.port_mappings == (PortMapping(1, 1, host_ip=host_ip),)
    assert RuntimeConfig.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    ("host_ip", "reason"),
    [
        ("::1", "give 127.0.0.1, or none"),
        ("ff02::1", "more than one host"),
        ("224.0.0.1", "more than one host"),
        ("255.255.255.255", "more than one host"),
        ("::ffff:192.0.2.1", "give 192.0.2.1"),
        ("fe80::1%eth0", "without the %"),
    ],
)
def test_addresses_that_no_host_port_can_have_are_refused(host_ip, reason) -> None:
    port = {"hostPort": 80, "containerPort": 1, "hostIP": host_ip}
    told = ip_address(host_ip)
    with pytest.raises(
        ConfigurationError, match=f"portMappings.*hostIP {told} of host port 80 tcp: .*{reason}"
    ):
        RuntimeConfig.from_json({"portMappings": [port]})
    with pytest.raises(ConfigurationError, match=f"hostIP {told}"):
        PortMapping(80, 1, host_ip=told)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("portMappings", [{"hostPort": 0, "containerPort": 1}]),
        ("portMappings", [{"hostPort": 1, "containerPort": 65536}]),
        ("portMappings", [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
        ("portMappings", [{"hostPort": 1, "containerPort": 1, "hostIP": "here"}]),
        ("bandwidth", {"ingressRate": -1}),
        ("bandwidth", {"egressBurst": 1 << 63}),
        ("ips", ["10.0.0.999"]),
        ("dns", "1.1.1.1"),
    ],
)
def test_arguments_that_cannot_be_are_named(key, value) -> None:
    with pytest.raises(ConfigurationError, match=key):
        RuntimeConfig.from_json({key: value})


@given(
    st.dictionaries(
        st.sampled_from(sorted(CAPABILITIES)), st.text() | st.integers() | st.lists(st.integers() | st.text())
    )
)
def test_any_json_is_arguments_or_the_typed_error(told) -> None:
    with contextlib.suppress(ConfigurationError):
        RuntimeConfig.from_json(told)
