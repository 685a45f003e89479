"""What can be read of a database that cannot be used: row by row, past the pages that are damaged."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cri.state import wal
from cri.state.records import RECORDS, Record, table
from cri.state.rows import Content, text

_BLOCK = 64 * 1024
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)
"""Nothing, a broken link, a socket, a device that is not there."""
_MOST_PROBES = 2000
"""Looks into a table between the damaged pages; each takes microseconds."""
_ROWIDS = (-(2**63), 2**63 - 1)


def salvage_file(path: Path) -> Content:
    """What a database and its log hold; neither is changed. A symbolic link is followed, if it leads to anything."""
    try:
        database = read_bytes(path)
        place = path.resolve() if database else path
        image = wal.merged(database, read_bytes(Path(f"{place}-wal")))
    except OSError as error:
        return Content(losses=[f"it cannot be read: {error.strerror}"])
    return salvage(image)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; zeros where the disk fails, nothing where there is no such file. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NO_FILE:
            return b""
        raise
    parts = []
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return b""
        for offset in range(0, found.st_size, _BLOCK):
            try:
                parts.append(os.pread(descriptor, _BLOCK, offset))
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                parts.append(bytes(min(_BLOCK, found.st_size - offset)))
    finally:
        os.close(descriptor)
    return b"".join(parts)


def salvage(image: bytes) -> Content:
    """What a database holds, given as bytes without a log. Never raises for what they are."""
    content = Content()
    if not image:
        return content
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.text_factory = text
        try:
            connection.deserialize(image)
            # So a file that ends early, and a schema of which a part is damaged, can be read as far as they go.
            connection.execute("PRAGMA writable_schema = ON")
        except (sqlite3.Error, MemoryError, OverflowError) as error:
            content.losses.append(str(error))
            return content
        for kind in RECORDS:
            for values in _rows(connection, kind, content):
                content.add(kind, values)
    return content


def _rows(connection: sqlite3.Connection, kind: type[Record], content: Content) -> Iterator[dict[str, Any]]:
    """The rows of a table: upwards to the first damage, downwards to the last, and then by halves in between."""
    name = table(kind).name
    probes = _MOST_PROBES
    gaps = [_ROWIDS]
    damage = ""
    while gaps:
        low, high = gaps.pop()
        whole = (low, high) == _ROWIDS
        found = 0
        for order in ("ASC", "DESC"):
            while low <= high:
                query = (
                    f"SELECT rowid, * FROM {name} WHERE rowid BETWEEN ? AND ? "  # noqa: S608 - our own name
                    f"ORDER BY rowid {order} LIMIT 1"
                )
                try:
                    cursor = connection.execute(query, (low, high))
                    row = cursor.fetchone()
                except (sqlite3.Error, MemoryError, OverflowError) as error:
                    damage = str(error) or type(error).__name__
                    probes -= 1
                    break
                if row is None:
                    low = high + 1
                    break
                rowid, *values = row
                if not isinstance(rowid, int) or not low <= rowid <= high:  # a page that lies about its order
                    damage = "rows are out of order"
                    probes -= 1
                    break
                found += 1
                if order == "ASC":
                    low = rowid + 1
                else:
                    high = rowid - 1
                yield dict(zip([column[0] for column in cursor.description[1:]], values, strict=True))
        if low < high and probes > 0 and (found or not whole):
            middle = (low + high) // 2
            gaps += [(middle + 1, high), (low, middle)]  # the lower one first: ids of rows begin low
    if damage:
        content.losses.append(f"{kind.kind} records: {damage}")
