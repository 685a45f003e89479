"""CNI's verbs over plugins that write down what they are asked to do."""

import os
import threading
from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from ipaddress import ip_interface
from types import SimpleNamespace

import pytest

from cni_plugins import CNI, Attachment, Ledger, NetworkList, PortMapping, RuntimeConfig, registry
from cni_plugins import nat as nat_seam
from cni_plugins.errors import (
    AttachmentExistsError,
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
        nat = self.context.nat()
        nat.restore_ports(
            {request.owner: [HostPort("tcp", 80, ip_interface("10.0.0.2/24"), 80)] for request in requests}
        )
        nat.restore_masquerades({f"{request.owner} own": Masquerade((), ()) for request in requests})

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
    assert cni.addresses("a") == ["10.0.0.2"]


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
    assert set(plugins["pods"].masquerades) == {"a/eth0 own", "b/eth0 own"}


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


def test_what_is_left_for_later_is_done_before_the_end(ledger) -> None:
    done = []
    cni = CNI(ledger)
    (plugin,) = cni.plugins(network("one"))
    plugin.context.later("a thing", lambda: done.append(os.getpid()))
    plugin.context.later("a failure", _fail)
    cni.close()
    assert done == [os.getpid()]


def _fail() -> None:
    raise KernelError(1, "do", "it")
