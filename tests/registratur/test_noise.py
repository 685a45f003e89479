"""Bytes that make no sense, or nearly do, for every parser of what a registry says: an error of ours, or a value.

CRI_TEST_NOISE says how many examples each parser gets (200 in CI, by hand some 100,000).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registratur import Reference, RegistryError
from registratur.challenge import parse_challenges
from registratur.digest import parse_digest
from registratur.image_config import ImageConfig
from registratur.manifest import parse_manifest

NOISE = settings(
    max_examples=int(os.environ.get("CRI_TEST_NOISE", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "a/b", "digest": f"sha256:{'a' * 64}", "size": 7},
    "layers": [{"mediaType": "a/b", "digest": f"sha256:{'b' * 64}", "size": 9, "annotations": {"k": "v"}}],
    "annotations": {"x": "y"},
}
CONFIG = {
    "os": "linux",
    "architecture": "arm64",
    "config": {"User": "1:2", "Env": ["A=B"], "Cmd": ["x"], "Volumes": {"/v": {}}, "WorkingDir": "/"},
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{'c' * 64}"]},
}
SAMPLES = {
    "reference": b"registry.example.org:5000/team/app:v1@sha256:" + b"a" * 64,
    "digest": b"sha256:" + b"a" * 64,
    "challenge": b'Bearer realm="https://a.example.org/t",service="s",scope="repository:x:pull", Basic realm=x',
    "manifest": json.dumps(MANIFEST).encode(),
    "config": json.dumps(CONFIG).encode(),
}


def text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


PARSERS: dict[str, Callable[[bytes], object]] = {
    "reference": text(Reference.parse),
    "digest": text(parse_digest),
    "challenge": text(lambda header: parse_challenges([header])),
    "manifest": parse_manifest,
    "config": ImageConfig.parse,
}
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=6
)
PIECES = st.sampled_from(
    [b"", b"{", b"}", b"[", b'"', b"\\", b"\0", b"null", b"-1", b"1e999", b"\xff", b"9" * 40, b","]
)


def edited(sample: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """A sample with pieces of it replaced."""
    for place, length, new in edits:
        start = place % (len(sample) + 1)
        sample = sample[:start] + new + sample[start + length :]
    return sample


def parse(name: str, data: bytes) -> None:
    try:
        PARSERS[name](data)
    except RegistryError as error:
        refusal = str(error)
    else:
        return
    assert 0 < len(refusal) < 2000 + 4 * len(data)


@pytest.mark.parametrize("name", PARSERS)
@NOISE
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda words: words.encode()))
def test_noise(name: str, data: bytes) -> None:
    parse(name, data)


@pytest.mark.parametrize("name", PARSERS)
@NOISE
@given(
    EDITS | st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 3), PIECES), min_size=1, max_size=4)
)
def test_edited_samples(name: str, edits: list[tuple[int, int, bytes]]) -> None:
    parse(name, edited(SAMPLES[name], edits))


@pytest.mark.parametrize("name", PARSERS)
def test_the_samples_make_sense(name: str) -> None:
    assert PARSERS[name](SAMPLES[name]) is not None
