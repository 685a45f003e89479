"""The daemon on its socket, and crictl: pull, pods, ps, exec, logs with an image made from this host's own files."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import shutil
import signal
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
            '[network]\nbridge = "critest1"\nsubnets = ["10.218.0.0/16"]\n'
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
    status = json.loads(daemon.crictl("inspectp", pod))
    assert status["status"]["network"]["ip"].startswith("10.218.")
    assert json.loads(daemon.crictl("info"))["status"]["conditions"][0]["status"] is True
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
