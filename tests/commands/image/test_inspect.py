from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.commands.image.errors import CommandError
from cri.commands.image.inspection import steps_of

HISTORY = [
    {"created": "2026-01-02T03:04:05.678Z", "created_by": "ADD rootfs.tar / " + "#" * 100},
    {"created": "2026-01-03T00:00:00Z", "created_by": 'CMD ["\x1b[31msh"]', "comment": "two\nlines", "empty_layer": True},
]  # fmt: skip


@pytest.fixture
def known(node, kit):
    node.images = [kit.image("a", "docker.io/library/busybox:1")]
    spec = {"architecture": "amd64", "history": HISTORY}
    node.info = {"info": json.dumps({"chainID": "sha256:1", "imageSpec": spec}), "odd": "no JSON"}
    return spec


async def test_inspect(image, known, kit) -> None:
    ended = await image("inspect", "docker.io/library/busybox:1")
    found = json.loads(ended.out)
    assert (ended.status, found["status"]["id"]) == (0, kit.id("a"))
    assert found["info"] == {"chainID": "sha256:1", "imageSpec": known}
    assert found["odd"] == "no JSON"


@pytest.mark.parametrize("action", ["inspect", "history", "rm"])
async def test_what_is_not_here(image, action) -> None:
    ended = await image(action, "busybox")
    assert (ended.status, ended.out) == (1, "")
    assert "image busybox is not on this node; cri-jails image ls shows what is" in ended.err


async def test_history(image, known) -> None:
    lines = (await image("history", "docker.io/library/busybox:1")).out.splitlines()
    assert lines[0].split() == ["CREATED", "CREATED", "BY", "LAYER", "COMMENT"]
    assert lines[1].startswith('2026-01-03 00:00:00   CMD ["\\x1b[31msh"]')
    assert lines[1].endswith("no      two lines")
    assert lines[2].startswith("2026-01-02 03:04:05   ADD rootfs.tar / ###")
    assert "…   yes" in lines[2]
    whole = (await image("history", "--no-trunc", "docker.io/library/busybox:1")).out
    assert "#" * 100 in whole
    found = json.loads((await image("history", "-o", "json", "docker.io/library/busybox:1")).out)
    assert [step["createdBy"] for step in found] == [step["created_by"] for step in reversed(HISTORY)]


@pytest.mark.parametrize("info", [{}, {"info": "{}"}, {"info": "[]"}, {"info": '{"imageSpec": 1}'}])
async def test_a_daemon_that_tells_no_config(image, node, known, info) -> None:
    node.info = info
    ended = await image("history", "docker.io/library/busybox:1")
    assert (ended.status, "older release" in ended.err) == (1, True)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
STEPS = VALUES | st.dictionaries(
    st.sampled_from(["created", "Created_By", "comment", "author", "empty_layer"]), VALUES
)


@given(st.dictionaries(st.sampled_from(["history", "History", "os"]), VALUES | st.lists(STEPS)))
def test_any_config_is_shown_or_refused(spec) -> None:
    try:
        steps = steps_of({"imageSpec": spec}, "x")
    except CommandError:
        return
    for step in steps:
        assert all(isinstance(step[key], str) for key in ("created", "createdBy", "author", "comment"))


def test_keys_have_no_case() -> None:
    (step,) = steps_of({"imageSpec": {"History": [{"Created_By": "x", "Empty_Layer": True}]}}, "x")
    assert (step["createdBy"], step["emptyLayer"]) == ("x", True)
