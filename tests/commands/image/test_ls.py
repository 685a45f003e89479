from __future__ import annotations

import json

import pytest

from cri.api.runtime import v1
from cri.commands.image.listing import fits


@pytest.fixture
def images(node, kit):
    node.images = [
        kit.image("a", "docker.io/library/busybox:1", "docker.io/library/busybox:latest",
                  f"docker.io/library/busybox@{kit.id('d')}"),
        kit.image("b", f"r.example:5000/team/app@{kit.id('e')}", f"r.example:5000/team/app@{kit.id('f')}", pinned=True),
        kit.image("c", size=12, uid=v1.Int64Value(0)),
    ]  # fmt: skip
    return node.images


async def test_a_row_for_each_name(image, images) -> None:
    ended = await image("ls")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == (
        "REPOSITORY                  TAG      IMAGE ID       SIZE     PINNED\n"
        "docker.io/library/busybox   1        aaaaaaaaaaaa   4.86MB   no\n"
        "docker.io/library/busybox   latest   aaaaaaaaaaaa   4.86MB   no\n"
        "r.example:5000/team/app     <none>   bbbbbbbbbbbb   4.86MB   yes\n"
        "<none>                      <none>   cccccccccccc   12B      no\n"
    )


async def test_digests(image, images, kit) -> None:
    ended = await image("ls", "--digests")
    rows = [line.split() for line in ended.out.splitlines()]
    assert rows[0][:3] == ["REPOSITORY", "TAG", "DIGEST"]
    assert [row[:3] for row in rows[1:]] == [
        ["docker.io/library/busybox", "1", "sha256:dddddddddddd"],
        ["docker.io/library/busybox", "latest", "sha256:dddddddddddd"],
        ["r.example:5000/team/app", "<none>", "sha256:eeeeeeeeeeee"],
        ["r.example:5000/team/app", "<none>", "sha256:ffffffffffff"],
        ["<none>", "<none>", "<none>"],
    ]
    whole = await image("ls", "--digests", "--no-trunc", "busybox:1")
    assert whole.out.splitlines()[1].split()[2:4] == [kit.id("d"), kit.id("a")]


async def test_forms_for_programs(image, images, kit) -> None:
    assert (await image("ls", "-q")).out.split() == ["a" * 12, "b" * 12, "c" * 12]
    assert (await image("ls", "-q", "--no-trunc")).out.split() == [kit.id(mark) for mark in "abc"]
    assert (await image("ls", "-o", "name")).out.split() == [
        "docker.io/library/busybox:1",
        "docker.io/library/busybox:latest",
        f"r.example:5000/team/app@{kit.id('e')}",
        f"r.example:5000/team/app@{kit.id('f')}",
        kit.id("c"),
    ]
    found = json.loads((await image("ls", "-o", "json")).out)
    assert [one["id"] for one in found["images"]] == [kit.id(mark) for mark in "abc"]
    assert found["images"][2] == {
        "id": kit.id("c"),
        "repoTags": [],
        "repoDigests": [],
        "size": "12",
        "uid": {"value": "0"},
        "username": "",
        "pinned": False,
    }
    assert found["images"][0]["uid"] is None


async def test_an_empty_node(image) -> None:
    assert (await image("ls")).out == "REPOSITORY   TAG   IMAGE ID   SIZE   PINNED\n"
    assert (await image("ls", "-q")).out == ""
    assert json.loads((await image("ls", "-o", "json")).out) == {"images": []}


@pytest.mark.parametrize(
    ("wanted", "marks"),
    [
        ("busybox", "a"),
        ("busybox:latest", "a"),
        ("busybox:2", ""),
        ("library/busybox", "a"),
        ("docker.io/library/busybox", "a"),
        ("box", ""),
        ("*box", "a"),
        ("r.example:5000/*", "b"),
        ("team/app", ""),
        ("r.example:5000/team/app@sha256:e*", "b"),
        ("aaaaaaaaaaaa", "a"),
        ("sha256:bbbb", "b"),
        ("aaab", ""),
        ("aaa", ""),
        ("", ""),
    ],
)
def test_what_a_name_fits(wanted, marks, images) -> None:
    assert "".join(one.id[-1] for one in images if fits(one, wanted)) == marks


async def test_names_of_several(image, images) -> None:
    assert (await image("ls", "-q", "busybox", "cccc")).out.split() == ["a" * 12, "c" * 12]
    ended = await image("ls", "-q", "nothing")
    assert (ended.status, ended.out) == (0, "")


async def test_a_long_list_comes_in_pieces(image, node, kit) -> None:
    long = "x" * 200
    node.images = [
        kit.image("a", *(f"r.example/{long}/{number}:{one}" for one in range(100))) for number in range(900)
    ]
    ended = await image("ls", "-o", "name")
    assert (ended.status, len(ended.out.splitlines())) == (0, 90_000)
