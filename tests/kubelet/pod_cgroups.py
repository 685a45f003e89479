"""The cgroups that a kubelet with the driver `cgroupfs` makes for its pods, on version 1 and 2."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from tests.kubelet.specs import Pod

CPUSET = ("cpuset.cpus", "cpuset.mems")


class PodCgroups:
    """Groups `ROOT/QOS/podUID` in every hierarchy; none where there are no cgroups."""

    def __init__(self, root: str) -> None:
        """`root` is what `--cgroup-root` and `/kubepods` are for a kubelet: nobody else's."""
        self._root = root
        self._hierarchies = _mounted() if sys.platform == "linux" else []

    def of(self, pod: Pod) -> str:
        """What RunPodSandbox is told as cgroup_parent."""
        if not self._hierarchies:
            return ""
        return "/".join(filter(None, (self._root, pod.qos, f"pod{pod.uid}")))

    def make(self, pod: Pod) -> None:
        """Make a pod's groups, with what stands above them."""
        for top in self._hierarchies:
            at = top
            for part in self.of(pod).strip("/").split("/"):
                _delegate(at)
                at /= part
                at.mkdir(exist_ok=True)
                _inherit_cpuset(at)

    def remove(self, pod: Pod) -> None:
        """Remove a pod's groups. Raises OSError if the runtime has left something inside."""
        for top in self._hierarchies:
            with contextlib.suppress(FileNotFoundError):
                (top / self.of(pod).strip("/")).rmdir()

    def left(self) -> list[Path]:
        """Groups of pods that are there."""
        return [
            path
            for top in self._hierarchies
            for path in (top / self._root.strip("/")).glob("**/pod*")
            if path.is_dir()
        ]

    def close(self) -> None:
        """Remove what stands above the pods' groups, which must be gone."""
        for top in self._hierarchies:
            root = top / self._root.strip("/")
            for path in (*(root / name for name in ("besteffort", "burstable")), root):
                if path.is_dir():
                    path.rmdir()


def _mounted() -> list[Path]:
    """The mount points of all hierarchies (proc(5), mountinfo)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(before.split()[4]))
    return found


def _delegate(group: Path) -> None:
    """On version 2: let the group's children have every controller that it has."""
    control = group / "cgroup.subtree_control"
    if control.exists():
        for controller in (group / "cgroup.controllers").read_text().split():
            control.write_text(f"+{controller}")


def _inherit_cpuset(group: Path) -> None:
    """On version 1 a group without CPUs takes no process."""
    for name in CPUSET:
        own, above = group / name, group.parent / name
        if own.exists() and above.exists() and not own.read_text().strip():
            own.write_text(above.read_text())
