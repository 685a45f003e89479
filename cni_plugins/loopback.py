"""A pod's loopback interface, for runtimes that bring it up without a configuration that says so."""

from __future__ import annotations

from cni_plugins import links
from cni_plugins.types import NetworkStack, OwnStack


def up(stack: NetworkStack) -> None:
    """Bring a pod's loopback interface up: 127.0.0.1 and, unless IPv6 is off there, ::1 appear.

    Blocks; may be repeated. Raises KernelError.
    """
    links.for_this_system(OwnStack()).loopback_up(stack)
