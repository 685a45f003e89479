"""What a plugin is: a class that a network's configuration makes an object of.

    class Widget(Plugin):
        type = "widget"

        def __init__(self, settings: Settings, context: Context) -> None:
            self._size = settings.integer("size", default=1, least=1)

        def add(self, request: Request) -> Result: ...
        def delete(self, request: Request) -> None: ...

A distribution offers its plugins as entry points of the group `cni_plugins`, each called after its type. The object is
made once per configuration and used by several threads at once; it keeps nothing that a later process would need: that
is what `Context.ledger` is for. An interface plugin adds to what the ones before it have made (`Request.previous`) and
returns the whole; so does an IPAM plugin, whose result has addresses, routes and DNS but no interfaces.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cni_plugins.errors import LedgerError
from cni_plugins.ledger import Ledger
from cni_plugins.links import Links, State
from cni_plugins.nat import Nat
from cni_plugins.runtime_config import RuntimeConfig
from cni_plugins.settings import Settings
from cni_plugins.types import NetworkStack, Result, SocketSource


@dataclass(frozen=True, slots=True)
class Attachment:
    """A pod's membership of a network, by one interface."""

    container_id: str
    ifname: str = "eth0"
    netns: str = ""
    """What the pod's network stack is called in results, and given to external plugins (CNI_NETNS). ADD needs it."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    args: Mapping[str, str] = field(default_factory=dict)
    """CNI_ARGS, such as K8S_POD_NAME."""

    @property
    def owner(self) -> str:
        """The attachment's own name on this node: what leases and translations are recorded under."""
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a plugin."""

    attachment: Attachment
    stack: NetworkStack | None
    """The pod's network stack. In `delete` it may be gone: None."""
    previous: Result
    """In `add`: what the plugins before have made. In `check`, `delete` and `gc`: what all had made in the end, empty if
    that is not known (a failed ADD)."""
    runtime: RuntimeConfig
    """The capability arguments that the plugin's configuration declares."""
    ours: bool = True
    """Made with the plugin's own configuration. In `gc` others of the same network are there, too: to be spared."""

    @property
    def owner(self) -> str:
        """See `Attachment.owner`."""
        return self.attachment.owner


@dataclass(frozen=True, slots=True)
class Context:
    """What a plugin works with."""

    network: str
    """Name of the network that the plugin is configured in."""
    host: SocketSource
    """The network stack of the node."""
    links: Links
    ledger: Ledger
    nat: Callable[[], Nat]
    """The network's address translation, made when it is first asked for."""
    delegate: Callable[[Settings], Plugin]
    """Make another plugin of a part of one's own settings, such as `ipam`. Raises UnknownPluginError."""
    later: Callable[[str, Callable[[], object]], None]
    """Have something done soon in another thread, and before the runtime closes: what no caller should wait for, and what
    a crash may prevent because `gc` does it too. The text names it, should it fail."""


class Plugin(abc.ABC):
    """A configured plugin. Every method blocks, and raises a NetworkError if it cannot do what it is for."""

    type: ClassVar[str]
    """What configurations call it."""
    shared: ClassVar[bool] = False
    """Other runtimes may keep things by it on this node, which `gc` would take for nobody's (see `disableGC`)."""
    translates: bool = True
    """Its `gc` restores translations. If that fails nobody knows all of them, and they are left as they are."""

    def __init__(self, settings: Settings, context: Context) -> None:  # noqa: B027 - not every plugin has settings
        """Read and check the settings. Raises ConfigurationError; changes nothing."""

    @abc.abstractmethod
    def add(self, request: Request) -> Result:
        """Do to a pod what the plugin is for, and return the previous result with what was added.

        If it fails, it leaves nothing behind; and `delete` follows nevertheless.
        """

    @abc.abstractmethod
    def delete(self, request: Request) -> None:
        """Undo `add`. Succeeds on what is gone, half made, or was never made."""

    def check(self, request: Request) -> None:  # noqa: B027 - a plugin without anything to check is one, too
        """Compare what there is with what `add` had made.

        Raises NotAttachedError or AttachmentBrokenError, naming all faults.
        """

    def gc(self, requests: Sequence[Request]) -> None:  # noqa: B027 - likewise
        """Bring what the node has of this network in line: these attachments and no others are there.

        Removes what belongs to none of them, and puts back what they lack on the node's side. May be repeated at any time.
        """

    def adopt(self, request: Request, pod: State) -> Result:  # noqa: ARG002 - for who has made something of it
        """Return what `add` would have returned for a pod that is attached and that nobody has written down.

        `pod` is its interface; nothing is made. `gc` comes next and puts back what is lacking. Raises NotAttachedError if
        the pod was being taken off when its record was lost.
        """
        return request.previous

    def lost(self, requests: Sequence[Request]) -> list[str]:  # noqa: ARG002 - likewise
        """Return what the node as a whole lacks of what these attachments need, a phrase each; nothing is mended.

        It is asked every few seconds: a handful of questions to the kernel, however many attachments there are.
        """
        return []

    def remove_unused(self) -> bool:
        """Remove what the plugin keeps on the node and nothing is attached to; return whether none of it is left."""
        return True

    def status(self) -> list[str]:
        """Return what keeps `add` from working now, a sentence each with the remedy; empty if nothing does."""
        return []


def as_json(attachment: Attachment) -> dict[str, Any]:
    """An attachment as the ledger keeps it."""
    return {
        "containerId": attachment.container_id,
        "ifname": attachment.ifname,
        "netns": attachment.netns,
        "runtimeConfig": attachment.runtime.to_json(),
        "args": dict(attachment.args),
    }


def from_json(kept: Mapping[str, Any]) -> Attachment:
    """The reverse of `as_json`. Raises LedgerError, ConfigurationError."""
    try:
        words = str(kept["containerId"]), str(kept["ifname"]), str(kept["netns"])
        args = {str(name): str(value) for name, value in kept["args"].items()}
        return Attachment(*words, RuntimeConfig.from_json(kept["runtimeConfig"]), args)
    except (KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"no attachment: {type(error).__name__}: {error}; remove its pod, or wait until it is made anew"
        ) from error
