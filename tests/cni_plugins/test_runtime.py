"""CNI's verbs over plugins that write down what they are asked to do."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from ipaddress import ip_interface
from types import SimpleNamespace

import pytest

from cni_plugins import CNI, Attachment, Ledger, NetworkList, PortMapping, RuntimeConfig, registry, turns
from cni_plugins import nat as nat_seam
from cni_plugins.errors import (
    AttachmentExistsError,
    ClosedError,
    ConfigurationError,
    KernelError,
    LedgerError,
    UnknownAttachmentError,
    UnknownPluginError,
)
from cni_plugins.nat import HostPort, Masquerade
from cni_plugins.plugin import Context, Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import Interface, IPConfig, Result

STACK = SimpleNamespace(move_target=-1)
CALLS: list[tuple] = []
FAIL: dict[tuple[str, str], Exception] = {}


class Recorder(Plugin):
    """Adds an interface called after itself."""

    type = "recorder"

    def __init__(self, settings: Settings, context: Context) -> None:
        self.name = settings.text("as", default="recorder")
        self.context = context

    def _note(self, verb: str, request: Request) -> None:
        CALLS.append((verb, self.name, request.owner))
        if error := FAIL.get((verb, self.name)):
            raise error

    def add(self, request: Request) -> Result:
        self._note("add", request)
        assert request.stack is STACK
        interfaces = (
            *request.previous.interfaces,
            Interface(self.name, mac=str(len(request.runtime.port_mappings))),
        )
        return Result(interfaces=interfaces, ips=(IPConfig(ip_interface("10.0.0.2/24")),))

    def delete(self, request: Request) -> None:
        self._note("delete", request)
        CALLS.append(
            ("previous", [interface.name for interface in request.previous.interfaces], request.stack)
        )

    def check(self, request: Request) -> None:
        self._note("check", request)

    def gc(self, requests: Sequence[Request]) -> None:
        CALLS.append(("gc", self.name, sorted(request.owner for request in requests)))
        if error := FAIL.get(("gc", self.name)):
            raise error
        nat = self.context.nat()
        ours = [request.owner for request in requests if request.ours]
        nat.restore_ports({owner: [HostPort("tcp", 80, ip_interface("10.0.0.2/24"), 80)] for owner in ours})
        nat.restore_masquerades({owner: Masquerade((), ()) for owner in ours})

    def status(self) -> list[str]:
        return [f"{self.name} has a problem"] if FAIL.get(("status", self.name)) else []


class KernelNat:
    """What is restored, as a kernel would have it."""

    def __init__(self) -> None:
        self.ports: dict = {}
        self.masquerades: dict = {}

    def restore_ports(self, wanted) -> None:
        self.ports = dict(wanted)

    def restore_masquerades(self, wanted) -> None:
        self.masquerades = dict(wanted)


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    CALLS.clear()
    FAIL.clear()
    point = EntryPoint("recorder", f"{__name__}:Recorder", registry.ENTRY_POINTS)
    wrong = EntryPoint("wrong", "cni_plugins.nowhere:Nothing", registry.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Recorder if self.name == "recorder" else _missing())
    monkeypatch.setattr(
        registry, "entry_points", lambda **selected: EntryPoints([point, wrong]).select(**selected)
    )
    nats: dict[str, KernelNat] = {}
    monkeypatch.setattr(
        nat_seam, "for_this_system", lambda host, network: nats.setdefault(network, KernelNat())
    )
    return nats


def _missing():
    raise ImportError("no module named nowhere")


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "network.db", "boot-1")
    yield made
    made.close()


@pytest.fixture
def cni(ledger):
    made = CNI(ledger)
    yield made
    made.close()


def network(*names: str, **values) -> NetworkList:
    plugins = [{"type": "recorder", "as": name, **values} for name in names]
    return NetworkList.from_json({"name": "pods", "cniVersion": "1.1.0", "plugins": plugins})


def verbs(*wanted: str) -> list[tuple]:
    return [(call[0], call[1]) for call in CALLS if call[0] in wanted]


A, B = Attachment("a", netns="/ns/a"), Attachment("b", netns="/ns/b")


def test_each_plugin_adds_to_what_the_ones_before_have_made(cni, ledger) -> None:
    result = cni.add(network("one", "two"), A, STACK)
    assert [interface.name for interface in result.interfaces] == ["one", "two"]
    assert verbs("add") == [("add", "one"), ("add", "two")]
    assert ledger.entry("pods", "a/eth0").result["interfaces"][1]["name"] == "two"


def test_an_argument_goes_to_the_plugins_that_declare_it(cni) -> None:
    runtime = RuntimeConfig(port_mappings=(PortMapping(80, 8080),))
    plugins = [
        {"type": "recorder", "as": "deaf"},
        {"type": "recorder", "as": "keen", "capabilities": {"portMappings": True}},
    ]
    told = NetworkList.from_json({"name": "pods", "cniVersion": "1.1.0", "plugins": plugins})
    result = cni.add(told, Attachment("a", netns="/ns/a", runtime=runtime), STACK)
    assert [interface.mac for interface in result.interfaces] == ["0", "1"]


def test_delete_goes_backwards_with_what_add_was_given_and_made(cni, ledger) -> None:
    cni.add(network("one", "two"), A, STACK)
    CALLS.clear()
    cni.delete(network("other"), A, STACK)  # the configuration has changed since
    assert verbs("delete") == [("delete", "two"), ("delete", "one")]
    assert ("previous", ["one", "two"], STACK) in CALLS
    assert ledger.entries() == []


def test_what_nobody_knows_is_deleted_by_the_given_configuration(cni) -> None:
    cni.delete(network("one"), A)
    assert verbs("delete") == [("delete", "one")]
    CALLS.clear()
    cni.delete_all("a")
    assert CALLS == []


def test_a_failed_add_is_undone_and_its_error_is_the_one_that_is_told(cni, ledger) -> None:
    FAIL["add", "two"] = KernelError(1, "make", "two")
    with pytest.raises(KernelError, match="cannot make two"):
        cni.add(network("one", "two", "three"), A, STACK)
    assert verbs("add", "delete") == [
        *[("add", "one"), ("add", "two")],
        *[("delete", "three"), ("delete", "two"), ("delete", "one")],
    ]
    assert ledger.entries() == []


def test_what_could_not_be_undone_stays_written_down_until_it_is(cni, ledger) -> None:
    FAIL["add", "two"] = KernelError(1, "make", "two")
    FAIL["delete", "one"] = KernelError(16, "unmake", "one")
    with pytest.raises(KernelError, match="cannot make two") as caught:
        cni.add(network("one", "two"), A, STACK)
    assert "undo failed: cannot unmake one" in caught.value.__notes__[0]
    assert ledger.entry("pods", "a/eth0").result is None
    with pytest.raises(AttachmentExistsError):
        cni.add(network("one", "two"), A, STACK)
    (failure,) = cni.gc(lambda: ["a"])
    assert "cannot unmake one" in str(failure)
    FAIL.clear()
    assert cni.gc(lambda: ["a"]) == []
    assert ledger.entries() == []


def test_delete_ends_with_the_first_failure_and_can_be_repeated(cni, ledger) -> None:
    cni.add(network("one", "two"), A, STACK)
    FAIL["delete", "two"] = KernelError(16, "unmake", "two")
    with pytest.raises(KernelError):
        cni.delete_all("a")
    assert ("delete", "one") not in verbs("delete")
    FAIL.clear()
    cni.delete_all("a")
    assert ledger.entries() == []


def test_what_is_half_deleted_is_not_attached_any_more_and_not_put_back(cni, ledger, plugins) -> None:
    """A daemon that is killed in the middle of DEL leaves what gc must finish, and not restore."""
    cni.add(network("one", "two"), A, STACK)
    FAIL["delete", "one"] = KernelError(16, "unmake", "one")
    with pytest.raises(KernelError):
        cni.delete_all("a")
    assert not cni.is_attached("a")
    assert len(cni.gc(lambda: ["a"])) == 1
    FAIL.clear()
    assert cni.gc(lambda: ["a"], [network("one")]) == []
    assert plugins["pods"].ports == {}
    assert ledger.entries() == []


def test_an_attachment_is_added_once(cni) -> None:
    cni.add(network("one"), A, STACK)
    with pytest.raises(AttachmentExistsError, match="a/eth0 to network pods is there; delete it first"):
        cni.add(network("one"), A, STACK)
    assert verbs("delete") == []


def test_check_needs_an_attachment_and_may_be_switched_off(cni) -> None:
    with pytest.raises(UnknownAttachmentError):
        cni.check(network("one"), A, STACK)
    cni.add(network("one"), A, STACK)
    cni.check(network("one"), A, STACK)
    assert verbs("check") == [("check", "one")]
    silent = NetworkList.from_json({**network("one").to_json(), "disableCheck": True})
    cni.add(silent, B, STACK)
    cni.check(silent, B, STACK)
    assert verbs("check") == [("check", "one")]


@pytest.mark.parametrize(
    "attachment",
    [
        Attachment("../a", netns="/x"),
        Attachment("a"),
        Attachment("", netns="/x"),
        Attachment("a", "x" * 16, "/x"),
        Attachment("a", "a/b", "/x"),
    ],
)
def test_names_that_break_the_specification_are_refused(cni, ledger, attachment) -> None:
    with pytest.raises(ConfigurationError):
        cni.add(network("one"), attachment, STACK)
    assert ledger.entries() == []


def test_an_unknown_type_is_named_with_what_there_is(cni) -> None:
    unknown = NetworkList.from_json(
        {"name": "pods", "cniVersion": "1.0.0", "plugins": [{"type": "calico"}]}, "10.conflist"
    )
    (problem,) = cni.status(unknown)
    assert "plugin type 'calico' is not installed; there are" in problem
    assert "recorder" in problem
    with pytest.raises(UnknownPluginError):
        cni.add(unknown, A, STACK)


def test_an_entry_point_that_leads_nowhere_is_named(cni) -> None:
    wrong = NetworkList.from_json({"name": "pods", "cniVersion": "1.0.0", "plugins": [{"type": "wrong"}]})
    assert "cni_plugins.nowhere:Nothing cannot be loaded" in cni.status(wrong)[0]


def test_status_gathers_what_all_plugins_say(cni) -> None:
    assert cni.status(network("one", "two")) == []
    FAIL["status", "two"] = KernelError(1, "x", "y")
    assert cni.status(network("one", "two")) == ["two has a problem"]


def test_gc_detaches_who_is_gone_and_asks_the_plugins_about_the_rest(cni, ledger, plugins) -> None:
    cni.add(network("one"), A, STACK)
    cni.add(network("one"), B, STACK)
    assert cni.gc(lambda: ["b"], [network("one")]) == []
    assert ("delete", "one", "a/eth0") in CALLS
    assert ("gc", "one", ["b/eth0"]) in CALLS
    assert [entry.owner for entry in ledger.entries()] == ["b/eth0"]
    assert set(plugins["pods"].ports) == {"b/eth0"}


def test_gc_of_one_configuration_spares_what_another_of_the_same_name_has_made(cni, plugins) -> None:
    cni.add(network("old"), A, STACK)
    cni.add(network("new"), B, STACK)
    assert cni.gc(lambda: ["a", "b"], [network("new")]) == []
    assert verbs("gc") == [("gc", "new"), ("gc", "old")]
    assert all(call[2] == ["a/eth0", "b/eth0"] for call in CALLS if call[0] == "gc")
    assert set(plugins["pods"].ports) == {"a/eth0", "b/eth0"}
    assert set(plugins["pods"].masquerades) == {"a/eth0", "b/eth0"}


def test_a_plugin_that_fails_keeps_no_other_from_its_gc(cni, plugins, monkeypatch) -> None:
    told = network("one", "two")
    cni.add(told, A, STACK)
    FAIL["gc", "one"] = KernelError(16, "restore", "one")
    monkeypatch.setattr(Recorder, "translates", False)
    (failure,) = cni.gc(lambda: ["a"], [told])
    assert "cannot restore one" in str(failure)
    assert ("gc", "two") in verbs("gc")
    assert set(plugins["pods"].ports) == {"a/eth0"}


def test_translations_are_left_alone_while_not_all_are_known(cni, plugins) -> None:
    cni.add(network("one"), A, STACK)
    cni.add(network("two"), B, STACK)
    assert cni.gc(lambda: ["a", "b"]) == []
    FAIL["gc", "one"] = KernelError(16, "restore", "one")
    assert len(cni.gc(lambda: ["b"])) == 0, "nothing is attached by it any more"
    assert set(plugins["pods"].ports) == {"b/eth0"}
    FAIL["gc", "two"] = KernelError(16, "restore", "two")
    assert len(cni.gc(lambda: ["b"])) == 1
    assert set(plugins["pods"].ports) == {"b/eth0"}


def test_disable_gc_spares_what_other_runtimes_may_share(cni, monkeypatch) -> None:
    silent = NetworkList.from_json({**network("one").to_json(), "disableGC": True})
    cni.add(silent, A, STACK)
    assert cni.gc(lambda: ["a"], [silent]) == []
    assert verbs("gc") == [("gc", "one")]
    monkeypatch.setattr(Recorder, "shared", True)
    assert cni.gc(lambda: ["a"], [silent]) == []
    assert verbs("gc") == [("gc", "one")]


def test_after_a_reboot_nothing_is_attached_any_more(cni, tmp_path) -> None:
    cni.add(network("one"), A, STACK)
    later = Ledger(tmp_path / "network.db", "boot-2")
    again = CNI(later)
    assert again.gc(lambda: ["a"]) == []
    assert ("previous", ["one"], None) in CALLS
    assert later.entries() == []
    again.close()
    later.close()


def test_gc_waits_for_an_add_under_way_and_asks_who_is_there_afterwards(cni, ledger, monkeypatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    add, alive = Recorder.add, set()

    def slow(self, request):
        entered.set()
        assert go_on.wait(10)
        alive.add("a")
        return add(self, request)

    monkeypatch.setattr(Recorder, "add", slow)
    adding = threading.Thread(target=cni.add, args=(network("one"), A, STACK))
    adding.start()
    assert entered.wait(10)
    collecting = threading.Thread(target=cni.gc, args=(lambda: alive,))
    collecting.start()
    collecting.join(0.1)
    assert collecting.is_alive()
    go_on.set()
    adding.join(10)
    collecting.join(10)
    assert [entry.owner for entry in ledger.entries()] == ["a/eth0"]


def test_a_ledger_that_cannot_be_written_means_that_nothing_is_made(cni, ledger) -> None:
    ledger.close()
    with pytest.raises(LedgerError):
        cni.add(network("one"), A, STACK)
    assert CALLS == []


def test_a_pod_whose_plugin_is_gone_does_not_harm_the_others(cni, ledger, plugins, monkeypatch) -> None:
    """An operator has uninstalled a plugin, or does not allow external ones any more."""
    told = network("one").to_json()
    told["plugins"].append({"type": "bridge", "bridge": "br9"})
    cni.add(network("one"), B, STACK)
    entry = ledger.entry("pods", "b/eth0")
    told["plugins"][1] = {"type": "gone"}
    ledger.begin(replace(entry, owner="a/eth0", container="a", configuration=told))
    ledger.finish("pods", "a/eth0", entry.result)
    (failure,) = cni.gc(lambda: ["a", "b"])
    assert "'gone' is not installed" in str(failure)
    assert len(plugins["pods"].ports) == 1, "the other one's translations were restored"
    assert ("gc", "one", ["a/eth0", "b/eth0"]) in CALLS or verbs("gc")
    with pytest.raises(UnknownPluginError):
        cni.delete_all("a")
    assert ledger.entry("pods", "a/eth0") is not None


def test_what_cannot_be_read_stops_the_gc_of_its_own_network_only(cni, ledger, plugins) -> None:
    other = NetworkList.from_json({**network("one").to_json(), "name": "others"})
    cni.add(network("one"), A, STACK)
    cni.add(other, B, STACK)
    ledger.finish("pods", "a/eth0", {"ips": [{"address": "torn"}]})
    (failure,) = cni.gc(lambda: ["a", "b"])
    assert "torn" in str(failure)
    assert [call[2] for call in CALLS if call[0] == "gc"] == [["b/eth0"]]
    assert set(plugins["others"].ports) == {"b/eth0"}


def test_who_deletes_slowly_holds_up_nobody(cni, ledger, monkeypatch) -> None:
    """gc finds a dead attachment whose plugin takes its time; meanwhile another pod is added."""
    cni.add(network("one"), A, STACK)
    deleting, go_on = threading.Event(), threading.Event()
    delete = Recorder.delete

    def slow(self, request):
        if request.owner == "a/eth0":
            deleting.set()
            assert go_on.wait(10)
        delete(self, request)

    monkeypatch.setattr(Recorder, "delete", slow)
    collecting = threading.Thread(target=cni.gc, args=(lambda: ["b"],))
    collecting.start()
    assert deleting.wait(10)
    cni.add(network("one"), B, STACK)
    assert collecting.is_alive()
    go_on.set()
    collecting.join(10)
    assert [entry.owner for entry in ledger.entries()] == ["b/eth0"], "the one that came meanwhile was spared"


def test_whoever_waits_to_be_alone_gets_there(monkeypatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE", 0.05)
    gate, done = turns.Gate(), threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            with gate.passing():
                time.sleep(0.02)

    crowd = [threading.Thread(target=come_and_go) for _ in range(4)]
    for one in crowd:
        one.start()
    with gate.alone():
        done.set()
    for one in crowd:
        one.join(10)


def test_one_who_hangs_holds_newcomers_up_for_a_moment_only(monkeypatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE", 0.02)
    monkeypatch.setattr(turns, "_HOLD", 0.02)
    gate, go_on = turns.Gate(), threading.Event()

    def hang() -> None:
        with gate.passing():
            go_on.wait(10)

    hanging = threading.Thread(target=hang)
    waiting = threading.Thread(target=lambda: gate.alone().__enter__())
    hanging.start()
    waiting.start()
    for _ in range(20):
        with gate.passing():
            time.sleep(0.005)
    go_on.set()
    hanging.join(10)
    waiting.join(10)
    assert not waiting.is_alive()


def test_at_the_end_calls_under_way_are_waited_for_and_later_ones_refused(ledger, monkeypatch) -> None:
    cni = CNI(ledger)
    entered, go_on = threading.Event(), threading.Event()
    add = Recorder.add

    def slow(self, request):
        entered.set()
        assert go_on.wait(10)
        return add(self, request)

    monkeypatch.setattr(Recorder, "add", slow)
    adding = threading.Thread(target=cni.add, args=(network("one"), A, STACK))
    adding.start()
    assert entered.wait(10)
    closing = threading.Thread(target=cni.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    go_on.set()
    closing.join(10)
    adding.join(10)
    assert ledger.entry("pods", "a/eth0").result is not None
    for call in (lambda: cni.add(network("one"), B, STACK), lambda: cni.delete_all("a")):
        with pytest.raises(ClosedError):
            call()


def test_what_is_left_for_later_is_done_before_the_end(ledger) -> None:
    done = []
    cni = CNI(ledger)
    (plugin,) = cni._chain(network("one")).plugins()
    plugin.context.later("a thing", lambda: done.append(os.getpid()))
    plugin.context.later("a failure", _fail)
    cni.close()
    assert done == [os.getpid()]


def _fail() -> None:
    raise KernelError(1, "do", "it")
