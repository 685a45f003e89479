"""Commands that a run needs, installed from Debian packages where they are missing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nodekit.processes import CommandError, run

# The package that brings a command, where its name is not the command's.
_PACKAGES = {
    "bridge": "containernetworking-plugins",
    "cc": "gcc",
    "ip": "iproute2",
    "ipcmk": "util-linux",
    "iptables": "iptables",
    "ldd": "libc-bin",
    "nft": "nftables",
}
CNI_PLUGINS = Path("/usr/lib/cni")
IMAGES = ("cc", "ldd", "docker-registry", "skopeo")
CRITEST = ("ipcmk", "ip", "nft")
CONTAINERD = ("containerd", "runc", "bridge", "iptables", "ip")


def need(*commands: str) -> None:
    """Make sure that COMMANDS exist, installing their packages if they do not.

    Raises:
        CommandError: if we are not root, or apt cannot install them.

    """
    if os.geteuid() != 0:
        raise CommandError("pods need namespaces, mounts and cgroups: run this as root")
    missing = sorted({_PACKAGES.get(name, name) for name in commands if not _exists(name)})
    if "cc" in commands and not Path("/usr/include/stdio.h").exists():
        missing.append("libc6-dev")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise CommandError(f"install these by hand, there is no apt-get here: {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    run("apt-get", "update", seconds=600)
    with _services_held_back():
        run("apt-get", "install", "--yes", "--no-install-recommends", *missing, seconds=1200)


def _exists(command: str) -> bool:
    return bool(shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin:{CNI_PLUGINS}"))


@contextlib.contextmanager
def _services_held_back() -> Iterator[None]:
    """Keep the packages' own services (a registry, a containerd) from starting on this machine."""
    policy = Path("/usr/sbin/policy-rc.d")  # invoke-rc.d(8) asks it; 101 forbids the action
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()
