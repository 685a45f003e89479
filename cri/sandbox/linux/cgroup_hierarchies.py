"""The hierarchies of cgroups that this node has mounted: version 1, version 2, or a hybrid of both."""

from __future__ import annotations

from pathlib import Path

from cri.sandbox.host import HostError
from cri.sandbox.linux.cgroups import CONTROLLERS, UNIFIED, Group
from cri.sandbox.spec import SandboxSpec

OWN_PARENT = "/cri-jails"
"""The cgroup for pods that the kubelet made none for."""

_FLAGS = frozenset(
    {"rw", "ro", "all", "none", "noprefix", "clone_children", "xattr", "cpuset_v2_mode", "favordynmods"}
)
"""Mount options of version 1 that are no controllers."""
_HUGEPAGES = Path("/sys/kernel/mm/hugepages")
"""Has a directory for each size (Documentation/admin-guide/mm/hugetlbpage.rst)."""


class Hierarchies:
    """The mounted hierarchies of this node."""

    def __init__(self, v1: dict[str, str], v2: str | None) -> None:
        self.v1 = v1
        """By controller, or by `name=...` where it has none; `UNIFIED` where version 2 has no limits."""
        self.v2 = v2
        """Where limits are of version 2."""

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> Hierarchies:
        """Read them from /proc/self/mountinfo (proc(5))."""
        v1: dict[str, str] = {}
        v2 = None
        for line in (mountinfo or Path("/proc/self/mountinfo").read_text()).splitlines():
            before, _, after = line.partition(" - ")
            where = before.split()[4]
            kind, _, options = after.split()[:3]
            if kind == "cgroup2":
                v2 = where
            elif kind == "cgroup":
                v1 |= dict.fromkeys(filter(_names_hierarchy, options.split(",")), where)
        if v2 and not v1.keys().isdisjoint(CONTROLLERS):
            # In a hybrid the unified hierarchy has no controllers of its own.
            return cls(v1 | {UNIFIED: v2}, None)
        return cls(v1, v2)

    def missing_controllers(self) -> list[str]:
        """Controllers that pods need and this node lacks."""
        if self.v2:
            present = set(Path(self.v2, "cgroup.controllers").read_text().split()) | {"cpuacct"}
        else:
            present = set(self.v1)
        return [name for name in ("memory", "cpu", "cpuacct", "pids") if name not in present]

    def hugepages(self, sizes: Path = _HUGEPAGES) -> frozenset[str]:
        """The sizes of large pages that a group can limit, as its files have them in their names: 2MB."""
        controllers = Path(self.v2, "cgroup.controllers").read_text().split() if self.v2 else self.v1
        if "hugetlb" not in controllers or not sizes.is_dir():
            return frozenset()
        kilobytes = (int(path.name.removeprefix("hugepages-").removesuffix("kB")) for path in sizes.iterdir())
        return frozenset(map(_page_size, kilobytes))

    def group(self, path: str, own: str | None = None) -> Group:
        """The group at a path that starts at the root of each hierarchy.

        `own` is another path for the hierarchies that have no limits: where nobody but us makes and removes groups.
        """
        relative, beside = path.strip("/"), (path if own is None else own).strip("/")
        if ".." in (*relative.split("/"), *beside.split("/")):
            raise HostError("use", f"cgroup {path}", "the path must not contain ..")
        limited = {"": f"{self.v2}/{relative}"} if self.v2 else {}
        others = {
            name: f"{where}/{relative if name in CONTROLLERS else beside}" for name, where in self.v1.items()
        }
        return Group(2 if self.v2 else 1, limited | others)

    def roots(self) -> list[str]:
        """The mount points, each once."""
        return list(dict.fromkeys([*([self.v2] if self.v2 else ()), *self.v1.values()]))


def own_parent(sandbox_id: str) -> str:
    """The cgroup of a pod that the kubelet made none for."""
    return f"{OWN_PARENT}/{sandbox_id}"


def init_group(hierarchies: Hierarchies, sandbox: SandboxSpec) -> Group:
    """The group of the process that is 1 in a pod's shared process namespace, beside those of the containers.

    A container that may trace can make it do what it likes.
    """
    own = own_parent(sandbox.id)
    return hierarchies.group(f"{sandbox.limits_parent or own}/{sandbox.id}", f"{own}/{sandbox.id}")


def _names_hierarchy(option: str) -> bool:
    """Whether a mount option of version 1 is a controller, also one that is not known here, or a hierarchy's name."""
    return option.startswith("name=") or (option not in _FLAGS and "=" not in option)


def _page_size(kilobytes: int) -> str:
    """As the kernel writes it (mm/hugetlb_cgroup.c, mem_fmt)."""
    for unit, size in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilobytes >= size:
            return f"{kilobytes // size}{unit}"
    return f"{kilobytes}KB"
