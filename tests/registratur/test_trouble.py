"""What registries and mirrors do to a pull, and what becomes of it: whole pulls, of real size."""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from registratur import (
    Client,
    Descriptor,
    DigestMismatchError,
    HostsConfig,
    Platform,
    RetryPolicy,
    UnavailableError,
    compute_digest,
    pull,
)
from registratur.limits import HostLimits

AMD64 = [Platform("linux", "amd64")]
MIB = 1024 * 1024


@pytest.fixture
def image(kit):
    """Five mebibytes that cannot be compressed, and a small layer above."""
    return kit.image(layers=[kit.gzip(random.Random(14).randbytes(5 * MIB)), kit.gzip(b"upper")])


def served(image):
    return {compute_digest(blob): blob for blob in (image.config, *image.layers)}


def through(registry, *mirrors, **options):
    """A client that asks mirrors, then the registry."""
    hosts = HostsConfig(
        mirrors={registry.host: [one if isinstance(one, str) else one.url for one in mirrors]}
    )
    return Client(hosts, **{"idle_timeout": 5, "retry": RetryPolicy(tries=3, base=0.01, cap=0.05), **options})


async def test_a_mirror_that_is_down(registry, image, sink, store):
    registry.add(image, "1")
    async with through(registry, "http://127.0.0.1:1") as client:
        await pull(client, registry.ref(), AMD64, sink, store)
    assert sink.received == dict(enumerate(image.layers))


@pytest.mark.parametrize("what", ["layer", "config"])
@pytest.mark.parametrize("where", ["first byte", "last byte"])
async def test_a_mirror_with_wrong_bytes(registry, registries, image, kit, store, what, where):
    mirror = await registries()
    for one in (registry, mirror):
        one.add(image, "1")
    digest = compute_digest(image.layers[0] if what == "layer" else image.config)
    good = mirror.blobs[digest]
    mirror.blobs[digest] = b"?" + good[1:] if where == "first byte" else good[:-1] + b"?"
    kept = {}

    class Sink(kit.sink):
        async def receive(self, index, diff_ids, media_type, chunks):
            kept[index] = b"".join([chunk async for chunk in chunks])

    async with through(registry, mirror) as client:
        await pull(client, registry.ref(), AMD64, Sink(), store)
    assert kept == dict(enumerate(image.layers))
    assert store.read(compute_digest(image.config)) == image.config
    assert registry.seen("blobs"), "the next endpoint was tried"


async def test_wrong_bytes_everywhere_are_an_error_and_nothing_is_kept(
    registry, registries, image, sink, store
):
    mirror = await registries()
    for one in (registry, mirror):
        one.add(image, "1")
        digest = compute_digest(image.layers[0])
        one.blobs[digest] = one.blobs[digest][:-1] + b"?"
    async with through(registry, mirror) as client:
        with pytest.raises(DigestMismatchError, match=digest):
            await pull(client, registry.ref(), AMD64, sink, store)
    assert 0 not in sink.received
    paths = [request.path for one in (registry, mirror) for request in one.seen("blobs")]
    assert paths.count(f"/v2/team/app/blobs/{digest}") == 2


def cut_after(registry, most):
    """Answer with `most` bytes, and cut."""

    async def hook(request):
        data = registry.blobs.get(request.path.rpartition("/")[2])
        if data is None:
            return None
        start = request.http_range.start or 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(data) - start
        await response.prepare(request)
        await response.write(data[start : start + most])
        if len(data) - start > most:
            request.transport.close()
        return response

    return hook


async def test_every_answer_is_cut_after_a_mebibyte(registry, image, sink, store, client):
    registry.add(image, "1")
    registry.hook = cut_after(registry, MIB)
    await pull(client, registry.ref(), AMD64, sink, store)
    assert sink.received == dict(enumerate(image.layers))
    starts = [request.http_range.start or 0 for request in registry.seen("blobs")]
    assert max(starts) >= 4 * MIB
    assert sum(start > 0 for start in starts) >= 5


async def test_a_byte_now_and_then(registry, image, sink, store, kit):
    """Slower than a byte in half of the idle timeout, it is waited for as long as it takes; and keeps nobody else up."""
    slow = kit.image(layers=[kit.gzip(b"")])
    registry.add(slow, "slow")
    registry.add(image, "1")

    async def trickle(request):
        data = registry.blobs.get(request.path.rpartition("/")[2])
        if data != slow.layers[0]:
            return None
        response = web.StreamResponse()
        response.content_length = len(data)
        await response.prepare(request)
        for byte in data:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.2)
        return response

    registry.hook = trickle
    async with Client(idle_timeout=1) as client:
        waiting = asyncio.create_task(pull(client, registry.ref("team/app:slow"), AMD64, kit.sink(), store))
        await pull(client, registry.ref(), AMD64, sink, store)
        assert not waiting.done()
        assert (await waiting).layers[0].size == len(slow.layers[0])


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_too_many_requests(registry, image, sink, store, client, form):
    registry.add(image, "1")
    refused, early = {}, []

    async def limit(request):
        """Refuse each path once, and every request that comes too early."""
        now = time.monotonic()
        if request.path in refused:
            if now >= refused[request.path]:
                return None
            early.append(request.path)
        refused[request.path] = now + 0.95  # a date has no fractions
        moment = datetime.now(UTC) + timedelta(seconds=2)
        text = "1" if form == "seconds" else format_datetime(moment, usegmt=True)
        return web.Response(status=429, headers={"Retry-After": text})

    registry.hook = limit
    await pull(client, registry.ref(), AMD64, sink, store)
    assert sink.received == dict(enumerate(image.layers))
    assert early == []


@pytest.mark.parametrize("text", ["86400", format_datetime(datetime(2199, 1, 1, tzinfo=UTC), usegmt=True)])
async def test_a_limit_that_lasts_till_tomorrow_is_told_at_once(registry, client, text):
    async def limit(_):
        return web.Response(status=429, headers={"Retry-After": text})

    registry.hook = limit
    with pytest.raises(UnavailableError, match=f"HTTP 429.*not to be asked again before Retry-After: {text}"):
        await client.manifest(registry.ref())
    assert len(registry.requests) == 1


async def test_a_mirror_that_asks_for_patience_is_left_at_once(registry, registries, image):
    mirror = await registries()
    registry.add(image, "1")

    async def limit(_):
        return web.Response(status=429, headers={"Retry-After": "5"})

    mirror.hook = limit
    async with through(registry, mirror) as client:
        await client.resolve(registry.ref())
    assert len(mirror.requests) == 1


class TestTransfersOfOneHost:
    @pytest.fixture
    def blobs(self, registry, kit):
        found = []
        for n in range(8):
            data = b"%d" % n
            registry.blobs[compute_digest(data)] = data
            found.append(data)
        return found

    async def most_at_once(self, registry, blobs, client, kit, pause):
        now = most = 0

        async def count(_):
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(pause)
            now -= 1

        async def read(data):
            entry = kit.entry("x", data)
            blob = client.blob(registry.ref(), Descriptor("x", entry["digest"], len(data)))
            return b"".join([chunk async for chunk in blob])

        registry.hook = count
        assert await asyncio.gather(*map(read, blobs)) == blobs
        return most

    async def test_are_bounded(self, registry, blobs, kit):
        async with Client(per_host=3, idle_timeout=20) as client:
            assert await self.most_at_once(registry, blobs, client, kit, 0.05) == 3
            assert client._limits._hosts == {}

    async def test_who_has_waited_long_begins_all_the_same(self, registry, blobs, kit):
        async with Client(per_host=1, idle_timeout=0.5) as client:
            assert await self.most_at_once(registry, blobs[:3], client, kit, 0.45) > 1


class TestTransfersInAll:
    @pytest.fixture
    def limits(self):
        return HostLimits(3, 30, 5)

    async def hold(self, limits, host, go, held):
        async with limits.slot(host):
            held.append(host)
            await go.wait()

    async def test_are_bounded_and_no_host_has_them_all(self, limits):
        """A host that gives nothing has three of five; what is left is the others'."""
        held, stuck, go = [], asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(self.hold(limits, "slow", stuck, held))
            await asyncio.sleep(0.01)
            assert held == ["slow"] * 3
            for host in ("a", "b", "c"):
                group.create_task(self.hold(limits, host, go, held))
            await asyncio.sleep(0.01)
            assert held[3:] == ["a", "b"]
            go.set()
            await asyncio.sleep(0.01)
            assert held[3:] == ["a", "b", "c"]
            stuck.set()
        assert limits._hosts == {}
        assert limits._all._value == 5

    async def test_who_gives_up_leaves_nothing_taken(self, limits):
        never = asyncio.Event()
        tasks = [asyncio.create_task(self.hold(limits, str(n), never, [])) for n in range(9)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert (limits._hosts, limits._all._value) == ({}, 5)
