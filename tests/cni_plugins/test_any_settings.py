"""Plugins of any settings: made, or refused with the typed error that names them."""

from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_plugins import ConfigurationError, registry
from cni_plugins.plugin import Plugin
from cni_plugins.settings import Settings

KEYS = {
    "bridge": [
        "bridge",
        "isGateway",
        "isDefaultGateway",
        "forceAddress",
        "hairpinMode",
        "promiscMode",
        "vlan",
        "mtu",
    ],
    "ptp": ["ipMasq", "mtu", "interfacePrefix", "isDefaultGateway"],
    "host-local": ["ipam"],
    "static": ["addresses", "routes", "dns"],
    "portmap": ["snat", "backend", "masqAll", "markMasqBit", "conditionsV4", "externalSetMarkChain"],
    "masquerade": ["subnets", "cluster", "except"],
    "bandwidth": [
        "ingressRate",
        "ingressBurst",
        "egressRate",
        "egressBurst",
        "unshapedSubnets",
        "shapedSubnets",
    ],
    "tuning": ["sysctl", "mac", "mtu", "promisc", "allmulti", "txQLen", "args"],
    "loopback": ["x"],
}
WORDS = [
    "type", "ipam", "subnet", "ranges", "rangeStart", "rangeEnd", "gateway", "routes", "dst", "gw", "mtu", "dns",
    "nameservers", "addresses", "address", "capabilities", "args", "cni", "mac", "exclude",
]  # fmt: skip
texts = st.text(max_size=6) | st.sampled_from(
    [
        "host-local",
        "static",
        "10.88.0.0/16",
        "10.88.0.1",
        "fd00::/64",
        "eth0",
        "net.ipv4.x",
        "a" * 20,
        "\ud800",
        "\0",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | texts, inner, max_size=4)
    ),
    max_leaves=12,
)


class NoLinks:
    """Nothing is asked of a system before a plugin is used."""

    untunable: ClassVar[dict[str, str]] = {}
    unshared = frozenset({6})


@pytest.mark.parametrize("type_", sorted(KEYS))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_settings_are_a_plugin_or_the_typed_error(
    make_context: Any, type_: str, data: st.DataObject
) -> None:
    told = data.draw(st.dictionaries(st.sampled_from([*KEYS[type_], *WORDS]), values, max_size=6))
    context = make_context(links_=NoLinks())
    try:
        made = registry.find(type_)(Settings({**told, "type": type_}, "network pods: plugin"), context)
    except ConfigurationError as error:
        str(error).encode()  # as whoever logs it
        return
    assert isinstance(made, Plugin)
