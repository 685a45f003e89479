"""A container's file tree, mounted from outside before its jail is made.

Mounts on FreeBSD are the whole node's: every one lies below the container's directory, so that what a crash leaves is
found there again, and is taken away by its fsid. Paths inside the tree go through `baustelle.paths`, as the image and
other containers of a shared volume decide what is there; nmount(2) takes text all the same, so each mount is looked at
after it was made, and taken back if it is not where it was meant to be, or shows another file than was meant.

`rootfs` is the writable root, `view` a read-only alias of it for containers that must not write to it: the mount
points are made through the former, and the jail has the latter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baustelle.paths import make_mount_target, open_beneath, resolve_beneath
from cri.sandbox.freebsd.calls import (
    MNT_IGNORE,
    MNT_NOEXEC,
    MNT_NOSUID,
    MNT_RDONLY,
    Calls,
    DevfsRule,
)
from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.places import cleaned, is_image_volume_directory, parents_first
from cri.sandbox.spec import ContainerSpec, DeviceSpec, MountSpec

VIEW = "view"
_DEVICES_DIRECTORY = "/.cri-jails"
"""Where files lie that are mounted below /dev: devfs can hold a link to them, but no file of its own."""
_SHARED_MEMORY = "67108864"
"""Bytes of a Linux container's /dev/shm: 64 MiB, as every container engine has it."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_FLAGS = {"nosuid": MNT_NOSUID, "noexec": MNT_NOEXEC, "nodev": 0}
"""nodev is always so: only devfs has device nodes."""
_EMPTY = "65536"
"""Bytes of the filesystem that hides a directory."""

NODES = (
    *("null", "zero", "full", "random", "urandom", "crypto", "tty", "ctty"),
    *("ptmx", "pts", "pts/*", "fd", "fd/*", "stdin", "stdout", "stderr", "shm", "shm/*"),
)
RULESET: Sequence[DevfsRule] = (DevfsRule(hide=True), *(DevfsRule(name, hide=False) for name in NODES))
"""What every container finds in /dev; devfs(8)."""


@dataclass(slots=True)
class TreeBuilder:
    """Mounts one container's tree. Blocks; all of it is undone by `teardown.take_down`."""

    calls: Calls
    spec: ContainerSpec
    root: str
    """The writable root filesystem."""
    ruleset: int
    images: Mapping[str, str] = field(default_factory=dict)
    """Where the image of each image volume lies on the node, by the mount's target."""
    _links: set[str] = field(default_factory=set)
    """The names in /dev that lead elsewhere."""
    _before: frozenset[tuple[int, int]] = frozenset()
    _shown: set[str] = field(default_factory=set)
    """Where volumes of the config are mounted."""

    def build(self) -> str:
        """Mount everything; the path of the jail's root. Raises HostError with the tree half-made."""
        spec = self.spec
        self._before = frozenset(mount.fsid for mount in self.calls.mounts())
        volumes = parents_first(spec.mounts, lambda mount: mount.target)
        with _opened(self.root) as fd:
            self._link_devices(_Tree(self.root, fd))
        directory = self._alias(volumes) if spec.security.readonly_root else self.root
        with _opened(directory) as fd:
            tree = _Tree(directory, fd)
            dev = self._mount_dev(tree)
            if spec.os == "linux":
                self._mount_linux(tree, dev)
            for volume in volumes:
                self._mount_volume(tree, dev, volume)
            self._hide(tree)
        return directory

    def mount(self, kind: str, target: str, options: Mapping[str, str | None], flags: int = 0) -> None:
        """Mount, and see that it is the right thing in the right place. Raises HostError."""
        source = options.get("from") or kind
        try:
            identity = _identity(source) if kind == "nullfs" else None
            self.calls.mount(kind, target, options, flags | MNT_IGNORE)
            if not self._is_at(kind, target):
                self._take_back(kind, source)
                raise HostError(
                    "mount on", target, "the path led somewhere else at that moment", errno.EAGAIN
                )
            if identity is not None and _identity(target) != identity:
                raise HostError("mount", source, "another file took its place at that moment", errno.EAGAIN)
        except OSError as error:
            where = f"{source} on {target}" if kind == "nullfs" else f"{kind} on {target}"
            reason = error.strerror or str(error)
            if error.errno == errno.EINVAL and os.path.isfile(target):  # noqa: PTH113
                reason += " (a file that has several hard links cannot be mounted on)"
            raise HostError("mount", where, reason, error.errno) from error

    def _is_at(self, kind: str, target: str) -> bool:
        """Whether a filesystem of that kind is mounted right there."""
        try:
            found = self.calls.mount_of(target)
        except FileNotFoundError:
            return False
        return (found.kind, found.target) == (kind, target)

    def _take_back(self, kind: str, source: str) -> None:
        """Unmount what has just been mounted where it should not be."""
        for mount in reversed(self.calls.mounts()):
            new = mount.fsid not in self._before and not mount.target.startswith(f"{self.spec.directory}/")
            if new and (mount.kind, mount.source) == (kind, source):
                self.calls.unmount(mount, force=True)
                return

    def _alias(self, volumes: Sequence[MountSpec]) -> str:
        """The read-only alias of the root, in which every mount point is there already."""
        with _opened(self.root) as fd:
            tree = _Tree(self.root, fd)
            tree.place("/dev", directory=True)
            if self.spec.os == "linux":
                tree.place("/proc", directory=True)
                tree.place("/sys", directory=True)
            tree.make(self.spec.process.cwd or "/", directory=True)
            for volume in volumes:
                tree.place(_outside_dev(volume.target), directory=self._is_directory(volume))
        alias = Path(self.spec.directory, VIEW)
        alias.mkdir(mode=0o755, exist_ok=True)
        self.mount("nullfs", str(alias), {"from": self.root}, MNT_RDONLY)
        return str(alias)

    def _mount_dev(self, tree: _Tree) -> str:
        dev = tree.place("/dev", directory=True)
        # A devfs with a ruleset that is not there shows everything, and anybody may have deleted ours (devfs(8) delset).
        self.calls.devfs_ruleset(self.ruleset, RULESET)
        self.mount("devfs", dev, {"from": "devfs", **self._devfs_options()})
        for device in self.spec.devices:
            self._show_device(dev, device)
        as_linux: dict[str, str | None] = {"linrdlnk": None} if self.spec.os == "linux" else {}
        self.mount("fdescfs", f"{dev}/fd", {"from": "fdescfs", **as_linux})
        return dev

    def _devfs_options(self) -> Mapping[str, str]:
        return {} if self.spec.security.privileged else {"ruleset": str(self.ruleset)}

    def _mount_linux(self, tree: _Tree, dev: str) -> None:
        self.mount("linprocfs", tree.place("/proc", directory=True), {"from": "linprocfs"})
        self.mount("linsysfs", tree.place("/sys", directory=True), {"from": "linsysfs"})
        shared = "/dev/shm"  # noqa: S108
        if shared not in {cleaned(mount.target) for mount in self.spec.mounts}:
            place = self._place(tree, dev, shared, directory=True)
            self.mount("tmpfs", place, {"from": "tmpfs", "size": _SHARED_MEMORY, "mode": "1777"})

    def _mount_volume(self, tree: _Tree, dev: str, volume: MountSpec) -> None:
        flags = MNT_RDONLY if volume.readonly else 0
        for option in volume.options:
            if option not in _FLAGS:
                raise HostError("mount on", volume.target, f"there is no option {option}", errno.EINVAL)
            flags |= _FLAGS[option]
        place = self._place(tree, dev, volume.target, directory=self._is_directory(volume))
        if not is_image_volume_directory(volume.source, self.spec.directory):
            self._shown.add(place)
        elif place in self._shown:
            return  # the config mounts something there by another name, through a link
        if volume.tmpfs:
            self.mount("tmpfs", place, {"from": "tmpfs"}, flags)
        elif self._shows_devices(volume):
            # Through a nullfs all devices of the node could be used, and its own nodes be changed.
            if place != dev:  # where there is one already, with the devices that are asked for
                self.mount("devfs", place, {"from": "devfs", **self._devfs_options()}, flags)
        else:
            self.mount("nullfs", place, {"from": self.images.get(volume.target, volume.source)}, flags)

    def _shows_devices(self, volume: MountSpec) -> bool:
        """Whether it is the node's /dev. Raises HostError for a part of that, unless the container is privileged."""
        if (
            volume.tmpfs
            or volume.image_layers
            or (found := self.calls.mount_of(volume.source)).kind != "devfs"
        ):
            return False
        if found.target != volume.source and not self.spec.security.privileged:
            reason = (
                "devices of the node are shown by `devices`, not by volumes; only all of /dev can be a volume"
            )
            raise UnfitRequestError("mount", volume.source, reason, errno.EPERM)
        return found.target == volume.source

    def _place(self, tree: _Tree, dev: str, target: str, *, directory: bool) -> str:
        """A mount point. What has no place in devfs gets one elsewhere, and a link to it there."""
        inside = _below_dev(target)
        if inside is None or (Path(dev, inside[0]).is_dir() and not Path(dev, inside[0]).is_symlink()):
            return tree.place(target, directory=directory)
        place = tree.place(_outside_dev(target), directory=directory)
        if (found := self.calls.mount_of(dev)).kind != "devfs" or found.target != dev:
            # The link below would be made in whatever is mounted there.
            raise HostError("mount on", target, "another volume lies over the container's /dev", errno.EINVAL)
        if inside[0] not in self._links:  # of another mount below the same directory
            self._link(dev, inside[0], f"{_DEVICES_DIRECTORY}/dev/{inside[0]}")
        return place

    def _link(self, dev: str, name: str, target: str) -> None:
        """Make a link in a devfs, and show it: the ruleset hides it like anything else.

        The name becomes a pattern of devfs(8), and a node of that name would be shown with the link: neither must be. (shm is
        what Linux emulation leaves there: an empty directory that is none.)
        """
        if not _NAME.fullmatch(name) or (name != "shm" and os.path.lexists(f"/dev/{name}")):
            reason = "choose a name of letters, digits, '.', '_' and '-' that no device of the node has"
            raise HostError("mount on", f"/dev/{name}", reason, errno.EINVAL)
        try:
            Path(dev, name).symlink_to(target)
            self.calls.devfs_apply(dev, [DevfsRule(name, hide=False)])
        except OSError as error:
            raise HostError("mount on", f"/dev/{name}", error.strerror or str(error), error.errno) from error
        self._links.add(name)

    def _link_devices(self, tree: _Tree) -> None:
        """Make links for devices in a directory of another name than the node's: devfs gets no directories of ours."""
        for device in self.spec.devices:
            inside = _below_dev(device.target)
            if inside is None or len(inside) < 2 or cleaned(device.source) == cleaned(device.target):
                continue
            directory = tree.make(posixpath.join(_DEVICES_DIRECTORY, "dev", *inside[:-1]), directory=True)
            place = f"{directory}/{inside[-1]}"
            try:
                if os.path.lexists(place):  # of the image
                    os.unlink(place)  # noqa: PTH108
                Path(place).symlink_to(cleaned(device.source))
            except OSError as error:
                raise HostError(
                    "show", f"device {device.source}", f"{error.strerror}: {place}", error.errno
                ) from error

    def _show_device(self, dev: str, device: DeviceSpec) -> None:
        source, target = cleaned(device.source), cleaned(device.target)
        name, link = source.removeprefix("/dev/"), target.removeprefix("/dev/")
        if name == source or link == target:
            raise HostError("show", f"device {device.source}", "devices are in /dev only", errno.EINVAL)
        if not all(_NAME.fullmatch(part) for part in name.split("/")):
            raise HostError("show", f"device {device.source}", "its name is no plain one", errno.EINVAL)
        permissions = set(device.permissions)
        mode = None if {"r", "w"} <= permissions else 0o444 if "r" in permissions else 0o222
        # Every directory on the way has to be shown too.
        parents = [name[:at] for at, letter in enumerate(name) if letter == "/"]
        rules = [
            *(DevfsRule(parent, hide=False) for parent in parents),
            DevfsRule(name, hide=False, mode=mode),
        ]
        try:
            self.calls.devfs_apply(dev, rules)
            first, *below = link.split("/")
            if target != source and not below:
                self._link(dev, first, source)
            elif target != source and first not in self._links:  # see _link_devices
                self._link(dev, first, f"{_DEVICES_DIRECTORY}/dev/{first}")
        except OSError as error:
            raise HostError(
                "show", f"device {device.source}", error.strerror or str(error), error.errno
            ) from error

    def _hide(self, tree: _Tree) -> None:
        for path in self.spec.security.masked_paths:
            if (found := tree.find(path)) is None:
                continue
            if _is_directory(found):
                self.mount("tmpfs", found, {"from": "tmpfs", "size": _EMPTY}, MNT_RDONLY)
            else:
                empty = Path(self.spec.directory, "empty")
                empty.touch(mode=0o444)
                self.mount("nullfs", found, {"from": str(empty)}, MNT_RDONLY)
        for path in self.spec.security.readonly_paths:
            # linprocfs and linsysfs let nothing be written that matters to the node.
            if not path.startswith(("/proc/", "/sys/")) and (found := tree.find(path)) is not None:
                self.mount("nullfs", found, {"from": found}, MNT_RDONLY)

    def _is_directory(self, volume: MountSpec) -> bool:
        return volume.tmpfs or _is_directory(self.images.get(volume.target, volume.source))


class _Tree:
    """The inside of a container's root."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def place(self, target: str, *, directory: bool) -> str:
        """The path on the node of a mount point, which is made if it is not there."""
        place = self.make(target, directory=directory)
        if place == self._path:
            # Whatever removes the root would remove what is mounted on it.
            raise HostError("mount on", target, "it is the root directory of the container", errno.EINVAL)
        return place

    def make(self, target: str, *, directory: bool) -> str:
        """The path on the node of a file or directory, which is made if it is not there."""
        try:
            make_mount_target(self._fd, target, directory=directory)
            return str(resolve_beneath(Path(self._path), target))
        except OSError as error:
            raise HostError("mount on", target, error.strerror or str(error), error.errno) from error

    def find(self, path: str) -> str | None:
        """The path on the node of a mount point that is there already, None if it is not."""
        try:
            os.close(open_beneath(self._fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self.place(path, directory=_is_directory(str(resolve_beneath(Path(self._path), path))))


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _identity(path: str) -> tuple[int, ...]:
    """What tells a file from others, also when a nullfs shows it: that has a device of its own."""
    found = os.stat(path)  # noqa: PTH116
    return (found.st_ino, found.st_mode, found.st_uid, found.st_gid)


def _is_directory(source: str) -> bool:
    """Whether a directory is to be mounted. Raises HostError for what nullfs cannot show."""
    try:
        mode = os.stat(source).st_mode  # noqa: PTH116
    except OSError as error:
        raise HostError("mount", source, error.strerror or str(error), error.errno) from error
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return stat.S_ISDIR(mode)
    raise HostError(
        "mount", source, "nullfs shows directories and regular files only; mount its directory", errno.EINVAL
    )


def _below_dev(target: str) -> list[str] | None:
    parts = cleaned(target).strip("/").split("/")
    return parts[1:] if len(parts) > 1 and parts[0] == "dev" else None


def _outside_dev(target: str) -> str:
    """Where a mount point is made: below /dev, somewhere else."""
    inside = _below_dev(target)
    return target if inside is None else posixpath.join(_DEVICES_DIRECTORY, "dev", *inside)
