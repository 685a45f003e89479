"""Checks that every operating system shares."""

from __future__ import annotations

import grp
import importlib.metadata
import os
import re
import resource
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cri.config import Config
from cri.doctor.finding import Check, Finding, failure, note, ok, warning
from cri.sandbox.warden.protocol import check_path
from cri.sandbox.warden.supervisor import SOCKET_NAME
from cri.sockets import SocketError
from cri.sockets import check_path as check_endpoint

GIB = 1 << 30
MIB = 1 << 20

LEAST_SPACE = GIB
"""Bytes; an ordinary image with its layers no longer fits below this."""
EVICTION_SPACE = 0.15
EVICTION_INODES = 0.05
"""The kubelet evicts pods below these parts of imagefs.available and nodefs.inodesFree, unless told otherwise
(Kubernetes documentation, "Node-pressure Eviction")."""

LEAST_DESCRIPTORS = 4096
"""A connection of the kubelet, a log, a warden: a handful for each of some hundred containers, and layers under way."""


def checks(config: Config) -> Sequence[Check]:
    """In the order in which they are shown."""
    return (
        Check("root", root),
        Check("libraries", libraries),
        Check("socket", partial(sockets, config)),
        Check("state_dir", partial(state_directory, config.state_dir)),
        Check("space", partial(space, config.state_dir)),
        Check("descriptors", descriptors),
    )


def root() -> Iterator[Finding]:
    """Whether we are root."""
    if os.geteuid() == 0:
        yield ok("root", "running as root, as the daemon must")
    else:
        yield failure(
            "root", "not root: the daemon must be, and this report lacks what only root may ask", "su"
        )


def libraries() -> Iterator[Finding]:
    """Whether the libraries are there that this installation says it needs."""
    try:
        needed = importlib.metadata.requires("cri-jails") or []
    except importlib.metadata.PackageNotFoundError:
        yield note("libraries", "cri-jails runs from its sources, so what it needs cannot be told")
        return
    names = [
        match[0]
        for line in needed
        if "extra ==" not in line and (match := re.match(r"[A-Za-z0-9._-]+", line))
    ]
    if missing := [name for name in names if not _installed(name)]:
        message = f"not installed, so the daemon does not start: {', '.join(missing)}"
        yield failure("libraries", message, f"python3 -m pip install {' '.join(missing)}")
    else:
        yield ok("libraries", f"all {len(names)} libraries are there")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def sockets(config: Config) -> Iterator[Finding]:
    """Whether the paths of the endpoint and of the wardens fit into a sockaddr_un, and the endpoint's group exists."""
    warden = config.runtime_dir / ("0" * 16) / SOCKET_NAME
    try:
        check_endpoint(config.socket)
        check_path(str(warden))
    except (SocketError, ValueError) as error:
        yield failure("socket", str(error), 'runtime_dir = "/var/run/cri-jails"')
        return
    group = config.socket_group
    if group and not group.isdecimal():
        try:
            grp.getgrnam(group)
        except KeyError:
            message = f"there is no group {group} to own {config.socket}, so the daemon does not start"
            command = f"pw groupadd {group}" if os.path.exists("/usr/sbin/pw") else f"groupadd {group}"  # noqa: PTH110
            yield failure("socket", message, command)
            return
    yield ok("socket", f"{config.socket}, for {f'group {group}' if group else 'the group of root'}")


def state_directory(directory: Path) -> Iterator[Finding]:
    """Whether the state is out of reach of others: it holds configs, and so secrets."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        yield ok("state_dir", f"{directory} is made at the first start")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield failure("state_dir", f"{directory} is no directory", f"mv {directory} {directory}.old")
    elif found.st_uid != 0 or stat.S_IMODE(found.st_mode) & 0o077:
        message = f"{directory} is open to others than root, and holds the secrets of pods"
        yield warning("state_dir", message, f"chown root {directory} && chmod 700 {directory}")
    else:
        yield ok("state_dir", f"{directory}, for root alone")


def space(directory: Path) -> Iterator[Finding]:
    """Whether there is room for images."""
    place = existing(directory)
    found = os.statvfs(place)
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    message = f"{_size(free)} of {_size(total)} free at {place}"
    remedy = f"zfs create -o mountpoint={directory} POOL/cri-jails  # or mount a larger disk there"
    if free < LEAST_SPACE:
        yield failure("space", f"{message}: images do not fit", remedy)
    elif free < EVICTION_SPACE * total:
        yield warning("space", f"{message}: less than 15 %, the kubelet evicts pods", remedy)
    else:
        yield ok("space", message)
    # File systems that make inodes as they go (ZFS, btrfs) count none, or as many as they have room for.
    if found.f_files and found.f_favail < EVICTION_INODES * found.f_files:
        message = (
            f"{found.f_favail} of {found.f_files} inodes free at {place}: the kubelet evicts pods below 5 %"
        )
        yield warning("inodes", message, remedy)


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def descriptors() -> Iterator[Finding]:
    """Whether a process may open enough files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < LEAST_DESCRIPTORS:
        message = f"a process started from here may open {soft} files, the daemon wants {LEAST_DESCRIPTORS}"
        yield warning("descriptors", message, f"ulimit -n {LEAST_DESCRIPTORS}")
    else:
        yield ok("descriptors", f"{'any number of' if soft < 0 else soft} open files allowed")


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"
