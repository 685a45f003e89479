import asyncio
import json
from contextlib import aclosing

import pytest
from aiohttp import web

from registratur import (
    Client,
    ConnectError,
    Descriptor,
    DigestMismatchError,
    HostsConfig,
    IdleTimeoutError,
    MalformedContentError,
    NotFoundError,
    RedirectError,
    RegistryError,
    TransportError,
    UnavailableError,
    compute_digest,
    media,
)

BLOB = bytes(range(256)) * 4096  # 1 MiB


def described(data):
    return Descriptor("application/octet-stream", compute_digest(data), len(data))


async def read(client, ref, descriptor):
    async with aclosing(client.blob(ref, descriptor)) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.fixture
def blob(registry):
    descriptor = described(BLOB)
    registry.blobs[descriptor.digest] = BLOB
    return descriptor


async def test_resolves_by_head(registry, client, kit):
    image = registry.add(kit.image(), "1")
    assert await client.resolve(registry.ref()) == Descriptor(
        media.OCI_MANIFEST, image.digest, len(image.manifest)
    )
    assert [request.method for request in registry.requests] == ["HEAD"]
    assert media.OCI_INDEX in registry.requests[0].headers["Accept"]


async def test_resolves_by_get_where_head_says_nothing(registry, client, kit):
    registry.talkative = False
    image = registry.add(kit.image(), "1")
    assert await client.resolve(registry.ref()) == Descriptor(
        media.OCI_MANIFEST, image.digest, len(image.manifest)
    )


async def test_resolves_by_get_where_head_is_refused(registry, client, kit):
    async def no_head(request):
        return web.Response(status=405) if request.method == "HEAD" else None

    registry.hook = no_head
    image = registry.add(kit.image(), "1")
    assert (await client.resolve(registry.ref())).digest == image.digest


async def test_a_missing_image_is_told_with_the_registrys_words(registry, client):
    with pytest.raises(NotFoundError, match=r"team/app:1.*HTTP 404"):
        await client.resolve(registry.ref())
    with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN: no manifests 1"):
        await client.manifest(registry.ref())


async def test_manifest_by_tag_and_by_digest(registry, client, kit):
    image = registry.add(kit.image(), "1")
    for ref in (registry.ref(), registry.ref(f"team/app@{image.digest}")):
        descriptor, data = await client.manifest(ref)
        assert (descriptor.digest, data) == (image.digest, image.manifest)


async def test_manifest_of_another_digest_is_refused(registry, client, kit):
    image, other = kit.image(), kit.image("freebsd")
    registry.talkative = False
    registry.manifests[image.digest] = other.manifest
    with pytest.raises(DigestMismatchError, match=image.digest):
        await client.manifest(registry.ref(), image.digest)
    with pytest.raises(DigestMismatchError):
        await client.resolve(registry.ref(f"team/app@{image.digest}"))


async def test_a_lying_digest_header_is_refused(registry, client, kit):
    image = kit.image()

    async def lie(_):
        return web.Response(body=image.manifest, headers={"Docker-Content-Digest": "sha256:" + "0" * 64})

    registry.hook = lie
    with pytest.raises(DigestMismatchError):
        await client.manifest(registry.ref())


async def test_an_endless_manifest_is_refused(registry, client):
    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while not request.transport.is_closing():
            await response.write(b" " * 65536)
        return response

    registry.hook = endless
    with pytest.raises(MalformedContentError, match="longer than 4194304 bytes"):
        await client.manifest(registry.ref())


async def test_blob(registry, client, blob):
    assert await read(client, registry.ref(), blob) == BLOB
    assert registry.requests[-1].headers["Accept-Encoding"] == "identity"


async def test_empty_blob(registry, client):
    empty = described(b"")
    registry.blobs[empty.digest] = b""
    assert await read(client, registry.ref(), empty) == b""


async def test_content_encoding_is_left_alone(registry, client, kit):
    packed = kit.gzip(b"x" * 1000)

    async def encoded(_):
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    registry.hook = encoded
    assert await read(client, registry.ref(), described(packed)) == packed


async def test_wrong_blob(registry, client, blob):
    registry.blobs[blob.digest] = BLOB[:-1] + b"x"
    with pytest.raises(DigestMismatchError, match="hashes to"):
        await read(client, registry.ref(), blob)


@pytest.mark.parametrize("data", [BLOB[:-1], BLOB + b"x"])
async def test_blob_of_another_length_is_refused_before_its_first_byte(registry, client, blob, data):
    registry.blobs[blob.digest] = data
    with pytest.raises(DigestMismatchError, match="bytes long on the server"):
        await anext(client.blob(registry.ref(), blob))


def breaking_off(after, *, times=1, ranges=True):
    """Answer a blob request, but cut the connection after `after` bytes, the first `times` times."""
    broken = 0

    async def hook(request):
        nonlocal broken
        start = (request.http_range.start or 0) if ranges else 0
        headers = {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"} if start else {}
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(BLOB) - start
        await response.prepare(request)
        if broken < times:
            broken += 1
            await response.write(BLOB[start : start + after])
            request.transport.close()
        else:
            await response.write(BLOB[start:])
        return response

    return hook


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
async def test_a_broken_connection_is_continued(registry, client, blob, ranges):
    registry.hook = breaking_off(400_000, ranges=ranges)
    assert await read(client, registry.ref(), blob) == BLOB
    first, second = registry.seen("blobs")
    assert "Range" not in first.headers
    assert second.headers["Range"].startswith("bytes=")
    assert second.http_range.start > 0


async def test_a_server_that_restarts_meanwhile_is_waited_for(registry, client, blob):
    cut = breaking_off(300_000)

    async def hook(request):
        if len(registry.requests) == 2:  # nobody listens there
            return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
        return await cut(request)

    registry.hook = hook
    assert await read(client, registry.ref(), blob) == BLOB
    assert len(registry.requests) == 3


async def test_what_breaks_behind_the_last_byte_does_not_matter(registry, client, blob):
    async def hook(request):
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(BLOB)
        await asyncio.sleep(0.1)
        request.transport.close()  # the last chunk's end is never sent
        return response

    registry.hook = hook
    assert await read(client, registry.ref(), blob) == BLOB
    assert len(registry.requests) == 1


async def test_tries_are_bounded(registry, client, blob, kit):
    registry.hook = breaking_off(10, times=1000)
    with pytest.raises(TransportError):
        await read(client, registry.ref(), blob)
    assert len(registry.requests) <= kit.quick.tries


async def test_a_range_that_begins_too_late_is_refused(registry, client, blob):
    cut = breaking_off(1000)

    async def hook(request):
        if "Range" not in request.headers:
            return await cut(request)
        return web.Response(status=206, headers={"Content-Range": "bytes 5000-9999/1048576"}, body=b"x")

    registry.hook = hook
    with pytest.raises(TransportError, match="the answer begins at 5000"):
        await read(client, registry.ref(), blob)


async def test_silence_in_a_blob_is_a_timeout(registry, client, blob):
    async def stall(request):
        response = web.StreamResponse()
        response.content_length = len(BLOB)
        await response.prepare(request)
        if "Range" not in request.headers:
            await response.write(BLOB[:1000])
        await asyncio.sleep(30)
        return response

    registry.hook = stall
    async with asyncio.timeout(5):
        with pytest.raises(IdleTimeoutError, match=r"not one byte for 0\.4 s"):
            await read(client, registry.ref(), blob)


async def test_one_silence_after_bytes_came_is_continued(registry, client, blob):
    async def stall_once(request):
        if "Range" in request.headers:
            return None
        response = web.StreamResponse()
        response.content_length = len(BLOB)
        await response.prepare(request)
        await response.write(BLOB[:1000])
        await asyncio.sleep(30)
        return response

    registry.hook = stall_once
    assert await read(client, registry.ref(), blob) == BLOB


async def test_silence_before_the_headers_is_a_timeout(registry, client):
    async def stall(_):
        await asyncio.sleep(30)

    registry.hook = stall
    async with asyncio.timeout(5):
        with pytest.raises(IdleTimeoutError):
            await client.resolve(registry.ref())
    assert len(registry.requests) == 1, "a timeout is not retried: it took its time"


async def test_a_slow_server_is_no_timeout(registry, client):
    data = b"12345678"

    async def trickle(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for byte in data:
            await asyncio.sleep(0.15)
            await response.write(bytes([byte]))
        return response

    registry.hook = trickle
    assert await read(client, registry.ref(), described(data)) == data


async def test_a_slow_reader_is_no_timeout(registry, client, blob):
    received = 0
    async with aclosing(client.blob(registry.ref(), blob)) as chunks:
        async for chunk in chunks:
            if not received:
                await asyncio.sleep(1)  # more than the idle timeout
            received += len(chunk)
    assert received == len(BLOB)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_ailing_registry_is_asked_again(registry, client, kit, status):
    image = registry.add(kit.image(), "1")

    async def ill(_):
        if len(registry.requests) == 1:
            return web.Response(status=status, headers={"Retry-After": "0"})
        return None

    registry.hook = ill
    assert (await client.manifest(registry.ref()))[0].digest == image.digest
    assert len(registry.requests) == 2


async def test_a_dead_registry_is_not_asked_for_ever(registry, client, kit):
    async def dead(_):
        return web.Response(status=503)

    registry.hook = dead
    with pytest.raises(UnavailableError, match="HTTP 503"):
        await client.manifest(registry.ref())
    assert len(registry.requests) == kit.quick.tries


async def test_an_error_body_is_bounded_and_printable(registry, client):
    async def refuse(_):
        return web.json_response({"errors": [{"code": "DENIED\n", "message": "m" * 5000}]}, status=400)

    registry.hook = refuse
    with pytest.raises(RegistryError) as caught:
        await client.manifest(registry.ref())
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


async def test_no_registry_there(client, registries, kit):
    registry = await registries()
    ref = registry.ref()
    async with Client(
        HostsConfig(mirrors={"*": ["http://127.0.0.1:1"]}, mirrors_only=True), retry=kit.quick
    ) as lost:
        with pytest.raises(ConnectError, match="Cannot connect to host"):
            await lost.resolve(ref)


async def test_unopened_client_says_so(registry):
    with pytest.raises(RuntimeError, match="async with"):
        await Client().resolve(registry.ref())


class TestRedirects:
    async def test_blobs_may_live_elsewhere(self, registries, client):
        front, back = await registries(), await registries()
        descriptor = described(BLOB)

        async def redirect(request):
            return web.Response(status=307, headers={"Location": f"{back.url}/store/x%2fy?sig=%7Ea%2bb%3D"})

        async def serve(request):
            return web.Response(body=BLOB)

        front.hook, back.hook = redirect, serve
        assert await read(client, front.ref(), descriptor) == BLOB
        assert back.requests[0].raw_path == "/store/x%2fy?sig=%7Ea%2bb%3D", (
            "a signed URL must keep its spelling"
        )

    async def test_loops_end(self, registry, client):
        async def loop(request):
            raise web.HTTPFound(request.path)

        registry.hook = loop
        with pytest.raises(RedirectError, match="redirects more than"):
            await client.manifest(registry.ref())

    @pytest.mark.parametrize("location", ["file:///etc/passwd", "http://[", "mailto:x"])
    async def test_only_http(self, registry, client, location):
        async def away(_):
            return web.Response(status=302, headers={"Location": location})

        registry.hook = away
        with pytest.raises(RedirectError, match="redirects to what is no http"):
            await client.manifest(registry.ref())
        assert len(registry.requests) == 1, "it would only happen again"

    async def test_signatures_stay_out_of_messages(self, registry, client):
        async def away(request):
            if "sig" in request.query:
                request.transport.close()
            raise web.HTTPFound(f"{registry.url}/x?sig=hunter2")

        registry.hook = away
        with pytest.raises(TransportError) as caught:
            await client.manifest(registry.ref())
        assert "hunter2" not in str(caught.value)


class TestMirrors:
    @pytest.fixture
    async def mirror(self, registries):
        return await registries()

    @pytest.fixture
    async def mirrored(self, registry, mirror, kit):
        hosts = HostsConfig(mirrors={registry.host: [f"{mirror.url}/pre"]})
        async with Client(hosts, idle_timeout=0.4, retry=kit.quick) as opened:
            yield opened

    async def test_the_mirror_is_asked_first(self, registry, mirror, mirrored, kit):
        image = mirror.add(kit.image(), "1")
        assert (await mirrored.resolve(registry.ref())).digest == image.digest
        assert mirror.requests[0].path_qs == f"/pre/v2/team/app/manifests/1?ns={registry.host}"
        assert registry.requests == []

    @pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
    async def test_an_unwilling_mirror_is_passed_by(self, registry, mirror, mirrored, kit, status):
        async def refuse(_):
            return web.Response(status=status)

        mirror.hook = refuse
        image = registry.add(kit.image(), "1")
        assert (await mirrored.resolve(registry.ref())).digest == image.digest
        descriptor = described(image.layers[0])
        assert await read(mirrored, registry.ref(), descriptor) == image.layers[0]

    async def test_a_mirror_with_wrong_content_is_passed_by(self, registry, mirror, mirrored, kit):
        image = registry.add(kit.image(), "1")
        mirror.manifests[image.digest] = kit.image("freebsd").manifest
        assert (await mirrored.manifest(registry.ref(), image.digest))[1] == image.manifest

    async def test_the_registry_continues_where_the_mirror_broke(self, registry, mirror, mirrored, blob):
        mirror.hook = breaking_off(300_000, times=1000)

        async def die_later(request):
            if len(mirror.requests) > 1:
                return web.Response(status=404)
            return await breaking_off(300_000)(request)

        mirror.hook = die_later
        assert await read(mirrored, registry.ref(), blob) == BLOB
        assert registry.requests[-1].http_range.start > 0

    async def test_all_failures_are_told(self, registry, mirrored, mirror):
        with pytest.raises(NotFoundError) as caught:
            await mirrored.manifest(registry.ref())
        assert registry.host in str(caught.value)
        assert mirror.host in str(caught.value)


async def test_a_schema_1_manifest_gets_a_clear_answer(registry, client):
    async def old(_):
        return web.Response(body=json.dumps({"schemaVersion": 1, "fsLayers": []}).encode())

    registry.hook = old
    with pytest.raises(RegistryError, match="schema 1"):
        await client.resolve(registry.ref())
