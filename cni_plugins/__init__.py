"""Pod networks made in this process: CNI as a library, without a subprocess.

A caller brings a pod's network stack (`types.NetworkStack`: anything that makes sockets inside it) and gets interfaces,
addresses, routes, address translation and host ports:

    ledger = Ledger(Path("/var/db/pods/network.db"), boot_id)
    cni = CNI(ledger)
    network = ConfDirectory(Path("/usr/local/etc/cni/net.d")).look().network
    result = cni.add(network, Attachment("sandbox-1"), stack)
    ...
    cni.delete(network, Attachment("sandbox-1"))

Every call blocks, for a few milliseconds as a rule: an asyncio program runs it in a thread. Every object may be used by
several threads at once. What must survive a restart is in the ledger, and `CNI.gc` brings the node in line with it.

Configurations, results and errors are those of the CNI specification 1.1.0; `plugin` says how to write a plugin.
"""

from cni_plugins.conflist import ConfDirectory, Found, NetworkList
from cni_plugins.errors import (
    AddressesExhaustedError,
    AttachmentBrokenError,
    AttachmentExistsError,
    ClaimedError,
    ClosedError,
    ConfigurationError,
    ExternalPluginError,
    ForeignInterfaceError,
    IncompatibleVersionError,
    KernelError,
    LedgerError,
    MalformedMessageError,
    NetworkError,
    NotAttachedError,
    UnknownAttachmentError,
    UnknownPluginError,
)
from cni_plugins.ledger import Ledger
from cni_plugins.plugin import Attachment, Context, Plugin, Request
from cni_plugins.runtime import CNI
from cni_plugins.runtime_config import Bandwidth, PortMapping, RuntimeConfig
from cni_plugins.settings import Settings
from cni_plugins.types import DNS, Interface, IPConfig, NetworkStack, Result, Route

__all__ = [
    "CNI",
    "DNS",
    "AddressesExhaustedError",
    "Attachment",
    "AttachmentBrokenError",
    "AttachmentExistsError",
    "Bandwidth",
    "ClaimedError",
    "ClosedError",
    "ConfDirectory",
    "ConfigurationError",
    "Context",
    "ExternalPluginError",
    "ForeignInterfaceError",
    "Found",
    "IPConfig",
    "IncompatibleVersionError",
    "Interface",
    "KernelError",
    "Ledger",
    "LedgerError",
    "MalformedMessageError",
    "NetworkError",
    "NetworkList",
    "NetworkStack",
    "NotAttachedError",
    "Plugin",
    "PortMapping",
    "Request",
    "Result",
    "Route",
    "RuntimeConfig",
    "Settings",
    "UnknownAttachmentError",
    "UnknownPluginError",
]
