"""masquerade over a recorder: whose addresses become the node's, and on the way to where they do not."""

from dataclasses import replace
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


OTHER4, OTHER6 = ip_interface("10.2.0.5/24"), ip_interface("fd01::5/64")
OTHERS = Result(
    (Interface("eth0", sandbox="x"),), (IPConfig(OTHER4, interface=0), IPConfig(OTHER6, interface=0))
)


def test_pods_of_one_network_are_not_translated_for_each_other(masquerade, context, make_request):
    """As while a network's configuration changes: pods of the old subnets are there with those of the new ones."""
    old, new = masquerade(nonMasqueradeCIDRs=["10.99.0.0/16"]), masquerade(ipv6=False)
    old.add(make_request(None, "old", previous=BOTH))
    new.add(make_request(None, "new", previous=OTHERS))
    found = dict(context.nat().masquerades)
    assert found["old/eth0"] == Masquerade(
        (V4.ip, V6.ip),
        (V4.network, V6.network, *MULTICAST, ip_network("10.99.0.0/16"), OTHER4.network, OTHER6.network),
    )
    assert found["new/eth0"] == Masquerade((OTHER4.ip,), (OTHER4.network, MULTICAST[0], V4.network))
    new.add(make_request(None, "newer", previous=OTHERS))
    assert context.nat().masquerades["old/eth0"] == found["old/eth0"]
    old.delete(make_request(None, "old", previous=BOTH))
    assert "old/eth0" not in context.nat().masquerades
    # Without the old one nobody needs its exceptions.
    new.gc([make_request(None, "new", previous=OTHERS)])
    assert context.nat().masquerades == {"new/eth0": Masquerade((OTHER4.ip,), (OTHER4.network, MULTICAST[0]))}


def test_gc_of_each_configuration_knows_the_other_s_pods(make_context, make_plugin, make_request):
    context = make_context()
    one, other = (make_plugin(context, "masquerade", ipv6=six) for six in (False, True))
    requests = [make_request(None, "a", previous=BOTH), make_request(None, "b", previous=OTHERS)]
    one.gc([requests[0], replace(requests[1], ours=False)])
    assert context.nat().masquerades == {
        "a/eth0": Masquerade((V4.ip,), (V4.network, MULTICAST[0], OTHER4.network))
    }
    other.gc([replace(requests[0], ours=False), requests[1]])
    assert context.nat().masquerades == {
        "b/eth0": Masquerade(
            (OTHER4.ip, OTHER6.ip), (OTHER4.network, OTHER6.network, *MULTICAST, V4.network, V6.network)
        )
    }
    # What each has said of its own the other's gc has not made it forget.
    third = Result((), (IPConfig(ip_interface("10.3.0.5/24")),))
    one.add(make_request(None, "c", previous=third))
    assert ip_network("10.3.0.0/24") in context.nat().masquerades["a/eth0"].exceptions
    assert ip_network("10.3.0.0/24") in context.nat().masquerades["b/eth0"].exceptions


def test_a_subnet_that_comes_while_a_pod_is_being_added_is_not_missed(
    make_context, make_plugin, make_request
):
    nat = make_context().nat()
    plugin = make_plugin(make_context(nat=nat), "masquerade")
    masquerade = nat.masquerade

    def as_another_thread_comes_first(owner, wanted):
        nat.masquerade = masquerade
        plugin.add(make_request(None, "quick", previous=OTHERS))
        masquerade(owner, wanted)

    nat.masquerade = as_another_thread_comes_first
    plugin.add(make_request(None, "slow", previous=BOTH))
    assert {OTHER4.network, OTHER6.network} <= set(nat.masquerades["slow/eth0"].exceptions)
    assert {V4.network, V6.network} <= set(nat.masquerades["quick/eth0"].exceptions)


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
