"""Whether this FreeBSD node can carry pods at all: the few questions behind the condition RuntimeReady.

`cri-jails doctor` asks these and many more. Each question is a function of its own, so that both give the same answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cri.sandbox.freebsd import sysctls
from cri.sandbox.freebsd.calls import Calls
from cri.sandbox.host import Condition, HostError


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module, and what is lost without it."""

    name: str
    """As modfind(2) knows it."""
    purpose: str
    file: str = ""
    """The kld(4) that holds it, where that is named otherwise."""

    @property
    def remedy(self) -> str:
        """Load it now and at every boot."""
        file = self.file or self.name
        return f"kldload {file} && sysrc kld_list+={file}"


ESSENTIAL_MODULES: Sequence[Module] = (
    Module("nullfs", "volumes are mounted with it"),
    Module("devfs", "containers have a /dev by it"),
)
"""Without these no container starts."""

RACCT_REMEDY = "echo 'kern.racct.enable=1' >> /boot/loader.conf, then reboot"
BINDING_REMEDY = "install again with the base compiler there: python3 -m pip install --force-reinstall ."
CHILDREN_REMEDY = "in the jail.conf(5) of this jail, on its host: children.max = 1000;"


def load_calls() -> Calls:
    """The kernel binding. Raises HostError, with the remedy, where it cannot be imported."""
    try:
        from cri.sandbox.freebsd import kernel  # noqa: PLC0415 - compiled; exists on FreeBSD only
    except ImportError as error:
        reason = f"the kernel binding cannot be imported: {error}; {BINDING_REMEDY}"
        raise HostError("start", "the FreeBSD driver", reason) from error
    return cast("Calls", kernel)


def has_vnet(calls: Calls) -> bool:
    """Whether this kernel can give a jail a network stack of its own (options VIMAGE)."""
    return calls.has_parameter("vnet")


def has_racct(calls: Calls) -> bool:
    """Whether resources are counted, and so can be limited (racct(9), rctl(4))."""
    return bool(sysctls.number(calls, "kern.racct.enable"))


def child_jails(calls: Calls) -> int:
    """How many jails may be made below the one we are in; the kernel's own limit outside of any jail."""
    return sysctls.number(calls, "security.jail.children.max") or 0


def condition(calls: Calls, state_dir: Path) -> Condition:
    """Whether pods can be run, and what has to be done without. Blocks; raises OSError if the kernel cannot be asked."""
    if os.geteuid() != 0:
        return Condition(ok=False, reason="NotRoot", message="cri-jails must run as root to make jails")
    if missing := [module for module in ESSENTIAL_MODULES if not calls.has_module(module.name)]:
        names = ", ".join(module.name for module in missing)
        remedy = "; ".join(module.remedy for module in missing)
        return Condition(
            ok=False, reason="KernelModuleMissing", message=f"no kernel module {names}: {remedy}"
        )
    if not has_vnet(calls):
        message = "this kernel was built without VIMAGE, so pods have no network: boot a GENERIC kernel"
        return Condition(ok=False, reason="VimageMissing", message=message)
    if child_jails(calls) < 2:
        message = f"this jail may have {child_jails(calls)} jails below it, a pod needs 2 and more: {CHILDREN_REMEDY}"
        return Condition(ok=False, reason="ChildJailsForbidden", message=message)
    if _is_read_only(state_dir):
        message = f"the state directory {state_dir} is on a file system that is mounted read-only"
        return Condition(ok=False, reason="StateDirectoryReadOnly", message=message)
    if not has_racct(calls):
        message = f"limits are neither enforced nor measured, racct is off: {RACCT_REMEDY}"
        return Condition(ok=True, reason="RacctDisabled", message=message)
    return Condition(ok=True)


def _is_read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        return False
