"""Opening databases of other releases, and of no release."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlmodel import SQLModel, create_engine

from cri.state import StateError, Store
from cri.state.migrations import MIGRATIONS, migrate
from cri.state.records import RECORDS

VERSION_1 = Path(__file__).with_name("version-1.sql")


def columns(connection: sqlite3.Connection, table: str) -> list[tuple]:
    """Name, type, NOT NULL, primary key."""
    return [(row[1], row[2], row[3], row[5]) for row in connection.execute(f"PRAGMA table_info({table})")]


def open_raw(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_the_last_step_leads_to_the_models(tmp_path: Path) -> None:
    with open_raw(tmp_path / "steps.db") as steps:
        migrate(steps, tmp_path / "steps.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'models.db'}")
    SQLModel.metadata.create_all(engine, tables=[kind.__table__ for kind in RECORDS])
    engine.dispose()
    models = open_raw(tmp_path / "models.db")
    for kind in RECORDS:
        assert columns(steps, kind.__tablename__) == columns(models, kind.__tablename__)
    steps.close()
    models.close()


async def test_version_1_opens_with_all_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    old = open_raw(path)
    old.executescript(VERSION_1.read_text())
    old.close()
    store = await Store.open(path)
    await store.close()
    assert store.sandboxes["s1"].addresses == ["10.88.0.2", "fd00::2"]
    assert store.sandboxes["s1"].config == b"\x0a\x00\xff"
    assert store.containers["c1"].credentials == {"uid": 101, "gid": 101, "groups": [101]}
    assert store.containers["c2"].credentials is None
    assert store.images["sha256:1"].chains == ["sha256:3", "sha256:4"]
    new = open_raw(path)
    assert new.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    new.close()


def test_steps_are_taken_once_and_in_order(tmp_path: Path) -> None:
    def step(name: str):
        return lambda connection: connection.execute(f"CREATE TABLE {name} (x)")

    connection = open_raw(tmp_path / "x.db")
    migrate(connection, tmp_path / "x.db", [step("a")])
    migrate(connection, tmp_path / "x.db", [step("a"), step("b")])
    migrate(connection, tmp_path / "x.db", [step("a"), step("b")])
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_a_failed_step_is_undone_and_earlier_ones_stay(tmp_path: Path) -> None:
    def bad(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        connection.execute("CREATE TABLE half (x)")

    connection = open_raw(tmp_path / "x.db")
    with pytest.raises(StateError, match=f"version {len(MIGRATIONS) + 1}"):
        migrate(connection, tmp_path / "x.db", [*MIGRATIONS, bad])
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert not columns(connection, "half")
    assert columns(connection, "sandboxes")
    connection.close()


async def test_this_release_leaves_what_the_last_landed_one_can_open(tmp_path: Path) -> None:
    """That one knows two steps, refuses more, and takes rows by the columns that it knows."""
    store = await Store.open(tmp_path / "state.db")
    await store.close()
    with open_raw(tmp_path / "state.db") as left:
        assert left.execute("PRAGMA user_version").fetchone() == (2,)
        assert left.execute("PRAGMA quick_check").fetchone() == ("ok",)
    left.close()
