"""What a daemon finds of one that died is removed; what others have on the node is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.sandbox.freebsd import jails
from cri.sandbox.spec import ContainerSpec, Resources, SandboxSpec

LIMITED = Resources(unified={"pids.max": "5"})


async def pod(machine, make) -> tuple[SandboxSpec, ContainerSpec]:
    """A sandbox with a container that has mounts and limits."""
    sandbox = machine.sandbox()
    await machine.host.create_sandbox(sandbox)
    mounts = (make.mount(machine.volume("data"), "/data"), make.mount("", "/scratch", tmpfs=True))
    container = machine.container(sandbox, mounts=mounts, resources=LIMITED)
    await machine.host.create_container(container)
    return sandbox, container


async def test_nothing_to_remove(machine, make) -> None:
    sandbox, container = await pod(machine, make)
    before = machine.everything()
    assert await machine.restart().leftovers([sandbox.id], [container.id]) == []
    assert machine.everything() == before


async def test_everything_that_no_record_names(machine, make) -> None:
    before = machine.everything()
    sandbox, container = await pod(machine, make)
    machine.volume("data")
    removed = await machine.restart().leftovers([], [])
    assert machine.kernel.state() == before[0]
    assert f"jail {jails.pod_name(sandbox.id)}" in removed
    assert f"mounts of container {container.id}" in removed
    assert machine.files()["volumes/data/precious"] == "data of data"
    assert await machine.host.leftovers([], []) == []


async def test_a_container_of_a_known_pod(machine, make) -> None:
    sandbox, kept = await pod(machine, make)
    before = machine.kernel.state()
    lost = machine.container(sandbox, mounts=kept.mounts, resources=LIMITED)
    await machine.host.create_container(lost)
    removed = await machine.restart().leftovers([sandbox.id], [kept.id])
    assert machine.kernel.state() == before
    assert all(lost.id in what for what in removed)


async def test_limits_and_mounts_without_a_jail(machine, make) -> None:
    before = machine.kernel.state()
    sandbox, container = await pod(machine, make)
    machine.kernel.jail_remove(machine.kernel.jail(jails.pod_name(sandbox.id)).jid)
    removed = await machine.restart().leftovers([], [])
    assert machine.kernel.state() == before
    assert set(removed) == {
        f"limits of {jails.container_name(container)}",
        f"mounts of container {container.id}",
    }


async def test_an_unfinished_layer(machine) -> None:
    before = machine.everything()
    await machine.host.snapshots.begin("sha256:2222", None)
    assert await machine.restart().leftovers([], []) == ["unfinished layer sha256-2222"]
    assert machine.everything() == before


async def test_another_daemons_pods_are_its_own(machine, another, make) -> None:
    await another.image(make.plain_image)
    await pod(another, make)
    before, files = machine.everything(), another.files()
    await pod(machine, make)
    await machine.restart().leftovers([], [])
    assert machine.kernel.state() == before[0]
    assert another.files() == files


@pytest.mark.parametrize("suffix", ["-2", "2", "/../elsewhere"])
async def test_a_state_directory_whose_name_begins_like_ours(machine, make, suffix: str) -> None:
    other = type(machine)(machine.kernel, Path(f"{machine.directory}{suffix}").resolve())
    await other.image(make.plain_image)
    await pod(other, make)
    before = machine.kernel.state()
    await machine.restart().leftovers([], [])
    assert machine.kernel.state() == before


async def test_an_operators_own(machine, make, tmp_path) -> None:
    """Jails with names like ours, limits of theirs, mounts beside ours."""
    kernel = machine.kernel
    root = tmp_path / "operator"
    (root / "below").mkdir(parents=True)
    for name in ("web", "cri-web", "cri-deadbeef00", "cri-deadbeef00.c0123456789", "cri-deadbeef00.db"):
        kernel.jail_create({"name": name, "path": str(root), "persist": True})
        kernel.rctl_add(f"jail:{name}:maxproc:deny=5")
        kernel.spawn(name)
    # Within our directory, but no jail of ours.
    kernel.jail_create({"name": "inspector", "path": str(machine.state), "persist": True})
    kernel.rctl_add("jail:not-yet-there:maxproc:deny=5")
    kernel.rctl_add("user:0:openfiles:deny=5000/process")
    kernel.mount("tmpfs", str(root / "below"), {})
    kernel.mount("nullfs", machine.volume("shown"), {"from": str(root)})
    before = machine.everything()
    sandbox, container = await pod(machine, make)
    await machine.restart().leftovers([], [])
    assert kernel.state() == before[0]
    await machine.host.leftovers([sandbox.id], [container.id])
    assert kernel.state() == before[0]
