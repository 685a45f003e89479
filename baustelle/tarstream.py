"""A reader of tar archives that come as a stream: POSIX pax, GNU and old formats, sparse files.

The standard library's tarfile takes a damaged header in mid-archive for the end of the archive and keeps every
member in memory; a layer must be read wholly or refused. Names stay bytes from the archive to the kernel.

Formats: pax(1) "pax Interchange Format", and "Basic Tar Format" with "Storing Sparse Files" in the
GNU tar manual.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from baustelle import sparse
from baustelle.bytereader import ByteReader
from baustelle.errors import CorruptLayerError
from baustelle.pax import FLAGS, MAJOR, MAX_GLOBAL, MAX_META, MINOR, SPARSE_MAP, PaxRecords, parse_pax
from baustelle.sparse import BLOCK

REGULAR, HARD_LINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)

_REGULAR_TYPES = frozenset({REGULAR, b"\0", b"7"})  # "7" is a contiguous file, kept like any other
_WITHOUT_DATA = frozenset({HARD_LINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO})
_PAX_LOCAL = frozenset({b"x", b"X"})  # "X" is Solaris' spelling
_SHOWN = 300  # bytes of a name in a message
_PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK, _GNU_SPARSE = b"g", b"L", b"K", b"S"

_NONE: Mapping[bytes, bytes] = MappingProxyType(
    {}
)  # of a hundred thousand directories nobody needs as many dicts


@dataclass(slots=True)
class Entry:
    """One file of the archive."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: bytes
    device: tuple[int, int]
    """Major and minor number."""
    size: int
    """Length of the file in bytes, holes included."""
    stored: int
    """Bytes of data that follow in the archive."""
    extents: sparse.Extents | None = None
    """Where the data is in a sparse file; None for all others."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)
    flags: bytes = b""
    """File flags in the words of chflags(1), `schg,uarch`."""
    acls: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)
    """Access control lists, see `baustelle.acltext`."""


class TarStream:
    """Iterate over the entries; `copy_data` gives the data of the entry that came last.

    Reads to the end of the stream, beyond the end of the archive. Raises CorruptLayerError.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._bytes = ByteReader(chunks, "tar archive")
        self._unread = 0
        self._padding = 0
        self._meta = 0
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry
        self._bytes.drain()

    @property
    def position(self) -> int:
        """How many bytes of the archive were read until now."""
        return self._bytes.position

    def copy_data(self, size: int, write: Callable[[memoryview], object]) -> None:
        """Pass the next `size` of the entry's `stored` bytes to `write`; what is not asked for is skipped."""
        self._unread -= size
        self._bytes.copy(size, write)

    def _next(self) -> Entry | None:
        self._bytes.skip(self._unread + self._padding)
        self._unread = self._padding = 0
        pax = PaxRecords(self._global)
        long_name = long_link = None
        pending = False
        self._meta = 0
        while True:
            block = b"" if self._bytes.at_end() else self._bytes.read(BLOCK)
            if block.count(0) == len(block):
                if pending:
                    raise CorruptLayerError(
                        "layer: the tar archive ends between an extended header and its file"
                    )
                return None
            _check(block)
            kind = block[156:157]
            if kind in _PAX_LOCAL:
                pax.add(parse_pax(self._read_meta(block)))
            elif kind == _PAX_GLOBAL:
                self._global.update(parse_pax(self._read_meta(block)))
                if sum(map(len, (*self._global, *self._global.values()))) > MAX_GLOBAL:
                    raise CorruptLayerError(
                        f"layer: pax headers for the whole archive with more than {MAX_GLOBAL} bytes"
                    )
                self._meta = 0
                continue
            elif kind == _GNU_LONG_NAME:
                long_name = self._read_meta(block).partition(b"\0")[0]
            elif kind == _GNU_LONG_LINK:
                long_link = self._read_meta(block).partition(b"\0")[0]
            else:
                return self._entry(block, kind, pax, long_name, long_link)
            pending = True

    def _read_meta(self, block: bytes) -> bytes:
        size = _number(block[124:136], "size")
        self._meta += size
        if size < 0 or self._meta > MAX_META:
            raise CorruptLayerError(
                f"layer: extended tar headers of {self._meta} bytes (the limit is {MAX_META})"
            )
        data = self._bytes.read(size)
        self._bytes.skip(-size % BLOCK)
        return data

    def _entry(
        self,
        block: bytes,
        kind: bytes,
        pax: PaxRecords,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        name = pax.text(b"path") or long_name or _header_name(block)
        link = pax.text(b"linkpath") or long_link or _text(block[157:257])
        if kind in _REGULAR_TYPES:
            kind = DIRECTORY if name.endswith(b"/") else REGULAR  # so did the oldest tars mark directories
        elif kind not in _WITHOUT_DATA and kind != _GNU_SPARSE:
            raise CorruptLayerError(f"layer entry {name[:_SHOWN]!r}: unknown tar entry type {kind!r}")
        size = pax.integer(b"size") if pax.text(b"size") else _number(block[124:136], "size")
        if size < 0:
            raise CorruptLayerError(f"layer entry {name[:_SHOWN]!r}: negative size {size}")
        entry = Entry(
            name=name,
            type=kind,
            mode=_number(block[100:108], "mode") & 0o7777,
            uid=pax.integer(b"uid") if pax.text(b"uid") else _number(block[108:116], "uid"),
            gid=pax.integer(b"gid") if pax.text(b"gid") else _number(block[116:124], "gid"),
            mtime_ns=pax.time_ns(b"mtime")
            if pax.text(b"mtime")
            else _number(block[136:148], "mtime") * 10**9,
            link=link,
            device=(0, 0),
            size=size,
            stored=0 if kind in _WITHOUT_DATA else size,
        )
        if kind in {CHAR_DEVICE, BLOCK_DEVICE}:
            entry.device = (_number(block[329:337], "major"), _number(block[337:345], "minor"))
        if pax:
            entry.xattrs = pax.xattrs() or _NONE
            entry.acls = pax.acls() or _NONE
            entry.flags = pax.text(FLAGS)
            if pax.text(MAJOR) and pax.text(MINOR):  # numbers that eight octal digits do not hold
                entry.device = (pax.integer(MAJOR), pax.integer(MINOR))
        self._unread = entry.stored
        self._padding = -entry.stored % BLOCK
        try:
            if kind == _GNU_SPARSE:
                self._old_sparse(block, entry)
            elif kind == REGULAR and pax:
                self._pax_sparse(pax, entry)
        except CorruptLayerError as error:
            raise CorruptLayerError(f"layer entry {entry.name[:_SHOWN]!r}: {error}") from error
        return entry

    def _old_sparse(self, block: bytes, entry: Entry) -> None:
        """GNU's own header: four extents in the header, 21 in each block that extends it."""
        entry.type = REGULAR
        entry.size = _number(block[483:495], "real size")

        def numbers() -> Iterator[int]:
            table, more, length = block[386:482], block[482], 0
            yield from sparse.pairs_in_header(table, _number)
            while more:
                if (length := length + BLOCK) > MAX_META:
                    raise CorruptLayerError("the sparse map is too long")
                extension = self._bytes.read(BLOCK)
                table, more = extension[:504], extension[504]
                yield from sparse.pairs_in_header(table, _number)

        _set_extents(entry, sparse.extents(numbers(), entry.size))

    def _pax_sparse(self, pax: PaxRecords, entry: Entry) -> None:
        """The three pax encodings of GNU tar, 0.0, 0.1 and 1.0."""
        entry.name = pax.text(b"GNU.sparse.name") or entry.name
        if SPARSE_MAP in pax:  # 0.1, and 0.0 as `parse_pax` collects it
            entry.size = pax.integer(b"GNU.sparse.size")
            numbers = sparse.numbers_in_text(pax.text(SPARSE_MAP))
            _set_extents(entry, sparse.extents(numbers, entry.size))
        elif pax.text(b"GNU.sparse.major") == b"1":
            entry.size = pax.integer(b"GNU.sparse.realsize")
            reader = sparse.MapReader(entry.stored, self._bytes.read)
            found = sparse.extents(reader.numbers(), entry.size)
            entry.stored -= reader.length
            self._unread -= reader.length
            _set_extents(entry, found)


def _set_extents(entry: Entry, extents: sparse.Extents) -> None:
    entry.extents = extents
    if extents.stored() > entry.stored:
        raise CorruptLayerError("the sparse map is longer than the file")


def _check(block: bytes) -> None:
    """The checksum counts the header's bytes with its own field as spaces; some old tars add them signed."""
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    stored = _number(block[148:156], "checksum")
    if stored != unsigned:
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if stored != signed:
            raise CorruptLayerError(
                "layer: not a tar archive, or damaged: a header's checksum does not match"
            )


def _header_name(block: bytes) -> bytes:
    name = _text(block[:100])
    if block[257:263] == b"ustar\0":
        # star uses the end of the prefix for times and says so in the last four bytes
        prefix = _text(block[345 : 476 if block[508:] == b"tar\0" else 500])
        if prefix:
            return prefix + b"/" + name
    return name


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _number(raw: bytes, what: str) -> int:
    """Octal text, or GNU's base-256 when the first bit is set (two's complement after it)."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=False) & ~(0x80 << 8 * (len(raw) - 1))
        return value - (1 << 8 * len(raw) - 1) if raw[0] & 0x40 else value
    digits = raw.partition(b"\0")[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise CorruptLayerError(f"layer: the tar header field {what} is not a number: {raw!r}") from None
