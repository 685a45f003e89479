"""A process that pulls images with the store of the daemon, and tells what each has taken: for `test_hostile_images.py`.

    python -m tests.images.pulling DIRECTORY KIND ADDRESS BOUNDS NAME...

Prints a line of JSON for each name. The first is to be a small one, with which everything is imported.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path

from baustelle.bounds import Bounds
from baustelle.errors import BaustelleError
from cri.errors import CRIError
from cri.images import ImageStore
from cri.log import configure
from cri.sandbox.snapshots import DirectorySnapshotter
from cri.state import Store
from registratur import Client, ContentStore, Platform, RegistryError
from tests.images import snapshotters


def kib(key: str) -> int:
    """A figure of this process, such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


async def one(images: ImageStore, name: str) -> dict[str, object]:
    """Pull an image, and remove it."""
    gc.collect()
    idle = kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = time.monotonic()
    error = ""
    try:
        await images.pull(name, None)
    except (BaustelleError, RegistryError, CRIError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    told = {
        "name": name.rpartition("/")[2],
        "seconds": round(time.monotonic() - began, 2),
        "idle_mib": idle >> 10,
        "grown_mib": (kib("VmHWM") - idle) >> 10,
        "error": error,
    }
    if not error:
        await images.remove(name)
    await images.layers.settle()
    return told


async def main(directory: Path, kind: str, address: str, bounds: Bounds, names: list[str]) -> None:
    """Pull one after the other."""
    store = await Store.open(directory / "state.db")
    snapshots = snapshotters.make(directory, kind)
    async with Client() as client:
        images = ImageStore(
            store,
            ContentStore(directory / "content"),
            snapshots,
            client,
            platforms=[Platform.current()],
            max_parallel=4,
            bounds=bounds,
        )
        await images.load()
        for name in names:
            print(json.dumps(await one(images, f"{address}/{name}:latest")), flush=True)
        await images.settle()
    assert isinstance(snapshots, DirectorySnapshotter)
    await asyncio.to_thread(snapshots.wait)
    await store.close()


if __name__ == "__main__":
    configure("critical", "json")
    directory, kind, address, bounds, *names = sys.argv[1:]
    asyncio.run(main(Path(directory), kind, address, Bounds(**json.loads(bounds)), names))
