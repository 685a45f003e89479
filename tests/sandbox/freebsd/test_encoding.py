"""Values on their way to FreeBSD's kernel and back, as bytes."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.freebsd import encoding

words = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=10)
parameters = st.lists(words, min_size=1, max_size=3).map(".".join)


@given(parameters, st.integers(-(1 << 31), (1 << 31) - 1))
def test_numbers_are_of_type_int(name, value):
    assert encoding.jail_option(name, value) == (name, struct.pack("i", value))


def test_a_host_id_is_long():
    assert encoding.jail_option("host.hostid", 1 << 33) == ("host.hostid", struct.pack("l", 1 << 33))


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, 1 << 70])
def test_a_number_that_does_not_fit(value):
    with pytest.raises(OSError, match="more than 4 bytes") as caught:
        encoding.jail_option("children.max", value)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(value))


@given(parameters, st.text().filter(lambda text: "\0" not in text))
def test_text_ends_with_nul(name, value):
    packed = value.encode(errors="surrogateescape") + b"\0"
    assert encoding.jail_option(name, value) == (name, packed)


def test_text_with_a_nul():
    with pytest.raises(OSError, match="NUL") as caught:
        encoding.jail_option("path", "/a\0/b")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("name", "negated"),
    [
        ("persist", "nopersist"),
        ("allow.mount", "allow.nomount"),
        ("allow.mount.nullfs", "allow.mount.nonullfs"),
    ],
)
def test_a_boolean_is_a_name(name, negated):
    assert encoding.jail_option(name, True) == (name, None)
    assert encoding.jail_option(name, False) == (negated, None)


@given(st.dictionaries(words, st.integers(0, (1 << 63) - 1)))
def test_usage(amounts):
    text = ",".join(f"{resource}={amount}" for resource, amount in amounts.items())
    assert encoding.rctl_amounts(text) == amounts


@given(st.lists(st.text("abcdefgh:=/0123456789", min_size=1)))
def test_rules(rules):
    assert encoding.rctl_rules(",".join(rules)) == rules
