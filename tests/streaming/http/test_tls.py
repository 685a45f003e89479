"""A certificate that is replaced while the server runs."""

import asyncio
import shutil
import ssl
import subprocess

import pytest
from structlog.testing import capture_logs

from cri.streaming import server as server_module
from cri.streaming.tls import CertificateError, CertificateFiles

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs openssl to make a certificate")
V4 = "X-Stream-Protocol-Version: v4.channel.k8s.io"


@pytest.fixture
def certify(tmp_path):
    """Makes a certificate and its key, under the names that the server was given."""

    def make(name="localhost", directory=tmp_path):
        directory.mkdir(exist_ok=True)
        command = (
            f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        )
        names = ["-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"]
        files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
        subprocess.run([OPENSSL, *command.split(), *names, *files], check=True, capture_output=True)
        return directory

    return make


@pytest.fixture
def files(tmp_path):
    return CertificateFiles(tmp_path / "cert.pem", tmp_path / "key.pem")


def trusting_anyone():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def served_name(server, connect):
    client = await connect(server, ssl=trusting_anyone())
    certificate = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    client.writer.close()
    return "first" if b"first" in certificate else "second" if b"second" in certificate else "none"


async def test_a_session_over_tls(certify, files, serve, connect, echo, request_of):
    where = certify()
    server = await serve(tls=files)
    url = server.offer(echo())
    assert url.startswith("https://127.0.0.1:")
    client = await connect(server, ssl=ssl.create_default_context(cafile=where / "cert.pem"))
    assert (await client.upgrade(request_of(url, V4))).startswith(b"HTTP/1.1 101 ")
    data = bytes(range(256)) * 8192
    client.writer.write(data)
    assert await client.reader.readexactly(len(data)) == data
    assert client.writer.get_extra_info("ssl_object").version() >= "TLSv1.2"


async def test_a_new_pair_counts_for_the_next_connection(certify, files, serve, connect, echo, request_of):
    certify("first")
    server = await serve(tls=files)
    old = await connect(server, ssl=trusting_anyone())
    await old.upgrade(request_of(server.offer(echo()), V4))
    assert await served_name(server, connect) == "first"
    certify("second")
    assert await served_name(server, connect) == "second"
    old.writer.write(b"still")
    assert await old.reader.readexactly(5) == b"still"


@pytest.mark.parametrize("damage", ["garbage", "gone", "mismatch"])
async def test_a_broken_pair_is_logged_once_and_the_old_one_stays(
    certify, files, tmp_path, serve, connect, damage
):
    certify("first")
    server = await serve(tls=files)
    if damage == "garbage":
        (tmp_path / "cert.pem").write_text("no certificate")
    elif damage == "gone":
        (tmp_path / "key.pem").unlink()
    else:
        shutil.copy(certify("other", tmp_path / "other") / "key.pem", tmp_path / "key.pem")
    with capture_logs() as logs:
        for _ in range(3):
            assert await served_name(server, connect) == "first"
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
        "the streaming server keeps its old certificate"
    ]
    certify("second")
    assert await served_name(server, connect) == "second"


async def test_errors_at_the_start_name_the_file(certify, files, tmp_path):
    with pytest.raises(CertificateError, match=r"cannot read .*cert\.pem: No such file"):
        await files.context()
    certify()
    (tmp_path / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n")
    with pytest.raises(
        CertificateError, match=r"cannot use the certificate .*cert\.pem with the key .*key\.pem"
    ):
        await files.context()


async def test_an_encrypted_key_asks_nobody(certify, files, tmp_path):
    certify()
    command = [OPENSSL, "pkcs8", "-topk8", "-in", "key.pem", "-out", "locked.pem", "-passout", "pass:x"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (tmp_path / "locked.pem").rename(tmp_path / "key.pem")
    with pytest.raises(CertificateError, match=r"key .*key\.pem is encrypted"):
        await files.context()


async def test_old_tls_is_refused(certify, files):
    certify()
    assert (await files.context()).minimum_version >= ssl.TLSVersion.TLSv1_2


async def test_plain_http_and_silence_at_a_tls_port(certify, files, serve, connect, monkeypatch):
    monkeypatch.setattr(server_module, "TLS_TIME", 0.3)
    certify()
    server = await serve(tls=files)
    with capture_logs() as logs:
        assert b"HTTP" not in await (await connect(server)).ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        silent = await connect(server)
        assert await silent.ask(b"") == b""
        while server.connections:
            await asyncio.sleep(0.01)
    assert {entry["event"] for entry in logs} == {"a streaming connection failed before its request"}
