"""Device nodes of a container: its own, made anew, never the node's.

What a program changes of a node (mode, owner, times) it changes for its container only. Standard library only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cri.sandbox.host import UnfitRequestError
from cri.sandbox.places import NO_DEVICES
from cri.sandbox.spec import DeviceSpec

HARMLESS = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""What every container finds in /dev, by major and minor number: Documentation/admin-guide/devices.txt of the kernel."""

_NAMES = {os.makedev(*number): name for name, number in HARMLESS.items()}


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node to be made."""

    mode: int
    """The type and the permissions, as in st_mode."""
    number: int
    """Of the device, as in st_rdev."""
    uid: int = 0
    gid: int = 0

    @property
    def rule(self) -> tuple[str, int, int]:
        """Kind (c, b), major and minor number, as control groups tell devices apart."""
        return "b" if stat.S_ISBLK(self.mode) else "c", os.major(self.number), os.minor(self.number)


def harmless(name: str) -> DeviceNode:
    """One of those that everybody may use."""
    return DeviceNode(stat.S_IFCHR | 0o666, os.makedev(*HARMLESS[name]))


def harmless_name(node: DeviceNode) -> str:
    """Which of those a node is; "" if none."""
    return _NAMES.get(node.number, "") if stat.S_ISCHR(node.mode) else ""


def of_node(found: os.stat_result) -> DeviceNode:
    """What a file is, as far as it is a device."""
    return DeviceNode(found.st_mode, found.st_rdev, found.st_uid, found.st_gid)


def is_device(mode: int) -> bool:
    """Whether a file of this mode is a device."""
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def look_up(devices: Sequence[DeviceSpec]) -> list[tuple[DeviceSpec, DeviceNode]]:
    """What the node has at the places of these devices. Raises UnfitRequestError."""
    found = []
    for device in devices:
        try:
            status = os.stat(device.source)  # noqa: PTH116
        except OSError as error:
            raise UnfitRequestError(
                "use", f"device {device.source}", error.strerror or str(error), error.errno
            ) from error
        if not is_device(status.st_mode):
            raise UnfitRequestError("use", f"device {device.source}", "it is no device any more")
        found.append((device, of_node(status)))
    return found


def list_nodes(
    directory: str, without: Collection[str] = (), inside: str = ""
) -> Iterator[tuple[str, str, DeviceNode | None]]:
    """The devices that there are in a directory and below, but those `without`; what vanishes meanwhile is passed over.

    Each comes as the directory below `directory` ("" or "sub/"), the name, and the node (None: a directory).
    """
    for entry in sorted(os.listdir(f"{directory}/{inside}")):  # noqa: PTH208
        if entry in NO_DEVICES or (not inside and entry in without):
            continue
        try:
            found = os.stat(f"{directory}/{inside}{entry}", follow_symlinks=False)  # noqa: PTH116
        except FileNotFoundError:
            continue
        if is_device(found.st_mode):
            yield inside, entry, of_node(found)
        elif stat.S_ISDIR(found.st_mode):
            yield inside, entry, None
            yield from list_nodes(directory, without, f"{inside}{entry}/")
