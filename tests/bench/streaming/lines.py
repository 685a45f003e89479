"""A container that prints as many lines as it can: how fast they reach its log, and whether all do."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from side import MEGABYTE, Side

WIDTH = 100  # bytes of a line, with its newline
_PREFIX = re.compile(  # CRI's log format: time, stream, tag (P is a part of a line, F its last), content
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d) stdout ([PF]) "
)
_POLL = 0.01  # seconds
_PATIENCE = 300.0


def write_lines(path: Path, size: int) -> None:
    """Write SIZE bytes of numbered lines to PATH."""
    filler = b"x" * (WIDTH - 11) + b"\n"
    with path.open("wb") as file:
        file.writelines(b"%09d %s" % (number, filler) for number in range(size // WIDTH))


def log_throughput(side: Side, printed: Path, round_number: int) -> tuple[dict[str, float], int]:
    """Run a container that prints the file; MB/s of its output until it has ended and until all is in the log.

    Also returns the size of the log. Raises RuntimeError if the log is not what was printed.
    """
    name = f"lines-{round_number}"
    container = side.create(name, "cat", f"/data/{printed.name}")
    log = side.logs / f"{name}.log"
    with printed.open("rb") as file:
        file.seek(-WIDTH, 2)
        last_line = file.read()
    begin = time.monotonic()
    side.call("StartContainer", container_id=container)
    while not side.ended(container):
        _wait(begin, side)
    exited = time.monotonic() - begin
    while _tail(log) != last_line:
        _wait(begin, side)
    logged = time.monotonic() - begin
    _check(side.name, log, printed)
    size = log.stat().st_size
    side.call("RemoveContainer", container_id=container)
    log.unlink(missing_ok=True)
    megabytes = printed.stat().st_size / MEGABYTE
    return {"log, to exit": megabytes / exited, "log, to last line": megabytes / logged}, size


def _wait(begin: float, side: Side) -> None:
    if time.monotonic() - begin > _PATIENCE:
        raise RuntimeError(f"{side.name}: the output is not in the log after {_PATIENCE:.0f} s")
    time.sleep(_POLL)


def _tail(log: Path) -> bytes:
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - WIDTH))
        return file.read()


def _check(who: str, log: Path, printed: Path) -> None:
    """Compare what the records say with what was printed, line by line."""
    with printed.open("rb") as expected:
        for number, line in enumerate(_lines(who, log)):
            if line != expected.readline():
                raise RuntimeError(f"{who}: line {number + 1} of {log} is not what was printed: {line!r}")
        if missing := expected.readline():
            raise RuntimeError(f"{who}: {log} ends before {missing!r}")


def _lines(who: str, log: Path) -> Iterator[bytes]:
    parts = b""
    with log.open("rb") as records:
        for record in records:
            prefix = _PREFIX.match(record)
            if prefix is None:
                raise RuntimeError(f"{who}: not a CRI log record: {record!r}")
            content = record[prefix.end() :]
            if prefix[3] == b"P":
                parts += content.removesuffix(b"\n")
            else:
                yield parts + content
                parts = b""
