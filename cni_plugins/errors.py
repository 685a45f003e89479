"""What can go wrong with a pod's network. Every message names the object and the remedy."""

from __future__ import annotations

import errno as codes
import os

REMEDIES = {
    codes.EPERM: "run as root, or with CAP_NET_ADMIN over both network stacks",
    codes.EACCES: "run as root, or with CAP_NET_ADMIN over both network stacks",
    codes.EOPNOTSUPP: "load the kernel's support for this kind of interface (modules veth and bridge)",
    codes.EBADF: "the pod's network stack is gone; make the pod anew",
    codes.ENOBUFS: "the kernel is short of network memory; retry with less at once",
    codes.ETIMEDOUT: "the kernel did not answer; look at its log for a stuck rtnl_mutex",
}
NO_REMEDY = "compare with what `ip link`, `ip address` or `ifconfig` shows"


class NetworkError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigurationError(NetworkError, ValueError):
    """A setting or an argument that cannot work, found before anything was changed."""


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


class AddressInUseError(NetworkError):
    """An address that was to be restored belongs to somebody else."""


class AddressesExhaustedError(NetworkError):
    """Every address of a subnet's range is reserved."""
