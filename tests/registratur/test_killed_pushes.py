"""Pushes that are killed at any moment: a name shows a whole image or the one before, and the next push sends only what is missing.

REGISTRATUR_TEST_KILLS says how often (50 by hand).
"""

import asyncio
import os
import random
import signal
import sys

import pytest

from registratur import Descriptor, NotFoundError, Platform, Reference, compute_digest, media, pull, push
from tests.registratur.test_docker_push import REGISTRY, laid_out, serving

pytestmark = [
    pytest.mark.skipif(REGISTRY is None, reason="needs docker-registry (Debian package of this name)"),
    pytest.mark.timeout(600),
]

KILLS = int(os.environ.get("REGISTRATUR_TEST_KILLS", "5"))
LINUX = [Platform("linux", "amd64")]
LAYERS = 6

PUSHING = """
import asyncio, pathlib, sys
from registratur import Client, Descriptor, LayoutSource, Reference, push

async def main(folder, ref, kind, digest, size):
    async with Client() as client:
        print("ready", flush=True)
        root = Descriptor(kind, digest, int(size))
        await push(client, Reference.parse(ref), root, LayoutSource(pathlib.Path(folder)), max_parallel=2, chunk=200_000)

asyncio.run(main(*sys.argv[1:]))
"""


async def killed(folder, ref: Reference, root: Descriptor, after: float) -> bool:
    """Whether a push in a process of its own was killed before its end, `after` seconds."""
    words = (str(folder), str(ref), root.media_type, root.digest, str(root.size))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PUSHING, *words, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    try:
        async with asyncio.timeout(after):
            await process.wait()
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
    return await process.wait() == -signal.SIGKILL


async def test_kills_under_pushes(tmp_path, client, store, kit):
    chance = random.Random()
    cut = spared = 0
    async with serving(tmp_path) as address:
        before: str | None = None
        for number in range(KILLS):
            image = kit.image(layers=[kit.gzip(chance.randbytes(700_000)) for _ in range(LAYERS)])
            folder = tmp_path / str(number)
            source, root = laid_out(folder, image)
            ref = Reference.parse(f"{address}/team/app:v1")
            was_killed = await killed(folder, ref, root, chance.uniform(0, 1) if number else 0.01)
            cut += was_killed
            try:
                named = (await client.resolve(ref)).digest
            except NotFoundError:
                named = None
            assert named in ({before, image.digest} if was_killed else {image.digest})
            if named is not None:
                await pull(client, ref, LINUX, kit.sink(), store)  # which sees to every digest
            there = {compute_digest(layer) for layer in image.layers if await is_there(client, ref, layer)}
            pushed = await push(client, ref, root, source)
            assert {digest for digest, way in pushed.blobs.items() if way == "there"} >= there
            spared += len(there) if was_killed else 0
            sink = kit.sink()
            assert (await pull(client, ref, LINUX, sink, store)).repo_digest == image.digest
            assert sink.received == dict(enumerate(image.layers))
            before = image.digest
    assert cut, "not even the first, after a hundredth of a second"
    print(f"{cut} of {KILLS} pushes were cut off; {spared} layers were spared")


async def is_there(client, ref, layer) -> bool:
    """Whether a repository has a layer; one that is there is whole."""
    descriptor = Descriptor(media.OCI_LAYER, compute_digest(layer), len(layer))
    try:
        return b"".join([chunk async for chunk in client.blob(ref, descriptor)]) == layer
    except NotFoundError:
        return False
