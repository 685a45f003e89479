"""Network namespaces for the tests: pods, and a host of our own so that the machine's is left alone."""

import contextlib
import ctypes
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from cni_plugins import Allocator, Bridge, BridgeConfig

CLONE_NEWNET = 0x40000000
V4 = IPv4Network("10.88.0.0/16")
V6 = IPv6Network("fd00:88::/64")


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

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.run(socket.socket, family, kind, protocol)

    def close(self) -> None:
        os.close(self.move_target)
        self._thread.shutdown()


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
def host(make_namespace):
    return make_namespace()


@pytest.fixture
def pod(make_namespace):
    return make_namespace()


@pytest.fixture
def config():
    return BridgeConfig(f"crit{secrets.token_hex(3)}", (V4, V6))


@pytest.fixture
def bridge(config, host):
    made = Bridge(config, host)
    made.ensure()
    return made


@pytest.fixture
def allocators():
    return Allocator(V4), Allocator(V6)


@pytest.fixture
def reserve(allocators):
    """An owner's addresses, one per family."""
    return lambda owner: [allocator.reserve(owner) for allocator in allocators]
