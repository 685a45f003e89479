"""What kuberuntime_container_linux.go (Kubernetes 1.36) sends as resources, and the rules of rctl(8) that it becomes.

The FreeBSD port of the kubelet sends none; crictl and whoever else fills in LinuxContainerResources as a kubelet on Linux does are held
to the same rules.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from cri.api.runtime import v1
from cri.errors import UnsupportedError
from cri.sandbox import limits as translation
from cri.sandbox import wire
from cri.sandbox.freebsd import jails
from cri.sandbox.freebsd.host import FreeBSDHost
from cri.sandbox.freebsd.limits import RESERVED_ROOM, limits_of, rules
from cri.sandbox.host import HostError
from cri.sandbox.spec import Resources

MiB, GiB = 1 << 20, 1 << 30
PERIOD = {"cpu_period": 100_000}
PAGES = {"hugepage_limits": [v1.HugepageLimit(page_size=size) for size in ("2MB", "1GB")]}
BEST_EFFORT = {**PERIOD, **PAGES, "cpu_shares": 2, "oom_score_adj": 1000}
BURSTABLE = {**PERIOD, **PAGES, "cpu_shares": 102, "oom_score_adj": 968}
GUARANTEED = {**PERIOD, **PAGES, "cpu_shares": 1024, "cpu_quota": 100_000, "oom_score_adj": -997}
SIGKILL = "memoryuse:sigkill"
RESERVED = "swapuse:deny"


def made(**fields: Any) -> Resources:
    return translation.of_container(v1.LinuxContainerResources(**fields), FreeBSDHost.features)


def amounts(resources: Resources) -> dict[str, int]:
    """The rules of a jail, by what they limit and how."""
    found = {}
    for rule in rules("j", resources):
        kind, amount = rule.removeprefix("jail:j:").split("=")
        assert kind not in found
        found[kind] = int(amount)
    return found


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param(BEST_EFFORT, {}, id="best effort"),
        pytest.param(BURSTABLE, {}, id="burstable, requests alone"),
        pytest.param(
            {**BURSTABLE, "cpu_quota": 25_000}, {"pcpu:deny": 25}, id="burstable with a limit of CPU"
        ),
        pytest.param({**BURSTABLE, "cpu_quota": 1000}, {"pcpu:deny": 1}, id="the least quota"),
        pytest.param(
            {**BURSTABLE, "cpu_quota": 2500, "cpu_period": 5000},
            {"pcpu:deny": 50},
            id="a period of the operator's",
        ),
        pytest.param(
            {**BURSTABLE, "memory_limit_in_bytes": 256 * MiB},
            {SIGKILL: 256 * MiB, RESERVED: 512 * MiB + RESERVED_ROOM},
            id="burstable, no control of swap",
        ),
        pytest.param(
            {
                **BURSTABLE,
                "memory_limit_in_bytes": 256 * MiB,
                "memory_swap_limit_in_bytes": 256 * MiB,
            },
            {SIGKILL: 256 * MiB, RESERVED: 512 * MiB + RESERVED_ROOM},
            id="burstable, NoSwap on cgroup v1",
        ),
        pytest.param(
            {
                **GUARANTEED,
                "memory_limit_in_bytes": 64 * MiB,
                "memory_swap_limit_in_bytes": 64 * MiB,
            },
            {"pcpu:deny": 100, SIGKILL: 64 * MiB, RESERVED: 128 * MiB + RESERVED_ROOM},
            id="guaranteed, NoSwap on cgroup v1",
        ),
        pytest.param(
            {**GUARANTEED, "cpu_quota": -1, "memory_limit_in_bytes": GiB},
            {SIGKILL: GiB, RESERVED: 2 * GiB + RESERVED_ROOM},
            id="guaranteed with CPUs of its own",
        ),
        pytest.param({"cpu_shares": 2, "oom_score_adj": 1000}, {}, id="cpuCFSQuota is off"),
        pytest.param({"cpuset_cpus": "0-1"}, {}, id="the CPU manager's update"),
        pytest.param(
            {"memory_limit_in_bytes": 100 * MiB, "memory_swap_limit_in_bytes": GiB},
            {SIGKILL: 100 * MiB, RESERVED: 2 * GiB + RESERVED_ROOM},
            id="some swap",
        ),
        pytest.param(
            {"memory_limit_in_bytes": 100 * MiB, "memory_swap_limit_in_bytes": -1},
            {SIGKILL: 100 * MiB},
            id="swap without a limit",
        ),
        pytest.param({"memory_limit_in_bytes": -1, "memory_swap_limit_in_bytes": -1}, {}, id="no limits"),
        pytest.param({"memory_limit_in_bytes": -1}, {}, id="no limit of memory"),
        pytest.param(
            {"memory_limit_in_bytes": (1 << 63) - 4096},
            {SIGKILL: (1 << 63) - 4096, RESERVED: (1 << 63) - 1},
            id="what Linux shows where there is no limit",
        ),
        pytest.param({"unified": {"pids.max": "32"}}, {"maxproc:deny": 32}, id="processes"),
    ],
)
def test_what_a_kubelet_sends(sent: dict[str, Any], expected: dict[str, int]) -> None:
    assert amounts(made(**sent)) == expected


@pytest.mark.parametrize(
    "unified",
    [
        {"memory.swap.max": "0"},
        {"memory.swap.max": "1048576"},
        {"memory.oom.group": "1"},
        {"memory.oom.group": "1", "memory.swap.max": "0"},
        {"memory.min": "1048576", "memory.high": "2097152"},
    ],
    ids=["NoSwap", "LimitedSwap", "singleProcessOOMKill is off", "both", "MemoryQoS"],
)
def test_what_a_kubelet_sends_on_cgroup_v2_is_refused(unified: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match=f"unified {', '.join(sorted(unified))}: .*leave them out"):
        made(**BURSTABLE, memory_limit_in_bytes=MiB, unified=unified)


def test_pages_that_nothing_limits_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="hugepage_limits of 2MB"):
        made(hugepage_limits=[v1.HugepageLimit(page_size="2MB", limit=2 * MiB)])


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("sizes", [(64, 128), (128, 64), (64, 64)])
def test_a_resize(sizes: tuple[int, int], swap: bool) -> None:
    """An update names what changes; NoSwap sends memory and swap together with each."""
    before, after = (
        {"memory_limit_in_bytes": size * MiB} | ({"memory_swap_limit_in_bytes": size * MiB} if swap else {})
        for size in sizes
    )
    update = translation.resources(v1.LinuxContainerResources(**GUARANTEED, **after), FreeBSDHost.features)
    resources = wire.merged(made(**GUARANTEED, **before), update)
    size = sizes[1] * MiB
    assert amounts(resources) == {"pcpu:deny": 100, SIGKILL: size, RESERVED: 2 * size + RESERVED_ROOM}


def test_memory_that_outgrows_memory_and_swap_together() -> None:
    resources = wire.merged(
        made(memory_limit_in_bytes=MiB, memory_swap_limit_in_bytes=MiB), Resources(memory_limit=2 * MiB)
    )
    with pytest.raises(HostError, match="set memory_swap_limit_in_bytes to no less") as caught:
        rules("j", resources)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("memory", "together", "told"),
    [
        (None, None, -1),
        (64 * MiB, None, None),
        (64 * MiB, 64 * MiB, None),
        (64 * MiB, 65 * MiB, 65 * MiB),
        (64 * MiB, -1, -1),
    ],
)
def test_what_rules_amount_to(memory: int | None, together: int | None, told: int | None) -> None:
    """What is told of rules can be asked for: it makes the same rules."""
    asked = Resources(memory_limit=memory, memory_swap_limit=together, cpu_quota=50_000)
    found = limits_of(rules("j", asked))
    assert (found.memory_limit, found.memory_swap_limit) == (memory or -1, told)
    assert rules("j", found) == rules("j", asked)


@pytest.mark.parametrize("swap", [0, 1, 64 * MiB])
def test_rules_of_releases_that_took_swapuse_for_swap(swap: int) -> None:
    """They limited the address space, and what was reserved to what there was to be of swap."""
    old = [f"jail:j:memoryuse:sigkill={MiB}", f"jail:j:vmemoryuse:deny={GiB}", f"jail:j:swapuse:deny={swap}"]
    found = limits_of(old)
    assert (found.memory_limit, found.memory_swap_limit) == (MiB, None)


async def test_an_update_leaves_nothing_of_them(machine) -> None:
    sandbox = machine.sandbox()
    await machine.host.create_sandbox(sandbox)
    spec = machine.container(sandbox, resources=Resources(memory_limit=MiB))
    await machine.host.create_container(spec)
    name = jails.container_name(spec)
    for rule in (f"vmemoryuse:deny={GiB}", "swapuse:deny=0"):
        machine.kernel.rctl_add(f"jail:{name}:{rule}")
    await machine.host.update_container(spec, Resources(memory_limit=MiB, memory_swap_limit=MiB))
    found = {rule.removeprefix(f"jail:{name}:") for rule in machine.kernel.rctl_rules(f"jail:{name}:")}
    assert found == {f"{SIGKILL}={MiB}", f"{RESERVED}={2 * MiB + RESERVED_ROOM}"}
