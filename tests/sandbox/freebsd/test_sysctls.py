"""Variables of sysctl(3) as text: what a pod's network is tuned with."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.freebsd import sysctls

INT, OPAQUE, ULONG, U8, S16 = 2, 5, 8, 10, 13
"""CTLTYPE_* of sys/sysctl.h."""


@given(st.sampled_from(sorted(sysctls.INTEGERS)), st.data())
def test_numbers_come_back_as_they_went(kind, data):
    size, signed = sysctls.INTEGERS[kind]
    least, most = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
    numbers = data.draw(st.lists(st.integers(least, most), min_size=1, max_size=3))
    text = " ".join(map(str, numbers))
    value = sysctls.from_text(kind, text)
    assert len(value) == size * len(numbers)
    assert sysctls.to_text(kind, value) == text


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_strings_come_back_as_they_went(text):
    assert sysctls.to_text(sysctls.STRING, sysctls.from_text(sysctls.STRING, text)) == text


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (INT, "-1", b"\xff\xff\xff\xff"),
        (INT, "0x10", struct.pack("=i", 16)),
        (INT, "010", struct.pack("=i", 8)),
        (INT, " 0 ", struct.pack("=i", 0)),
        (U8, "1", b"\1"),
        (S16, "10 20", struct.pack("=hh", 10, 20)),
        (ULONG, "65536", struct.pack("=Q", 65536)),
        (sysctls.STRING, "newreno", b"newreno\0"),
    ],
)
def test_text_is_read_as_sysctl_reads_it(kind, text, value):
    assert sysctls.from_text(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [
        (sysctls.STRING, "\ud800", errno.EINVAL),
        (INT, "many", errno.EINVAL),
        (INT, "0x", errno.EINVAL),
        (INT, "2147483648", errno.EINVAL),
        (U8, "-1", errno.EINVAL),
        (OPAQUE, "1", errno.EOPNOTSUPP),
    ],
)
def test_text_that_is_no_value(kind, text, number):
    with pytest.raises(OSError) as caught:
        sysctls.from_text(kind, text)
    assert caught.value.errno == number
