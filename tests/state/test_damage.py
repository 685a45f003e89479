"""Whatever the bytes of a database and its log are, it opens, and what it gives are records."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.state import Store, wal
from cri.state.salvage import salvage
from tests.state.conftest import sandbox

ALL = 60
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

patches = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=600)), min_size=1, max_size=6
)
"""Where, as a part of the file, and what is written there."""


def damage(path: Path, changes: list[tuple[float, bytes]], cut: float) -> None:
    data = bytearray(path.read_bytes())
    for place, content in changes:
        start = int(place * len(data))
        data[start : start + len(content)] = content
    path.write_bytes(data[: int(len(data) * cut)])


async def opened(path: Path) -> None:
    """It opens, what it has are records, and the next daemon finds the same and more."""
    store = await Store.open(path)
    for records in (store.sandboxes, store.containers, store.images):
        for key, record in records.items():
            assert record.checked().key == key
            assert "/" not in key
    await store.save(sandbox("after"))
    expected = [set(store.sandboxes), set(store.containers), set(store.images)]
    assert store.problem == ""
    await store.close()
    again = await Store.open(path)
    assert [set(again.sandboxes), set(again.containers), set(again.images)] == expected
    assert again.rebuilt == ""
    await again.close()


@QUICK
@given(
    patches,
    st.sampled_from(["", "-wal", "-shm"]),
    st.sampled_from([1.0, 1.0, 1.0, 0.999, 0.7, 0.5, 0.1, 0.001]),
)
def test_damaged_anywhere(killed_state: Path, changes, suffix: str, cut: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(killed_state, directory, dirs_exist_ok=True)
        damage(Path(directory, f"state.db{suffix}"), changes, cut)
        asyncio.run(opened(Path(directory, "state.db")))


@QUICK
@given(st.binary(max_size=9000), st.binary(max_size=9000), st.booleans())
def test_no_database_at_all(database: bytes, log: bytes, headed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "state.db")
        path.write_bytes((b"SQLite format 3\0" if headed else b"") + database)
        Path(directory, "state.db-wal").write_bytes(log)
        asyncio.run(opened(path))


@QUICK
@given(
    st.lists(st.integers(0, 40), max_size=60),
    st.sampled_from([512, 1024, 4096]),
    st.booleans(),
    st.integers(0, 200_000),
)
def test_a_file_and_its_log_are_merged_as_sqlite_does(
    numbers: list[int], page: int, folded: bool, lost: int
) -> None:
    """Also when the end of the log is lost."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.db")
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute(f"PRAGMA page_size = {page}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value TEXT)")
            for step, number in enumerate(numbers):
                if folded and step == len(numbers) // 2:
                    database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                if number % 7 == 3:
                    database.execute("DELETE FROM t WHERE id < ?", (number,))
                database.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (number, "x" * number * 50))
            main, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
        log = log[: max(0, len(log) - lost)]
        copy = Path(directory, "b.db")
        copy.write_bytes(main)
        Path(f"{copy}-wal").write_bytes(log)
        with closing(sqlite3.connect(":memory:")) as ours, closing(sqlite3.connect(copy)) as theirs:
            ours.deserialize(wal.merged(main, log))
            # A file whose log is cut may need what was in there; then neither can be read.
            for query in ("PRAGMA integrity_check", "SELECT * FROM t", "PRAGMA page_count"):
                assert answer(ours, query) == answer(theirs, query)


def answer(database: sqlite3.Connection, query: str):
    try:
        return database.execute(query).fetchall()
    except sqlite3.Error as error:
        return str(error)


@QUICK
@given(patches)
def test_salvage_reads_what_is_whole(killed_state: Path, changes) -> None:
    """A page of 4096 bytes holds about four pods; damage costs pages, not tables."""
    image = wal.merged((killed_state / "state.db").read_bytes(), (killed_state / "state.db-wal").read_bytes())
    assert len(salvage(image)) == 2 * ALL + 6
    data = bytearray(image)
    for place, content in changes:
        # Not the schema, and not the roots: without these nothing leads to a row.
        start = 10 * 4096 + int(place * (len(data) - 10 * 4096))
        data[start : start + len(content)] = content
    found = salvage(bytes(data))
    assert len(found) + len(found.unreadable) >= 2 * ALL + 6 - len(changes) * 2 * 5 * 2


def test_a_log_of_another_kind_is_none() -> None:
    assert wal.Log.read(b"") is None
    assert wal.Log.read(b"\x37\x7f\x06\x82" + bytes(28)) is None
    assert wal.expected_frames(b"x" * 100, b"y" * 200) == 0
    assert wal.merged(b"", b"z" * 40) == b""


@pytest.mark.parametrize("image", [b"", b"x", b"SQLite format 3\0", bytes(100_000)])
def test_salvage_of_what_is_none(image: bytes) -> None:
    assert len(salvage(image)) == 0
