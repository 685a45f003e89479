"""The daemon as a process, clients by crictl, and images made from this host's own files."""

from __future__ import annotations

import functools
import http.server
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


def build(directory: Path, name: str, containerfile: str) -> None:
    """Make `localhost/NAME:latest` of what is in DIRECTORY/context; the registry has it as `NAME:latest`."""
    (directory / "context/Containerfile").write_text(containerfile)
    subprocess.run(
        [
            *(sys.executable, "-m", "baustelle", "build", "-f", directory / "context/Containerfile"),
            *("-t", f"localhost/{name}:latest"),
            *("--layout", directory / "layout", "--tree", directory / "tree"),
            directory / "context",
        ],
        check=True,
        cwd=REPOSITORY,
    )


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def registry(directory: Path, fill_image: Callable[[Path], None]) -> Iterator[str]:
    """The address of a file server that has `rescue:latest`, and whatever else is built."""
    root = directory / "context/root"
    root.mkdir(parents=True)
    fill_image(root)
    build(directory, "rescue", 'FROM scratch\nCOPY root/ /\nENV PATH=/bin\nCMD ["sleep", "3600"]\n')
    handler = functools.partial(Quiet, directory=directory / "tree")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
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
