"""Walking down a tree, and staying on its filesystem."""

import os
import sys

import pytest

from baustelle import descent


@pytest.fixture
def dev():
    """A directory that has others mounted in it (pts, shm; with fdescfs, fd)."""
    fd = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def devices(fd: int, **options: bool) -> set[int]:
    return {os.fstat(found).st_dev for found, _ in descent.walk(fd, **options)}


def test_a_walk_on_one_filesystem_passes_over_what_is_mounted(dev):
    assert devices(dev, one_filesystem=True) == {os.fstat(dev).st_dev}
    if sys.platform == "linux":  # FreeBSD mounts nothing there by itself
        assert len(devices(dev)) > 1


def test_a_walk_goes_on_beside_what_is_mounted(dev):
    names = {entry.name for _, files in descent.walk(dev, one_filesystem=True) for entry in files}
    assert {"null", "zero"} <= names
