"""What can go wrong with a pod's network. Every message names the object and the remedy.

Each class has the `code` that the CNI specification 1.1.0 ("Section 5: Result Types", Error) gives to its kind: below 50
by the specification, 50 and 51 for STATUS, from 100 on ours.
"""

from __future__ import annotations

import errno as codes
import os
from typing import Any

REMEDIES = {
    codes.EPERM: "run as root, or with CAP_NET_ADMIN over both network stacks",
    codes.EACCES: "run as root, or with CAP_NET_ADMIN over both network stacks",
    codes.EOPNOTSUPP: "load the kernel's support for this kind of interface (modules veth and bridge)",
    codes.EBADF: "the pod's network stack is gone; make the pod anew",
    codes.ENOBUFS: "the kernel is short of network memory; retry with less at once",
    codes.EEXIST: "something of that name or address is there already; look whose it is, and remove one of the two",
    codes.ETIMEDOUT: "the kernel did not answer; look at its log for a stuck rtnl_mutex",
}
NO_REMEDY = "compare with what `ip link`, `ip address` or `ifconfig` shows"


class NetworkError(Exception):
    """Base of everything that this package raises on purpose."""

    code: int = 999

    def to_json(self, version: str) -> dict[str, Any]:
        """Return the specification's error result of a version."""
        return {"cniVersion": version, "code": self.code, "msg": str(self)}


class ConfigurationError(NetworkError, ValueError):
    """A setting or an argument that cannot work, found before anything was changed."""

    code = 7


class IncompatibleVersionError(ConfigurationError):
    """A configuration for a version of the specification that is not spoken here."""

    code = 1


class UnknownPluginError(ConfigurationError):
    """A configuration that names a type of plugin which nobody has installed."""

    code = 100


class MalformedConfigurationError(ConfigurationError):
    """Bytes that are no network configuration."""

    code = 6


class MalformedResultError(NetworkError, ValueError):
    """What was to be a result of CNI is none."""

    code = 6


class UnknownAttachmentError(NetworkError):
    """An attachment that was never made, or is deleted."""

    code = 3


class ExternalPluginError(NetworkError):
    """A plugin of somebody else's has failed; `code` is its own."""

    def __init__(self, message: str, code: int = 999) -> None:
        self.code = code
        super().__init__(message)


class LedgerError(NetworkError):
    """What is to survive the process cannot be written or read."""

    code = 5


class ClosedError(NetworkError):
    """The runtime was asked for something after its end."""

    code = 11  # try again later


class ClaimedError(NetworkError):
    """What only one attachment can have is another one's, which the message names."""

    code = 101


class MalformedMessageError(NetworkError, ValueError):
    """Bytes that are no netlink message, or a value that does not fit its attribute."""


class KernelError(NetworkError):
    """The kernel refused one operation on one object.

    `errno` is its error number, `operation` what was asked for, `object` what it was asked of, and `text` the
    kernel's own explanation where it gave one (netlink's extended acknowledgement).
    """

    def __init__(self, errno: int, operation: str, object: str, text: str = "") -> None:  # noqa: A002
        self.errno = errno
        self.operation = operation
        self.object = object
        self.text = text
        reason = os.strerror(errno) + (f" ({text})" if text else "")
        super().__init__(f"cannot {operation} {object}: {reason}; {REMEDIES.get(errno, NO_REMEDY)}")

    def __reduce__(self) -> tuple[type[KernelError], tuple[int, str, str, str]]:
        return type(self), (self.errno, self.operation, self.object, self.text)


class ForeignInterfaceError(NetworkError):
    """An interface has the name of our bridge and is something else."""


class AttachmentExistsError(NetworkError):
    """The attachment, or an interface of its name inside the pod, is there already."""


class NotAttachedError(NetworkError):
    """The attachment is not there."""


class AttachmentBrokenError(NetworkError):
    """The attachment is there and not as it was made."""


class AddressesExhaustedError(NetworkError):
    """Every address of a subnet's range is reserved."""

    code = 11  # try again later
