"""Certificates: checked unless the operator says otherwise, per host."""

import shutil
import socket
import ssl
import subprocess

import pytest
from aiohttp import web

from registratur import (
    Client,
    ConnectError,
    Credentials,
    HostOptions,
    HostsConfig,
    RedirectError,
    Reference,
    UnauthorizedError,
)

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs openssl to make a certificate")


@pytest.fixture
def certificate(tmp_path):
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([OPENSSL, *command.split(), *names, *files], check=True, capture_output=True)
    return tmp_path / "cert.pem"


@pytest.fixture
async def server(certificate, kit):
    """A TLS registry with a:1; a:plain redirects to http, a:guarded has a token service on http."""
    image = kit.image()

    async def handle(request):
        if request.path.endswith("plain"):
            return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
        if request.path.endswith("guarded"):
            challenge = 'Bearer realm="http://127.0.0.1:1/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return web.Response(body=image.manifest)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener, ssl_context=context).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    await runner.cleanup()


def reaching(server, **options):
    """Make a client that asks `server` by https, with these options for it."""
    config = {server: HostOptions(**options)} if options else {}
    return Client(HostsConfig(mirrors={"*": [f"https://{server}"]}, options=config, mirrors_only=True))


async def test_an_unknown_certificate_is_refused(server):
    async with reaching(server) as client:
        with pytest.raises(ConnectError, match="certificate verify failed"):
            await client.manifest(Reference.parse("a:1"))


async def test_ca_file(server, certificate):
    async with reaching(server, ca_file=certificate) as client:
        await client.manifest(Reference.parse("a:1"))


async def test_skip_verify(server):
    async with reaching(server, skip_verify=True) as client:
        await client.manifest(Reference.parse("a:1"))


async def test_options_of_another_host_do_not_count(server, certificate):
    config = HostsConfig(
        mirrors={"*": [f"https://{server}"]},
        options={"127.0.0.1:1": HostOptions(skip_verify=True)},
        mirrors_only=True,
    )
    async with Client(config) as client:
        with pytest.raises(ConnectError):
            await client.manifest(Reference.parse("a:1"))


async def test_a_loopback_registry_with_a_ca_speaks_tls(server, certificate):
    async with Client(HostsConfig(options={server: HostOptions(ca_file=certificate)})) as client:
        await client.manifest(Reference.parse(f"{server}/a:1"))


async def test_no_way_down_to_plain_http(server):
    async with reaching(server, skip_verify=True) as client:
        with pytest.raises(RedirectError, match="from https to plain http"):
            await client.manifest(Reference.parse("a:plain"))


async def test_no_password_for_a_token_service_without_tls(server):
    async with reaching(server, skip_verify=True, credentials=Credentials("user", "hunter2")) as client:
        with pytest.raises(UnauthorizedError, match="without TLS"):
            await client.manifest(Reference.parse("a:guarded"))


async def test_a_missing_ca_file_is_named(server, tmp_path):
    async with reaching(server, ca_file=tmp_path / "none.pem") as client:
        with pytest.raises(ConnectError, match=r"cannot load the CA file .*none\.pem"):
            await client.manifest(Reference.parse("a:1"))


async def test_other_rules_count_from_the_next_request_on_and_files_are_read_anew(server, certificate):
    async with reaching(server) as client:
        with pytest.raises(ConnectError, match="certificate verify failed"):
            await client.manifest(Reference.parse("a:1"))
        mirrors = {"*": [f"https://{server}"]}
        trusting = HostsConfig(
            mirrors=mirrors, options={server: HostOptions(ca_file=certificate)}, mirrors_only=True
        )
        client.configure(trusting)
        await client.manifest(Reference.parse("a:1"))
        certificate.rename(certificate.with_name("gone.pem"))
        await client.manifest(Reference.parse("a:1"))  # what was read once counts
        client.configure(trusting)
        with pytest.raises(ConnectError, match="cannot load the CA file"):
            await client.manifest(Reference.parse("a:1"))
