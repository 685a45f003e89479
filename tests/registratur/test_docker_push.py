"""Pushes to, and pulls from, Docker's registry as Debian packages it: open, with htpasswd, with tokens, by TLS.

What the conformance suite of distribution-spec v1.1 asks of servers is the list that is gone through here, from the client's
side: pull (manifests by tag and digest, blobs, what is not there), push (one request, chunks in order, chunks out of order,
mounts, manifests by tag and digest, an index).
"""

import asyncio
import base64
import io
import json
import shutil
import socket
import ssl
import subprocess
import tarfile
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from registratur import (
    Client,
    ContentStore,
    Credentials,
    Descriptor,
    HostOptions,
    HostsConfig,
    LayoutSource,
    Platform,
    Reference,
    TransportError,
    UnauthorizedError,
    compute_digest,
    media,
    pull,
    push,
)

REGISTRY, OPENSSL, SKOPEO = (shutil.which(name) for name in ("docker-registry", "openssl", "skopeo"))
pytestmark = pytest.mark.skipif(
    REGISTRY is None, reason="needs docker-registry (Debian package of this name)"
)
USER = Credentials("user", "hunter2")
HASHED = "$2b$04$45Hs62nYK7lHhS.dvwdpYOf5ytSStY3IfsWXbvGM4LYa7cT0Z4kXC"  # bcrypt of the password
AMD64 = [Platform("linux", "amd64")]


@asynccontextmanager
async def serving(folder, *, auth=None, tls=None):
    """The host:port of a running, empty registry."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    http = {"addr": address} | ({"tls": tls} if tls else {})
    storage = {"filesystem": {"rootdirectory": str(folder / "registry")}, "delete": {"enabled": True}}
    config = {"version": 0.1, "log": {"level": "error"}, "storage": storage, "http": http}
    config |= {"auth": auth} if auth else {}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([REGISTRY, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        async with asyncio.timeout(15):
            while True:
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    _, writer = await asyncio.open_connection(*address.split(":"))
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
async def address(tmp_path):
    async with serving(tmp_path) as found:
        yield found


@pytest.fixture
def image(kit):
    return kit.image(layers=[kit.gzip(bytes(300_000)), kit.gzip(b"upper")])


def laid_out(folder, *images, index=None):
    """A source with those images, and the descriptor of the index, or else of the first."""
    store = ContentStore(folder)
    for image in images:
        for blob in (image.manifest, image.config, *image.layers):
            store.write(compute_digest(blob), blob)
    top, kind = (index, media.OCI_INDEX) if index else (images[0].manifest, images[0].media_type)
    store.write(compute_digest(top), top)
    return LayoutSource(folder), Descriptor(kind, compute_digest(top), len(top))


def tarred(content):
    """A layer of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


async def there_and_back(client, ref, image, kit, folder, credentials=None, **options):
    source, root = laid_out(folder / "source", image)
    pushed = await push(client, ref, root, source, credentials, **options)
    sink = kit.sink()
    pulled = await pull(client, ref, AMD64, sink, ContentStore(folder / "pulled"), credentials)
    assert pulled.repo_digest == pushed.digest == image.digest
    assert sink.received == dict(enumerate(image.layers))
    return pushed


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("chunk", [0, 100, 3_000_000], ids=["one request", "chunks", "large chunks"])
async def test_there_and_back(address, tmp_path, client, kit, docker, chunk):
    image = kit.image(docker=docker, layers=[kit.gzip(str(n).encode() * 5000) for n in range(3)])
    ref = Reference.parse(f"{address}/team/app:v1")
    pushed = await there_and_back(client, ref, image, kit, tmp_path, chunk=chunk)
    assert set(pushed.blobs.values()) == {"uploaded"}


async def test_an_index_by_tag_and_by_digest(address, tmp_path, client, kit, image):
    other = kit.image("freebsd")
    index = kit.index(image.entry, other.entry)
    source, root = laid_out(tmp_path, image, other, index=index)
    for rest in ("team/many:1", f"team/digest@{root.digest}"):
        ref = Reference.parse(f"{address}/{rest}")
        await push(client, ref, root, source)
        assert (await client.manifest(ref))[1] == index
        assert (await client.manifest(ref, other.digest))[1] == other.manifest


async def test_blobs_of_another_repository_are_mounted(address, tmp_path, client, kit, image):
    source, root = laid_out(tmp_path / "s", image)
    base, ref = Reference.parse(f"{address}/team/base:1"), Reference.parse(f"{address}/team/app:1")
    await push(client, base, root, source)
    pushed = await push(client, ref, root, source, mount_from=base)
    assert set(pushed.blobs.values()) == {"mounted"}
    again = await push(client, ref, root, source, mount_from=base)
    assert set(again.blobs.values()) == {"there"}


class Cutter:
    """Passes bytes on, and cuts each of the first connections that has sent `after` bytes."""

    def __init__(self, target, after, times):
        self.target, self.after, self.times = target.split(":"), after, times

    async def serve(self, reader, writer):
        far, back = await asyncio.open_connection(*self.target)
        passed = 0

        async def answers():
            while data := await far.read(65536):
                writer.write(data)
                await writer.drain()

        answering = asyncio.create_task(answers())
        try:
            while data := await reader.read(65536):
                passed += len(data)
                back.write(data)
                await back.drain()
                if self.times and passed >= self.after:
                    self.times -= 1
                    await asyncio.sleep(0.1)
                    break
        finally:
            answering.cancel()
            back.close()
            writer.transport.abort()


@pytest.mark.parametrize("chunk", [0, 1_000_000], ids=["one request", "chunks"])
async def test_a_cut_upload_arrives(address, tmp_path, client, kit, chunk):
    """Docker's registry forgets an upload that was cut within a request (its state has another offset): it begins anew."""
    blob = bytes(range(256)) * 12_000
    store = ContentStore(tmp_path / "source")
    store.write(compute_digest(blob), blob)
    cutter = Cutter(address, 1_500_000, 2)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    async with server:
        ref = Reference.parse(f"127.0.0.1:{server.sockets[0].getsockname()[1]}/team/app:1")
        descriptor = Descriptor("application/octet-stream", compute_digest(blob), len(blob))
        how = await client.upload(ref, descriptor, LayoutSource(tmp_path / "source"), chunk=chunk)
    assert (how, cutter.times) == ("uploaded", 0)
    direct = Reference.parse(f"{address}/team/app:1")
    assert b"".join([piece async for piece in client.blob(direct, descriptor)]) == blob


async def test_htpasswd(tmp_path, client, kit, image):
    (tmp_path / "htpasswd").write_text(f"user:{HASHED}\n")
    auth = {"htpasswd": {"realm": "here", "path": str(tmp_path / "htpasswd")}}
    async with serving(tmp_path, auth=auth) as address:
        ref = Reference.parse(f"{address}/team/app:1")
        await there_and_back(client, ref, image, kit, tmp_path, USER)
        source, root = laid_out(tmp_path / "source", image)
        for wrong in (None, Credentials("user", "wrong")):
            with pytest.raises(UnauthorizedError, match="team/app"):
                await client.manifest(ref, None, wrong)
            with pytest.raises(UnauthorizedError):
                await push(client, ref, root, source, wrong)


@pytest.fixture
def authority(tmp_path):
    """A certificate authority, with a certificate of 127.0.0.1 and one of a client."""
    if OPENSSL is None:
        pytest.skip("needs openssl to make certificates")

    def run(*words):
        subprocess.run([OPENSSL, *words], check=True, capture_output=True, cwd=tmp_path)

    key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    run("req", "-x509", *key, "-subj", "/CN=ours", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        run("req", *key[:-2], "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (tmp_path / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext"]
        run("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
    return tmp_path


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(folder, claims):
    """A JSON web token (RFC 7519) of the authority."""
    der = ssl.PEM_cert_to_DER_cert((folder / "ca.pem").read_text())
    head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
    text = ".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
    command = [OPENSSL, "dgst", "-sha256", "-sign", folder / "ca.key"]
    made = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    return f"{text}.{encoded(made.stdout)}"


@pytest.fixture
async def tokens(authority, tmp_path):
    """A token server that lets the user do everything, and nobody else anything."""
    asked = []

    async def give(request):
        scopes = [scope.split(":") for scope in request.query.getall("scope", [])]
        asked.append(sorted(map(":".join, scopes)))
        given = request.headers.get("Authorization") == USER.basic_header()
        if "Authorization" in request.headers and not given:
            return web.Response(status=401)
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")} for kind, name, actions in scopes
        ]
        now = int(time.time())
        claims = {"iss": "tests", "aud": request.query["service"], "sub": "user", "jti": "1"}
        claims |= {"iat": now - 5, "nbf": now - 5, "exp": now + 60, "access": access if given else []}
        return web.json_response({"token": signed(authority, claims), "expires_in": 60})

    app = web.Application()
    app.router.add_get("/token", give)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    realm = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
    bundle = str(authority / "ca.pem")
    auth = {"token": {"realm": realm, "service": "here", "issuer": "tests", "rootcertbundle": bundle}}
    async with serving(tmp_path, auth=auth) as address:
        yield address, asked
    await runner.cleanup()


async def test_tokens(tokens, tmp_path, client, kit, image):
    address, asked = tokens
    base, ref = Reference.parse(f"{address}/team/base:1"), Reference.parse(f"{address}/team/app:1")
    await there_and_back(client, base, image, kit, tmp_path, USER)
    source, root = laid_out(tmp_path / "source", image)
    pushed = await push(client, ref, root, source, USER, mount_from=base)
    assert set(pushed.blobs.values()) == {"mounted"}
    assert ["repository:team/app:pull,push", "repository:team/base:pull"] in asked
    for wrong in (None, Credentials("user", "wrong")):
        with pytest.raises(UnauthorizedError):
            await push(client, ref, root, source, wrong)


async def test_tls_with_an_own_authority_and_client_certificates(authority, tmp_path, kit, image):
    tls = {"certificate": "server.pem", "key": "server.key", "clientcas": ["ca.pem"]}
    paths = {
        key: [str(authority / one) for one in name] if isinstance(name, list) else str(authority / name)
        for key, name in tls.items()
    }
    async with serving(tmp_path, tls=paths) as address:
        ref = Reference.parse(f"{address}/team/app:1")
        pair = (authority / "client.pem", authority / "client.key")
        known = HostOptions(ca_file=authority / "ca.pem", client_certificates=(pair,))
        async with Client(HostsConfig(options={address: known})) as client:
            await there_and_back(client, ref, image, kit, tmp_path)
        unknown = HostOptions(ca_file=authority / "ca.pem")
        async with Client(HostsConfig(options={address: unknown}), retry=kit.quick) as client:
            with pytest.raises(TransportError, match=r"(?i)certificate.?required|bad.certificate"):
                await client.manifest(ref)


@pytest.mark.skipif(SKOPEO is None, reason="needs skopeo (Debian package of this name)")
async def test_skopeo_reads_what_was_pushed_and_its_layout_is_pushed(address, tmp_path, client, kit):
    """By one registry there and back: digests stay what they are."""

    async def copy(source, target):
        words = [SKOPEO, "copy", "-q", "--all", "--src-tls-verify=false", "--insecure-policy", source, target]
        process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
        _, complaint = await process.communicate()
        assert process.returncode == 0, complaint.decode()

    layer = tarred(b"hello")
    image = kit.image(layers=[kit.gzip(layer)])
    index = kit.index(image.entry)
    source, root = laid_out(tmp_path / "source", image, index=index)
    await push(client, Reference.parse(f"{address}/team/app:1"), root, source)
    await copy(f"docker://{address}/team/app:1", f"oci:{tmp_path / 'layout'}:one")
    written = json.loads((tmp_path / "layout" / "index.json").read_text())["manifests"][0]
    assert written["digest"] == root.digest
    again = Descriptor(written["mediaType"], written["digest"], written["size"])
    ref = Reference.parse(f"{address}/team/other:1")
    pushed = await push(client, ref, again, LayoutSource(tmp_path / "layout"))
    assert pushed.digest == root.digest
    assert (await client.resolve(ref)).digest == root.digest
