"""host-local and static, without an interface: the same leases, the same errors, and the differences that are meant."""

import random
from ipaddress import ip_address

import pytest

pytestmark = pytest.mark.node


def ipam(type_="host-local", *, top=None, **settings):
    """A network whose first plugin has this for its `ipam`."""
    capabilities = {"ips": True, "ipRanges": True}
    plugin = {
        "type": "bridge",
        "capabilities": capabilities,
        "ipam": {"type": type_, **settings},
        **(top or {}),
    }
    return {"name": "net", "cniVersion": "1.0.0", "plugins": [plugin]}


BOTH = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
STATIC = {
    "type_": "static",
    "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
}


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"subnet": "10.1.0.0/24"}, {}),
        ({"subnet": "10.1.0.0/30"}, {}),
        ({"subnet": "fd00::/126"}, {}),
        ({"subnet": "fd00::/16", "rangeStart": "fd00::ffff:ffff:ffff:ffff"}, {}),
        (
            {
                "subnet": "10.1.0.0/16",
                "rangeStart": "10.1.0.255",
                "rangeEnd": "10.1.1.1",
                "gateway": "10.1.9.9",
            },
            {},
        ),
        ({"subnet": "10.1.0.0/24", "gateway": "169.254.1.1"}, {}),
        ({"subnet": "10.1.0.0/24", "gateway": "10.1.0.2", "rangeStart": "10.1.0.2"}, {}),
        ({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]]}, {}),
        (
            {
                **BOTH,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.0.9"}, {"dst": "::/0"}],
            },
            {},
        ),
        ({**BOTH, "resolvConf": "RESOLV"}, {}),
        (BOTH, {"runtime": {"ips": ["fd00::9", "10.1.0.7/16"]}}),
        (BOTH, {"args": "IP=10.1.0.7"}),
        (BOTH, {"runtime": {"ips": ["fd00::9"]}, "args": "IP=10.1.0.7;IgnoreUnknown=1;K8S_POD_NAME=x"}),
        ({**BOTH, "top": {"args": {"cni": {"ips": ["10.1.0.66"]}}}}, {}),
        (
            {"subnet": "10.1.0.0/24"},
            {"runtime": {"ipRanges": [[{"subnet": "10.3.0.0/24"}], [{"subnet": "fd00::/64"}]]}},
        ),
        ({}, {"runtime": {"ipRanges": [[{"subnet": "10.3.0.0/24", "gateway": "10.3.0.2"}]]}}),
        (STATIC, {}),
        (STATIC, {"args": "IP=10.2.0.5/24,fd01::5/64;GATEWAY=10.2.0.1,fd00::1"}),
        (STATIC, {"runtime": {"ips": ["10.3.0.5/24"]}, "args": "IP=10.2.0.5/24"}),
        ({**STATIC, "top": {"args": {"cni": {"ips": ["10.4.0.5/24"]}}}}, {}),
        (
            {**STATIC, "top": {"args": {"cni": {"ips": ["10.4.0.5/24"]}}}},
            {"runtime": {"ips": ["10.3.0.5/24"]}},
        ),
        (
            {
                **STATIC,
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}, {"dst": "::/0"}],
                "dns": {"search": ["a", "b"]},
            },
            {},
        ),
        ({"type_": "static"}, {}),
    ],
)
def test_the_same_addresses(reference, ours, with_resolv_conf, settings, arguments):
    network = with_resolv_conf(ipam(**settings))
    first = reference.lease(network, "a", **arguments)
    assert ours.lease(network, "a", **arguments) == first


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, {}),
        ({"ranges": [[]]}, {}),
        ({"subnet": "10.1.0.3/24"}, {}),
        ({"subnet": "10.1.0.0/32"}, {}),
        ({"subnet": "::ffff:10.1.0.0/120"}, {}),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.1.1"}, {}),
        ({"subnet": "10.1.0.0/24", "rangeEnd": "10.1.1.1"}, {}),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}, {}),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}, {}),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]}, {}),
        ({"subnet": "10.1.0.0/24", "rangeStart": "nonsense"}, {}),
        ({"subnet": "10.1.0.0/24", "resolvConf": "/nowhere"}, {}),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "nonsense"}]}, {}),
        (BOTH, {"args": "IP=10.1.0.1"}),
        (BOTH, {"args": "IP=10.9.0.1"}),
        (BOTH, {"runtime": {"ips": ["10.1.0.7", "10.1.0.8"]}}),
        (BOTH, {"runtime": {"ipRanges": [[{"subnet": "10.1.0.0/28"}]]}}),
        ({"type_": "static", "addresses": [{"address": "10.1.0.5"}]}, {}),
        ({"type_": "static", "addresses": [{"address": "nonsense/24"}]}, {}),
        (STATIC, {"args": "IP=10.2.0.5"}),
        (STATIC, {"args": "IP=10.2.0.5/24;GATEWAY=nonsense"}),
        (STATIC, {"runtime": {"ips": ["10.2.0.5"]}}),
    ],
)
def test_the_same_refusals(reference, ours, settings, arguments):
    network = ipam(**settings)
    with pytest.raises(reference.error):
        reference.lease(network, "a", **arguments)
    with pytest.raises(ours.error):
        ours.lease(network, "a", **arguments)


STRICTER = {
    "the network's own address is no host's": {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.0"},
    "nor is the broadcast address": {"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.255"},
    "every router has the first address of an IPv6 subnet": {"subnet": "fd00::/64", "rangeStart": "fd00::"},
    "packets do not cross families": {"subnet": "10.1.0.0/24", "gateway": "fd00::1"},
    "nor do routes": {"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]},
}


@pytest.mark.parametrize("settings", STRICTER.values(), ids=STRICTER)
def test_what_only_we_refuse(reference, ours, settings):
    reference.lease(ipam(**settings), "a")
    with pytest.raises(ours.error):
        ours.lease(ipam(**settings), "a")


LAXER = {
    "two addresses are enough for a gateway and a pod (RFC 3021)": (
        {"subnet": "10.1.0.0/31"},
        {},
        "10.1.0.1/31",
    ),
    "the same in IPv6 (RFC 6164)": ({"subnet": "fd00::/127"}, {}, "fd00::1/127"),
    "words of CNI_ARGS for others are no error": (BOTH, {"args": "K8S_POD_NAME=x"}, "10.1.0.2/24"),
}


@pytest.mark.parametrize(("settings", "arguments", "address"), LAXER.values(), ids=LAXER)
def test_what_only_the_reference_refuses(reference, ours, settings, arguments, address):
    with pytest.raises(reference.error):
        reference.lease(ipam(**settings), "a", **arguments)
    assert ours.lease(ipam(**settings), "a", **arguments)["ips"][0]["address"] == address


def test_an_add_is_repeated_as_after_a_crash_which_the_reference_refuses(reference, ours):
    first = reference.lease(ipam(**BOTH), "a")
    with pytest.raises(reference.error, match="duplicate"):
        reference.lease(ipam(**BOTH), "a")
    assert ours.lease(ipam(**BOTH), "a") == ours.lease(ipam(**BOTH), "a") == first


def test_host_bits_of_a_route_go_which_the_kernel_would_refuse(reference, ours):
    network = ipam(subnet="10.1.0.0/24", routes=[{"dst": "10.9.9.9/8"}])
    assert reference.lease(network, "a")["routes"] == [{"dst": "10.9.9.9/8"}]
    assert ours.lease(network, "a")["routes"] == [{"dst": "10.0.0.0/8"}]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_round(reference, ours, seed):
    """Any sequence of ADD and DEL gets the same addresses, and finds the ranges full at the same time."""
    chance = random.Random(seed)  # reproducible
    network = ipam(
        ranges=[
            [
                {"subnet": "10.2.0.0/29", "gateway": "10.2.0.3"},
                {"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.4"},
            ],
            [{"subnet": "fd00::/125", "rangeStart": "fd00::2"}],
        ]
    )
    there = set()
    for _ in range(60):
        pod = chance.choice("abcdefghijkl")
        if pod in there:
            reference.release(network, pod)
            ours.release(network, pod)
            there.discard(pod)
            continue
        arguments = (
            {"args": f"IP={ip_address('10.1.0.1') + chance.randrange(4)}"} if chance.random() < 0.2 else {}
        )
        try:
            expected = reference.lease(network, pod, **arguments)
        except reference.error:
            with pytest.raises(ours.error):
                ours.lease(network, pod, **arguments)
        else:
            assert ours.lease(network, pod, **arguments) == expected
            there.add(pod)
