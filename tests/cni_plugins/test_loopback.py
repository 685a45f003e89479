"""The loopback plugin, in namespaces of our own."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from cni_plugins import AttachmentBrokenError, NotAttachedError, loopback, results
from cni_plugins.rtnetlink import Routes
from cni_plugins.types import Interface, Result

pytestmark = pytest.mark.node


@pytest.fixture
def plugin(make_context, make_plugin, host):
    return make_plugin(make_context(host), "loopback")


def test_it_comes_up_and_may_be_repeated(plugin, make_request, pod, talk):
    request = make_request(pod, ifname="lo", netns="/run/netns/here")
    for _ in range(2):
        result = plugin.add(request)
    assert results.to_json(result, "1.0.0") == {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/here"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}],
        "dns": {},
    }
    for address in ("127.0.0.1", "::1"):
        assert talk(pod, pod, ip_address(address)) == b"hello"
    plugin.check(replace(request, previous=result))


def test_what_came_before_is_the_result(plugin, make_request, pod):
    before = Result((Interface("eth0"),))
    assert plugin.add(make_request(pod, previous=before)) == before
    with Routes.of(pod) as routes:
        assert routes.link("lo").up


def test_it_stays_until_the_pod_ends(plugin, make_request, pod):
    plugin.add(make_request(pod))
    plugin.delete(make_request(pod))
    plugin.delete(make_request(None))
    with Routes.of(pod) as routes:
        assert routes.link("lo").up


def test_check_names_what_is_wrong(plugin, make_request, pod):
    request = make_request(pod, ifname="lo")
    result = plugin.add(request)
    pod.command("ip", "link", "set", "lo", "down")
    pod.command("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
    with pytest.raises(AttachmentBrokenError, match=r"lo is down; lo lacks address 127\.0\.0\.1/8"):
        plugin.check(replace(request, previous=result))
    with pytest.raises(NotAttachedError, match="no lo"):
        plugin.check(replace(request, stack=None, previous=result))


def test_a_runtime_may_do_without_the_plugin(pod):
    for _ in range(2):
        loopback.up(pod)
    with Routes.of(pod) as routes:
        assert set(routes.addresses("lo")) == {ip_interface("127.0.0.1/8"), ip_interface("::1/128")}
