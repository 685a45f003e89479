"""Which images are pinned, and that they are shown as that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.pinned import Pinned

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("pinned", "name", "expected"),
    [
        ("busybox", "docker.io/library/busybox:1", True),
        ("busybox", f"docker.io/library/busybox@{DIGEST}", True),
        ("busybox", "docker.io/library/busybox2:1", False),
        ("busybox:1", "docker.io/library/busybox:1", True),
        ("busybox:1", "docker.io/library/busybox:12", False),
        ("busybox:1", f"docker.io/library/busybox@{DIGEST}", False),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", True),
        ("localhost:5000/a", "localhost:5000/a:2", True),
        ("localhost:5000/a", "localhost:5000/a/b:2", False),
        ("localhost:5000/a*", "localhost:5000/a/b:2", True),
        ("reg.example/*:stable", "reg.example/x/y:stable", True),
        ("reg.example/*:stable", "reg.example/x/y:stable2", False),
        ("reg.example/a.b*", "reg.example/aXb:1", False),
        ("*", "reg.example/x:1", True),
        ("*/pause:*", "reg.example/pause:3.9", True),
    ],
)
def test_a_name(pinned, name, expected):
    assert Pinned(["other.example/x", pinned]).has([name]) is expected


@pytest.mark.parametrize("name", ["", "A B", "busybox:", "busy*", "reg.example/UPPER", "a" * 64])
def test_what_no_image_is_called(name):
    with pytest.raises(ValueError, match=r"\S"):
        Pinned([name])


@given(st.lists(st.text()), st.text())
def test_any_text_is_judged_or_refused(names, called):
    try:
        pinned = Pinned(names)
    except ValueError:
        return
    assert pinned.has([called]) in (True, False)


async def test_a_pull_pins_and_a_restart_by_other_settings_does_not(shelf, registry):
    registry.add("app", "1", "hello")
    registry.add("other", "1", "hello", "moon")
    shelf.pinned = Pinned([f"{registry.address}/app:*"])
    images = shelf.reopened(shelf.client)
    await images.load()
    app = await images.pull(f"{registry.address}/app:1", None)
    other = await images.pull(f"{registry.address}/other:1", None)
    assert [images.find(one).pinned for one in (app, other)] == [True, False]
    shelf.pinned = Pinned([f"{registry.address}/other"])
    again = shelf.reopened(shelf.client)
    await again.load()
    assert [again.find(one).pinned for one in (app, other)] == [False, True]
    await images.settle()
    await again.remove(other)  # who asks for it gets it
    assert again.find(other) is None
    await again.settle()


async def test_an_image_whose_tag_moves_is_not_pinned_by_it(shelf, registry):
    shelf.pinned = Pinned([f"{registry.address}/app:latest"])
    images = shelf.reopened(shelf.client)
    await images.load()
    registry.add("app", "latest", "old")
    old = await images.pull(f"{registry.address}/app", None)
    assert images.find(old).pinned
    registry.add("app", "latest", "new")
    new = await images.pull(f"{registry.address}/app", None)
    assert [images.find(one).pinned for one in (old, new)] == [False, True]
    await images.settle()
