"""The daemon on its socket, and crictl: pull, pods, ps, exec, logs with an image made from this host's own files."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CRICTL = shutil.which("crictl")
REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CRICTL is None, reason="there is no crictl in PATH"),
    pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="grpcio is not installed"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def registry(directory: Path, fill_image: Callable[[Path], None]) -> Iterator[str]:
    """The address of a file server that has `rescue:latest`."""
    root = directory / "context/root"
    root.mkdir(parents=True)
    fill_image(root)
    (directory / "context/Containerfile").write_text(
        'FROM scratch\nCOPY root/ /\nENV PATH=/bin\nCMD ["sleep", "3600"]\n'
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "baustelle", "build", "-f", directory / "context/Containerfile"),
            *(
                "-t",
                "localhost/rescue:latest",
                "--layout",
                directory / "layout",
                "--tree",
                directory / "tree",
            ),
            directory / "context",
        ],
        check=True,
        cwd=REPOSITORY,
    )
    handler = functools.partial(Quiet, directory=directory / "tree")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"localhost:{server.server_port}"
        server.shutdown()
        thread.join()


class Daemon:
    """`python -m cri serve` and a crictl for its socket."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.socket = base / "run/cri-jails.sock"
        (base / "config.toml").write_text(
            f'state_dir = "{base}/state"\nruntime_dir = "{base}/run"\n'
            f'[network]\nbridge = "critest1"\nsubnets = ["10.218.0.0/16", "fd00:218::/64"]\n'
            f'conf_dir = "{base}/net.d"\n'
        )

    def start(self) -> None:
        with (self.base / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cri", "serve", "--config", self.base / "config.toml"],
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )
        until = time.monotonic() + 240
        while self.call("version").returncode:
            assert self.process.poll() is None, (self.base / "daemon.log").read_text()
            assert time.monotonic() < until, (self.base / "daemon.log").read_text()
            time.sleep(0.2)

    def kill(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(60)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        endpoint = f"unix://{self.socket}"
        return subprocess.run(
            [CRICTL, "--timeout", "120s", "-r", endpoint, "-i", endpoint, *words],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def condition(self, name: str) -> dict[str, object]:
        """A condition of `crictl info`."""
        conditions = json.loads(self.crictl("info"))["status"]["conditions"]
        return next(each for each in conditions if each["type"] == name)

    def crictl(self, *words: str, check: bool = True) -> str:
        result = self.call(*words)
        if check and result.returncode:
            pytest.fail(f"crictl {words}: {result.stderr}\n{(self.base / 'daemon.log').read_text()[-3000:]}")
        return result.stdout


@pytest.fixture
def daemon(directory: Path, nothing_left: None) -> Iterator[Daemon]:
    daemon = Daemon(directory)
    daemon.start()
    yield daemon
    if daemon.process.poll() is not None:
        daemon.start()
    daemon.crictl("rmp", "--force", "--all", check=False)
    daemon.kill(signal.SIGTERM)


def test_a_pod_by_crictl(registry: str, daemon: Daemon):
    image = f"{registry}/rescue:latest"
    daemon.crictl("pull", image)
    assert "rescue" in daemon.crictl("images")
    logs = daemon.base / "logs"
    pod_config, container_config = daemon.base / "pod.json", daemon.base / "container.json"
    pod_config.write_text(
        json.dumps(
            {
                "metadata": {"name": "web", "namespace": "default", "uid": "u1", "attempt": 0},
                "hostname": "web",
                "log_directory": str(logs),
                "linux": {},
            }
        )
    )
    container_config.write_text(
        json.dumps(
            {
                "metadata": {"name": "ticker"},
                "image": {"image": image},
                "command": ["sh", "-c", "n=0; while :; do n=$((n+1)); echo tick $n; sleep 1; done"],
                "log_path": "ticker.log",
                "linux": {},
            }
        )
    )
    pod = daemon.crictl("runp", str(pod_config)).strip()
    container = daemon.crictl("create", pod, str(container_config), str(pod_config)).strip()
    daemon.crictl("start", container)
    assert "Ready" in daemon.crictl("pods")
    assert "Running" in daemon.crictl("ps")
    assert daemon.crictl("exec", "--sync", container, "hostname").strip() == "web"
    assert "tick 1" in daemon.crictl("logs", container)
    network = json.loads(daemon.crictl("inspectp", pod))["status"]["network"]
    assert network["ip"].startswith("10.218.")
    assert [one["ip"].startswith("fd00:218::") for one in network["additionalIps"]] == [True]
    assert daemon.condition("RuntimeReady")["status"] is True
    assert "web" in daemon.crictl("stats", "-a") or container[:13] in daemon.crictl("stats", "-a")

    # Killed without a word; the container goes on, and so does its log.
    daemon.kill(signal.SIGKILL)
    time.sleep(3)
    daemon.start()
    assert "Running" in daemon.crictl("ps")
    assert daemon.crictl("exec", "--sync", container, "echo", "still here").strip() == "still here"
    lines = [line.split()[-1] for line in daemon.crictl("logs", container).splitlines()]
    assert [int(number) for number in lines] == list(range(1, len(lines) + 1))

    daemon.crictl("stop", "--timeout", "2", container)
    assert "Exited" in daemon.crictl("ps", "-a")
    daemon.crictl("rm", container)
    daemon.crictl("stopp", pod)
    daemon.crictl("rmp", pod)
    daemon.crictl("rmi", image)
    assert "rescue" not in daemon.crictl("images")


PF_CONF = 'nat-anchor "cni-rdr/*"\nrdr-anchor "cni-rdr/*"\npass all\n'
SERVER = "while :; do echo hello over IPv${0} | nc -N -${0} -l 8080 >/dev/null; done"


def answer(address: str, port: int, patience: float = 60.0) -> str | None:
    """What a server of one line says, as soon as it is there; None if it never is."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 5) as sock:
            if text := sock.makefile().readline():
                return text.strip()
        time.sleep(0.2)
    return None


def test_a_host_port_and_what_keeps_it_from_working_by_crictl(
    registry: str, daemon: Daemon, load_pf_conf: Callable[[str], str]
):
    load_pf_conf(PF_CONF)
    image = f"{registry}/rescue:latest"
    daemon.crictl("pull", image)
    pod_config = daemon.base / "pod.json"
    pod_config.write_text(
        json.dumps(
            {
                "metadata": {"name": "web", "namespace": "default", "uid": "u1", "attempt": 0},
                "log_directory": str(daemon.base / "logs"),
                "port_mappings": [{"protocol": 0, "container_port": 8080, "host_port": 18080}],
                "linux": {},
            }
        )
    )
    pod = daemon.crictl("runp", str(pod_config)).strip()
    for family in ("4", "6"):
        container_config = daemon.base / "container.json"
        container_config.write_text(
            json.dumps(
                {
                    "metadata": {"name": f"server-{family}"},
                    "image": {"image": image},
                    "command": ["sh", "-c", SERVER, family],
                    "log_path": f"server-{family}.log",
                    "linux": {},
                }
            )
        )
        daemon.crictl("start", daemon.crictl("create", pod, str(container_config), str(pod_config)).strip())
    network = json.loads(daemon.crictl("inspectp", pod))["status"]["network"]
    assert answer(network["ip"], 8080) == "hello over IPv4"
    assert answer(network["additionalIps"][0]["ip"], 8080) == "hello over IPv6"
    for address in ("127.0.0.1", "10.218.0.1"):
        assert answer(address, 18080) == "hello over IPv4", address
    assert answer("fd00:218::1", 18080) == "hello over IPv6"

    assert daemon.condition("NetworkReady")["status"] is True
    subprocess.run(["pfctl", "-d"], check=True, capture_output=True)
    condition = daemon.condition("NetworkReady")
    assert (condition["status"], condition["reason"]) == (False, "NetworkPluginNotReady")
    assert "pf is not enabled" in condition["message"]
    assert answer("127.0.0.1", 18080, 3) is None
    subprocess.run(["pfctl", "-e"], check=True, capture_output=True)
    load_pf_conf("pass all\n")
    assert 'pf.conf has no line `rdr-anchor "cni-rdr/*"`' in daemon.condition("NetworkReady")["message"]
    load_pf_conf(PF_CONF)
    assert daemon.condition("NetworkReady")["status"] is True
    assert answer("127.0.0.1", 18080) == "hello over IPv4"

    daemon.crictl("rmp", "--force", pod)
    assert answer("127.0.0.1", 18080, 3) is None
