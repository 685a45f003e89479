"""The walk through indexes has an end, whatever they list."""

import json

import pytest

from registratur import MalformedContentError, Platform, compute_digest, media
from registratur.manifest import Descriptor
from registratur.selection import select

ROOT = Descriptor(media.OCI_INDEX, compute_digest(b"root"), 1)


def index(*names):
    entries = [
        {"mediaType": media.OCI_INDEX, "digest": compute_digest(name.encode()), "size": 1} for name in names
    ]
    document = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": entries}
    return json.dumps(document).encode()


def read(answer):
    """How many documents a walk asks for before it gives up."""
    walk = select(ROOT, [Platform.current()], "app")
    wanted, count = next(walk), 1
    with pytest.raises(MalformedContentError) as caught:
        while True:
            wanted = walk.send(answer(count, wanted))
            count += 1
    return count, str(caught.value)


def test_indexes_side_by_side():
    count, told = read(lambda count, _: index(*map(str, range(1000))) if count == 1 else index())
    assert count <= 64
    assert "none of 64" in told


def test_indexes_that_list_indexes_without_end():
    count, _ = read(lambda count, _: index(*(f"{count}-{number}" for number in range(100))))
    assert count <= 64


def test_indexes_within_indexes():
    count, told = read(lambda count, _: index(str(count)))
    assert count <= 6
    assert "nested" in told
