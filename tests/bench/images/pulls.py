"""What it costs a pull that its layers are on disk when they are recorded: against none, and against fsync of each file.

    python tests/bench/images/pulls.py [--directory DIR] [--cycles 7] [--mb 80] [--layers 12] [--files 4000]

The three take turns, on one filesystem, with one image from a file server on this machine: the worst case, as a network
leaves the disk more time. With `--busy`, something else writes to the same filesystem all the while.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from baustelle.build import build
from baustelle.layout import ImageLayout, export_registry_tree
from cri.images import ImageStore
from cri.log import configure
from cri.sandbox.linux import kernel
from cri.sandbox.linux.snapshots import OverlaySnapshotter
from cri.state import Store
from registratur import Client, ContentStore, Platform

NOTHING, SHARED, EACH = "no sync", "syncfs, shared", "fsync of each file"


def make_image(base: Path, mb: int, layers: int, files: int) -> Path:
    """A registry tree with `app:latest`; half of the bytes do not compress."""
    chance = random.Random(1)
    context = base / "context"
    lines = ["FROM scratch"]
    for layer in range(layers):
        for number in range(files // layers):
            folder = context / f"l{layer}/usr/share/d{layer}-{number % 40}"
            folder.mkdir(parents=True, exist_ok=True)
            size = int(chance.expovariate(1) * mb * 1_000_000 / files)
            (folder / str(number)).write_bytes(chance.randbytes(size // 2) + bytes(size - size // 2))
        lines.append(f"COPY l{layer}/ /")
    (context / "Containerfile").write_text("\n".join([*lines, 'CMD ["x"]']) + "\n")
    layout = ImageLayout(base / "layout")
    image = build(context / "Containerfile", context, layout=layout)
    export_registry_tree(layout, image, "app", "latest", base / "tree")
    return base / "tree"


@contextlib.contextmanager
def served(tree: Path) -> Iterator[str]:
    """The address of a file server in a process of its own."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(tree),
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        yield f"localhost:{port}"
        server.terminate()


@contextlib.contextmanager
def busy(directory: Path) -> Iterator[None]:
    """Somebody who writes 100 MB a second."""
    stop = threading.Event()

    def write() -> None:
        with (directory / "noise").open("wb") as file:
            while not stop.wait(0.01):
                file.write(os.urandom(1 << 20))
                if file.tell() > 1 << 30:
                    file.seek(0)

    thread = threading.Thread(target=write)
    thread.start()
    yield
    stop.set()
    thread.join()


async def pull(directory: Path, address: str, way: str) -> tuple[float, float]:
    """Seconds until the pull is answered, and until all is on disk."""
    sync: Callable[[int], None] | None = {
        NOTHING: lambda _: None,
        SHARED: kernel.sync_filesystem,
        EACH: None,
    }[way]
    state = directory / "state"
    state.mkdir()
    store = await Store.open(directory / "state/state.db")
    with contextlib.ExitStack() as patches:
        if way == NOTHING:
            patches.enter_context(mock.patch("os.fsync", return_value=None))
        async with Client() as client:
            images = ImageStore(
                store,
                ContentStore(state / "content"),
                OverlaySnapshotter(state, sync),
                client,
                platforms=[Platform.current()],
                max_parallel=3,
            )
            await images.load()
            began = time.monotonic()
            await images.pull(f"{address}/app:latest", None)
            answered = time.monotonic() - began
    fd = os.open(directory, os.O_RDONLY)
    await asyncio.to_thread(kernel.sync_filesystem, fd)
    os.close(fd)
    on_disk = time.monotonic() - began
    await store.close()
    await asyncio.to_thread(shutil.rmtree, state)
    return answered, on_disk


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--cycles", type=int, default=7)
    parser.add_argument("--mb", type=int, default=80)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    configure("error", "text")
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        base = Path(folder)
        tree = make_image(base, options.mb, options.layers, options.files)
        figures: dict[str, list[tuple[float, float]]] = {NOTHING: [], SHARED: [], EACH: []}
        noise = busy(base) if options.busy else contextlib.nullcontext()
        with served(tree) as address, noise:
            for cycle in range(options.cycles):
                ways = list(figures)
                for way in (
                    ways[cycle % 3 :] + ways[: cycle % 3]
                ):  # what one has deleted is discarded under the next
                    os.sync()
                    time.sleep(1)
                    figures[way].append(asyncio.run(pull(base, address, way)))
    least = statistics.median(answered for answered, _ in figures[NOTHING])
    print(
        f"{options.mb} MB, {options.layers} layers, {options.files} files; p50 of {options.cycles}, seconds"
    )
    for way, found in figures.items():
        answered, on_disk = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{way:20} answered {answered:6.2f}   on disk {on_disk:6.2f}   ratio {answered / least:5.2f}")


if __name__ == "__main__":
    main()
