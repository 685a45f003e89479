"""client-go's remotecommand and port-forward against our server: as kubectl and crictl speak, without a node."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

pytestmark = pytest.mark.timeout(900)  # the first of them may have to build the client

TRANSPORTS = pytest.mark.parametrize("transport", ["spdy", "websocket"])
PROTOCOLS = [
    *(("spdy", version) for version in ("v1", "v2", "v3", "v4")),
    *(("websocket", version) for version in ("v1", "v4", "v5")),
]


@pytest.mark.parametrize(("transport", "protocol"), PROTOCOLS)
async def test_every_version(node, streamclient, transport, protocol):
    # A client of the first version leaves when it hears of a failure, whatever else it has not read.
    code = 0 if protocol == "v1" else 7
    # Neither it nor a WebSocket before v5 can tell that stdin has ended.
    url = node.exec("sh", "-c", f"head -n 1; echo wrong >&2; exit {code}", stdin=True)
    options = (f"--transport={transport}", f"--protocol={protocol}", "--stdin=-")
    report = await streamclient("exec", url, *options, stdin=b"hello\n")
    assert report["stdout"]["text"] == "hello\n"
    assert report["stderr"]["text"] == "wrong\n"
    if protocol in {"v4", "v5"}:
        assert report["exit_code"] == 7
    elif code:
        assert "7" in report["error"]


@TRANSPORTS
async def test_much_in_both_directions_at_once(node, streamclient, transport, tmp_path):
    data = os.urandom(20_000_000)
    file = tmp_path / "data"
    file.write_bytes(data)
    url = node.exec("cat", stdin=True)
    options = (f"--transport={transport}", f"--stdin={file}", "--stdout=/dev/null", "--digest")
    report = await streamclient("exec", url, *options)
    assert report["exit_code"] == 0
    assert report["stdout"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@TRANSPORTS
async def test_stdout_and_stderr_side_by_side(node, streamclient, transport):
    script = "head -c 3000000 /dev/zero & head -c 5000000 /dev/zero >&2; wait; exit 3"
    options = (f"--transport={transport}", "--stdout=/dev/null", "--stderr=/dev/null")
    report = await streamclient("exec", node.exec("sh", "-c", script), *options)
    assert (report["exit_code"], report["stdout"]["bytes"], report["stderr"]["bytes"]) == (
        3,
        3_000_000,
        5_000_000,
    )


@TRANSPORTS
async def test_the_sizes_of_a_terminal(node, streamclient, transport):
    script = "stty size; until [ \"$(stty size)\" = '30 100' ]; do sleep 0.05; done; echo resized"
    url = node.exec("sh", "-c", script, stdin=True, tty=True)
    options = ("--tty", "--stdin=-", "--size=81x25", "--later=90x27,100x30", "--every=100ms")
    report = await streamclient("exec", url, f"--transport={transport}", *options, stdin=None)
    assert report["exit_code"] == 0
    assert report["stdout"]["text"].startswith("25 81\r\n")
    assert "resized\r\n" in report["stdout"]["text"]


@TRANSPORTS
async def test_what_is_not_there(node, streamclient, transport):
    report = await streamclient("exec", node.exec("no-such-command"), f"--transport={transport}")
    assert report["exit_code"] is None
    assert "executable file not found" in report["error"]


@TRANSPORTS
async def test_a_url_is_good_once(node, streamclient, transport):
    url = node.exec("true")
    assert (await streamclient("exec", url, f"--transport={transport}"))["exit_code"] == 0
    again = await streamclient("exec", url, f"--transport={transport}")
    assert again["exit_code"] is None
    assert again["error"]


@TRANSPORTS
async def test_a_client_that_leaves_ends_its_command(node, warden, streamclient, transport):
    url = node.exec("sh", "-c", "while sleep 0.1; do echo; done")
    report = await streamclient("exec", url, f"--transport={transport}", "--timeout=1s")
    assert report["detached"]
    (run,) = warden.execs
    async with asyncio.timeout(20):
        while not run.closed:
            await asyncio.sleep(0.05)


@TRANSPORTS
async def test_20_at_a_time(node, streamclient, transport):
    async def one(number: int) -> bool:
        url = node.exec("sh", "-c", f"echo {number}; exit {number}")
        report = await streamclient("exec", url, f"--transport={transport}")
        return (report["exit_code"], report["stdout"]["text"]) == (number, f"{number}\n")

    assert all(await asyncio.gather(*(one(number) for number in range(20))))


@contextlib.asynccontextmanager
async def serving(count: bool) -> AsyncIterator[int]:
    """A port of this machine that sends back what it gets, or how much that was once it has ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = 0
        while data := await reader.read(65536):
            size += len(data)
            if not count:
                writer.write(data)
                await writer.drain()
        if count:
            writer.write(str(size).encode())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@TRANSPORTS
@pytest.mark.parametrize("service", ["echo", "count"])
async def test_50_connections(node, streamclient, transport, service):
    async with serving(service == "count") as port:
        options = (f"--transport={transport}", f"--service={service}", f"--port={port}")
        report = await streamclient(
            "portforward", node.port_forward(), *options, "--connections=50", "--bytes=200000"
        )
    assert (report["failures"], report["bytes"]) == ([], 10_000_000)


@TRANSPORTS
async def test_a_refused_port(node, streamclient, transport):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = (f"--transport={transport}", f"--port={port}", "--connections=2", "--parallel=1")
    report = await streamclient("portforward", node.port_forward(), *options)
    assert len(report["failures"]) == 2  # the session goes on after the first
    assert all("refused" in failure and str(port) in failure for failure in report["failures"])


@TRANSPORTS
async def test_over_tls(secure_node, streamclient, transport):
    url = secure_node.exec("cat", stdin=True)
    assert url.startswith("https:")
    report = await streamclient("exec", url, f"--transport={transport}", "--stdin=-", stdin=b"x" * 60_000)
    assert (report["exit_code"], report["stdout"]["bytes"]) == (0, 60_000)
    async with serving(count=True) as port:
        options = (f"--transport={transport}", "--service=count", f"--port={port}")
        report = await streamclient("portforward", secure_node.port_forward(), *options)
        assert report["failures"] == []
