"""The real daemon on a real kernel: a process on private directories, with a registry of one image."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.server
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api.runtime import v1

REPOSITORY = Path(__file__).parents[2]
BUSYBOX = Path("/bin/busybox")

CONTAINERFILE = """\
FROM scratch
COPY root/ /
ENV PATH=/bin
CMD ["sleep", "3600"]
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def forwarding_as_before() -> Iterator[None]:
    """The daemon has the node forward packets, and for the pods' sake nothing stops that again but this."""
    switches = [Path("/proc/sys/net", name) for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
    before = [(switch, switch.read_text()) for switch in switches if switch.exists()]
    yield
    for switch, value in before:
        switch.write_text(value)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a file server that has `busybox:latest`."""
    base = tmp_path_factory.mktemp("registry")
    bin_ = base / "context/root/bin"
    bin_.mkdir(parents=True)
    shutil.copy(BUSYBOX, bin_ / "busybox")
    for applet in subprocess.run(
        [BUSYBOX, "--list"], check=True, capture_output=True, text=True
    ).stdout.split():
        if applet != "busybox":
            (bin_ / applet).hardlink_to(bin_ / "busybox")
    for directory, mode in (("tmp", 0o1777), ("etc", 0o755), ("proc", 0o555), ("dev", 0o755)):
        (base / "context/root" / directory).mkdir()
        (base / "context/root" / directory).chmod(mode)
    (base / "context/root/etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    (base / "context/root/etc/group").write_text("root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
    (base / "context/Containerfile").write_text(CONTAINERFILE)
    subprocess.run(
        [
            *(sys.executable, "-m", "baustelle", "build", "-f", base / "context/Containerfile"),
            *("-t", "localhost/busybox:latest", "--layout", base / "layout", "--tree", base / "tree"),
            base / "context",
        ],
        check=True,
        cwd=REPOSITORY,
    )
    handler = functools.partial(_Quiet, directory=base / "tree")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"localhost:{server.server_port}"
        server.shutdown()
        thread.join()


class Client:
    """Blocking calls of both services by RPC name."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.max_receive_message_length", 16 * 1024 * 1024),  # as the kubelet
                # Or the client of a new daemon may be given the connection to one that was killed.
                ("grpc.use_local_subchannel_pool", 1),
                # A daemon takes a moment to start; gRPC would look again after a second, and then after 1.6 more.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )

    def __call__(self, name: str, request: Any, timeout: float = 60.0) -> Any:
        service = "ImageService" if "Image" in name else "RuntimeService"
        response = getattr(v1, type(request).__name__.removesuffix("Request") + "Response")
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{name}", request_serializer=bytes, response_deserializer=response.parse
        )
        return call(request, timeout=timeout, wait_for_ready=True)

    def close(self) -> None:
        self._channel.close()


def free_subnets() -> list[str]:
    """Addresses for pods that the node has no route to: a run that was killed may have left its bridge behind."""
    routes = subprocess.run(
        ["ip", "-json", "route", "show", "table", "all"], check=True, capture_output=True, text=True
    )
    taken = {route["dst"] for route in json.loads(routes.stdout)}
    numbers = range(215, 256)
    # Another run may look at the same moment, so each begins elsewhere.
    begun = [numbers[(os.getpid() + at) % len(numbers)] for at in range(len(numbers))]
    number = next(number for number in begun if f"10.{number}.0.0/16" not in taken)
    return [f"10.{number}.0.0/16", f"fd{number:x}::/64"]


class Daemon:
    """`python -m cri serve`, as often as wanted, on the same directories."""

    def __init__(
        self,
        registry: str,
        name: str,
        wrapper: Sequence[str | Path] = (),
        checkout: Path = REPOSITORY,
        settings: str = "",
    ) -> None:
        """`wrapper` is a command that executes what follows it; `checkout` is where the daemon's code is.

        `settings` are lines of its configuration, beside the usual ones.
        """
        self.wrapper = wrapper
        self.checkout = checkout
        self.base = Path(tempfile.mkdtemp(prefix="cri-test-"))
        self.registry = registry
        self.network = name
        self.subnets = free_subnets()
        self.image = f"{registry}/busybox:latest"
        self.log = self.base / "daemon.log"
        self.logs = self.base / "logs"
        self.config = self.base / "config.toml"
        self.config.write_text(
            f'state_dir = "{self.base}/state"\nruntime_dir = "{self.base}/run"\n'
            '[log]\nformat = "json"\n'
            f'[network]\nbridge = "{name}"\nsubnets = {json.dumps(self.subnets)}\n'
            f'conf_dir = "{self.base}/net.d"\n{settings}'
        )
        self.client: Client
        self.process: subprocess.Popen[bytes]

    def start(self) -> Client:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", "cri", "serve", "--config", self.config],
                stdout=log,
                stderr=log,
                cwd=self.checkout,
            )
        self.client = Client(self.base / "run/cri-jails.sock")
        try:
            # What a wrapper does may make it slow.
            self.client("Version", v1.VersionRequest(), timeout=120 if self.wrapper else 30)
        except grpc.RpcError as error:
            self.process.kill()
            self.process.wait()
            raise AssertionError(self.log.read_text()) from error
        return self.client

    def end(self, number: int = signal.SIGTERM) -> None:
        self.client.close()
        self.process.send_signal(number)
        self.process.wait(timeout=30)

    def events(self, event: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry.get("event") == event]

    # -- what tests do all the time

    def pull(self) -> None:
        self.client("PullImage", v1.PullImageRequest(image=v1.ImageSpec(image=self.image)))

    def pod(self, name: str = "pod", ports: Sequence[v1.PortMapping] = (), **linux: Any) -> str:
        self.logs.mkdir(exist_ok=True)
        config = v1.PodSandboxConfig(
            metadata=v1.PodSandboxMetadata(name=name, uid=name, namespace="test"),
            hostname=name,
            log_directory=str(self.logs),
            port_mappings=list(ports),
            linux=v1.LinuxPodSandboxConfig(**linux),
        )
        return self.client("RunPodSandbox", v1.RunPodSandboxRequest(config=config)).pod_sandbox_id

    def container(self, pod: str, *command: str, name: str = "c", start: bool = True, **fields: Any) -> str:
        config = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name),
            image=v1.ImageSpec(image=self.image),
            command=list(command),
            log_path=f"{pod[:12]}-{name}.log",
            **fields,
        )
        request = v1.CreateContainerRequest(
            pod_sandbox_id=pod, config=config, sandbox_config=v1.PodSandboxConfig()
        )
        container = self.client("CreateContainer", request).container_id
        if start:
            self.client("StartContainer", v1.StartContainerRequest(container_id=container))
        return container

    def status(self, container: str, *, verbose: bool = False) -> Any:
        return self.client(
            "ContainerStatus", v1.ContainerStatusRequest(container_id=container, verbose=verbose)
        )

    def pid(self, container: str) -> int:
        return int(json.loads(self.status(container, verbose=True).info["info"])["pid"])

    def exec(self, container: str, *command: str, timeout: int = 10) -> Any:
        return self.client(
            "ExecSync", v1.ExecSyncRequest(container_id=container, cmd=list(command), timeout=timeout)
        )

    def log_of(self, container: str) -> Path:
        return Path(self.status(container).status.log_path)

    def wait(self, container: str, state: v1.ContainerState, patience: float = 10.0) -> Any:
        deadline = time.monotonic() + patience
        while (status := self.status(container).status).state != state:
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status

    def remove_all(self) -> None:
        for sandbox in self.client("ListPodSandbox", v1.ListPodSandboxRequest()).items:
            self.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=sandbox.id))


def interfaces() -> set[str]:
    """The names of the node's interfaces."""
    return {path.name for path in Path("/sys/class/net").iterdir()}


def packet_filter() -> list[str]:
    """The tables of nftables."""
    if shutil.which("nft") is None:
        return []
    return subprocess.run(
        ["nft", "list", "tables"], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def traces(base: Path, bridge: str) -> list[str]:
    """What the node has of a daemon's things."""
    found = [
        f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(base) in line
    ]
    # walk passes over what another daemon removes meanwhile.
    found += [f"cgroup {path}" for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith("/cri-jails")]
    found += [f"interface {name}" for name in interfaces() if name == bridge]
    found += [f"packet filter {line}" for line in packet_filter() if bridge in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            root = str((process / "root").readlink())
        except OSError:
            continue
        if str(base) in command or str(base) in root:
            found.append(f"process {process.name} {command}")
    return found


@contextlib.contextmanager
def running_daemon(
    registry: str,
    bridge: str,
    wrapper: Sequence[str | Path] = (),
    checkout: Path = REPOSITORY,
    settings: str = "",
) -> Iterator[Daemon]:
    """A daemon; afterwards it and all its pods are gone without a trace."""
    node = Daemon(registry, bridge, wrapper, checkout, settings)
    others = set(traces(node.base, bridge))  # cgroups of another daemon on the machine
    node.start()
    try:
        yield node
        node.remove_all()
    finally:
        node.end()
        print(node.log.read_text())
    deadline = time.monotonic() + 5
    while (left := set(traces(node.base, bridge)) - others) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == set()
    shutil.rmtree(node.base)


@pytest.fixture
def daemon(registry: str) -> Iterator[Daemon]:
    """A daemon for one test, which may kill it."""
    with running_daemon(registry, f"crit{os.getpid()}") as node:
        yield node


@pytest.fixture(scope="module")
def module_daemon(registry: str) -> Iterator[Daemon]:
    """A daemon for all tests of a module."""
    with running_daemon(registry, f"crim{os.getpid()}") as node:
        yield node


@pytest.fixture(scope="session")
def tools() -> Path:
    """The directory of crictl and streamclient, built where they are missing."""
    build = REPOSITORY / "critest-config/build-tools"
    built = subprocess.run([build, "crictl", "streamclient"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.strip())


class Terminal:
    """A program on a terminal of its own, driven and looked at as by a person."""

    def __init__(self, argv: Sequence[str | Path], rows: int = 24, columns: int = 80) -> None:
        self._ours, self._theirs = os.openpty()
        self._set_size(rows, columns)
        self._unread = b""
        self.settings = termios.tcgetattr(self._theirs)
        """How the terminal was set before the program began."""
        self.process = subprocess.Popen(
            argv, stdin=self._theirs, stdout=self._theirs, stderr=self._theirs, start_new_session=True
        )

    def expect(self, what: str, patience: float = 10.0) -> str:
        """What the program has shown since the last call, up to and with `what`, for which this waits."""
        deadline = time.monotonic() + patience
        while (found := self._unread.find(what.encode())) < 0:
            left = deadline - time.monotonic()
            assert left > 0, f"{what!r} is not shown; this is: {self._unread!r}"
            if select.select([self._ours], [], [], left)[0]:
                self._unread += os.read(self._ours, 65536)
        end = found + len(what.encode())
        shown, self._unread = self._unread[:end], self._unread[end:]
        return shown.decode(errors="replace")

    def type(self, keys: str) -> None:
        """Press keys; Enter is a carriage return."""
        os.write(self._ours, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size, and tell the program."""
        self._set_size(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def wait(self, patience: float = 10.0) -> int:
        """Wait for the program's end and return its exit code."""
        return self.process.wait(patience)

    def settings_now(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        """End the program, if it still runs, and the terminal."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts programs on terminals; whatever still runs after the test is ended."""
    with contextlib.ExitStack() as cleanup:

        def start(*argv: str | Path, rows: int = 24, columns: int = 80) -> Terminal:
            started = Terminal(argv, rows, columns)
            cleanup.callback(started.close)
            return started

        yield start
