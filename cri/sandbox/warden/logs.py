"""Container logs in the CRI format: one record per line, `TIMESTAMP STREAM TAG TEXT`.

TIMESTAMP is RFC 3339 with nanoseconds in UTC, STREAM is stdout or stderr, TAG is F for a line that ended there and P for a
part of a line that goes on in the next record of the stream (kubelet: pkg/kubelet/kuberuntime/logs). `Framer` is the pure codec, `LogFile`
puts its records on disk.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator

from cri.sandbox.warden.journal import warn

LOG_FLAGS = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
)
"""How a log is opened: a FIFO or a device in its place must neither be waited for nor become a terminal of ours."""
LOG_MODE = 0o640
MAX_TEXT = 16 * 1024
"""Bytes of text in one record; a longer line is split."""


class Framer:
    """Turns what one stream of a container writes into records."""

    def __init__(self, stream: str) -> None:
        self._stream = stream.encode()
        self._rest = b""

    def feed(self, data: bytes, now: int) -> bytes:
        """The records that are complete with `data`, stamped `now` (nanoseconds since the epoch).

        The part of a line that waits for its end is kept, never more than `MAX_TEXT` of it.
        """
        full, partial = self._prefixes(now)
        end = data.rfind(b"\n")
        if end >= 0 and self._all_fit(data, end):
            # What nearly every read holds, without touching each of its lines.
            rest, self._rest = self._rest, data[end + 1 :]
            return b"".join((full, rest, data[:end].replace(b"\n", b"\n" + full), b"\n"))
        *lines, self._rest = (self._rest + data).split(b"\n")
        records = b"".join(_split(line, full, partial) for line in lines)
        if len(self._rest) > MAX_TEXT:
            cut = len(self._rest) - (len(self._rest) - 1) % MAX_TEXT - 1
            records += b"".join(partial + part + b"\n" for part in _parts(self._rest[:cut]))
            self._rest = self._rest[cut:]
        return records

    def flush(self, now: int) -> bytes:
        """The record of a last line that never ended, if there is one."""
        rest, self._rest = self._rest, b""
        return self._prefixes(now)[1] + rest + b"\n" if rest else b""

    def _all_fit(self, data: bytes, end: int) -> bool:
        """Whether no line is longer than `MAX_TEXT`. `end` is where the last one ends in `data`."""
        start = data.find(b"\n") + 1
        if len(self._rest) + start - 1 > MAX_TEXT or len(data) - end - 1 > MAX_TEXT:
            return False
        while end - start > MAX_TEXT:
            found = data.rfind(b"\n", start, start + MAX_TEXT + 1)
            if found < 0:
                return False
            start = found + 1
        return True

    def _prefixes(self, now: int) -> tuple[bytes, bytes]:
        stamp = timestamp(now) + b" " + self._stream
        return stamp + b" F ", stamp + b" P "


def timestamp(now: int) -> bytes:
    """Nanoseconds since the epoch as RFC 3339."""
    seconds, nanoseconds = divmod(now, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % nanoseconds


class LogFile:
    """A container's log on disk, with one writer, so that no two records mix.

    A disk that is full or broken must not stop the container: records that cannot be written are dropped and counted, and
    a record on stderr tells of them as soon as writing works again. (A disk that stalls without an error stalls the
    container's output once the pipe is full; nobody can write around that.)
    """

    def __init__(self, path: str, given: int | None = None) -> None:
        """Take a copy of the open log `given` (`cri.sandbox.container_log`), or open it by its path. Raises OSError."""
        self.path = path
        self.dropped = 0
        self._reason = ""
        self._file = _open(path) if given is None else os.dup(given)

    def write(self, records: bytes) -> None:
        """Append whole records."""
        if self.dropped:
            note = f"cri-jails: {self.dropped} bytes of this log were lost: {self._reason}".encode()
            record = timestamp(time.time_ns()) + b" stderr F " + note + b"\n"
            if self._append(record) < len(record):
                self.dropped += len(records)
                return
            self.dropped = 0
            self._reason = ""
        self.dropped += len(records) - self._append(records)

    def reopen(self, given: int | None = None) -> None:
        """Go on with a copy of `given`, or with what is at the path by now, as after a rotation.

        Raises OSError, and goes on with the old file then.
        """
        old, self._file = self._file, _open(self.path) if given is None else os.dup(given)
        os.close(old)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, records: bytes) -> int:
        """Write as many whole records as possible. Returns how many bytes that is."""
        written = 0
        try:
            while written < len(records):
                written += os.write(self._file, memoryview(records)[written:])
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._reason:
                self._reason = reason
                warn(f"cannot write log {self.path}: {reason}; output is dropped")
            return self._cut(records, written)
        return written

    def _cut(self, records: bytes, written: int) -> int:
        """Take back what was written of a record that is not whole."""
        whole = records.rfind(b"\n", 0, written) + 1
        try:
            if written > whole:
                os.ftruncate(self._file, os.fstat(self._file).st_size - (written - whole))
        except OSError as error:
            warn(f"cannot truncate log {self.path}, which has half a record now: {error.strerror}")
        return whole


def _open(path: str) -> int:
    """For a daemon of an older release, which leaves opening to the warden."""
    descriptor = os.open(path, LOG_FLAGS, LOG_MODE)
    try:
        check_log(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_log(descriptor: int, path: str) -> None:
    """Raise OSError unless a regular file is open: anything else could hold the warden whenever it writes."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def _parts(text: bytes) -> Iterator[bytes]:
    return (text[start : start + MAX_TEXT] for start in range(0, len(text), MAX_TEXT))


def _split(line: bytes, full: bytes, partial: bytes) -> bytes:
    *parts, last = _parts(line) if line else (b"",)
    return b"".join(partial + part + b"\n" for part in parts) + full + last + b"\n"
