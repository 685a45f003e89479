from __future__ import annotations

import json

import pytest

from cri.api.runtime import v1
from cri.errors import NotFoundError, UnavailableError


@pytest.fixture
def full(node, kit):
    """One image runs, one is mounted, one is pinned, one has a tag, one only a digest, and one no name."""
    node.images = [
        kit.image("1", "r.example/runs:1"),
        kit.image("2", f"r.example/mounted@{kit.id('2')}"),
        kit.image("3", pinned=True),
        kit.image("4", "r.example/idle:1", f"r.example/idle@{kit.id('4')}", size=1000),
        kit.image("5", f"r.example/old@{kit.id('5')}", size=100),
        kit.image("6", size=10),
    ]
    node.containers = [
        v1.Container(id="c1", image_id=kit.id("1"), state=v1.ContainerState.CONTAINER_RUNNING),
        v1.Container(id="c2", image_ref="r.example/runs:1", state=v1.ContainerState.CONTAINER_EXITED),
    ]
    spec = v1.ImageSpec(image=f"r.example/mounted@{kit.id('2')}")
    node.statuses = {
        "c2": v1.ContainerStatus(mounts=[v1.Mount(image=spec, container_path="/x"), v1.Mount(host_path="/y")])
    }
    return node


def left(node) -> str:
    return "".join(one.id[-1] for one in node.images)


async def test_rm_tells_what_was_removed(image, full, kit) -> None:
    ended = await image("rm", "r.example/idle:1", kit.id("6"), "r.example/no:1")
    assert ended.status == 1
    assert ended.out == (
        f"removed {kit.id('4')}: r.example/idle:1, r.example/idle@{kit.id('4')}\nremoved {kit.id('6')}\n"
    )
    assert ended.err.startswith("cri-jails: rm r.example/no:1: image r.example/no:1 is not on this node")
    assert left(full) == "1235"


async def test_rm_goes_on_after_a_failure(image, full, kit) -> None:
    def refuse(request):
        if request.image.image == kit.id("4"):
            raise UnavailableError("the disk is away")
        return v1.RemoveImageResponse()

    full.answers["RemoveImage"] = refuse
    ended = await image("rm", "r.example/idle:1", kit.id("6"))
    assert (ended.status, ended.out) == (1, f"removed {kit.id('6')}\n")
    assert ended.err == "cri-jails: rm r.example/idle:1: the disk is away\n"


@pytest.mark.parametrize(("flags", "kept"), [((), "1234"), (("--all",), "123")])
async def test_prune_keeps_what_is_used_or_pinned(image, full, flags, kept) -> None:
    full.answers["ImageFsInfo"] = lambda _: v1.ImageFsInfoResponse(
        image_filesystems=[v1.FilesystemUsage(used_bytes=v1.UInt64Value(1000 * len(full.images)))]
    )
    before = left(full)
    ended = await image("prune", "--dry-run", *flags)
    assert (ended.status, left(full)) == (0, before)
    assert ended.out.count("would remove") == 6 - len(kept)
    assert ended.out.endswith(f"{6 - len(kept)} of 6 images would be removed\n")
    ended = await image("prune", *flags)
    assert (ended.status, left(full)) == (0, kept)
    assert ended.out.endswith(
        f"{6 - len(kept)} of 6 images were removed; all took 6kB on disk before, and {len(kept)}kB now\n"
    )
    ended = await image("prune", *flags)
    assert ended.out == f"0 of {len(kept)} images were removed\n"


async def test_prune_tells_what_it_could_not_remove(image, full, kit) -> None:
    def refuse(request):
        raise UnavailableError("the disk is away")

    full.answers["RemoveImage"] = refuse
    ended = await image("prune")
    assert ended.status == 1
    assert f"prune {kit.id('5')}: the disk is away" in ended.err
    assert "0 of 6 images were removed" in ended.out


async def test_prune_of_containers_that_go_meanwhile(image, full) -> None:
    def gone(request):
        raise NotFoundError("no such container")

    full.answers["ContainerStatus"] = gone
    assert (await image("prune", "--all")).status == 0
    assert left(full) == "13"


async def test_nothing_is_removed_when_nobody_knows_what_is_used(image, full) -> None:
    def away(request):
        raise UnavailableError("the records are away")

    for rpc in ("ContainerStatus", "StreamContainers", "StreamImages"):
        full.answers = {rpc: away}
        ended = await image("prune", "--all")
        assert (ended.status, ended.out, left(full)) == (1, "", "123456")
        assert "the records are away" in ended.err


async def test_df(image, full, kit) -> None:
    def filesystem(used, mountpoint):
        return v1.FilesystemUsage(
            fs_id=v1.FilesystemIdentifier(mountpoint=mountpoint),
            used_bytes=v1.UInt64Value(used),
            inodes_used=v1.UInt64Value(7),
        )

    full.answers["ImageFsInfo"] = lambda _: v1.ImageFsInfoResponse(
        image_filesystems=[filesystem(5000, "/i")], container_filesystems=[filesystem(0, "/c")]
    )
    ended = await image("df")
    assert ended.out == (
        "TYPE         NUMBER   IN USE   ON DISK   FILES   FILESYSTEM\n"
        "images       6        2        5kB       7       /i\n"
        "containers   2        1        0B        7       /c\n"
        "\nNo container uses 3 of the images, pulled as 1.11kB, compressed; cri-jails image prune --all removes them.\n"
    )
    found = json.loads((await image("df", "-o", "json")).out)
    assert found["images"]["reclaimable"] == {"number": 3, "pulledBytes": 1110}
    assert found["containers"]["filesystems"] == [{"mountpoint": "/c", "usedBytes": 0, "inodesUsed": 7}]


async def test_df_of_an_empty_node(image) -> None:
    ended = await image("df")
    assert (ended.status, ended.out.splitlines()[0].split()[0]) == (0, "TYPE")
    assert "prune" not in ended.out
