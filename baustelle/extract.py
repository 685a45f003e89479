"""Put the entries of one layer into a directory, none of them outside.

Every entry is reached by a walk from the root (`baustelle.paths`), its parent is held open, and the last
component is made with calls that never follow a link. Ownership, modes, times and attributes are set in
the order that keeps them: chown(2) clears set-uid bits and capabilities, so it comes first; directories
get theirs at the end, when nothing is written into them any more, and file flags come last of all.

Spec: https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from baustelle import removal, tarstream, xattrs
from baustelle.errors import CorruptLayerError, UnpackError
from baustelle.layerflags import LayerFlags
from baustelle.overlay import OverlayMarks
from baustelle.paths import Walk, make_implied_directory, open_beneath
from baustelle.tarstream import Entry, TarStream

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS_PRIVATE = b".wh..wh."

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# overlayfs keeps its own state in these; an image has no business there.
_KERNEL_PRIVATE = (b"trusted.overlay.", b"user.overlay.")

_PARENTS_KEPT_OPEN = 64
_PATH_MAX = 4096  # of Linux; nothing in a container could name a longer path
_MAX_ID = 2**32 - 2  # (uid_t)-1 means "leave as it is" to chown(2)


class Whiteouts(enum.Enum):
    """What becomes of the marks by which a layer deletes files of the layers below it."""

    APPLY = "apply"
    """Delete at once: the directory already holds the layers below."""
    OVERLAY = "overlay"
    """Keep them as overlayfs' own marks: the directory holds this layer only. Needs root on Linux."""


@dataclass(slots=True)
class _Parent:
    """An open directory and the link-free path that leads to it from the root."""

    fd: int
    names: list[bytes]

    def key(self, name: bytes) -> bytes:
        return b"/".join([*self.names, name])


class Extractor:
    """Extracts the entries of one layer below the directory `root_fd`. Use as a context manager.

    Ownership is set when running as root; anybody else owns what they unpack.
    """

    def __init__(self, root_fd: int, whiteouts: Whiteouts) -> None:
        self._root_fd = root_fd
        self._overlay = OverlayMarks(root_fd) if whiteouts is Whiteouts.OVERLAY else None
        self._flags = LayerFlags(root_fd)
        self._may_chown = os.geteuid() == 0
        self._parents: dict[bytes, _Parent] = {}
        self._stale: list[_Parent] = []
        # Link-free paths that this layer brought, with all their parents: whiteouts spare them.
        self._touched: set[bytes] = set()
        self._directories: dict[bytes, Entry] = {}
        self.size = 0
        """Bytes of data written to regular files."""
        self.entries = 0
        self.skipped_xattrs: set[str] = set()
        """Attributes that the file system cannot keep; SCHILY.fflags for file flags."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_parents()

    def add(self, entry: Entry, archive: TarStream) -> None:
        """Extract one entry, whose data comes next in `archive`. Raises UnpackError."""
        try:
            self._add(entry, archive)
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            raise UnpackError(f"layer entry {os.fsdecode(entry.name)!r}: {_reason(entry, error)}") from error
        self.entries += 1

    def finish(self) -> None:
        """Make overlayfs' whiteouts, give directories their metadata, set file flags. Raises UnpackError."""
        self._close_parents()
        if self._overlay is not None:
            self._overlay.write()
        # Children first, so that no restrictive mode is in the way of a later one.
        for key in sorted(self._directories, reverse=True):
            entry = self._directories[key]
            try:
                fd = self._reopen(key)
                try:
                    self._apply(fd, entry)
                finally:
                    os.close(fd)
            except OSError as error:
                raise UnpackError(
                    f"layer entry {os.fsdecode(entry.name)!r}: {_reason(entry, error)}"
                ) from error
        try:
            if not self._flags.write():
                self.skipped_xattrs.add("SCHILY.fflags")
        except OSError as error:
            raise UnpackError(f"file flags of the layer: {error}") from error

    def _add(self, entry: Entry, archive: TarStream) -> None:
        parts = _clean(entry.name)
        if not parts:
            if entry.type != tarstream.DIRECTORY:
                raise UnpackError("layer entry '/': the root of an image can only be a directory")
            self._directories[b""] = entry
            self._flags.lift(self._root_fd, b"")
            self._note_flags(b"", entry)
            return
        *above, name = parts
        if name.startswith(_WHITEOUT):
            self._add_whiteout(above, name)
            return
        parent = self._parent(above)
        key = parent.key(name)
        if entry.type == tarstream.DIRECTORY:
            self._make_directory(parent, name, key)
            self._directories[key] = entry
        elif entry.type == tarstream.HARD_LINK:
            self._make_hard_link(parent, name, key, entry)
        elif entry.type == tarstream.REGULAR:
            self._make_file(parent, name, key, entry, archive)
        else:
            self._make_special(parent, name, key, entry)
        self._note_flags(key, entry)
        self._touch(parent, key)

    # Kinds of entries

    def _make_file(self, parent: _Parent, name: bytes, key: bytes, entry: Entry, archive: TarStream) -> None:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        except FileExistsError:
            self._remove(parent, name, key)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        try:

            def write(view: memoryview) -> None:
                while view:
                    view = view[os.write(fd, view) :]

            if entry.extents is None:
                archive.copy_data(entry.size, write)
                self.size += entry.size
            else:
                for offset, length in entry.extents:
                    os.lseek(fd, offset, os.SEEK_SET)
                    archive.copy_data(length, write)
                    self.size += length
                os.ftruncate(fd, entry.size)
            self._apply(fd, entry)
        finally:
            os.close(fd)

    def _make_directory(self, parent: _Parent, name: bytes, key: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode):
                self._flags.lift_name(parent.fd, name, key)
                return
            self._remove(parent, name, key)
            os.mkdir(name, 0o700, dir_fd=parent.fd)
            if self._overlay is not None:
                # This layer had a file here before: nothing of the layers below may show through.
                self._overlay.make_opaque(key)

    def _make_hard_link(self, parent: _Parent, name: bytes, key: bytes, entry: Entry) -> None:
        *above, target_name = _clean(entry.link) or [b"."]
        with Walk(self._root_fd, b"/".join([*above, target_name])) as walk:
            target = walk.last()
            if target is None:
                raise UnpackError(f"layer entry {os.fsdecode(entry.name)!r}: a hard link to the root")
            if b"/".join([*walk.names, target]) == key:
                return
            # Look first: a link that cannot be made must not cost the file that is there.
            self._flags.lift_name(walk.fd, target, b"/".join([*walk.names, target]))
            self._remove(parent, name, key, missing_ok=True)
            os.link(target, name, src_dir_fd=walk.fd, dst_dir_fd=parent.fd, follow_symlinks=False)

    def _make_special(self, parent: _Parent, name: bytes, key: bytes, entry: Entry) -> None:
        self._remove(parent, name, key, missing_ok=True)
        if entry.type == tarstream.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent.fd)
        elif entry.type == tarstream.FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent.fd)
        else:
            kind = stat.S_IFCHR if entry.type == tarstream.CHAR_DEVICE else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=parent.fd)
        if self._may_chown:
            os.chown(name, *_owner(entry), dir_fd=parent.fd, follow_symlinks=False)
        if entry.type != tarstream.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent.fd)  # we just made it: it is no link
        for attribute, value in entry.xattrs.items():
            with self._storable(attribute) as wanted:
                if wanted:
                    xattrs.set_on_name(parent.fd, name, attribute, value)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent.fd, follow_symlinks=False)

    # Whiteouts

    def _add_whiteout(self, above: list[bytes], name: bytes) -> None:
        if name == _OPAQUE:
            parent = self._parent(above)
            if self._overlay is not None:
                self._overlay.make_opaque(b"/".join(parent.names))
            else:
                for child in _children(parent.fd):
                    self._remove_lower(parent, child)
            self._touch(parent, b"/".join(parent.names))
            return
        if name.startswith(_AUFS_PRIVATE):
            return  # bookkeeping of AUFS, which deletes nothing
        hidden = name[len(_WHITEOUT) :]
        if hidden in {b"", b".", b".."}:
            raise UnpackError(f"layer entry {os.fsdecode(name)!r}: a whiteout of {os.fsdecode(hidden)!r}")
        if self._overlay is not None:
            self._overlay.hide(b"/".join([*above, hidden]))
            return
        try:
            parent = self._parent(above, create=False)
        except FileNotFoundError:
            return  # there is nothing to delete
        self._remove_lower(parent, hidden)

    def _remove_lower(self, parent: _Parent, name: bytes) -> None:
        """Remove `name` and what is below it, as far as layers below brought it."""
        key = parent.key(name)
        if key not in self._touched:
            self._remove(parent, name, key, missing_ok=True)
            return
        found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            return
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd)
        try:
            self._flags.lift(fd, key)
            below = _Parent(fd, [*parent.names, name])
            for child in _children(fd):
                self._remove_lower(below, child)
        finally:
            os.close(fd)

    # Helpers

    def _parent(self, above: list[bytes], *, create: bool = True) -> _Parent:
        """The directory that `above` leads to, links followed inside the root, made if missing and `create`."""
        path = b"/".join(above)
        parent = self._parents.get(path)
        if parent is None:
            if len(self._parents) + len(self._stale) >= _PARENTS_KEPT_OPEN:
                self._close_parents()
            on_missing = make_implied_directory if create else None
            with Walk(self._root_fd, path + b"/.", on_missing=on_missing) as walk:
                walk.last()
                parent = _Parent(-1, walk.names)
                # Listing needs a descriptor open for reading, which a walk's is not.
                parent.fd = os.open(b".", _OPEN_DIRECTORY, dir_fd=walk.fd)
            self._flags.lift(parent.fd, b"/".join(parent.names))
            self._parents[path] = parent
        return parent

    def _close_parents(self) -> None:
        for parent in [*self._parents.values(), *self._stale]:
            os.close(parent.fd)
        self._parents.clear()
        self._stale.clear()

    def _touch(self, parent: _Parent, key: bytes) -> None:
        for depth in range(len(parent.names), 0, -1):
            above = b"/".join(parent.names[:depth])
            if above in self._touched:
                break  # then all above it are there too
            self._touched.add(above)
        self._touched.add(key)  # last: it may be the parent's own

    def _remove(self, parent: _Parent, name: bytes, key: bytes, *, missing_ok: bool = False) -> None:
        try:
            found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            if missing_ok:
                return
            raise
        if stat.S_ISDIR(found.st_mode):
            removal.remove_tree(name, dir_fd=parent.fd)
            self._directories = {
                path: entry
                for path, entry in self._directories.items()
                if path != key and not path.startswith(key + b"/")
            }
        else:
            self._flags.unlink(parent.fd, name, found)
        self._flags.forget(key)
        if stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode):
            # Paths may lead elsewhere now. One of the directories is in use, so they are closed later.
            self._stale.extend(self._parents.values())
            self._parents.clear()

    def _note_flags(self, key: bytes, entry: Entry) -> None:
        if self._may_chown:
            self._flags.note(key, entry.flags)

    def _reopen(self, key: bytes) -> int:
        return open_beneath(self._root_fd, key or b".", _OPEN_DIRECTORY)

    def _apply(self, fd: int, entry: Entry) -> None:
        if self._may_chown:
            os.chown(fd, *_owner(entry))
        os.chmod(fd, entry.mode)
        for attribute, value in entry.xattrs.items():
            with self._storable(attribute) as wanted:
                if wanted:
                    xattrs.set_on_fd(fd, attribute, value)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    @contextlib.contextmanager
    def _storable(self, attribute: bytes) -> Iterator[bool]:
        """Note what the file system cannot keep; yields False for what must not be set."""
        try:
            yield not attribute.startswith(_KERNEL_PRIVATE)
        except OSError as error:
            if error.errno not in xattrs.NOT_STORABLE:
                raise
            self.skipped_xattrs.add(os.fsdecode(attribute))


def _clean(name: bytes) -> list[bytes]:
    """The components of an entry's name, with `..` resolved in the text and never above the root."""
    if len(name) > _PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in {b"", b"."}:
            parts.append(part)
    return parts


def _children(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def _owner(entry: Entry) -> tuple[int, int]:
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise CorruptLayerError(
            f"layer entry {os.fsdecode(entry.name)!r}: owner {entry.uid}:{entry.gid} does not exist"
        )
    return entry.uid, entry.gid


def _reason(entry: Entry, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    number = error.errno if isinstance(error, OSError) else None
    if entry.type == tarstream.HARD_LINK and number == errno.ENOENT:
        return f"its hard link target {os.fsdecode(entry.link)!r} is not in the layer"
    if entry.type in {tarstream.CHAR_DEVICE, tarstream.BLOCK_DEVICE} and number == errno.EPERM:
        return "a device node can only be made by root outside of user namespaces and jails"
    if number == errno.EPERM and entry.xattrs:
        names = ", ".join(map(os.fsdecode, entry.xattrs))
        return f"{reason}; setting its extended attributes ({names}) may need root"
    return reason
