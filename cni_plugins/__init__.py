"""Pod networks made in this process: the work of CNI's loopback, bridge and host-local plugins as a library.

A caller brings a pod's network stack (`types.NetworkStack`: anything that makes sockets inside it) and gets
interfaces, addresses and routes, made over netlink without a subprocess:

    allocator = Allocator(IPv4Network("10.88.0.0/16"))
    bridge = Bridge(BridgeConfig("pods0", (allocator.subnet,)))
    bridge.ensure()
    loopback.up(stack)
    result = bridge.add("sandbox-1", stack, addresses=[allocator.reserve("sandbox-1")])

Every call blocks, for a few milliseconds as a rule: an asyncio program runs it in a thread. Every object may
be used by several threads at once. Nothing is kept on disk; what must survive a restart (who holds which
address) is the caller's to write down and to `Allocator.restore`.

The results have the shape of the CNI specification 1.0.0.
"""

from cni_plugins import loopback
from cni_plugins.bridge import Bridge, BridgeConfig
from cni_plugins.errors import (
    AddressesExhaustedError,
    AddressInUseError,
    AttachmentBrokenError,
    AttachmentExistsError,
    ConfigurationError,
    ForeignInterfaceError,
    KernelError,
    MalformedMessageError,
    NetworkError,
    NotAttachedError,
)
from cni_plugins.host_local import Allocator
from cni_plugins.types import Interface, IPConfig, NetworkStack, Result, Route

__all__ = [
    "AddressInUseError",
    "AddressesExhaustedError",
    "Allocator",
    "AttachmentBrokenError",
    "AttachmentExistsError",
    "Bridge",
    "BridgeConfig",
    "ConfigurationError",
    "ForeignInterfaceError",
    "IPConfig",
    "Interface",
    "KernelError",
    "MalformedMessageError",
    "NetworkError",
    "NetworkStack",
    "NotAttachedError",
    "Result",
    "Route",
    "loopback",
]
