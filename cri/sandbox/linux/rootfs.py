"""A container's file tree, built in a mount namespace of its own, so that the node never sees a mount of it.

What comes from the node (volumes, device nodes, the pod's /dev/shm) is cloned into detached mounts before the new mount
namespace is made, and attached inside afterwards: by descriptors all the way, so that no path is looked up twice. Paths inside
the root go through `baustelle.paths`, as the image and other containers of a shared volume decide what is there.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from baustelle.paths import make_mount_target
from cri.sandbox.host import HostError
from cri.sandbox.linux import kernel
from cri.sandbox.linux.kernel import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)
from cri.sandbox.spec import ContainerSpec, DeviceSpec, MountSpec, Propagation

_HARDENED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
_OPTIONS = {"nosuid": MOUNT_ATTR_NOSUID, "nodev": MOUNT_ATTR_NODEV, "noexec": MOUNT_ATTR_NOEXEC}
_PROPAGATION = {
    Propagation.PRIVATE: kernel.MS_PRIVATE,
    Propagation.HOST_TO_CONTAINER: kernel.MS_SLAVE,
    Propagation.BIDIRECTIONAL: kernel.MS_SHARED,
}
# Access to devices needs no device cgroup: these nodes are bind mounts from the node, and every other mount of an
# unprivileged container is nodev, so that a node which it makes for itself (MKNOD is a default capability) opens nothing.
# Changing that takes SYS_ADMIN.
_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
}
# Of the node's /dev, what a privileged container gets of its own.
_OWN_DEV = frozenset({"pts", "shm", "mqueue", "console", "ptmx", *_LINKS})


class RootBuilder:
    """Builds one container's tree. Runs in the forked child, as root, before it gives anything up."""

    def __init__(
        self, spec: ContainerSpec, root: dict[str, Any], cgroups: dict[str, str], version: int
    ) -> None:
        self._spec = spec
        self._root = root
        self._cgroups = cgroups
        self._cgroup_version = version
        self._privileged = spec.security.privileged
        self._nodev = 0 if self._privileged else MOUNT_ATTR_NODEV
        self._root_fd = -1

    def build(self, shared_memory: int | str) -> None:
        """Make the tree and enter it. `shared_memory` is what becomes /dev/shm: a detached mount, or a path."""
        spec = self._spec
        volumes = [(mount, _volume(mount, self._nodev)) for mount in spec.mounts]
        devices = [(device, _device(device)) for device in spec.devices]
        nodes = {name: _own_clone(f"/dev/{name}") for name in _NODES}
        memory = kernel.clone_mount(shared_memory)
        cgroups = self._clone_cgroups()
        kernel.unshare(kernel.CLONE_NEWNS | (kernel.CLONE_NEWCGROUP if self._cgroup_version == 2 else 0))
        # Nothing done here may reach the node. Slave rather than private: what the node unmounts must not be kept busy here.
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
        self._root_fd = self._mount_root()
        self._mount_kernel(cgroups)
        self._mount_dev(nodes, memory)
        for device, tree in devices:
            self._attach(tree, device.target, directory=False)
        for mount, tree in sorted(volumes, key=lambda volume: _depth(volume[0].target)):
            self._attach(tree, mount.target, directory=_is_directory(tree))
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
        flags = 0 if self._privileged else kernel.MS_NODEV
        if self._root["kind"] == "overlay":
            _mount_overlay(self._root, target, flags)
        else:
            tree = kernel.clone_mount(self._root["source"])
            kernel.set_mount(tree, attributes=self._nodev, propagation=kernel.MS_PRIVATE)
            with _opened(target) as fd:
                kernel.attach_mount(tree, fd, target)
        return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

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

    def _mount_dev(self, nodes: dict[str, int], memory: int) -> None:
        noexec = MOUNT_ATTR_NOSUID | self._nodev
        self._attach(kernel.new_filesystem("tmpfs", {"mode": "755", "size": "65536k"}, noexec), "/dev")
        dev = kernel.open_in_root(self._root_fd, "/dev", os.O_PATH | os.O_DIRECTORY)
        try:
            if self._privileged:
                with _opened("/dev") as host:
                    _copy_nodes(host, dev)
            else:
                for name, tree in nodes.items():
                    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=dev))
                    _attach_at(tree, dev, name)
            for name, target in _LINKS.items():
                with contextlib.suppress(FileExistsError):
                    os.symlink(target, name, dir_fd=dev)
            terminals = {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "gid": "5"}
            pts = kernel.new_filesystem("devpts", terminals, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
            mqueue = kernel.new_filesystem("mqueue", {}, _HARDENED)
            kernel.set_mount(memory, attributes=_HARDENED, propagation=kernel.MS_PRIVATE)
            for name, tree in (("pts", pts), ("shm", memory), ("mqueue", mqueue)):
                os.mkdir(name, 0o755, dir_fd=dev)
                _attach_at(tree, dev, name)
        finally:
            os.close(dev)

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
                    tree = kernel.clone_mount("/dev/null")
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
            raise HostError("mount on", target, error.strerror or str(error), error.errno) from error
        os.close(tree)

    def _target(self, path: str, *, directory: bool) -> int:
        """The place to mount on; made if it is not there. One of the wrong kind is left to `make_mount_target` to refuse."""
        with contextlib.suppress(FileNotFoundError):
            fd = kernel.open_in_root(self._root_fd, path)
            if stat.S_ISDIR(os.fstat(fd).st_mode) == directory:
                return fd
            os.close(fd)
        make_mount_target(self._root_fd, path, directory=directory)
        return kernel.open_in_root(self._root_fd, path)


def _mount_overlay(root: dict[str, Any], target: str, flags: int) -> None:
    """Mount the layers. By descriptor numbers: the options fit one page with any number of layers and any path."""
    descriptors = [
        os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*root["lower"], root["upper"], root["work"])
    ]
    *lower, upper, work = map(str, descriptors)
    # An overlay needs a lower directory; without layers, the (empty) target is one.
    options = f"lowerdir={':'.join(reversed(lower)) or target},upperdir={upper},workdir={work}"
    os.chdir("/proc/self/fd")
    try:
        # volatile: no sync of the whole disk when the container ends. Its files need not survive a power failure, as the
        # container does not either.
        kernel.mount("overlay", target, "overlay", flags, options + ",volatile")
    except OSError:
        kernel.mount("overlay", target, "overlay", flags, options)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir("/")


def _volume(mount: MountSpec, nodev: int) -> int:
    """The detached mount of a volume."""
    attributes = nodev
    for option in mount.options:
        if option not in _OPTIONS:
            raise HostError("mount", mount.target, f"there is no option {option}")
        attributes |= _OPTIONS[option]
    readonly = MOUNT_ATTR_RDONLY if mount.readonly else 0
    if mount.tmpfs:
        return kernel.new_filesystem("tmpfs", {}, attributes | readonly)
    try:
        tree = kernel.clone_mount(mount.source, recursive=True)
        kernel.set_mount(
            tree, attributes=attributes, propagation=_PROPAGATION[mount.propagation], recursive=True
        )
        if readonly:
            kernel.set_mount(tree, attributes=readonly, recursive=mount.recursive_readonly)
    except OSError as error:
        raise HostError("mount", mount.source, error.strerror or str(error), error.errno) from error
    return tree


def _device(device: DeviceSpec) -> int:
    try:
        if not {"r", "w"} <= set(device.permissions):
            # A read-only mount would not keep anybody from writing to a device.
            raise HostError(
                "use", f"device {device.source}", "permissions other than rw or rwm are not supported"
            )
        tree = _own_clone(device.source)
    except OSError as error:
        raise HostError(
            "use", f"device {device.source}", error.strerror or str(error), error.errno
        ) from error
    return tree


def _copy_nodes(source: int, target: int) -> None:
    """Make the same device nodes in `target` that `source` has."""
    for name in os.listdir(source):
        if name in _OWN_DEV:
            continue
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=target)
        elif stat.S_ISDIR(found.st_mode):
            os.mkdir(name, 0o755, dir_fd=target)
            with _opened(name, source) as inner, _opened(name, target) as outer:
                _copy_nodes(inner, outer)


def _attach_at(tree: int, directory: int, name: str) -> None:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    kernel.attach_mount(tree, fd, f"/dev/{name}")
    os.close(fd)
    os.close(tree)


@contextlib.contextmanager
def _opened(path: str, directory: int | None = None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _own_clone(path: str) -> int:
    """A clone of a mount of the node that passes nothing on to the node's: those are shared on most."""
    tree = kernel.clone_mount(path)
    kernel.set_mount(tree, propagation=kernel.MS_PRIVATE)
    return tree


def _is_directory(tree: int) -> bool:
    return stat.S_ISDIR(os.fstat(tree).st_mode)


def _depth(target: str) -> int:
    return len(target.rstrip("/").split("/"))
