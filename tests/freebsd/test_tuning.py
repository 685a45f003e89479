"""Sysctls and interfaces of VNET jails, tuned as a pod's warden and the tuning plugin do it; by root."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface

import pytest

if not sys.platform.startswith("freebsd"):
    pytest.skip("FreeBSD only: VNET jails", allow_module_level=True)

from cni_plugins import links, registry
from cni_plugins.errors import AttachmentBrokenError, ConfigurationError, KernelError
from cni_plugins.ledger import Ledger
from cni_plugins.links import Pair, Tuning
from cni_plugins.plugin import Attachment, Context, Request
from cni_plugins.runtime_config import Bandwidth, RuntimeConfig
from cni_plugins.settings import Settings
from cni_plugins.types import Interface, OwnStack, Result
from cri.sandbox.freebsd.driver import FreeBSDDriver
from cri.sandbox.freebsd.launcher import Launcher, open_program
from cri.sandbox.host import HostError

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

FIRST, SECOND, MAC = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:55"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


class Pod:
    """A VNET jail, reached as a warden reaches it."""

    def __init__(self) -> None:
        self.name = f"cnitune{secrets.token_hex(3)}"
        self.host_name = f"cnit{secrets.token_hex(3)}"
        run("jail", "-c", f"name={self.name}", "vnet", "persist")
        self.move_target = int(run("jls", "-j", self.name, "jid"))
        self._driver = FreeBSDDriver()
        self._driver._jid = self.move_target
        self._program = open_program()
        self._driver._launcher = Launcher(self._program)

    def close(self) -> None:
        os.close(self._program)
        with contextlib.suppress(ChildProcessError):  # whoever has done an errand; a warden's loop reaps them
            while os.waitpid(-1, 0)[0]:
                pass

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self._driver.make_socket(family, kind, protocol)

    def sysctl(self, name: str, value: str | None = None) -> str:
        try:
            return self._driver.sysctl(name, value)
        except HostError as error:
            raise OSError(error.errno, error.reason) from error

    def shown(self, name: str) -> str:
        return run("jexec", self.name, "sysctl", "-n", name).strip()


@pytest.fixture
def pod() -> Iterator[Pod]:
    pod = Pod()
    yield pod
    subprocess.run(["ifconfig", pod.host_name, "destroy"], check=False, capture_output=True)
    pod.close()
    run("jail", "-R", pod.name)


@pytest.fixture
def context() -> Iterator[Context]:
    ledger, host = Ledger(None, "boot"), OwnStack()
    yield Context("pods", host, links.for_this_system(host), ledger, None, None, None)
    ledger.close()


def plugin(context: Context, type_: str, **settings):
    where = f"network pods: plugin {type_}"
    return registry.find(type_)(Settings({"type": type_, **settings}, where), context)


@pytest.fixture
def request_(pod: Pod, context: Context) -> Request:
    pair = Pair(pod.host_name, FIRST, "eth0", SECOND, 1500)
    context.links.make_pair(pair, pod)
    context.links.configure(pod, "eth0", [ip_interface("10.199.0.2/24")])
    result = Result(interfaces=(Interface(pod.host_name), Interface("eth0", SECOND, pod.name)))
    return Request(Attachment("pod", netns=pod.name), pod, result, RuntimeConfig())


def test_variables_of_a_jail(pod):
    host = run("sysctl", "-n", "net.inet.ip.forwarding", "net.inet.ip.ttl")
    for name, value in (("net.inet.ip.forwarding", "1"), ("net.inet.ip.ttl", "77")):
        before = pod.shown(name)
        assert pod.sysctl(name, value) == before
        assert pod.sysctl(name) == pod.shown(name) == value
    assert run("sysctl", "-n", "net.inet.ip.forwarding", "net.inet.ip.ttl") == host
    # Text, and numbers of other widths.
    assert pod.sysctl("net.inet.tcp.cc.algorithm", "cubic") in ("cubic", "newreno")
    assert pod.shown("net.inet.tcp.cc.algorithm") == "cubic"
    assert pod.sysctl("net.inet.tcp.blackhole", "2") == "0"
    assert int(pod.sysctl("net.inet.tcp.recvbuf_max")) > 0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("kern.hostname", None, PermissionError),
        ("net.no.such", None, FileNotFoundError),
        ("net.isr.dispatch", "deferred", PermissionError),  # the host's, and no vnet's own
        ("net.inet.ip.ttl", "many", OSError),
        ("net.inet.ip.ttl", "5000000000", OSError),
    ],
)
def test_what_is_refused(pod, name, value, error):
    with pytest.raises(error):
        pod.sysctl(name, value)


def test_the_plugin(pod, context, request_):
    before = context.links.tune(pod, "eth0", Tuning())
    assert (before.mac, before.mtu) == (SECOND, 1500)
    settings = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True}
    tuning = plugin(context, "tuning", sysctl={"net.inet.ip.forwarding": "1"}, **settings)
    result = tuning.add(request_)
    assert result.interfaces[1] == Interface("eth0", MAC, pod.name, 1400)
    shown = run("jexec", pod.name, "ifconfig", "eth0")
    for word in (f"ether {MAC}", "mtu 1400", "PROMISC", "ALLMULTI", "inet 10.199.0.2"):
        assert word in shown
    assert pod.shown("net.inet.ip.forwarding") == "1"
    done = replace(request_, previous=result)
    tuning.check(done)
    run("jexec", pod.name, "ifconfig", "eth0", "mtu", "1300", "-promisc")
    pod.sysctl("net.inet.ip.forwarding", "0")
    with pytest.raises(AttachmentBrokenError) as caught:
        tuning.check(done)
    for fault in ("forwarding is 0, not 1", "mtu is 1300, not 1400", "promisc is False, not True"):
        assert fault in str(caught.value)
    tuning.delete(done)
    assert context.links.tune(pod, "eth0", Tuning()) == before
    tuning.delete(done)


def test_a_failure_leaves_nothing_behind(pod, context, request_):
    before = context.links.tune(pod, "eth0", Tuning())
    tuning = plugin(context, "tuning", sysctl={"net.inet.ip.forwarding": "1"}, mac=MAC, mtu=20)
    with pytest.raises(KernelError):
        tuning.add(request_)
    assert context.links.tune(pod, "eth0", Tuning()) == before
    assert pod.shown("net.inet.ip.forwarding") == "0"


def test_what_this_system_cannot_do(context, request_):
    with pytest.raises(ConfigurationError, match="txQLen: the queues of FreeBSD's interfaces"):
        plugin(context, "tuning", txQLen=10)
    bandwidth = plugin(context, "bandwidth", capabilities={"bandwidth": True})
    (problem,) = bandwidth.status()
    assert "dnpipe" in problem
    assert bandwidth.add(request_) == request_.previous
    limited = replace(request_, runtime=RuntimeConfig(bandwidth=Bandwidth(8, 8)))
    with pytest.raises(ConfigurationError, match="nothing limits"):
        bandwidth.add(limited)
