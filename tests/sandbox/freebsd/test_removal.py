"""Removing succeeds on what is gone, may be repeated, and does not wait for ever for what is busy."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from baustelle.removal import remove_tree
from cri.sandbox.freebsd import jails
from cri.sandbox.host import HostError
from cri.sandbox.spec import Resources, SandboxSpec, Security


@pytest.fixture
async def sandbox(machine) -> SandboxSpec:
    spec = machine.sandbox()
    await machine.host.create_sandbox(spec)
    return spec


@pytest.fixture
async def container(machine, sandbox, make):
    """One with a volume, a limit and a process."""
    mounts = (
        make.mount(machine.volume("data"), "/data"),
        make.mount(machine.volume("log", file=True), "/dev/log"),
    )
    spec = machine.container(sandbox, mounts=mounts, resources=Resources(unified={"pids.max": "5"}))
    await machine.host.create_container(spec)
    machine.kernel.spawn(jails.container_name(spec))
    return spec


@pytest.fixture
def is_gone(machine, container, sandbox):
    def check(*, pod: bool = False) -> None:
        state = machine.kernel.state()
        assert [mount for mount in state["mounts"] if "containers" in mount.target] == []
        assert state["rctl"] == state["processes"] == []
        assert [jail.name for jail, *_ in state["jails"]] == ([] if pod else [jails.pod_name(sandbox.id)])
        assert machine.files()["volumes/data/precious"] == "data of data"
        assert machine.files()["volumes/data"] is None

    return check


async def test_a_container(machine, container, is_gone) -> None:
    await machine.host.stop_container(container)
    is_gone()
    assert Path(container.directory, "rootfs").exists(), "its files stay until it is removed"
    for _ in range(2):
        await machine.host.stop_container(container)
        await machine.remove(container)
    assert not Path(container.directory, "rootfs").exists()


async def test_a_sandbox_takes_its_containers_jails_along(machine, sandbox, container, is_gone) -> None:
    for _ in range(2):
        await machine.host.stop_sandbox(sandbox, None)
    assert machine.kernel.jails(dying=True) == []
    await machine.remove(container)
    for _ in range(2):
        await machine.host.remove_sandbox(sandbox)
    is_gone(pod=True)
    assert not Path(sandbox.runtime_directory).exists()


async def test_what_never_was(machine, sandbox) -> None:
    before = machine.everything()
    await machine.host.stop_container(machine.container(sandbox))
    await machine.remove(machine.container(sandbox))
    other = machine.sandbox()
    await machine.host.stop_sandbox(other, None)
    await machine.host.remove_sandbox(other)
    assert machine.everything() == before


async def test_a_directory_that_is_gone(machine, sandbox) -> None:
    spec = machine.container(sandbox)
    Path(spec.directory).rmdir()
    await machine.remove(spec)


async def test_what_an_operator_has_removed(machine, container, is_gone) -> None:
    kernel = machine.kernel
    kernel.jail_remove(kernel.jail(jails.container_name(container)).jid)
    for mount in reversed(kernel.mounts()):
        if "containers" in mount.target:
            kernel.unmount(mount)
    kernel.rctl_remove("jail:")
    await machine.remove(container)
    is_gone()


@pytest.mark.parametrize("what", ["jail_remove", "unmount", "rctl_remove"])
async def test_what_an_operator_removes_at_that_moment(machine, container, is_gone, what: str) -> None:
    kernel = machine.kernel

    def meanwhile(call: str) -> None:
        kernel.on_call = lambda _: None
        if call.startswith("jail_remove"):
            kernel.jail_remove(int(call.split()[1]))
        elif call.startswith("unmount"):
            kernel.unmount(
                next(mount for mount in reversed(kernel.mounts()) if mount.target == call.split()[1])
            )
        else:
            kernel.rctl_remove(call.split()[1])

    kernel.on_call = lambda call: meanwhile(call) if call.startswith(what) else None
    await machine.remove(container)
    is_gone()


async def test_busy_for_a_moment(machine, container, is_gone) -> None:
    for mount in machine.kernel.mounts():
        if "containers" in mount.target:
            machine.kernel.keep_busy(mount.target, 3)
    await machine.remove(container)
    is_gone()


async def test_busy_for_ever_is_taken_by_force(machine, container, is_gone) -> None:
    for mount in machine.kernel.mounts():
        if "containers" in mount.target:
            machine.kernel.keep_busy(mount.target, 1_000_000)
    await machine.remove(container)
    is_gone()


async def test_what_force_does_not_take_stays_whole_and_is_removed_later(machine, container, is_gone) -> None:
    """Somebody shows the content of a volume elsewhere: then not even force unmounts it."""
    where = Path(container.directory, "rootfs/data")
    elsewhere = machine.volume("elsewhere")
    machine.kernel.mount("nullfs", elsewhere, {"from": str(where)})
    (mount,) = (mount for mount in machine.kernel.mounts() if mount.target == elsewhere)
    with pytest.raises(HostError) as caught:
        await machine.remove(container)
    assert caught.value.errno == errno.EBUSY
    assert machine.files()["volumes/data/precious"] == "data of data"
    machine.kernel.unmount(mount)
    await machine.remove(container)
    is_gone()


async def test_a_directory_is_not_removed_through_what_is_mounted_in_it(machine, container, is_gone) -> None:
    """The life cycle removes a container's directory even if the host could not remove the container."""
    with pytest.raises(OSError) as caught:
        remove_tree(Path(container.directory))
    assert caught.value.errno in (errno.EBUSY, errno.EXDEV)
    assert machine.files()["volumes/data/precious"] == "data of data"
    assert machine.files()["volumes/log"] == "file log"
    await machine.remove(container)
    is_gone()
    remove_tree(Path(container.directory))


async def test_a_jail_that_lingers(machine, container, is_gone) -> None:
    machine.kernel.linger = 3
    await machine.remove(container)
    machine.kernel.jails()
    is_gone()


@pytest.mark.parametrize("readonly_root", [False, True])
async def test_a_jail_that_goes_on_dying_does_not_keep_its_mounts(
    machine, sandbox, make, readonly_root: bool
) -> None:
    before = machine.everything()
    mounts = (make.mount(machine.volume("data"), "/data"),)
    spec = machine.container(sandbox, mounts=mounts, security=Security(readonly_root=readonly_root))
    await machine.host.create_container(spec)
    release = machine.kernel.hold(jails.container_name(spec))
    await machine.remove(spec)
    assert [mount for mount in machine.kernel.mounts() if "containers" in mount.target] == []
    release()
    machine.files()
    state, _ = machine.everything()
    assert state == before[0]


async def test_a_pod_that_goes_on_dying_makes_room_for_its_name(machine, sandbox) -> None:
    release = machine.kernel.hold(jails.pod_name(sandbox.id))
    await machine.host.stop_sandbox(sandbox, None)
    await machine.host.create_sandbox(sandbox)
    release()
    assert [jail.name for jail in machine.kernel.jails(dying=True)] == [jails.pod_name(sandbox.id)]


async def test_a_container_is_never_in_a_pod_that_is_gone(machine, sandbox, make) -> None:
    await machine.host.stop_sandbox(sandbox, None)
    before = machine.everything()
    spec = machine.container(sandbox, mounts=(make.mount("", "/scratch", tmpfs=True),))
    with pytest.raises(HostError, match="not found") as caught:
        await machine.host.create_container(spec)
    assert caught.value.errno == errno.ENOENT
    assert machine.everything() == before


async def test_mount_points_in_volumes_stay_for_others(machine, sandbox, make) -> None:
    """Another container may share the volume, and have something mounted at the same place."""
    data, nested = machine.volume("data"), machine.volume("nested")
    mounts = (make.mount(data, "/data"), make.mount(nested, "/data/a/b/c"), make.mount(nested, "/data/d"))
    first, second = (machine.container(sandbox, mounts=mounts) for _ in range(2))
    await machine.host.create_container(first)
    await machine.host.create_container(second)
    await machine.remove(first)
    assert Path(data, "a/b/c").is_dir()
    assert machine.kernel.files.listdir(f"{second.directory}/rootfs/data/d") == ["precious"]
    await machine.remove(second)
    assert Path(data, "d").is_dir()


async def test_a_mount_point_below_what_is_masked(machine, sandbox, make) -> None:
    mounts = (
        make.mount(machine.volume("data"), "/data"),
        make.mount(machine.volume("nested"), "/data/below"),
    )
    before = machine.everything()
    spec = machine.container(sandbox, mounts=mounts, security=Security(masked_paths=("/data",)))
    await machine.host.create_container(spec)
    await machine.remove(spec)
    assert machine.everything() == before
