"""FreeBSD's driver against a kernel in memory: what it undoes, and what it finds again. tests/freebsd has the real one."""

import errno
import importlib
import itertools
import sys
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from types import ModuleType, SimpleNamespace

import pytest

from cni_plugins import (
    AttachmentExistsError,
    ConfigurationError,
    KernelError,
    NotAttachedError,
    common_links,
    links,
)
from cni_plugins.links import Pair, Port
from cni_plugins.netlink.client import Request
from cni_plugins.rtnetlink import Link
from cni_plugins.types import Route

PORT = Port("pods0", isolated=True)
PAIR = Pair("pod0", "02:00:00:00:00:01", "eth0", "02:00:00:00:00:02", 1400, PORT)


@dataclass
class Interface:
    name: str
    kind: str
    alias: str = ""
    mac: str = ""
    mtu: int = 1500
    up: bool = False
    bridge: str = ""
    isolated: bool = False
    other: "Interface | None" = None
    stack: int = 0
    listens: bool = True


class Kernel:
    """Interfaces in numbered stacks, the host's is 0. `fail_at` is the number of the call that fails."""

    def __init__(self):
        self.all: list[Interface] = []
        self.units, self.count = itertools.count(), itertools.count(1)
        self.fail_at = 0
        self.calls: list[str] = []
        self.requests: list[Request] = []
        self.routes: list[tuple[int, Route]] = []
        self.sysctls = {"net.inet.ip.forwarding": 0, "net.inet6.ip6.forwarding": 1}
        self.client = type("Client", (Client,), {"kernel": self})

    def step(self, name):
        self.calls.append(name)
        if next(self.count) == self.fail_at:
            raise KernelError(errno.ENOMEM, "imagine", name)

    def get(self, stack, name, code=errno.ENXIO):
        for each in self.all:
            if (each.stack, each.name) == (stack, name):
                return each
        raise KernelError(code, "find", name)

    def names(self, stack=0):
        return {each.name for each in self.all if each.stack == stack}


class Client:
    """Both clients of a stack, `Routes` and `Interfaces`, as far as the driver uses them."""

    kernel: Kernel

    def __init__(self, stack):
        self.stack = stack.move_target

    @classmethod
    def of(cls, stack, family=None):
        return cls(stack)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def links(self):
        return [self.link(each.name) for each in self.kernel.all if each.stack == self.stack]

    def link(self, name):
        each = self.kernel.get(self.stack, name, errno.ENODEV)
        return Link(name, id(each), each.kind, each.mac, each.mtu, up=each.up, alias=each.alias)

    def find(self, name):
        return self.link(name) if name in self.kernel.names(self.stack) else None

    def link_index(self, name):
        return self.link(name).index

    def perform(self, *requests):
        self.kernel.requests += requests

    def all_routes(self):
        return self.kernel.routes

    def addresses_at(self, index):
        return []

    def link_create(self, kind, alias):
        self.kernel.step("create")
        unit = next(self.kernel.units)
        if kind == "bridge":
            made = Interface(f"bridge{unit}", kind, alias)
        else:
            made = Interface(f"epair{unit}a", kind, alias)
            made.other = Interface(f"epair{unit}b", kind, other=made)
            self.kernel.all.append(made.other)
        self.kernel.all.append(made)
        return made.name

    def link_set(self, name, *, up, mtu=None):
        self.kernel.step("up" if up else "down")
        each = self.kernel.get(self.stack, name, errno.ENOENT)
        each.up, each.mtu = up, mtu or each.mtu

    def destroy(self, name):
        each = self.kernel.get(self.stack, name)
        self.kernel.all = [one for one in self.kernel.all if one is not each and one is not each.other]

    def rename(self, name, new):
        self.kernel.step("rename")
        if new in self.kernel.names(self.stack):
            raise KernelError(errno.EEXIST, "rename", name)
        self.kernel.get(self.stack, name).name = new
        self.kernel.step("renamed")  # interrupted on the way back

    def move(self, name, jid):
        self.kernel.step("move")
        self.kernel.get(self.stack, name).stack = jid

    def set_mac(self, name, mac):
        self.kernel.step("mac")
        self.kernel.get(self.stack, name).mac = mac

    def set_mtu(self, name, mtu):
        self.kernel.step("mtu")
        self.kernel.get(self.stack, name).mtu = mtu

    def listens(self, name):
        return self.kernel.get(self.stack, name).listens

    def ignore_advertisements(self, name, *, fresh=False):
        self.kernel.step("deafen")
        self.kernel.get(self.stack, name).listens = False

    def disable_ipv6(self, name):
        self.kernel.step("ipv6")

    def join_group(self, name, group):
        self.kernel.step("group")

    def group(self, name):
        return [each.name for each in self.kernel.all if name in {each.kind, "all"}]

    def bridge_add(self, bridge, member):
        self.kernel.step("add")
        self.kernel.get(0, bridge)
        self.kernel.get(0, member).bridge = bridge

    def bridge_isolate(self, bridge, member):
        self.kernel.step("isolate")
        self.kernel.get(0, member).isolated = True

    def bridge_delete(self, bridge, member):
        if member not in self.bridge_members(bridge):
            raise KernelError(errno.ENOENT, "take out", member)
        self.kernel.get(0, member).bridge = ""

    def bridge_members(self, bridge):
        return [each.name for each in self.kernel.all if each.bridge == bridge]


@pytest.fixture
def kernel(monkeypatch):
    if not sys.platform.startswith("freebsd"):
        binding = ModuleType("cni_plugins.freebsd._kernel")
        monkeypatch.setitem(sys.modules, binding.__name__, binding)
        binding.ffi, binding.lib = None, SimpleNamespace()
        for name in ("cni_plugins.freebsd.ioctl", "cni_plugins.freebsd.links"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "platform", "freebsd15")
    driver = importlib.import_module("cni_plugins.freebsd.links")
    kernel = Kernel()
    for module in (driver, common_links):
        monkeypatch.setattr(module, "Routes", kernel.client)
    monkeypatch.setattr(driver.ioctl, "sysctl_read", kernel.sysctls.get)
    monkeypatch.setattr(driver.ioctl, "sysctl_write", kernel.sysctls.__setitem__)
    monkeypatch.setattr(driver, "Interfaces", kernel.client)
    return kernel


HOST, POD = SimpleNamespace(move_target=0), SimpleNamespace(move_target=7)


@pytest.fixture
def driver(kernel):
    made = links.for_this_system(HOST)
    made.make_bridge("pods0", "02:00:00:00:00:03", 1400)
    return made


def test_a_pair_has_both_ends_as_asked_for(kernel, driver):
    driver.make_pair(PAIR, POD)
    near, far = kernel.get(0, "pod0"), kernel.get(7, "eth0")
    assert (near.mac, near.mtu, near.up, near.bridge, near.isolated) == (
        PAIR.host_mac,
        1400,
        True,
        "pods0",
        True,
    )
    assert (far.mac, far.mtu) == (PAIR.pod_mac, 1400)
    assert near.other is far
    found = driver.find("pod0")
    assert found.master == driver.find("pods0").index != 0
    assert found in driver.all()


def test_mac_mtu_and_membership_precede_the_move(kernel, driver):
    kernel.calls.clear()
    driver.make_pair(PAIR, POD)
    assert kernel.calls[0] == "create"
    assert kernel.calls[-3:] == ["move", "rename", "renamed"]


def test_a_failure_at_any_step_leaves_nothing(kernel, driver):
    kernel.calls.clear()
    driver.make_pair(PAIR, POD)
    steps = list(kernel.calls)
    driver.delete("pod0")
    before = kernel.names()
    for number, step in enumerate(steps, start=1):
        kernel.count, kernel.fail_at = itertools.count(1), number
        with pytest.raises(KernelError, match=f"cannot imagine {step}"):
            driver.make_pair(PAIR, POD)
        assert kernel.names() == before, step
        assert kernel.names(7) == set(), step
    assert set(steps) >= {"create", "mac", "mtu", "rename", "group", "ipv6", "add", "isolate", "up", "move"}


def test_what_is_in_the_making_is_found_under_its_final_name(kernel, driver):
    made = kernel.client.of(HOST).link_create("epair", "cni_plugins pod0")
    assert {link.name for link in driver.all()} == {"pods0", "pod0", made.removesuffix("a") + "b"}
    assert driver.delete("pod0")
    assert not driver.delete("pod0")
    assert kernel.names() == {"pods0"}


def test_what_is_in_the_making_hides_behind_what_is_there(kernel, driver):
    driver.make_pair(PAIR, POD)
    made = kernel.client.of(HOST).link_create("epair", "cni_plugins pod0")
    assert {"pod0", made} <= {link.name for link in driver.all()}
    assert driver.delete("pod0")
    assert made in kernel.names()
    assert driver.delete("pod0")
    assert kernel.names() == {"pods0"}


def test_a_description_of_somebody_else_means_nothing(kernel, driver):
    for alias in ("", "uplink", "pod0", "cni_plugins"):
        kernel.client.of(HOST).link_create("epair", alias)
    assert "pod0" not in {link.name for link in driver.all()}
    assert not driver.delete("pod0")


def test_names_that_are_taken_are_told_and_spared(kernel, driver):
    driver.make_pair(PAIR, POD)
    before = kernel.names()
    with pytest.raises(AttachmentExistsError, match="pod0"):
        driver.make_pair(PAIR, SimpleNamespace(move_target=8))
    with pytest.raises(AttachmentExistsError, match="eth0"):
        driver.make_pair(replace(PAIR, host_name="pod1"), POD)
    assert kernel.names() == before


def test_without_the_bridge_nothing_is_made(kernel, driver):
    before = kernel.names()
    with pytest.raises(NotAttachedError, match="bridge pods1 for pod0 is not there"):
        driver.make_pair(replace(PAIR, port=Port("pods1")), POD)
    assert kernel.names() == before


def test_a_bridge_that_a_killed_process_left_is_finished(kernel, driver):
    kernel.client.of(HOST).link_create("bridge", "cni_plugins pods1")
    driver.make_bridge("pods1", "02:00:00:00:00:04", 1300)
    made = kernel.get(0, "pods1")
    assert (made.mac, made.mtu, made.up) == ("02:00:00:00:00:04", 1300, True)
    assert kernel.names() == {"pods0", "pods1"}


def test_whoever_is_second_to_make_a_bridge_leaves_no_other(kernel, driver):
    driver.make_bridge("pods0", "02:00:00:00:00:04", 1300)
    assert kernel.names() == {"pods0"}
    assert kernel.get(0, "pods0").mtu == 1400


@pytest.mark.parametrize("name", ["all", "bridge"])
def test_a_bridge_is_not_called_like_a_group(driver, name):
    with pytest.raises(ConfigurationError, match=f"bridge {name} would"):
        driver.make_bridge(name, "02:00:00:00:00:04", 1300)


def test_a_bridge_that_cannot_be_made_is_taken_back(kernel, driver):
    kernel.count, kernel.fail_at = itertools.count(1), 3
    with pytest.raises(KernelError, match="imagine"):
        driver.make_bridge("pods1", "02:00:00:00:00:04", 1300)
    assert kernel.names() == {"pods0"}


def test_a_pair_that_is_taken_off_is_gone_at_once(kernel, driver):
    driver.make_pair(PAIR, POD)
    assert driver.take_off("pod0") is None
    assert kernel.names() == {"pods0"}
    assert driver.take_off("pod0") is None


def test_a_pair_without_a_bridge_keeps_ipv6_and_its_default_mtu(kernel, driver):
    kernel.calls.clear()
    driver.make_pair(replace(PAIR, port=None, mtu=0), POD)
    assert kernel.get(0, "pod0").bridge == ""
    assert not {"ipv6", "add", "isolate", "mtu"} & set(kernel.calls)


def test_what_fell_out_of_its_bridge_is_put_back(kernel, driver):
    driver.make_pair(PAIR, POD)
    near = kernel.get(0, "pod0")
    near.bridge, near.up, near.isolated = "", False, False
    for _ in range(2):
        driver.restore(PAIR)
        assert (near.bridge, near.up, near.isolated) == ("pods0", True, True)
    assert kernel.calls.count("add") == 2


def test_a_bridge_may_leave_its_mtu_to_the_kernel(kernel, driver):
    driver.make_bridge("pods1", "02:00:00:00:00:04", 0)
    assert kernel.get(0, "pods1").mtu == 1500


def test_a_bridge_is_glanced_at_without_its_routes(kernel, driver):
    assert driver.glance("pods1") is None
    driver.make_bridge("pods1", "02:00:00:00:00:04", 0)
    found = driver.glance("pods1")
    assert (found.link.name, found.addresses, found.routes) == ("pods1", (), ())
    assert driver.is_bridge(found.link)


def test_forwarding_is_switched_on_where_it_is_off(kernel, driver):
    kernel.sysctls["net.inet6.ip6.forwarding"] = 2  # whatever else it may mean one day
    assert driver.not_forwarding({4, 6}) == [4]
    driver.enable_forwarding({4, 6})
    assert driver.not_forwarding({4, 6}) == []
    assert kernel.sysctls == {"net.inet.ip.forwarding": 1, "net.inet6.ip6.forwarding": 2}


@pytest.mark.parametrize("pair", [PAIR, replace(PAIR, port=None)])
def test_no_end_takes_a_router_from_a_pod(kernel, driver, pair):
    """Where net.inet6.ip6.accept_rtadv is 1 every new interface listens."""
    driver.make_pair(pair, POD)
    assert not kernel.get(0, "pod0").listens
    assert kernel.calls.index("deafen") < len(kernel.calls) - kernel.calls[::-1].index("up")
    kernel.get(0, "pod0").listens = True  # as an earlier release has left it
    driver.restore(pair)
    assert not kernel.get(0, "pod0").listens
    driver.ignore_advertisements("pod0", "gone")
    driver.configure(POD, "eth0", [ip_interface("10.88.0.2/16")])
    assert kernel.get(7, "eth0").listens
    driver.configure(POD, "eth0", [ip_interface("10.88.0.2/16")], advertised=False)
    assert not kernel.get(7, "eth0").listens


@pytest.mark.parametrize(
    ("listens", "way", "kept"),
    [(True, "::/0", True), (False, "::/0", False), (True, "2001:db8::/32", False), (True, None, False)],
)
def test_advertised_routers_are_kept_only_where_the_node_has_one(kernel, driver, listens, way, kept):
    kernel.sysctls |= {"net.inet6.ip6.forwarding": 0, "net.inet6.ip6.rfc6204w3": 0}
    uplink = Interface("em0", "ether", listens=listens)
    kernel.all.append(uplink)
    kernel.routes = [(id(uplink), Route(ip_network(way)))] if way else []
    driver.enable_forwarding({6})
    assert kernel.sysctls["net.inet6.ip6.forwarding"] == 1
    assert bool(kernel.sysctls["net.inet6.ip6.rfc6204w3"]) is kept


@pytest.mark.parametrize("word", ["advmss", "priority", "scope"])
def test_routes_have_only_what_the_system_s_can(kernel, driver, word):
    kernel.requests.clear()
    with pytest.raises(ConfigurationError, match=rf"192\.0\.2\.0/24 is to have a {word}"):
        driver.configure(HOST, "pods0", routes=[Route(ip_network("192.0.2.0/24"), **{word: 7})])
    assert kernel.requests == []
    driver.configure(
        HOST, "pods0", [ip_interface("10.88.0.1/16")], [Route(ip_network("192.0.2.0/24"), mtu=1300)]
    )
    assert len(kernel.requests) == 3


def test_a_bridge_plugin_finds_what_a_crash_left(kernel, driver, make_context, make_plugin, make_request):
    plugin = make_plugin(make_context(HOST, links_=driver), "bridge", bridge="pods0")
    name = plugin._names.host("sandbox/eth0")
    for undo in (lambda: plugin.gc([]), lambda: plugin.delete(make_request(None, "sandbox"))):
        kernel.client.of(HOST).link_create("epair", f"cni_plugins {name}")
        assert name in {link.name for link in driver.all()}
        undo()
        assert kernel.names() == {"pods0"}
