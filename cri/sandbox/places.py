"""Places in a container that something is shown at: how they are compared, and in which order they are mounted.

Standard library only: drivers use it inside of wardens.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

NO_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"})
"""Names in a directory of devices that are passed over: no devices, or of the container's own (as containerd has it)."""

VOLUMES = "volumes"
"""Where in a container's directory the content of its image's volumes is."""

IN_PROC = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
        "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip
"""Files below /proc that may be mounted over: what lxcfs imitates (runc, libcontainer/rootfs_linux.go, checkProcMount)."""


def cleaned(path: str) -> str:
    """The absolute path that is meant, by its text alone, as containerd compares them: "//m/", "/./m", "/x/../m" are "/m"."""
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")  # POSIX lets normpath keep two slashes


def is_inside_proc(place: str) -> bool:
    """Whether a cleaned path is one below /proc that nothing may be mounted on."""
    return place.startswith("/proc/") and place not in IN_PROC


def depth(path: str) -> int:
    """How many names there are in a path; 0 for the root."""
    return cleaned(path).rstrip("/").count("/")


def parents_first(items: Iterable[T], target: Callable[[T], str]) -> list[T]:
    """In the order in which nothing hides what was mounted before; else as they come."""
    return sorted(items, key=lambda item: depth(target(item)))


def is_image_volume_directory(source: str, directory: str) -> bool:
    """Whether a mount shows a volume that the image declares, of the container whose directory this is."""
    return source.startswith(f"{directory}/{VOLUMES}/")
