"""What the last landed release (5eb138e) has written: this one takes it over as it is, and leaves it a form that that one knows."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from cni_plugins.ledger import Ledger
from cri.sandbox import record_files, wire
from cri.sandbox.container import Container
from cri.sandbox.pod import PodSandbox
from cri.sandbox.spec import ContainerSpec, SandboxSpec
from cri.state import Store

LANDED = Path(__file__).parents[1] / "state/landed"


def database(name: str, directory: Path) -> Path:
    path = directory / f"{name}.db"
    with sqlite3.connect(path) as opened:
        opened.executescript((LANDED / f"{name}.sql").read_text())
    opened.close()
    return path


@pytest.fixture
async def store(tmp_path):
    opened = await Store.open(database("state", tmp_path))
    yield opened
    await opened.close()


async def test_every_record_is_understood(store, node) -> None:
    assert (len(store.sandboxes), len(store.containers), len(store.images)) == (1, 3, 1)
    assert not store.unreadable
    assert store.rebuilt == ""
    (record,) = store.sandboxes.values()
    sandbox = PodSandbox.load(node.pods._node, record)
    states = sorted(
        Container.load(node.pods._node, one, sandbox).state.value for one in store.containers.values()
    )
    assert states == ["created", "exited", "running"]


async def test_what_is_written_says_no_more_than_that_release_knows(store) -> None:
    """It refuses a spec with a field that it does not know: none of ours may have one that is not in its own."""
    for record, kind in (
        *((one, SandboxSpec) for one in store.sandboxes.values()),
        *((one, ContainerSpec) for one in store.containers.values()),
    ):
        written = wire.encode(wire.loads(kind, record.spec))
        assert written == json.loads(record.spec)


def test_the_schema_is_that_release_s(tmp_path) -> None:
    with sqlite3.connect(database("state", tmp_path)) as opened:
        before = opened.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        version = opened.execute("PRAGMA user_version").fetchone()
    opened.close()
    assert version == (2,)
    assert {name for name, _ in before if not name.startswith("sqlite_")} == {
        "containers",
        "images",
        "sandboxes",
    }


async def test_a_record_survives_the_way_through_its_copy(store, tmp_path) -> None:
    for record in (*store.sandboxes.values(), *store.containers.values()):
        directory = tmp_path / record.id
        directory.mkdir()
        record_files.write(directory, record)
        assert record_files.read(type(record), directory).values() == record.values()


def test_the_network_s_ledger(tmp_path) -> None:
    path = database("network", tmp_path)
    ledger = Ledger(path, "another boot")
    try:
        assert len(ledger.entries()) == 1
        assert not ledger.problem
    finally:
        ledger.close()
