"""The tuning plugin: on Linux with real namespaces, and what of it needs no kernel."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import ClassVar

import pytest

from cni_plugins.errors import (
    AttachmentBrokenError,
    ConfigurationError,
    KernelError,
    NotAttachedError,
)
from cni_plugins.links import Pair, Tuning
from cni_plugins.types import Interface, IPConfig, OwnStack, Result

MAC = "02:00:00:00:00:55"
FIRST, SECOND = "02:00:00:00:00:01", "02:00:00:00:00:02"
RESULT = Result(
    interfaces=(Interface("host0", FIRST), Interface("eth0", SECOND, "/run/netns/pod", 1500)),
    ips=(IPConfig(ip_interface("10.9.0.2/24"), ip_address("10.9.0.1"), 1),),
)


class Untunable:
    """Links of a system that has no queues."""

    untunable: ClassVar = {"tx_queue_length": "there are no queues here"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sysctl": {"kernel.shmmax": "1"}}, "kernel.shmmax"),
        ({"sysctl": {"net.": "1"}}, "'net.'"),
        ({"sysctl": {"net/../kernel/hostname": "x"}}, "net/../kernel/hostname"),
        ({"sysctl": {"net.ipv4.conf.all.arp_filter": 1}}, "strings"),
        ({"sysctl": []}, "an object"),
        ({"mac": "01:00:5e:00:00:01"}, "01:00:5e:00:00:01"),
        ({"mac": "2"}, "'2'"),
        ({"mtu": -1}, "mtu"),
        ({"promisc": "yes"}, "promisc"),
        ({"txQLen": 10}, "txQLen: there are no queues here"),
        ({"args": {"cni": {"txQLen": 10}}}, "txQLen: there are no queues here"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_context, make_plugin, settings, message):
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        make_plugin(make_context(links_=Untunable()), "tuning", **settings)


def test_something_must_come_before_it(make_context, make_plugin, make_request):
    plugin = make_plugin(make_context(links_=Untunable()), "tuning", mtu=1400)
    with pytest.raises(ConfigurationError, match="nothing comes before"):
        plugin.add(make_request(OwnStack()))


class Attached:
    """A pod with an eth0 whose other end is host0, and a plugin's view of it."""

    def __init__(self, host, pod, context, make_plugin, make_request):
        self.host, self.pod, self.context = host, pod, context
        self.links = context.links
        self._make_plugin, self._make_request = make_plugin, make_request
        self.links.make_pair(Pair("host0", FIRST, "eth0", SECOND, 1500), pod)
        self.links.configure(pod, "eth0", [ip_interface("10.9.0.2/24")])

    def plugin(self, **settings):
        return self._make_plugin(self.context, "tuning", **settings)

    def request(self, previous=RESULT, **changes):
        return self._make_request(self.pod, previous=previous, **changes)

    def now(self):
        return self.links.tune(self.pod, "eth0", Tuning())


@pytest.fixture
def attached(host, pod, make_context, make_plugin, make_request):
    return Attached(host, pod, make_context(host), make_plugin, make_request)


@pytest.mark.node
class TestInNamespaces:
    def test_sysctls(self, attached):
        name = "net.ipv4.conf.eth0.arp_filter"
        plugin = attached.plugin(
            sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1", "net/ipv4/tcp_rmem": "4096 65536 131072"}
        )
        assert plugin.add(attached.request()) == RESULT
        assert attached.pod.sysctl(name) == "1"
        plugin.check(attached.request())
        attached.pod.sysctl(name, "0")
        with pytest.raises(AttachmentBrokenError, match=r"arp_filter is 0, not 1; delete"):
            plugin.check(attached.request())
        plugin.delete(attached.request())

    def test_an_interface_with_a_dot(self, attached, make_request):
        attached.links.make_pair(Pair("host1", FIRST, "eth0.5", SECOND), attached.pod)
        plugin = attached.plugin(sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1"})
        plugin.add(make_request(attached.pod, "pod", "eth0.5", previous=RESULT))
        assert attached.pod.sysctl("net/ipv4/conf/eth0.5/arp_filter") == "1"
        plugin = attached.plugin(sysctl={"net/ipv4/conf/IFNAME/arp_filter": "0"})
        plugin.add(make_request(attached.pod, "pod", "eth0.5", previous=RESULT))
        assert attached.pod.sysctl("net/ipv4/conf/eth0.5/arp_filter") == "0"

    def test_the_interface_and_back(self, attached):
        before = attached.now()
        plugin = attached.plugin(mac=MAC, mtu=1400, promisc=True, allmulti=True, txQLen=77)
        result = plugin.add(attached.request())
        assert attached.now() == Tuning(MAC, 1400, promiscuous=True, all_multicast=True, tx_queue_length=77)
        pod = Interface("eth0", MAC, "/run/netns/pod", 1400)
        assert result == replace(RESULT, interfaces=(RESULT.interfaces[0], pod))
        plugin.check(attached.request(result))

        attached.links.tune(attached.pod, "eth0", Tuning(mtu=1300, promiscuous=False))
        with pytest.raises(AttachmentBrokenError, match=r"mtu is 1300, not 1400; promisc is False, not True"):
            plugin.check(attached.request(result))

        # Another process has the same ledger, and nothing else.
        attached.plugin(mac=MAC).delete(attached.request(result))
        assert attached.now() == before
        attached.links.tune(attached.pod, "eth0", Tuning(mtu=1300))
        plugin.delete(attached.request(result))  # knows of nothing any more
        assert attached.now().mtu == 1300

    def test_who_wins(self, attached):
        others = {"mac": "02:00:00:00:00:77"}, {"MAC": "02:00:00:00:00:88"}
        plain = attached.plugin(mac="02:00:00:00:00:66")
        assert plain.add(attached.request()).interfaces[1].mac == "02:00:00:00:00:66"
        assert plain.add(attached.request(args=others[1])).interfaces[1].mac == "02:00:00:00:00:88"
        assert (
            plain.add(attached.request(args=others[1], **others[0])).interfaces[1].mac == "02:00:00:00:00:77"
        )
        arguments = {"cni": {"mac": MAC, "sysctl": {"net.ipv4.ip_forward": "1"}}}
        told = attached.plugin(mac="02:00:00:00:00:66", args=arguments, sysctl={"net.no.such": "1"})
        assert told.add(attached.request(args=others[1], **others[0])).interfaces[1].mac == MAC
        assert attached.pod.sysctl("net.ipv4.ip_forward") == "1"
        # Whatever was done to it in between, it gets back what it had at first.
        plain.delete(attached.request())
        assert attached.now().mac == SECOND

    def test_a_mac_that_no_interface_can_have(self, attached):
        with pytest.raises(ConfigurationError, match="nonsense"):
            attached.plugin().add(attached.request(mac="nonsense"))

    def test_a_failure_leaves_nothing_behind(self, attached):
        before = attached.now()
        for settings in (
            {"sysctl": {"net.ipv4.ip_forward": "1", "net.ipv4.no_such": "1"}},
            {"sysctl": {"net.ipv4.ip_forward": "1"}, "mac": MAC, "promisc": True, "mtu": 20},
        ):
            attached.pod.sysctl("net.ipv4.ip_forward", "0")
            with pytest.raises(KernelError):
                attached.plugin(**settings).add(attached.request())
            assert attached.pod.sysctl("net.ipv4.ip_forward") == "0"
            assert attached.now() == before
            assert attached.context.ledger.claims("tuning of pods") == []

    def test_what_the_kernel_refuses_is_told(self, attached):
        with pytest.raises(
            KernelError, match=r"cannot set sysctl net.ipv4.no_such of pod/eth0: No such file"
        ):
            attached.plugin(sysctl={"net.ipv4.no_such": "1"}).add(attached.request())

    def test_without_the_interface(self, attached):
        plugin = attached.plugin(mac=MAC)
        result = plugin.add(attached.request())
        attached.links.delete("host0")
        with pytest.raises(NotAttachedError):
            plugin.check(attached.request(result))
        plugin.delete(attached.request(result))
        plugin.delete(replace(attached.request(result), stack=None))
        with pytest.raises(NotAttachedError):
            plugin.add(attached.request())

    def test_a_pod_that_is_gone(self, attached):
        plugin = attached.plugin(mac=MAC)
        plugin.add(attached.request())
        plugin.delete(replace(attached.request(), stack=None))
        assert attached.context.ledger.claims("tuning of pods") == []

    def test_gc_forgets_the_others(self, attached, make_request):
        plugin = attached.plugin(mac=MAC)
        plugin.add(attached.request())
        attached.links.make_pair(Pair("host1", FIRST, "eth1", SECOND), attached.pod)
        plugin.add(make_request(attached.pod, "pod", "eth1", previous=RESULT))
        plugin.gc([attached.request()])
        assert [owner for _, owner in attached.context.ledger.claims("tuning of pods")] == ["pod/eth0"]

    def test_a_new_mac_is_announced(self, attached):
        attached.links.configure(attached.host, "host0", [ip_interface("10.9.0.1/24")])
        with attached.host.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0806)) as heard:
            heard.settimeout(0.2)
            plugin = attached.plugin(mac=MAC)
            # A link that has come up only now may drop what is sent: the kernel gives it a queue a little later.
            for _ in range(25):
                plugin.add(attached.request())
                try:
                    packet, (name, *_, sender) = heard.recvfrom(100)
                    break
                except TimeoutError:
                    attached.links.tune(attached.pod, "eth0", Tuning(mac=SECOND))
        assert name == "host0"
        assert sender.hex(":") == MAC
        assert packet[8:18] == bytes.fromhex(MAC.replace(":", "")) + ip_address("10.9.0.2").packed
        assert packet[24:28] == ip_address("10.9.0.2").packed
