"""What is refused of a config because of what else it says, or of what the node is."""

from __future__ import annotations

import pytest

from baustelle.bundle import ImageDefaults
from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox import limits, places, processes, refusals, sharing
from cri.sandbox.host import Features
from cri.sandbox.spec import MountSpec, PortMapping, Propagation, SandboxSpec

MOUNTINFO = b"""\
1 0 8:1 / / rw - ext4 /dev/a rw
2 1 8:2 / /shared rw shared:7 - ext4 /dev/b rw
3 1 8:3 / /slave rw master:3 - ext4 /dev/c rw
4 1 8:4 / /both rw master:3 shared:9 - ext4 /dev/d rw
5 2 8:5 / /shared/inner rw - ext4 /dev/e rw
6 1 8:6 / /with\\040blank rw shared:8 - ext4 /dev/f rw
7 1 0:4 / /proc rw shared:9 - proc proc rw
8 1 8:7 / /twice rw shared:10 - ext4 /dev/g rw
9 8 8:8 / /twice rw - tmpfs tmpfs rw
"""


@pytest.fixture(autouse=True)
def _node(tmp_path, monkeypatch):
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    monkeypatch.setattr(refusals, "_MOUNTINFO", path)


def mount(target: str, source: str = "/srv", propagation: Propagation = Propagation.PRIVATE) -> MountSpec:
    return MountSpec(source=source, target=target, propagation=propagation)


@pytest.mark.parametrize("target", ["/", "//", "/.", "/a/..", "/../", "", "."])
def test_nothing_is_mounted_on_the_root(target) -> None:
    with pytest.raises(InvalidArgumentError, match="would hide the container's whole root"):
        refusals.check_mounts([mount(target)])


@pytest.mark.parametrize(
    "target", ["/proc/sys", "/proc/1", "//proc/x", "/a/../proc/self", "/proc/cpuinfo/x", "/proc/net", "/proc"]
)
def test_nothing_is_mounted_inside_proc(target) -> None:
    with pytest.raises(InvalidArgumentError, match="nothing is mounted inside /proc but /proc/cpuinfo"):
        refusals.check_mounts([mount(target)])


def test_what_lxcfs_imitates_and_proc_itself_may_be_mounted() -> None:
    refusals.check_mounts([mount(target) for target in sorted(places.IN_PROC)])
    refusals.check_mounts([mount("/proc", "/proc"), mount("/procs"), mount("/host/proc", "/proc")])


@pytest.mark.parametrize(
    ("source", "slave_is_enough", "shared_needed"),
    [
        ("/srv", False, False),
        ("/shared", True, True),
        ("/shared/deep/er", True, True),
        ("/sharedness", False, False),
        ("/shared/inner/x", False, False),
        ("/slave/x", True, False),
        ("/both", True, True),
        ("/with blank/x", True, True),
        ("/twice/x", False, False),
    ],
)
def test_propagation_is_given_where_the_source_can_give_it(source, slave_is_enough, shared_needed) -> None:
    for propagation, can, words in (
        (Propagation.HOST_TO_CONTAINER, slave_is_enough, "not a shared or slave mount"),
        (Propagation.BIDIRECTIONAL, shared_needed, "not a shared mount"),
    ):
        if can:
            refusals.check_mounts([mount("/a", source, propagation)])
        else:
            with pytest.raises(
                InvalidArgumentError, match=f"path '{source}' is mounted on .* {words}: `mount --make"
            ):
                refusals.check_mounts([mount("/a", source, propagation)])


def test_the_same_port_once_and_no_other_way() -> None:
    one, other = PortMapping("tcp", 80, 8080), PortMapping("tcp", 80, 8081)
    assert refusals.check_ports([one, one]) == (one,)
    udp = PortMapping("udp", 80, 8081)
    here, there = PortMapping("tcp", 80, 1, "192.0.2.1"), PortMapping("tcp", 80, 2, "192.0.2.2")
    assert refusals.check_ports([one, udp]) == (one, udp)
    assert refusals.check_ports([here, there]) == (here, there)
    for pair in ([one, other], [one, here], [here, PortMapping("tcp", 80, 9, "192.0.2.1")]):
        with pytest.raises(InvalidArgumentError, match="tcp port 80 of the node is to lead to"):
            refusals.check_ports(pair)


def test_labels_are_refused_where_they_mean_something(tmp_path, monkeypatch) -> None:
    options = v1.SeLinuxOption(level="s0:c1,c2")
    monkeypatch.setattr(refusals, "_SELINUX", tmp_path / "enforce")
    refusals.check_selinux(options)
    (tmp_path / "enforce").write_text("1")
    refusals.check_selinux(None)
    refusals.check_selinux(v1.SeLinuxOption())
    with pytest.raises(UnsupportedError, match="selinux_options"):
        refusals.check_selinux(options)


V1 = Features(recursive_readonly_mounts=True, hugepages=frozenset({"2MB"}))
V2 = Features(recursive_readonly_mounts=True, unified=None)
FREEBSD = Features(recursive_readonly_mounts=True, unified=frozenset({"pids.max"}))


@pytest.mark.parametrize(
    ("features", "values", "words"),
    [
        (V1, dict(unified={"memory.high": "1"}), "unified memory.high: this host has no such limits"),
        (FREEBSD, dict(unified={"memory.high": "1", "pids.max": "9"}), "unified memory.high"),
        (V2, dict(hugepage_limits=[v1.HugepageLimit("2MB", 1)]), "hugepage_limits of 2MB: .* it can limit: none"),
        (V1, dict(hugepage_limits=[v1.HugepageLimit("1GB", 1)]), "hugepage_limits of 1GB: .* it can limit: 2MB"),
    ],
)  # fmt: skip
def test_a_limit_that_this_host_has_not_is_refused(features, values, words) -> None:
    with pytest.raises(UnsupportedError, match=words):
        limits.resources(v1.LinuxContainerResources(**values), features)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(memory_limit_in_bytes=10, memory_swap_limit_in_bytes=9), "9 is below memory_limit_in_bytes 10"),
        (dict(memory_limit_in_bytes=-1, memory_swap_limit_in_bytes=9), "limits memory too"),
        (dict(hugepage_limits=[v1.HugepageLimit("2MB", 0)] * 2), "2MB is there twice"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(values, words) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        limits.resources(v1.LinuxContainerResources(**values), V1)


def test_a_limit_of_nothing_is_none() -> None:
    """The kubelet names every size of pages that it knows, with 0."""
    sizes = [v1.HugepageLimit("2MB", 0), v1.HugepageLimit("1GB", 0)]
    made = limits.resources(
        v1.LinuxContainerResources(hugepage_limits=sizes, unified={"memory.high": "max"}), V2
    )
    assert (made.hugepage_limits, made.unified) == ({}, {"memory.high": "max"})
    assert limits.resources(v1.LinuxContainerResources(hugepage_limits=sizes), V1).hugepage_limits == {
        "2MB": 0
    }


def test_a_user_by_number_or_by_name() -> None:
    context = v1.LinuxContainerSecurityContext(run_as_user=v1.Int64Value(value=0), run_as_username="me")
    sandbox = SandboxSpec("s", "p", "n", "/d", "/r")
    with pytest.raises(InvalidArgumentError, match="both run_as_user 0 and run_as_username 'me'"):
        processes.process(v1.ContainerConfig(command=["true"]), context, ImageDefaults(), sandbox)


def test_a_target_goes_with_its_mode_and_is_of_the_pod() -> None:
    def context(pid: v1.NamespaceMode) -> v1.LinuxContainerSecurityContext:
        return v1.LinuxContainerSecurityContext(namespace_options=v1.NamespaceOption(pid=pid, target_id="c1"))

    with pytest.raises(InvalidArgumentError, match="target_id 'c1' goes with pid TARGET, not POD"):
        sharing.namespaces(context(v1.NamespaceMode.POD).namespace_options, V1)
    sharing.check_target(context(v1.NamespaceMode.TARGET), {"c1"})
    with pytest.raises(InvalidArgumentError, match="target_id 'c1': pid TARGET needs the id of a container"):
        sharing.check_target(context(v1.NamespaceMode.TARGET), {"c2"})


def test_a_right_that_no_container_has_is_refused() -> None:
    jail = Features(recursive_readonly_mounts=True, capabilities=frozenset({"CHOWN"}))
    refusals.check_capabilities(["CHOWN"], jail)
    refusals.check_capabilities(["SYS_ADMIN", "ALL"], V1)
    with pytest.raises(UnsupportedError, match="add_capabilities ALL, SYS_TIME: this host has no such right"):
        refusals.check_capabilities(["CHOWN", "SYS_TIME", "ALL"], jail)


def test_swap_is_limited_beside_memory() -> None:
    swap = v1.LinuxContainerResources(memory_swap_limit_in_bytes=9)
    assert limits.resources(swap, V1).memory_swap_limit == 9, "an update may leave the other as it is"
    with pytest.raises(InvalidArgumentError, match="set memory_limit_in_bytes as well"):
        limits.of_container(swap, V1)
    limits.of_container(v1.LinuxContainerResources(memory_swap_limit_in_bytes=-1), V1)
