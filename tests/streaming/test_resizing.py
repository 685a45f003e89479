"""Terminal sizes in a stream of bytes."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.spec import TerminalSize
from cri.streaming.resizing import MAX_SIZE, SizeStream, terminal_size

numbers = st.integers(1, 65535)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20),
    st.lists(st.integers(1, 50), max_size=30),
    st.sampled_from([None, 2]),
)
def test_the_last_of_many_in_any_pieces(sizes, cuts, indent):
    text = "\n".join(json.dumps({"Width": w, "Height": h}, indent=indent) for w, h in sizes).encode()
    stream, found = SizeStream(), []
    for cut in cuts:
        found.append(stream.newest(text[:cut]))
        text = text[cut:]
    found.append(stream.newest(text))
    seen = [size for size in found if size is not None]
    assert seen[-1] == TerminalSize(*sizes[-1])
    assert set(seen) <= {TerminalSize(*size) for size in sizes}


@given(st.lists(st.binary(max_size=3000), max_size=10))
def test_nonsense_does_no_harm(pieces):
    stream = SizeStream()
    for piece in pieces:
        stream.newest(piece)
        assert len(stream._rest) <= MAX_SIZE
    assert stream.newest(b'}{"Width":1,"Height":2}') == TerminalSize(1, 2)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b"\xff", b""])
def test_text_that_is_no_size(text):
    assert terminal_size(text) is None


@pytest.mark.parametrize("nonsense", [b"1 ", b"[", b"{", b"}", b"{}", b"{x}", b'{"Width":0,"Height":0}'])
def test_the_time_does_not_depend_on_how_much_there_is(nonsense):
    stream, data = SizeStream(), nonsense * (512 * 1024 // len(nonsense))
    began = time.process_time()
    assert stream.newest(data) is None
    assert time.process_time() - began < 0.1, "it took seconds"
