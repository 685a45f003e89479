"""A record of whatever content costs no list and no status: what is sent can be read."""

from __future__ import annotations

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from cri import encode
from cri.rpc import descriptors
from cri.state import ImageRecord

IMAGES = descriptors.strict_class("runtime.v1.ListImagesResponse")


def image(**values) -> ImageRecord:
    sound = {
        "id": "sha256:1",
        "tags": ["a:1"],
        "digests": ["a@sha256:2"],
        "size": 3,
        "user": "",
        "pinned": False,
    }
    return ImageRecord(**(sound | values))


def shown(record: ImageRecord):
    (found,) = IMAGES.FromString(encode.image_item(record)).images
    return found


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        ("99999999999999999999999999999", None, "99999999999999999999999999999"),
        ("1000:5", 1000, ""),
        ("\u0661", None, "\u0661"),  # a digit, but none of passwd(5)
        ("me", None, "me"),
        ("a\udcff", None, "a\\udcff"),
        ("", None, ""),
    ],
)
def test_the_user_of_an_image(user, uid, name) -> None:
    found = shown(image(user=user))
    assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, name)


def test_what_cannot_be_shown_costs_its_field_alone_and_is_told_once() -> None:
    record = image(id="sha256:told", size=1 << 70, tags=["\udcff"])
    with structlog.testing.capture_logs() as logs:
        found = shown(record)
        shown(record)
    assert (found.id, found.size, list(found.repo_tags), list(found.repo_digests)) == (
        "sha256:told",
        0,
        [],
        ["a@sha256:2"],
    )
    assert sorted((entry["log_level"], entry["field"]) for entry in logs) == [
        ("error", "repo_tags"),
        ("error", "size"),
    ]


@given(
    st.lists(st.text(st.characters(), max_size=4), max_size=2),
    st.integers(-(1 << 70), 1 << 70),
    st.text(st.characters(), max_size=5) | st.integers(0, 1 << 70).map(str),
)
def test_whatever_a_record_holds_can_be_read(tags, size, user) -> None:
    assert shown(image(tags=tags, size=size, user=user)).id == "sha256:1"
