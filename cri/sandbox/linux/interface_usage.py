"""The counters of a pod's interfaces, out of proc(5): read inside the pod's network, by whoever has attached it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cri.sandbox.usage import InterfaceUsage

_LOOPBACK = "lo"
_UP_GATEWAY = 0x3
"""RTF_UP | RTF_GATEWAY (linux/route.h)."""


def interfaces(pid: int, namespace: int) -> tuple[InterfaceUsage, ...]:
    """Those that a process sees, the default one first, if its network namespace is the one of that inode.

    None of them if it is not: the process has ended, and another one has its number. Nothing stays open: it would keep the pod's
    network, and its addresses with it.
    """
    try:
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    try:
        if os.stat("ns/net", dir_fd=process).st_ino != namespace:
            return ()
        found = parse(_read("net/dev", process))
        if len(found) > 1:
            default = default_interface(_read("net/route", process), _read("net/ipv6_route", process))
            found.sort(key=lambda interface: interface.name != default)
        return tuple(found)
    except (FileNotFoundError, ProcessLookupError):
        return ()
    finally:
        os.close(process)


def parse(text: str) -> list[InterfaceUsage]:
    """What net/dev says, without the loopback interface: 8 counters of what came, and 8 of what went."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        if (name := name.strip()) == _LOOPBACK:
            continue
        counters = [int(word) for word in rest.split()]
        found.append(InterfaceUsage(name, *counters[:4], *counters[8:12]))
    return found


def default_interface(ipv4: str, ipv6: str) -> str:
    """The interface of the default route with the least metric, of IPv4 if there is one; empty if there is none."""
    return min(_defaults(ipv4), default=min(_defaults6(ipv6), default=(0, "")))[1]


def _defaults(text: str) -> Iterator[tuple[int, str]]:
    for line in text.splitlines()[1:]:
        name, target, _, flags, _, _, metric, mask, *_ = line.split()
        if int(target, 16) == int(mask, 16) == 0 and int(flags, 16) & 1:
            yield int(metric), name


def _defaults6(text: str) -> Iterator[tuple[int, str]]:
    for line in text.splitlines():
        target, length, _, _, _, metric, _, _, flags, name = line.split()
        if int(target, 16) == int(length, 16) == 0 and int(flags, 16) & _UP_GATEWAY == _UP_GATEWAY:
            yield int(metric, 16), name


def _read(name: str, directory: int) -> str:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return ""  # a kernel without IPv6
    with os.fdopen(fd, errors="surrogateescape") as file:
        return file.read()
