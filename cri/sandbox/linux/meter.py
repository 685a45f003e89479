"""What the pods of this node use: their cgroups, their processes, and their interfaces."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec

from cri.sandbox import usage_sums
from cri.sandbox.host import HostError, Measured
from cri.sandbox.linux import cgroup_usage, interface_usage, process_usage
from cri.sandbox.linux.cgroup_hierarchies import Hierarchies, own_parent
from cri.sandbox.linux.cgroup_ledger import container_group
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.kept_files import KeptFiles
from cri.sandbox.spec import ContainerSpec, Sharing
from cri.sandbox.usage import MemoryUsage, ProcessUsage, Usage

P = ParamSpec("P")

_LEAF = 2
"""Links of a directory of cgroups that has none below it."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A pod's network namespace: a process that is in it, and its inode."""

    pid: int
    namespace: int


class Meter:
    """Reads what pods and containers have used. Its methods block, shortly, and are safe for threads.

    The processes of a container are counted; its cgroup counts their threads. A pod's figures are those of its cgroup, if
    it has one for itself: the kubelet's, or the one that is made for pods without. Its warden is not in there, nor is the
    daemon. Otherwise they are the sum of its containers that run.
    """

    def __init__(self, hierarchies: Hierarchies) -> None:
        self._hierarchies = hierarchies
        self._files = KeptFiles()

    def usages(self, pods: Sequence[Measured], stacks: Mapping[str, Stack]) -> dict[str, Usage | HostError]:
        """See `Host.usages`. `stacks`: of the pods that have a network of their own."""
        found: dict[str, Usage | HostError] = {}
        for pod in pods:
            for container in pod.containers:
                found[container.id] = _told(f"container {container.id}", self._container, container)
            if pod.itself:
                inside = [usage for one in pod.containers if isinstance(usage := found[one.id], Usage)]
                stack = stacks.get(pod.sandbox.id)
                subject = f"sandbox {pod.sandbox.id}"
                found[pod.sandbox.id] = _told(subject, self._pod, pod, inside, stack)
        return found

    def forget(self, owner: str) -> None:
        """Let go of what is open about a container or a pod."""
        self._files.forget(owner)

    def close(self) -> None:
        """Let go of everything."""
        self._files.close()

    def _container(self, spec: ContainerSpec) -> Usage:
        group = container_group(self._hierarchies, spec)
        usage = self._group(spec.id, group)
        if usage is None:
            raise HostError("measure", f"container {spec.id}", "it has ended", errno.ENOENT)
        top = group.directories.get("memory")
        if group.version == 1 and top is not None and _has_below(group.inner.directories["memory"]):
            usage = replace(usage, memory=replace(usage.memory, oom_kills=process_usage.oom_kills(top)))
        return replace(usage, processes=_processes(group, usage.processes))

    def _pod(self, pod: Measured, inside: Sequence[Usage], stack: Stack | None) -> Usage:
        spec = pod.sandbox
        usage = usage_sums.total(inside)
        path = spec.limits_parent or own_parent(spec.id)
        if pod.alone and path.strip("/"):
            own = self._group(spec.id, self._hierarchies.group(path, own_parent(spec.id)))
            usage = usage if own is None else _with(own, usage)
        if spec.namespaces.pid is Sharing.POD:
            counted = usage.processes
            usage = replace(usage, processes=replace(counted, processes=counted.processes + 1))
        if stack is None:
            return usage
        return replace(usage, interfaces=interface_usage.interfaces(stack.pid, stack.namespace))

    def _group(self, owner: str, group: Group) -> Usage | None:
        """What a group has used; None if it is gone."""
        with self._files.of(owner) as read:
            if group.version == 2:
                usage = cgroup_usage.usage_v2(read, group.directories[""], group.inner.directories[""])
            else:
                usage = cgroup_usage.usage_v1(read, group.directories, group.inner.directories)
        if usage is None:
            self._files.forget(owner)
        return usage


def _with(own: Usage, inside: Usage) -> Usage:
    """A pod's usage, of its own group, with what only those inside of that know."""
    memory: MemoryUsage = own.memory
    if inside.memory.oom_kills is not None:
        # Version 1 counts each where it was killed.
        memory = replace(memory, oom_kills=max(memory.oom_kills or 0, inside.memory.oom_kills))
    processes = replace(
        inside.processes, threads=own.processes.threads, threads_limit=own.processes.threads_limit
    )
    return replace(own, memory=memory, processes=processes)


def _processes(group: Group, counted: ProcessUsage) -> ProcessUsage:
    directories = group.directories  # of the unified hierarchy containers of earlier releases know nothing
    top = directories.get("") or directories.get("pids") or next(iter(directories.values()))
    pids = process_usage.processes(top)
    if pids is None:
        return counted  # the number of its threads
    opened = process_usage.descriptors(pids)
    return replace(
        counted,
        processes=len(pids),
        descriptors=None if opened is None else opened[0],
        sockets=None if opened is None else opened[1],
    )


def _has_below(directory: str) -> bool:
    """Whether a container has made groups inside of its own."""
    try:
        return os.stat(directory).st_nlink > _LEAF  # noqa: PTH116
    except FileNotFoundError:
        return False


def _told(subject: str, measure: Callable[P, Usage], *args: P.args, **kwargs: P.kwargs) -> Usage | HostError:
    try:
        return measure(*args, **kwargs)
    except HostError as error:
        return error
    except OSError as error:
        return HostError("measure", subject, error.strerror or str(error), error.errno)
