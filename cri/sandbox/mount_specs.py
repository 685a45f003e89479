"""Mounts and devices of a container: from CRI messages, and what its image declares, to specs.

Part of `translate`: what can be found wrong with them by looking is found here, before anything is made.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox.host import Features
from cri.sandbox.places import NO_DEVICES, VOLUMES, cleaned, parents_first
from cri.sandbox.spec import DeviceSpec, MountSpec, Propagation

MAX_VOLUMES = 1000
"""Volumes that an image may declare: each is a directory and a mount."""
MAX_DEVICES = 10_000
"""What a directory that is given as a device may hold, whatever it is: each entry is looked at."""

_OPTIONS = ("noexec", "nodev", "nosuid")
_PERMISSIONS = "rwm"
_PROPAGATION = {
    v1.MountPropagation.PROPAGATION_PRIVATE: Propagation.PRIVATE,
    v1.MountPropagation.PROPAGATION_HOST_TO_CONTAINER: Propagation.HOST_TO_CONTAINER,
    v1.MountPropagation.PROPAGATION_BIDIRECTIONAL: Propagation.BIDIRECTIONAL,
}


def asked(
    config: v1.ContainerConfig, features: Features, images: Mapping[str, tuple[str, ...]]
) -> list[MountSpec]:
    """The mounts that a config asks for, as they come. `images` has the layers of those that are mounted, by reference.

    Raises InvalidArgumentError or UnsupportedError, naming the mount.
    """
    return [_mount(message, features, images) for message in config.mounts]


def together(
    asked: Iterable[MountSpec],
    *,
    pod_files: Iterable[MountSpec],
    declared: Sequence[str],
    directory: Path,
) -> tuple[MountSpec, ...]:
    """All mounts of a container, parents first, one for each place.

    What was asked for takes precedence over what the pod and the image have there, the last of several over those before
    (as with containerd, which hides them). `declared` are the paths that the container's own image declares as volumes,
    whose content will be below `directory`, the container's own. Raises InvalidArgumentError.
    """
    found = {mount.target: mount for mount in _declared(declared, directory)}
    found |= {mount.target: mount for mount in pod_files}
    for mount in asked:
        found.pop(mount.target, None)  # so that it takes the place of the last one in the order, too
        found[mount.target] = mount
    return tuple(parents_first(found.values(), lambda mount: mount.target))


def devices(messages: Iterable[v1.Device], features: Features) -> tuple[DeviceSpec, ...]:
    """The devices of a container, where a directory stands for all devices below; of several for one place the last counts.

    Blocks. Raises InvalidArgumentError or UnsupportedError, naming the device.
    """
    found = {device.target: device for message in messages for device in _devices(message, features)}
    return tuple(found.values())


def _declared(paths: Sequence[str], directory: Path) -> Iterator[MountSpec]:
    if len(paths) > MAX_VOLUMES:
        raise InvalidArgumentError(
            f"the image declares {len(paths)} volumes: {MAX_VOLUMES} are the most that a container can have"
        )
    for number, path in enumerate(dict.fromkeys(map(cleaned, paths))):
        if path == "/" or f"{path}/".startswith("/proc/"):
            raise InvalidArgumentError(f"the image declares the volume {path}: nothing can be mounted there")
        yield MountSpec(source=str(directory / VOLUMES / str(number)), target=path)


def _mount(mount: v1.Mount, features: Features, images: Mapping[str, tuple[str, ...]]) -> MountSpec:
    where = f"mount of {mount.host_path or 'an image'} on {mount.container_path}"
    if not mount.container_path:
        raise InvalidArgumentError(f"{where}: container_path is empty")
    if mount.image is not None and mount.image.image:
        return _image_mount(mount, mount.image.image, features, images)
    if mount.image_sub_path:
        raise InvalidArgumentError(f"{where}: image_sub_path is for the mount of an image")
    if not posixpath.isabs(mount.host_path):
        raise InvalidArgumentError(f"{where}: host_path must be absolute")
    if mount.uid_mappings or mount.gid_mappings:
        raise UnsupportedError(f"{where}: id-mapped mounts need user namespaces, which this host has not")
    propagation = _PROPAGATION[mount.propagation]
    if propagation is not Propagation.PRIVATE and not features.mount_propagation:
        raise UnsupportedError(
            f"{where}: {v1.MountPropagation(mount.propagation).name}: this host shows a container no mount that is made later; "
            "use PROPAGATION_PRIVATE"
        )
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidArgumentError(f"{where}: recursive_read_only needs readonly")
        if propagation is not Propagation.PRIVATE:
            raise InvalidArgumentError(f"{where}: recursive_read_only needs PROPAGATION_PRIVATE")
    return MountSpec(
        source=os.path.realpath(mount.host_path),
        target=cleaned(mount.container_path),
        readonly=mount.readonly,
        recursive_readonly=mount.recursive_read_only,
        propagation=propagation,
        options=_options(mount.mount_options, where),
    )


def _image_mount(
    mount: v1.Mount, reference: str, features: Features, images: Mapping[str, tuple[str, ...]]
) -> MountSpec:
    where = f"mount of image {reference} on {mount.container_path}"
    if not features.image_volumes:
        raise UnsupportedError(f"{where}: this host has no image volumes")
    if mount.host_path:
        raise InvalidArgumentError(f"{where}: host_path must be empty beside an image")
    if not mount.readonly:
        raise InvalidArgumentError(f"{where}: readonly is false, but an image can only be read: set it")
    if mount.uid_mappings or mount.gid_mappings:
        raise UnsupportedError(f"{where}: id-mapped mounts need user namespaces, which this host has not")
    if mount.propagation != v1.MountPropagation.PROPAGATION_PRIVATE:
        raise InvalidArgumentError(f"{where}: nothing is ever mounted in an image; use PROPAGATION_PRIVATE")
    return MountSpec(
        source="",
        target=cleaned(mount.container_path),
        readonly=True,
        options=_options(mount.mount_options, where),
        image_layers=images[reference],
        image_path=mount.image_sub_path,
    )


def _options(given: Sequence[str], where: str) -> tuple[str, ...]:
    for option in given:
        if option not in _OPTIONS:
            raise InvalidArgumentError(
                f"{where}: mount_options has {option!r}: only {', '.join(_OPTIONS)} can be asked for"
            )
    return tuple(dict.fromkeys(given))


def _devices(device: v1.Device, features: Features) -> Iterator[DeviceSpec]:
    where = f"device {device.host_path}"
    if not posixpath.isabs(device.host_path):
        raise InvalidArgumentError(f"{where}: host_path must be absolute")
    permissions = _permissions(device.permissions, where)
    if not (features.device_permissions or {"r", "w"} <= set(permissions)):
        raise UnsupportedError(
            f"{where}: permissions {device.permissions!r}: root in a jail reads and writes whatever it is shown; ask for rw"
        )
    source = os.path.realpath(device.host_path)
    target = cleaned(device.container_path or device.host_path)
    try:
        mode = Path(source).stat().st_mode
        if stat.S_ISDIR(mode):
            for path in _below(source, where):
                yield DeviceSpec(path, cleaned(target + path.removeprefix(source)), permissions)
            return
    except OSError as error:
        raise InvalidArgumentError(f"{where}: {error.strerror}") from error
    if not _is_device(mode):
        raise InvalidArgumentError(f"{where}: not a character or block device, nor a directory of such")
    yield DeviceSpec(source, target, permissions)


def _permissions(given: str, where: str) -> str:
    """Some of "rwm", in that order; all of them where nothing is said."""
    if unknown := set(given) - set(_PERMISSIONS):
        letters = "".join(sorted(unknown))
        raise InvalidArgumentError(
            f"{where}: permissions {given!r} have {letters!r}: only r, w and m are known"
        )
    return "".join(letter for letter in _PERMISSIONS if letter in given) or _PERMISSIONS


def _below(directory: str, where: str) -> Iterator[str]:
    """The devices in a directory and those below it, by name. Links are not followed, and what vanishes is passed over."""
    pending, count = [directory], 0
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > MAX_DEVICES:
                        raise InvalidArgumentError(
                            f"{where}: it has more than {MAX_DEVICES} files below it; name a directory nearer to the devices"
                        )
                    if entry.name in NO_DEVICES:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif _is_device(entry.stat(follow_symlinks=False).st_mode):
                        yield entry.path
        except FileNotFoundError:
            continue


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
