"""Every file that tells of images is damaged at once under a running pod: the daemon starts, and the pod runs on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def randomised(path: Path) -> None:
    path.write_bytes(os.urandom(200))


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def around_images(state: Path) -> list[Path]:
    """All files of the content store, and those beside the layers' own but for the proof that these are whole."""
    found = [*(state / "content").rglob("*"), *(state / "snapshots").glob("*/*/usage.json")]
    return [path for path in found if not path.is_dir() or path.is_symlink()]


def test_damage(daemon):
    daemon.pull()
    pod = daemon.pod()
    container = daemon.container(pod, "sleep", "1000")
    pid = daemon.pid(container)
    state = daemon.base / "state"
    (layers,) = (state / "snapshots").iterdir()
    for damage in (Path.unlink, emptied, halved, randomised, as_directory, as_fifo, as_link):
        files = around_images(state)
        assert len(files) >= 4
        for path in files:
            damage(path)
        (layers / "lost+found").mkdir(exist_ok=True)
        (state / "content/lost+found").mkdir(exist_ok=True)
        daemon.end(signal.SIGKILL)
        daemon.start()
        assert daemon.status(container).status.state == v1.ContainerState.CONTAINER_RUNNING
        assert daemon.pid(container) == pid
        assert daemon.exec(container, "echo", "here").stdout == b"here\n"
        assert [event["names"] for event in daemon.events("no layers of ours; left alone")][-1] == [
            "lost+found"
        ]
        images = daemon.client("ListImages", v1.ListImagesRequest()).images
        assert [list(image.repo_tags) for image in images] == [[daemon.image]]
        daemon.pull()
    for path in layers.glob("*/*"):
        if path.name != "fs":
            path.unlink()
    daemon.end(signal.SIGKILL)
    daemon.start()
    assert daemon.events(
        "a layer may be incomplete, but a running container has it; remove that, then pull the image again"
    )
    other = daemon.container(pod, "sleep", "1000", name="other")
    assert daemon.exec(other, "echo", "here").stdout == b"here\n"
    daemon.remove_all()
    daemon.client("RemoveImage", v1.RemoveImageRequest(image=v1.ImageSpec(image=daemon.image)))
    assert daemon.client("ListImages", v1.ListImagesRequest()).images == []
    daemon.end()
    daemon.start()
    assert [path.name for path in layers.iterdir()] == ["lost+found"]
    assert [path for path in (state / "content").rglob("*") if not path.is_dir()] == []
