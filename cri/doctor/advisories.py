"""FreeBSD's advisories about jails, and whether a kernel has their fixes.

Only flaws in the kernel that let a pod out, or let it bring the node down by jail(2) itself, in the ways in which pods
are put together here. Every other advisory matters to a node as well: `pkg audit` knows them.

Sources, read on 2026-11-23: the advisories at https://security.freebsd.org/advisories/ and the CVE records that the
FreeBSD project published for them, which give the fixed patch level of each release; the releases' UPDATING.
EN-24:17.pam_xdg is not among them, though it concerns jails: its fix is in a PAM module and leaves no trace in the
kernel's version. What it does is looked for directly (`cri.doctor.freebsd.inherited_directories`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cri.doctor.finding import Finding, Level

Release = tuple[int, int]

UPDATE = (
    "freebsd-update fetch install (with base packages: pkg upgrade -r FreeBSD-base), then shutdown -r now"
)


@dataclass(frozen=True, slots=True)
class Advisory:
    """A flaw and its fix."""

    number: str
    cves: tuple[str, ...]
    effect: str
    """What a kernel without the fix allows."""
    fixed: Mapping[Release, int]
    """The patch level that brought the fix, of the releases that were supported then and had the flaw."""
    level: Level = Level.FAILURE
    """How bad it is for a node of pods."""
    introduced: Release = (0, 0)
    """The first release with the flaw."""


ADVISORIES: tuple[Advisory, ...] = (
    Advisory(
        "SA-26:66.jail",
        ("CVE-2026-101304", "CVE-2026-101305", "CVE-2026-101306"),
        "a container that shares a volume with another pod gets out of its root, by a directory descriptor sent over a "
        "unix socket, by fdescfs(4) with nodup, or by renameat(2)",
        {(14, 4): 10, (14, 5): 1, (15, 0): 14, (15, 1): 4},
    ),
    Advisory(
        "SA-26:38.jail",
        ("CVE-2026-49419",),
        "any user underflows a jail's reference count by jail_set(2) with JAIL_AT_DESC",
        {(15, 0): 11, (15, 1): 1},
        introduced=(15, 0),
    ),
    Advisory(
        "SA-26:04.jail",
        ("CVE-2025-15576",),
        "two pods that share a volume pass directory descriptors over a unix socket in it, and get out of their roots",
        {(13, 5): 10, (14, 3): 9},
    ),
    Advisory(
        "SA-26:02.jail",
        ("CVE-2025-15547",),
        "root in a jail with allow.mount.nullfs gets out of it; cri-jails grants that to no pod, other jails may have it",
        {(13, 5): 9, (14, 3): 8},
        level=Level.WARNING,
    ),
)


_RELEASE = re.compile(r"(\d+)\.(\d+)-RELEASE(?:-p(\d+))?")


@dataclass(frozen=True, slots=True)
class Kernel:
    """The running kernel, by its own account."""

    release: str
    """kern.osrelease, such as 15.1-RELEASE-p4."""
    version: str
    """kern.version: release, revision of its sources, configuration."""
    ident: str
    """kern.ident: the name of its configuration."""

    @property
    def number(self) -> Release | None:
        """Major and minor number of a release, None for a kernel that is none (STABLE, CURRENT, BETA, RC)."""
        match = _RELEASE.fullmatch(self.release)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def patch(self) -> int:
        """The patch level of a release; 0 for a kernel that is none."""
        match = _RELEASE.fullmatch(self.release)
        return int(match[3] or 0) if match else 0

    @property
    def doubt(self) -> str:
        """Why its patch level does not say what is in it; empty if it does."""
        if self.number is None:
            return f"{self.release} is no release, its number does not say what is in it"
        if not self.ident.startswith("GENERIC"):
            return f"kernel {self.ident} was not built by the FreeBSD project"
        if "dirty" in self.version:
            return "this kernel was built from changed sources"
        return ""


def judge(kernel: Kernel) -> Iterator[Finding]:
    """A finding for each advisory."""
    for advisory in ADVISORIES:
        yield _judge(advisory, kernel)


def _judge(advisory: Advisory, kernel: Kernel) -> Finding:
    names = ", ".join(advisory.cves)
    if kernel.number is None:
        message = f"cannot tell whether the fix is in ({names}): {kernel.doubt}; without it {advisory.effect}"
        return Finding(advisory.number, Level.WARNING, message, _look_up(advisory))
    fixed = _has_fix(advisory, kernel.number, kernel.patch)
    if fixed is None:
        message = (
            f"cannot tell ({names}): {kernel.release} was out of support when the fixes were made; "
            f"without them {advisory.effect}"
        )
        return Finding(
            advisory.number, Level.WARNING, message, "freebsd-update upgrade -r a supported release"
        )
    if kernel.doubt:
        account = "has the fix" if fixed else "lacks the fix"
        level = Level.NOTE if fixed else Level.WARNING
        message = (
            f"cannot tell ({names}): {kernel.doubt}; what its sources call themselves, {kernel.release}, {account}, "
            f"without which {advisory.effect}"
        )
        return Finding(advisory.number, level, message, _look_up(advisory))
    if fixed:
        return Finding(advisory.number, Level.OK, f"{kernel.release} is not open to {names}")
    wanted = f"{kernel.number[0]}.{kernel.number[1]}-RELEASE-p{advisory.fixed[kernel.number]}"
    message = f"{names}, fixed in {wanted}: {advisory.effect}"
    return Finding(advisory.number, advisory.level, message, UPDATE)


def _has_fix(advisory: Advisory, release: Release, patch: int) -> bool | None:
    """Whether a release at a patch level has the fix or never had the flaw; None if nobody has looked."""
    if release < advisory.introduced:
        return True
    if release in advisory.fixed:
        return patch >= advisory.fixed[release]
    # A branch that the advisory does not name had been looked at and was not open to it, if it was newer than those
    # named; a release that came later on a named branch began with the fix.
    same_branch = [fixed for fixed in advisory.fixed if fixed[0] == release[0]]
    return True if release > max(same_branch or advisory.fixed) else None


def _look_up(advisory: Advisory) -> str:
    return (
        "build from sources that have the commits named in "
        f"https://security.freebsd.org/advisories/FreeBSD-{advisory.number}.asc"
    )
