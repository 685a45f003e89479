"""The plan of a container's file tree, built in a mount namespace of its own, so that the node never sees a mount of it.

What comes from the node (volumes, the pod's /dev/shm) is cloned into detached mounts before the new mount namespace is made,
and attached inside afterwards: by descriptors all the way, so that no path is looked up twice. Devices are made anew. Paths inside
the root are looked up with the root as theirs (openat2), as the image and other containers of a shared volume decide what is there.

No process of the container is there yet, and its /proc is not: who becomes its first process mounts that (`run_plan`).
"""

from __future__ import annotations

import itertools
import os
import posixpath
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cri.sandbox.host import HostError
from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, Attach, Operation, Tolerate
from cri.sandbox.launcher.plan import Step
from cri.sandbox.launcher.steps import at_path, write
from cri.sandbox.linux import device_nodes, image_trees, kernel
from cri.sandbox.linux.device_nodes import DeviceNode
from cri.sandbox.linux.kernel import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)
from cri.sandbox.places import IN_PROC, cleaned, is_image_volume_directory, parents_first
from cri.sandbox.spec import MountSpec, Propagation
from cri.sandbox.warden import accounts
from cri.sandbox.warden.driver import Plan

_HARDENED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
_OPTIONS = {"nosuid": MOUNT_ATTR_NOSUID, "nodev": MOUNT_ATTR_NODEV, "noexec": MOUNT_ATTR_NOEXEC}
_PROPAGATION = {
    Propagation.PRIVATE: kernel.MS_PRIVATE,
    Propagation.HOST_TO_CONTAINER: kernel.MS_SLAVE,
    Propagation.BIDIRECTIONAL: kernel.MS_SHARED,
}
_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
}
_AT_RECURSIVE = 0x8000
ACCOUNT_FILES = ("/etc/passwd", "/etc/group")
NODE_PROC = -1
_NEW_DIRECTORY = Attach.DIRECTORY | Attach.MAKE
_NODE = FIRST_DESCRIPTOR + 8
"""The node's root, open; the container's root, and what else is opened, have the numbers above."""


@dataclass(frozen=True, slots=True)
class Build:
    """A tree's plan."""

    steps: list[Step]
    descriptors: list[int]
    sent: list[str]
    """What the launcher sends back, in this order: "root", "mounts", "cgroup", "null", the paths of volumes in a
    /proc that is still to come, and copies of the account files by their paths."""


@dataclass
class Builder:
    """Writes one. Looks at the node (devices), and asks nothing of the kernel that changes anything."""

    plan: Plan
    cgroups: dict[str, str]
    """What the container is shown of version 1: its own directories, by controller."""
    version: int
    shared_memory: int | str
    """What becomes /dev/shm: a detached mount, which Linux 6.15 can clone, or a path."""
    joined: Sequence[str] = ()
    """Files to write 0 to: what a build costs is the container's."""
    proc: int | None = None
    """A mount of the process namespace's /proc that is nowhere, and is used up; None: whoever becomes the first process makes
    one. NODE_PROC: the node's."""
    _steps: list[Step] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(_NODE + 1))
    _free: list[int] = field(default_factory=list)
    """Numbers of what is closed again: a node may let a process open a hundred files only."""
    _harmless: dict[str, int] = field(default_factory=dict)
    _scratch: int = 0
    _made: int = 0
    _root: int = 0
    _dev: int = 0
    _in_dev: set[str] = field(default_factory=set)
    """What is in the container's own /dev, by its path below that."""

    def build(self) -> Build:
        """The plan. Raises HostError for what cannot be."""
        spec = self.plan.spec
        for path in self.joined:
            self._steps.append(write(path, "0", subject="join cgroup"))
        self._do(Operation.UMASK, (0,), "set umask")  # all modes are meant as they are written
        trees = [(mount, self._volume(mount)) for mount in spec.mounts]
        devices = device_nodes.look_up(spec.devices)
        memory, descriptors = self._clone_memory()
        cgroups = self._clone_cgroups()
        proc = None if self.proc is None else FIRST_DESCRIPTOR + 1 + len(descriptors)
        if self.proc is not None and self.proc != NODE_PROC:
            descriptors.append(self.proc)
        self._leave()
        if self.proc == NODE_PROC:
            proc = self._filesystem("proc", _HARDENED)
        self._mount_root()
        trees = [(mount, self._image(mount) if mount.image_layers else tree) for mount, tree in trees]
        self._mount_kernel(cgroups)
        if proc is not None:
            self._attach(proc, "/proc", _NEW_DIRECTORY)
        self._mount_dev(memory)
        in_proc = [
            (mount, tree) for mount, tree in trees if self.proc is None and cleaned(mount.target) in IN_PROC
        ]
        shown: list[tuple[str, Callable[[], None]]] = [
            *((device.target, partial(self._show_device, device.target, node)) for device, node in devices),
            *(
                (mount.target, partial(self._show_volume, mount, tree))
                for mount, tree in trees
                if self.proc is not None or cleaned(mount.target) not in IN_PROC
            ),
        ]
        # A volume hides a device that is asked for in its place.
        for _, show in parents_first(shown, lambda step: step[0]):
            show()
        if self._nodev:
            self._open_harmless()
        for path in ("/proc", spec.process.cwd or "/"):
            self._at(Operation.MAKE_DIRECTORY, (self._root,), path, f"make directory {path}")
        self._hide()
        if spec.security.readonly_root:
            self._set(self._root, MOUNT_ATTR_RDONLY)
        sent = {"root": self._root, "mounts": self._open("/proc/self/ns/mnt", os.O_RDONLY)}
        sent["cgroup"] = self._open("/proc/self/ns/cgroup", os.O_RDONLY)
        sent["null"] = self._harmless["null"]
        sent |= {cleaned(mount.target): tree for mount, tree in in_proc}
        for path in ACCOUNT_FILES:
            sent[path] = self._number()
            self._at(Operation.COPY, (sent[path], self._root, accounts.MAX_FILE + 1), path, f"read {path}")
        self._do(Operation.PIVOT, (self._root,), "enter root")
        for what, number in sent.items():
            self._do(Operation.SEND, (number,), f"send {what}")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if next(self._numbers) > soft:  # ten thousand volumes, say; only the porter has this
            limit = (resource.RLIMIT_NOFILE, hard, hard)
            self._steps.insert(0, Step(Operation.RESOURCE_LIMIT, limit, (), "raise the limit of open files"))
        return Build(self._steps, descriptors, list(sent))

    @property
    def _privileged(self) -> bool:
        return self.plan.spec.security.privileged

    @property
    def _nodev(self) -> int:
        """Where cgroups do not say which devices a container may use, no mount of an unprivileged one opens any but those given."""
        trusted = self._privileged or self.plan.host.get("device_rules", False)
        return 0 if trusted else MOUNT_ATTR_NODEV

    # What comes from the node

    def _volume(self, mount: MountSpec) -> int:
        """The number of its tree. What it is, only the porter looks: a disk may not answer."""
        if mount.image_layers:
            return -1  # its mount comes later
        attributes = self._nodev | _attributes(mount)
        readonly = MOUNT_ATTR_RDONLY if mount.readonly else 0
        if mount.tmpfs:
            return self._filesystem("tmpfs", attributes | readonly)
        tree = self._clone(mount.source, recursive=True)
        self._set(tree, attributes, _PROPAGATION[mount.propagation], recursive=True)
        if readonly:
            self._set(tree, readonly, recursive=mount.recursive_readonly)
        return tree

    def _clone_memory(self) -> tuple[int, list[int]]:
        if isinstance(self.shared_memory, str):
            return self._clone(self.shared_memory), []
        number = self._number()
        self._do(Operation.CLONE_OF, (number, FIRST_DESCRIPTOR + 1, 0), "clone /dev/shm")
        return number, [self.shared_memory]

    def _clone_cgroups(self) -> list[tuple[str, int]]:
        """On version 1, the container's own directory of each hierarchy, as its programs look for their limits."""
        if self.version == 2:
            return []
        found = ((name, path) for name, path in self.cgroups.items() if os.path.isdir(path))  # noqa: PTH112
        return [(name, self._clone(path)) for name, path in found]

    def _leave(self) -> None:
        self._do(Operation.LEAVE, (kernel.CLONE_NEWNS,), "make mount namespace")
        # Slave rather than private: what the node unmounts must not be kept busy here.
        self._mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE, "")
        # Its root is the group that this one has joined, so that the one with the limits is out of sight.
        self._do(Operation.LEAVE, (kernel.CLONE_NEWCGROUP,), "make cgroup namespace")
        self._at(Operation.OPEN, (_NODE, os.O_PATH | os.O_DIRECTORY), "/", "open the node's root")

    def _hides(self, path: str) -> bool:
        return self.proc is not None or not is_of_proc(path)

    # The root

    def _mount_root(self) -> None:
        root = self.plan.host["root"]
        target = root["target"]
        if root["kind"] == "overlay":
            writable = (root["upper"], root["work"])
            self._overlay(root["lower"], target, MOUNT_ATTR_NODEV if self._nodev else 0, writable)
        else:
            tree = self._clone(root["source"])
            self._set(tree, self._nodev, kernel.MS_PRIVATE)
            self._attach(tree, target, Attach.DIRECTORY, within=_NODE)
        self._root = self._open(target, os.O_PATH | os.O_DIRECTORY)

    def _overlay(
        self, lower: Sequence[str], target: str, attributes: int, writable: tuple[str, str] | None = None
    ) -> None:
        """Layers over an empty directory, the lowest first. By descriptor numbers: the options fit one page with any path."""
        opened = [self._open(path, os.O_PATH) for path in (*lower, *(writable or ()))]
        layers = [str(number) for number in opened[: len(lower)]][::-1]
        if len(layers) < (1 if writable else 2):
            layers.append(target)  # as an overlay needs one lower directory, or two where it has no upper one
        options = f"lowerdir={':'.join(layers)}"
        if writable:
            # No sync of the whole disk when the container ends. Its files need not survive a power failure, as the container does
            # not either.
            options += f",upperdir={opened[-2]},workdir={opened[-1]},volatile"
        self._at(Operation.WORK_IN, (), "/proc/self/fd", "go to /proc/self/fd")
        self._mount("overlay", target, "overlay", kernel.MS_NODEV if attributes else 0, options)
        self._at(Operation.WORK_IN, (), "/", "go to /")
        for number in opened:
            self._close(number)

    def _image(self, mount: MountSpec) -> int:
        """The tree of an image, or of the part of it that is wanted."""
        overlay = self.plan.host["root"]["kind"] == "overlay"
        lower = self.plan.host["images"][mount.target]
        place = image_trees.make_place(self.plan.spec.directory) if overlay else lower[-1]
        if overlay:
            self._overlay(lower, place, 0)
        root, found, tree = (self._number() for _ in range(3))
        self._at(Operation.OPEN, (root, os.O_PATH | os.O_DIRECTORY), place, "open image")
        self._at(
            Operation.OPEN_IN,
            (found, root, os.O_PATH),
            mount.image_path or "/",
            f"mount on {mount.target}: the image has no {mount.image_path}",
        )
        self._do(Operation.CLONE_OF, (tree, found, 0), f"mount on {mount.target}")
        for number in (root, found):
            self._close(number)
        if overlay:
            self._at(Operation.UNMOUNT, (kernel.MNT_DETACH,), place, "take away image")
        self._set(tree, MOUNT_ATTR_RDONLY | self._nodev | _attributes(mount), kernel.MS_PRIVATE)
        return tree

    # What every container has

    def _mount_kernel(self, cgroups: list[tuple[str, int]]) -> None:
        readonly = 0 if self._privileged else MOUNT_ATTR_RDONLY
        self._attach(self._filesystem("sysfs", _HARDENED | readonly), "/sys", _NEW_DIRECTORY)
        if self.version == 2:
            tree = self._filesystem("cgroup2", _HARDENED | readonly)
            self._attach(tree, "/sys/fs/cgroup", _NEW_DIRECTORY)
        elif cgroups:
            above = self._filesystem("tmpfs", _HARDENED, "mode=755")
            self._attach(above, "/sys/fs/cgroup", _NEW_DIRECTORY | Attach.KEEP)
            for controller, tree in cgroups:
                self._set(tree, _HARDENED | readonly, kernel.MS_PRIVATE)
                self._attach(tree, controller, _NEW_DIRECTORY, within=above)

    def _mount_dev(self, memory: int) -> None:
        self._dev = self._filesystem("tmpfs", MOUNT_ATTR_NOSUID | self._nodev, "mode=755", "size=65536k")
        self._attach(self._dev, "/dev", _NEW_DIRECTORY | Attach.KEEP)
        if self._privileged:
            self._copy_nodes()
        # One after the other: OWN_DEVICE looks through them.
        self._harmless = {name: next(self._numbers) for name in device_nodes.HARMLESS}
        for name, number in self._harmless.items():
            if self._nodev:
                self._attach(
                    self._elsewhere(device_nodes.harmless(name)), name, Attach.MAKE, within=self._dev
                )
            elif name not in self._in_dev:
                self._node(self._dev, name, device_nodes.harmless(name))
            self._at(
                Operation.OPEN_IN,
                (number, self._dev, os.O_PATH | os.O_NOFOLLOW),
                name,
                f"/dev/{name}",
            )
        for name, target in _LINKS.items():
            texts = (os.fsencode(target), os.fsencode(name))
            self._steps.append(Step(Operation.LINK, (self._dev,), texts, f"make /dev/{name}"))
        options = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
        pts = self._filesystem("devpts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, *options)
        mqueue = self._filesystem("mqueue", _HARDENED)
        self._set(memory, _HARDENED, kernel.MS_PRIVATE)
        for name, tree in (("pts", pts), ("shm", memory), ("mqueue", mqueue)):
            self._attach(tree, name, _NEW_DIRECTORY, within=self._dev)
        self._in_dev |= {*self._harmless, *_LINKS, "pts", "shm", "mqueue"}

    def _copy_nodes(self) -> None:
        """All of the node's; what vanishes until the plan is done is made all the same."""
        for path, name, node in device_nodes.list_nodes("/dev", without=_LINKS):
            place = f"{path}{name}"
            if node is None:
                self._at(Operation.DIRECTORY, (self._dev, 0o755), place, f"make /dev/{place}")
                continue
            own = device_nodes.harmless(name) if device_nodes.harmless_name(node) == name else node
            self._node(self._dev, place, own)
            self._in_dev.add(place)

    def _elsewhere(self, node: DeviceNode) -> int:
        """The tree of a node that is made for it, in a directory that only the launcher sees."""
        place = image_trees.make_place(self.plan.spec.directory)
        if not self._scratch:
            self._scratch = self._filesystem("tmpfs", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, "mode=700")
            self._attach(self._scratch, place, Attach.DIRECTORY | Attach.KEEP, within=_NODE)
        self._made += 1
        self._node(self._scratch, str(self._made), node)
        tree = self._clone(f"{place}/{self._made}")
        self._set(tree, 0, kernel.MS_PRIVATE)
        return tree

    # What this one has

    def _show_device(self, target: str, node: DeviceNode) -> None:
        """In the container's own /dev the node itself is made, as programs may want to remove it; else a mount shows it."""
        place = self._place_in_own_dev(target)
        if self._nodev or not place:
            self._attach(self._elsewhere(node), target, Attach.MAKE)
            return
        if above := posixpath.dirname(place):
            self._at(Operation.MAKE_DIRECTORY, (self._dev,), above, f"make directory /dev/{above}")
        self._node(self._dev, place, node)
        self._in_dev.add(place)

    def _place_in_own_dev(self, target: str) -> str:
        """Its path below that, if nothing is there and no volume is above it, which shows first; else nothing."""
        path = cleaned(target)
        place = path.removeprefix("/dev/")
        hidden = any(path.startswith(f"{cleaned(mount.target)}/") for mount in self.plan.spec.mounts)
        first = place.partition("/")[0]
        return "" if place == path or hidden or not {place, first}.isdisjoint(self._in_dev) else place

    def _show_volume(self, mount: MountSpec, tree: int) -> None:
        how = Attach.MAKE | Attach.LIKE
        if cleaned(mount.target) not in IN_PROC:
            how |= Attach.VISIBLE
        if is_image_volume_directory(mount.source, self.plan.spec.directory):
            # What the config mounts there by another name, through a link, wins.
            how |= Attach.UNLESS_MOUNTED
        self._use_own_device(mount, tree)
        self._attach(tree, mount.target, how)

    def _use_own_device(self, mount: MountSpec, tree: int) -> None:
        """Of /dev/null and the like the container has its own."""
        if mount.tmpfs or mount.image_layers:
            return
        attributes = _attributes(mount) | (MOUNT_ATTR_RDONLY if mount.readonly else 0)
        own = (min(self._harmless.values()), len(self._harmless))
        self._do(Operation.OWN_DEVICE, (tree, *own, attributes), f"mount {mount.source}")

    def _open_harmless(self) -> None:
        """Where a volume with /dev/null and the like lies on /dev, and may not open devices: show the container's own there."""
        on_dev = [mount for mount in self.plan.spec.mounts if cleaned(mount.target) == "/dev"]
        if not on_dev or any(mount.propagation is Propagation.BIDIRECTIONAL for mount in on_dev):
            return  # the node would get them, too
        for name, own in self._harmless.items():
            tree = self._number()
            self._do(Operation.CLONE_OF, (tree, own, 0), f"mount /dev/{name}")
            self._attach(tree, f"/dev/{name}", Attach.IF_FOUND | Attach.SAME_DEVICE)

    def _hide(self) -> None:
        security = self.plan.spec.security
        for path in security.masked_paths:
            if self._hides(path):
                how = (self._root, self._harmless["null"], _HARDENED | MOUNT_ATTR_RDONLY)
                self._at(Operation.MASK, how, path, f"mask {path}")
        for path in security.readonly_paths:
            if self._hides(path):
                self._at(Operation.RESTRICT, (self._root, MOUNT_ATTR_RDONLY), path, f"make read-only {path}")

    # Steps

    def _do(self, operation: Operation, integers: tuple[int, ...], subject: str) -> None:
        self._steps.append(Step(operation, integers, (), subject))

    def _at(self, operation: Operation, integers: tuple[int, ...], path: str, subject: str) -> None:
        self._steps.append(at_path(operation, integers, path, subject))

    def _open(self, path: str, flags: int) -> int:
        number = self._number()
        self._at(Operation.OPEN, (number, flags), path, f"open {path}")
        return number

    def _clone(self, path: str, *, recursive: bool = False) -> int:
        number = self._number()
        self._at(Operation.CLONE, (number, _AT_RECURSIVE if recursive else 0), path, f"mount {path}")
        return number

    def _filesystem(self, kind: str, attributes: int, *options: str) -> int:
        number = self._number()
        texts = tuple(map(os.fsencode, (kind, *options)))
        self._steps.append(Step(Operation.FILESYSTEM, (number, attributes), texts, f"make {kind}"))
        return number

    def _set(self, tree: int, attributes: int, propagation: int = 0, *, recursive: bool = False) -> None:
        integers = (tree, int(recursive), attributes, propagation)
        self._do(Operation.ATTRIBUTES, integers, "set what a mount allows")

    def _mount(self, source: str, target: str, kind: str, flags: int, data: str) -> None:
        texts = tuple(map(os.fsencode, (source, target, kind, data)))
        self._steps.append(Step(Operation.MOUNT, (flags, Tolerate.NOTHING), texts, f"mount on {target}"))

    def _attach(self, tree: int, target: str, how: Attach, *, within: int = 0) -> None:
        self._at(Operation.ATTACH, (tree, within or self._root, how), target, f"mount on {target}")
        if not how & Attach.KEEP:
            self._free.append(tree)

    def _close(self, number: int) -> None:
        self._do(Operation.CLOSE, (number,), "close")
        self._free.append(number)

    def _number(self) -> int:
        return self._free.pop() if self._free else next(self._numbers)

    def _node(self, directory: int, name: str, node: DeviceNode) -> None:
        integers = (directory, node.mode, node.number, node.uid, node.gid)
        self._at(Operation.NODE, integers, name, f"make device {name}")


def is_of_proc(path: str) -> bool:
    """Whether a path is for `run_plan` to hide, as /proc is mounted there."""
    return cleaned(path) == "/proc" or cleaned(path).startswith("/proc/")


def _attributes(mount: MountSpec) -> int:
    """What its options ask for."""
    attributes = 0
    for option in mount.options:
        if option not in _OPTIONS:
            raise HostError("mount on", mount.target, f"there is no option {option}")
        attributes |= _OPTIONS[option]
    return attributes
