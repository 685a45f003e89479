"""The bandwidth plugin: messages and settings anywhere, limits by sending through them on Linux."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from dataclasses import replace
from ipaddress import ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins import traffic as seam
from cni_plugins.errors import AttachmentBrokenError, ConfigurationError, NotAttachedError
from cni_plugins.links import Pair
from cni_plugins.netlink import Message, traffic
from cni_plugins.netlink.traffic import RateSpec, TokenBucket, TrafficHeader
from cni_plugins.runtime_config import Bandwidth
from cni_plugins.types import Interface, Result

U8, U16, U32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
RATES = st.builds(RateSpec, U8, U8, U16, st.integers(-(1 << 15), (1 << 15) - 1), U16, U32)
BUCKETS = st.builds(TokenBucket, RATES, RATES, U32, U32, U32)
RATE = 8_000_000
"""Bits per second: 1 MB/s."""
BURST = 400_000


# Messages


@given(BUCKETS, st.integers(0, (1 << 64) - 1), U32)
def test_a_token_bucket_comes_back_as_it_went(bucket, rate64, burst):
    attributes = {"kind": "tbf", "options": {"parameters": bucket, "rate64": rate64, "burst": burst}}
    message = Message(traffic.NEWQDISC, TrafficHeader(0, 7, 0x10000, traffic.ROOT, 0), attributes)
    assert traffic.DIALECT.decode(traffic.DIALECT.encode(message)) == [message]


@given(st.integers(-(1 << 31), (1 << 31) - 1), U32)
def test_a_filter_comes_back_as_it_went(verdict, index):
    parameters = (0, 0, verdict, 0, 0, traffic.EGRESS_REDIRECT, index)
    actions = {"first": {"kind": "mirred", "options": {"parameters": parameters}}}
    attributes = {"kind": "u32", "options": {"selector": traffic.EVERYTHING, "actions": actions}}
    message = Message(traffic.NEWTFILTER, TrafficHeader(ifindex=7), attributes)
    assert traffic.DIALECT.decode(traffic.DIALECT.encode(message)) == [message]


def test_the_sizes_of_the_kernel_s_structures():
    bucket = traffic.TBF.by_name["parameters"][1]
    assert len(bucket.encode(TokenBucket())) == 36  # struct tc_tbf_qopt
    assert len(traffic.MIRRED.by_name["parameters"][1].encode((0,) * 7)) == 28  # struct tc_mirred
    selector = traffic.U32_FILTER.by_name["selector"][1]
    assert len(selector.encode(traffic.EVERYTHING)) == 16 + 16  # struct tc_u32_sel, struct tc_u32_key


# Settings


@pytest.fixture
def plugin(make_context, make_plugin):
    return lambda **settings: make_plugin(make_context(links_=object()), "bandwidth", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ingressRate": 8}, "ingressRate takes ingressBurst"),
        ({"ingressBurst": 8}, "ingressBurst takes ingressRate"),
        ({"egressRate": 8}, "egressRate takes egressBurst"),
        ({"egressRate": 7, "egressBurst": 8}, "7 bits per second"),
        ({"egressRate": 8, "egressBurst": 7}, "bursts of 7 bits"),
        ({"egressRate": 8, "egressBurst": 1 << 36}, "egressBurst"),
        ({"egressRate": -1, "egressBurst": 8}, "egressRate"),
        ({"ingressRate": "8M", "ingressBurst": 8}, "ingressRate"),
        ({"unshapedSubnets": ["10.0.0.0/8"]}, "unshapedSubnets"),
    ],
)
def test_settings_that_cannot_work_are_refused(plugin, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        plugin(**settings)


def test_a_pod_s_wish_that_cannot_work_is_refused(plugin, make_request):
    with pytest.raises(ConfigurationError, match="ingressRate of pod/eth0 takes ingressBurst"):
        plugin().add(make_request(None, bandwidth=Bandwidth(ingress_rate=8)))


def test_a_pod_without_limits_goes_unlimited(plugin, make_request):
    result = Result(interfaces=(Interface("host0"),))
    assert plugin().add(make_request(None, previous=result)) is result
    plugin().check(make_request(None, previous=result))


def test_a_system_without_limits_says_so(monkeypatch, plugin, make_request):
    monkeypatch.setattr(seam.sys, "platform", "freebsd15")
    made = plugin(capabilities={"bandwidth": True})
    (problem,) = made.status()
    assert problem.startswith("network pods: plugin bandwidth: nothing limits the bandwidth of pods")
    result = Result(interfaces=(Interface("host0"),))
    assert made.add(make_request(None, previous=result)) is result
    limits = Bandwidth(ingress_rate=RATE, ingress_burst=BURST)
    with pytest.raises(ConfigurationError, match=r"pod/eth0: nothing limits.*dnpipe"):
        made.add(make_request(None, bandwidth=limits))
    made.delete(make_request(None, bandwidth=limits))
    made.gc([])


# On Linux


class Attached:
    """A pod with an eth0 whose other end is host0, and a plugin's view of it."""

    def __init__(self, host, pod, context, make_plugin, make_request):
        self.host, self.pod, self.context = host, pod, context
        self._make_plugin, self._make_request = make_plugin, make_request
        self.attach()

    def attach(self):
        links = self.context.links
        links.make_pair(Pair("host0", "02:00:00:00:00:01", "eth0", "02:00:00:00:00:02", 1500), self.pod)
        links.configure(self.host, "host0", [ip_interface("10.9.0.1/24")])
        links.configure(self.pod, "eth0", [ip_interface("10.9.0.2/24")])

    def plugin(self, **settings):
        return self._make_plugin(self.context, "bandwidth", **settings)

    def request(self, container_id="pod", **limits):
        previous = Result(
            interfaces=(Interface("cni0"), Interface("host0"), Interface("eth0", sandbox="/netns"))
        )
        runtime = {"bandwidth": Bandwidth(**limits)} if limits else {}
        return self._make_request(self.pod, container_id, previous=previous, **runtime)

    def tc(self, *arguments):
        command = ["tc", "-j", *arguments]
        done = self.host.run(lambda: subprocess.run(command, check=True, capture_output=True, text=True))
        return json.loads(done.stdout)

    def disciplines(self):
        return {(one["dev"], one["kind"]): one["options"] for one in self.tc("qdisc", "show")}

    def ifbs(self):
        return [link.name for link in self.context.links.all() if link.kind == "ifb"]

    def rate(self, sender, receiver, address, seconds=1.2):
        """Bits per second that go from one stack to the other, by TCP."""
        with receiver.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(1)
            with sender.socket(socket.AF_INET, socket.SOCK_STREAM) as out:
                out.settimeout(10)
                out.connect(listener.getsockname())
                into, _ = listener.accept()
                ending = threading.Event()

                def send():
                    while not ending.is_set():
                        try:
                            out.send(bytes(1 << 16))
                        except OSError:
                            return

                thread = threading.Thread(target=send)
                thread.start()
                with into:
                    into.settimeout(10)
                    into.recv(1)
                    begin, received = time.monotonic(), 0
                    while time.monotonic() - begin < seconds:
                        received += len(into.recv(1 << 20))
                    took = time.monotonic() - begin
                    ending.set()
                thread.join()
        return received * 8 / took


@pytest.fixture
def attached(host, pod, make_context, make_plugin, make_request):
    return Attached(host, pod, make_context(host), make_plugin, make_request)


BOTH = {"ingress_rate": RATE, "ingress_burst": BURST, "egress_rate": 2 * RATE, "egress_burst": BURST}


@pytest.mark.node
class TestInNamespaces:
    def test_what_tc_shows(self, attached):
        plugin, request = attached.plugin(), attached.request(**BOTH)
        result = plugin.add(request)
        device = result.interfaces[-1]
        assert result.interfaces[:-1] == request.previous.interfaces
        assert (device.sandbox, attached.ifbs()) == ("", [device.name])
        assert len(device.name) <= 15
        shown = attached.disciplines()
        assert shown["host0", "tbf"]["rate"] == RATE // 8
        assert shown[device.name, "tbf"]["rate"] == 2 * RATE // 8
        for interface in ("host0", device.name):
            assert abs(shown[interface, "tbf"]["burst"] - BURST // 8) < 10  # ticks of the kernel's
            assert abs(shown[interface, "tbf"]["lat"] - 25_000) < 10  # microseconds
        (shown_filter,) = [
            one
            for one in attached.tc("filter", "show", "dev", "host0", "ingress")
            if "options" in one and "actions" in one["options"]
        ]
        (action,) = shown_filter["options"]["actions"]
        assert (action["mirred_action"], action["direction"], action["to_dev"]) == (
            "redirect", "egress", device.name,
        )  # fmt: skip
        plugin.check(replace(request, previous=result))
        assert attached.context.links.state(attached.host, device.name).addresses == ()
        assert plugin.status() == []
        plugin.delete(replace(request, previous=result))
        assert attached.ifbs() == []
        plugin.delete(request)

    def test_what_really_passes(self, attached):
        plugin = attached.plugin()
        plugin.add(attached.request(**BOTH))
        received = attached.rate(attached.host, attached.pod, "10.9.0.2")
        sent = attached.rate(attached.pod, attached.host, "10.9.0.1")
        assert 0.4 * RATE < received < 1.5 * RATE
        assert 0.8 * RATE < sent < 3 * RATE

    def test_without_limits_much_more_passes(self, attached):
        assert attached.rate(attached.host, attached.pod, "10.9.0.2", 0.3) > 3 * RATE

    def test_the_pod_s_wish_comes_instead_of_the_configuration(self, attached):
        plugin = attached.plugin(ingressRate=RATE, ingressBurst=BURST, egressRate=RATE, egressBurst=BURST)
        plugin.add(attached.request())
        assert len(attached.ifbs()) == 1
        plugin.delete(attached.request())
        result = plugin.add(attached.request("other", ingress_rate=3 * RATE, ingress_burst=BURST))
        assert result == attached.request("other").previous
        assert attached.ifbs() == []
        assert attached.disciplines()["host0", "tbf"]["rate"] == 3 * RATE // 8

    def test_great_rates_and_small_bursts(self, attached):
        rate = 80_000_000_000  # bytes do not fit 32 bits
        limits = {"ingress_rate": rate, "ingress_burst": 8, "egress_rate": rate, "egress_burst": 0xFFFFFFFF}
        plugin, request = attached.plugin(), attached.request(**limits)
        result = plugin.add(request)
        shown = attached.disciplines()
        assert shown["host0", "tbf"]["rate"] == rate // 8
        plugin.check(request)
        # A bucket of one byte would let nothing pass: it takes a whole frame.
        plugin.add(attached.request(ingress_rate=RATE, ingress_burst=8))
        assert attached.rate(attached.host, attached.pod, "10.9.0.2", 0.5) > RATE / 10
        plugin.delete(replace(request, previous=result))

    def test_check_finds_what_has_changed(self, attached):
        plugin, request = attached.plugin(), attached.request(**BOTH)
        device = plugin.add(request).interfaces[-1].name
        for command, fault in [
            (("filter", "del", "dev", "host0", "parent", "ffff:"), f"not redirected to {device}"),
            (("qdisc", "change", "dev", "host0", "root", "tbf", "rate", "1mbit", "burst", "10k", "limit", "20k"),
             "host0 is limited to 1000000 bits per second, not 8000000"),
            (("qdisc", "del", "dev", "host0", "root"), "host0 has no limit"),
            (("qdisc", "del", "dev", device, "root"), f"{device} has no limit"),
        ]:  # fmt: skip
            attached.host.run(lambda command=command: subprocess.run(["tc", *command], check=True))
            with pytest.raises(AttachmentBrokenError, match=fault):
                plugin.check(request)
        plugin.delete(request)
        with pytest.raises(AttachmentBrokenError, match=f"ifb {device} is gone"):
            plugin.check(request)
        attached.context.links.delete("host0")
        with pytest.raises(NotAttachedError, match="no pair whose host end"):
            plugin.check(request)

    def test_gc(self, attached, make_context, make_plugin):
        plugin, request = attached.plugin(), attached.request(**BOTH)
        device = plugin.add(request).interfaces[-1].name
        elsewhere = make_plugin(make_context(attached.host, "another"), "bandwidth")
        others = elsewhere.add(attached.request("theirs", **BOTH)).interfaces[-1].name
        plugin.add(attached.request("stray", **BOTH))
        assert len(attached.ifbs()) == 3
        plugin.gc([request])
        assert sorted(attached.ifbs()) == sorted([device, others])
        plugin.check(request)
        # Somebody removes all of it.
        attached.context.links.delete(device)
        attached.host.run(lambda: subprocess.run(["tc", "qdisc", "del", "dev", "host0", "root"], check=True))
        plugin.gc([request])
        plugin.check(request)
        assert 0.8 * RATE < attached.rate(attached.pod, attached.host, "10.9.0.1") < 3 * RATE
        # A pod that has lost its interface.
        attached.context.links.delete("host0")
        plugin.gc([request])
        assert attached.ifbs() == [others]

    def test_gc_spares_the_pods_of_another_configuration(self, attached):
        request = attached.request("theirs", **BOTH)
        attached.plugin().add(request)
        limited, ifbs = attached.disciplines(), attached.ifbs()
        ours = attached.plugin(ingressRate=RATE // 8, ingressBurst=BURST)
        # The capability is declared by their configuration only.
        ours.gc([replace(attached.request("theirs"), ours=False)])
        assert (attached.disciplines(), attached.ifbs()) == (limited, ifbs)

    def test_an_ifb_that_waits_for_its_end_makes_room(self, attached, make_context, make_plugin):
        context = make_context(attached.host, collect=True)
        plugin, request = make_plugin(context, "bandwidth"), attached.request(**BOTH)
        device = plugin.add(request).interfaces[-1].name
        first = attached.context.links.find(device)
        plugin.delete(request)
        assert attached.ifbs() == [device]
        attached.context.links.delete("host0")
        attached.attach()
        plugin.add(request)
        second = attached.context.links.find(device)
        assert second.index != first.index
        context.later.run()
        assert attached.context.links.find(device) == second
        plugin.check(request)
        plugin.add(request)  # as gc does it
        assert attached.context.links.find(device) == second

    def test_a_failure_leaves_nothing_behind(self, attached):
        plugin, request = attached.plugin(), attached.request(**BOTH)
        name = plugin._ifb(request)
        attached.host.run(lambda: subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True))
        before = attached.disciplines()
        with pytest.raises(ConfigurationError, match=f"interface {name} is no ifb"):
            plugin.add(request)
        assert attached.disciplines() == before
        assert attached.context.links.find(name) is not None

    def test_without_a_pair(self, attached, make_request):
        request = make_request(attached.pod, previous=Result(), bandwidth=Bandwidth(**BOTH))
        with pytest.raises(NotAttachedError, match="after the one that attaches pods"):
            attached.plugin().add(request)
