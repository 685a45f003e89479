"""The FreeBSD driver on the kernel in memory, with real files."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baustelle import paths, removal
from baustelle.removal import remove_tree
from cri.sandbox.fake import FakeKernel
from cri.sandbox.fake.freebsd import FakeFreeBSD
from cri.sandbox.fake.host import FakeWarden
from cri.sandbox.freebsd import host as driver
from cri.sandbox.freebsd import mounts, teardown
from cri.sandbox.host import HostError, Warden
from cri.sandbox.spec import ContainerSpec, MountSpec, ProcessSpec, SandboxSpec

CHAIN = "sha256:1111"
_IDS = itertools.count(1)


class Spawner:
    """Where wardens come from that do nothing."""

    def __init__(self) -> None:
        self.failing = False
        self.wardens: list[FakeWarden] = []

    def start(self) -> None:
        pass

    async def spawn(self, spec: SandboxSpec, lost: Callable[[str], None], known: object) -> Warden:
        if self.failing:
            raise HostError("start", f"warden of sandbox {spec.id}", "no process can be had", errno.EAGAIN)
        self.wardens.append(FakeWarden(FakeKernel(), spec.id))
        return self.wardens[-1]

    def close(self) -> None:
        pass


class Machine:
    """One daemon's directories on a kernel; another daemon may share that."""

    def __init__(self, kernel: FakeFreeBSD, directory: Path) -> None:
        self.kernel = kernel
        self.directory = directory
        self.state = directory / "state"
        for parent in ("state/sandboxes", "state/containers", "run", "volumes"):
            (directory / parent).mkdir(parents=True)
        self.spawner = Spawner()
        self.host = self.restart()

    def restart(self) -> driver.FreeBSDHost:
        """Another daemon on the same directories."""
        self.host = driver.FreeBSDHost(
            self.state, self.directory / "run", "copy", calls=self.kernel, spawner=self.spawner
        )
        return self.host

    async def image(self, fill: Callable[[Path], object] = lambda _: None, chain: str = CHAIN) -> str:
        """Unpack an image; its chain id."""
        fill(await self.host.snapshots.begin(chain, None))
        await self.host.snapshots.commit(chain)
        return chain

    def sandbox(self, **fields: Any) -> SandboxSpec:
        """A new sandbox, with the directory that the life cycle makes for it."""
        name = f"{next(_IDS):x}".rjust(64, "a")
        directory = self.state / "sandboxes" / name
        directory.mkdir()
        return SandboxSpec(
            name, "pod", "ns", str(directory), str(self.directory / "run" / name[-12:]), **fields
        )

    def container(self, sandbox: SandboxSpec, **fields: Any) -> ContainerSpec:
        """A new container, with the directory that the life cycle makes for it."""
        name = f"{next(_IDS):x}".rjust(64, "c")
        directory = self.state / "containers" / name
        directory.mkdir()
        given = {"layers": (CHAIN,), "process": ProcessSpec(("sleep",))} | fields
        return ContainerSpec(name, sandbox.id, str(directory), **given)

    def volume(self, name: str, *, file: bool = False) -> str:
        """Something of the node to mount: a directory with a file in it, or a file."""
        path = self.directory / "volumes" / name
        if file:
            path.write_text(f"file {name}")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "precious").write_text(f"data of {name}")
        return str(path)

    def files(self) -> dict[str, object]:
        """Every file there is, but what lies in the directories of sandboxes and containers: these go with them.

        Nor what is empty in a volume: mount points stay there, as somebody else may have come to use them.
        """
        owned = (self.state / "sandboxes", self.state / "containers")
        volumes = self.directory / "volumes"
        found: dict[str, object] = {}
        for parent, directories, names in os.walk(self.directory, topdown=True):
            if Path(parent) in owned:
                directories.clear()
            for name in (*directories, *names):
                path = Path(parent, name)
                if volumes in path.parents and not path.is_symlink() and not _has_content(path):
                    continue
                found[str(path.relative_to(self.directory))] = (
                    str(path.readlink())
                    if path.is_symlink()
                    else path.read_text()
                    if path.is_file()
                    else None
                )
        return found

    async def remove(self, spec: ContainerSpec) -> None:
        """As the life cycle does it: what is left are files in the container's directory, which go with that."""
        await self.host.remove_container(spec)
        directory = Path(spec.directory)
        for path in directory.iterdir() if directory.exists() else ():
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()

    def everything(self) -> tuple[dict[str, object], dict[str, object]]:
        """All that exists in the kernel and on disk."""
        return self.kernel.state(), self.files()


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(_has_content(below) or below.is_symlink() for below in path.iterdir())
    return path.stat().st_size > 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> FakeFreeBSD:
    kernel = FakeFreeBSD(scratch=tmp_path_factory.mktemp("mounted"))
    # All code that walks where something is mounted.
    for module in (mounts, paths, removal):
        monkeypatch.setattr(module, "os", kernel.files)
    monkeypatch.setattr(mounts, "Path", kernel.files.path_class())
    # No test waits for the real bounds.
    monkeypatch.setattr(teardown, "_UNMOUNT_SECONDS", 0.05)
    monkeypatch.setattr(teardown, "_UNMOUNT_PAUSE", 0.001)
    monkeypatch.setattr(driver, "_DYING_SECONDS", 0.05)
    return kernel


@pytest.fixture
async def machine(kernel: FakeFreeBSD, tmp_path: Path) -> Machine:
    machine = Machine(kernel, tmp_path / "node")
    await machine.host.open(lambda _: None)
    await machine.image(plain_image)
    return machine


@pytest.fixture
def another(kernel: FakeFreeBSD, tmp_path: Path) -> Machine:
    """A second daemon on the same node."""
    return Machine(kernel, tmp_path / "other")


def plain_image(root: Path) -> None:
    """What an image has."""
    for name in ("dev", "etc", "proc", "bin", "var/run"):
        (root / name).mkdir(parents=True)
    (root / "etc/hosts").write_text("of the image")
    (root / "etc/passwd").write_text("root:*:0:0::/root:/bin/sh\n")


def mount(source: str, target: str, **fields: Any) -> MountSpec:
    return MountSpec(source, target, **fields)


@pytest.fixture
def make() -> Any:
    """Helpers for test modules, which cannot import from here."""

    class Make:
        mount = staticmethod(mount)
        plain_image = staticmethod(plain_image)
        replace = staticmethod(replace)
        chain = CHAIN

    return Make
