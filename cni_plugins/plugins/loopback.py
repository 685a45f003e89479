"""CNI's loopback plugin: a pod can reach itself.

    {"type": "loopback"}

The addresses are in the result, as the interface's, unless another plugin has made one before: then that one's stays as it
is, like the reference plugin's.
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import ClassVar

from cni_plugins.errors import AttachmentBrokenError, NotAttachedError
from cni_plugins.pairs import stack_of
from cni_plugins.plugin import Context, Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import Interface, IPConfig, Result

_ADDRESSES = ip_interface("127.0.0.1/8"), ip_interface("::1/128")


class LoopbackPlugin(Plugin):
    """The loopback interface that every stack has from the beginning."""

    type: ClassVar[str] = "loopback"
    translates = False

    def __init__(self, settings: Settings, context: Context) -> None:  # noqa: ARG002 - there are no settings
        self._links = context.links

    def add(self, request: Request) -> Result:
        """Bring the interface up."""
        stack, before = stack_of(request), request.previous
        name = self._links.loopback
        self._links.loopback_up(stack)
        if before != Result():
            return before
        state = self._links.state(stack, name)
        if state is None:
            raise _missing(request, name)
        return Result(
            (Interface(name, state.link.mac, request.attachment.netns),),
            tuple(IPConfig(address, interface=0) for address in _ADDRESSES if address in state.addresses),
        )

    def delete(self, request: Request) -> None:
        """Leave the interface as it is: it ends with the pod, and other attachments need it until then."""

    def check(self, request: Request) -> None:
        """Find the interface up, with the addresses that it was made with."""
        name = self._links.loopback
        state = self._links.state(request.stack, name) if request.stack is not None else None
        if state is None:
            raise _missing(request, name)
        faults = [] if state.link.up else [f"{name} is down"]
        faults += [
            f"{name} lacks address {ip.address}"
            for ip in request.previous.ips
            if ip.address in _ADDRESSES and ip.address not in state.addresses
        ]
        if faults:
            raise AttachmentBrokenError(f"attachment {request.owner}: {'; '.join(faults)}; add it again")


def _missing(request: Request, name: str) -> NotAttachedError:
    return NotAttachedError(f"attachment {request.owner}: the pod has no {name}; make the pod anew")
