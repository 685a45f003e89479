"""The account files of an image, passwd(5) and group(5), which nobody trusts.

They are read as the C library reads them (glibc's nss_files): a line ends at a newline and nothing else, and counts up to its
first NUL; white space before it is skipped, and so are comments, and lines whose ids are no numbers; what is missing after
the ids is empty; `+` and `-` at the beginning are NIS's, and nobody's name; of several lines for a name or an id, the first
counts.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cri.sandbox.host import StartError

MAX_FILE = 16 * 1024 * 1024
"""Bytes of an account file; nobody has more than a few hundred thousand accounts."""
MAX_ID = 2**32 - 2
"""The highest id: setuid(2) takes the next one for "leave it as it is"."""

Opener = Callable[[str], int]
"""Opens a file of the image for reading, by its absolute path there. Raises OSError."""

_SPACE = b" \t\n\v\f\r"
_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)(\d+)")
_NO_ID = MAX_ID + 1
_DIGITS = 10
"""As many as an id has at most; Python refuses to read numbers of thousands of them."""


@dataclass(frozen=True, slots=True)
class User:
    """A line of /etc/passwd."""

    name: str
    uid: int
    """Up to 2**32 - 1, which is no id: what is larger in the file, strtoul(3) would make that."""
    gid: int
    home: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accounts:
    """Both files."""

    passwd: bytes = b""
    group: bytes = b""

    def users(self) -> Iterator[User]:
        """The lines of passwd that count."""
        for fields in _lines(self.passwd, 7):
            uid, gid = _number(fields[2:3]), _number(fields[3:4])
            if uid is not None and gid is not None:
                yield User(_text(fields[0]), uid, gid, _text(fields[5]) if len(fields) > 5 else "")

    def groups(self) -> Iterator[Group]:
        """The lines of group that count."""
        for fields in _lines(self.group, 4):
            gid = _number(fields[2:3])
            if gid is not None:
                members = fields[3].split(b",") if len(fields) > 3 else ()
                stripped = (member.lstrip(_SPACE) for member in members)
                yield Group(_text(fields[0]), gid, tuple(_text(member) for member in stripped if member))


def number(text: str) -> int | None:
    """The id that a user or group is asked for by; None for a name. May be out of range.

    Digits are a number whatever name an account has (CVE-2016-3697). Signs, blanks and prefixes make no number.
    """
    if not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS else _NO_ID


def read(opener: Opener | None = None) -> Accounts:
    """The account files below the current root. One that is missing or no file is empty.

    Raises StartError for one that is too large to be read.
    """
    opener = opener or _open
    return Accounts(_read(opener, "/etc/passwd"), _read(opener, "/etc/group"))


def read_copies(copies: Mapping[str, int]) -> Accounts:
    """The same, from copies that are open, by the paths of what they are copies of. Raises StartError."""

    def rewound(path: str) -> int:
        copy = os.dup(copies[path])
        os.lseek(copy, 0, os.SEEK_SET)
        return copy

    return read(rewound)


def _lines(data: bytes, most: int) -> Iterator[list[bytes]]:
    """The fields of each line that is for files; the last may have colons."""
    for line in io.BytesIO(data):
        line = line.rstrip(b"\n").partition(b"\0")[0].lstrip(_SPACE)  # noqa: PLW2901
        if line and not line.startswith((b"#", b"+", b"-")):
            yield line.split(b":", most - 1)


def _number(field: list[bytes]) -> int | None:
    """A field as strtoul(3) reads it, of 32 bits; None if it is no number."""
    if not field or (found := _NUMBER.fullmatch(field[0])) is None:
        return None
    value = number(found[2].decode())
    return min(value or 0, _NO_ID) if found[1] != b"-" or value == 0 else _NO_ID


def _text(field: bytes) -> str:
    return field.decode(errors="surrogateescape")


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _read(opener: Opener, path: str) -> bytes:
    try:
        fd = opener(path)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        with os.fdopen(fd, "rb", closefd=False) as file:
            # Not by its size, which a file of another filesystem may not tell, or which may grow.
            data = file.read(MAX_FILE + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_FILE:
        # Not a part of it: the last line might be cut into another one.
        raise StartError(
            "read", path, f"it has more than {MAX_FILE >> 20} MiB; make the image with a shorter one"
        )
    return data
