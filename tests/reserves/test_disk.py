"""The reserve of disk is there, can be given up at any time, and comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri.reserves import DiskReserve

MIB = 1024 * 1024


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.fixture
def reserve(tmp_path: Path):
    reserve = DiskReserve(tmp_path / "reserve", 2 * MIB)
    assert reserve.spent
    assert reserve.take()
    yield reserve
    reserve.close()


def test_it_takes_room_and_gives_it(reserve: DiskReserve, tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    assert allocated(path) >= 2 * MIB
    assert path.stat().st_mode & 0o777 == 0o600
    assert not reserve.spent
    assert reserve.give_up()
    assert reserve.spent
    assert allocated(path) == 0
    assert not reserve.give_up()
    assert reserve.take()
    assert allocated(path) >= 2 * MIB


def test_the_next_daemon_takes_it_over(reserve: DiskReserve, tmp_path: Path) -> None:
    before = (tmp_path / "reserve").stat()
    reserve.close()
    again = DiskReserve(tmp_path / "reserve", 2 * MIB)
    assert again.take()
    assert (tmp_path / "reserve").stat().st_mtime_ns == before.st_mtime_ns
    assert again.give_up()
    again.close()


def test_it_frees_its_room_though_somebody_has_removed_the_file(reserve: DiskReserve, tmp_path: Path) -> None:
    (tmp_path / "reserve").unlink()
    assert reserve.give_up()
    assert reserve.take()
    (tmp_path / "reserve").unlink()
    assert reserve.take()
    assert allocated(tmp_path / "reserve") >= 2 * MIB


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "empty", "sparse", "short"])
def test_whatever_lies_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "reserve"
    match kind:
        case "directory":
            path.mkdir()
            (path / "file").touch()
        case "fifo":
            os.mkfifo(path)
        case "link":
            (tmp_path / "target").write_text("precious")
            path.symlink_to(tmp_path / "target")
        case "empty":
            path.touch()
        case "sparse":
            path.touch()
            os.truncate(path, 64 * MIB)
        case "short":
            path.write_bytes(b"x" * MIB)
    reserve = DiskReserve(path, 2 * MIB)
    assert reserve.take()
    assert path.is_file()
    assert allocated(path) >= 2 * MIB
    reserve.close()
    if kind == "link":
        assert (tmp_path / "target").read_text() == "precious"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path / "gone" / "reserve")
    assert not reserve.take()
    assert reserve.spent
    assert not reserve.give_up()
    reserve.close()


@pytest.mark.node
def test_a_full_disk(disk) -> None:
    reserve = DiskReserve(disk.root / "reserve")
    assert reserve.take()
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        (disk.root / "one").write_bytes(b"x" * 4096)
    assert reserve.give_up()
    (disk.root / "one").write_bytes(b"x" * 4 * MIB)
    assert not reserve.take()
    disk.free()
    assert reserve.take()
    reserve.close()
