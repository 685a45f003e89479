"""Which network pods get, and what a client is told of it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace

import pytest

from cni_plugins import (
    CNI,
    DNS,
    ClosedError,
    ConfigurationError,
    Interface,
    IPConfig,
    KernelError,
    LedgerError,
    PortMapping,
    Result,
)
from cni_plugins.ledger_file import LedgerFile
from cri import config, network
from cri.errors import InvalidArgumentError
from cri.network import CniNetwork
from cri.sandbox.fake import FakeHost, FakeKernel
from cri.sandbox.host import HostError
from cri.sandbox.spec import PortMapping as SpecPort
from cri.sandbox.spec import Resolver, SandboxSpec

BRIDGE = {"type": "bridge", "bridge": "br9", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}
LIST = {"name": "mine", "cniVersion": "1.0.0", "plugins": [BRIDGE]}


@pytest.fixture
def settings(tmp_path: Path):
    loaded = config.load(environment={}, flags={"network.conf_dir": str(tmp_path / "net.d")})
    return replace(loaded.network, subnets=("10.88.0.0/16", "fd00:88::/64"))


@pytest.fixture
async def open_network(tmp_path: Path, settings):
    made = []

    async def open_() -> CniNetwork:
        opened = CniNetwork(FakeHost(FakeKernel(), tmp_path), settings, tmp_path)
        await opened.open()
        made.append(opened)
        return opened

    yield open_
    for one in made:
        await one.close()


@pytest.fixture
def calls(monkeypatch):
    """CNI's verbs, as they are asked for; the kernel is left alone."""
    seen = SimpleNamespace(added=[], deleted=[], result=Result(), status=[], error=None)

    def add(self, wanted, attachment, stack):
        seen.added.append((wanted, attachment))
        if seen.error:
            raise seen.error
        return seen.result

    monkeypatch.setattr(CNI, "add", add)
    monkeypatch.setattr(
        CNI,
        "delete",
        lambda self, wanted, attachment, stack=None: seen.deleted.append((wanted.name, attachment)),
    )
    monkeypatch.setattr(CNI, "status", lambda self, wanted: seen.status)
    monkeypatch.setattr(network.loopback, "up", lambda stack: None)
    return seen


def sandbox(**values) -> SandboxSpec:
    return SandboxSpec("a" * 64, "web", "default", "/d", "/r", uid="u-1", **values)


async def attach(opened: CniNetwork, spec: SandboxSpec):
    host = opened._host
    host.network_stack = lambda spec, warden: SimpleNamespace(name="/ns", move_target=-1, close=lambda: None)
    return await opened.attach(spec, None)


async def test_without_a_configuration_there_is_a_default_network(open_network, calls) -> None:
    opened = await open_network()
    await attach(opened, sandbox())
    ((wanted, attachment),) = calls.added
    types = [plugin["type"] for plugin in wanted.plugins]
    assert (wanted.name, types[:3]) == ("cri0", ["bridge", "masquerade", "portmap"])
    assert wanted.plugins[0]["ipam"]["ranges"] == [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]]
    assert attachment.container_id == "a" * 64
    assert attachment.args["K8S_POD_NAMESPACE"] == "default"
    assert attachment.args["K8S_POD_UID"] == "u-1"
    assert attachment.netns == "/ns"


async def test_a_configuration_counts_from_the_moment_it_is_there(open_network, calls, settings) -> None:
    opened = await open_network()
    settings.conf_dir.mkdir()
    (settings.conf_dir / "10.conflist").write_text(json.dumps(LIST))
    await attach(opened, sandbox())
    assert calls.added[0][0].name == "mine"


async def test_a_broken_configuration_does_not_fall_back_on_the_default(
    open_network, calls, settings
) -> None:
    settings.conf_dir.mkdir()
    (settings.conf_dir / "10.conflist").write_text("{")
    opened = await open_network()
    found = await opened.condition()
    assert not found.ok
    assert "10.conflist: no JSON" in found.message


async def test_an_unknown_type_keeps_the_network_unready_and_is_named(open_network, settings) -> None:
    settings.conf_dir.mkdir()
    (settings.conf_dir / "10.conflist").write_text(json.dumps({**LIST, "plugins": [{"type": "calico"}]}))
    opened = await open_network()
    found = await opened.condition()
    assert not found.ok
    assert "plugin type 'calico' is not installed" in found.message


async def test_what_plugins_say_is_the_condition(open_network, calls) -> None:
    opened = await open_network()
    assert (await opened.condition()).ok
    calls.status = ["pf is off", "no route"]
    assert (await opened.condition()).ok, "it was looked at a moment ago"
    opened._well_until = 0.0
    found = await opened.condition()
    assert (found.ok, found.reason, found.message) == (False, "NetworkPluginNotReady", "pf is off; no route")


async def test_a_plugin_that_hangs_keeps_no_client_waiting(open_network, calls, monkeypatch) -> None:
    opened = await open_network()
    monkeypatch.setattr(network, "STATUS_SECONDS", 0.05)
    go_on, asked = threading.Event(), []

    def hang(self, wanted) -> list[str]:
        asked.append(wanted)
        go_on.wait(10)
        return []

    monkeypatch.setattr(CNI, "status", hang)
    found = await asyncio.gather(*(opened.condition() for _ in range(50)))
    assert {one.reason for one in found} == {"NetworkPluginSilent"}
    assert len(asked) == 1
    go_on.set()
    monkeypatch.setattr(network, "STATUS_SECONDS", 10)
    assert (await opened.condition()).ok


async def test_a_process_that_did_not_run_blames_no_plugin(open_network, monkeypatch) -> None:
    """As on a node that is starved, or a virtual machine that was paused: the kubelet would take all pods away."""
    opened = await open_network()
    monkeypatch.setattr(network, "STATUS_SECONDS", 0.2)
    asked = threading.Event()

    def answer(self, wanted) -> list[str]:
        asked.set()
        time.sleep(0.1)
        return []

    async def hold_up() -> None:
        await asyncio.to_thread(asked.wait, 5)
        time.sleep(1)

    monkeypatch.setattr(CNI, "status", answer)
    found, _ = await asyncio.gather(opened.condition(), hold_up())
    assert found.ok


async def test_reconciliation_goes_on_after_a_failure(open_network, monkeypatch) -> None:
    times = []

    def fail(self, valid, networks, *, shared):
        times.append(shared)
        raise LedgerError("the disk is full") if shared or len(times) == 1 else ValueError("a fault of ours")

    opened = await open_network()
    monkeypatch.setattr(CNI, "gc", fail)
    monkeypatch.setattr(network, "RECONCILE_SECONDS", 0.01)
    opened.watch(list)
    while len(times) < 4:
        await asyncio.sleep(0.01)
    assert set(times) == {False}
    await opened.reconcile(list)  # a disk that is full does not keep the daemon from starting


async def test_after_the_end_calls_are_told_so(open_network) -> None:
    opened = await open_network()
    await opened.close()
    with pytest.raises(ClosedError):
        await opened.detach("a")


async def test_a_pod_gets_its_ports_its_limits_and_both_families(open_network, calls) -> None:
    calls.result = Result(
        interfaces=(Interface("eth0"),),
        ips=(IPConfig(ip_interface("10.88.0.2/16")), IPConfig(ip_interface("fd00:88::2/64"))),
        dns=DNS(("10.96.0.10",), search=("a",)),
    )
    opened = await open_network()
    ports = (
        SpecPort("udp", 53, 5353, "192.0.2.1"),
        SpecPort("tcp", 80, 8080),
        SpecPort("tcp", 81, 81, "0.0.0.0"),
    )
    spec = sandbox(port_mappings=ports, annotations={"kubernetes.io/egress-bandwidth": "10M"})
    given = await attach(opened, spec)
    assert given.addresses == ("10.88.0.2", "fd00:88::2")
    assert given.resolver == Resolver(("10.96.0.10",), ("a",))
    runtime = calls.added[0][1].runtime
    assert runtime.port_mappings == (
        PortMapping(53, 5353, "udp", ip_address("192.0.2.1")),
        PortMapping(80, 8080, "tcp"),
        PortMapping(81, 81, "tcp", ip_address("0.0.0.0")),
    )
    assert runtime.bandwidth.egress_rate == 10**7


async def test_the_pod_cidr_renders_the_default_and_outlives_the_daemon(open_network, calls) -> None:
    opened = await open_network()
    await opened.set_pod_cidr("10.1.2.0/24,fd01::/64")
    await attach(opened, sandbox())
    again = await open_network()
    await attach(again, sandbox())
    for wanted, _ in calls.added:
        assert wanted.plugins[0]["ipam"]["ranges"] == [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]
        assert wanted.plugins[1]["nonMasqueradeCIDRs"][:2] == ["10.1.2.0/24", "fd01::/64"]


@pytest.mark.parametrize("cidr", ["here", "10.0.0.1/24", "10.0.0.0/24,10.1.0.0/24", ",", "10.0.0.1/32"])
async def test_a_pod_cidr_that_cannot_be_changes_nothing(open_network, calls, cidr) -> None:
    opened = await open_network()
    with pytest.raises(InvalidArgumentError, match="pod_cidr"):
        await opened.set_pod_cidr(cidr)
    await attach(opened, sandbox())
    assert calls.added[0][0].plugins[0]["ipam"]["ranges"][0] == [{"subnet": "10.88.0.0/16"}]


async def test_a_sandbox_that_no_record_names_is_detached_by_the_network_of_new_pods(
    open_network, calls
) -> None:
    opened = await open_network()
    await opened.release("b" * 64)
    ((name, attachment),) = calls.deleted
    assert (name, attachment.owner) == ("cri0", f"{'b' * 64}/eth0")


async def test_a_network_that_cannot_be_taken_back_is_an_error_of_the_host(
    open_network, calls, monkeypatch
) -> None:
    def refuse(self, wanted, attachment, stack=None):
        raise KernelError(16, "delete", "interface x")

    opened = await open_network()
    monkeypatch.setattr(CNI, "delete", refuse)
    with pytest.raises(HostError, match="interface x"):
        await opened.release("c")


@pytest.fixture
def removed(open_network, monkeypatch):
    """What is lost on the node, and how often it was put in line."""
    seen = SimpleNamespace(lost=[], collected=0)

    def collect(self, valid, networks, **_):
        seen.collected += 1
        seen.lost = []
        return []

    monkeypatch.setattr(CNI, "lost", lambda self: list(seen.lost))
    monkeypatch.setattr(CNI, "gc", collect)
    return seen


async def until(what) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.01)


async def test_what_somebody_has_removed_is_the_condition_until_it_is_back(
    open_network, calls, removed
) -> None:
    opened = await open_network()
    opened.watch(list)
    assert (await opened.condition()).ok
    removed.lost = ["bridge cri0 is not there", *(f"table {number} is not there" for number in range(9))]
    assert (await opened.condition()).ok, "it was looked at a moment ago"
    opened._lost, opened._well_until = (0.0, []), 0.0
    found = await opened.condition()
    assert (found.ok, found.reason) == (False, "NetworkBroken")
    assert "bridge cri0 is not there; table 0" in found.message
    assert "and 5 more" in found.message
    await until(lambda: removed.collected)
    await asyncio.sleep(0.05)
    assert (await opened.condition()).ok
    assert removed.collected == 1


async def test_what_nobody_asks_about_is_put_back_too(open_network, calls, removed, monkeypatch) -> None:
    monkeypatch.setattr(network, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(network, "LOST_SECONDS", 0.05)
    opened = await open_network()
    opened.watch(list)
    await asyncio.sleep(0.2)
    assert removed.collected == 0, "there was no reason"
    removed.lost = ["bridge cri0 is not there"]
    await until(lambda: removed.collected)


async def test_what_cannot_be_put_back_is_tried_with_pauses(open_network, calls, monkeypatch) -> None:
    times = []

    def fail(self, valid, networks, **_):
        times.append(1)
        raise KernelError(1, "make", "bridge cri0")

    monkeypatch.setattr(CNI, "lost", lambda self: ["bridge cri0 is not there"])
    monkeypatch.setattr(CNI, "gc", fail)
    opened = await open_network()
    opened.watch(list)
    for _ in range(20):
        assert not (await opened.condition()).ok
        await asyncio.sleep(0.02)
    assert 1 <= len(times) <= 2


async def test_a_ledger_that_cannot_be_written_is_the_condition_until_it_can(
    open_network, calls, monkeypatch
) -> None:
    opened = await open_network()
    with monkeypatch.context() as disk:

        def refuse(self, statements):
            raise OSError(28, "No space left on device")

        disk.setattr(LedgerFile, "_commit", refuse)
        opened._ledger.note("a", "b")
        found = await opened.condition()
        assert (found.ok, found.reason) == (False, "NetworkStateNotWritable")
        assert "No space left" in found.message == opened.ledger_problem
    assert (await opened.condition()).ok
    assert opened.ledger_problem == ""


async def test_room_is_made_by_whoever_has_some(tmp_path: Path, settings, monkeypatch) -> None:
    asked = []
    opened = CniNetwork(
        FakeHost(FakeKernel(), tmp_path), settings, tmp_path, make_room=lambda: bool(asked.append(1))
    )
    await opened.open()

    def refuse(self, statements):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(LedgerFile, "_commit", refuse)
        opened._ledger.note("a", "b")
    assert asked == [1]
    await opened.close()


async def test_a_lost_network_is_rebuilt_and_until_then_spared(open_network, calls, monkeypatch) -> None:
    rebuilt, spared, closed = [], [], []
    answer: list = [KernelError(11, "list", "interfaces"), True]

    def rebuild(self, networks, attachment, stack):
        rebuilt.append(([one.name for one in networks], attachment))
        result = answer.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(CNI, "rebuild", rebuild)
    monkeypatch.setattr(CNI, "gc", lambda self, valid, networks, **values: spared.append(values) or [])
    opened = await open_network()
    stack = SimpleNamespace(name="/ns", move_target=-1, close=lambda: closed.append(1))
    opened._host.network_stack = lambda spec, warden: stack
    spec = sandbox(port_mappings=(SpecPort("tcp", 80, 8080),))
    with pytest.raises(KernelError):
        await opened.rebuild(spec, None, ["10.88.0.9"])
    await opened.reconcile(lambda: [spec.id])
    assert spared.pop()["spared"] == {spec.id: ("10.88.0.9",)}
    assert await opened.rebuild(spec, None, ["10.88.0.9"])
    await opened.reconcile(lambda: [spec.id])
    assert "spared" not in spared.pop()
    (names, attachment), _ = rebuilt
    assert names == ["cri0"]
    assert attachment.runtime.port_mappings == (PortMapping(80, 8080, "tcp"),)
    assert closed == [1, 1]


async def test_a_pod_that_nobody_has_written_down_is_detached_by_name_once(open_network, calls) -> None:
    opened = await open_network()
    await opened.detach("a" * 64)
    await opened.detach("a" * 64)
    ((name, attachment),) = calls.deleted
    assert (name, attachment.owner) == ("cri0", f"{'a' * 64}/eth0")


async def test_a_broken_configuration_keeps_nobody_from_being_detached(open_network, calls, settings) -> None:
    settings.conf_dir.mkdir()
    (settings.conf_dir / "10.conflist").write_text("{")
    opened = await open_network()
    await opened.detach("a" * 64)
    await opened.release("b" * 64)
    assert [name for name, _ in calls.deleted] == ["cri0", "cri0"]


@pytest.mark.parametrize("lost", ["network.db", "pod-cidr"])
@pytest.mark.parametrize("how", ["missing", "empty", "noise", "directory", "fifo", "link"])
async def test_the_pod_cidr_outlives_either_of_its_places(
    open_network, calls, tmp_path: Path, lost: str, how: str
) -> None:
    opened = await open_network()
    await opened.set_pod_cidr("10.1.2.0/24")
    await opened.close()
    path = tmp_path / lost
    path.unlink()
    match how:
        case "empty":
            path.touch()
        case "noise":
            path.write_bytes(os.urandom(8192))
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(path.name)
    for _ in range(2):
        again = await open_network()
        assert again._default.plugins[0]["ipam"]["ranges"] == [[{"subnet": "10.1.2.0/24"}]]
        await again.close()


async def test_a_kept_pod_cidr_that_cannot_be_is_passed_over(open_network, calls, tmp_path: Path) -> None:
    (tmp_path / "pod-cidr").write_text("10.0.0.1/32")
    opened = await open_network()
    assert opened._default.plugins[0]["ipam"]["ranges"][0] == [{"subnet": "10.88.0.0/16"}]


async def test_another_configuration_counts_for_pods_to_come(open_network, calls, settings, tmp_path):
    opened = await open_network()
    await attach(opened, sandbox())
    take_over = await opened.prepare(replace(settings, bridge="other", conf_dir=tmp_path / "elsewhere"))
    await attach(opened, sandbox())
    take_over()
    await attach(opened, sandbox())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.conflist").write_text(json.dumps(LIST))
    await attach(opened, sandbox())
    assert [wanted.name for wanted, _ in calls.added] == ["cri0", "cri0", "other", "mine"]
    with pytest.raises(ConfigurationError, match="no room"):
        await opened.prepare(replace(settings, subnets=("10.0.0.0/31",)))


async def test_a_pod_cidr_is_kept_over_a_new_configuration(open_network, calls, settings):
    opened = await open_network()
    await opened.set_pod_cidr("10.5.0.0/24")
    (await opened.prepare(replace(settings, mtu=1400, subnets=("10.6.0.0/16",))))()
    await attach(opened, sandbox())
    ((wanted, _),) = calls.added
    text = json.dumps(wanted.to_json())
    assert "10.5.0.0/24" in text
    assert "1400" in text
    assert "10.6." not in text
