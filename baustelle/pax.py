"""The extended headers of tar archives (pax(1), "pax Interchange Format"), as far as an unpacked file depends on them."""

import base64
import binascii
import urllib.parse
from collections.abc import Mapping

from baustelle import acltext
from baustelle.errors import CorruptLayerError

MAX_META = 1024 * 1024
"""The most bytes that all extended headers of one entry may have, or a sparse map; they are held in memory.

As in Go's archive/tar (maxSpecialFileSize), which has written most layers, and refuses more."""

MAX_GLOBAL = 64 * 1024
"""The most bytes of global records that are kept: each of them is looked at for every entry that follows."""

SPARSE_MAP = b"GNU.sparse.map"
XATTR_PREFIX = b"SCHILY.xattr."
LIBARCHIVE_PREFIX = b"LIBARCHIVE.xattr."
FLAGS = b"SCHILY.fflags"
MAJOR, MINOR = b"SCHILY.devmajor", b"SCHILY.devminor"

_SPARSE_PARTS = frozenset({b"GNU.sparse.offset", b"GNU.sparse.numbytes"})
_KEPT = (
    frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", FLAGS, MAJOR, MINOR})
    | acltext.RECORDS
)
_KEPT_PREFIXES = (b"GNU.sparse.", XATTR_PREFIX, LIBARCHIVE_PREFIX)


class PaxRecords:
    """The records that hold for one entry: its own before those of the whole archive."""

    def __init__(self, everywhere: Mapping[bytes, bytes]) -> None:
        self._everywhere = everywhere
        self._own: dict[bytes, bytes] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._own or key in self._everywhere

    def __bool__(self) -> bool:
        return bool(self._own or self._everywhere)

    def add(self, records: Mapping[bytes, bytes]) -> None:
        """Take records of the entry's own."""
        self._own.update(records)

    def text(self, key: bytes) -> bytes:
        """A record's value; empty if there is none, or if it takes back one for the whole archive."""
        found = self._own.get(key)
        return self._everywhere.get(key, b"") if found is None else found

    def integer(self, key: bytes) -> int:
        """A record that must be there. Raises CorruptLayerError."""
        if key not in self:
            raise CorruptLayerError(f"layer: the pax record {key.decode()} is missing")
        return decimal(self.text(key), f"pax record {key.decode()}")

    def time_ns(self, key: bytes) -> int:
        """Decimal seconds as nanoseconds, exactly; digits beyond nanoseconds are dropped. Raises CorruptLayerError."""
        text = self.text(key)
        whole, _, fraction = text.lstrip(b"-").partition(b".")
        value = decimal(whole or b"0", f"pax record {key.decode()}") * 10**9
        if fraction:
            value += decimal(fraction[:9].ljust(9, b"0"), f"pax record {key.decode()}")
        return -value if text.startswith(b"-") else value

    def xattrs(self) -> dict[bytes, bytes]:
        """SCHILY.xattr (star, GNU, Go, libarchive) holds raw bytes; LIBARCHIVE.xattr the same in base64, under a quoted name.

        Raises CorruptLayerError.
        """
        found: dict[bytes, bytes] = {}
        for prefix, read in ((LIBARCHIVE_PREFIX, _libarchive), (XATTR_PREFIX, _plain)):
            for records in (self._everywhere, self._own):
                for key, value in records.items():
                    if key.startswith(prefix):
                        name, data = read(key[len(prefix) :], value)
                        found[name] = data
        return found

    def acls(self) -> dict[bytes, bytes]:
        """The texts of access control lists, by record (`baustelle.acltext`)."""
        return {key: text for key in acltext.RECORDS if (text := self.text(key))}


def _plain(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return name, value


def _libarchive(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    try:  # libarchive leaves the padding out
        data = base64.b64decode(value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), validate=True)
    except binascii.Error as error:
        raise CorruptLayerError(
            f"layer: the pax record {LIBARCHIVE_PREFIX + name[:80]!r} is no base64"
        ) from error
    return urllib.parse.unquote_to_bytes(name), data


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    r"""Records `length key=value\n`, the length counting itself; what no file depends on is left out.

    Sparse 0.0 repeats keys: joined as 0.1. Raises CorruptLayerError.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        length = decimal(data[position:space], "pax record length") if space > 0 else 0
        end = position + length
        record = data[space + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(data) or not record.endswith(b"\n") or not equals:
            raise CorruptLayerError(f"layer: damaged pax header near {data[position : position + 40]!r}")
        if key in _SPARSE_PARTS:
            sparse.append(value)
        elif key in _KEPT or key.startswith(_KEPT_PREFIXES):
            records[key] = value
        position = end
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


def decimal(text: bytes, what: str) -> int:
    """A number that is not negative. Raises CorruptLayerError."""
    if not text.isdigit() or len(text) > 20:
        raise CorruptLayerError(f"layer: {what} is not a number: {text[:40]!r}")
    return int(text)
