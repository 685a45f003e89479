"""What the kernel answers about pf: a packed nvlist."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.doctor import pf

BOOL, NUMBER, STRING, NVLIST = 2, 3, 4, 5


def pair(kind: int, name: str, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    return struct.pack("=BHQQ", kind, len(encoded), len(data), 0) + encoded + data


def packed(*pairs: bytes) -> bytes:
    body = b"".join(pairs)
    return struct.pack("=BBBQQ", 0x6C, 0, 0, 0, len(body)) + body


@pytest.mark.parametrize("value", [True, False])
def test_found_among_others(value: bool) -> None:
    answer = packed(
        pair(STRING, "ifname", b"em0\0"),
        pair(NUMBER, "since", bytes(8)),
        pair(BOOL, "running", bytes([value])),
        pair(BOOL, "syncookies_active", b"\1"),
    )
    assert pf.find_boolean(answer, "running") is value


def test_not_looked_for_in_a_list_within() -> None:
    answer = packed(pair(NVLIST, "counters", packed(pair(BOOL, "running", b"\1"))))
    with pytest.raises(ValueError, match="has no running"):
        pf.find_boolean(answer, "running")


def test_a_number_of_that_name_is_no_boolean() -> None:
    with pytest.raises(ValueError, match="has no running"):
        pf.find_boolean(packed(pair(NUMBER, "running", bytes(8))), "running")


def test_something_else() -> None:
    with pytest.raises(ValueError, match="no nvlist"):
        pf.find_boolean(b"\0" * 64, "running")


@given(st.integers(0, 60))
def test_cut_short(length: int) -> None:
    answer = packed(pair(NUMBER, "since", bytes(8)), pair(BOOL, "running", b"\1"))
    if length < len(answer):
        with pytest.raises(ValueError, match=r"ends too early|has no running"):
            pf.find_boolean(answer[:length], "running")


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_a_value_error(noise: bytes, tail: bytes) -> None:
    for answer in (noise, packed(noise), packed(pair(NUMBER, "since", bytes(8)), tail)):
        try:
            pf.find_boolean(answer, "running")
        except ValueError:
            continue


def test_the_request_is_the_one_of_pfvar_h() -> None:
    assert pf.DIOCGETSTATUSNV == 0xC018_4415  # _IOWR('D', 21, struct pfioc_nv) on LP64
