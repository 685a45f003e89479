"""The schema of the state database, as the steps that lead to it.

`PRAGMA user_version` counts the steps taken. A step is never edited once released: the next release appends another, and
that one only adds (tables, or columns that may be left out), so that the release before can go on with what it leads to.
A test holds the last step against the models in `records.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from cri.state.errors import StateError

Migration = Callable[[sqlite3.Connection], None]


def _create(connection: sqlite3.Connection) -> None:
    """Version 1: sandboxes, containers, images, leases."""
    connection.execute("""
        CREATE TABLE sandboxes (
            id VARCHAR NOT NULL PRIMARY KEY,
            name VARCHAR NOT NULL,
            namespace VARCHAR NOT NULL,
            uid VARCHAR NOT NULL,
            attempt INTEGER NOT NULL,
            state VARCHAR NOT NULL,
            runtime_handler VARCHAR NOT NULL,
            config BLOB NOT NULL,
            created_at INTEGER NOT NULL,
            addresses JSON NOT NULL,
            spec VARCHAR NOT NULL
        )""")
    connection.execute("""
        CREATE TABLE containers (
            id VARCHAR NOT NULL PRIMARY KEY,
            sandbox_id VARCHAR NOT NULL,
            name VARCHAR NOT NULL,
            attempt INTEGER NOT NULL,
            state VARCHAR NOT NULL,
            config BLOB NOT NULL,
            image_id VARCHAR NOT NULL,
            image_ref VARCHAR NOT NULL,
            created_at INTEGER NOT NULL,
            started_at INTEGER NOT NULL,
            finished_at INTEGER NOT NULL,
            pid INTEGER NOT NULL,
            exit_code INTEGER NOT NULL,
            signal INTEGER NOT NULL,
            reason VARCHAR NOT NULL,
            message VARCHAR NOT NULL,
            credentials JSON,
            stop_signal VARCHAR NOT NULL,
            log_path VARCHAR NOT NULL,
            spec VARCHAR NOT NULL
        )""")
    connection.execute("""
        CREATE TABLE images (
            id VARCHAR NOT NULL PRIMARY KEY,
            manifest VARCHAR NOT NULL,
            tags JSON NOT NULL,
            digests JSON NOT NULL,
            size INTEGER NOT NULL,
            chains JSON NOT NULL,
            config VARCHAR NOT NULL,
            user VARCHAR NOT NULL,
            pinned BOOLEAN NOT NULL,
            pulled_at INTEGER NOT NULL
        )""")
    connection.execute("""
        CREATE TABLE leases (
            address VARCHAR NOT NULL PRIMARY KEY,
            network VARCHAR NOT NULL,
            owner VARCHAR NOT NULL
        )""")


def _drop_leases(connection: sqlite3.Connection) -> None:
    """Version 2: addresses are in the network's own ledger, under names that version 1 did not have."""
    connection.execute("DROP TABLE leases")


MIGRATIONS: Sequence[Migration] = (_create, _drop_leases)
"""The step at index N leads from version N to version N + 1."""


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring a database to the newest schema, each step in a transaction of its own; a newer one is left as it is.

    The connection must be in autocommit mode (`isolation_level=None`). Raises StateError when a step cannot be taken,
    with the cause from SQLite; that step is undone, earlier ones stay.
    """
    version = schema_version(connection)
    for number, step in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            step(connection)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StateError(
                    f"cannot bring the state database {path} to version {number}: {error}"
                ) from error
            raise


def schema_version(connection: sqlite3.Connection) -> int:
    """How many steps a database has taken; more than there are, if a newer release has made it."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < 0:
        raise sqlite3.DatabaseError(f"its schema version is {version}")
    return int(version)
