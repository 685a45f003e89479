"""Servers that speak HTTP badly: what they cost is their own answer, never the next one's."""

import asyncio
import contextlib
import json

import pytest

from registratur import (
    Client,
    Credentials,
    Descriptor,
    HostsConfig,
    IdleTimeoutError,
    Reference,
    RegistryError,
    RetryPolicy,
)
from registratur.digest import compute_digest
from registratur.errors import TransportError, UnauthorizedError

CONFIG = b"{}"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": compute_digest(CONFIG),
            "size": 2,
        },
        "layers": [],
    }
).encode()
TYPE = b"Content-Type: application/vnd.oci.image.manifest.v1+json\r\n"
DIGEST = b"Docker-Content-Digest: " + compute_digest(MANIFEST).encode() + b"\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(MANIFEST)
OK = b"HTTP/1.1 200 OK\r\n"
GOOD = OK + TYPE + DIGEST + LENGTH + b"\r\n" + MANIFEST


class RawServer:
    """Answers each request with bytes that a test gives it by method, and counts connections."""

    def __init__(self) -> None:
        self.answers: dict[str, list[bytes]] = {}
        self.connections = 0
        self.requests: list[str] = []
        self.host = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method = head.split(b" ", 1)[0].decode()
                self.requests.append(method)
                for part in self.answers[method]:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.02)

    @property
    def ref(self) -> Reference:
        return Reference.parse(f"{self.host}/team/app:1")


@pytest.fixture
async def server():
    made = RawServer()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.host = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()


@pytest.fixture
async def patient():
    """A client that tries once, so that whatever goes wrong is seen."""
    retry = RetryPolicy(tries=1)
    async with Client(
        HostsConfig(), idle_timeout=0.3, connect_timeout=1, retry=retry, environment={}
    ) as opened:
        yield opened


@pytest.mark.parametrize(
    "answer",
    [
        [GOOD],
        [GOOD[: -len(MANIFEST)], MANIFEST],
        [OK + TYPE + DIGEST + LENGTH + b"\r\n", b"x" * 5000],
        [OK + TYPE + DIGEST + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n"],
        [b"HTTP/1.1 401 no\r\nContent-Length: 2\r\n\r\nno"],
        [b"HTTP/1.1 404 no\r\nContent-Length: 2\r\n\r\n", b"no"],
    ],
)
async def test_a_head_answered_with_a_body_spoils_nothing(server, patient, answer):
    server.answers = {"HEAD": answer, "GET": [GOOD]}
    for _ in range(3):
        with contextlib.suppress(RegistryError):
            await patient.resolve(server.ref)
        _, data = await patient.manifest(server.ref)
        assert data == MANIFEST


async def test_what_is_asked_for_by_get_keeps_its_connection(server, patient):
    server.answers = {"GET": [GOOD]}
    for _ in range(5):
        await patient.manifest(server.ref)
    assert server.connections == 1


async def test_a_body_longer_than_declared_is_cut_and_costs_its_connection_only(server, patient):
    server.answers = {"GET": [GOOD + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"]}
    for _ in range(3):
        _, data = await patient.manifest(server.ref)
        assert data == MANIFEST


async def test_a_trailer_belongs_to_its_body(server, patient):
    chunked = b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    body = b"%x\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(MANIFEST), MANIFEST)
    server.answers = {"GET": [OK + TYPE + chunked, body]}
    for _ in range(3):
        _, data = await patient.manifest(server.ref)
        assert data == MANIFEST
    assert server.connections == 1


@pytest.mark.parametrize("code", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
async def test_answers_before_the_answer_are_passed_over(server, patient, code):
    server.answers = {"GET": [(b"HTTP/1.1 " + code + b"\r\n\r\n") * 3, GOOD]}
    for _ in range(2):
        _, data = await patient.manifest(server.ref)
        assert data == MANIFEST


async def test_answers_before_the_answer_without_end_are_an_error(server, patient):
    server.answers = {"GET": [b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000}
    with pytest.raises(IdleTimeoutError, match=r"no answer within 2\.2 s, though bytes came"):
        async with asyncio.timeout(10):
            await patient.manifest(server.ref)


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: x\r\n\r\n",
        OK + b"Content-Length: 0x10\r\n\r\n",
        OK + b"Content-Length: 5, 6\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\n",
        OK + b"Content-Length: 10000\r\n\r\n{}",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Transfer-Encoding: nonsense\r\n\r\n{}",
        OK + b"X" * 100_000 + b": 1\r\n\r\n",
        OK + b"X: 1\r\n" * 5000 + b"\r\n",
        OK + b"X\0: 1\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 99999 ?\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"",
    ],
)
async def test_what_is_no_http_is_the_typed_error(server, patient, head):
    server.answers = {"GET": [head], "HEAD": [head]}
    for ask in (patient.manifest, patient.resolve):
        with pytest.raises(RegistryError) as caught:
            await ask(server.ref)
        str(caught.value).encode()


async def test_a_size_that_no_manifest_has_is_not_believed(server, patient):
    server.answers = {
        "HEAD": [OK + TYPE + DIGEST + b"Content-Length: 9223372036854775807\r\n\r\n"],
        "GET": [GOOD],
    }
    assert await patient.resolve(server.ref) == Descriptor(
        "application/vnd.oci.image.manifest.v1+json", compute_digest(MANIFEST), len(MANIFEST)
    )
    assert server.requests == ["HEAD", "GET"]


async def test_a_host_that_dns_cannot_have_is_the_typed_error(patient):
    with pytest.raises(TransportError, match=r"not a usable URL|Cannot connect"):
        await patient.resolve(Reference.parse(f"{'a' * 64}.invalid/team/app:1"))


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(registry_token="hunter2\r\nX: 1"),
        Credentials(registry_token="hunter2\0"),
        Credentials(registry_token="hünter2"),
        Credentials("me", "hunter2", server_address="http://[hunter2"),
    ],
)
async def test_credentials_that_cannot_be_are_refused_and_not_shown(server, patient, credentials):
    server.answers = {"GET": [GOOD]}
    with pytest.raises(UnauthorizedError, match="credentials: ") as caught:
        await patient.manifest(server.ref, credentials=credentials)
    assert "hunter2" not in str(caught.value)
    assert server.requests == []
