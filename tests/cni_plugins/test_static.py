"""static: where its addresses come from, and which of them count."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_plugins.errors import AttachmentBrokenError, ConfigurationError
from cni_plugins.settings import Settings
from cni_plugins.types import DNS, IPConfig, Result, Route

ADDRESSES = [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}]


@pytest.fixture
def static(make_context, make_plugin):
    return lambda **settings: make_plugin(make_context(), "static", **settings)


def test_the_configuration_s_addresses_in_their_order(static, make_request):
    plugin = static(
        addresses=ADDRESSES,
        routes=[{"dst": "::/0"}],
        dns={"nameservers": ["10.1.0.1"], "domain": "d.example", "search": ["s.example"], "options": ["o"]},
    )
    assert plugin.add(make_request(None)) == Result(
        ips=(
            IPConfig(ip_interface("10.1.0.5/24"), ip_address("10.1.0.1")),
            IPConfig(ip_interface("fd00::5/64")),
        ),
        routes=(Route(ip_network("::/0")),),
        dns=DNS(("10.1.0.1",), "d.example", ("s.example",), ("o",)),
    )


def test_the_environment_adds_addresses_and_gateways(static, make_request):
    args = {"IP": "10.2.0.5/24, fd01::5/64", "GATEWAY": "10.1.0.9,10.2.0.1"}
    result = static(addresses=ADDRESSES).add(make_request(None, args=args))
    assert [(str(ip.address), str(ip.gateway)) for ip in result.ips] == [
        ("10.1.0.5/24", "10.1.0.1"),
        ("fd00::5/64", "None"),
        ("10.2.0.5/24", "10.2.0.1"),
        ("fd01::5/64", "None"),
    ]


def test_the_capability_comes_instead(static, make_request, make_context):
    request = make_request(None, ips=(ip_interface("10.3.0.5/24"),), args={"IP": "10.2.0.5/24"})
    assert static(addresses=ADDRESSES).add(request).ips == (IPConfig(ip_interface("10.3.0.5/24")),)
    whole = Settings(
        {"ipam": {"type": "static", "addresses": ADDRESSES}, "args": {"cni": {"ips": ["10.4.0.5/24"]}}}, "x"
    )
    plugin = make_context().delegate(whole.part("ipam"))
    assert plugin.add(make_request(None)).ips == (IPConfig(ip_interface("10.4.0.5/24")),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"addresses": [{"address": "10.1.0.5"}]}, "'10.1.0.5' is no address with a prefix"),
        ({"addresses": [{}]}, "'' is no address"),
        ({"addresses": [{"address": "10.1.0.5/24", "gateway": "fd00::1"}]}, "gateway.*IPv4"),
        ({"dns": {"search": 7}}, "dns"),
    ],
)
def test_settings_that_cannot_work_are_refused(static, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        static(**settings)


@pytest.mark.parametrize(
    "words",
    [
        {"ips": (ip_address("10.1.0.5"),)},
        {"args": {"IP": "10.1.0.5"}},
        {"args": {"GATEWAY": "x"}},
    ],
)
def test_arguments_that_cannot_work_are_refused(static, make_request, words):
    with pytest.raises(ConfigurationError, match=r"10\.1\.0\.5|GATEWAY"):
        static(addresses=ADDRESSES).add(make_request(None, **words))


def test_check_misses_an_address(static, make_request):
    plugin = static(addresses=ADDRESSES)
    result = plugin.add(make_request(None))
    plugin.check(make_request(None, previous=result))
    with pytest.raises(AttachmentBrokenError, match="lacks fd00::5/64;"):
        plugin.check(make_request(None, previous=Result(ips=result.ips[:1])))
    plugin.delete(make_request(None))
