"""A container's file tree, built in a mount namespace of its own, so that the node never sees a mount of it.

What comes from the node (volumes, the pod's /dev/shm) is cloned into detached mounts before the new mount namespace is
made, and attached inside afterwards: by descriptors all the way, so that no path is looked up twice. Devices are made anew.
Paths inside the root go through `baustelle.paths`, as the image and other containers of a shared volume decide what is there.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from functools import partial

from baustelle.paths import make_mount_target
from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.linux import device_nodes, image_trees, kernel
from cri.sandbox.linux.device_nodes import DeviceNode
from cri.sandbox.linux.kernel import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)
from cri.sandbox.places import IN_PROC, cleaned, is_image_volume_directory, is_inside_proc, parents_first
from cri.sandbox.spec import DeviceSpec, MountSpec, Propagation
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


class RootBuilder:
    """Builds one container's tree. Runs in the forked child, as root, before it gives anything up.

    Where cgroups do not say which devices a container may use, every mount of an unprivileged one is nodev but those of the
    nodes that it is given, so that one which it makes for itself (MKNOD is a default capability) opens nothing. Changing
    that takes SYS_ADMIN.
    """

    def __init__(self, plan: Plan, cgroups: dict[str, str], version: int) -> None:
        self._spec = plan.spec
        self._root = plan.host["root"]
        self._images: dict[str, list[str]] = plan.host.get("images", {})
        """The layers of each image that is mounted, by the mount's target."""
        self._cgroups = cgroups
        self._cgroup_version = version
        self._privileged = self._spec.security.privileged
        trusted = self._privileged or plan.host.get("device_rules", False)
        self._nodev = 0 if trusted else MOUNT_ATTR_NODEV
        self._root_fd = -1
        self._dev = -1
        """The container's own /dev."""
        self._made = 0
        """Nodes that are mounted elsewhere."""
        self._harmless: dict[str, int] = {}
        """The container's own /dev/null and the like, open."""
        self._shown: set[tuple[int, int]] = set()
        """The roots of all volumes of the config, by device and inode."""

    def build(self, shared_memory: int | str) -> None:
        """Make the tree and enter it. `shared_memory` is what becomes /dev/shm: a detached mount, or a path."""
        spec = self._spec
        os.umask(0)  # all modes are meant as they are written
        volumes = [(mount, self._volume(mount)) for mount in spec.mounts]
        devices = device_nodes.look_up(spec.devices)
        memory = kernel.clone_mount(shared_memory)
        cgroups = self._clone_cgroups()
        image_trees.enter_own_namespace()
        kernel.unshare(kernel.CLONE_NEWCGROUP)
        self._root_fd = self._mount_root()
        images = {mount.target: self._image(mount) for mount in spec.mounts if mount.image_layers}
        self._mount_kernel(cgroups)
        self._mount_dev(memory)
        # A volume hides a device that is asked for in its place.
        steps: list[tuple[str, Callable[[], None]]] = [
            *((device.target, partial(self._show_device, device, node)) for device, node in devices),
            *(
                (mount.target, partial(self._show_volume, mount, images.get(mount.target, tree)))
                for mount, tree in volumes
            ),
        ]
        for _, step in parents_first(steps, lambda step: step[0]):
            step()
        if self._nodev:
            self._open_harmless()
        self._make_cwd(spec.process.cwd)
        self._hide()
        if spec.security.readonly_root:
            kernel.set_mount(self._root_fd, attributes=MOUNT_ATTR_RDONLY)
        os.fchdir(self._root_fd)
        kernel.pivot_root(".", ".")  # stacks the old root on the new one: pivot_root(2), NOTES
        kernel.unmount(".", kernel.MNT_DETACH)
        os.chdir("/")

    def _mount_root(self) -> int:
        target = self._root["target"]
        if self._root["kind"] == "overlay":
            flags = kernel.MS_NODEV if self._nodev else 0
            image_trees.mount_overlay(
                self._root["lower"], target, flags, (self._root["upper"], self._root["work"])
            )
        else:
            tree = kernel.clone_mount(self._root["source"])
            kernel.set_mount(tree, attributes=self._nodev, propagation=kernel.MS_PRIVATE)
            with _opened(target) as fd:
                kernel.attach_mount(tree, fd, target)
        return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _image(self, mount: MountSpec) -> int:
        """The detached mount of an image's tree, or of the part of it that is wanted."""
        overlay = self._root["kind"] == "overlay"
        place = image_trees.make_place(self._spec.directory)
        with image_trees.opened(self._images[mount.target], place, overlay=overlay) as root:
            fd = image_trees.find(root, mount.image_path, mount.target)
            tree = kernel.clone_mount(fd)
            os.close(fd)
        kernel.set_mount(
            tree,
            attributes=MOUNT_ATTR_RDONLY | self._nodev | _attributes(mount),
            propagation=kernel.MS_PRIVATE,
        )
        return tree

    def _volume(self, mount: MountSpec) -> int | str:
        """The detached mount of a volume; of /dev/null and the like the name alone, as the container has its own."""
        if mount.image_layers:
            return -1  # its mount comes later
        attributes = self._nodev | _attributes(mount)
        readonly = MOUNT_ATTR_RDONLY if mount.readonly else 0
        if mount.tmpfs:
            return kernel.new_filesystem("tmpfs", {}, attributes | readonly)
        try:
            if name := device_nodes.harmless_name(device_nodes.of_node(os.stat(mount.source))):  # noqa: PTH116
                return name
            tree = kernel.clone_mount(mount.source, recursive=True)
            kernel.set_mount(
                tree, attributes=attributes, propagation=_PROPAGATION[mount.propagation], recursive=True
            )
            if readonly:
                kernel.set_mount(tree, attributes=readonly, recursive=mount.recursive_readonly)
        except OSError as error:
            raise HostError("mount", mount.source, error.strerror or str(error), error.errno) from error
        return tree

    def _node(self, node: DeviceNode) -> int:
        """The detached mount of a node that is made for it, in a directory that only we see."""
        place = image_trees.make_place(self._spec.directory)
        if not self._made:
            tree = kernel.new_filesystem("tmpfs", {"mode": "700"}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
            with _opened(place) as fd:
                kernel.attach_mount(tree, fd, place)
            os.close(tree)
        self._made += 1
        with _opened(place) as fd:
            node.make(str(self._made), fd)
        return _own_clone(f"{place}/{self._made}")

    def _mount_kernel(self, cgroups: list[tuple[str, int]]) -> None:
        self._attach(kernel.new_filesystem("proc", {}, _HARDENED), "/proc")
        readonly = 0 if self._privileged else MOUNT_ATTR_RDONLY
        self._attach(kernel.new_filesystem("sysfs", {}, _HARDENED | readonly), "/sys")
        if self._cgroup_version == 2:
            self._attach(kernel.new_filesystem("cgroup2", {}, _HARDENED | readonly), "/sys/fs/cgroup")
        elif cgroups:
            self._attach(kernel.new_filesystem("tmpfs", {"mode": "755"}, _HARDENED), "/sys/fs/cgroup")
            directory = kernel.open_in_root(self._root_fd, "/sys/fs/cgroup", os.O_PATH | os.O_DIRECTORY)
            for controller, tree in cgroups:
                kernel.set_mount(tree, attributes=_HARDENED | readonly, propagation=kernel.MS_PRIVATE)
                os.mkdir(controller, 0o755, dir_fd=directory)
                _attach_at(tree, directory, controller)
            os.close(directory)

    def _clone_cgroups(self) -> list[tuple[str, int]]:
        """On version 1, the container's own directory of each hierarchy, as its programs look for their limits."""
        if self._cgroup_version == 2:
            return []
        found = ((name, path) for name, path in self._cgroups.items() if os.path.isdir(path))  # noqa: PTH112
        return [(name, kernel.clone_mount(path)) for name, path in found]

    def _mount_dev(self, memory: int) -> None:
        self._attach(
            kernel.new_filesystem(
                "tmpfs", {"mode": "755", "size": "65536k"}, MOUNT_ATTR_NOSUID | self._nodev
            ),
            "/dev",
        )
        self._dev = dev = kernel.open_in_root(self._root_fd, "/dev", os.O_RDONLY | os.O_DIRECTORY)
        if self._privileged:
            with _opened("/dev") as host:
                device_nodes.copy_nodes(host, dev, without=_LINKS)
        for name in device_nodes.HARMLESS:
            self._harmless[name] = self._make_harmless(name)
        for name, target in _LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        terminals = {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "gid": "5"}
        pts = kernel.new_filesystem("devpts", terminals, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
        mqueue = kernel.new_filesystem("mqueue", {}, _HARDENED)
        kernel.set_mount(memory, attributes=_HARDENED, propagation=kernel.MS_PRIVATE)
        for name, tree in (("pts", pts), ("shm", memory), ("mqueue", mqueue)):
            os.mkdir(name, 0o755, dir_fd=dev)
            _attach_at(tree, dev, name)

    def _make_harmless(self, name: str) -> int:
        """Make /dev/null or the like, unless it is there. It is returned open (O_PATH)."""
        node = device_nodes.harmless(name)
        if self._nodev:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=self._dev))
            _attach_at(self._node(node), self._dev, name)
        elif not self._privileged or not _is_there(name, self._dev):
            node.make(name, self._dev)
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dev)

    def _show_device(self, device: DeviceSpec, node: DeviceNode) -> None:
        """In the container's own /dev the node itself is made, as programs may want to remove it; else a mount shows it."""
        above, name = posixpath.split(device.target)
        try:
            directory = self._target(above, directory=True)
        except OSError as error:
            raise HostError("make", f"directory {above}", error.strerror or "", error.errno) from error
        try:
            own = os.fstat(directory).st_dev == os.fstat(self._dev).st_dev
            if self._nodev or not own:
                self._attach(self._node(node), device.target, directory=False)
                return
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name, dir_fd=directory)
            node.make(name, directory)
        finally:
            os.close(directory)

    def _show_volume(self, mount: MountSpec, tree: int | str) -> None:
        if isinstance(tree, str):
            fd = self._harmless[tree]
            tree = kernel.clone_mount(fd)
            readonly = MOUNT_ATTR_RDONLY if mount.readonly else 0
            kernel.set_mount(tree, attributes=_attributes(mount) | readonly, propagation=kernel.MS_PRIVATE)
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        self._see_that_it_may_be_hidden(mount.target, directory=directory)
        if is_image_volume_directory(mount.source, self._spec.directory):
            # What the config mounts there by another name, through a link, wins.
            with _closing(self._target_or_fail(mount.target, directory=directory)) as target:
                if _identity(target) in self._shown:
                    os.close(tree)
                    return
        else:
            self._shown.add(_identity(tree))
        self._attach(tree, mount.target, directory=directory)

    def _see_that_it_may_be_hidden(self, target: str, *, directory: bool) -> None:
        """A link of the image may lead a volume to what a request by name is refused for. Raises UnfitRequestError."""
        with _closing(self._target_or_fail(target, directory=directory)) as fd:
            root, found = (os.readlink(f"/proc/self/fd/{each}") for each in (self._root_fd, fd))  # noqa: PTH115
        place = cleaned(found.removeprefix(root))
        if place == "/" or (
            is_inside_proc(place) and cleaned(target) not in IN_PROC
        ):  # /proc/net is a link itself
            raise UnfitRequestError("mount on", target, f"it leads to {place} in this image; mount elsewhere")

    def _open_harmless(self) -> None:
        """Where a volume with /dev/null and the like lies on /dev, and may not open devices: show the container's own there."""
        with self._found("/dev") as dev:
            if dev is None or os.fstat(dev).st_dev == os.fstat(self._dev).st_dev:
                return
        on_dev = [mount for mount in self._spec.mounts if mount.target == "/dev"]
        if any(mount.propagation is Propagation.BIDIRECTIONAL for mount in on_dev):
            return  # the node would get them, too
        for name, own in self._harmless.items():
            with self._found(f"/dev/{name}") as there:
                if (
                    there is not None
                    and device_nodes.harmless_name(device_nodes.of_node(os.fstat(there))) == name
                ):
                    tree = kernel.clone_mount(own)
                    kernel.attach_mount(tree, there, f"/dev/{name}")
                    os.close(tree)

    def _make_cwd(self, path: str) -> None:
        try:
            os.close(self._target(path or "/", directory=True))
        except OSError as error:
            raise HostError("make", f"working directory {path}", error.strerror or "", error.errno) from error

    def _hide(self) -> None:
        for path in self._spec.security.masked_paths:
            with self._found(path) as fd:
                if fd is None:
                    continue
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    tree = kernel.new_filesystem("tmpfs", {"size": "0k"}, _HARDENED | MOUNT_ATTR_RDONLY)
                else:
                    tree = kernel.clone_mount(self._harmless["null"])
                kernel.attach_mount(tree, fd, path)
                os.close(tree)
        for path in self._spec.security.readonly_paths:
            with self._found(path) as fd:
                if fd is not None:
                    tree = kernel.clone_mount(fd, recursive=True)
                    kernel.set_mount(tree, attributes=MOUNT_ATTR_RDONLY, recursive=True)
                    kernel.attach_mount(tree, fd, path)
                    os.close(tree)

    @contextlib.contextmanager
    def _found(self, path: str) -> Iterator[int | None]:
        try:
            fd = kernel.open_in_root(self._root_fd, path)
        except (FileNotFoundError, NotADirectoryError):
            yield None  # nothing there to hide
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def _attach(self, tree: int, target: str, *, directory: bool = True) -> None:
        try:
            fd = self._target(target, directory=directory)
            try:
                kernel.attach_mount(tree, fd, target)
            finally:
                os.close(fd)
        except OSError as error:
            raise _not_mounted(target, error) from error
        os.close(tree)

    def _target_or_fail(self, target: str, *, directory: bool) -> int:
        try:
            return self._target(target, directory=directory)
        except OSError as error:
            raise _not_mounted(target, error) from error

    def _target(self, path: str, *, directory: bool) -> int:
        """The place to mount on; made if it is not there. One of the wrong kind is left to `make_mount_target` to refuse."""
        with contextlib.suppress(FileNotFoundError):
            fd = kernel.open_in_root(self._root_fd, path)
            if stat.S_ISDIR(os.fstat(fd).st_mode) == directory:
                return fd
            os.close(fd)
        make_mount_target(self._root_fd, path, directory=directory)
        return kernel.open_in_root(self._root_fd, path)


def _attach_at(tree: int, directory: int, name: str) -> None:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    kernel.attach_mount(tree, fd, f"/dev/{name}")
    os.close(fd)
    os.close(tree)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    with _closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        yield fd


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _own_clone(path: str) -> int:
    """A clone of a mount of the node that passes nothing on to the node's: those are shared on most."""
    tree = kernel.clone_mount(path)
    kernel.set_mount(tree, propagation=kernel.MS_PRIVATE)
    return tree


def _attributes(mount: MountSpec) -> int:
    """What its options ask for."""
    attributes = 0
    for option in mount.options:
        if option not in _OPTIONS:
            raise HostError("mount on", mount.target, f"there is no option {option}")
        attributes |= _OPTIONS[option]
    return attributes


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _not_mounted(target: str, error: OSError) -> HostError:
    return HostError("mount on", target, error.strerror or str(error), error.errno)
