"""A disk for a test to fill, to break, or to have its power cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest


def need_loop_mounts() -> None:
    """Skip the test where there are none: in most containers."""
    if shutil.which("mkfs.ext4") is None or os.geteuid() != 0:
        pytest.skip("needs root and mkfs.ext4")
    if subprocess.run(["losetup", "-f"], check=False, capture_output=True).returncode:
        pytest.skip("needs loop devices")


class Disk:
    """An ext4 in a file, mounted by a loop device."""

    def __init__(self, file: Path, mount_point: Path, mib: int) -> None:
        self._file, self.mount_point = file, mount_point
        with file.open("wb") as made:
            made.truncate(mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", file], check=True)
        mount_point.mkdir()
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self._file, self.mount_point], check=True)

    def cut(self) -> None:
        """Stop it at once."""
        subprocess.run(
            ["mount", "-o", "remount,abort", self.mount_point], check=False, stderr=subprocess.DEVNULL
        )

    def unmount(self) -> None:
        deadline = time.monotonic() + 20
        while subprocess.run(["umount", self.mount_point], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline, "the disk is busy"
            time.sleep(0.1)

    def check(self) -> None:
        """As at boot; 1 is: errors were corrected."""
        assert (
            subprocess.run(["fsck.ext4", "-p", self._file], check=False, capture_output=True).returncode <= 1
        )

    def fill(self) -> None:
        """Write to the last byte of it, whoever may use that."""
        with (self.mount_point / "filling").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            number = 0
            while True:  # what is left of directories
                (self.mount_point / f"filling{number}").mkdir()
                number += 1
