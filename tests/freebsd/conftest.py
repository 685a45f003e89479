"""These tests run on a FreeBSD kernel, as root; other systems do not even collect them.

`machine` is the node without gRPC: the pods, the driver, wardens, jails and network of a daemon, driven by its own objects.
`daemon` is the whole of it, on its socket, and `registry` has an image for it.
`new_jail` makes what the network's own tests have for pods, and `load_pf_conf` lends them the main ruleset of pf(4).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from ipaddress import ip_interface
from pathlib import Path

import pytest

from .daemon import daemon, registry  # noqa: F401  fixtures

collect_ignore_glob = [] if sys.platform.startswith("freebsd") else ["*"]

BRIDGE = "critest0"
SUBNET = "10.217.0.0/16"
CHAIN = f"sha256:{'1' * 64}"
LINUX_CHAIN = f"sha256:{'2' * 64}"
LINUX_BUSYBOX = os.environ.get("LINUX_BUSYBOX", "")
"""A static busybox for Linux, where there is one."""


def run(*command: str, text: str | None = None) -> str:
    """What a command prints that is given a text to read."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, input=text)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


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
        "nc",
        "ps",
        "pwd",
        "rm",
        "sha256",
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
        from cri.events import Events
        from cri.network import CniNetwork
        from cri.sandbox.freebsd import kernel
        from cri.sandbox.freebsd.host import FreeBSDHost
        from cri.sandbox.node import Node, RunnableImage
        from cri.sandbox.pods import Pods
        from cri.sandbox.recovery import recover
        from cri.sandbox.trash import Trash
        from cri.sandbox.warden.spawning import Spawner
        from cri.state import Store

        class OneImage:
            def runnable(self, reference: str) -> RunnableImage:
                defaults = ImageDefaults(cmd=("sleep", "3600"), env=("PATH=/bin",))
                if reference == "declared":
                    volumes = ("/data", "/etc/", "/var/link", "/tmp/x/y")
                    declares = ImageDefaults(cmd=("sleep", "3600"), env=("PATH=/bin",), volumes=volumes)
                    return RunnableImage("sha256:5", "declared@sha256:6", (CHAIN,), declares, "freebsd")
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
        self.network = CniNetwork(self.host, settings, self.directory / "state")
        self.lost: list[str] = []
        self.events = Events()
        node = Node(
            host=self.host,
            store=self.store,
            network=self.network,
            images=OneImage(),
            state_dir=self.directory / "state",
            runtime_dir=self.directory / "run",
            trash=Trash(self.directory / "state/removed"),
            witness=self.events,
        )
        self.pods = Pods(node)
        self.events.watch(self.pods.sandboxes)

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


class Jail:
    """A VNET jail with a child inside that makes sockets and hands them out, as a pod's warden does.

    Take its interfaces off before it is closed: they would go home to the host under the names that they have by then,
    and two of one name make a kernel with pf panic.
    """

    def __init__(self) -> None:
        self.name = f"cnitest{secrets.token_hex(3)}"
        run("jail", "-c", f"name={self.name}", "vnet", "persist", "allow.raw_sockets")
        self.move_target = int(run("jls", "-j", self.name, "jid"))
        self.addresses: dict[int, object] = {}
        self.reconnect()

    def reconnect(self) -> None:
        """Start a child; a process that was forked needs its own, or it would get the answers of another one."""
        self._lock = threading.Lock()
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child: int | None = os.fork()
        if not self._child:
            try:
                os.closerange(3, far.fileno())  # other jails' sockets too: they would never see their end
                os.closerange(far.fileno() + 1, 1024)
                self._serve(far)
            finally:
                os._exit(0)
        far.close()

    def _serve(self, far: socket.socket) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.jail_attach(self.move_target):
            os.write(2, f"jail_attach: {os.strerror(ctypes.get_errno())}\n".encode())
            os._exit(1)
        while request := far.recv(64):
            try:
                made = socket.socket(*json.loads(request))
            except OSError as error:
                far.send(str(error.errno).encode())
                continue
            far.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
            made.close()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self._lock:
            if self._child is None:
                raise OSError(errno.ENXIO, "the jail is gone")
            self._near.send(json.dumps([family, kind, protocol]).encode())
            # Not socket.recv_fds: it has no room for the padding, and the kernel then keeps the descriptor.
            code, ancillary, _, _ = self._near.recvmsg(16, socket.CMSG_SPACE(array.array("i").itemsize))
        if code != b"0":
            raise OSError(int(code), os.strerror(int(code)))
        (descriptor,) = array.array("i", ancillary[0][2])
        return socket.socket(family, kind, protocol, fileno=descriptor)

    def sysctl(self, name: str, value: str | None = None) -> str:
        """What a sysctl(8) was."""
        before = self.run("sysctl", "-n", name).strip()
        if value is not None:
            self.run("sysctl", f"{name}={value}")
        return before

    def run(self, *command: str) -> str:
        return run("jexec", self.name, *command)

    def connect(self, interface: str, addresses: Mapping[int, str]) -> None:
        """Take an interface in, and give it an address of each IP version."""
        run("ifconfig", interface, "vnet", self.name)
        for script in (
            "ifconfig lo0 127.0.0.1/8 up",
            f"ifconfig {interface} inet {addresses[4]} up",
            f"ifconfig {interface} inet6 no_dad",
            f"ifconfig {interface} inet6 {addresses[6]}",
        ):
            self.run(*script.split())
        self.addresses = {version: ip_interface(each) for version, each in addresses.items()}

    def close(self) -> None:
        """Remove it; a second time nothing happens."""
        if self._child is not None:
            self._near.close()
            os.waitpid(self._child, 0)
            self._child = None
            run("jail", "-R", self.name)


@pytest.fixture(scope="session")
def new_jail() -> type[Jail]:
    """Makes jails, each to be closed by whoever makes it."""
    return Jail


def _enable_pf(*, wanted: bool) -> None:
    if ("Status: Enabled" in run("pfctl", "-si")) != wanted:
        run("pfctl", "-e" if wanted else "-d")


@pytest.fixture
def load_pf_conf() -> Iterator[Callable[[str], str]]:
    """Loads a main ruleset; pf runs, with net.pf.filter_local. In the end there is what was there before."""
    before = run("pfctl", "-sn") + run("pfctl", "-sr")
    enabled, local = "Status: Enabled" in run("pfctl", "-si"), run("sysctl", "-n", "net.pf.filter_local")
    _enable_pf(wanted=False)  # or else the sysctl would not count
    run("sysctl", "net.pf.filter_local=1")
    _enable_pf(wanted=True)
    yield lambda text: run("pfctl", "-f", "-", text=text)
    _enable_pf(wanted=False)
    run("sysctl", f"net.pf.filter_local={local.strip()}")
    run("pfctl", "-f", "-", text=before)
    run("pfctl", "-Fs")
    _enable_pf(wanted=enabled)


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
