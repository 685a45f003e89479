"""Which network pods get, and what a client is told of it."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace

import pytest

from cni_plugins import (
    CNI,
    DNS,
    ClosedError,
    Interface,
    IPConfig,
    KernelError,
    LedgerError,
    PortMapping,
    Result,
)
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
