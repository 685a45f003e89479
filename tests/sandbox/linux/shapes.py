"""Containers as releases before the inner group have made them, and as one would be that had none in any hierarchy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cri.sandbox.linux.cgroups import CONTROLLERS, LATE, Group
from cri.sandbox.linux.host import LinuxHost
from cri.sandbox.spec import ContainerSpec
from cri.sandbox.warden.container import read_plan, write_plan


def as_by_an_earlier_release(host: LinuxHost, spec: ContainerSpec) -> None:
    """Make a created container one whose processes will be in the group that has the limits."""
    group = _without_inner(host, spec)
    names = CONTROLLERS if group.version == 1 else ("",)
    known = {name: path for name, path in group.directories.items() if name in names}
    kept = {name: path for name, path in known.items() if name not in LATE}
    for name, path in group.directories.items():
        if path not in kept.values():
            Group(1, {name: path}).remove()
    _note(spec, {"version": group.version, "directories": known})


def without_inner(host: LinuxHost, spec: ContainerSpec) -> None:
    """The same, in every hierarchy: who gets at its group, finds the limits."""
    group = _without_inner(host, spec)
    _note(spec, group.note())


def _without_inner(host: LinuxHost, spec: ContainerSpec) -> Group:
    group = host._group(spec)
    quota = Path(group.inner.directories.get("cpu", "/nowhere"), "cpu.cfs_quota_us")
    if quota.exists():
        # For a moment the kernel still counts what is removed, and nobody above may have less.
        quota.write_text("-1")
    group.inner.remove()
    if group.version == 2:
        delegated = Path(group.directories[""], "cgroup.subtree_control")
        for controller in delegated.read_text().split():
            delegated.write_text(f"-{controller}")
    return group


def _note(spec: ContainerSpec, cgroup: dict[str, Any]) -> None:
    plan = read_plan(spec.directory)
    write_plan(replace(plan, host=plan.host | {"cgroup": cgroup}))
