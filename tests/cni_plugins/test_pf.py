"""FreeBSD's NAT against pf's anchors and tickets in memory. tests/freebsd has the real ones, and packets."""

import errno
import importlib
import re
import socket
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from types import ModuleType

import pytest
from cffi import FFI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_plugins.errors import ConfigurationError, KernelError
from cni_plugins.freebsd._pf_build import CDEF
from cni_plugins.nat import HostPort, Masquerade
from cni_plugins.types import OwnStack

POD, OTHER = ip_interface("10.1.0.5/16"), ip_interface("10.1.0.6/16")
POD6 = ip_interface("fd00:1::5/64")
LINES = ('nat-anchor "cni-rdr/*"', 'rdr-anchor "cni-rdr/*"')
FOREIGN = "cni-rdr/kube-svc-1"
NAT, NO_NAT, RDR = 4, 5, 8
SCRUB_RULES, NAT_RULES, RDR_RULES = 0, 2, 4
RULES_OF = {NAT: NAT_RULES, NO_NAT: NAT_RULES, RDR: RDR_RULES}


@dataclass
class Ruleset:
    active: list[str] = field(default_factory=list)
    active_ticket: int = 0
    inactive: list[str] = field(default_factory=list)
    ticket: int = 0
    open: bool = False


class Killed(BaseException):
    """The process is no more."""


class Kernel:
    """`_pf.lib` without a kernel: anchors by their path, each with its rulesets, as pf_ioctl.c has them.

    `fail_at` is the number of the call that is refused, `die_at` of the one that is never made nor any after it, and
    `meanwhile` is what others do just before each call.
    """

    PF_RULESET_SCRUB, PF_RULESET_NAT, PF_RULESET_RDR = SCRUB_RULES, NAT_RULES, RDR_RULES
    PF_NAT, PF_NONAT, PF_RDR = NAT, NO_NAT, RDR
    CNI_PF_ANY, CNI_PF_NETWORK, CNI_PF_INTERFACE = range(3)

    def __init__(self, ffi):
        self.ffi = ffi
        self.main = {NAT: ["cni-rdr/*"], RDR: ["cni-rdr/*"]}
        self.anchors = {"cni-rdr": {}, FOREIGN: {RDR_RULES: Ruleset(["theirs"], 7, [], 7)}}
        self.pool, self.pool_ticket = [], 0
        self.is_running = self.is_local = True
        self.is_skipped = False
        self.killed = []
        self.addresses = [
            ("lo0", "127.0.0.1/8"),
            ("lo0", "::1/128"),
            ("em0", "fe80::1/64"),
            ("em0", "192.0.2.1/24"),
            ("em0", "192.0.2.9/32"),
            ("em0", "2001:db8::1/64"),
            ("em1", "198.51.100.1/24"),
            ("cri0", "10.1.0.1/16"),
            ("cri0", "fd00:1::1/64"),
            ("cni12", "169.254.1.1/32"),
        ]
        self.calls, self.fail_at, self.die_at = [], 0, 0
        self.meanwhile = lambda: None

    def loaded(self):
        """The rules of every anchor, and whether a change of it is under way."""
        return {
            path: (
                [rule for each in rulesets.values() for rule in each.active],
                any(r.open for r in rulesets.values()),
            )
            for path, rulesets in self.anchors.items()
        }

    def rules(self, path):
        return self.loaded()[path][0]

    def take_pool(self):
        """What pfctl(8) does for each rule."""
        self.pool, self.pool_ticket = [], self.pool_ticket + 1

    def _refuse(self, code):
        self.ffi.errno = code
        return -1

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        if not name.startswith("cni_pf_"):
            return found

        def call(*arguments):
            self.calls.append(name)
            if self.die_at and len(self.calls) >= self.die_at:
                raise Killed
            if len(self.calls) == self.fail_at:
                return self._refuse(errno.ENOMEM)
            self.meanwhile()
            return found(*arguments)

        return call

    def _at(self, anchor):
        return self.ffi.string(anchor).decode() if not isinstance(anchor, bytes) else anchor.decode()

    def cni_pf_begin(self, fd, anchor, rulesets, tickets, count):
        here = self.anchors.setdefault(self._at(anchor), {})
        for i in range(count):
            ruleset = here.setdefault(rulesets[i], Ruleset())
            ruleset.inactive, ruleset.ticket, ruleset.open = [], ruleset.ticket + 1, True
            tickets[i] = ruleset.ticket
        return 0

    def cni_pf_commit(self, fd, anchor, rulesets, tickets, count):
        path = self._at(anchor)
        here = self.anchors.get(path, {})
        for i in range(count):
            ruleset = here.get(rulesets[i])
            if ruleset is None or not ruleset.open or ruleset.ticket != tickets[i]:
                return self._refuse(errno.EBUSY)
        for i in range(count):
            ruleset = here[rulesets[i]]
            ruleset.active, ruleset.inactive, ruleset.open = ruleset.inactive, [], False
            ruleset.active_ticket = ruleset.ticket
        if not any(each.active or each.inactive or each.open for each in here.values()):
            del self.anchors[path]
        return 0

    def cni_pf_rollback(self, fd, anchor, rulesets, tickets, count):
        here = self.anchors.get(self._at(anchor), {})
        for i in range(count):
            ruleset = here.get(rulesets[i])
            if ruleset is not None and ruleset.open and ruleset.ticket == tickets[i]:
                ruleset.inactive, ruleset.open = [], False
        return 0

    def cni_pf_begin_pool(self, fd, ticket):
        self.take_pool()
        ticket[0] = self.pool_ticket
        return 0

    def cni_pf_add_to_pool(self, fd, ticket, family, address):
        if ticket != self.pool_ticket:
            return self._refuse(errno.EBUSY)
        self.pool.append(self._endpoint(address[0], family))
        return 0

    def cni_pf_add_rule(self, fd, anchor, ticket, pool_ticket, rule):
        here = self.anchors.get(self._at(anchor))
        ruleset = (here or {}).get(RULES_OF[rule.action])
        if here is None:
            return self._refuse(errno.EINVAL)
        if ruleset is None or ticket != ruleset.ticket or pool_ticket != self.pool_ticket:
            return self._refuse(errno.EBUSY)
        if rule.action != NO_NAT and not self.pool:
            return self._refuse(errno.EINVAL)
        text = self._text(rule)
        if text in ruleset.inactive:
            return self._refuse(errno.EEXIST)
        ruleset.inactive.append(text)
        self.pool = []
        return 0

    def cni_pf_count_rules(self, fd, anchor, action, ticket):
        path = self._at(anchor)
        if not path:
            ticket[0] = len(self.main[action])
            return len(self.main[action])
        if path not in self.anchors:
            return self._refuse(errno.EINVAL)
        ruleset = self.anchors[path].get(RULES_OF[action], Ruleset())
        ticket[0] = ruleset.active_ticket
        return len(ruleset.active)

    def cni_pf_called_anchor(self, fd, action, ticket, number, called, room):
        if ticket != len(self.main[action]):
            return self._refuse(errno.EBUSY)
        path = self.main[action][number].encode()
        self.ffi.memmove(called, path, len(path))
        return len(path)

    def cni_pf_count_anchors(self, fd, anchor):
        path = self._at(anchor)
        return len(self._below(path)) if path in self.anchors else self._refuse(errno.ENOENT)

    def cni_pf_anchor_name(self, fd, anchor, number, name):
        below = self._below(self._at(anchor))
        if number >= len(below):
            return self._refuse(errno.EBUSY)
        assert len(below[number]) < 64
        self.ffi.memmove(name, below[number].encode(), len(below[number]))
        return 0

    def cni_pf_kill_states(self, fd, family, address, as_destination, protocol, port):
        words = ["to" if as_destination else "from", self._endpoint(address[0], family)]
        self.killed.append(" ".join([*words, *([f"{protocol}/{port}"] if port else [])]))
        return 0

    def cni_pf_running(self, fd):
        return int(self.is_running)

    def cni_pf_skips(self, fd, interface):
        return int(self.is_skipped)

    def cni_pf_filters_local(self):
        return int(self.is_local)

    def cni_pf_local_addresses(self, into, room):
        for i, (name, text) in enumerate(self.addresses[:room]):
            address = ip_interface(text)
            into[i].interface, into[i].loopback = name.encode(), name == "lo0"
            into[i].family = self._family(address.version)
            into[i].prefix = address.network.prefixlen
            self.ffi.memmove(into[i].bytes, address.packed, len(address.packed))
        return len(self.addresses)

    def _below(self, path):
        return sorted(each.removeprefix(f"{path}/") for each in self.anchors if each.startswith(f"{path}/"))

    @staticmethod
    def _family(version):
        return socket.AF_INET6 if version == 6 else socket.AF_INET

    def _endpoint(self, address, family):
        if address.kind == self.CNI_PF_INTERFACE:
            return f"({self.ffi.string(address.interface).decode()}{':0' * address.first})"
        if address.kind == self.CNI_PF_ANY:
            return "any"
        size = 16 if family == self._family(6) else 4
        return str(ip_network((bytes(address.bytes)[:size], address.prefix))).removesuffix(f"/{size * 8}")

    def _text(self, rule):
        """As `pfctl -s nat` writes it."""
        words = [{NAT: "nat", NO_NAT: "no nat", RDR: "rdr"}[rule.action]]
        interface, tag, tagged = (
            self.ffi.string(each).decode() for each in (rule.interface, rule.tag, rule.tagged)
        )
        words += ["pass"] if getattr(rule, "pass") else []
        words += ["on", interface] if interface else []
        words += ["inet6" if rule.family == self._family(6) else "inet"]
        words += ["proto", {6: "tcp", 17: "udp", 132: "sctp"}[rule.protocol]] if rule.protocol else []
        words += [
            "from",
            self._endpoint(getattr(rule, "from"), rule.family),
            "to",
            self._endpoint(rule.to, rule.family),
        ]
        words += ["port", f"= {rule.to_port}"] if rule.to_port else []
        words += ["tag", tag] if tag else []
        words += ["!" if rule.not_tagged else "", "tagged", tagged] if tagged else []
        words += ["->", self.pool[0]] if self.pool else []
        words += ["port", ":".join(str(each) for each in rule.ports if each)] if rule.ports[0] else []
        return " ".join(word for word in words if word)


@pytest.fixture
def modules(monkeypatch):
    """Have the modules over the bindings imported anew, and forgotten at the end."""
    package = importlib.import_module("cni_plugins.freebsd")
    names = ("_pf", "_kernel", "ioctl", "links", "pf", "nat")
    for name in names:
        monkeypatch.delitem(sys.modules, f"cni_plugins.freebsd.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    yield
    for name in names:
        sys.modules.pop(f"cni_plugins.freebsd.{name}", None)
        vars(package).pop(name, None)


@pytest.fixture
def pf(modules, monkeypatch, tmp_path):
    """`cni_plugins.freebsd.pf` on a kernel in memory, which is its `lib`."""
    ffi = FFI()
    ffi.cdef(CDEF)
    for name, lib in {"_pf": Kernel(ffi), "_kernel": None}.items():
        binding = ModuleType(f"cni_plugins.freebsd.{name}")
        binding.ffi, binding.lib = ffi, lib
        sys.modules[binding.__name__] = binding
    module = importlib.import_module("cni_plugins.freebsd.pf")
    monkeypatch.setattr(module, "DEVICE", str(tmp_path / "pf"))
    (tmp_path / "pf").touch()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


@pytest.fixture
def kernel(pf):
    return pf.lib


class Groups:
    """The interfaces' groups: the host's end of one routed pod."""

    @classmethod
    def of(cls, stack):
        return cls()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def group(self, name):
        return ["cni12"]


@pytest.fixture
def make(pf, monkeypatch):
    module = importlib.import_module("cni_plugins.freebsd.nat")
    monkeypatch.setattr(module, "Interfaces", Groups)
    return lambda network="net": module.PfNat(OwnStack(), network)


@pytest.fixture
def nat(make):
    return make()


def ours(kernel):
    return sorted(path for path in kernel.anchors if path not in {"cni-rdr", FOREIGN})


def tcp(port=8080, pod=POD, pod_port=80, **fields):
    return HostPort("tcp", port, pod, pod_port, **fields)


def test_host_ports_are_redirected_and_answered_through_the_node(nat, kernel):
    only = ip_address("2001:db8::1")
    nat.publish("one", [tcp(), tcp(8081), HostPort("udp", 53, POD6, 53, only), tcp(82, masquerade_all=True)])
    (anchor,) = ours(kernel)
    assert re.fullmatch(r"cni-rdr/ports-net-[0-9a-f]{32}", anchor)
    back = "tagged cni-host-port -> 10.1.0.1 port 50001:65535"
    assert kernel.rules(anchor) == [
        f"nat inet proto tcp from 10.1.0.0/16 to 10.1.0.5 port = 80 {back}",
        f"nat inet proto tcp from 127.0.0.0/8 to 10.1.0.5 port = 80 {back}",
        "nat inet6 proto udp from fd00:1::/64 to fd00:1::5 port = 53 tagged cni-host-port -> fd00:1::1 port 50001:65535",
        f"nat inet proto tcp from any to 10.1.0.5 port = 80 {back}",
        "rdr pass inet proto tcp from any to (self) port = 8080 tag cni-host-port -> 10.1.0.5 port 80",
        "rdr pass inet proto tcp from any to (self) port = 8081 tag cni-host-port -> 10.1.0.5 port 80",
        "rdr pass inet6 proto udp from any to 2001:db8::1 port = 53 tag cni-host-port -> fd00:1::5 port 53",
        "rdr pass inet proto tcp from any to (self) port = 82 tag cni-host-port -> 10.1.0.5 port 80",
    ]
    nat.publish("one", [tcp(81)])
    assert len(kernel.rules(anchor)) == 3
    nat.withdraw("one")
    nat.withdraw("one")
    assert ours(kernel) == []


def test_a_routed_pod_gets_answers_through_another_address_of_the_node(nat, kernel):
    nat.publish("one", [tcp(pod=ip_interface("10.9.0.5/32"))])
    (anchor,) = ours(kernel)
    assert "from 10.9.0.5 to 10.9.0.5 port = 80 tagged cni-host-port -> 198.51.100.1" in kernel.rules(anchor)[
        0
    ] or ("-> 192.0.2.9" in kernel.rules(anchor)[0])
    kernel.addresses = [("lo0", "127.0.0.1/8")]
    nat.publish("one", [tcp(pod=ip_interface("10.9.0.5/32"))])
    (redirection,) = kernel.rules(anchor)
    assert redirection.startswith("rdr pass")


def test_masquerading_is_for_what_leaves_by_other_interfaces_than_pods(nat, kernel):
    nat.masquerade("one", Masquerade((POD.ip, POD6.ip), (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))))
    (anchor,) = ours(kernel)
    assert re.fullmatch(r"cni-rdr/masquerade-net-[0-9a-f]{32}", anchor)
    assert kernel.rules(anchor) == [
        "no nat inet from 10.1.0.5 to 10.0.0.0/8 ! tagged cni-host-port",
        "no nat inet from 10.1.0.5 to 224.0.0.0/4 ! tagged cni-host-port",
        "nat on em0 inet from 10.1.0.5 to any ! tagged cni-host-port -> (em0:0) port 50001:65535",
        "nat on em1 inet from 10.1.0.5 to any ! tagged cni-host-port -> (em1:0) port 50001:65535",
        "no nat inet6 from fd00:1::5 to fd00::/8 ! tagged cni-host-port",
        "no nat inet6 from fd00:1::5 to ff00::/8 ! tagged cni-host-port",
        "nat on em0 inet6 from fd00:1::5 to any ! tagged cni-host-port -> (em0:0) port 50001:65535",
    ]
    nat.publish("one", [tcp()])
    nat.unmasquerade("one")
    nat.unmasquerade("one")
    (left,) = ours(kernel)
    assert "ports" in left


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ([HostPort("icmp", 1, POD, 1)], "none of tcp, udp, sctp"),
        ([tcp(0)], "between 1 and 65535"),
        ([tcp(pod_port=65536)], "between 1 and 65535"),
        ([tcp(host_ip=ip_address("::1"))], "other family"),
        ([HostPort("sctp", 1, POD, 2)], "SCTP"),
        ([tcp(), tcp(pod=OTHER)], "leads to 10.1.0.5 port 80 already"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_changed(nat, kernel, ports, message):
    nat.publish("one", [tcp(9)])
    before = kernel.loaded()
    with pytest.raises(ConfigurationError, match=message):
        nat.publish("one", ports)
    assert kernel.loaded() == before


def changes(nat):
    wanted = Masquerade((OTHER.ip, POD6.ip), (ip_network("10.0.0.0/8"),))
    return {
        "publish": lambda: nat.publish("one", [tcp(81), tcp(82, OTHER)]),
        "withdraw": lambda: nat.withdraw("one"),
        "masquerade": lambda: nat.masquerade("one", wanted),
        "unmasquerade": lambda: nat.unmasquerade("one"),
    }


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("what", ["publish", "withdraw", "masquerade", "unmasquerade"])
def test_a_failure_at_every_call_leaves_things_as_they_were(nat, kernel, what, was_there):
    if was_there:
        nat.publish("one", [tcp()])
        nat.masquerade("one", Masquerade((POD.ip,)))
    before = kernel.loaded()
    for fail_at in range(1, 100):
        kernel.calls, kernel.fail_at = [], fail_at
        try:
            changes(nat)[what]()
        except KernelError as error:
            assert error.errno == errno.ENOMEM  # noqa: PT017 - which call is the last one is not known
            assert kernel.loaded() == before
        else:
            break
    changed = was_there or what in {"publish", "masquerade"}
    assert fail_at > (2 if changed else 1)
    assert (kernel.loaded() != before) == changed


@pytest.mark.parametrize("what", ["publish", "withdraw", "masquerade", "unmasquerade"])
def test_killed_at_every_call_and_restored(make, nat, kernel, what):
    before = kernel.loaded()
    for die_at in range(1, 100):
        nat.publish("one", [tcp()])
        nat.masquerade("one", Masquerade((POD.ip,)))
        nat.publish("two", [tcp(9, OTHER)])
        kernel.calls, kernel.die_at = [], die_at
        try:
            changes(nat)[what]()
        except Killed:
            finished = False
        else:
            finished = True
        kernel.die_at = 0
        nat = make()
        nat.restore_ports({})
        nat.restore_masquerades({})
        assert kernel.loaded() == before
        if finished:
            return
    pytest.fail("never finished")


def test_a_failing_undo_is_told_beside_the_failure(nat, kernel, monkeypatch):
    monkeypatch.setattr(Kernel, "cni_pf_rollback", lambda self, *arguments: self._refuse(errno.EIO))
    kernel.fail_at = 4
    with pytest.raises(KernelError) as caught:
        nat.publish("one", [tcp()])
    assert caught.value.errno == errno.ENOMEM
    assert "the undo failed" in caught.value.__notes__[0]


def take_pool(kernel):
    kernel.take_pool()


def begin(kernel):
    for path in ours(kernel):
        for ruleset in kernel.anchors[path].values():
            ruleset.inactive, ruleset.ticket, ruleset.open = [], ruleset.ticket + 1, True


@pytest.mark.parametrize("interfere", [take_pool, begin])
@pytest.mark.parametrize("at", range(1, 16))
def test_others_in_the_way_at_any_call_are_only_a_delay(nat, kernel, interfere, at):
    kernel.calls, kernel.meanwhile = [], lambda: len(kernel.calls) == at and interfere(kernel)
    nat.publish("one", [tcp(), tcp(pod=POD6)])
    assert len(kernel.calls) > at
    (anchor,) = ours(kernel)
    assert len(kernel.rules(anchor)) == 5
    assert not kernel.loaded()[anchor][1]


def test_others_in_the_way_for_ever_are_an_error(nat, kernel):
    kernel.meanwhile = lambda: kernel.calls[-1] == "cni_pf_add_rule" and kernel.take_pool()
    with pytest.raises(KernelError, match="add a rule to anchor cni-rdr/ports-net-") as caught:
        nat.publish("one", [tcp()])
    assert caught.value.errno == errno.EBUSY
    assert ours(kernel) == []


def test_restoring_makes_it_exactly_what_is_wanted(make, nat, kernel):
    ports = {"one": [tcp()], "two": [tcp(81, OTHER)]}
    masquerades = {"one": Masquerade((POD.ip,))}
    nat.restore_ports(ports)
    nat.restore_masquerades(masquerades)
    before = kernel.loaded()
    assert len(ours(kernel)) == 3
    nat.publish("stray", [tcp(83)])
    nat.masquerade("stray", Masquerade((OTHER.ip,)))
    flushed, changed = (path for path in ours(kernel) if "ports" in path and before.get(path))
    del kernel.anchors[flushed]
    nat.publish("two" if "two" in kernel.rules(changed)[0] else "one", [tcp(99)])
    for owner in ("one", "two"):
        make("ne").publish(owner, [tcp(7)])
        make("net-x").masquerade(owner, Masquerade((POD.ip,)))
    others = {path: rules for path, rules in kernel.loaded().items() if re.search("-(ne|net-x)-", path)}
    nat.restore_ports(ports)
    nat.restore_masquerades(masquerades)
    assert kernel.loaded() == before | others


def test_what_is_there_already_is_not_loaded_again(nat, kernel):
    wanted = {f"pod{number}": [tcp(8000 + number)] for number in range(20)}
    nat.restore_ports(wanted)
    kernel.calls = []
    nat.restore_ports(wanted)
    assert "cni_pf_begin" not in kernel.calls
    assert len(kernel.calls) < 100
    kernel.addresses = [("em0", "192.0.2.1/24"), ("cri0", "10.1.0.2/16")]  # what the rules depend on
    nat.restore_ports(wanted)
    assert kernel.calls.count("cni_pf_begin") == 20


def test_anchors_that_vanish_while_they_are_listed_hide_no_others(pf, kernel):
    kernel.anchors |= {f"cni-rdr/{name}": {} for name in "abcdef"}

    def vanish():
        if kernel.calls.count("cni_pf_anchor_name") == 2:
            kernel.anchors.pop("cni-rdr/a", None)

    kernel.meanwhile = vanish
    with pf.Pf() as opened:
        assert opened.anchors("cni-rdr") == ["b", "c", "d", "e", "f", "kube-svc-1"]
        assert opened.anchors("absent") == []


def test_states_from_and_to_an_address_are_killed(nat, kernel):
    nat.kill_states([POD.ip, POD6.ip])
    assert kernel.killed == ["from 10.1.0.5", "to 10.1.0.5", "from fd00:1::5", "to fd00:1::5"]


def test_udp_states_from_before_the_redirection_are_killed(nat, kernel):
    only = ip_address("192.0.2.9")
    nat.publish("one", [tcp(), HostPort("udp", 53, POD6, 5353), HostPort("udp", 54, POD, 54, only)])
    assert kernel.killed == ["to 2001:db8::1 17/53", "to fd00:1::1 17/53", "to 192.0.2.9 17/54"]


def test_problems_are_said_with_their_remedies(nat, kernel, pf, monkeypatch):
    assert nat.problems() == []
    kernel.main = {NAT: ["other/*", "/cni-rdr/*", ""], RDR: ["cni-rdr/*"]}
    assert nat.problems() == []
    kernel.main = {NAT: ["cni-rdr", "x/cni-rdr/*", ""], RDR: []}
    kernel.is_running = False
    off, *missing = nat.problems()
    assert "service pf start" in off
    assert [line for line, problem in zip(LINES, missing, strict=True) if f"`{line}`" in problem] == list(
        LINES
    )
    kernel.main, kernel.is_running = {NAT: ["cni-rdr/*"], RDR: ["cni-rdr/*"]}, True
    kernel.is_local, kernel.is_skipped = False, True
    nat.publish("one", [tcp()])
    assert nat.problems() == [], "only the node's own connections suffer: no reason to have no pods"
    with pf.Pf() as opened:
        local, skipped = module(nat).host_problems(opened)
    assert "net.pf.filter_local=1" in local
    assert "`set skip` for lo0" in skipped
    monkeypatch.setattr(pf, "DEVICE", "/nonexistent/pf")
    (problem,) = nat.problems()
    assert "kldload pf" in problem
    assert "service pf start" in problem


def test_an_anchor_that_somebody_has_changed_is_missing(nat, kernel, pf, monkeypatch):
    nat.publish("one", [tcp()])
    nat.masquerade("one", Masquerade((POD.ip,)))
    nat.publish("other", [tcp(81, OTHER)])
    assert nat.missing("one") == nat.missing("never") == []
    ports = next(
        path for path in kernel.loaded() if "/ports-" in path and nat._anchor("ports", "one") == path
    )
    with pf.Pf() as opened:
        opened.replace(ports, ())
    assert nat.missing("one") == [f"anchor {ports}"]
    assert nat.missing("other") == []
    monkeypatch.setattr(pf, "DEVICE", "/nonexistent/pf")
    assert len(nat.missing("one")) == 2


def test_anchors_that_somebody_has_flushed_are_lost(nat, make, kernel, pf, monkeypatch):
    assert nat.lost() == []
    nat.publish("one", [tcp()])
    nat.masquerade("one", Masquerade((POD.ip,)))
    make("other").publish("two", [tcp(81, OTHER)])
    assert nat.lost() == []
    (ports,) = [path for path in ours(kernel) if path == nat._anchor("ports", "one")]
    with pf.Pf() as opened:
        opened.replace(ports, ())
    assert nat.lost() == [f"anchor {ports} is not there"]
    nat.restore_ports({"one": [tcp()]})
    assert nat.lost() == []
    nat.withdraw("one")
    nat.unmasquerade("one")
    assert nat.lost() == []
    nat.publish("one", [tcp()])
    monkeypatch.setattr(pf, "DEVICE", "/nonexistent/pf")
    assert nat.lost() == ["pf is not there, and 1 anchors with it"]


def test_what_is_gone_needs_no_room_for_another_anchor(nat, kernel):
    """pf makes an anchor before it empties it, and has room for a certain number (`set limit anchors`)."""
    nat.publish("one", [tcp()])
    kernel.calls = []
    nat.withdraw("never")
    nat.unmasquerade("one")
    assert "cni_pf_begin" not in kernel.calls


def test_a_node_in_a_wider_network_around_the_pods_has_nat(nat):
    local = module(nat).LocalAddress
    wide = local("em0", ip_interface("10.1.2.3/8"), loopback=False)
    near = local("cri0", ip_interface("10.88.0.1/16"), loopback=False)
    rules = module(nat).masquerade_rules("one", Masquerade((ip_address("10.88.0.5"),)), [wide, near])
    assert [rule.interface for rule in rules if rule.action.name == "NAT"] == ["em0"]


def module(nat):
    return sys.modules[type(nat).__module__]


def test_a_ruleset_that_changes_while_it_is_read_is_read_again(nat, kernel):
    def change():
        if kernel.calls[-1] == "cni_pf_called_anchor" and len(kernel.main[NAT]) < 3:
            kernel.main[NAT].insert(0, "other/*")

    kernel.meanwhile = change
    assert nat.problems() == []


def test_without_the_device_there_is_nothing_to_undo(nat, pf, monkeypatch):
    monkeypatch.setattr(pf, "DEVICE", "/nonexistent/pf")
    nat.withdraw("one")
    nat.unmasquerade("one")
    nat.restore_ports({})
    nat.restore_masquerades({})
    nat.kill_states([POD.ip])
    for attempt in (
        lambda: nat.publish("one", [tcp()]),
        lambda: nat.masquerade("one", Masquerade((POD.ip,))),
        lambda: nat.restore_ports({"one": [tcp()]}),
    ):
        with pytest.raises(KernelError, match="kldload pf"):
            attempt()


def test_more_addresses_than_expected_are_all_found(pf, kernel):
    kernel.addresses = [(f"vlan{number}", f"10.2.{number % 256}.{number // 256}/32") for number in range(700)]
    found = pf.local_addresses()
    assert [(each.interface, str(each.address)) for each in found] == kernel.addresses


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80), st.lists(st.text(max_size=200), min_size=2, max_size=2, unique=True))
def test_names_fit_and_tell_networks_and_owners_apart(make, kernel, network, owners):
    nat, other = make(network), make(network + "x")
    for owner in owners:
        nat.publish(owner, [tcp()])
        other.masquerade(owner, Masquerade((POD.ip,)))
    names = ours(kernel)
    assert len(names) == 4
    assert all(re.fullmatch(r"cni-rdr/[A-Za-z0-9._-]{1,63}", name) for name in names)
    nat.restore_ports({})
    other.restore_ports({})
    nat.restore_masquerades({})
    assert len(ours(kernel)) == 2
    other.restore_masquerades({})
    assert ours(kernel) == []
