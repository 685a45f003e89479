from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.commands.image.text import clean, shortened, size, table


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0B"),
        (1, "1B"),
        (999, "999B"),
        (1000, "1kB"),
        (4_860_000, "4.86MB"),
        (999_499, "999kB"),
        (999_500, "1MB"),
        (79_123_456_789, "79.1GB"),
        (2**63, "9.22EB"),
        (10**22, "10000EB"),
    ],
)
def test_sizes_are_as_crictl_shows_them(number, shown) -> None:
    assert size(number) == shown


@given(st.integers(0, 10**18))
def test_a_size_is_right_to_three_digits(number) -> None:
    text = size(number)
    digits = text.rstrip("BkMGTPE")
    scale = 1000 ** ["B", "kB", "MB", "GB", "TB", "PB", "EB"].index(text[len(digits) :])
    assert abs(float(digits) * scale - number) <= number * 0.005 + 1e-9
    assert len(text) <= 6


@given(st.text())
def test_strangers_text_does_nothing_to_a_terminal(text) -> None:
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)


def test_what_is_printable_stays() -> None:
    assert clean("RUN  apk\tadd größe 日本\n && \x1b[31mred\x07\u202e") == (
        "RUN apk add größe 日本 && \\x1b[31mred\\x07\\u202e"
    )


@given(st.text(max_size=20), st.integers(1, 10))
def test_shortened(text, width) -> None:
    found = shortened(text, width)
    assert len(found) <= width
    assert found == text or (len(text) > width and found.endswith("…") and text.startswith(found[:-1]))


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "BB", "C"), [("xxx", "", "y"), ("", "yyyy", "")]) == (
        "A     BB     C\nxxx          y\n      yyyy\n"
    )
    assert table(("A", "B"), []) == "A   B\n"
