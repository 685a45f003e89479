"""What a node has more of after a run than before: processes, cgroups, mounts, interfaces, packet filter rules.

Processes and cgroups are looked at from outside of the run (`contained`), the rest from inside of its
namespaces (`snapshot`, `leaks`, `sweep`).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from nodekit import cgroups, isolation
from nodekit.processes import run, supervise

Snapshot = dict[str, set[str]]

_NETNS = Path("/run/netns")
_MNT_DETACH = 2  # umount2(2)


def contained(body: Callable[[], int], *, judged: bool) -> int:
    """Run BODY in a child and return its exit code; end the processes and remove the cgroups that it leaves.

    They are shown, and if JUDGED an exit code of 0 becomes 1.
    """
    code, processes = supervise(body)
    left = {"process": set(processes), "cgroup": cgroups.remove(isolation.subtree_of(os.getpid()))}
    show(left, judged=judged)
    return code or int(judged and any(left.values()))


def snapshot() -> Snapshot:
    """Return what exists now in this process's namespaces, by kind."""
    return {
        "mount": set(_mounts()),
        "interface": {name for _, name in socket.if_nameindex()},
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
    """Undo leaked mounts; whatever else is leaked goes away together with our namespaces."""
    libc = ctypes.CDLL(None, use_errno=True)
    for point in sorted(leaked.get("mount", ()), reverse=True):  # the deepest first
        libc.umount2(os.fsencode(point), _MNT_DETACH)
        if Path(point).parent == _NETNS:  # a named network namespace is a file that the mount covers
            Path(point).unlink(missing_ok=True)


def show(leaked: Snapshot, *, judged: bool) -> None:
    """Print what was left behind; where it is not JUDGED, it does not sound like a verdict."""
    for kind, names in leaked.items():
        for name in sorted(names):
            print(f"{'LEAK' if judged else 'left behind:'} {kind} {name}")


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
