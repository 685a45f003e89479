"""Images that are made to fill memory: a pull takes less than 64 MiB, whatever they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.images.hostile import MIB, Hostile, diff_id, gzipped, member, repeated, served

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="peaks are told by Linux' /proc"),
]

ALLOWED = 64
"""MiB above what the process has before."""

ROOT = Path(__file__).parents[2]


def zeros(size: int) -> Iterator[bytes]:
    """A file of zero bytes."""
    yield member("zeros", size=size)
    for _ in range(size // MIB):
        yield bytes(MIB)
    yield bytes(1024)


def many() -> Iterator[bytes]:
    """A hundred thousand entries, files and directories."""
    for number in range(100_000):
        yield member(f"d{number // 1000}/a-name-as-long-as-they-are-{number}", type=(b"0", b"5")[number % 2])
    yield bytes(1024)


def long_header() -> Iterator[bytes]:
    """A pax header of 1 GiB."""
    yield member("header", size=1 << 30, type=b"x")
    for _ in range(1024):
        yield bytes(MIB)


def sparse_map() -> Iterator[bytes]:
    """A map that goes on beyond what is read of one."""
    text = b"%d\n" % 200_000 + b"".join(b"%d\n1\n" % number for number in range(0, 400_000, 2))
    data = text + bytes(-len(text) % 512)
    records = b"".join(map(pax_record, ("GNU.sparse.major=1", "GNU.sparse.realsize=1099511627776")))
    yield member("header", records, type=b"x")
    yield member("f", data + bytes(80_000))


def pax_record(text: str) -> bytes:
    return b"%d %s\n" % (len(text) + 4, text.encode())


def plain(pieces: Callable[[], Iterable[bytes]]) -> tuple[Iterable[bytes], str]:
    return gzipped(pieces()), diff_id(pieces())


def index(registry: Hostile, name: str, one: bytes) -> None:
    """An index of the largest size, of as many entries as there can be."""
    begin, end = b'{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[', b"]}"
    count = (4 * MIB - len(begin) - len(end) + 1) // (len(one) + 1)
    registry.manifest(name, begin + b",".join([one] * count) + end)


def window(number: int) -> tuple[Iterable[bytes], str]:
    """A layer that fills a window of 32 MiB."""
    archive = member(f"zeros{number}", size=96 * MIB) + bytes(96 * MIB) + bytes(1024)
    head = archive[:512]
    raw = (512 << 3 | 1).to_bytes(3, "little") + head
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(25 - 10) << 3]) + raw
    return [frame, repeated(96 * MIB + 1024, 25)], diff_id([archive])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    with served(Hostile(tmp_path_factory.mktemp("hostile"))) as files:
        files.image("small", plain(lambda: [member("f", b"x"), bytes(1024)]))
        yield files


@pytest.fixture
def pulled(tmp_path: Path, registry: Hostile) -> Callable[..., dict[str, object]]:
    """What a pull has taken, behind one of a small image; nothing of a layer is left."""

    def pull(name: str, kind: str = "copy", **bounds: int) -> dict[str, object]:
        command = [sys.executable, "-m", "tests.images.pulling", tmp_path, kind, registry.address]
        done = subprocess.run(
            [*command, json.dumps(bounds), "small", name],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert [*(tmp_path / "snapshots" / kind).iterdir()] == []
        told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        print(told)
        return told

    return pull


def kind_of_snapshotter() -> list[object]:
    return ["copy", pytest.param("overlay", marks=pytest.mark.node)]


def test_a_hundred_thousand_entries(registry, pulled):
    registry.image("many", plain(many))
    told = pulled("many")
    assert told["error"] == ""
    assert told["grown_mib"] < ALLOWED, told


def test_a_gigabyte_of_zeros(registry, pulled):
    registry.image("zeros", plain(lambda: zeros(1 << 30)))
    told = pulled("zeros")
    assert "BoundExceededError: image localhost" in told["error"]
    assert "image.max_expansion_ratio" in told["error"]
    assert told["grown_mib"] < ALLOWED, told
    told = pulled("zeros", max_expansion_ratio=2000)
    assert told["error"] == ""
    assert told["grown_mib"] < ALLOWED, told


def test_a_pax_header_of_a_gigabyte(registry, pulled):
    registry.image("header", plain(long_header))
    told = pulled("header")
    assert "extended tar headers of 1073741824 bytes" in told["error"]
    assert told["grown_mib"] < ALLOWED, told


def test_four_sparse_maps(registry, pulled):
    registry.image("sparse", *[plain(sparse_map)] * 4)
    told = pulled("sparse")
    assert "sparse map does not end" in told["error"]
    assert told["grown_mib"] < ALLOWED, told


@pytest.mark.parametrize("kind", kind_of_snapshotter())
def test_windows_of_zstd(registry, pulled, kind):
    registry.image("windows", *map(window, range(4)))
    told = pulled("windows", kind, max_expansion_ratio=100_000)
    assert told["error"] == ""
    assert told["grown_mib"] < ALLOWED, told
    told = pulled("windows", kind, max_expansion_ratio=100_000, max_zstd_window=16 * MIB)
    assert "image.max_zstd_window" in told["error"]


INDEXES = [b"{}", b"[]", b'"ab"', b'{"a":[]}', b'{"digest":{},"size":[1]}']


@pytest.mark.parametrize("one", INDEXES)
def test_the_largest_index(registry, pulled, one):
    index(registry, "index", one)
    told = pulled("index")
    assert "MalformedContentError" in told["error"]
    assert told["grown_mib"] < ALLOWED, told


@pytest.mark.parametrize("key", ["Env", "Labels", "Volumes"])
def test_the_largest_config(registry, pulled, key):
    values: object = [f"{number:05x}" for number in range(8 * MIB // 11)]
    if key != "Env":
        values = {f"{number:06x}": "" if key == "Labels" else {} for number in range(8 * MIB // 15)}
    registry.image("config", plain(lambda: [member("f"), bytes(1024)]), **{key: values})
    told = pulled("config")
    assert told["grown_mib"] < ALLOWED, told
    if key == "Labels":
        assert told["error"] == ""
    else:
        assert "cannot be read: it has more than 100000 values" in told["error"]
