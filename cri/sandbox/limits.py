"""Limits of containers: from the CRI's message to what a host is given."""

from __future__ import annotations

from dataclasses import replace

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox.host import Features
from cri.sandbox.spec import Resources

DEFAULT_PERIOD = 100_000
"""Microseconds: of a CPU quota that is given without a period."""


def resources(message: v1.LinuxContainerResources | None, features: Features) -> Resources:
    """Limits as the CRI has them, where 0 and empty mean "not given".

    Raises InvalidArgumentError for what contradicts itself, UnsupportedError for what this host cannot limit.
    """
    if message is None:
        return Resources()
    _check_swap(message)
    _check_hugepages(message, features)
    _check_unified(message, features)
    return Resources(
        cpu_period=message.cpu_period or None,
        cpu_quota=message.cpu_quota or None,
        cpu_shares=message.cpu_shares or None,
        memory_limit=message.memory_limit_in_bytes or None,
        memory_swap_limit=message.memory_swap_limit_in_bytes or None,
        cpuset_cpus=message.cpuset_cpus or None,
        cpuset_mems=message.cpuset_mems or None,
        oom_score_adj=message.oom_score_adj or None,
        hugepage_limits={
            limit.page_size: limit.limit
            for limit in message.hugepage_limits
            if limit.page_size in features.hugepages
        },
        unified=dict(message.unified),
    )


def of_container(message: v1.LinuxContainerResources | None, features: Features) -> Resources:
    """As `resources`, of a container that has no limits yet."""
    made = resources(message, features)
    if (made.memory_swap_limit or 0) > 0 and made.memory_limit is None:
        raise InvalidArgumentError(
            f"memory_swap_limit_in_bytes {made.memory_swap_limit} limits memory and swap together: "
            "set memory_limit_in_bytes as well"
        )
    return made


def of_pod(
    message: v1.LinuxContainerResources | None,
    overhead: v1.LinuxContainerResources | None,
    features: Features,
) -> Resources:
    """As `resources`, of a pod as a whole: what its containers may have, and what the pod itself needs besides.

    The latter adds to limits that there are; it makes none.
    """
    made, more = resources(message, features), resources(overhead, features)
    swap = more.memory_limit if more.memory_swap_limit is None else more.memory_swap_limit
    quota = more.cpu_quota
    if quota is not None and quota > 0:
        quota = quota * (made.cpu_period or DEFAULT_PERIOD) // (more.cpu_period or DEFAULT_PERIOD)
    return replace(
        made,
        memory_limit=_with(made.memory_limit, more.memory_limit),
        memory_swap_limit=_with(made.memory_swap_limit, swap),
        cpu_quota=_with(made.cpu_quota, quota),
        cpu_shares=_with(made.cpu_shares, more.cpu_shares),
    )


def _with(limit: int | None, more: int | None) -> int | None:
    return limit + more if limit is not None and limit > 0 and more is not None and more > 0 else limit


def _check_swap(message: v1.LinuxContainerResources) -> None:
    memory, both = message.memory_limit_in_bytes, message.memory_swap_limit_in_bytes
    if both > 0 and both < memory:
        raise InvalidArgumentError(
            f"memory_swap_limit_in_bytes {both} is below memory_limit_in_bytes {memory}: it limits memory and swap together"
        )
    if both > 0 and memory < 0:
        raise InvalidArgumentError(
            f"memory_swap_limit_in_bytes {both} limits memory too, which memory_limit_in_bytes {memory} does not"
        )


def _check_hugepages(message: v1.LinuxContainerResources, features: Features) -> None:
    seen = set()
    for limit in message.hugepage_limits:
        if limit.page_size in seen:
            raise InvalidArgumentError(f"hugepage_limits: {limit.page_size} is there twice")
        seen.add(limit.page_size)
        # The kubelet sends a 0 for every size that it knows of.
        if limit.limit and limit.page_size not in features.hugepages:
            known = ", ".join(sorted(features.hugepages)) or "none"
            raise UnsupportedError(
                f"hugepage_limits of {limit.page_size}: this host cannot limit such pages; it can limit: {known}"
            )


def _check_unified(message: v1.LinuxContainerResources, features: Features) -> None:
    if features.unified is None:
        return
    if unknown := sorted(message.unified.keys() - features.unified):
        raise UnsupportedError(
            f"unified {', '.join(unknown)}: this host has no such limits (they are files of cgroup v2); leave them out"
        )
