"""Unpacked layers as ZFS snapshots, and roots of containers as clones of them.

DATASET/cri-jails                           mountpoint=none, canmount=off, as everything below: zfs(8) leaves it alone
DATASET/cri-jails/layers/<chain id>@ready   a committed chain; the dataset is a clone of its parent's snapshot
DATASET/cri-jails/layers/new-<chain id>     begun and not committed, mounted on <state>/snapshots/zfs/new-<chain id>
DATASET/cri-jails/layers/gone-...           removed, and kept by ZFS while something is a clone of it
DATASET/cri-jails/containers/<id>           a container's root, mounted on <container's directory>/rootfs

A name tells what is to be done with a dataset that a crash left, and renaming is atomic: nothing else need be recorded.
Numbers of inodes are ZFS's own counts of objects, which include a few of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from baustelle.removal import remove_tree
from cri.sandbox.durable import make_directory
from cri.sandbox.freebsd.calls import MNT_IGNORE, MNT_RDONLY, Calls, Mount
from cri.sandbox.freebsd.libzfs import OFF, ON, LibZfs, Value
from cri.sandbox.host import HostError
from cri.sandbox.snapshots import (
    BEGUN,
    RootSnapshotter,
    chain_of_name,
    is_name_of_chain,
    missing_layer,
    name_of_chain,
)
from cri.sandbox.spec import ContainerSpec, DiskUsage
from cri.threads import threaded

log = structlog.get_logger(__name__)

ANNOTATION_QUOTA = "org.cri-jails.quota"
"""How large a container's root may become, its image included: bytes, or with K, M, G, T (powers of 1024)."""

_READY = "@ready"
_GONE = "gone-"
_OBJECTS, _STATE = "org.cri-jails:objects", "org.cri-jails:state"
"""User properties: of a snapshot, how many objects it has; of the topmost dataset, whose it is."""
_BASE: Mapping[str, Value] = {"mountpoint": "none", "canmount": OFF, "exec": ON, "setuid": ON}
_CHILD: Mapping[str, Value] = {"canmount": OFF}
_BUSY_SECONDS, _BUSY_PAUSE = 5.0, 0.05
_FORCE_AFTER_SECONDS = 2.0
_QUOTA = re.compile(r"([0-9]{1,18})(?:([KMGTP])(?:i?B)?)?", re.IGNORECASE)
_UNITS = ("", "K", "M", "G", "T", "P")

_LIST = f"""
local found = {{}}
for dataset in zfs.list.children((...)["dataset"]) do
    local one = {{used = zfs.get_prop(dataset, "used")}}
    if zfs.exists(dataset .. "{_READY}") then
        one.objects = zfs.get_prop(dataset .. "{_READY}", "{_OBJECTS}")
    end
    local origin = zfs.get_prop(dataset, "origin")
    if origin ~= nil and origin ~= "" then
        one.below = zfs.get_prop(origin, "{_OBJECTS}")
    end
    found[dataset] = one
end
return found
"""
_ONE = f"""
local dataset = (...)["dataset"]
local one = {{used = zfs.get_prop(dataset, "used")}}
local origin = zfs.get_prop(dataset, "origin")
if origin ~= nil and origin ~= "" then
    one.below = zfs.get_prop(origin, "{_OBJECTS}")
end
return one
"""
_OWNER = f"""
return {{state = zfs.get_prop((...)["dataset"], "{_STATE}")}}
"""


class ZfsSnapshotter(RootSnapshotter):
    """A clone per container, made in no time and sharing all that it does not change."""

    kind = "zfs"
    plain = False
    accounts = True
    parallel = False
    overlay_whiteouts = False

    def __init__(self, state: Path, dataset: str, library: LibZfs, calls: Calls) -> None:
        """Keep layers and roots below `dataset`, and mount points below `state`. Blocks. Raises HostError, OSError."""
        self._zfs = library
        self._calls = calls
        self._directory = Path(os.path.realpath(state), "snapshots", self.kind)
        for path in (self._directory.parent, self._directory):
            if (aside := make_directory(path)) is not None:
                log.error("no directory; put aside", path=str(path), now=str(aside))
        self._base = f"{dataset}/cri-jails"
        self._layers, self._roots = f"{self._base}/layers", f"{self._base}/containers"
        self._make(self._base, {**_BASE, _STATE: str(state)})
        self._check_owner(str(state))
        for name in (self._layers, self._roots):
            self._make(name, _CHILD)
        self._mounting = threading.Lock()
        self._sweeping = threading.Lock()
        self._swept = False
        """Whether no removed layer is left."""

    # Layers

    async def chains(self) -> Mapping[str, DiskUsage | None]:
        """All committed chain ids."""
        return await asyncio.to_thread(self._chains)

    async def begin(self, chain_id: str, parent: str | None) -> Path:
        """A mounted clone of the parent, or an empty dataset, to unpack a layer into."""
        return await threaded(lambda _: self._begin(chain_id, parent))

    async def commit(self, chain_id: str) -> DiskUsage:
        """Make a snapshot of the unpacked layer, and give it its name."""
        try:
            return await threaded(lambda _: self._commit(chain_id))
        except asyncio.CancelledError:  # with the commit done, of which nobody will hear
            await asyncio.shield(asyncio.to_thread(self._remove, chain_id))
            raise

    async def abort(self, chain_id: str) -> None:
        """Throw a begun layer away."""
        await asyncio.to_thread(self._destroy_layer, self._begun(chain_id))

    async def remove(self, chain_id: str) -> None:
        """Remove a committed layer: from sight at once, from the pool when nothing is a clone of it any more."""
        await asyncio.to_thread(self._remove, chain_id)

    def layer(self, chain_id: str) -> Path:
        """The files of a committed chain, as a read-only mount of its snapshot. Blocks."""
        name = name_of_chain(chain_id)
        snapshot = f"{self._layers}/{name}{_READY}"
        path = self._directory / name
        with self._mounting:
            if any(mount.source == snapshot for mount in self._mounts([snapshot])):
                return path
            if not self._zfs.exists(snapshot):
                raise missing_layer(chain_id)
            self._mount(snapshot, path, MNT_RDONLY)
        return path

    def remove_unfinished(self) -> list[str]:
        """Throw away what a daemon that died had begun, and what it could not yet destroy. Blocks."""
        begun = []
        try:
            for name in self._children(self._layers):
                if name.startswith(BEGUN):
                    self._destroy_layer(f"{self._layers}/{name}")
                    begun.append(name)
            self._sweep()
        except OSError as error:
            log.warning("unfinished layers stay", dataset=self._layers, error=str(error))
        return [f"unfinished layer {name.removeprefix(BEGUN)}" for name in begun]

    def _chains(self) -> dict[str, DiskUsage | None]:
        chains: dict[str, DiskUsage | None] = {}
        strays = []
        for name, found in self._children(self._layers).items():
            if name.startswith((BEGUN, _GONE)):
                continue
            if "objects" in found and is_name_of_chain(name):
                chains[chain_of_name(name)] = _usage(found, found["objects"])
            else:
                strays.append(name)
        if strays:
            log.warning("no layers of ours; left alone", dataset=self._layers, names=strays)
        return chains

    def _begin(self, chain_id: str, parent: str | None) -> Path:
        begun = self._begun(chain_id)
        self._destroy_layer(begun)
        if parent is None:
            self._zfs.create(begun, _CHILD)
        else:
            origin = f"{self._layers}/{name_of_chain(parent)}{_READY}"
            with _absence(lambda: missing_layer(parent)):
                self._zfs.clone(begun, origin, _CHILD)
        path = self._mount_point(begun)
        self._mount(begun, path)
        if parent is None:
            path.chmod(0o755)
        return path

    def _commit(self, chain_id: str) -> DiskUsage:
        begun, committed = self._begun(chain_id), f"{self._layers}/{name_of_chain(chain_id)}"
        self._zfs.sync(begun)  # only what is on disk is counted
        objects = _objects(self._mount_point(begun))
        self._unmount([begun])
        self._mount_point(begun).rmdir()
        self._zfs.snapshot(f"{begun}{_READY}", {_OBJECTS: str(objects)})
        usage = _usage(self._zfs.ask(_ONE, of=begun), objects)
        try:
            self._zfs.rename(begun, committed)
        except FileExistsError:  # somebody else was quicker with the same content
            self._destroy_layer(begun)
        return usage

    def _remove(self, chain_id: str) -> None:
        name = name_of_chain(chain_id)
        committed = f"{self._layers}/{name}"
        with self._mounting:
            self._unmount([f"{committed}{_READY}"])
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._mount_point(committed).rmdir()
            try:
                self._zfs.rename(committed, f"{self._layers}/{_GONE}{secrets.token_hex(4)}-{name}")
            except FileNotFoundError:
                return
        self._swept = False
        self._sweep()

    def _sweep(self) -> None:
        """Destroy the removed layers of which nothing is a clone, in whatever order they become free."""
        with self._sweeping:
            left = [name for name in self._children(self._layers) if name.startswith(_GONE)]
            progress = True
            while progress:
                kept = [name for name in left if not self._destroyed(f"{self._layers}/{name}")]
                progress, left = len(kept) < len(left), kept
            self._swept = not left

    def _destroyed(self, layer: str) -> bool:
        try:
            self._destroy_layer(layer)
        except FileExistsError:
            return False  # something is a clone of it
        return True

    def _begun(self, chain_id: str) -> str:
        return f"{self._layers}/{BEGUN}{name_of_chain(chain_id)}"

    # Roots of containers

    def prepare(self, container: ContainerSpec) -> dict[str, Any]:
        """Clone the image, and mount the clone."""
        limit = quota(container)
        properties = _CHILD if limit is None else {**_CHILD, "refquota": limit}
        self.discard(container)  # what is there is of a container whose making was interrupted
        dataset, root = f"{self._roots}/{container.id}", self.writable(container)
        try:
            if container.layers:
                origin = f"{self._layers}/{name_of_chain(container.layers[-1])}{_READY}"
                with _absence(lambda: missing_layer(container.layers[-1])):
                    self._zfs.clone(dataset, origin, properties)
            else:
                self._zfs.create(dataset, properties)
            self._mount(dataset, root)
        except BaseException as error:
            self.discard(container)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and limit is not None:
                raise _bad_quota(container, "its image alone takes more, or the pool is full") from error
            raise
        return {"kind": self.kind, "source": str(root), "target": str(root)}

    def discard(self, container: ContainerSpec) -> None:
        """Destroy the clone."""
        self._destroy_root(container.id)
        remove_tree(self.writable(container))
        if not self._swept:  # it may have been the last clone of a removed layer
            self._sweep()

    def writable(self, container: ContainerSpec) -> Path:
        """The mounted clone."""
        return Path(container.directory, "rootfs")

    def usage(self, container: ContainerSpec, check: Callable[[], None] = lambda: None) -> DiskUsage:  # noqa: ARG002
        """What the clone does not share with its image; a few seconds old, as ZFS counts when it writes to disk."""
        dataset = f"{self._roots}/{container.id}"
        found = self._zfs.ask(_ONE, of=dataset)
        mounted = any(mount.source == dataset for mount in self._mounts([dataset]))
        return _usage(found, _objects(self.writable(container)) if mounted else 0)

    def remove_unknown(self, containers: Collection[str]) -> list[str]:
        """Destroy the clones of all but these containers."""
        unknown = [name for name in self._children(self._roots) if name not in containers]
        for name in unknown:
            self._destroy_root(name)
        return [f"root filesystem of container {name}" for name in unknown]

    def _destroy_root(self, container_id: str) -> None:
        dataset = f"{self._roots}/{container_id}"
        self._unmount([dataset])
        _patiently(lambda: self._zfs.destroy(dataset))

    # Datasets and mounts

    def _make(self, dataset: str, properties: Mapping[str, Value]) -> None:
        try:
            self._zfs.create(dataset, properties)
        except FileExistsError:
            return
        except OSError as error:
            raise HostError(
                "make", f"dataset {dataset}", error.strerror or str(error), error.errno
            ) from error

    def _check_owner(self, state: str) -> None:
        owner = self._zfs.ask(_OWNER, of=self._base).get("state")
        if owner not in (None, state):
            raise HostError(
                "use",
                f"dataset {self._base}",
                f"it belongs to the state directory {owner}; if that is this one, moved: "
                f"zfs set {_STATE}={state} {self._base}",
            )

    def _children(self, dataset: str) -> dict[str, dict[str, Any]]:
        found = self._zfs.ask(_LIST, of=dataset)
        return {name.removeprefix(f"{dataset}/"): one for name, one in found.items()}

    def _destroy_layer(self, dataset: str) -> None:
        """Destroy a layer's dataset; succeeds if it is gone. Raises FileExistsError while something is a clone of it."""
        snapshot = f"{dataset}{_READY}"
        self._unmount([dataset, snapshot])
        _patiently(lambda: self._zfs.destroy_snapshot(snapshot))
        _patiently(lambda: self._zfs.destroy(dataset))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._mount_point(dataset).rmdir()

    def _mount_point(self, layer: str) -> Path:
        return self._directory / layer.rpartition("/")[2]

    def _mount(self, dataset: str, path: Path, flags: int = 0) -> None:
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:  # as a file, or what not
            make_directory(path)
        self._calls.mount("zfs", str(path), {"from": dataset}, flags | MNT_IGNORE)

    def _mounts(self, datasets: Iterable[str]) -> list[Mount]:
        return [mount for mount in self._calls.mounts() if mount.kind == "zfs" and mount.source in datasets]

    def _unmount(self, datasets: Collection[str]) -> None:
        """Unmount datasets wherever they are. After two seconds by force: no process of ours is left in there."""
        for mount in self._mounts(datasets):
            deadline = time.monotonic() + _FORCE_AFTER_SECONDS
            _patiently(lambda: self._calls.unmount(mount, force=time.monotonic() > deadline))  # noqa: B023


def _usage(found: Mapping[str, Any], objects: str | int) -> DiskUsage:
    """What a dataset takes beyond the snapshot that it is a clone of."""
    return DiskUsage(found["used"], max(0, _number(objects) - _number(found.get("below", 0))))


def _number(value: str | int) -> int:
    """A number from a user property, which anybody with the right may have set to anything: 0 then."""
    try:
        return int(value)
    except ValueError:
        return 0


def _objects(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_files - found.f_ffree


def _patiently(operation: Callable[[], None]) -> None:
    """Do something to a dataset that others may still hold for a moment (EBUSY); what is gone is done with."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return operation()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_PAUSE)


@contextlib.contextmanager
def _absence(told: Callable[[], HostError]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise told() from error


def quota(container: ContainerSpec) -> int | None:
    """The bytes that a container's root may refer to, None for any number. Raises HostError for a bad annotation."""
    text = container.annotations.get(ANNOTATION_QUOTA)
    if text is None:
        return None
    match = _QUOTA.fullmatch(text)
    size = int(match[1]) << 10 * _UNITS.index((match[2] or "").upper()) if match else 0
    if not 0 < size < 1 << 63:
        raise _bad_quota(container, "expected bytes, or a number with K, M, G, T or P, such as 10G")
    return size


def _bad_quota(container: ContainerSpec, reason: str) -> HostError:
    value = container.annotations[ANNOTATION_QUOTA]
    return HostError(
        "limit",
        f"container {container.id}",
        f"annotation {ANNOTATION_QUOTA}={value!r}: {reason}",
        errno.EINVAL,
    )
