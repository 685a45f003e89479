"""What a node has of a daemon's things: asked of the kernel and of the disk, never of the daemon."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from cri.sandbox import small_files


@dataclass(slots=True)
class Inventory:
    """Ids of sandboxes and containers, by where they have left a trace."""

    wardens: set[str] = field(default_factory=set)
    """Sandboxes."""
    groups: set[str] = field(default_factory=set)
    """Containers that have cgroups (Linux) or jails (FreeBSD)."""
    pods: set[str] = field(default_factory=set)
    """Sandboxes that have a jail; on Linux the namespaces are the warden's."""
    processes: dict[str, set[int]] = field(default_factory=dict)
    """Of containers."""
    interfaces: int = 0
    """Of pods, on the bridge."""
    addresses: set[str] = field(default_factory=set)
    """That are translated."""
    leases: set[str] = field(default_factory=set)
    """Sandboxes."""
    mounts: set[str] = field(default_factory=set)
    """Containers with mounts of the node (FreeBSD), or any mount that should not be there."""
    sandbox_directories: set[str] = field(default_factory=set)
    container_directories: set[str] = field(default_factory=set)
    sandbox_records: set[str] = field(default_factory=set)
    container_records: set[str] = field(default_factory=set)


def take(base: Path, bridge: str, containers: Collection[str]) -> Inventory:
    """Look at everything. `containers` are all that there ever were."""
    found = Inventory()
    for parent, names in (
        ("sandboxes", found.sandbox_directories),
        ("containers", found.container_directories),
    ):
        names.update(path.name for path in (base / "state" / parent).glob("*"))
    found.sandbox_records = _column(base / "state/state.db", "SELECT id FROM sandboxes")
    found.container_records = _column(base / "state/state.db", "SELECT id FROM containers")
    owners = _column(base / "state/network.db", "SELECT owner FROM claims")
    holders = {owner.partition("/")[0] for owner in owners}
    found.leases = {one for one in holders if len(one) == 64}  # the bridge has addresses, too
    (_linux if sys.platform == "linux" else _freebsd)(found, base, bridge, containers)
    return found


def living(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
        except (FileNotFoundError, ProcessLookupError):
            return False
    state = subprocess.run(
        ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return bool(state.stdout.strip()) and "Z" not in state.stdout


def warden(base: Path, sandbox: str) -> int:
    """A warden's pid, as it is written down; 0 if it is not."""
    try:
        return int(json.loads(small_files.read(base / "state/sandboxes" / sandbox / "warden.json"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _column(path: Path, query: str) -> set[str]:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        return {str(value) for (value,) in database.execute(query)}
    finally:
        database.close()


def _linux(found: Inventory, base: Path, bridge: str, containers: Collection[str]) -> None:
    for line in Path("/proc/net/unix").read_text().splitlines():
        *_, path = line.split()
        if path.startswith(f"{base}/run/") and path.endswith("/warden.sock"):
            beginning = Path(path).parent.name
            found.wardens |= {one for one in found.sandbox_directories if one.startswith(beginning)} or {path}
    known = set(containers)
    for path, _, names in os.walk("/sys/fs/cgroup"):
        for name in known.intersection(Path(path).parts):  # its processes are in a group inside
            found.groups.add(name)
            if "cgroup.procs" in names:
                try:
                    pids = Path(path, "cgroup.procs").read_text().split()
                except OSError:
                    continue
                found.processes.setdefault(name, set()).update(map(int, pids))
    found.interfaces = len(list(Path(f"/sys/class/net/{bridge}/brif").glob("*")))
    rules = json.loads(
        subprocess.run(["nft", "-j", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    )
    for item in rules["nftables"]:
        for kind in ("map", "set"):
            if bridge in item.get(kind, {}).get("table", "") and "masquerade" in item[kind]["table"]:
                found.addresses |= _addresses(item[kind].get("elem", []))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f" {base}/" in line:
            found.mounts.add(line.split()[4])


def _addresses(elements: object) -> set[str]:
    """Every text with the look of an address in what nft(8) prints."""
    if isinstance(elements, str):
        return {elements} if elements.count(".") == 3 or elements.count(":") > 1 else set()
    if isinstance(elements, list | tuple):
        return set().union(*map(_addresses, elements)) if elements else set()
    if isinstance(elements, dict):
        return _addresses(list(elements.values()))
    return set()


def _freebsd(found: Inventory, base: Path, bridge: str, containers: Collection[str]) -> None:
    from cri.sandbox.freebsd import jails, kernel

    state = f"{base}/state/"
    jids: dict[int, str] = {}
    for jail in kernel.jails():
        if not jail.path.startswith(state):
            continue
        if pod := jails.pod_of(jail.name):
            found.pods.add(pod)
        elif container := jails.container_of(jail.name):
            found.groups.add(container)
            jids[jail.jid] = container
    for process in kernel.processes(list(jids)):
        found.processes.setdefault(jids[process.jid], set()).add(process.pid)
    for sandbox in found.sandbox_directories:
        if (pid := warden(base, sandbox)) and living(pid):
            found.wardens.add(sandbox)
    for mount in kernel.mounts():
        if mount.target.startswith(f"{state}containers/"):
            found.mounts.add(Path(mount.target).relative_to(f"{state}containers").parts[0])
        elif mount.target.startswith(state):
            found.mounts.add(mount.target)
    shown = subprocess.run(["ifconfig", bridge], capture_output=True, text=True, check=False).stdout
    found.interfaces = shown.count("member: ")
