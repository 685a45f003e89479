"""What a node has more of after a run than before: mounts, interfaces, namespaces, cgroups, rules."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import time
from pathlib import Path

from nodekit.processes import run

Snapshot = dict[str, set[str]]

_NETNS = Path("/run/netns")
_CGROUPS = Path("/sys/fs/cgroup")
_MNT_DETACH = 2  # umount2(2)


def snapshot() -> Snapshot:
    """Return what exists now, by kind."""
    return {
        "mount": set(_mounts()),
        "interface": {name for _, name in socket.if_nameindex()},
        "network namespace": {entry.name for entry in _NETNS.iterdir()} if _NETNS.is_dir() else set(),
        "cgroup": {directory for directory, _, _ in os.walk(_CGROUPS)},
        "packet filter rule": _packet_filter_rules(),
    }


def leaks(before: Snapshot, settle: float = 5.0) -> Snapshot:
    """Return, by kind, what exists now but not in BEFORE; what goes away within SETTLE seconds is no leak."""
    deadline = time.monotonic() + settle
    while True:
        now = snapshot()
        more = {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.2)


def sweep(leaked: Snapshot) -> None:
    """Remove those of the leaked resources that would outlive our namespaces: mounts' files and cgroups."""
    libc = ctypes.CDLL(None, use_errno=True)
    for point in sorted(leaked.get("mount", ()), reverse=True):
        libc.umount2(os.fsencode(point), _MNT_DETACH)
    for name in leaked.get("network namespace", ()):
        libc.umount2(os.fsencode(_NETNS / name), _MNT_DETACH)
        (_NETNS / name).unlink(missing_ok=True)
    for directory in sorted(leaked.get("cgroup", ()), reverse=True):  # the deepest first
        try:
            Path(directory).rmdir()
        except OSError as error:
            print(f"cannot remove the cgroup {directory}: {error.strerror}")


def _mounts() -> list[str]:
    """Return all mount points (proc_pid_mountinfo(5), with its octal escapes undone)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) for line in lines]


def _packet_filter_rules() -> set[str]:
    if not shutil.which("nft"):
        return set()
    # A rule counts together with its table and chain; counters change all the time.
    rules, where = set(), []
    for line in run("nft", "list", "ruleset").splitlines():
        text = re.sub(r"counter packets \d+ bytes \d+", "counter", line.strip())
        if text.endswith("{"):
            where.append(text.rstrip("{ "))
            rules.add(" / ".join(where))
        elif text == "}":
            where.pop()
        elif text:
            rules.add(" / ".join([*where, text]))
    return rules
