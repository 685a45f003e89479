"""A node as the doctor sees it through `Calls`: a GENERIC 15.1-RELEASE-p4 on which everything is as it should be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cri import config
from cri.sandbox.freebsd.calls import Mount


class Node:
    """The calls that the doctor makes, and no others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sysctls: dict[str, bytes] = {
            "kern.osrelease": b"15.1-RELEASE-p4\0",
            "kern.version": b"FreeBSD 15.1-RELEASE-p4 releng/15.1-n283500-0123456789ab GENERIC\n\0",
            "kern.ident": b"GENERIC\0",
            "kern.osreldate": (1_501_000).to_bytes(4, "little"),
            "kern.racct.enable": b"\1",
            "kern.securelevel": (-1).to_bytes(4, "little", signed=True),
            "security.jail.jailed": bytes(4),
            "security.jail.vnet": bytes(4),
            "security.jail.children.max": (999_999).to_bytes(4, "little"),
            "net.inet.ip.forwarding": (1).to_bytes(4, "little"),
            "net.inet6.ip6.forwarding": (1).to_bytes(4, "little"),
        }
        self.modules = {
            *("nullfs", "devfs", "tmpfs", "fdescfs", "if_epair", "if_bridge", "pf", "zfsctrl"),
            *("linux64elf", "linprocfs", "linsysfs"),
        }
        self.parameters = {"vnet", "meta"}
        self.mounted = [
            Mount((1, 1), "zfs", "zroot/ROOT/default", "/"),
            Mount((1, 2), "tmpfs", "tmpfs", str(directory / "run")),
        ]

    def sysctl(self, name: str) -> bytes:
        if name not in self.sysctls:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.sysctls[name]

    def set(self, name: str, value: int, width: int = 4) -> None:
        self.sysctls[name] = value.to_bytes(width, "little", signed=value < 0)

    def has_module(self, name: str) -> bool:
        return name in self.modules

    def has_parameter(self, name: str) -> bool:
        return name in self.parameters

    def mounts(self) -> list[Mount]:
        return self.mounted


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    flags = {
        "state_dir": str(tmp_path / "state"),
        "runtime_dir": str(tmp_path / "run"),
        "socket": "/tmp/c.sock",
    }
    return config.load(environment={}, flags=flags)
