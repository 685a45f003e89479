"""Small files: whatever is in their place."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox import small_files, wire
from cri.sandbox.spec import ExitRecord


@given(st.binary(max_size=10_000))
def test_what_was_written_is_read(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("files") / "file"
    small_files.write(path, data)
    assert small_files.read(path) == data
    assert [one.name for one in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o600


def place(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
        (path / "inside").touch()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "file":
        path.write_text("old")


@pytest.mark.parametrize("kind", ["directory", "fifo", "link"])
def test_what_is_no_file_is_not_read(tmp_path, kind) -> None:
    place(tmp_path / "file", kind)
    with pytest.raises(OSError) as caught:
        small_files.read(tmp_path / "file")
    assert caught.value.errno in (errno.EINVAL, errno.ELOOP, errno.EISDIR)


@pytest.mark.parametrize("kind", ["nothing", "directory", "fifo", "link", "file"])
def test_it_is_written_over(tmp_path, kind) -> None:
    place(tmp_path / "file", kind)
    small_files.write(tmp_path / "file", b"new", sync=True)
    assert small_files.read(tmp_path / "file") == b"new"
    assert Path("/etc/hostname").read_text() != "new"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        small_files.write(path, b"new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@given(st.binary(max_size=300))
def test_a_damaged_exit_record_is_said_to_be_one(tmp_path_factory, data) -> None:
    directory = tmp_path_factory.mktemp("container")
    (directory / wire.EXIT_RECORD).write_bytes(data)
    with pytest.raises(ValueError):
        wire.read_exit_record(directory)


@given(st.integers(0, 200))
def test_so_is_one_that_is_cut(tmp_path_factory, length) -> None:
    directory = tmp_path_factory.mktemp("container")
    record = ExitRecord("c" * 64, 3, 123456789, message="an end")
    wire.write_exit_record(directory, record)
    assert wire.read_exit_record(directory) == record
    path = directory / wire.EXIT_RECORD
    whole = path.read_bytes()
    path.write_bytes(whole[: length % len(whole)])
    with pytest.raises(ValueError):
        wire.read_exit_record(directory)


@pytest.mark.parametrize(
    "text",
    [
        '{"container_id": 7, "exit_code": 0, "finished_at": 1}',
        '{"container_id": "c", "exit_code": true, "finished_at": 1}',
        '{"container_id": "c", "exit_code": "0", "finished_at": 1}',
        '{"container_id": "c", "exit_code": 0}',
        '{"container_id": "c", "exit_code": 0, "finished_at": 1, "of_a_newer_release": 1}',
        "[]",
        "null",
    ],
)
def test_wrong_types_are_told(text) -> None:
    with pytest.raises(wire.WireError):
        wire.loads(ExitRecord, text)
