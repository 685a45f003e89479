"""What a container's tree has on a FreeBSD kernel: volumes of images, images as volumes, options, devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError
from cri.sandbox.host import UnfitRequestError

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]


def context(**fields):
    return v1.LinuxContainerConfig(security_context=v1.LinuxContainerSecurityContext(**fields))


def privileged():
    return v1.LinuxPodSandboxConfig(security_context=v1.LinuxSandboxSecurityContext(privileged=True))


def mount(source, target, **fields):
    return v1.Mount(host_path=str(source), container_path=target, **fields)


def image(path="", target="/rest", **fields):
    return v1.Mount(
        **{"container_path": target, "image": v1.ImageSpec(image="other"), "readonly": True} | fields,
        image_sub_path=path,
    )


@pytest.mark.parametrize("readonly", [False, True])
async def test_volumes_that_an_image_declares(machine, directory, readonly):
    pod = await machine.pod()
    (directory / "mine").mkdir()
    (directory / "mine/here").touch()
    container = await machine.container(
        pod,
        image="declared",
        linux=context(readonly_rootfs=readonly),
        mounts=[mount(directory / "mine", "//data/")],
    )
    assert await machine.sh(container, "ls /data") == "here\n"
    seen = await machine.sh(
        container, "cd /etc; ls passwd; touch new /tmp/x/y/new /var/link/new && echo made; touch /x"
    )
    assert "passwd\nmade\n" in seen
    assert ("ead-only file system" in seen) == readonly
    again = await machine.container(pod, image="declared", name="b")
    assert "new" not in await machine.sh(again, "ls /etc")
    own = Path(machine.pods.container(container).spec.directory)
    await machine.pods.remove_container(container)
    assert not own.exists()
    assert await machine.sh(again, "touch /etc/x; ls /etc/x") == "/etc/x\n"


async def test_an_image_as_a_volume(machine):
    pod = await machine.pod()
    mounts = [
        image("etc"),
        image("/etc/../etc/passwd", "/who"),
        image("bin", "/dead", mount_options=["noexec"]),
    ]
    container = await machine.container(pod, mounts=mounts)
    assert "user:*:1000" in await machine.sh(container, "cat /rest/passwd")
    assert "user:*:1000" in await machine.sh(container, "cat /who")
    assert "ead-only file system" in await machine.sh(container, "touch /rest/x")
    assert "ermission denied" in await machine.sh(container, "/dead/echo x")
    (told, *_) = machine.pods.container(container).config.mounts
    assert told.image.image_ref == "sha256:1"
    with pytest.raises(UnfitRequestError, match="the image has no nowhere"):
        await machine.container(pod, name="b", mounts=[image("nowhere")])
    with pytest.raises(InvalidArgumentError, match="readonly is false"):
        await machine.container(pod, name="b", mounts=[image(readonly=False)])


async def test_mount_options(machine, directory):
    volume = directory / "volume"
    volume.mkdir()
    (volume / "run").write_text("#!/bin/sh\necho ran\n")
    (volume / "run").chmod(0o755)
    mounts = [
        mount(volume, "/plain"),
        mount(volume, "/dead", mount_options=["noexec", "nosuid", "nodev"], readonly=True),
    ]
    container = await machine.container(await machine.pod(), mounts=mounts)
    assert await machine.sh(container, "/plain/run") == "ran\n"
    seen = await machine.sh(container, "/dead/run; touch /dead/x")
    assert "ermission denied" in seen
    assert "ead-only file system" in seen


async def test_changes_of_devices_are_the_containers_own(machine):
    names = ("null", "zero", "random", "urandom")
    before = [(Path("/dev", name).stat().st_mode, Path("/dev", name).stat().st_uid) for name in names]
    pod = await machine.pod(linux=privileged())
    given = v1.Device(host_path="/dev/klog", container_path="/dev/klog", permissions="rw")
    klog = Path("/dev/klog").stat().st_mode
    first = await machine.container(pod, name="a", devices=[given])
    root = await machine.container(pod, name="b", linux=context(privileged=True))
    for container in (first, root):
        await machine.sh(container, "cd /dev; chmod 640 null zero random urandom klog; rm zero")
        assert "crw-r-----" in await machine.sh(container, "ls -l /dev/null")
    other = await machine.container(pod, name="c")
    assert "crw-rw-rw-" in await machine.sh(other, "ls -l /dev/null; ls -l /dev/zero")
    assert [(Path("/dev", name).stat().st_mode, Path("/dev", name).stat().st_uid) for name in names] == before
    assert Path("/dev/klog").stat().st_mode == klog


@pytest.fixture
def some() -> Path:
    """A directory of devices of the node."""
    for path in Path("/dev").iterdir():
        if path.is_dir() and path.name not in ("fd", "pts", "shm") and any(path.iterdir()):
            return path
    pytest.skip("this node has no directory of devices")


async def test_a_directory_of_devices(machine, some):
    pod = await machine.pod()
    devices = [
        v1.Device(host_path=str(some), container_path=target, permissions="rwm")
        for target in ("", "/dev/mine")
    ]
    for name, readonly in (("a", False), ("b", True)):
        container = await machine.container(
            pod, name=name, devices=devices, linux=context(readonly_rootfs=readonly)
        )
        found = {
            os.path.relpath(path, some)
            for path in some.rglob("*")
            if path.is_char_device() and not path.is_symlink()
        }
        assert found
        for one in found:
            seen = await machine.sh(container, f"ls -l {some}/{one}; ls -lL /dev/mine/{one}")
            assert [line[0] for line in seen.splitlines()] == ["c", "c"]


async def test_the_nodes_dev_as_a_volume(machine, some):
    pod = await machine.pod()
    mounts = [mount("/dev", "/dev/"), mount("/dev", "/host/dev")]
    container = await machine.container(pod, mounts=mounts)
    seen = await machine.sh(
        container,
        "echo x > /dev/null && echo x > /host/dev/null && chmod 600 /host/dev/null /dev/null && echo fine; ls /dev /host/dev",
    )
    assert seen.startswith("fine\n")
    assert not {"mem", "kmem", "klog", "pf", "vtbd0", "ada0"} & set(seen.split())
    assert Path("/dev/null").stat().st_mode & 0o777 == 0o666
    with pytest.raises(UnfitRequestError, match="devices of the node"):
        await machine.container(pod, name="b", mounts=[mount(some, "/x")])


@pytest.mark.parametrize("outer", ["/m", "/m/", "//m", "/./m", "/x/../m"])
async def test_parents_first(machine, directory, outer):
    for name in ("outer", "inner"):
        (directory / name).mkdir()
        (directory / name / f"in-{name}").touch()
    mounts = [mount(directory / "inner", "/m/deep"), mount(directory / "outer", outer)]
    container = await machine.container(await machine.pod(), mounts=mounts)
    assert await machine.sh(container, "ls /m/deep") == "in-inner\n"
