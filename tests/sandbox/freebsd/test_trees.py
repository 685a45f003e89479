"""What a container's tree has beside its image: volumes that this declares, devices by directories, the node's /dev."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.spec import ContainerSpec, DeviceSpec, MountSpec, SandboxSpec, Security


@pytest.fixture
async def sandbox(machine) -> SandboxSpec:
    spec = machine.sandbox()
    await machine.host.create_sandbox(spec)
    return spec


def declared(machine, spec: ContainerSpec, *targets: str, mounts=()) -> ContainerSpec:
    own = tuple(
        MountSpec(f"{spec.directory}/volumes/{number}", target) for number, target in enumerate(targets)
    )
    for mount in own:
        Path(mount.source).mkdir(parents=True)  # as the life cycle does it
    return ContainerSpec(
        **{name: getattr(spec, name) for name in spec.__slots__} | {"mounts": (*own, *mounts)}
    )


def mounted(machine, spec: ContainerSpec) -> dict[str, tuple[str, str]]:
    """What is where in a container: kind and source, by the path inside."""
    found = {}
    for mount in machine.kernel.mounts()[2:]:
        for root in ("rootfs", "view"):
            if mount.target.startswith(f"{spec.directory}/{root}/"):
                found[mount.target.removeprefix(f"{spec.directory}/{root}")] = (mount.kind, mount.source)
    return found


@pytest.mark.parametrize("readonly", [False, True])
async def test_a_volume_begins_with_what_the_image_has(machine, sandbox, readonly) -> None:
    spec = machine.container(sandbox, security=Security(readonly_root=readonly))
    spec = declared(machine, spec, "/etc", "/new", "/var/run/")
    before = machine.everything()
    await machine.host.create_container(spec)
    volumes = Path(spec.directory, "volumes")
    assert (volumes / "0/hosts").read_text() == "of the image"
    assert (volumes / "1").stat().st_mode & 0o777 == 0o755
    assert mounted(machine, spec)["/new"] == ("nullfs", str(volumes / "1"))
    assert mounted(machine, spec)["/var/run"] == ("nullfs", str(volumes / "2"))
    await machine.host.stop_container(spec)
    await machine.host.create_container(spec)  # anew: what was written is not taken for the image's
    await machine.remove(spec)
    assert machine.everything() == before


async def test_a_volume_that_cannot_be(machine, sandbox) -> None:
    spec = declared(machine, machine.container(sandbox), "/etc/hosts")
    before = machine.everything()
    with pytest.raises(UnfitRequestError, match="mount on /etc/hosts: the image declares it"):
        await machine.host.create_container(spec)
    assert not Path(spec.directory, "volumes").exists()
    await machine.remove(spec)
    assert machine.everything() == before


async def test_links_do_not_lead_out(machine, sandbox, make) -> None:
    secret = Path(machine.volume("secret"))

    def fill(root: Path) -> None:
        make.plain_image(root)
        (root / "out").symlink_to(f"../../../../..{secret}")
        (root / "run").symlink_to("var/run")
        (root / "var/run/here").touch()

    chain = await machine.image(fill, "sha256:2222")
    spec = declared(machine, machine.container(sandbox, layers=(chain,)), "/out", "/run")
    await machine.host.create_container(spec)
    assert list(Path(spec.directory, "volumes/0").iterdir()) == []
    assert [path.name for path in Path(spec.directory, "volumes/1").iterdir()] == ["here"]
    assert set(mounted(machine, spec)) >= {str(secret), "/var/run"}
    await machine.remove(spec)


async def test_the_configs_mount_wins_by_whatever_name(machine, sandbox, make) -> None:
    def fill(root: Path) -> None:
        make.plain_image(root)
        (root / "link").symlink_to("var/run")

    chain = await machine.image(fill, "sha256:2222")
    mine = make.mount(machine.volume("mine"), "/link")
    for volume in ("/var/run", "/var/run/"):
        spec = declared(machine, machine.container(sandbox, layers=(chain,)), volume, mounts=(mine,))
        await machine.host.create_container(spec)
        assert mounted(machine, spec)["/var/run"] == ("nullfs", mine.source)
        await machine.remove(spec)


@pytest.mark.parametrize("outer", ["/m", "/m/", "//m", "/./m", "/x/../m"])
async def test_parents_first(machine, sandbox, make, outer) -> None:
    volumes = (make.mount(machine.volume("inner"), "/m/deep"), make.mount(machine.volume("outer"), outer))
    spec = machine.container(sandbox, mounts=volumes)
    await machine.host.create_container(spec)
    order = [mount.source for mount in machine.kernel.mounts() if "volumes" in mount.source]
    assert order == [machine.volume("outer"), machine.volume("inner")]
    await machine.remove(spec)


# -- Devices


@pytest.mark.parametrize("readonly", [False, True])
async def test_devices_of_a_directory_by_another_name(machine, sandbox, readonly) -> None:
    devices = tuple(DeviceSpec(f"/dev/usb/{name}", f"/dev/mine/{name}") for name in ("1", "2", "bus/3"))
    spec = machine.container(sandbox, devices=devices, security=Security(readonly_root=readonly))
    before = machine.everything()
    await machine.host.create_container(spec)
    rules = [call for call in machine.kernel.calls if call.startswith("devfs_apply")]
    assert rules
    place = Path(spec.directory, "rootfs/.cri-jails/dev/mine")
    assert {
        str(path.relative_to(place)): str(path.readlink()) for path in place.rglob("*") if path.is_symlink()
    } == {name: f"/dev/usb/{name}" for name in ("1", "2", "bus/3")}
    await machine.remove(spec)
    assert machine.everything() == before


async def test_links_for_devices_stay_inside(machine, sandbox, make) -> None:
    def fill(root: Path) -> None:
        make.plain_image(root)
        (root / ".cri-jails").symlink_to(f"../../../../..{machine.directory}")

    chain = await machine.image(fill, "sha256:2222")
    device = DeviceSpec("/dev/usb/1", "/dev/mine/1")
    spec = machine.container(sandbox, layers=(chain,), devices=(device,))
    with contextlib.suppress(HostError):
        await machine.host.create_container(spec)
    assert not (machine.directory / "dev").exists()
    await machine.remove(spec)


@pytest.mark.parametrize("privileged", [False, True])
async def test_the_nodes_dev_as_a_volume(machine, make, privileged) -> None:
    sandbox = machine.sandbox(privileged=privileged)
    await machine.host.create_sandbox(sandbox)
    mounts = (make.mount("/dev", "/dev"), make.mount("/dev", "/host/dev", readonly=True))
    spec = machine.container(sandbox, mounts=mounts, security=Security(privileged=privileged))
    await machine.host.create_container(spec)
    found = mounted(machine, spec)
    assert found["/dev"] == found["/host/dev"] == ("devfs", "devfs")
    assert [mount.target for mount in machine.kernel.mounts() if mount.kind == "devfs"].count(
        f"{spec.directory}/rootfs/dev"
    ) == 1
    await machine.remove(spec)


async def test_a_part_of_the_nodes_dev_is_no_volume(machine, sandbox, make) -> None:
    before = machine.everything()
    spec = machine.container(sandbox, mounts=(make.mount("/dev/pts", "/x"),))
    with pytest.raises(UnfitRequestError, match="devices of the node are shown by `devices`"):
        await machine.host.create_container(spec)
    await machine.remove(spec)
    assert machine.everything() == before
