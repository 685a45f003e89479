"""The daemon on its socket, and crictl: pull, pods, ps, exec, logs with an image made from this host's own files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable

import pytest

from .daemon import CRICTL, Daemon

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CRICTL is None, reason="there is no crictl in PATH"),
    pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="grpcio is not installed"),
]


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


class Screen:
    """A terminal with a program at it."""

    def __init__(self, argv: list[str], rows: int, columns: int) -> None:
        self._pty, terminal = pty.openpty()
        self.resize(rows, columns)
        self._process = subprocess.Popen(
            argv, stdin=terminal, stdout=terminal, stderr=terminal, process_group=0
        )
        os.close(terminal)
        self._seen = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._pty, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        if hasattr(self, "_process"):  # it is in no foreground group that the kernel could tell
            self._process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self._pty, text.encode())

    def expect(self, text: str, patience: float = 60) -> None:
        until = time.monotonic() + patience
        while text not in self._seen:
            ready, _, _ = select.select([self._pty], [], [], until - time.monotonic())
            assert ready, (text, self._seen)
            self._seen += os.read(self._pty, 4096).decode(errors="replace")
        self._seen = self._seen.partition(text)[2]

    def end(self) -> int:
        code = self._process.wait(60)
        os.close(self._pty)
        return code


@pytest.fixture
def running(registry: str, daemon: Daemon) -> Callable[..., str]:
    """Starts containers in one pod, whose id is its attribute."""
    image = f"{registry}/rescue:latest"
    daemon.crictl("pull", image)
    pod_config = daemon.base / "pod.json"
    pod_config.write_text(
        json.dumps(
            {
                "metadata": {"name": "streams", "namespace": "default", "uid": "u1", "attempt": 0},
                "log_directory": str(daemon.base / "logs"),
                "linux": {},
            }
        )
    )
    pod = daemon.crictl("runp", str(pod_config)).strip()

    def start(name: str, *command: str, **fields: object) -> str:
        config = {
            "metadata": {"name": name},
            "image": {"image": image},
            "command": command,
            "log_path": f"{name}.log",
            "linux": {},
            **fields,
        }
        (daemon.base / "container.json").write_text(json.dumps(config))
        container = daemon.crictl("create", pod, str(daemon.base / "container.json"), str(pod_config)).strip()
        daemon.crictl("start", container)
        return container

    start.pod = pod
    return start


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_exec_by_crictl(daemon: Daemon, running: Callable[..., str], transport: str):
    container = running("main", "sleep", "3600")
    done = daemon.call("exec", "-r", transport, container, "sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert "err" in done.stderr
    for script, code in (("exit 1", 1), ("kill -9 $$", 137)):
        done = daemon.call("exec", "-r", transport, container, "sh", "-c", script)
        assert done.returncode == 1
        assert f"exit code {code}" in done.stderr or f"exit code: {code}" in done.stderr
    assert "not found" in daemon.call("exec", "-r", transport, container, "no-such-program").stderr

    data = os.urandom(5_000_000)
    endpoint = f"unix://{daemon.socket}"
    words = [CRICTL, "-r", endpoint, "-i", endpoint, "exec", "-i", "-r", transport, container]
    digest = subprocess.run(
        [*words, "sha256", "-q"], input=data, capture_output=True, check=True, timeout=300
    )
    assert digest.stdout.decode().strip() == hashlib.sha256(data).hexdigest()
    echoed = subprocess.run([*words, "cat"], input=data, capture_output=True, check=True, timeout=300)
    assert hashlib.sha256(echoed.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_a_terminal_by_crictl(daemon: Daemon, running: Callable[..., str], transport: str):
    container = running("main", "sleep", "3600")
    endpoint = f"unix://{daemon.socket}"
    words = [CRICTL, "-r", endpoint, "-i", endpoint, "exec", "-it", "-r", transport, container]
    screen = Screen([*words, "stty", "size"], 12, 34)
    screen.expect("12 34")
    assert screen.end() == 0
    screen = Screen([*words, "sh"], 31, 97)
    screen.expect("# ")
    screen.type("stty size; tty\r")
    screen.expect("31 97")
    screen.expect("/dev/pts/")
    screen.resize(50, 132)
    screen.type("while [ \"$(stty size)\" != '50 132' ]; do sleep 1; done; echo re''sized\r")
    screen.expect("resized")
    screen.type("echo be''gun; sleep 1000\r")
    screen.expect("begun")
    time.sleep(1)  # for the shell to have made `sleep` the foreground job
    screen.type("\x03")
    screen.expect("# ")
    screen.type("echo code $?\r")
    screen.expect("code 130")
    screen.type("\x04")
    assert screen.end() == 0


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_attach_by_crictl(daemon: Daemon, running: Callable[..., str], transport: str):
    container = running("cat", "sh", "-c", "echo ready; exec cat", stdin=True)
    words = [CRICTL, "-r", f"unix://{daemon.socket}", "attach", "-r", transport]
    with contextlib.ExitStack() as end:
        first, second = (
            end.enter_context(
                subprocess.Popen(
                    [*words, *flags, container], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
                )
            )
            for flags in (["-i"], [])
        )
        time.sleep(5)  # for both to be attached
        for line in (b"one\n", b"two\n"):
            first.stdin.write(line)
            assert [first.stdout.read(4), second.stdout.read(4)] == [line, line]
        first.kill()
        second.kill()
    assert "Running" in daemon.crictl("ps")
    assert daemon.crictl("logs", container) == "ready\none\ntwo\n"


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_a_port_by_crictl(daemon: Daemon, running: Callable[..., str], transport: str):
    running("server", "sh", "-c", "while :; do echo hello; done | nc -lk 8080")
    words = [CRICTL, "-r", f"unix://{daemon.socket}", "port-forward", "-r", transport, running.pod]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*words, "18081:8080"], **options) as forwarding:
        for _ in range(5):
            until = time.monotonic() + 60
            while True:  # crictl has to listen first, and nc serves one client at a time
                try:
                    with socket.create_connection(("127.0.0.1", 18081), 5) as client:
                        stream = client.makefile()
                        stream.readline()  # the rest of what was meant for the client before
                        assert stream.readline() == "hello\n"
                        break
                except OSError:
                    assert time.monotonic() < until
                    time.sleep(0.2)
        forwarding.terminate()
    # A client of this release gives up all its ports when one is refused.
    with subprocess.Popen([*words, "18082:9"], **options) as forwarding:
        assert answer("127.0.0.1", 18082, 10) is None
        forwarding.terminate()
        assert "connection refused" in forwarding.stdout.read().decode()
