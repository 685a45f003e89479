"""An image, or a neighbour in a shared volume, decides nothing about the node: every mount lands inside of its container."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.sandbox.host import HostError
from cri.sandbox.spec import ContainerSpec, DeviceSpec, Resources, SandboxSpec, Security

TARGETS = ("/data", "/etc/hosts", "/var/run/secrets/token", "/dev/termination-log", "/data/below")


@pytest.fixture
async def sandbox(machine) -> SandboxSpec:
    spec = machine.sandbox()
    await machine.host.create_sandbox(spec)
    return spec


def mounts_for(machine, make, targets=TARGETS) -> tuple:
    files = {"/etc/hosts", "/var/run/secrets/token", "/dev/termination-log"}
    return tuple(
        make.mount(machine.volume(target.strip("/").replace("/", "-"), file=target in files), target)
        for target in targets
    )


def stray(machine, spec: ContainerSpec) -> list[str]:
    """The mounts that are not inside of the container's own tree, or hide all of it."""
    inside = (f"{spec.directory}/rootfs/", f"{spec.directory}/view/")
    return [
        mount.target
        for mount in machine.kernel.mounts()[2:]
        if not mount.target.startswith(inside) and mount.target != f"{spec.directory}/view"
    ]


async def outlive(machine, spec: ContainerSpec, before: object) -> bool:
    """Create and remove a container; whether it could be made. Nothing lands outside, nothing stays, nothing is lost."""
    made = False
    with contextlib.suppress(HostError):
        await machine.host.create_container(spec)
        made = True
        assert stray(machine, spec) == []
    await machine.remove(spec)
    assert machine.everything() == before
    shutil.rmtree(spec.directory)
    return made


def link(name: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    return change


def file(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).write_text("a file")

    return change


def fifo(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(root / name)

    return change


IMAGES = {
    "etc is the root": link("etc", "/"),
    "dev is far above": link("dev", "../../../../../../.."),
    "dev is the root": link("dev", "/"),
    "dev is itself": link("dev", "dev"),
    "dev is etc": link("dev", "/etc"),
    "dev is a file": file("dev"),
    "dev is a dangling link": link("dev", "/nowhere/at/all"),
    "data is the root": link("data", "/"),
    "data is above": link("data", ".."),
    "data is the node's": link("data", "/tmp"),
    "data is a file": file("data"),
    "hosts is the root": link("etc/hosts", "/"),
    "hosts is a directory of the node": link("etc/hosts", "/etc"),
    "hosts is a file of the node": link("etc/hosts", "/../../../../../../etc/passwd"),
    "hosts is a fifo": fifo("etc/hosts"),
    "passwd is a fifo": fifo("etc/passwd"),
    "secrets lead above": link("var/run", "../../../../../../../../../tmp"),
    "the place for devices is elsewhere": link(".cri-jails", "../../../../../tmp"),
    "the place for devices is the root": link(".cri-jails", "/"),
    "the place for devices is a file": file(".cri-jails"),
    "the place for devices is dev": link(".cri-jails", "/dev"),
    "proc is the root": link("proc", "/"),
    "proc is dev": link("proc", "dev"),
    "sys is proc": link("sys", "proc/sys"),
    "termination log is a link": link("dev/termination-log", "/../../../../../etc/shadow"),
}


@pytest.mark.parametrize("readonly_root", [False, True])
@pytest.mark.parametrize("system", ["freebsd", "linux"])
@pytest.mark.parametrize("what", IMAGES)
async def test_images(machine, sandbox, make, what: str, system: str, *, readonly_root: bool) -> None:
    def fill(root: Path) -> None:
        make.plain_image(root)
        IMAGES[what](root)

    chain = await machine.image(fill, "sha256:bad")
    mounts = mounts_for(machine, make)
    before = machine.everything()
    spec = machine.container(
        sandbox,
        mounts=mounts,
        layers=(chain,),
        os=system,
        security=Security(readonly_root=readonly_root, masked_paths=("/etc/passwd", "/etc", "/proc/cpuinfo")),
        resources=Resources(unified={"pids.max": "5"}),
    )
    await outlive(machine, spec, before)


async def test_a_plain_image_is_none_of_these(machine, sandbox, make) -> None:
    """Else the tests above would tell nothing."""
    mounts = mounts_for(machine, make)
    before = machine.everything()
    assert await outlive(machine, machine.container(sandbox, mounts=mounts), before)


@pytest.mark.parametrize("target", ["/", "//", "/.", "/data/..", "/../..", "/../../../../tmp"])
async def test_a_volume_does_not_take_the_place_of_the_root(machine, sandbox, make, target: str) -> None:
    mounts = (make.mount(machine.volume("data"), target),)
    before = machine.everything()
    await outlive(machine, machine.container(sandbox, mounts=mounts), before)


@pytest.mark.parametrize(
    "device",
    [
        DeviceSpec("/dev/null", "/dev/../../../../../escaped"),
        DeviceSpec("/dev/null", "/dev/sub/../../escaped"),
        DeviceSpec("/dev/../etc/passwd", "/dev/passwd"),
        DeviceSpec("/etc/passwd", "/dev/passwd"),
        DeviceSpec("/dev/null", "/etc/null"),
        DeviceSpec("/dev/null", "/dev/"),
    ],
)
async def test_devices_stay_in_dev(machine, sandbox, device: DeviceSpec) -> None:
    before = machine.everything()
    spec = machine.container(sandbox, devices=(device,))
    with contextlib.suppress(HostError):
        await machine.host.create_container(spec)
        escaped = [path for path in Path(machine.directory).rglob("*") if path.name in ("escaped", "passwd")]
        assert [path for path in escaped if "etc" not in path.parts] == []
    await machine.remove(spec)
    assert machine.everything() == before
    assert not Path(spec.directory, "escaped").is_symlink()


NAMES = st.sampled_from(
    ["dev", "etc", "data", "data/below", "var", "var/run", "etc/hosts", ".cri-jails", "proc", "view"]
)
LEADS_TO = st.sampled_from(
    [
        "/",
        ".",
        "..",
        "../..",
        "../../../../..",
        "/dev",
        "/etc",
        "/data",
        "dev/fd",
        "/proc",
        "/tmp",
        "nowhere",
        "/x/y",
        "hosts",
    ]
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    links=st.dictionaries(NAMES, LEADS_TO, min_size=1, max_size=4),
    targets=st.lists(st.sampled_from([*TARGETS, "/x/y/z", "/proc", "/dev/fd/x"]), unique=True, max_size=4),
    readonly_root=st.booleans(),
)
async def test_any_links(machine, sandbox, make, links, targets, *, readonly_root: bool) -> None:
    def fill(root: Path) -> None:
        make.plain_image(root)
        for name, target in links.items():
            with contextlib.suppress(OSError):  # a parent leads nowhere by now
                link(name, target)(root) if inside(root, name) else None

    chain = await machine.image(fill, "sha256:any")
    try:
        mounts = mounts_for(machine, make, targets)
        before = machine.everything()
        spec = machine.container(
            sandbox, mounts=mounts, layers=(chain,), security=Security(readonly_root=readonly_root)
        )
        await outlive(machine, spec, before)
    finally:
        await machine.host.snapshots.remove(chain)


def inside(root: Path, name: str) -> bool:
    """Whether making `name` changes nothing but the image."""
    return (root / name).parent.resolve().is_relative_to(root)


async def test_a_neighbour_that_swaps_a_mount_point_of_a_shared_volume(machine, sandbox, make) -> None:
    """Between the look at the path and the mount: it is noticed, and the mount taken back wherever it landed."""
    shared, inner = machine.volume("shared"), machine.volume("inner")
    victim = machine.container(sandbox)
    await machine.host.create_container(victim)
    for trap in (Path(victim.directory, "rootfs/etc"), Path(machine.volume("elsewhere"))):
        before = machine.everything()
        spec = machine.container(
            sandbox, mounts=(make.mount(shared, "/data"), make.mount(inner, "/data/inner"))
        )

        def swap(call: str, trap: Path = trap) -> None:
            if call.startswith("mount nullfs") and call.endswith("/data/inner"):
                Path(shared, "inner").rmdir()
                Path(shared, "inner").symlink_to(trap)

        machine.kernel.on_call = swap
        with pytest.raises(HostError, match="the path led somewhere else"):
            await machine.host.create_container(spec)
        machine.kernel.on_call = lambda _: None
        assert [mount for mount in machine.kernel.mounts() if mount.target == str(trap)] == []
        Path(shared, "inner").unlink(missing_ok=True)
        await machine.remove(spec)
        assert machine.everything() == before


async def test_a_volume_that_is_swapped_is_noticed(machine, sandbox, make) -> None:
    data, other = machine.volume("data"), machine.volume("other")
    before = machine.everything()
    spec = machine.container(sandbox, mounts=(make.mount(data, "/data"),))

    def swap(call: str) -> None:
        if call.startswith("mount nullfs"):
            Path(data).rename(f"{data}.old")
            Path(data).symlink_to(other)

    machine.kernel.on_call = swap
    with pytest.raises(HostError, match="another file took its place"):
        await machine.host.create_container(spec)
    machine.kernel.on_call = lambda _: None
    Path(data).unlink()
    Path(f"{data}.old").rename(data)
    assert machine.everything() == before


@pytest.mark.parametrize("name", ["*", "[a-z]*", "null?", "null", "zero", "random"])
async def test_a_mount_below_dev_shows_no_device(machine, sandbox, make, name: str) -> None:
    """The name of a link in devfs becomes a pattern of its rules."""
    before = machine.everything()
    spec = machine.container(sandbox, mounts=(make.mount(machine.volume("data"), f"/dev/{name}/x"),))
    with pytest.raises(HostError):
        await machine.host.create_container(spec)
    del before
    assert not machine.kernel.state()["mounts"] or all(
        spec.directory not in mount.target for mount in machine.kernel.mounts()
    )
