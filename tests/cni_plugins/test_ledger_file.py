"""A ledger opens whatever has become of its file, keeps what can be read, and goes on where nothing can be written."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_plugins import ledger_file
from cni_plugins.errors import LedgerError
from cni_plugins.ledger import Entry, Ledger

COUNT = 40
WRITER = """
import os, sys
from pathlib import Path
from cni_plugins.ledger import Entry, Ledger
ledger = Ledger(Path(sys.argv[1]), "boot")
for number in range(int(sys.argv[2])):
    name = f"pod-{number}"
    ledger.begin(Entry("pods", f"{name}/eth0", name, {"name": "pods"}, {"containerId": name}))
    ledger.claim("addresses", f"10.0.0.{number}", f"{name}/eth0")
    ledger.finish("pods", f"{name}/eth0", {"ips": [number]})
ledger.note("podCIDR", "10.0.0.0/24")
os._exit(0)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The files of a daemon that was killed: most of it is in the log of changes."""
    directory = tmp_path_factory.mktemp("killed")
    subprocess.run(
        [sys.executable, "-c", WRITER, directory / "network.db", str(COUNT)], check=True, cwd=Path.cwd()
    )
    assert (directory / "network.db-wal").stat().st_size
    return directory


@pytest.fixture
def path(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "state")
    return tmp_path / "state" / "network.db"


def reopened(path: Path, boot: str = "boot", **values) -> tuple[bool, dict[str, Entry], list, str | None]:
    """What a ledger has; afterwards it can be worked with, and the next one has it too."""
    ledger = Ledger(path, boot, **values)
    found = {entry.container: entry for entry in ledger.entries()}
    seen = ledger.rebuilt, found, ledger.claims("addresses"), ledger.noted("podCIDR")
    assert ledger.problem == ""
    assert ledger.begin(Entry("pods", "new/eth0", "new", {}, {}))
    ledger.finish("pods", "new/eth0", {})
    ledger.close()
    again = Ledger(path, boot)
    assert not again.rebuilt
    assert {entry.container: entry for entry in again.entries() if entry.container != "new"} == found
    assert again.claims("addresses") == seen[2]
    assert again.entries(container="new")[0].whole
    again.forget("pods", "new/eth0")
    again.close()
    return seen


def aside(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir() if ".damaged-" in each.name)


def pods(found) -> set[str]:
    return {f"pod-{number}" for number in range(COUNT)} & found.keys()


def test_what_a_killed_daemon_has_left_is_whole(path: Path) -> None:
    rebuilt, found, claims, cidr = reopened(path)
    assert not rebuilt
    assert len(pods(found)) == COUNT == len(claims)
    assert cidr == "10.0.0.0/24"
    assert found["pod-3"].result == {"ips": [3]}


def checkpoint(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("in it")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


HARM = [missing, empty, cut, noise, directory, fifo, link_to_nowhere, link_to_itself]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("part", ["", "-wal", "-shm"])
@pytest.mark.parametrize("whole", [False, True], ids=["killed", "closed"])
def test_it_opens_whatever_has_become_of_a_file(path: Path, harm, part: str, *, whole: bool, caplog) -> None:
    if whole:
        checkpoint(path)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).touch()
    victim = path.with_name(path.name + part)
    harm(victim)
    with caplog.at_level(logging.WARNING):
        rebuilt, found, claims, _ = reopened(path)
    assert len(pods(found)) == len(claims) or harm is not missing
    if whole and part:
        assert len(pods(found)) == COUNT, "all of it is in the database"
    if part == "":
        assert rebuilt or len(pods(found)) == COUNT, "all of it was in the log of changes"
        if rebuilt and (harm not in (missing, empty) or not whole):
            name = aside(path)[0].removesuffix("-wal").removesuffix("-shm")
            assert name.startswith("network.db.damaged-2")
            assert name in caplog.text


def test_a_damaged_files_name_is_never_taken_twice(path: Path) -> None:
    checkpoint(path)
    for number in range(3):
        path.write_text("no database")
        Ledger(path, "boot").close()
        assert len([name for name in aside(path) if not name.endswith(("-wal", "-shm"))]) == number + 1


def test_rows_on_both_sides_of_the_damage_are_read(path: Path) -> None:
    ledger = Ledger(path, "boot")
    for number in range(400):
        name = f"later-{number:03}"
        ledger.begin(Entry("pods", f"{name}/eth0", name, {"x": "y" * 200}, {}))
    ledger.close()
    before = 400 + COUNT
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(4096))
    rebuilt, found, *_ = reopened(path)
    assert rebuilt
    assert before / 4 < len(found) <= before


def test_a_later_schema_is_put_aside_and_what_is_known_of_it_goes_on(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE attachments ADD COLUMN more TEXT")
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    rebuilt, found, claims, cidr = reopened(path)
    assert rebuilt
    assert len(pods(found)) == COUNT == len(claims)
    assert cidr
    kept = sqlite3.connect(path.with_name(aside(path)[0]))
    assert kept.execute("PRAGMA user_version").fetchone() == (99,)
    kept.close()


@pytest.mark.parametrize("how", ["BEGIN EXCLUSIVE", "BEGIN IMMEDIATE", "PRAGMA locking_mode = EXCLUSIVE"])
def test_one_that_another_process_locks_is_worked_on_as_a_copy(path: Path, how: str, monkeypatch) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_SECONDS", 0.3)
    program = (
        "import sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        f"database.execute({how!r})\n"
        "if not database.in_transaction: database.execute(\"INSERT INTO notes VALUES ('a', 'b')\")\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"locked\n"
        began = time.monotonic()
        rebuilt, found, claims, _ = reopened(path)
        assert time.monotonic() - began < 5
        holder.stdin.close()
    assert rebuilt
    assert len(pods(found)) == COUNT == len(claims)


def test_one_that_is_locked_meanwhile_is_made_anew(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_SECONDS", 0.1)
    ledger = Ledger(path, "boot")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ledger.claim("addresses", "10.0.0.200", "a")
    holder.close()
    ledger.close()
    assert len(reopened(path)[2]) == COUNT + 1


@pytest.mark.parametrize("harm", [missing, cut, noise])
def test_a_file_that_is_damaged_while_it_is_used_costs_nothing(path: Path, harm) -> None:
    ledger = Ledger(path, "boot")
    checkpoint(path)
    harm(path)
    for number in range(200, 250):
        ledger.claim("addresses", f"10.0.0.{number}", "a")
    for number in range(COUNT):
        ledger.forget("pods", f"pod-{number}/eth0")
    assert ledger.entries() == []
    ledger.close()
    if harm is not missing:  # what has no name can be written to, and is gone
        assert len(reopened(path)[2]) == COUNT + 50


ROWS = [
    ("configuration", "{"),
    ("configuration", "[]"),
    ("configuration", b"\xff\x00"),
    ("attachment", "null"),
    ("attachment", "\udcff"),
    ("result", '"text"'),
    ("result", 7),
    ("result", "[" * 100_000),
]


@pytest.mark.parametrize(("column", "value"), ROWS)
def test_a_row_that_cannot_be_read_costs_no_other(path: Path, column: str, value) -> None:
    database = sqlite3.connect(path)
    if isinstance(value, str) and not value.isascii():
        value = value.encode(errors="surrogateescape")
        query = f"UPDATE attachments SET {column} = CAST(? AS TEXT) WHERE container = 'pod-7'"
    else:
        query = f"UPDATE attachments SET {column} = ? WHERE container = 'pod-7'"
    database.execute(query, (value,))
    database.commit()
    database.close()
    rebuilt, found, claims, _ = reopened(path)
    assert not rebuilt
    assert len(pods(found)) == COUNT == len(claims)
    assert column in found["pod-7"].fault
    assert found["pod-7"].whole
    assert [one.container for one in found.values() if one.fault] == ["pod-7"]


def test_a_row_that_has_no_name_is_left_out(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE attachments SET owner = CAST(x'ff' AS TEXT) WHERE container = 'pod-7'")
    database.execute("UPDATE claims SET owner = x'00ff' WHERE value = '10.0.0.9'")
    database.commit()
    database.close()
    rebuilt, found, claims, _ = reopened(path)
    assert rebuilt
    assert len(pods(found)) == COUNT - 1 == len(claims)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_at_all(killed: Path, tmp_path: Path, data) -> None:
    directory = tmp_path / str(time.monotonic_ns())
    shutil.copytree(killed, directory)
    path = directory / "network.db"
    if data.draw(st.booleans(), "checkpoint"):
        checkpoint(path)
    victim = path.with_name(path.name + data.draw(st.sampled_from(["", "-wal"]), "file"))
    content = bytearray(victim.read_bytes() if victim.exists() else b"")
    for _ in range(data.draw(st.integers(1, 4), "places")):
        at = data.draw(st.integers(0, max(0, len(content) - 1)), "at")
        what = data.draw(st.binary(min_size=1, max_size=64), "what")
        if data.draw(st.booleans(), "cut"):
            content = content[:at]
        else:
            content[at : at + len(what)] = what
    victim.write_bytes(content)
    _, found, claims, _ = reopened(path)
    for entry in found.values():
        assert isinstance(entry.owner, str)
    assert len(claims) <= COUNT + 1


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Refuses what is written as a full or read-only disk does."""

    def __init__(self, monkeypatch) -> None:
        self.error: sqlite3.Error | OSError | None = None
        commit, anew = ledger_file.LedgerFile._commit, ledger_file.LedgerFile._make_anew

        def refusing(function):
            def run(one, *arguments):
                if self.error is not None:
                    raise self.error
                return function(one, *arguments)

            return run

        monkeypatch.setattr(ledger_file.LedgerFile, "_commit", refusing(commit))
        monkeypatch.setattr(ledger_file.LedgerFile, "_make_anew", refusing(anew))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EROFS, "read-only"),
        sqlite3.OperationalError("disk I/O error"),
    ],
)
def test_what_is_taken_back_on_a_disk_that_refuses_is_taken_back(path: Path, error, monkeypatch) -> None:
    disk = Disk(monkeypatch)
    ledger = Ledger(path, "boot")
    disk.error = error
    ledger.leave("pods", "pod-1/eth0")
    assert ledger.entry("pods", "pod-1/eth0").leaving
    ledger.forget("pods", "pod-1/eth0")
    assert ledger.release("addresses", "pod-1/eth0") == ["10.0.0.1"]
    assert ledger.entries(container="pod-1") == []
    assert str(error) in ledger.problem
    assert "look at the disk" in ledger.problem
    with pytest.raises(LedgerError, match="look at the disk"):
        ledger.begin(Entry("pods", "n/eth0", "n", {}, {}))
    with pytest.raises(LedgerError):
        ledger.claim("addresses", "10.0.0.1", "n")
    assert ledger.entries(container="n") == []
    disk.error = None
    ledger.retry()
    assert ledger.problem == ""
    ledger.close()
    _, found, claims, _ = reopened(path)
    assert len(pods(found)) == COUNT - 1 == len(claims)


def test_room_is_made_once_for_a_change(path: Path, monkeypatch) -> None:
    disk, given_up = Disk(monkeypatch), []

    def make_room() -> bool:
        given_up.append(True)
        disk.error = None
        return True

    ledger = Ledger(path, "boot", make_room=make_room)
    disk.error = OSError(errno.ENOSPC, "full")
    ledger.claim("addresses", "10.0.0.200", "a")
    assert given_up == [True]
    assert ledger.problem == ""
    ledger.close()


@pytest.mark.node
@pytest.mark.parametrize("whole", [False, True], ids=["killed", "closed"])
def test_a_disk_that_is_full_or_read_only_keeps_nobody_from_starting(
    path: Path, tmp_path: Path, *, whole: bool
) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", mounted], check=True)
    try:
        if whole:
            checkpoint(path)
        for each in path.parent.iterdir():
            if not whole or each.name == path.name:
                shutil.copy(each, mounted)
        filler = os.open(mounted / "filler", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="space"):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
        for options in ((), ("-o", "remount,ro")):
            if options:
                subprocess.run(["mount", *options, mounted], check=True)
            ledger = Ledger(mounted / "network.db", "boot")
            assert len(ledger.entries()) == COUNT
            for number in range(COUNT):
                ledger.leave("pods", f"pod-{number}/eth0")
                ledger.forget("pods", f"pod-{number}/eth0")
                ledger.release("addresses", f"pod-{number}/eth0")
            assert ledger.entries() == []
            if options:
                assert ledger.problem
                with pytest.raises(LedgerError, match="look at the disk"):
                    ledger.claim("addresses", "10.0.0.77", "a")
                subprocess.run(["mount", "-o", "remount,rw,size=16m", mounted], check=True)
                ledger.claim("addresses", "10.0.0.77", "a")
                assert ledger.problem == ""
            ledger.close()
            if not options:  # as it was
                (mounted / "filler").unlink()
                for each in path.parent.iterdir():
                    if not whole or each.name == path.name:
                        shutil.copy(each, mounted)
        again = Ledger(mounted / "network.db", "boot")
        assert again.claims("addresses") == [("10.0.0.77", "a")]
        again.close()
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def test_claims_of_an_earlier_boot_are_gone_for_good(path: Path) -> None:
    ledger = Ledger(path, "next boot")
    assert ledger.claims("addresses") == []
    ledger.close()
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    assert json.loads(database.execute("SELECT result FROM attachments").fetchone()[0]) == {"ips": [0]}
    database.close()
