"""What goes up: in which order, how often, and to whom; against a registry that can be made to misbehave."""

import asyncio
import json
import re
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from registratur import (
    Client,
    Credentials,
    Descriptor,
    DigestMismatchError,
    HostsConfig,
    IdleTimeoutError,
    InvalidEndpointError,
    InvalidReferenceError,
    LayoutSource,
    MalformedContentError,
    NotFoundError,
    RedirectError,
    Reference,
    RegistryError,
    UnauthorizedError,
    UnavailableError,
    compute_digest,
    media,
    push,
)

BLOB = bytes(range(256)) * 8192  # 2 MiB


class Shelf:
    """Blobs in memory; counts how often each was read, and how many are being read."""

    def __init__(self, *blobs: bytes) -> None:
        self.blobs = {compute_digest(blob): blob for blob in blobs}
        self.reads: list[tuple[str, int]] = []
        self.open = 0
        self.most = 0

    def has(self, digest):
        return digest in self.blobs

    async def stream(self, digest, start):
        self.reads.append((digest, start))
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            data = self.blobs[digest]
            while start < len(data):
                await asyncio.sleep(0)
                yield data[start : start + 65536]
                start += 65536
        finally:
            self.open -= 1


@dataclass
class Uploads:
    """The receiving half of a registry, as a hook of the fake one."""

    registry: object
    elsewhere: object = None
    open: dict[str, bytearray] = field(default_factory=dict)
    mountable: dict[tuple[str, str], bytes] = field(default_factory=dict)
    first: object = None
    ended: int = 0

    def __post_init__(self) -> None:
        self.registry.hook = self.hook
        if self.elsewhere is not None:
            self.elsewhere.hook = self.hook

    def location(self, name: str) -> str:
        path = f"/v2/team/app/blobs/uploads/{name}?state=%7Ea%2bb%3D"
        return path if self.elsewhere is None else f"{self.elsewhere.url}{path}"

    async def hook(self, request: web.Request) -> web.StreamResponse | None:
        if self.first is not None and (answer := await self.first(request)) is not None:
            return answer
        session = re.fullmatch(r"/v2/team/app/blobs/uploads/(\w*)", request.path)
        if session is None:
            if request.method == "PUT":
                data = await request.read()
                self.registry.manifests[request.match_info["name"]] = data
                self.registry.manifests[compute_digest(data)] = data
                return web.Response(status=201, headers={"Docker-Content-Digest": compute_digest(data)})
            return None
        name = session[1]
        if request.method == "POST":
            mount = self.mountable.get((request.query.get("from"), request.query.get("mount")))
            if mount is not None:
                self.registry.blobs[request.query["mount"]] = mount
                return web.Response(status=201, headers={"Location": "/v2/x"})
            name = f"u{len(self.open)}"
            self.open[name] = bytearray()
            return web.Response(status=202, headers={"Location": self.location(name)})
        if name not in self.open:
            return web.json_response({"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}, status=404)
        assert request.raw_path.partition("?")[2].startswith("state=%7Ea%2bb%3D"), "it must keep its spelling"
        data = self.open[name]
        if request.method == "DELETE":
            del self.open[name]
            self.ended += 1
            return web.Response(status=204)
        if request.method in ("PATCH", "PUT"):
            if (part := request.headers.get("Content-Range")) is not None:
                first, last = map(int, part.split("-"))
                if first != len(data):
                    return web.Response(status=416, headers=self.progress(name))
                assert int(request.headers["Content-Length"]) == last - first + 1
            async for piece in request.content.iter_any():
                data += piece
        if request.method == "PUT":
            digest = request.query["digest"]
            if compute_digest(bytes(data)) != digest:
                return web.json_response({"errors": [{"code": "DIGEST_INVALID"}]}, status=400)
            self.registry.blobs[digest] = bytes(self.open.pop(name))
            return web.Response(status=201, headers={"Location": f"/v2/team/app/blobs/{digest}"})
        return web.Response(status=204 if request.method == "GET" else 202, headers=self.progress(name))

    def progress(self, name: str) -> dict[str, str]:
        return {"Location": self.location(name), "Range": f"0-{max(0, len(self.open[name]) - 1)}"}


@pytest.fixture
def uploads(registry):
    return Uploads(registry)


async def drained(request):
    async for _ in request.content.iter_any():
        pass


def described(data, media_type="application/octet-stream"):
    return Descriptor(media_type, compute_digest(data), len(data))


def methods(registry):
    return [request.method for request in registry.requests]


@pytest.fixture
def image(kit):
    return kit.image(layers=[kit.gzip(b"lower"), kit.gzip(b"upper")])


@pytest.fixture
def shelf(image):
    return Shelf(image.manifest, image.config, *image.layers)


def root_of(image):
    return described(image.manifest, image.media_type)


class TestImages:
    async def test_blobs_come_first_and_the_name_last(self, registry, uploads, client, image, shelf):
        pushed = await push(client, registry.ref("team/app:1"), root_of(image), shelf)
        assert pushed.digest == image.digest
        assert set(pushed.blobs.values()) == {"uploaded"}
        for blob in (image.config, *image.layers):
            assert registry.blobs[compute_digest(blob)] == blob
        assert registry.manifests["1"] == image.manifest
        *before, last = registry.requests
        assert (last.method, last.path) == ("PUT", "/v2/team/app/manifests/1")
        assert last.headers["Content-Type"] == media.OCI_MANIFEST
        assert not any("/manifests/" in request.path for request in before)
        assert shelf.open == 0

    async def test_what_is_there_is_not_sent_again(self, registry, uploads, client, image, shelf):
        await push(client, registry.ref(), root_of(image), shelf)
        registry.requests.clear()
        pushed = await push(client, registry.ref("team/app:2"), root_of(image), shelf)
        assert set(pushed.blobs.values()) == {"there"}
        assert methods(registry) == ["HEAD", "HEAD", "HEAD", "PUT"]

    async def test_an_index_follows_its_manifests(self, registry, uploads, client, kit):
        amd, arm = kit.image(), kit.image("linux", "arm64")
        index = kit.index(amd.entry, arm.entry)
        shelf = Shelf(
            index, *(part for one in (amd, arm) for part in (one.manifest, one.config, *one.layers))
        )
        root = described(index, media.OCI_INDEX)
        await push(client, registry.ref("team/app:many"), root, shelf)
        puts = [request.path.rpartition("/")[2] for request in registry.seen("manifests", "PUT")]
        assert puts == [amd.digest, arm.digest, "many"]

    async def test_by_digest(self, registry, uploads, client, image, shelf):
        await push(client, registry.ref(f"team/app@{image.digest}"), root_of(image), shelf)
        assert registry.requests[-1].path == f"/v2/team/app/manifests/{image.digest}"
        with pytest.raises(InvalidReferenceError, match="has the digest"):
            await push(client, registry.ref("team/app@sha256:" + "0" * 64), root_of(image), shelf)

    async def test_a_manifest_of_an_index_may_be_there_only(
        self, registry, uploads, client, kit, image, shelf
    ):
        other = kit.image("linux", "arm64")
        index = kit.index(image.entry, other.entry)
        shelf.blobs[compute_digest(index)] = index
        root = described(index, media.OCI_INDEX)
        with pytest.raises(NotFoundError, match=r"linux/arm64.*neither here nor there"):
            await push(client, registry.ref(), root, shelf)
        assert "POST" not in methods(registry)
        registry.add(other)
        await push(client, registry.ref(), root, shelf)
        assert registry.manifests["1"] == index

    async def test_foreign_layers_stay_where_they_are(self, registry, uploads, client, image):
        document = json.loads(image.manifest)
        document["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        manifest = json.dumps(document).encode()
        shelf = Shelf(manifest, image.config, image.layers[1])
        await push(client, registry.ref(), described(manifest, media.OCI_MANIFEST), shelf)
        assert compute_digest(image.layers[0]) not in registry.blobs

    async def test_blobs_in_parallel_are_bounded(self, registry, uploads, client, kit):
        image = kit.image(layers=[kit.gzip(bytes([n]) * 10) for n in range(12)])
        shelf = Shelf(image.manifest, image.config, *image.layers)

        async def slow(request):
            if request.method == "PUT" and "uploads" in request.path:
                await asyncio.sleep(0.02)

        uploads.first = slow
        await push(client, registry.ref(), root_of(image), shelf, max_parallel=4)
        assert 2 <= shelf.most <= 4

    async def test_a_registry_that_changes_manifests_is_told_of(
        self, registry, uploads, client, image, shelf
    ):
        async def change(request):
            if request.method == "PUT" and "/manifests/" in request.path:
                return web.Response(status=201, headers={"Docker-Content-Digest": "sha256:" + "0" * 64})
            return None

        uploads.first = change
        with pytest.raises(DigestMismatchError, match="has changed it"):
            await push(client, registry.ref(), root_of(image), shelf)

    async def test_indexes_within_themselves_end(self, registry, uploads, client, kit):
        shelf = Shelf()
        entry = kit.entry(media.OCI_MANIFEST, b"x")
        for _ in range(8):
            index = kit.index(entry)
            shelf.blobs[compute_digest(index)] = index
            entry = kit.entry(media.OCI_INDEX, index)
        with pytest.raises(MalformedContentError, match="nested"):
            await push(client, registry.ref(), described(index, media.OCI_INDEX), shelf)

    async def test_from_a_layout(self, registry, uploads, client, image, tmp_path):
        for blob in (image.manifest, image.config, *image.layers):
            file = tmp_path / "blobs" / compute_digest(blob).replace(":", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(blob)
        await push(client, registry.ref(), root_of(image), LayoutSource(tmp_path))
        assert registry.manifests["1"] == image.manifest
        lost = image.layers[0]
        del registry.blobs[compute_digest(lost)]
        (tmp_path / "blobs" / compute_digest(lost).replace(":", "/")).unlink()
        with pytest.raises(NotFoundError, match="is not among the blobs"):
            await push(client, registry.ref(), root_of(image), LayoutSource(tmp_path))


class TestBlobs:
    @pytest.fixture
    def blob(self):
        return described(BLOB)

    async def test_one_request(self, registry, uploads, client, blob):
        assert await client.upload(registry.ref(), blob, Shelf(BLOB)) == "uploaded"
        assert methods(registry) == ["HEAD", "POST", "PUT"]
        assert registry.blobs[blob.digest] == BLOB
        assert registry.requests[-1].headers["Content-Length"] == str(len(BLOB))

    async def test_nothing_at_all(self, registry, uploads, client):
        await client.upload(registry.ref(), described(b""), Shelf(b""))
        assert registry.blobs[compute_digest(b"")] == b""

    @pytest.mark.parametrize("chunk", [1, 300_000, len(BLOB) - 1, len(BLOB)])
    async def test_chunks(self, registry, uploads, client, chunk):
        data = BLOB if chunk > 1 else b"abc"
        await client.upload(registry.ref(), described(data), Shelf(data), chunk=chunk)
        assert registry.blobs[compute_digest(data)] == data
        whole, rest = divmod(len(data), chunk)
        chunks = 0 if chunk >= len(data) else whole + bool(rest)
        assert methods(registry) == ["HEAD", "POST", *["PATCH"] * chunks, "PUT"]

    async def test_the_registry_may_want_larger_chunks(self, registry, uploads, client, blob):
        async def begin(request):
            if request.method != "POST":
                return None
            uploads.open["u"] = bytearray()
            headers = {"Location": uploads.location("u"), "OCI-Chunk-Min-Length": "1048576"}
            return web.Response(status=202, headers=headers)

        uploads.first = begin
        await client.upload(registry.ref(), blob, Shelf(BLOB), chunk=1000)
        assert methods(registry).count("PATCH") == 2

    async def test_a_mount(self, registry, uploads, client, blob):
        uploads.mountable["team/base", blob.digest] = BLOB
        shelf = Shelf()
        assert await client.upload(registry.ref(), blob, shelf, mount_from="team/base") == "mounted"
        assert shelf.reads == []

    async def test_a_mount_that_is_not_done_is_an_upload(self, registry, uploads, client, blob):
        assert await client.upload(registry.ref(), blob, Shelf(BLOB), mount_from="x/y") == "uploaded"
        assert methods(registry) == ["HEAD", "POST", "PUT"], "with the session that came instead"

    async def test_a_mount_that_is_denied_is_an_upload(self, registry, uploads, client, blob):
        async def deny(request):
            return web.Response(status=403) if "mount" in request.query else None

        uploads.first = deny
        assert await client.upload(registry.ref(), blob, Shelf(BLOB), mount_from="x/y") == "uploaded"

    @pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:-1] + b"?", lambda b: b""])
    @pytest.mark.parametrize("chunk", [0, 500_000])
    async def test_other_bytes_than_described_never_become_a_blob(
        self, registry, uploads, client, blob, change, chunk
    ):
        shelf = Shelf()
        shelf.blobs[blob.digest] = change(BLOB)
        with pytest.raises(DigestMismatchError, match=blob.digest):
            await client.upload(registry.ref(), blob, shelf, chunk=chunk)
        assert registry.blobs == {}
        assert uploads.ended == 1
        assert shelf.open == 0

    async def test_what_the_source_raises_is_raised(self, registry, uploads, client, blob):
        class Broken(Shelf):
            async def stream(self, digest, start):
                yield BLOB[:1000]
                raise OSError(5, "Input/output error")

        with pytest.raises(OSError, match="Input/output"):
            await client.upload(registry.ref(), blob, Broken())

    async def test_a_cancelled_upload_closes_its_source(self, registry, uploads, client, blob):
        reached = asyncio.Event()

        async def hang(request):
            if request.method == "PUT":
                reached.set()
                await asyncio.sleep(30)

        uploads.first, shelf = hang, Shelf(BLOB)
        task = asyncio.create_task(client.upload(registry.ref(), blob, shelf))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert shelf.open == 0


def cutting(uploads, method, after, times=1):
    """Take `after` bytes of a request of `method` (or several), keep them, and cut the connection; the first `times` times."""
    left = times

    async def first(request):
        nonlocal left
        if request.method not in method or "/uploads/" not in request.path or not left:
            return None
        left -= 1
        data = uploads.open[request.path.rpartition("/")[2]]
        kept = 0
        async for piece in request.content.iter_any():
            data += piece[: after - kept]
            kept += len(piece)
            if kept >= after:
                break
        request.transport.abort()
        return web.Response(status=500)

    return first


class TestCuts:
    @pytest.fixture
    def blob(self):
        return described(BLOB)

    @pytest.mark.parametrize(("method", "chunk"), [("PUT", 0), ("PATCH", 1_000_000)])
    async def test_goes_on_where_the_registry_says(self, registry, uploads, client, blob, method, chunk):
        uploads.first, shelf = cutting(uploads, method, 700_000), Shelf(BLOB)
        assert await client.upload(registry.ref(), blob, shelf, chunk=chunk) == "uploaded"
        assert registry.blobs[blob.digest] == BLOB
        assert (blob.digest, 700_000) in shelf.reads
        assert methods(registry).count("POST") == 1

    async def test_every_request_is_cut_after_a_part(self, registry, uploads, client, blob, kit):
        """More often than there are tries: each has brought something."""
        uploads.first = cutting(uploads, "PATCH", 270_000, times=6)
        await client.upload(registry.ref(), blob, Shelf(BLOB), chunk=len(BLOB) - 1)
        assert methods(registry).count("PATCH") > kit.quick.tries

    async def test_tries_are_bounded(self, registry, uploads, client, blob, kit):
        uploads.first = cutting(uploads, ("PUT", "PATCH"), 1000, times=1000)
        with pytest.raises(RegistryError):
            await client.upload(registry.ref(), blob, Shelf(BLOB))
        assert methods(registry).count("PUT") + methods(registry).count("PATCH") == kit.quick.tries

    async def test_a_registry_that_has_forgotten_it_gets_it_anew(self, registry, uploads, client, blob):
        cut = cutting(uploads, "PUT", 700_000)

        async def forget(request):
            if request.method == "GET":
                uploads.open.clear()
            return await cut(request)

        uploads.first = forget
        assert await client.upload(registry.ref(), blob, Shelf(BLOB)) == "uploaded"
        assert methods(registry).count("POST") == 2

    async def test_the_answer_to_the_last_request_is_cut(self, registry, uploads, client, blob):
        async def swallow(request):
            if request.method == "PUT":
                uploads.first = None
                await uploads.hook(request)
                request.transport.abort()
                return web.Response(status=500)
            return None

        uploads.first = swallow
        assert await client.upload(registry.ref(), blob, Shelf(BLOB)) == "uploaded"
        assert methods(registry).count("PUT") == 1

    async def test_a_chunk_at_another_place_than_the_registry_thinks(self, registry, uploads, client, blob):
        async def lose(request):
            if request.method == "PATCH" and len(uploads.open.get("u0", b"")) == 1_000_000:
                del uploads.open["u0"][500_000:]

        uploads.first = lose
        assert await client.upload(registry.ref(), blob, Shelf(BLOB), chunk=500_000) == "uploaded"
        assert registry.blobs[blob.digest] == BLOB

    @pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
    async def test_an_ailing_registry_is_asked_again(self, registry, uploads, client, blob, method):
        ill = 1

        async def fail(request):
            nonlocal ill
            if request.method == method and ill:
                ill = 0
                await drained(request)
                return web.Response(status=503, headers={"Retry-After": "0"})
            return None

        uploads.first = fail
        assert await client.upload(registry.ref(), blob, Shelf(BLOB), chunk=1_500_000) == "uploaded"

    async def test_a_dead_one_not_for_ever(self, registry, uploads, client, blob, kit):
        async def fail(request):
            return web.Response(status=503) if request.method == "POST" else None

        uploads.first = fail
        with pytest.raises(UnavailableError, match=rf"to http://{registry.host}/?: HTTP 503"):
            await client.upload(registry.ref(), blob, Shelf(BLOB))
        assert methods(registry).count("POST") == kit.quick.tries

    async def test_a_registry_that_takes_nothing_is_a_timeout(self, registry, uploads, kit):
        async def sleep(request):
            if request.method == "PUT":
                await asyncio.sleep(60)

        uploads.first = sleep
        data = BLOB * 16  # more than sockets hold
        async with (
            asyncio.timeout(20),
            Client(HostsConfig(), idle_timeout=0.3, connect_timeout=0.5, retry=kit.quick) as client,
        ):
            shelf = Shelf(data)
            with pytest.raises(IdleTimeoutError):
                await client.upload(registry.ref(), described(data), shelf)
        assert shelf.open == 0

    async def test_a_slow_reader_is_no_timeout(self, registry, uploads, kit):
        async def dawdle(request):
            """Take longer for most of it than an answer may."""
            if request.method == "PUT":
                data = uploads.open[request.path.rpartition("/")[2]]
                while piece := await request.content.read(1 << 20):
                    data += piece
                    if len(data) < 20 << 20:
                        await asyncio.sleep(0.2)

        uploads.first = dawdle
        data = BLOB * 16
        async with Client(HostsConfig(), idle_timeout=0.6, connect_timeout=0.5, retry=kit.quick) as client:
            await client.upload(registry.ref(), described(data), Shelf(data))
        assert methods(registry).count("PUT") == 1


class TestSecrets:
    USER = Credentials("user", "hunter2")

    async def test_another_host_gets_the_bytes_without_the_credentials(self, registries, client):
        front, back = await registries(), await registries()
        uploads = Uploads(front, back)

        async def guard(request):
            if request.host == front.host and "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            return None

        uploads.first = guard
        blob = described(BLOB)
        assert await client.upload(front.ref(), blob, Shelf(BLOB), self.USER, chunk=900_000) == "uploaded"
        assert back.requests
        assert all("Authorization" not in request.headers for request in back.requests)

    async def test_a_challenge_of_the_other_host_is_not_answered(self, registries, client):
        front, back = await registries(), await registries()
        uploads = Uploads(front, back)

        async def guard(request):
            if request.host == back.host:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            return None

        uploads.first = guard
        with pytest.raises(UnauthorizedError, match="do not allow to push"):
            await client.upload(front.ref(), described(BLOB), Shelf(BLOB), self.USER)
        assert all("Authorization" not in request.headers for request in back.requests)

    async def test_a_redirect_is_followed_with_the_body(self, registries, client):
        front, back = await registries(), await registries()
        uploads = Uploads(front)

        async def away(request):
            if request.method == "PUT" and request.host == front.host and "uploads" in request.path:
                return web.Response(status=307, headers={"Location": f"{back.url}{request.raw_path}"})
            return None

        uploads.first, back.hook = away, uploads.hook
        await client.upload(front.ref(), described(BLOB), Shelf(BLOB), self.USER)
        assert front.blobs[compute_digest(BLOB)] == BLOB
        assert [request.method for request in back.requests] == ["PUT"]

    @pytest.mark.parametrize("status", [301, 302, 303])
    async def test_a_redirect_that_loses_the_body_is_refused(self, registry, uploads, client, status):
        async def away(request):
            if request.method == "PUT":
                await drained(request)
                return web.Response(status=status, headers={"Location": "/elsewhere"})
            return None

        uploads.first = away
        with pytest.raises(RedirectError, match=f"a PUT by HTTP {status}"):
            await client.upload(registry.ref(), described(BLOB), Shelf(BLOB))

    async def test_the_scope_covers_push_and_the_repository_beside(self, registry, uploads, client):
        scopes = []

        async def guard(request):
            if request.path == "/token":
                scopes.append(request.query.getall("scope"))
                return web.json_response({"token": f"t{len(scopes)}"})
            if request.headers.get("Authorization") is None:
                challenge = f'Bearer realm="{registry.url}/token",scope="repository:team/app:pull"'
                return web.Response(status=401, headers={"WWW-Authenticate": challenge})
            return None

        uploads.first = guard
        data = described(BLOB)
        await client.upload(registry.ref(), data, Shelf(BLOB), mount_from="team/base")
        assert scopes == [
            ["repository:team/app:pull,push"],
            ["repository:team/app:pull,push", "repository:team/base:pull"],
        ]

    async def test_refusals_name_everything(self, registry, uploads, client):
        async def deny(request):
            return web.json_response({"errors": [{"code": "DENIED", "message": "read only"}]}, status=405)

        uploads.first = deny
        with pytest.raises(RegistryError) as caught:
            await client.put_manifest(registry.ref(), described(b"{}"), b"{}", "1")
        for words in (registry.host, "team/app", "HTTP 405", "read-only, or a mirror", "DENIED: read only"):
            assert words in str(caught.value)


async def test_mirrors_get_no_pushes(registry):
    hosts = HostsConfig(mirrors={"docker.io": [registry.url]}, mirrors_only=True)
    async with Client(hosts) as client:
        with pytest.raises(InvalidEndpointError, match="no host to push to it"):
            await client.upload(Reference.parse("x/y"), described(b"x"), Shelf(b"x"))
    assert registry.requests == []
