"""Archives that are made to reach outside, or to be read in two ways: each is refused with its reason, and the store is clean."""

from __future__ import annotations

import gzip
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from baustelle.bounds import Bounds
from baustelle.errors import UnpackError
from cri.images import ImageStore
from cri.state import Store
from registratur import Client, ContentStore, DigestMismatchError, Platform
from tests.images import snapshotters
from tests.images.hostile import Hostile, diff_id, member, repeated, served

LINK, SYMLINK, DIRECTORY = tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE
END = bytes(1024)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    body = b""
    for record in records:
        length = len(record) + 3
        while len(line := b"%d %s\n" % (length, record)) != length:
            length = len(line)
        body += line
    return member("header", body, type=kind)


def changed(header: bytes, place: int, value: bytes) -> bytes:
    """A member with some bytes of its header replaced, and the checksum put right."""
    block = bytearray(header[:512])
    block[place : place + len(value)] = value
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    return bytes(block) + header[512:]


def symlink(name: str, target: str) -> bytes:
    return member(name, type=SYMLINK, linkname=target)


def link(name: str, target: str) -> bytes:
    return member(name, type=LINK, linkname=target)


def sparse(numbers: str, size: int = 10_000) -> bytes:
    records = [f"GNU.sparse.size={size}".encode(), f"GNU.sparse.map={numbers}".encode()]
    return pax(*records) + member("f", bytes(512))


GOOD = member("f", b"x")
GZIPPED = gzip.compress(GOOD + END)
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(GOOD + END)
SUM = "checksum"

REFUSED: dict[str, tuple[bytes, str]] = {
    # Hard links to what is outside
    "a link to the node's accounts": (link("h", "/etc/passwd"), "target"),
    "a link upwards": (link("h", "../../../../etc/passwd"), "target"),
    "a link to the outside by its path": (link("h", "OUTSIDE/secret"), "target"),
    "a link through a symlink": (symlink("d", "OUTSIDE") + link("h", "d/secret"), "target"),
    "a link through a relative symlink": (
        symlink("d", "../../../../..") + link("h", "d/etc/passwd"),
        "target",
    ),
    "a link through two symlinks": (
        symlink("a", "/b") + symlink("b", "OUTSIDE") + link("h", "a/secret"),
        "target",
    ),
    "a link to /proc/self/root": (symlink("p", "/proc/self/root") + link("h", "p/etc/passwd"), "target"),
    "a link to /proc/self/fd": (link("h", "/proc/self/fd/0"), "target"),
    "a link to the root": (link("h", "/"), "root"),
    "a link to a directory": (member("d", type=DIRECTORY) + link("h", "d"), "directory"),
    "a link to nothing": (link("h", ""), "root"),
    "a link to itself, first": (link("h", "h"), "target"),
    "a link below a file": (GOOD + link("h", "f/x"), "ot a directory"),
    "a link to what was replaced": (
        member("d/f") + symlink("d", "OUTSIDE") + link("h", "d/secret"),
        "target",
    ),
    # Ways that lead in circles, or nowhere
    "a symlink to itself": (symlink("s", "s") + member("s/f"), "oo many"),
    "symlinks in a circle": (symlink("a", "b") + symlink("b", "a") + member("a/f"), "oo many"),
    "a symlink that grows": (symlink("s", "s/x") + member("s/f"), "oo many"),
    "a file as a directory": (GOOD + member("f/x"), "ot a directory"),
    "a FIFO as a directory": (member("p", type=tarfile.FIFOTYPE) + member("p/x"), "ot a directory"),
    "a name that is too long": (pax(b"path=" + b"n/" * 2100 + b"f") + member("f"), "too long"),
    "a part that is too long": (pax(b"path=" + b"n" * 300) + member("f"), "too long"),
    "a NUL byte in a name": (pax(b"path=a\0b") + member("f"), "null character"),
    "a NUL byte in a link": (
        pax(b"linkpath=a\0b") + member("s", type=SYMLINK, linkname="x"),
        "null character",
    ),
    "a target that is too long": (pax(b"linkpath=" + b"t" * 5000) + member("s", type=SYMLINK), "too long"),
    "a file in place of the root": (member("a/.."), "root"),
    "a symlink in place of the root": (symlink("./", "OUTSIDE"), "root"),
    "a link in place of the root": (GOOD + link(".", "f"), "root"),
    # Deletions of what is above
    "a whiteout of nothing": (member(".wh."), "whiteout"),
    "a whiteout of .": (member("d/.wh.."), "whiteout"),
    "a whiteout of ..": (member(".wh..."), "whiteout"),
    "a whiteout of .. through a symlink": (symlink("s", "OUTSIDE") + member("s/.wh..."), "whiteout"),
    # Headers that lie
    "a wrong checksum": (b"x" + GOOD[1:], SUM),
    "no archive": (b"<html>not found</html>" * 100, SUM),
    "rubbish behind the first entry": (GOOD + b"r" * 1024, SUM),
    "an unknown type": (member("f", type=b"Z"), "type"),
    "a negative size": (changed(member("f"), 124, b"\xff" * 12), "negative"),
    "a size that is no number": (changed(member("f"), 124, b"12345678z\0"), "number"),
    "a mode that is no number": (changed(member("f"), 100, b"rwxr-x\0\0"), "number"),
    "a size beyond the end": (member("f", b"x", size=1 << 33), "truncated"),
    "an owner that cannot be": (member("f", uid=2**32 - 1), "owner"),
    "a negative owner": (changed(member("f"), 108, b"\xff" * 8), "owner"),
    "a directory of such an owner": (member("d", type=DIRECTORY, gid=2**32), "owner"),
    "a time beyond all times": (pax(b"mtime=99999999999999999999") + member("f"), "'f'"),
    "a time that is none": (pax(b"mtime=yesterday") + member("f"), "number"),
    "a size in words": (pax(b"size=ten") + member("f"), "number"),
    "an end in mid-header": (GOOD + GOOD[:300], "truncated"),
    "an end behind an extended header": (pax(b"path=x"), "between"),
    # Extended headers
    "a record that is too long": (member("h", b"99 path=x\n", type=b"x") + GOOD, "pax"),
    "a record of length 0": (member("h", b"0 path=x\n", type=b"x") + GOOD, "pax"),
    "a record without a line's end": (member("h", b"9 path=xy", type=b"x") + GOOD, "pax"),
    "a record without a key": (member("h", b"6 abc\n", type=b"x") + GOOD, "pax"),
    "a header of 2 MiB": (member("h", bytes(2 << 20), type=b"x") + GOOD, "limit"),
    "a header of 8 GiB": (member("h", size=1 << 33, type=b"x"), "limit"),
    "a long name of 8 GiB": (member("h", size=1 << 33, type=b"L"), "limit"),
    "global records without end": (pax(b"path=" + b"x" * 70_000, kind=b"g") * 2 + GOOD, "whole archive"),
    "no list of rights": (pax(b"SCHILY.acl.access=user::rwx,who") + member("f"), "access control"),
    "no base64": (pax(b"LIBARCHIVE.xattr.user.x=!") + member("f"), "base64"),
    # Sparse files
    "a sparse map backwards": (sparse("512,10,0,10"), "order"),
    "a sparse map beyond the file": (sparse("0,512,9999,512"), "longer"),
    "a sparse map of more than there is": (sparse("0,512,1024,512"), "longer"),
    "an odd sparse map": (sparse("0,512,1024"), "odd"),
    "a sparse map of letters": (sparse("a,b"), "number"),
    "a sparse file larger than any": (sparse("0,512", 2**63), "'f'"),
    "a sparse map without an end": (
        pax(b"GNU.sparse.major=1", b"GNU.sparse.realsize=9") + member("f", b"99\n" + b"1" * 509),
        "does not end",
    ),
    # Compression
    "gzip, cut": (GZIPPED[:-9], "truncated"),
    "gzip, a wrong checksum": (GZIPPED[:-8] + struct.pack("<I", 1) + GZIPPED[-4:], "gzip"),
    "gzip, rubbish behind it": (GZIPPED + b"rubbish", "gzip"),
    "gzip in gzip": (gzip.compress(GZIPPED), "truncated"),
    "zstd, cut": (ZSTD[:-5], "truncated"),
    "zstd, a wrong checksum": (ZSTD[:-1] + bytes([ZSTD[-1] ^ 1]), "zstd"),
    "zstd, rubbish behind it": (ZSTD + b"rubbish", "zstd"),
    "zstd, a block of an unknown type": (b"\x28\xb5\x2f\xfd\x00\x50" + b"\x07\x00\x00", "zstd"),
    "zstd, a window of 1 GiB": (repeated(1000, 30), "image.max_zstd_window"),
    "zstd, a dictionary that nobody has": (b"\x28\xb5\x2f\xfd\x01\x50\x07" + b"\x01\x00\x00", "zstd"),
    # Too much
    "too many entries": (b"".join(member(f"f{number}") for number in range(101)), "image.max_entries"),
    "too many bytes": (gzip.compress(member("f", bytes(5 << 20))), "image.max_unpacked_bytes"),
}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """What nothing may reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("untouched")
    before = (folder.stat(), (folder / "secret").stat(), Path("/etc/passwd").stat())
    yield folder
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == "untouched"
    after = (folder.stat(), (folder / "secret").stat(), Path("/etc/passwd").stat())
    for one, other in zip(before, after, strict=True):
        assert (one.st_mode, one.st_nlink, one.st_mtime_ns, one.st_ctime_ns) == (
            other.st_mode,
            other.st_nlink,
            other.st_mtime_ns,
            other.st_ctime_ns,
        )


async def pull(base: Path, kind: str, layer: bytes) -> str:
    """What a pull says of an image with a good layer, this one, and another good one; nothing of it is left."""
    state = base / "state"
    state.mkdir()
    store = await Store.open(state / "state.db")
    snapshots = snapshotters.make(state, kind)
    with served(Hostile(base)) as registry:
        good = member("below/f", b"x") + END
        registry.image(
            "hostile",
            ([good], diff_id([good])),
            ([layer], diff_id([layer])),
            ([good + END], diff_id([good + END])),
        )
        async with Client() as client:
            images = ImageStore(
                store,
                ContentStore(state / "content"),
                snapshots,
                client,
                platforms=[Platform.current()],
                max_parallel=3,
                bounds=Bounds(max_entries=100, max_unpacked_bytes=4 << 20),
            )
            await images.load()
            with pytest.raises((UnpackError, DigestMismatchError)) as caught:
                await images.pull(f"{registry.address}/hostile:latest", None)
            await images.settle()
        assert [*images.images()] == []
    snapshots.wait()
    assert [*(state / "snapshots" / kind).iterdir()] == []
    assert [path for path in (state / "content").rglob("*") if not path.is_dir()] == []
    await store.close()
    return str(caught.value)


@pytest.mark.parametrize("kind", snapshotters.KINDS)
@pytest.mark.parametrize("name", REFUSED)
async def test_it_is_refused(tmp_path: Path, outside: Path, kind: str, name: str) -> None:
    layer, reason = REFUSED[name]
    layer = _placed(layer, str(outside))
    assert reason in await pull(tmp_path, kind, layer)


def _placed(layer: bytes, outside: str) -> bytes:
    """The layer with the path of what is outside in its links."""
    found = b""
    for start in range(0, len(layer), 512):
        block = layer[start : start + 512]
        if block[157:257].startswith(b"OUTSIDE"):
            target = (outside.encode() + block[157:257].rstrip(b"\0").removeprefix(b"OUTSIDE"))[:100]
            block = changed(block, 157, target.ljust(100, b"\0"))
        found += block
    return found


def test_there_are_enough() -> None:
    assert len(REFUSED) >= 60
