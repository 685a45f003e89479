"""exec, attach and port-forward of the real daemon, by crictl and by client-go's own stack (streamclient).

One pod for all tests; each has containers of its own where it changes something.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

EXITED = v1.ContainerState.CONTAINER_EXITED
RUNNING = v1.ContainerState.CONTAINER_RUNNING
BULK = 100_000_000
PROMPT = "# "
HTTP, ECHO, COUNT = 8080, 7001, 7004
NOBODY = 7999  # a port where nothing listens
TRANSPORTS = pytest.mark.parametrize("transport", ["spdy", "websocket"])
CHANNELS = pytest.mark.parametrize(
    ("transport", "protocol"),
    [*(("spdy", f"v{n}") for n in (1, 2, 3, 4)), ("websocket", "v4"), ("websocket", "v5")],
)


@pytest.fixture(scope="module")
def node(module_daemon):
    module_daemon.pull()
    return module_daemon


@pytest.fixture(scope="module")
def pod(node) -> str:
    return node.pod("streaming")


@pytest.fixture(scope="module")
def container(node, pod) -> str:
    """A container to execute things in."""
    return node.container(pod, "sleep", "86400", name="main")


@pytest.fixture(scope="module")
def server(node, pod, tools) -> str:
    """A container with servers on the ports above."""
    mounts = [v1.Mount(host_path=str(tools), container_path="/tools", readonly=True)]
    node.container(
        pod, "/tools/streamclient", "serve", f"--echo={ECHO}", f"--count={COUNT}", name="tcp", mounts=mounts
    )
    serve = f"mkdir /www; head -c 1000000 /dev/urandom >/www/blob; exec httpd -f -p {HTTP} -h /www"
    web = node.container(pod, "sh", "-c", serve, name="http")
    request = v1.PodSandboxStatusRequest(pod_sandbox_id=pod)
    address = node.client("PodSandboxStatus", request).status.network.ip
    for port in (ECHO, COUNT, HTTP):
        eventually(lambda port=port: listens(address, port))
    return web


@pytest.fixture(scope="module")
def crictl(node, tools) -> Callable[..., list[str | Path]]:
    """The words of a crictl command for the daemon."""
    endpoint = f"unix://{node.base}/run/cri-jails.sock"
    config = node.base / "crictl.yaml"
    config.write_text(f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\n")
    return lambda *words: [tools / "crictl", "--config", config, *words]


@pytest.fixture(scope="module")
def streamclient(node, tools) -> Callable[..., Any]:
    """Call streamclient and return its report."""
    endpoint = f"--endpoint=unix://{node.base}/run/cri-jails.sock"

    def call(mode: str, *words: str, timeout: str = "100s") -> Any:
        done = subprocess.run(
            [tools / "streamclient", mode, endpoint, f"--timeout={timeout}", *words],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture(scope="module")
def bulk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file of 100 MB that nothing compresses, and its digest."""
    path = tmp_path_factory.mktemp("bulk") / "bulk"
    data = os.urandom(BULK)
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def run(argv: list[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, **options)


def eventually(condition: Callable[[], object], patience: float = 10.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


# -- exec on a terminal


@TRANSPORTS
def test_a_shell_on_a_terminal(crictl, terminal, container, transport):
    screen = terminal(*crictl("exec", "-it", "-r", transport, container, "sh"), rows=31, columns=97)
    screen.expect(PROMPT)
    screen.type("echo $((6 * 7))\r")
    screen.expect("\r\n42\r\n")
    screen.type("stty size\r")
    screen.expect("31 97\r\n")
    screen.resize(50, 132)
    screen.type("while [ \"$(stty size)\" != '50 132' ]; do sleep 0.1; done; echo re''sized\r")
    screen.expect("resized\r\n")

    screen.type("echo be''gun; sleep 1000\r")
    screen.expect("begun")
    time.sleep(0.3)  # for the shell to have made `sleep` the foreground job
    screen.type("\x03")
    screen.expect(PROMPT)
    screen.type("echo code $?\r")
    screen.expect("code 130\r\n")
    screen.expect(PROMPT)  # until the shell edits a line, the keys of an end or an interrupt are the kernel's

    screen.type("\x04")
    assert screen.wait() == 0
    assert screen.settings_now() == screen.settings


@TRANSPORTS
def test_without_a_terminal_beside_a_shell_on_one(node, pod, crictl, transport):
    """The command's streams are its own: the container's shell hears nothing, and its log has nothing of it."""
    shell = node.container(pod, "sh", "-c", "cat", name=f"shell-{transport}", tty=True, stdin=True)
    done = run(
        crictl("exec", "-i", "-r", transport, shell, "sh", "-c", "cat; echo err >&2; exit 7"),
        input="not for the shell\n",
    )
    assert done.stdout == "not for the shell\n"
    assert "err\n" in done.stderr
    assert done.returncode != 0
    assert node.exec(shell, "echo", "here").stdout == b"here\n"
    assert run(crictl("logs", shell)).stdout == ""
    node.client("RemoveContainer", v1.RemoveContainerRequest(container_id=shell))


def test_the_size_is_there_from_the_beginning(crictl, terminal, container):
    for _ in range(5):
        screen = terminal(*crictl("exec", "-it", container, "stty", "size"), rows=12, columns=34)
        screen.expect("12 34\r\n")
        assert screen.wait() == 0


def test_a_full_screen_program(crictl, node, terminal, container):
    screen = terminal(*crictl("exec", "-it", container, "vi", "/tmp/poem"), rows=20, columns=70)
    screen.expect("/tmp/poem")
    for keys in ("i", "so much depends\rupon", "\x1b", ":wq\r"):
        screen.type(keys)
        time.sleep(0.3)  # vi takes what comes with an escape for a function key
    assert screen.wait() == 0
    assert node.exec(container, "cat", "/tmp/poem").stdout == b"so much depends\nupon\n"
    assert screen.settings_now() == screen.settings


def test_escape_sequences_are_intact(crictl, terminal, container):
    sequence = "\033[2J\033[H\033[1;31mred\033[0m\033]0;title\007\u2500"
    screen = terminal(*crictl("exec", "-it", container, "printf", sequence))
    screen.expect(sequence)
    assert screen.wait() == 0


# -- exec without one


@TRANSPORTS
def test_100_mb_of_stdin_and_back(crictl, container, bulk, transport, tmp_path):
    path, digest = bulk
    with path.open("rb") as stdin:
        there = run(crictl("exec", "-i", "-r", transport, container, "sha256sum"), stdin=stdin)
    assert there.stdout.split()[:1] == [digest], there.stderr
    back = tmp_path / "back"
    with path.open("rb") as stdin, back.open("wb") as stdout:
        argv = crictl("exec", "-i", "-r", transport, container, "cat")
        subprocess.run(argv, stdin=stdin, stdout=stdout, check=True, timeout=60)
    with back.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def test_stdin_goes_on_when_stdout_has_ended(node, streamclient, container, bulk):
    path, digest = bulk
    command = ("sh", "-c", "exec sha256sum >/tmp/digest 2>&1")  # nobody has the outputs any more
    report = streamclient("exec", f"--stdin={path}", container, *command)
    assert report["exit_code"] == 0, report
    assert node.exec(container, "cat", "/tmp/digest").stdout.split()[0].decode() == digest


def test_a_command_that_takes_no_stdin_ends(streamclient, container):
    report = streamclient("exec", "--stdin=/dev/zero", container, "echo", "done", timeout="20s")
    assert (report["exit_code"], report["stdout"]["text"]) == (0, "done\n"), report


@TRANSPORTS
def test_exit_codes_as_crictl_tells_them(crictl, container, transport):
    execute = functools.partial(crictl, "exec", "-r", transport, container)
    assert run(execute("true")).returncode == 0
    for command, code in ((("false",), 1), (("sh", "-c", "exit 7"), 7), (("sh", "-c", "kill -9 $$"), 137)):
        ended = run(execute(*command))
        assert ended.returncode == 1
        assert f"command terminated with exit code {code}" in ended.stderr
    missing = run(execute("no-such-command"))
    assert missing.returncode == 1
    assert "no-such-command" in missing.stderr
    assert "executable file not found" in missing.stderr


@CHANNELS
def test_every_version_of_the_protocol(streamclient, container, transport, protocol):
    options = (f"--transport={transport}", f"--protocol={protocol}")
    # A client of the first version leaves when it hears of a failure, whatever else it has not read.
    code = 0 if protocol == "v1" else 7
    # Neither it nor a WebSocket before v5 can tell that stdin has ended.
    command = ("sh", "-c", f"head -n 1; echo wrong >&2; exit {code}")
    report = streamclient("exec", "--stdin=/etc/hostname", *options, container, *command)
    assert report["stdout"]["text"] == Path("/etc/hostname").read_text()
    assert report["stderr"]["text"] == "wrong\n"
    if protocol in {"v4", "v5"}:
        assert report["exit_code"] == 7
    elif code:
        assert "7" in report["error"]


# -- attach


@pytest.fixture
def repeater(node, pod) -> Iterator[str]:
    """A container that says what it is told."""
    script = 'while read -r line; do echo "got $line"; echo "heard $line" >&2; done; echo end'
    container = node.container(pod, "sh", "-c", script, name=f"repeat{time.monotonic_ns()}", stdin=True)
    yield container
    node.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))


@contextlib.contextmanager
def attached(argv: list[str | Path]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def settle() -> None:
    """There is no sign of an attachment from the outside before something is printed."""
    time.sleep(0.5)


@TRANSPORTS
def test_two_attached(node, crictl, repeater, transport):
    with attached(crictl("attach", "-i", "-r", transport, repeater)) as first:
        with attached(crictl("attach", "-i", "-r", transport, repeater)) as second:
            settle()
            for writer, line in ((first, "one"), (second, "two")):
                writer.stdin.write(f"{line}\n")
                for reader in (first, second):
                    assert reader.stdout.readline() == f"got {line}\n"
                    assert reader.stderr.readline() == f"heard {line}\n"
        first.stdin.write("three\n")  # the second one has gone without a word
        assert first.stdout.readline() == "got three\n"
    settle()
    assert node.status(repeater).status.state == RUNNING
    log = node.log_of(repeater).read_text()
    assert [log.count(f"stdout F got {line}\n") for line in ("one", "two", "three")] == [1, 1, 1]
    assert [log.count(f"stderr F heard {line}\n") for line in ("one", "two", "three")] == [1, 1, 1]


def test_the_end_of_stdin_is_not_the_containers(node, crictl, repeater):
    with attached(crictl("attach", "-i", repeater)) as process:
        settle()
        process.stdin.write("one\n")
        assert process.stdout.readline() == "got one\n"
        process.stdin.close()
        settle()
        assert node.status(repeater).status.state == RUNNING


def test_unless_it_has_stdin_once(node, pod, crictl):
    container = node.container(pod, "cat", name="once", stdin=True, stdin_once=True)
    with attached(crictl("attach", "-i", container)) as process:
        settle()
        process.stdin.write("one\n")
        process.stdin.close()
        assert process.stdout.read() == "one\n"
        assert process.wait(10) == 0
    assert node.wait(container, EXITED).exit_code == 0


def test_attach_on_a_terminal_and_detach(node, pod, crictl, terminal):
    container = node.container(pod, "sh", name="tty", stdin=True, tty=True)
    screen = terminal(*crictl("attach", "-it", container), rows=41, columns=93)
    settle()
    screen.type("stty size\r")
    screen.expect("41 93\r\n")
    screen.type("\x10\x11")  # crictl's keys to detach
    screen.wait()
    assert screen.settings_now() == screen.settings
    assert node.status(container).status.state == RUNNING
    again = terminal(*crictl("attach", "-it", container))
    settle()
    again.type("echo still he''re\r")
    again.expect("still here\r\n")
    again.type("exit 5\r")
    again.wait()
    assert node.wait(container, EXITED).exit_code == 5


def test_whoever_reads_nothing_does_not_stop_the_container(node, pod, crictl):
    lines = 200_000
    script = f"read -r go; seq {lines}"
    container = node.container(pod, "sh", "-c", script, name="stalled", stdin=True)
    with attached(crictl("attach", "-i", container)) as process:
        settle()
        process.stdin.write("go\n")
        assert node.wait(container, EXITED, patience=30).exit_code == 0
        last = f"stdout F {lines}\n"
        eventually(lambda: node.log_of(container).read_text().endswith(last))
    assert node.log_of(container).read_text().count("\n") == lines


# -- port-forward


@contextlib.contextmanager
def forwarding(argv: list[str | Path]) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A crictl port-forward, and the local port that it has chosen."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("Forwarding from 127.0.0.1:"), said + process.stderr.read()
            yield int(said.split()[2].rpartition(":")[2]), process
        finally:
            process.kill()


@TRANSPORTS
def test_50_requests_at_a_time(node, pod, crictl, server, transport):
    expected = node.exec(server, "sha256sum", "/www/blob").stdout.split()[0].decode()
    with forwarding(crictl("port-forward", "-r", transport, pod, f"0:{HTTP}")) as (port, _):

        def fetch(_: int) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/blob", timeout=50) as answer:
                return hashlib.sha256(answer.read()).hexdigest()

        with ThreadPoolExecutor(50) as threads:
            assert list(threads.map(fetch, range(100))) == [expected] * 100


@TRANSPORTS
def test_connections_that_end_one_side_at_a_time(streamclient, pod, server, transport):
    for port, service in ((ECHO, "echo"), (COUNT, "count")):
        options = (f"--transport={transport}", f"--service={service}", f"--port={port}", "--bytes=1000000")
        report = streamclient("portforward", *options, "--connections=50", pod)
        assert (report["failures"], report["bytes"]) == ([], 50_000_000), report


@TRANSPORTS
def test_a_refused_port_is_reported(streamclient, crictl, pod, transport):
    report = streamclient("portforward", f"--transport={transport}", f"--port={NOBODY}", pod)
    (failure,) = report["failures"]
    assert "refused" in failure
    assert str(NOBODY) in failure
    with forwarding(crictl("port-forward", "-r", transport, pod, f"0:{NOBODY}")) as (port, process):
        with pytest.raises(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10):
            pass
        assert "refused" in process.stderr.readline()


def test_into_a_pod_on_the_nodes_network(node, crictl):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        inside = probe.getsockname()[1]
    network = v1.NamespaceOption(network=v1.NamespaceMode.NODE)
    pod = node.pod("on-node", security_context=v1.LinuxSandboxSecurityContext(namespace_options=network))
    serve = f"mkdir /www; echo hello >/www/index.html; exec httpd -f -p 127.0.0.1:{inside} -h /www"
    node.container(pod, "sh", "-c", serve)
    eventually(lambda: listens("127.0.0.1", inside))
    with (
        forwarding(crictl("port-forward", pod, f"0:{inside}")) as (port, _),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer,
    ):
        assert answer.read() == b"hello\n"
    node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


# -- many, and much


def resources(pid: int) -> dict[str, int]:
    """What a process holds: descriptors, threads, and resident memory in KiB."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return {
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(status["Threads"]),
        "memory": int(status["VmRSS"].split()[0]),
    }


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@TRANSPORTS
def test_200_execs_at_a_time(streamclient, container, transport):
    report = streamclient(
        *("execs", f"--transport={transport}", "--count=200", "--parallel=200"),
        *("--codes=0,1,7,137", "--output={number}\n"),
        *(container, "sh", "-c", "echo {number}; exit {code}"),
    )
    assert report["wrong"] == 0, report["first_wrong"]


def test_2000_execs_leave_nothing(node, streamclient, container):
    warden = parent_of(node.pid(container))
    batch = ("--parallel=8", "--codes=0,1,137", container, "sh", "-c", "exit {code}")
    assert streamclient("execs", "--count=200", *batch)["wrong"] == 0
    node.client("ListPodSandboxStats", v1.ListPodSandboxStatsRequest())  # what is read for them is kept open
    settle()
    before = {pid: resources(pid) for pid in (node.process.pid, warden)}
    report = streamclient("execs", "--count=2000", *batch, timeout="150s")
    assert report["wrong"] == 0, report["first_wrong"]
    settle()
    for pid, was in before.items():
        now = resources(pid)
        assert now["descriptors"] <= was["descriptors"] + 2, (was, now)
        assert now["threads"] <= was["threads"] + 2, (was, now)
        assert now["memory"] <= was["memory"] + 8 * 1024, (was, now)  # 4 KiB each would be as much


def test_1_gib_at_a_slow_reader(node, streamclient, container):
    def versions(while_: Callable[[], bool]) -> list[float]:
        """Milliseconds that Version takes; also looks at the daemon's memory."""
        nonlocal most
        durations = []
        while while_():
            begin = time.perf_counter()
            node.client("Version", v1.VersionRequest())
            durations.append((time.perf_counter() - begin) * 1e3)
            most = max(most, resources(node.process.pid)["memory"])
            time.sleep(0.01)
        return durations

    most = 0
    idle_until = time.monotonic() + 1
    idle = versions(lambda: time.monotonic() < idle_until)
    before, most = most, 0
    command = ("sh", "-c", "exec dd if=/dev/zero bs=64k count=16384 2>/dev/null")
    options = ("--stdout=/dev/null", "--stall=2s", "--rate=200")
    with ThreadPoolExecutor(1) as thread:
        exec_ = thread.submit(streamclient, "exec", *options, container, *command)
        busy = versions(lambda: not exec_.done())
    report = exec_.result()
    assert (report["exit_code"], report["stdout"]["bytes"]) == (0, 1 << 30), report
    assert report["exit_ms"] > 7000  # it was a slow reader
    print(
        f"memory {before} to {most} KiB; Version {statistics.median(idle):.2f} to {statistics.median(busy):.2f} ms"
    )
    assert most - before < 64 * 1024
    assert statistics.median(busy) < 20 * statistics.median(idle)
