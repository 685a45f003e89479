"""A reader of tar archives that come as a stream: POSIX pax, GNU and old formats, sparse files.

The standard library's tarfile takes a damaged header in mid-archive for the end of the archive and keeps every
member in memory; a layer must be read wholly or refused. Names stay bytes from the archive to the kernel.

Formats: pax(1) "pax Interchange Format", and "Basic Tar Format" with "Storing Sparse Files" in the
GNU tar manual.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from baustelle.errors import CorruptLayerError

BLOCK = 512

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
_PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK, _GNU_SPARSE = b"g", b"L", b"K", b"S"

MAX_META = 16 * 1024 * 1024
"""The most bytes that a pax header, a long name or a sparse map may have; they are held in memory."""

_XATTR_PREFIX = b"SCHILY.xattr."


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
    extents: list[tuple[int, int]] | None = None
    """(offset, length) of the data in a sparse file; None for all others."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    flags: bytes = b""
    """File flags in the words of chflags(1), `schg,uarch`."""


class ByteReader:
    """Exact reads from an iterator of chunks, with nothing copied that is only passed on."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._view = memoryview(b"")

    def at_end(self) -> bool:
        """Whether no byte is left."""
        while not self._view:
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._view = memoryview(chunk)
        return False

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises CorruptLayerError if the stream ends before."""
        if size <= len(self._view):
            data = self._view[:size].tobytes()
            self._view = self._view[size:]
            return data
        parts: list[bytes] = []
        self.copy(size, lambda view: parts.append(view.tobytes()))
        return b"".join(parts)

    def copy(self, size: int, write: Callable[[memoryview], object]) -> None:
        """Pass the next `size` bytes to `write` in pieces."""
        while size:
            if self.at_end():
                raise CorruptLayerError(f"layer: truncated tar archive: {size} bytes are missing at its end")
            piece = self._view[:size]
            write(piece)
            self._view = self._view[len(piece) :]
            size -= len(piece)

    def skip(self, size: int) -> None:
        """Drop the next `size` bytes."""
        self.copy(size, len)

    def drain(self) -> None:
        """Read to the end."""
        self._view = memoryview(b"")
        for _ in self._chunks:
            pass


class TarStream:
    """Iterate over the entries; `copy_data` gives the data of the entry that came last.

    Reads to the end of the stream, beyond the end of the archive. Raises CorruptLayerError.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._bytes = ByteReader(chunks)
        self._unread = 0
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry
        self._bytes.drain()

    def copy_data(self, size: int, write: Callable[[memoryview], object]) -> None:
        """Pass the next `size` of the entry's `stored` bytes to `write`; what is not asked for is skipped."""
        self._unread -= size
        self._bytes.copy(size, write)

    def _next(self) -> Entry | None:
        self._bytes.skip(self._unread + self._padding)
        self._unread = self._padding = 0
        pax: dict[bytes, bytes] = dict(self._global)
        long_name = long_link = None
        pending = False
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
                pax.update(_parse_pax(self._read_meta(block)))
            elif kind == _PAX_GLOBAL:
                self._global.update(_parse_pax(self._read_meta(block)))
                pax = self._global | pax
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
        if not 0 <= size <= MAX_META:
            raise CorruptLayerError(
                f"layer: an extended tar header of {size} bytes (the limit is {MAX_META})"
            )
        data = self._bytes.read(size)
        self._bytes.skip(-size % BLOCK)
        return data

    def _entry(
        self,
        block: bytes,
        kind: bytes,
        pax: dict[bytes, bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        name = pax.get(b"path") or long_name or _header_name(block)
        link = pax.get(b"linkpath") or long_link or _text(block[157:257])
        if kind in _REGULAR_TYPES:
            kind = DIRECTORY if name.endswith(b"/") else REGULAR  # so did the oldest tars mark directories
        elif kind not in _WITHOUT_DATA and kind != _GNU_SPARSE:
            raise CorruptLayerError(f"layer entry {name!r}: unknown tar entry type {kind!r}")
        size = _pax_int(pax, b"size") if pax.get(b"size") else _number(block[124:136], "size")
        if size < 0:
            raise CorruptLayerError(f"layer entry {name!r}: negative size {size}")
        entry = Entry(
            name=name,
            type=kind,
            mode=_number(block[100:108], "mode") & 0o7777,
            uid=_pax_int(pax, b"uid") if pax.get(b"uid") else _number(block[108:116], "uid"),
            gid=_pax_int(pax, b"gid") if pax.get(b"gid") else _number(block[116:124], "gid"),
            mtime_ns=_time_ns(pax[b"mtime"])
            if pax.get(b"mtime")
            else _number(block[136:148], "mtime") * 10**9,
            link=link,
            device=(0, 0),
            size=size,
            stored=0 if kind in _WITHOUT_DATA else size,
        )
        if kind in {CHAR_DEVICE, BLOCK_DEVICE}:
            entry.device = (_number(block[329:337], "major"), _number(block[337:345], "minor"))
        if pax:
            entry.xattrs = _xattrs(pax)
            entry.flags = pax.get(b"SCHILY.fflags", b"")
        self._unread = entry.stored
        self._padding = -entry.stored % BLOCK
        if kind == _GNU_SPARSE:
            self._old_sparse(block, entry)
        elif kind == REGULAR and pax:
            self._pax_sparse(pax, entry)
        return entry

    def _old_sparse(self, block: bytes, entry: Entry) -> None:
        """GNU's own header: four extents in the header, 21 in each block that extends it."""
        entry.type = REGULAR
        entry.size = _number(block[483:495], "real size")
        numbers: list[int] = []
        table, more = block[386:482], block[482]
        while True:
            for start in range(0, len(table), 24):
                if table[start] == 0:
                    break
                numbers.append(_number(table[start : start + 12], "sparse offset"))
                numbers.append(_number(table[start + 12 : start + 24], "sparse length"))
            if not more:
                break
            extension = self._bytes.read(BLOCK)
            table, more = extension[:504], extension[504]
            if len(numbers) * BLOCK > MAX_META:
                raise CorruptLayerError(f"layer entry {entry.name!r}: the sparse map is too long")
        _set_extents(entry, numbers)

    def _pax_sparse(self, pax: dict[bytes, bytes], entry: Entry) -> None:
        """The three pax encodings of GNU tar, 0.0, 0.1 and 1.0."""
        if pax.get(b"GNU.sparse.name"):
            entry.name = pax[b"GNU.sparse.name"]
        if b"GNU.sparse.map" in pax:  # 0.1, and 0.0 as `_parse_pax` collects it
            entry.size = _pax_int(pax, b"GNU.sparse.size")
            text = pax[b"GNU.sparse.map"]
            _set_extents(entry, [_decimal(part, "sparse map") for part in text.split(b",")] if text else [])
        elif pax.get(b"GNU.sparse.major") == b"1":
            entry.size = _pax_int(pax, b"GNU.sparse.realsize")
            _set_extents(entry, self._sparse_map(entry))

    def _sparse_map(self, entry: Entry) -> list[int]:
        """Format 1.0: before the data, decimal numbers in lines, the first being how many extents follow."""
        data = b""
        expected = None
        while True:
            if len(data) + BLOCK > min(entry.stored, MAX_META):
                raise CorruptLayerError(f"layer entry {entry.name!r}: the sparse map does not end")
            data += self._bytes.read(BLOCK)
            self._unread -= BLOCK
            lines = data.split(b"\n")[:-1]
            if expected is None and lines:
                expected = 1 + 2 * _decimal(lines[0], "sparse map")
            if expected is not None and len(lines) >= expected:
                entry.stored -= len(data)
                return [_decimal(line, "sparse map") for line in lines[1:expected]]


def _set_extents(entry: Entry, numbers: list[int]) -> None:
    if len(numbers) % 2:
        raise CorruptLayerError(f"layer entry {entry.name!r}: the sparse map has an odd number of numbers")
    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
    position = 0
    for offset, length in extents:
        if offset < position or length < 0:
            raise CorruptLayerError(f"layer entry {entry.name!r}: the sparse map is not in order")
        position = offset + length
    if position > entry.size or sum(numbers[1::2]) > entry.stored:
        raise CorruptLayerError(f"layer entry {entry.name!r}: the sparse map is longer than the file")
    entry.extents = extents


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


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise CorruptLayerError(f"layer: {what} is not a number: {text[:40]!r}")
    return int(text)


def _pax_int(pax: dict[bytes, bytes], key: bytes) -> int:
    if key not in pax:
        raise CorruptLayerError(f"layer: the pax record {key.decode()} is missing")
    return _decimal(pax[key], f"pax record {key.decode()}")


def _time_ns(text: bytes) -> int:
    """Decimal seconds to nanoseconds, exactly; digits beyond nanoseconds are dropped."""
    negative = text.startswith(b"-")
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    value = _decimal(whole or b"0", "pax record mtime") * 10**9
    if fraction:
        value += _decimal(fraction[:9].ljust(9, b"0"), "pax record mtime")
    return -value if negative else value


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    r"""Records `length key=value\n`, the length counting itself. Sparse 0.0 repeats keys: joined as 0.1."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        length = _decimal(data[position:space], "pax record length") if space > 0 else 0
        end = position + length
        record = data[space + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(data) or not record.endswith(b"\n") or not equals:
            raise CorruptLayerError(f"layer: damaged pax header near {data[position : position + 40]!r}")
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            sparse.append(value)
        else:
            records[key] = value
        position = end
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def _xattrs(pax: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """SCHILY.xattr (star, GNU, Go, libarchive) holds raw bytes; libarchive's own copy in base64 is redundant."""
    return {key[len(_XATTR_PREFIX) :]: value for key, value in pax.items() if key.startswith(_XATTR_PREFIX)}
