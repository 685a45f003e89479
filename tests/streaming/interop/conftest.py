"""Our server in this process, programs of this machine behind it, and client-go in front of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cri.sandbox.spec import ContainerSpec
from cri.streaming.carriers import CommandCarrier, ForwardCarrier
from cri.streaming.execs import run_exec
from cri.streaming.forwarding import run_forward
from cri.streaming.server import StreamingServer
from cri.streaming.session import Outcome, Streams
from cri.streaming.tls import CertificateFiles

REPOSITORY = Path(__file__).parents[3]
IDLE = 60.0  # seconds without anything, which ends a session


@pytest.fixture(scope="session")
def program() -> Path:
    """streamclient; building it takes minutes where nothing is cached."""
    if shutil.which("go") is None and not Path("/usr/local/go/bin/go").exists():
        pytest.skip("there is no go to build streamclient with")
    build = REPOSITORY / "critest-config/build-tools"
    built = subprocess.run([build, "streamclient"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.strip(), "streamclient")


Ask = Callable[..., Awaitable[Any]]


@pytest.fixture
def streamclient(program) -> Ask:
    """Run streamclient with a URL and return its report; `stdin` is what it reads, None: nothing, but no end either."""

    async def ask(mode: str, url: str, *options: str, stdin: bytes | None = b"") -> Any:
        process = await asyncio.create_subprocess_exec(
            *(program, mode, f"--url={url}", "--timeout=50s", *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin
        if stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
        said, complaints = await asyncio.gather(process.stdout.read(), process.stderr.read())
        await process.wait()
        assert said, complaints.decode()
        return json.loads(said)

    return ask


class Node:
    """What hands out URLs, in place of the daemon."""

    def __init__(self, server: StreamingServer, warden: Any, container: ContainerSpec) -> None:
        self.server = server
        self._warden = warden
        self._container = container

    def exec(self, *argv: str, stdin: bool = False, tty: bool = False) -> str:
        """The URL of a command."""
        streams = Streams(stdin=stdin, stdout=True, stderr=not tty, tty=tty)
        serve = partial(self._exec, argv, streams)
        return self.server.offer(CommandCarrier("exec", "container", streams, serve))

    def port_forward(self) -> str:
        """The URL of a port-forward to this machine."""
        return self.server.offer(
            ForwardCarrier((), lambda session: run_forward(self._warden, "sandbox", (), session, IDLE))
        )

    async def _exec(self, argv: tuple[str, ...], streams: Streams, session: Any) -> Outcome:
        return await run_exec(self._warden, self._container, argv, streams, session, IDLE)


@pytest.fixture
async def node(warden, container) -> AsyncIterator[Node]:
    """A server without TLS; no connection is left when a test ends."""
    server = StreamingServer()
    await server.start()
    yield Node(server, warden, container)
    async with asyncio.timeout(10):
        while server.connections:
            await asyncio.sleep(0.05)
    await server.stop()


@pytest.fixture
async def secure_node(warden, container, tmp_path) -> AsyncIterator[Node]:
    """A server with TLS."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [openssl, *command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    server = StreamingServer(tls=CertificateFiles(certificate, key))
    await server.start()
    yield Node(server, warden, container)
    await server.stop(grace=5)
