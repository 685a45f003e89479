"""How long a layer takes to be unpacked (and hashed), against bsdtar, interleaved in one run.

    python tests/bench/images/unpacking.py [--directory DIR] [--cycles 5] [--mb 100] [--files 4000]

Prints the least of each and the ratio: of gzip, zstd and plain archives of half incompressible files.
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zstandard

from baustelle.removal import remove_tree
from baustelle.unpack import Whiteouts, unpack


def archive(mb: int, files: int) -> bytes:
    """A plain layer."""
    chance, buffer = random.Random(1), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(files):
            size = int(chance.expovariate(1) * mb * 1_000_000 / files)
            data = chance.randbytes(size // 2) + bytes(size - size // 2)
            info = tarfile.TarInfo(f"usr/share/d{number % 40}/f{number}")
            info.size = size
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ours(layer: Path, root: Path) -> None:
    with layer.open("rb") as stream:
        unpack(stream, root, whiteouts=Whiteouts.APPLY)


def bsdtar(layer: Path, root: Path) -> None:
    subprocess.run(["bsdtar", "-x", "-p", "--numeric-owner", "-f", layer, "-C", root], check=True)


def seconds(way: Callable[[Path, Path], None], layer: Path, base: Path) -> float:
    root = base / "root"
    root.mkdir()
    began = time.monotonic()
    way(layer, root)
    took = time.monotonic() - began
    remove_tree(root)
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--files", type=int, default=4000)
    options = parser.parse_args()
    plain = archive(options.mb, options.files)
    layers = {"plain": plain, "gzip": gzip.compress(plain, 6), "zstd": zstandard.compress(plain)}
    print(f"{options.mb} MB, {options.files} files; least of {options.cycles}, seconds")
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        base = Path(folder)
        for name, data in layers.items():
            (base / name).write_bytes(data)
            least = {way: float("inf") for way in (ours, bsdtar)}
            for _ in range(options.cycles):
                for way in (ours, bsdtar):
                    least[way] = min(least[way], seconds(way, base / name, base))
            ratio = least[ours] / least[bsdtar]
            print(f"{name:6} ours {least[ours]:6.2f}   bsdtar {least[bsdtar]:6.2f}   ratio {ratio:5.2f}")


if __name__ == "__main__":
    main()
