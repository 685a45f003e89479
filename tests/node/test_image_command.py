"""`cri-jails image` beside a real daemon, with images from Docker's registry, which asks for a password."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from baustelle.build import build
from baustelle.layout import ImageLayout
from cri.api.runtime import v1
from registratur import Client, Credentials, Descriptor, LayoutSource, Reference, media, push
from tests.dockerregistry import PASSWORD, USER, needs_registry, serving

pytestmark = [pytest.mark.node, pytest.mark.timeout(240), needs_registry]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def private(tmp_path_factory) -> Iterator[str]:
    """A registry with `team/app`, in two versions that share a layer; its host:port."""
    base = tmp_path_factory.mktemp("private")
    (base / "context").mkdir()
    (base / "context/below").write_bytes(os.urandom(300_000))
    with serving(base, htpasswd=True) as address:
        for version in ("1", "2"):
            (base / f"context/file{version}").write_text(version)
            (base / "context/Containerfile").write_text(
                f"FROM scratch\nCOPY below /below\nCOPY file{version} /file\nENV VERSION={version}\n"
            )
            layout = ImageLayout(base / "layout")
            image = build(base / "context/Containerfile", base / "context", layout=layout)
            root = Descriptor(media.OCI_MANIFEST, image.manifest_blob.digest, image.manifest_blob.size)

            async def upload(root=root, version=version) -> None:
                async with Client() as client:
                    await push(
                        client,
                        Reference.parse(f"{address}/team/app:{version}"),
                        root,
                        LayoutSource(base / "layout"),
                        Credentials(USER, PASSWORD),
                    )

            asyncio.run(upload())
        yield address


@dataclass
class Ended:
    status: int
    out: str
    err: str


@pytest.fixture
def image(module_daemon, tmp_path) -> Iterator[Callable[..., Ended]]:
    """Runs `cri-jails image ACTION ...`; afterwards the node has no image."""

    def run(action: str, *arguments: str, data: str = "") -> Ended:
        config = [] if action == "logout" else ["--config", module_daemon.config]
        done = subprocess.run(
            [sys.executable, "-m", "cri", "image", action, *config, *arguments],
            capture_output=True, text=True, check=False, input=data, cwd=REPOSITORY,
            env=os.environ | {"DOCKER_CONFIG": str(tmp_path / "docker")},
        )  # fmt: skip
        assert PASSWORD not in done.stdout + done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    yield run
    module_daemon.remove_all()
    for one in module_daemon.client("ListImages", v1.ListImagesRequest()).images:
        module_daemon.client("RemoveImage", v1.RemoveImageRequest(image=v1.ImageSpec(image=one.id)))


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:]]


def test_from_login_to_logout(image, private, module_daemon) -> None:
    name = f"{private}/team/app:1"
    refused = image("pull", name)
    assert (refused.status, refused.out) == (1, "")
    assert name in refused.err
    assert f"log in with: cri-jails image login {private}" in refused.err

    ended = image("login", private, "-u", USER, "--password-stdin", data=PASSWORD)
    assert (ended.status, ended.err) == (0, "")
    pulled = image("pull", name)
    assert (pulled.status, pulled.err) == (0, "")
    assert pulled.out.startswith(f"pulled {name}: sha256:")
    assert " (301kB in " in pulled.out
    image_id = image("pull", "-q", name).out.strip()
    assert f"pulled {name}: {image_id} " in pulled.out
    assert image("pull", name).out == f"{name} is up to date: {image_id}\n"

    assert table(image("ls").out) == [[f"{private}/team/app", "1", image_id[7:19], "301kB", "no"]]
    assert image("ls", "-o", "name", f"{private}/*").out == f"{name}\n"
    inspected = json.loads(image("inspect", image_id[7:19]).out)
    assert inspected["status"]["repoTags"] == [name]
    assert "VERSION=1" in inspected["info"]["imageSpec"]["config"]["Env"]
    steps = json.loads(image("history", "-o", "json", name).out)
    assert [step["createdBy"] for step in steps] == [
        step["created_by"] for step in reversed(inspected["info"]["imageSpec"]["history"])
    ]
    assert len(table(image("history", name).out)) == len(steps)

    assert image("logout", private).status == 0
    assert image("pull", name).status == 1
    assert PASSWORD not in module_daemon.log.read_text()


def test_what_is_used_stays(image, private, registry, module_daemon) -> None:
    image("login", private, "-u", USER, "--password-stdin", data=PASSWORD)
    one, two = f"{private}/team/app:1", f"{private}/team/app:2"
    assert image("pull", one, two, module_daemon.image).status == 0
    ids = {name: image("pull", "-q", name).out.strip() for name in (one, two, module_daemon.image)}
    mounts = [v1.Mount(image=v1.ImageSpec(image=one), container_path="/data", readonly=True)]
    pod = module_daemon.pod("uses")
    module_daemon.container(pod, "sleep", "1000", mounts=mounts)

    assert image("prune", "--dry-run").out == "0 of 3 images would be removed\n"
    told = json.loads(image("df", "-o", "json").out)
    assert (told["images"]["number"], told["images"]["inUse"]) == (3, 2)
    assert told["images"]["reclaimable"]["number"] == 1
    assert (told["containers"]["number"], told["containers"]["inUse"]) == (1, 1)
    assert told["images"]["filesystems"][0]["usedBytes"] > 300_000
    assert [row[:3] for row in table(image("df").out)[:2]] == [["images", "3", "2"], ["containers", "1", "1"]]

    pruned = image("prune", "--all")
    assert pruned.status == 0
    assert pruned.out.startswith(f"removed {ids[two]}: {two}, ")
    assert "1 of 3 images were removed; all took " in pruned.out
    assert set(image("ls", "-q", "--no-trunc").out.split()) == {ids[one], ids[module_daemon.image]}

    module_daemon.remove_all()
    removed = image("rm", one, ids[module_daemon.image])
    assert removed.out.splitlines()[0].startswith(f"removed {ids[one]}: {one}, {private}/team/app@sha256:")
    assert (removed.status, image("ls", "-q").out) == (0, "")
    after = json.loads(image("df", "-o", "json").out)
    assert after["images"]["filesystems"][0]["usedBytes"] == 0


def test_a_tag_that_moves_leaves_what_prune_removes(image, private, module_daemon) -> None:
    module_daemon.pull()
    # By its digest only, as what has lost its tag.
    digest = module_daemon.client(
        "ImageStatus", v1.ImageStatusRequest(image=v1.ImageSpec(image=module_daemon.image))
    ).image.repo_digests[0]
    assert image("rm", module_daemon.image).status == 0
    assert image("pull", digest).status == 0
    assert table(image("ls").out)[0][1] == "<none>"
    assert "1 of 1 images were removed" in image("prune").out
    assert image("ls", "-q").out == ""


def test_errors_name_the_image(image, private, module_daemon) -> None:
    image("login", private, "-u", USER, "--password-stdin", data=PASSWORD)
    ended = image("pull", f"{private}/team/none:1", f"{private}/team/app:none", "localhost:1/x", "")
    assert (ended.status, ended.out) == (1, "")
    lines = ended.err.splitlines()
    assert len(lines) == 4
    for line, what in zip(lines, ("team/none:1", "team/app:none", "localhost:1/x", "''"), strict=True):
        assert line.startswith("cri-jails: ")
        assert what in line
    assert image("rm", "sha256:" + "0" * 64).status == 1


def test_without_the_daemon(image, module_daemon) -> None:
    ended = image("ls", "--address", str(module_daemon.base / "none"))
    assert (ended.status, ended.out) == (1, "")
    assert "no daemon: there is no socket" in ended.err
