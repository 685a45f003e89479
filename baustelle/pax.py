"""The extended headers of tar archives (pax(1), "pax Interchange Format"), as far as an unpacked file depends on them."""

from collections.abc import Mapping

from baustelle.errors import CorruptLayerError

MAX_META = 1024 * 1024
"""The most bytes that all extended headers of one entry may have, or a sparse map; they are held in memory.

As in Go's archive/tar (maxSpecialFileSize), which has written most layers, and refuses more."""

MAX_GLOBAL = 64 * 1024
"""The most bytes of global records that are kept: each of them is looked at for every entry that follows."""

SPARSE_MAP = b"GNU.sparse.map"
XATTR_PREFIX = b"SCHILY.xattr."
FLAGS = b"SCHILY.fflags"

_SPARSE_PARTS = frozenset({b"GNU.sparse.offset", b"GNU.sparse.numbytes"})
_KEPT = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", FLAGS})
_KEPT_PREFIXES = (b"GNU.sparse.", XATTR_PREFIX)


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
        """SCHILY.xattr (star, GNU, Go, libarchive) holds raw bytes; libarchive's own copy in base64 is redundant."""
        return {
            key[len(XATTR_PREFIX) :]: value
            for records in (self._everywhere, self._own)
            for key, value in records.items()
            if key.startswith(XATTR_PREFIX)
        }


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
