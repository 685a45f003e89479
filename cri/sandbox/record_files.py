"""A copy of its record in each object's own directory: what the node is rebuilt from when the database is lost or damaged.

It is written when the object is made, before anything of it is there, and says what does not change: who it is, and what was
asked for. What has become of it is told by its warden, its exit record and the network.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from cri.sandbox import small_files, wire
from cri.state.records import Record, columns

R = TypeVar("R", bound=Record)

RECORD_FILE = "record.json"


def write(directory: Path, record: Record) -> None:
    """Write the copy. Blocks. Raises OSError."""
    small_files.write(directory / RECORD_FILE, "".join(_pieces(record)).encode("ascii"))


def read(kind: type[R], directory: Path) -> R:
    """The copy in a directory. Blocks. Raises OSError, ValueError for what is damaged or of a newer release."""
    try:
        values = json.loads(small_files.read(directory / RECORD_FILE))
    except RecursionError as error:
        raise ValueError(str(error)) from None
    return restore(kind, values)


def restore(kind: type[R], values: Any) -> R:
    """The record of values as they are in a file. Raises ValueError."""
    if not isinstance(values, dict) or values.keys() != columns(kind).keys():
        raise ValueError("it has not the fields of this release")
    try:
        for name, (kinds, _) in columns(kind).items():
            if bytes in kinds:
                values[name] = base64.b64decode(values[name], validate=True)
        return kind.made(values).checked()
    except TypeError as error:
        raise ValueError(str(error)) from None


def _pieces(record: Record) -> Iterator[str]:
    """A record as JSON; long values (a spec with ten thousand mounts) in pieces, so that others can run in between."""
    before = "{"
    for name, value in record.values().items():
        yield f"{before}{json.dumps(name)}: "
        before = ", "
        if isinstance(value, bytes):
            yield f'"{base64.b64encode(value).decode("ascii")}"'
        elif isinstance(value, str):
            yield from wire.text_pieces(value)
        else:
            yield json.dumps(value)
    yield "}"
