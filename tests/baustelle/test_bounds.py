"""What one image may become: counted over all of its layers, and refused with the name of the bound."""

import gzip
import io
import threading
import time

import pytest
import zstandard

from baustelle.bounds import Bounds, Budget, Window
from baustelle.decompress import CHUNK, plain_chunks
from baustelle.errors import BoundExceededError, CorruptLayerError
from baustelle.restack import restack
from baustelle.unpack import Whiteouts, unpack
from tests.images.hostile import member, repeated

MIB = 1 << 20


def put(root, data, budget, whiteouts=Whiteouts.APPLY):
    return unpack(io.BytesIO(data), root, whiteouts=whiteouts, budget=budget)


def refused(bound, *arguments):
    with pytest.raises(BoundExceededError) as caught:
        put(*arguments)
    assert caught.value.bound == bound
    return str(caught.value)


def test_entries_are_counted_over_all_layers(root, new_layer):
    budget = Budget(Bounds(max_entries=5))
    first, second = (new_layer().file(f"a{n}").directory(f"b{n}").file(f".wh.c{n}").bytes() for n in range(2))
    put(root, first, budget)
    assert "more than 5 entries" in refused("max_entries", root, second, budget)


def test_bytes_are_counted_over_all_layers(root, new_layer):
    budget = Budget(Bounds(max_unpacked_bytes=3 * MIB))
    layer = gzip.compress(new_layer().file("f", bytes(MIB)).bytes())
    for _ in range(2):
        put(root, layer, budget)
    assert f"more than {3 * MIB} bytes" in refused("max_unpacked_bytes", root, layer, budget)


def test_bytes_behind_the_archive_count(root, new_layer):
    layer = gzip.compress(new_layer().file("f").bytes() + bytes(4 * MIB))
    refused("max_unpacked_bytes", root, layer, Budget(Bounds(max_unpacked_bytes=3 * MIB)))


def test_the_ratio_counts_once_a_layer_is_large(root, new_layer, monkeypatch):
    layer = gzip.compress(new_layer().file("f", bytes(4 * MIB)).bytes())
    put(root, layer, Budget(Bounds(max_expansion_ratio=10)))
    monkeypatch.setattr("baustelle.bounds.RATIO_FROM", MIB)
    assert "over 10 times" in refused(
        "max_expansion_ratio", root, layer, Budget(Bounds(max_expansion_ratio=10))
    )
    put(root, layer, Budget(Bounds(max_expansion_ratio=2000)))


@pytest.mark.node
def test_copies_of_files_below_count(tmp_path, new_layer):
    """Each layer may have a hard link to a file of the one below, which is copied."""
    budget = Budget(Bounds(max_unpacked_bytes=3 * MIB))
    layers = [new_layer().file("f0", b"x" * MIB).bytes()]
    layers += [new_layer().hard_link(f"f{number}", f"f{number - 1}").bytes() for number in range(1, 4)]
    below = []
    with pytest.raises(BoundExceededError, match="bytes unpacked"):
        for number, layer in enumerate(layers):
            (root := tmp_path / str(number)).mkdir()
            tree = put(root, layer, budget, Whiteouts.STACKED).tree
            restack(root, tree, below)
            below.insert(0, root)
    assert len(below) == 2


def chunks(data, window):
    return list(plain_chunks(io.BytesIO(data), window))


def test_a_window_that_is_too_large(root):
    budget = Budget(Bounds(max_zstd_window=8 * MIB))
    assert "a zstd window of 16777216 bytes" in refused("max_zstd_window", root, repeated(MIB, 24), budget)
    assert sum(map(len, chunks(repeated(MIB, 23), Window(budget)))) == MIB


def test_windows_are_waited_for_and_given_back():
    budget = Budget(Bounds(max_zstd_window=32 * MIB))
    first, second = Window(budget), Window(budget)
    assert len(chunks(repeated(10, 25), first)) == 1
    done = threading.Event()

    def wait():
        chunks(repeated(10, 23), second)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not done.wait(0.2)
    first.release()
    assert done.wait(10)
    thread.join()


def test_who_waits_for_a_window_can_be_ended():
    budget = Budget()
    Window(budget).take(32 * MIB)
    began = time.monotonic()

    def check():
        if time.monotonic() > began + 0.1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Window(budget, check).take(MIB)


def test_windows_that_grow_take_turns():
    """Two layers of which each has a frame of 16 MiB, and then wants 32."""
    budget = Budget(Bounds(max_zstd_window=32 * MIB))
    frames = repeated(MIB, 24) + repeated(MIB, 25)
    found = []

    def work():
        window = Window(budget)
        found.append(sum(map(len, chunks(frames, window))))
        window.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [2 * MIB] * 4


def test_a_chunk_of_zstd_is_bounded_whatever_few_bytes_say():
    found = chunks(repeated(64 * MIB, 20), Window(Budget()))
    assert max(map(len, found)) < CHUNK + 129 * 1024
    assert sum(map(len, found)) == 64 * MIB


@pytest.mark.parametrize("level", [1, 9, 19])
@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("size", [0, 1, 100, 127 * 1024, 128 * 1024, 700_001])
def test_frames_of_a_real_encoder(level, checksum, size):
    data = (bytes(range(256)) * 3000)[:size]
    with_size = zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(data)
    stream = zstandard.ZstdCompressor(level=level, write_checksum=checksum).compressobj()
    without = stream.compress(data) + stream.flush()
    skippable = b"\x51\x2a\x4d\x18\x05\0\0\0hello"
    assert b"".join(chunks(skippable + with_size + without + skippable, Window(Budget()))) == data * 2


def test_damaged_zstd():
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(b"hello" * 1000)
    for damaged in (
        frame[:-1] + b"x",
        frame + b"rubbish",
        frame[:6] + b"\xff" + frame[7:],
        frame + frame[:4],
    ):
        with pytest.raises(CorruptLayerError, match=r"zstd data|ends"):
            chunks(damaged, Window(Budget()))


def test_an_entry_of_the_wrong_size_is_no_bomb(root):
    """What the header says costs nothing before the bytes come."""
    layer = member("f", size=1 << 33) + b"x"
    with pytest.raises(CorruptLayerError, match="truncated"):
        put(root, layer, Budget())
