import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cri.sandbox.host import Exec
from cri.sandbox.linux.host import LinuxHost
from cri.sandbox.spec import (
    ContainerSpec,
    ExitRecord,
    Namespaces,
    ProcessSpec,
    Resources,
    SandboxSpec,
    Security,
    Started,
)
from cri.sandbox.warden.client import WardenClient

CHAIN = "sha256:" + "a" * 64
BUSYBOX = Path("/bin/busybox")
APPLETS = [
    "sh",
    "cat",
    "ls",
    "true",
    "false",
    "sleep",
    "id",
    "echo",
    "ps",
    "mount",
    "touch",
    "dd",
    "env",
    "head",
    "yes",
    "wc",
    "stat",
    "hostname",
    "setsid",
    "seq",
    "pwd",
    "tty",
    "kill",
    "mkdir",
    "readlink",
    "nproc",
    "ulimit",
    "grep",
    "tail",
    "printf",
    "tr",
    "mknod",
    "chmod",
    "rm",
    "ipcs",
    "sync",
    "stty",
    "umask",
]


@dataclass
class Pod:
    """A sandbox with conveniences."""

    node: "Node"
    spec: SandboxSpec
    warden: WardenClient
    containers: dict[str, ContainerSpec] = field(default_factory=dict)

    def container(self, *argv: str, name: str = "c", **changes) -> ContainerSpec:
        directory = Path(self.spec.directory) / name
        directory.mkdir()
        process = changes.pop("process", None) or ProcessSpec(tuple(argv))
        spec = ContainerSpec(
            id=f"{self.spec.id}-{name}",
            sandbox_id=self.spec.id,
            directory=str(directory),
            layers=(CHAIN,),
            process=process,
            namespaces=changes.pop("namespaces", self.spec.namespaces),
            log_path=str(directory / "log"),
            **changes,
        )
        self.containers[spec.id] = spec
        return spec

    async def create(self, spec: ContainerSpec) -> None:
        await self.node.host.create_container(spec)
        self.node.changed(self.node.host, spec)

    async def start(self, spec: ContainerSpec) -> Started:
        await self.create(spec)
        return await self.warden.start(spec)

    async def exit_of(self, spec: ContainerSpec, seconds: float = 20) -> ExitRecord:
        async with asyncio.timeout(seconds):
            while True:
                for state in await self.warden.containers():
                    if state.container_id == spec.id and state.exited:
                        return state.exited
                await asyncio.sleep(0.01)

    async def run(self, *argv: str, **changes) -> tuple[ExitRecord, str]:
        """A container from start to end: its exit and its output, without the log's prefixes."""
        spec = self.container(*argv, **changes)
        await self.start(spec)
        record = await self.exit_of(spec)
        return record, self.output(spec)

    def output(self, spec: ContainerSpec) -> str:
        lines = Path(spec.log_path).read_bytes().decode(errors="surrogateescape").splitlines()
        return "\n".join(line.split(" ", 3)[3] for line in lines)

    async def exec(self, spec: ContainerSpec, *argv: str, **process) -> tuple[int, str]:
        """An exec to its end: exit code and output."""
        reading, writing = os.pipe()
        try:
            running = await self.warden.exec(
                spec.id, ProcessSpec(tuple(argv), **process), stdin=None, stdout=writing, stderr=writing
            )
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            output = await asyncio.to_thread(pipe.read)
        code = await running.wait()
        await running.close()
        return code, output.decode(errors="surrogateescape")

    async def start_exec(self, spec: ContainerSpec, *argv: str) -> Exec:
        return await self.warden.exec(spec.id, ProcessSpec(tuple(argv)), stdin=None, stdout=None, stderr=None)

    async def remove(self) -> None:
        await self.node.host.stop_sandbox(self.spec, self.warden)
        for spec in self.containers.values():
            await self.node.host.stop_container(spec)
            await self.node.host.remove_container(spec)
        await self.node.host.remove_sandbox(self.spec)


@dataclass
class Node:
    """A host with a layer of busybox, and the pods of one test."""

    host: LinuxHost
    directory: Path
    lost: list[str]
    pods: list[Pod] = field(default_factory=list)
    changed: Callable[[LinuxHost, ContainerSpec], None] = lambda *_: None
    """What is done to each container that was created."""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def pod(self, **changes) -> Pod:
        number = next(self.numbers)
        values = {
            "id": f"test-{os.getpid()}-{number}",
            "name": "pod",
            "namespace": "default",
            "directory": str(self.directory / f"sandbox-{number}"),
            "runtime_directory": str(self.directory / "run" / str(number)),
            "hostname": "web-0",
        }
        spec = SandboxSpec(**values | changes)
        Path(spec.directory).mkdir(exist_ok=True)
        pod = Pod(self, spec, await self.host.create_sandbox(spec))
        self.pods.append(pod)
        return pod


async def make_layer(host: LinuxHost) -> None:
    root = await host.snapshots.begin(CHAIN, None)
    for name in ("bin", "etc", "tmp", "root", "home/web"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in APPLETS:
        os.link(root / "bin/busybox", root / "bin" / name)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:Web:/home/web:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nweb:x:1001:\nextra:x:2000:web\nother:x:2001:\n")
    os.chown(root / "home/web", 1000, 1001)
    await host.snapshots.commit(CHAIN)


@pytest.fixture(params=["overlay"])
async def node(request, tmp_path_factory) -> AsyncIterator[Node]:
    if os.geteuid() != 0 or not BUSYBOX.exists():
        pytest.skip("needs root and a static busybox")
    directory = Path(tmp_path_factory.mktemp("n", numbered=True))
    lost: list[str] = []
    host = LinuxHost(directory / "state", directory / "run", request.param)
    await host.open(lost.append)
    node = Node(host, directory, lost)
    await make_layer(host)
    try:
        yield node
    finally:
        for pod in node.pods:
            with contextlib.suppress(FileNotFoundError):
                await pod.remove()
        await host.close()


@pytest.fixture
async def pod(node) -> Pod:
    return await node.pod()


__all__ = ["CHAIN", "Namespaces", "Node", "Pod", "Resources", "Security"]
