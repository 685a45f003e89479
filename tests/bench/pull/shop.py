"""Images to pull, in a registry's storage: half of their bytes do not compress, and their files are as those of a distribution.

    python tests/bench/pull/shop.py STORAGE

A process of its own, as it has threads, and whoever changes namespaces must have none.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import random
import sys
import tarfile
import tempfile
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "critest-config"))

from nodekit.registry import Registry

from registratur import Client, ContentStore, Descriptor, LayoutSource, Platform, Reference, media, push

PREFIX = "example.org/pull"
SMALL = 20
LARGE = {
    f"{kind}-{megabytes}-{layers}": (kind, megabytes, layers)
    for megabytes, layers in ((100, 8), (79, 12))
    for kind in ("gzip", "zstd")
}
"""Compression, plain megabytes and layers, by name."""
_FILE = 20_000  # mean bytes


def small(number: int) -> str:
    """What one of the small images is called; `tag` of all is latest."""
    return f"small-{number}"


def layer(chance: random.Random, size: int, number: int) -> bytes:
    """A tar of about so many bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        count = 0
        while packed.tell() < size:
            folder = f"usr/share/d{number}-{count // 40}"
            if count % 40 == 0:
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            content = chance.randbytes(int(chance.expovariate(2 / _FILE)))
            entry = tarfile.TarInfo(f"{folder}/f{count}")
            entry.size = 2 * len(content)
            archive.addfile(
                entry, io.BytesIO(content + b"abcd" * (len(content) // 4) + bytes(len(content) % 4))
            )
            count += 1
    return packed.getvalue()


def image(store: ContentStore, kind: str, size: int, layers: int, chance: random.Random) -> Descriptor:
    """Make an image in a store; the descriptor of its manifest."""
    made, diff_ids = [], []
    for number in range(layers):
        plain = layer(chance, size // layers, number)
        diff_ids.append(digest(plain))
        if kind == "gzip":
            made.append(kept(store, media.OCI_LAYER_GZIP, gzip.compress(plain, 6)))
        else:
            made.append(kept(store, media.OCI_LAYER_ZSTD, zstandard.compress(plain)))
    own = Platform.current()
    config = {
        "os": own.os,
        "architecture": own.architecture,
        "config": {"Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": kept(store, media.OCI_CONFIG, json.dumps(config).encode()),
        "layers": made,
    }
    entry = kept(store, media.OCI_MANIFEST, json.dumps(manifest).encode())
    return Descriptor(media.OCI_MANIFEST, str(entry["digest"]), int(str(entry["size"])))


def kept(store: ContentStore, media_type: str, data: bytes) -> dict[str, object]:
    """Keep a blob; its descriptor."""
    store.write(digest(data), data)
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def digest(data: bytes) -> str:
    """As descriptors have it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def fill(address: str, folder: Path) -> None:
    """Push all images to a registry."""
    chance = random.Random(1)
    wanted = LARGE | {small(number): ("gzip", 1, 2) for number in range(SMALL)}
    store, source = ContentStore(folder), LayoutSource(folder)
    async with Client() as client:
        for name, (kind, megabytes, layers) in wanted.items():
            root = image(store, kind, megabytes * 1_000_000, layers, chance)
            await push(client, Reference.parse(f"{address}/pull/{name}:latest"), root, source)


def main(storage: Path) -> None:
    """Fill a storage."""
    with tempfile.TemporaryDirectory(dir=storage.parent) as scratch:
        registry = Registry(storage, Path(scratch))
        try:
            asyncio.run(fill(f"{registry.host}:{registry.port}", Path(scratch) / "content"))
        finally:
            registry.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
