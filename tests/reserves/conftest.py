"""Small disks that can be filled and made read-only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024


class SmallDisk:
    """A file system of 64 MiB on a loop device."""

    def __init__(self, base: Path) -> None:
        self.root = base / "disk"
        self.root.mkdir()
        self._image = base / "image"
        with self._image.open("wb") as file:
            file.truncate(64 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self._image], check=True)
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self._image, self.root], check=True)

    def fill(self) -> None:
        """Take every byte, first by large files and then by small ones."""
        number = 0
        for size in (MIB, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    path = self.root / f"filler-{number}"
                    number += 1
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    try:
                        for _ in range(16):
                            os.write(descriptor, b"x" * size)
                            os.fsync(descriptor)
                    finally:
                        os.close(descriptor)

    def free(self) -> None:
        """Take nothing any more."""
        for path in self.root.glob("filler-*"):
            path.unlink()

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.root], check=True)

    def mount_anew(self) -> None:
        """As an operator does after an error; nobody may have a file on it open."""
        subprocess.run(["umount", self.root], check=True)
        self._mount()

    def close(self) -> None:
        subprocess.run(["umount", self.root], check=True)


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    if sys.platform != "linux":
        pytest.skip("Linux only: loop mounts")
    base = Path(tempfile.mkdtemp(prefix="cri-disk-"))
    small = SmallDisk(base)
    try:
        yield small
    finally:
        small.close()
        shutil.rmtree(base)
