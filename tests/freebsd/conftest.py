"""These tests run on a FreeBSD kernel, as root; other systems do not even collect them.

`machine` is the node without gRPC: the pods, the driver, wardens, jails and network of a daemon, driven by its own objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

collect_ignore_glob = [] if sys.platform.startswith("freebsd") else ["*"]

BRIDGE = "critest0"
SUBNET = "10.217.0.0/16"
CHAIN = f"sha256:{'1' * 64}"
LINUX_CHAIN = f"sha256:{'2' * 64}"
LINUX_BUSYBOX = os.environ.get("LINUX_BUSYBOX", "")
"""A static busybox for Linux, where there is one."""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def node_state() -> dict[str, list[str]]:
    """What a run must leave as it found it."""
    rules = subprocess.run(["rctl"], capture_output=True, text=True, check=False).stdout
    wardens = [line for line in run("ps", "-axo", "command").splitlines() if "cri-jails-pod" in line]
    bound = [line.split()[-1] for line in run("netstat", "-f", "unix").splitlines()]
    listening = [line.split()[3] for line in run("netstat", "-anl").splitlines() if "LISTEN" in line.split()]
    return {
        "sockets": sorted(path for path in bound if path.startswith("/")) + sorted(listening),
        "jails": run("jls", "-d", "name").split(),
        "mounts": sorted(line.split(" (")[0] for line in run("mount").splitlines()),
        "interfaces": sorted(run("ifconfig", "-l").split()),
        "rctl": sorted(rules.splitlines()),
        "wardens": wardens,
    }


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Compare the node before and after; a dying jail is given time, as a socket in TIME_WAIT holds it for a minute."""
    before = node_state()
    yield
    until = time.monotonic() + 75
    while (after := node_state()) != before and time.monotonic() < until:
        time.sleep(0.5)
    assert after == before


PROGRAMS = (
    *(
        "sh",
        "cat",
        "chmod",
        "date",
        "dd",
        "echo",
        "hostname",
        "id",
        "kill",
        "ln",
        "ls",
        "mkdir",
        "ps",
        "pwd",
        "rm",
        "sleep",
    ),
    *("stty", "timeout", "touch", "tr", "tty"),
)


def make_image(root: Path) -> None:
    """Fill a directory with what there is on every FreeBSD: a few programs, and the libraries that they need."""
    bin_ = root / "bin"
    bin_.mkdir()
    needed = {"/libexec/ld-elf.so.1"}
    for name in PROGRAMS:
        if (found := shutil.which(name, path="/bin:/usr/bin:/sbin:/usr/sbin")) is not None:
            shutil.copy2(found, bin_ / name)
            needed |= set(run("ldd", "-f", "%p\\n", found).split())
    for path in needed:
        if path.startswith("/"):
            copy = root / path.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    for name, mode in (("tmp", 0o1777), ("etc", 0o755), ("dev", 0o555), ("var", 0o755)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    (root / "etc/passwd").write_text(
        "root:*:0:0:root:/root:/bin/sh\nuser:*:1000:1000:user:/home/user:/bin/sh\n"
    )
    (root / "etc/group").write_text("wheel:*:0:root\nuser:*:1000:\nextra:*:2000:user\n")


def make_linux_image(root: Path, busybox: str) -> None:
    """Fill a directory with busybox under a few of its names."""
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        (root / name).mkdir()
    shutil.copy2(busybox, root / "bin/busybox")
    for name in ("sh", "cat", "df", "echo", "ls", "mount", "ps", "sleep", "touch", "uname"):
        (root / "bin" / name).hardlink_to(root / "bin/busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")


class Machine:
    """A node and its daemons, one after the other."""

    def __init__(self, directory: Path, snapshotter: str) -> None:
        self.directory = directory
        self.snapshotter = snapshotter
        self.logs = directory / "logs"

    async def start(self) -> None:
        from baustelle.bundle import ImageDefaults
        from cri import config
        from cri.network import PodNetwork
        from cri.sandbox.freebsd import kernel
        from cri.sandbox.freebsd.host import FreeBSDHost
        from cri.sandbox.node import Node, RunnableImage
        from cri.sandbox.pods import Pods
        from cri.sandbox.recovery import recover
        from cri.sandbox.warden.spawning import Spawner
        from cri.state import Store

        class OneImage:
            def runnable(self, reference: str) -> RunnableImage:
                defaults = ImageDefaults(cmd=("sleep", "3600"), env=("PATH=/bin",))
                if reference == "linux":
                    return RunnableImage("sha256:3", "linux@sha256:4", (LINUX_CHAIN,), defaults, "linux")
                return RunnableImage("sha256:1", f"{reference}@sha256:2", (CHAIN,), defaults, "freebsd")

            def hold(self, layers: Iterable[str]) -> AbstractContextManager[None]:
                return contextlib.nullcontext()

            async def collect(self) -> None:
                pass

        self.kernel = kernel
        self.host = FreeBSDHost(
            self.directory / "state",
            self.directory / "run",
            self.snapshotter,
            calls=kernel,
            spawner=Spawner("cri.sandbox.freebsd.driver"),
        )
        self.store = await Store.open(self.directory / "state" / "state.db")
        flags = {
            "network.conf_dir": str(self.directory / "net.d"),
            "network.bridge": BRIDGE,
            "network.subnets": SUBNET,
        }
        settings = config.load(environment={}, flags=flags).network
        self.network = PodNetwork(self.host, settings, self.directory / "state")
        self.lost: list[str] = []
        node = Node(
            host=self.host,
            store=self.store,
            network=self.network,
            images=OneImage(),
            state_dir=self.directory / "state",
            runtime_dir=self.directory / "run",
        )
        self.pods = Pods(node)

        def lost(sandbox: str) -> None:
            self.lost.append(sandbox)
            self.pods.lost(sandbox)

        await self.host.open(lost)
        await self.network.open()
        await recover(node, self.pods)
        await self.network.reconcile(lambda: list(self.pods.sandboxes))
        if CHAIN not in await self.host.snapshots.chains():
            await asyncio.to_thread(make_image, await self.host.snapshots.begin(CHAIN, None))
            await self.host.snapshots.commit(CHAIN)
        if LINUX_BUSYBOX and LINUX_CHAIN not in await self.host.snapshots.chains():
            await asyncio.to_thread(
                make_linux_image, await self.host.snapshots.begin(LINUX_CHAIN, None), LINUX_BUSYBOX
            )
            await self.host.snapshots.commit(LINUX_CHAIN)

    async def crash(self) -> None:
        """Let go of everything, as the kernel does for a daemon that is killed."""
        await self.pods.disconnect()
        await self.network.close()
        await self.host.close()
        await self.store.close()

    async def end(self) -> None:
        for sandbox in list(self.pods.sandboxes):
            await self.pods.remove_sandbox(sandbox)
        for chain in await self.host.snapshots.chains():
            await self.host.snapshots.remove(chain)
        await self.crash()

    # What a client does

    async def pod(self, name: str = "pod", **fields: object) -> str:
        from cri.api.runtime import v1

        config = v1.PodSandboxConfig(
            metadata=v1.PodSandboxMetadata(name=name, uid="u", namespace="ns"),
            hostname=name,
            log_directory=str(self.logs / name),
            **fields,
        )
        return await self.pods.run_sandbox(config, "")

    async def container(
        self,
        pod: str,
        *command: str,
        name: str = "c",
        start: bool = True,
        image: str | None = None,
        **fields: object,
    ) -> str:
        from cri.api.runtime import v1

        config = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name),
            image=v1.ImageSpec(image="image"),
            command=list(command),
            log_path=f"{name}.log",
            **fields,
        )
        if image is not None:
            config.image = v1.ImageSpec(image=image)
        container = await self.pods.create_container(pod, config)
        if start:
            await self.pods.start_container(container)
        return container

    async def exec(self, container: str, *command: str, limit: float = 60.0):
        from cri.sandbox.exec import exec_sync

        running, warden = self.pods.running(container)
        return await exec_sync(warden, running.spec, list(command), limit)

    async def sh(self, container: str, script: str, limit: float = 60.0) -> str:
        """What a shell script prints to either stream."""
        result = await self.exec(container, "sh", "-c", f"exec 2>&1; {script}", limit=limit)
        return result.stdout.decode()

    async def ended(self, container: str, patience: float = 60.0):
        """The record of a container that has ended."""
        async with asyncio.timeout(patience):
            await self.pods.container(container).ended.wait()
        return self.pods.container(container).record

    def log(self, container: str) -> list[str]:
        """Its log's lines, without time stamps."""
        path = Path(self.pods.container(container).spec.log_path)
        return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]


@pytest.fixture
def fill_image() -> Callable[[Path], None]:
    """Makes an image of this host's own files in a directory."""
    return make_image


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a socket's has 103 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="crij", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def machine(directory: Path, nothing_left: None) -> AsyncIterator[Machine]:
    assert os.geteuid() == 0, "these tests make jails: run them as root"
    machine = Machine(directory, "copy")
    await machine.start()
    yield machine
    await machine.end()


@pytest.fixture
def dataset() -> Iterator[Path]:
    """A directory that is a ZFS dataset of its own."""
    pools = run("zpool", "list", "-H", "-o", "name").split() if shutil.which("zpool") else []
    if not pools:
        pytest.skip("this host has no ZFS pool")
    path = Path(tempfile.mkdtemp(prefix="crij", dir="/var/tmp"))
    name = f"{pools[0]}/{path.name}"
    run("zfs", "create", "-o", f"mountpoint={path}", name)
    yield path
    run("zfs", "destroy", "-r", name)
    path.rmdir()


@pytest.fixture
async def zfs_machine(dataset: Path, nothing_left: None) -> AsyncIterator[Machine]:
    machine = Machine(dataset, "auto")
    await machine.start()
    yield machine
    await machine.end()
