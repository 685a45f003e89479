"""What is removed is out of sight at once, and gone soon."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from cri.sandbox.host import HostError
from cri.sandbox.trash import Trash


def tree(path: Path) -> Path:
    (path / "deep/deeper").mkdir(parents=True)
    (path / "deep/file").write_text("content")
    (path / "link").symlink_to("/nowhere")
    return path


async def emptied(directory: Path) -> None:
    async with asyncio.timeout(5):
        while list(directory.iterdir()):
            await asyncio.sleep(0.01)


async def test_a_tree_a_file_and_nothing(tmp_path) -> None:
    trash = Trash(tmp_path / "removed")
    (tmp_path / "file").write_text("content")
    for path in (tree(tmp_path / "tree"), tmp_path / "file", tmp_path / "never was"):
        await trash.take(path)
        assert not path.exists()
    await emptied(tmp_path / "removed")


async def test_without_its_directory_things_are_deleted_where_they_are(tmp_path) -> None:
    trash = Trash(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    await trash.take(tree(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()


async def test_no_room_for_another_name(tmp_path, monkeypatch) -> None:
    trash = Trash(tmp_path / "removed")
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if "removed" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    await trash.take(tree(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
    assert list((tmp_path / "removed").iterdir()) == []


async def test_something_else_in_the_place_of_its_directory(tmp_path) -> None:
    (tmp_path / "removed").write_text("precious")
    trash = Trash(tmp_path / "removed")
    await trash.take(tree(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
    assert [path.read_text() for path in tmp_path.glob("removed.damaged-*")] == ["precious"]


async def test_a_disk_that_takes_nothing_is_told(tmp_path, monkeypatch) -> None:
    trash = Trash(tmp_path / "removed")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr("cri.sandbox.trash.remove_any", refuse)
    with pytest.raises(HostError, match="Read-only"):
        await trash.take(tree(tmp_path / "tree"))


async def test_names_are_told_until_they_are_deleted(tmp_path) -> None:
    trash = Trash(tmp_path / "removed")
    one, two = (trash.out_of_sight(tree(tmp_path / name)) for name in ("one", "two.x"))
    assert trash.out_of_sight(tmp_path / "never was") is None
    assert trash.names() == {"one", "two.x"}
    assert one is not None
    trash.delete(one)
    async with asyncio.timeout(5):
        while trash.names() != {"two.x"}:
            await asyncio.sleep(0.01)
    assert two is not None
    assert two.exists()


async def test_a_sweep_spares_what_is_still_needed(tmp_path) -> None:
    trash = Trash(tmp_path / "removed")
    for name in ("one", "two"):
        trash.out_of_sight(tree(tmp_path / name))
    tree(tmp_path / "removed/0123456789abcdef")  # as earlier releases called it
    assert trash.sweep({"two"}) == 2
    async with asyncio.timeout(5):
        while len(list((tmp_path / "removed").iterdir())) > 1:
            await asyncio.sleep(0.01)
    assert trash.names() == {"two"}
    assert trash.sweep() == 1
    await emptied(tmp_path / "removed")
