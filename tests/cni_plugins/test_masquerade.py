"""masquerade over a recorder: whose addresses become the node's, and on the way to where they do not."""

from ipaddress import ip_interface, ip_network

import pytest

from cni_plugins.errors import ConfigurationError
from cni_plugins.masquerading import Masquerading, refuse_two
from cni_plugins.nat import Masquerade
from cni_plugins.settings import Settings
from cni_plugins.types import Interface, IPConfig, Result

V4, V6 = ip_interface("10.1.0.5/24"), ip_interface("fd00::5/64")
BOTH = Result((Interface("eth0", sandbox="x"),), (IPConfig(V4, interface=0), IPConfig(V6, interface=0)))
MULTICAST = [ip_network("224.0.0.0/4"), ip_network("ff00::/8")]


@pytest.fixture
def context(make_context):
    return make_context()


@pytest.fixture
def masquerade(make_plugin, context):
    return lambda **settings: make_plugin(context, "masquerade", **settings)


def test_the_exceptions_include_the_pod_s_own_subnets(masquerade, context, make_request):
    plugin = masquerade(nonMasqueradeCIDRs=["10.0.0.0/8", "fd00::/8", "10.1.0.0/24"])
    assert plugin.add(make_request(None, previous=BOTH)) is BOTH
    found = context.nat().masquerades["pod/eth0"]
    assert found.addresses == (V4.ip, V6.ip)
    wanted = [V4.network, V6.network, *MULTICAST, ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert list(found.exceptions) == wanted


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ipv6": False}, Masquerade((V4.ip,), (V4.network, MULTICAST[0]))),
        ({"ipv4": False}, Masquerade((V6.ip,), (V6.network, MULTICAST[1]))),
        ({"ipv4": False, "ipv6": False}, None),
    ],
)
def test_a_family_can_be_left_alone(masquerade, context, make_request, settings, expected):
    plugin = masquerade(**settings)
    plugin.add(make_request(None, previous=BOTH))
    assert context.nat().masquerades.get("pod/eth0") == expected


def test_addresses_of_the_node_are_not_translated(context, make_request):
    result = Result(
        (Interface("cni0"), Interface("eth0", sandbox="x")),
        (IPConfig(ip_interface("10.1.0.1/24"), interface=0), IPConfig(V4, interface=1)),
    )
    Masquerading(context).add(make_request(None), result)
    assert context.nat().masquerades["pod/eth0"].addresses == (V4.ip,)


def test_delete_stops_and_cuts_the_connections(masquerade, context, make_request):
    plugin = masquerade()
    plugin.add(make_request(None, previous=BOTH))
    plugin.delete(make_request(None, previous=BOTH))
    assert context.nat().masquerades == {}
    assert context.nat().killed == [V4.ip, V6.ip]
    plugin.delete(make_request(None))


def test_gc_translates_those_who_are_there(masquerade, context, make_request):
    plugin = masquerade()
    plugin.add(make_request(None, "live", previous=BOTH))
    expected = dict(context.nat().masquerades)
    context.nat().masquerades = {"dead/eth0": None}
    plugin.gc([make_request(None, "live", previous=BOTH), make_request(None, "half")])
    assert context.nat().masquerades == expected
    context.nat().troubles = ["no anchor"]
    assert plugin.status() == ["no anchor"]


def test_settings_that_cannot_work_are_refused(masquerade, make_request):
    with pytest.raises(ConfigurationError, match="nonMasqueradeCIDRs"):
        masquerade(nonMasqueradeCIDRs=["everywhere"])
    with pytest.raises(ConfigurationError, match="no address yet"):
        masquerade().add(make_request(None))


def test_a_list_masquerades_once():
    bridge = Settings({"type": "bridge", "ipMasq": True}, "plugin bridge")
    plain = Settings({"type": "bridge"}, "plugin bridge")
    ours = Settings({"type": "masquerade"}, "plugin masquerade")
    refuse_two([plain, ours])
    refuse_two([bridge])
    with pytest.raises(ConfigurationError, match="plugin masquerade and plugin bridge both masquerade"):
        refuse_two([bridge, ours])
