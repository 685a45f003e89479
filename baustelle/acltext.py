"""Access control lists as archives have them: the pax records SCHILY.acl.access, .default (POSIX.1e) and .ace (NFSv4).

Entries are separated by commas or lines: `user:lisa:rw-:502`, `default:group::r-x`, `owner@:rw-p--a:---:allow`. A
number behind the rest is the id; without it the name must be one, as an archive's names mean nothing here.

Format: star(1) "SCHILY.acl.access", acl(5) of libarchive.
"""

import struct
from collections.abc import Iterator

from baustelle.errors import CorruptLayerError

ACCESS, DEFAULT, NFS4 = b"SCHILY.acl.access", b"SCHILY.acl.default", b"SCHILY.acl.ace"
RECORDS = frozenset({ACCESS, DEFAULT, NFS4})

ATTRIBUTES = {ACCESS: b"system.posix_acl_access", DEFAULT: b"system.posix_acl_default"}
"""Where Linux keeps the lists that it knows."""

_TAGS = {b"user": (0x01, 0x02), b"group": (0x04, 0x08), b"mask": (0x10, 0x10), b"other": (0x20, 0x20)}
_SHORT = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}
_NOBODY = 0xFFFFFFFF
_SPECIAL = (b"owner@", b"group@", b"everyone@")


class NamesOnlyError(Exception):
    """An entry tells a name and no id."""


def posix(text: bytes) -> list[tuple[int, int, int]]:
    """(tag, permissions, id) in the numbers and the order of Linux (include/uapi/linux/posix_acl.h).

    Raises CorruptLayerError, NamesOnlyError.
    """
    found = []
    for parts in _entries(text):
        fields = parts[1:] if parts[0] in (b"default", b"d") else parts
        name = _SHORT.get(fields[0], fields[0])
        if name not in _TAGS or len(fields) < 2:
            raise _wrong(text)
        if name in (b"mask", b"other") and len(fields) == 2:
            fields = [name, b"", fields[1]]
        if len(fields) < 3 or fields[2].strip(b"rwx-"):
            raise _wrong(text)
        rights = sum(right for letter, right in ((b"r", 4), (b"w", 2), (b"x", 1)) if letter in fields[2])
        own, other = _TAGS[name]
        if fields[1] and name in (b"user", b"group"):
            found.append((other, rights, _id(fields[1], fields[3:], text)))
        else:
            found.append((own, rights, _NOBODY))
    return sorted(found, key=lambda entry: (entry[0], entry[2]))


def attribute(text: bytes) -> bytes:
    """A POSIX.1e list as the value of Linux' attribute (`posix_acl_xattr_header`). Raises as `posix`."""
    entries = posix(text)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def numeric(text: bytes, *, nfs4: bool) -> bytes:
    """The list in the words of acl_from_text(3), with ids in place of names. Raises as `posix`."""
    if not nfs4:
        words = {0x01: "user:", 0x02: "user:", 0x04: "group:", 0x08: "group:", 0x10: "mask:", 0x20: "other:"}
        lines = []
        for tag, rights, number in posix(text):
            letters = "".join(
                letter if rights & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
            )
            lines.append(f"{words[tag]}{'' if number == _NOBODY else number}:{letters}")
        return ",".join(lines).encode()
    found: list[bytes] = []
    for parts in _entries(text):
        if parts[0] in _SPECIAL and len(parts) == 4:
            found.append(b":".join(parts))
        elif parts[0] in (b"user", b"group") and len(parts) in (5, 6):
            own_id = b"%d" % _id(parts[1], parts[5:], text)
            found.append(b":".join([parts[0], own_id, *parts[2:5]]))
        else:
            raise _wrong(text)
    return b",".join(found)


def _entries(text: bytes) -> Iterator[list[bytes]]:
    for line in text.replace(b"\n", b",").split(b","):
        if entry := line.partition(b"#")[0].strip():
            yield [part.strip() for part in entry.split(b":")]


def _id(name: bytes, behind: list[bytes], text: bytes) -> int:
    number = behind[0] if behind and behind[0] else name
    if not number.isdigit():
        raise NamesOnlyError(name)
    if len(number) > 10 or int(number) >= _NOBODY:
        raise _wrong(text)
    return int(number)


def _wrong(text: bytes) -> CorruptLayerError:
    return CorruptLayerError(f"layer: this is no access control list: {text[:80]!r}")
