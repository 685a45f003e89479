"""What the plugins' tests are made of: contexts without a daemon, and network namespaces for pods and for a host of our own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import links, registry
from cni_plugins.ledger import Ledger
from cni_plugins.nat import HostPort, Masquerade
from cni_plugins.plugin import Attachment, Context, Plugin, Request
from cni_plugins.runtime_config import RuntimeConfig
from cni_plugins.settings import Settings
from cni_plugins.types import Address, OwnStack, Result

CLONE_NEWNET = 0x40000000
IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}


class Namespace:
    """A network namespace that lives as long as a thread which unshared it (and its descriptor).

    It is a `NetworkStack`: sockets are made in the thread, as a pod's warden makes them, and handed out.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.move_target = self._thread.submit(self._enter).result()

    @staticmethod
    def _enter() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._thread.submit(function, *arguments).result()

    def command(self, *command: str) -> str:
        """Run a program in there; return what it prints."""
        work = subprocess.run
        return self.run(lambda: work(command, check=True, capture_output=True, text=True, timeout=30).stdout)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.run(socket.socket, family, kind, protocol)

    def sysctl(self, name: str, value: str | None = None) -> str:
        def exchange() -> str:
            dotted = name.startswith("net.")  # sysctl.d(5)
            file = Path("/proc/sys", name.translate(str.maketrans("./", "/.")) if dotted else name)
            before = file.read_text().strip()
            if value is not None:
                file.write_text(value)
            return before

        return self.run(exchange)

    def close(self) -> None:
        """End the namespace; a second time nothing happens."""
        if self.move_target >= 0:
            os.close(self.move_target)
            self.move_target = -1
            self._thread.shutdown()


class RecordingNat:
    """A `nat.Nat` without a kernel."""

    def __init__(self) -> None:
        self.ports: dict[str, tuple[HostPort, ...]] = {}
        self.masquerades: dict[str, Masquerade] = {}
        self.killed: list[Address] = []
        self.lost: list[str] = []
        self.troubles: list[str] = []

    def publish(self, owner: str, ports: Sequence[HostPort]) -> None:
        self.ports[owner] = tuple(ports)

    def withdraw(self, owner: str) -> None:
        self.ports.pop(owner, None)

    def masquerade(self, owner: str, wanted: Masquerade) -> None:
        self.masquerades[owner] = wanted

    def unmasquerade(self, owner: str) -> None:
        self.masquerades.pop(owner, None)

    def restore_ports(self, wanted: Mapping[str, Sequence[HostPort]]) -> None:
        self.ports = {owner: tuple(ports) for owner, ports in wanted.items()}

    def restore_masquerades(self, wanted: Mapping[str, Masquerade]) -> None:
        self.masquerades = dict(wanted)

    def kill_states(self, addresses: Sequence[Address]) -> None:
        self.killed += addresses

    def missing(self, owner: str) -> list[str]:
        return list(self.lost)

    def problems(self) -> list[str]:
        return list(self.troubles)


class Later:
    """A `Context.later` that does what it is given at once, or, if it collects, in `run`."""

    def __init__(self, *, collect: bool) -> None:
        self.collect = collect
        self.waiting: list[tuple[str, Callable[[], object]]] = []

    def __call__(self, what: str, work: Callable[[], object]) -> None:
        self.waiting.append((what, work))
        if not self.collect:
            self.run()

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop(0)[1]()


@pytest.fixture
def make_context() -> Iterator[Callable[..., Context]]:
    """Make a Context on a host's stack (by default the machine's own).

    `context.nat()` is a RecordingNat; `context.later` is a Later. `ledger` may be another context's, as after a restart,
    `links` and `nat` others than the system's and the recorder.
    """
    with contextlib.ExitStack() as cleanup:

        def make(
            host: Any = None,
            network: str = "pods",
            *,
            collect: bool = False,
            ledger: Ledger | None = None,
            links_: links.Links | None = None,
            nat: Any = None,
        ) -> Context:
            host = OwnStack() if host is None else host
            if ledger is None:
                ledger = Ledger(None, "boot")
                cleanup.callback(ledger.close)
            nat = nat or RecordingNat()

            def delegate(settings: Settings) -> Plugin:
                return registry.find(settings.type)(settings, context)

            context = Context(
                network=network,
                host=host,
                links=links_ or links.for_this_system(host),
                ledger=ledger,
                nat=lambda: nat,
                delegate=delegate,
                later=Later(collect=collect),
            )
            return context

        yield make


@pytest.fixture
def make_plugin() -> Callable[..., Plugin]:
    """Make a plugin of its configuration: `make_plugin(context, "bridge", isGateway=True)`."""

    def make(context: Context, type_: str, **settings: Any) -> Plugin:
        where = f"network {context.network}: plugin {type_}"
        return registry.find(type_)(Settings({"type": type_, **settings}, where), context)

    return make


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """Make a Request: `make_request(stack, "container", "eth1", previous=result)`; capability arguments by name."""

    def make(
        stack: Any,
        container_id: str = "pod",
        ifname: str = "eth0",
        *,
        previous: Result | None = None,
        netns: str = "",
        args: Mapping[str, str] | None = None,
        **runtime: Any,
    ) -> Request:
        capabilities = RuntimeConfig(**runtime)
        attachment = Attachment(
            container_id, ifname, netns or f"/run/netns/{container_id}", capabilities, args or {}
        )
        return Request(attachment, stack, previous or Result(), capabilities)

    return make


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    if sys.platform != "linux":
        pytest.skip("Linux only: network namespaces; tests/freebsd has VNET jails")
    with contextlib.ExitStack() as cleanup:

        def make() -> Namespace:
            namespace = Namespace()
            cleanup.callback(namespace.close)
            return namespace

        yield make


@pytest.fixture
def host(make_namespace: Callable[[], Namespace]) -> Namespace:
    """A node without pods, which does not forward: a new namespace has that from the machine's own one."""
    made = make_namespace()
    made.command("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    return made


@pytest.fixture
def pod(make_namespace: Callable[[], Namespace]) -> Namespace:
    return make_namespace()


@pytest.fixture
def bridge_name() -> str:
    """Each test's own, for the machine may have it too."""
    return f"crit{secrets.token_hex(3)}"


@pytest.fixture
def ipam() -> dict[str, Any]:
    """IPAM for both families, with default routes; pods are 10.88.0.2 and fd00:88::2 and so on."""
    return IPAM


@pytest.fixture
def talk() -> Callable[[Any, Any, Address], bytes]:
    """Send a line over TCP from one stack to an address of another; return what arrived."""

    def run(client: Any, server: Any, address: Address) -> bytes:
        with server.socket(_family(address), socket.SOCK_STREAM) as listener:
            listener.settimeout(5)
            listener.bind((str(address), 0))
            listener.listen()
            with client.socket(_family(address), socket.SOCK_STREAM) as sock:
                sock.settimeout(5)
                sock.connect((str(address), listener.getsockname()[1]))
                sock.sendall(b"hello")
                accepted, _ = listener.accept()
                with accepted:
                    return accepted.recv(5)

    return run


@pytest.fixture
def ping() -> Callable[..., bool]:
    """Send one ICMP echo; true if the answer came within `patience` seconds. `size` is the whole packet's."""

    def run(stack: Any, address: Address, patience: float = 2, size: int = 64) -> bool:
        six = address.version == 6
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        with stack.socket(_family(address), socket.SOCK_RAW, protocol) as sock:
            sock.settimeout(patience)
            if size > 64:  # whole or not at all
                level, option = (socket.IPPROTO_IPV6, 23) if six else (socket.IPPROTO_IP, 10)
                sock.setsockopt(level, option, 2)  # IPV6_MTU_DISCOVER, IP_MTU_DISCOVER: DO
            body = struct.pack("!HH", 0x4321, 1) + bytes(size - 8 - (40 if six else 20))
            data = struct.pack("!BBH", 128 if six else 8, 0, 0) + body
            if not six:
                data = data[:2] + struct.pack("!H", _checksum(data)) + data[4:]
            sock.sendto(data, (str(address), 0))
            with contextlib.suppress(TimeoutError):
                while True:
                    answer = sock.recv(65536)
                    answer = answer if six else answer[20:]
                    if answer[0] == (129 if six else 0) and answer[4:] == body:
                        return True
            return False

    return run


def _family(address: Address) -> int:
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
