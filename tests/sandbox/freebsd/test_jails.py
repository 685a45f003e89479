"""What jails are made of, as the kernel takes it; and what the policy refuses."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

import pytest

from cri.sandbox.freebsd import jails
from cri.sandbox.freebsd.calls import DISABLE, INHERIT, NEW
from cri.sandbox.freebsd.jails import ANNOTATION, FIB_ANNOTATION
from cri.sandbox.freebsd.limits import most_reserved
from cri.sandbox.host import HostError, LimitRefusedError, Measured
from cri.sandbox.spec import Namespaces, Resources, Security, Sharing
from cri.sandbox.usage import InterfaceUsage

PODS = {
    "plain": {},
    "named": {"hostname": "web-0"},
    "privileged": {"privileged": True},
    "of the node's network": {"namespaces": Namespaces(network=Sharing.NODE)},
    "of the node's objects": {"namespaces": Namespaces(ipc=Sharing.NODE)},
    "of all that is the node's": {
        "namespaces": Namespaces(network=Sharing.NODE, ipc=Sharing.NODE),
        "privileged": True,
    },
}


async def a_pod(machine, **fields):
    spec = machine.sandbox(**fields)
    await machine.host.create_sandbox(spec)
    return spec, machine.kernel.jail(jails.pod_name(spec.id))


async def a_container(machine, sandbox, **fields):
    spec = machine.container(sandbox, **fields)
    await machine.host.create_container(spec)
    return spec, machine.kernel.jail(jails.container_name(spec))


@pytest.mark.parametrize("fields", PODS.values(), ids=PODS)
@pytest.mark.parametrize("missing", [frozenset(), frozenset({"meta", "env"}), frozenset(jails._SYSV)])
async def test_every_kind_of_pod_and_of_container_is_one_that_the_kernel_takes(
    machine, fields, missing
) -> None:
    machine.kernel.missing = set(missing)
    sandbox, _ = await a_pod(machine, **fields)
    for system in ("freebsd", "linux"):
        for privileged in {False, fields.get("privileged", False)}:
            for add in ((), ("NET_RAW",), ("ALL",)):
                for drop in ((), ("NET_RAW",), ("ALL",)):
                    security = Security(privileged=privileged, add_capabilities=add, drop_capabilities=drop)
                    await a_container(machine, sandbox, os=system, security=security)


async def test_a_pod_has_a_network_stack_of_its_own_and_its_containers_share_it(machine) -> None:
    sandbox, pod = await a_pod(machine, hostname="web-0")
    _, container = await a_container(machine, sandbox)
    assert pod.vnet == pod.jid == container.vnet
    assert pod.parameters["host.hostname"] == "web-0"
    assert [container.parameters[name] for name in ("ip4", "ip6", "host")] == [INHERIT] * 3
    assert container.parameters["enforce_statfs"] == 2


async def test_or_the_nodes(machine) -> None:
    sandbox, pod = await a_pod(machine, namespaces=Namespaces(network=Sharing.NODE))
    _, container = await a_container(machine, sandbox)
    assert pod.vnet == container.vnet == 0
    assert [pod.parameters[name] for name in ("ip4", "ip6")] == [INHERIT] * 2


async def test_system_v_objects_are_the_pods(machine) -> None:
    sandbox, pod = await a_pod(machine)
    _, one = await a_container(machine, sandbox)
    _, other = await a_container(machine, sandbox, annotations={f"{ANNOTATION}sysvshm": "new"})
    assert pod.sysv == one.sysv == dict.fromkeys(("sysvmsg", "sysvsem", "sysvshm"), pod.jid)
    assert other.sysv["sysvshm"] == other.jid
    _, none = await a_container(machine, sandbox, annotations={f"{ANNOTATION}sysvmsg": "disable"})
    assert "sysvmsg" not in none.sysv


async def test_two_pods_may_have_children_at_the_same_time(machine) -> None:
    pods = [await a_pod(machine) for _ in range(3)]
    for _ in range(3):
        for sandbox, _ in pods:
            await a_container(machine, sandbox)
    assert len(machine.kernel.jails()) == 12


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("allow.mlock", "true", True),
        ("allow.raw_sockets", "false", False),
        ("securelevel", "2", 2),
        ("enforce_statfs", "1", 1),
        ("enforce_statfs", "2", 2),
        ("sysvsem", "inherit", INHERIT),
        ("sysvsem", "new", NEW),
        ("sysvsem", "disable", DISABLE),
    ],
)
async def test_annotations_set_parameters(machine, name: str, value: str, expected: object) -> None:
    sandbox, _ = await a_pod(machine)
    _, jail = await a_container(machine, sandbox, annotations={f"{ANNOTATION}{name}": value, "other": "x"})
    assert jail.parameters[name] == expected
    if name.startswith("allow."):
        assert (name in jail.allowed) is expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allow.mount", "true"),
        ("allow.mount.nullfs", "true"),
        ("allow.suser", "true"),
        ("allow.mlock", "perhaps"),
        ("allow.nomlock", "true"),
        ("allow.", "true"),
        ("", "x"),
        ("path", "/"),
        ("vnet", "inherit"),
        ("ip4", "inherit"),
        ("name", "other"),
        ("persist", "false"),
        ("children.max", "5"),
        ("host.hostname", "node"),
        ("securelevel", "9"),
        ("enforce_statfs", "0"),
        ("devfs_ruleset", "0"),
        ("linux.osname", "x"),
    ],
)
@pytest.mark.parametrize("privileged", [False, True])
async def test_annotations_that_are_refused(machine, name: str, value: str, *, privileged: bool) -> None:
    sandbox, _ = await a_pod(machine, privileged=privileged)
    before = machine.everything()
    security = Security(privileged=privileged)
    spec = machine.container(sandbox, annotations={f"{ANNOTATION}{name}": value}, security=security)
    with pytest.raises(HostError, match=f"annotation {ANNOTATION}{name}") as caught:
        await machine.host.create_container(spec)
    assert caught.value.errno == errno.EPERM
    assert machine.everything() == before


async def test_nobody_renames_the_node(machine) -> None:
    """With the node's network a container has the node's host name."""
    sandbox, _ = await a_pod(machine, namespaces=Namespaces(network=Sharing.NODE))
    spec = machine.container(
        sandbox, annotations={f"{ANNOTATION}allow.set_hostname": "true"}, namespaces=sandbox.namespaces
    )
    with pytest.raises(HostError, match="the name is the node's"):
        await machine.host.create_container(spec)


async def test_a_routing_table(machine) -> None:
    sandbox, _ = await a_pod(machine)
    with pytest.raises(HostError, match=r"set net\.fibs in /boot/loader\.conf"):
        await a_container(machine, sandbox, annotations={FIB_ANNOTATION: "1"})
    machine.kernel.sysctls["net.fibs"] = struct.pack("=i", 2)
    await a_container(machine, sandbox, annotations={FIB_ANNOTATION: "1"})


async def test_linux_images_need_the_emulation(machine) -> None:
    sandbox, _ = await a_pod(machine)
    before = machine.everything()
    machine.kernel.modules -= {"linux64elf", "linprocfs"}
    with pytest.raises(HostError, match="kldload") as caught:
        await a_container(machine, sandbox, os="linux")
    assert caught.value.errno == errno.ENOEXEC
    assert "linux64" in str(caught.value)
    assert machine.everything() == before


class TestWithoutRacct:
    @pytest.fixture(autouse=True)
    def off(self, kernel) -> None:
        kernel.racct = False

    async def test_containers_run_without_limits_that_nobody_can_keep(self, machine) -> None:
        before = machine.everything()
        sandbox, _ = await a_pod(machine)
        spec, jail = await a_container(
            machine, sandbox, resources=Resources(memory_limit=1 << 26, cpuset_cpus="1")
        )
        assert jail.cpus == {1}
        with pytest.raises(HostError, match=r"kern\.racct\.enable"):
            await machine.host.update_container(spec, Resources(memory_limit=1 << 27))
        await machine.remove(spec)
        assert await machine.host.leftovers([sandbox.id], []) == []
        await machine.host.stop_sandbox(sandbox, None)
        await machine.host.remove_sandbox(sandbox)
        assert machine.everything() == before

    async def test_usage_is_that_of_the_living(self, machine) -> None:
        sandbox, _ = await a_pod(machine)
        spec, jail = await a_container(machine, sandbox)
        for _ in range(2):
            pid = machine.kernel.spawn(jail.name, cpu_microseconds=1500, resident=4096)
        for one in (await usages(machine, sandbox, spec)).values():
            assert (one.cpu.total, one.memory.working_set, one.processes.processes) == (3_000_000, 8192, 2)
            assert one.processes.descriptors is None
        machine.kernel.end(pid)
        for one in (await usages(machine, sandbox, spec)).values():
            assert one.cpu.total >= 3_000_000, "what was used stays used"


async def test_a_limit_below_what_is_in_use_is_refused_and_kills_nobody(machine) -> None:
    sandbox, _ = await a_pod(machine)
    spec, jail = await a_container(machine, sandbox, resources=Resources(memory_limit=1 << 26))
    machine.kernel.use(jail.name, memoryuse=1 << 25)
    before = machine.kernel.rctl_rules(f"jail:{jail.name}:")
    with pytest.raises(LimitRefusedError, match=f"{1 << 25} bytes are in use"):
        await machine.host.update_container(spec, Resources(memory_limit=(1 << 25) - 1, cpu_quota=5000))
    assert machine.kernel.rctl_rules(f"jail:{jail.name}:") == before
    for limit in (1 << 25, 1 << 27):
        await machine.host.update_container(spec, Resources(memory_limit=limit))
        assert f"jail:{jail.name}:memoryuse:sigkill={limit}" in machine.kernel.rctl_rules(
            f"jail:{jail.name}:"
        )
    machine.kernel.use(jail.name, memoryuse=1 << 28)
    spec = replace(spec, resources=Resources(memory_limit=1 << 27))
    await machine.host.update_container(spec, Resources(cpu_quota=5000))  # the limit stays, as it is
    await machine.host.update_container(spec, Resources(memory_limit=-1))
    assert "memoryuse" not in str(machine.kernel.rctl_rules(f"jail:{jail.name}:"))


async def test_cpu_memory_and_swap_up_and_down(machine) -> None:
    sandbox, _ = await a_pod(machine)
    spec, jail = await a_container(machine, sandbox)
    for memory, swap, quota in (
        (1 << 26, 1 << 27, 50_000),
        (1 << 28, 1 << 29, 150_000),
        (1 << 25, 1 << 25, 1000),
    ):
        update = Resources(memory_limit=memory, memory_swap_limit=swap, cpu_quota=quota, cpu_period=100_000)
        await machine.host.update_container(spec, update)
        assert set(machine.kernel.rctl_rules(f"jail:{jail.name}:")) == {
            f"jail:{jail.name}:{rule}"
            for rule in (
                f"memoryuse:sigkill={memory}",
                f"swapuse:deny={most_reserved(memory, swap)}",
                f"pcpu:deny={quota // 1000}",
            )
        }


async def test_nothing_is_done_for_a_pod_as_a_whole_that_would_hold_each_container_to_it(machine) -> None:
    sandbox, _ = await a_pod(machine)
    await a_container(machine, sandbox)
    before = machine.everything()
    await machine.host.update_sandbox(sandbox, Resources(memory_limit=1 << 26, cpu_quota=5000))
    assert machine.everything() == before


async def test_usage_of_racct(machine) -> None:
    sandbox, _ = await a_pod(machine)
    spec, jail = await a_container(machine, sandbox, resources=Resources(memory_limit=10_000))
    machine.kernel.use(jail.name, cputime=2, memoryuse=4096, swapuse=1, maxproc=3, openfiles=9, nthr=5)
    machine.kernel.use(jail.name.partition(".")[0], cputime=7, memoryuse=5000, maxproc=4)
    found = await usages(machine, sandbox, spec)
    usage, pod = found[spec.id], found[sandbox.id]
    assert (usage.cpu.total, usage.memory.usage, usage.memory.available) == (2_000_000_000, 4096, 5904)
    assert usage.memory.swap is None, "what is reserved is not what is used"
    counts = usage.processes
    assert (counts.processes, counts.threads, counts.descriptors, counts.sockets) == (3, 5, 9, None)
    assert (pod.cpu.total, pod.memory.usage, pod.memory.available) == (7_000_000_000, 5000, None)
    await machine.host.stop_container(spec)
    gone = (await usages(machine, sandbox, spec))[spec.id]
    assert isinstance(gone, HostError)
    assert gone.errno == errno.ENOENT


async def test_interfaces_are_seen_from_the_pod(machine) -> None:
    sandbox, _ = await a_pod(machine)
    machine.kernel.interface_counters = [InterfaceUsage("cnihost1", 1, 2, 3, 4, 5, 6, 7, 8)]
    asked = Measured(sandbox, None, [], interfaces={"cnihost1": "eth0", "cnihost2": "net1"})
    found = (await machine.host.usages([asked]))[sandbox.id]
    assert found.interfaces == (InterfaceUsage("eth0", 5, 6, 7, 8, 1, 2, 3, 4),)


async def test_a_filesystem_is_called_after_what_it_was_mounted_from(machine, tmp_path) -> None:
    assert machine.host.device_of(str(tmp_path)) == machine.kernel.mounts()[0].source
    with pytest.raises(FileNotFoundError):
        machine.host.device_of("/missing")


async def usages(machine, sandbox, *containers):
    return await machine.host.usages([Measured(sandbox, None, containers)])


@pytest.mark.parametrize("cpus", ["7", "0-7", "x", "1-", "-", "", "3-1"])
async def test_cpus_that_are_not_there(machine, cpus: str) -> None:
    sandbox, _ = await a_pod(machine)
    before = machine.everything()
    if not cpus:
        _, jail = await a_container(machine, sandbox, resources=Resources(cpuset_cpus=""))
        assert jail.cpus == {0, 1, 2, 3}
        return
    with pytest.raises(HostError, match="cpuset_cpus"):
        await a_container(machine, sandbox, resources=Resources(cpuset_cpus=cpus))
    assert machine.everything() == before
