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
from collections.abc import Callable, Collection, Iterator
from typing import Self

from baustelle import acls, overlay, removal, tarstream, xattrs
from baustelle.acltext import NamesOnlyError
from baustelle.bounds import Budget
from baustelle.descent import DIRECTORY, Descent
from baustelle.entrypaths import clean, cleaned, shown
from baustelle.errors import CorruptLayerError, UnpackError
from baustelle.finish import Finisher
from baustelle.layerflags import LayerFlags
from baustelle.layertree import Attributes, Borrowed, LayerTree, Node
from baustelle.parents import Parent, Parents
from baustelle.paths import IMPLIED_DIRECTORY_MODE
from baustelle.tarstream import Entry, TarStream

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS_PRIVATE = b".wh..wh."

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_MAX_ID = 2**32 - 2  # (uid_t)-1 means "leave as it is" to chown(2)


class Whiteouts(enum.Enum):
    """What becomes of the marks by which a layer deletes files of the layers below it."""

    APPLY = "apply"
    """Delete at once: the directory already holds the layers below."""
    OVERLAY = "overlay"
    """Keep them as overlayfs' own marks: the directory holds this layer only. Needs root on Linux."""
    STACKED = "stacked"
    """As OVERLAY, and hard links to files of the layers below are left for `baustelle.restack` to make."""


class Extractor:
    """Extracts the entries of one layer below the directory `root_fd`. Use as a context manager.

    Ownership is set when running as root; anybody else owns what they unpack. `check` is called again and again,
    to raise what shall end the work.
    """

    def __init__(self, root_fd: int, whiteouts: Whiteouts, check: Callable[[], None], budget: Budget) -> None:
        self._root_fd = root_fd
        self._stacked = whiteouts is not Whiteouts.APPLY
        self._borrows = whiteouts is Whiteouts.STACKED
        self._check = check
        self._flags = LayerFlags()
        self._may_chown = os.geteuid() == 0
        self.tree = LayerTree(budget)
        """What this layer has, and what of the layers below it hides."""
        self._parents = Parents(
            root_fd, self.tree, self._flags, stacked=self._stacked, may_chown=self._may_chown
        )
        self.size = 0
        """Bytes of data written to regular files."""
        self.entries = 0
        self.skipped_xattrs: set[str] = set()
        """Attributes that the file system cannot keep; SCHILY.fflags for file flags, SCHILY.acl.access and such for lists."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parents.__exit__(None, None, None)

    def add(self, entry: Entry, archive: TarStream) -> None:
        """Extract one entry, whose data comes next in `archive`. Raises UnpackError."""
        self._check()
        self._parents.begin(archive.position, self._number)
        try:
            self._add(entry, archive)
        except (OSError, ValueError, OverflowError) as error:
            raise UnpackError(f"layer entry {shown(entry.name)}: {_reason(entry, error)}") from error
        self.entries += 1

    def finish(self) -> None:
        """Make overlayfs' whiteouts, give directories their metadata, set file flags. Raises UnpackError."""
        finisher = Finisher(
            marks=self._stacked, attributes=self._finish_directory, flags=self._flags, check=self._check
        )
        finisher.run(self._root_fd, self.tree)
        if not self._flags.complete:
            self.skipped_xattrs.add("SCHILY.fflags")

    @property
    def _number(self) -> int:
        """That of the entry that is being added."""
        return self.entries + 1

    def _add(self, entry: Entry, archive: TarStream) -> None:
        above, name = clean(entry.name)
        if not name:
            if entry.type != tarstream.DIRECTORY:
                raise UnpackError("layer entry '/': the root of an image can only be a directory")
            self.tree.entry, self.tree.named = _attributes(entry), self._number
            self._flags.lift(self._root_fd, self.tree)
            self._note_flags(self.tree, entry)
            return
        if name.startswith(_WHITEOUT):
            self._add_whiteout(above, name)
            return
        parent = self._parents.find(above)
        if entry.type == tarstream.DIRECTORY:
            self._make_directory(parent, name)
            node = parent.node.below(name)
            node.entry, node.named = _attributes(entry), self._number
        elif entry.type == tarstream.HARD_LINK:
            self._make_hard_link(parent, name, entry)
        elif entry.type == tarstream.REGULAR:
            self._make_file(parent, name, entry, archive)
        else:
            self._make_special(parent, name, entry)
        self._note_flags(parent.node.below(name).bring(self._number), entry)

    # Kinds of entries

    def _make_file(self, parent: Parent, name: bytes, entry: Entry, archive: TarStream) -> None:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        except FileExistsError:
            self._remove(parent, name)
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
                    self._check()
                    os.lseek(fd, offset, os.SEEK_SET)
                    archive.copy_data(length, write)
                    self.size += length
                os.ftruncate(fd, entry.size)
            self._apply(fd, entry, _owner(entry))
        finally:
            os.close(fd)

    def _make_directory(self, parent: Parent, name: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode):
                self._flags.lift_name(parent.fd, name, parent.node.below(name))
                return
            self._remove(parent, name)
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        parent.node.below(name).made = True

    def _make_hard_link(self, parent: Parent, name: bytes, entry: Entry) -> None:
        above, target = clean(entry.link)
        if not target:
            raise UnpackError(f"layer entry {shown(entry.name)}: a hard link to the root")
        try:
            there = self._parents.find(above, create=False, replace=False)
        except FileNotFoundError:
            if not self._borrows:
                raise
            self._borrow(parent, name, entry, link=False)
            return
        known = there.node.children.get(target)
        # A directory that was made on the way may be where a layer below has a link.
        made = known is not None and bool(known.brought) and known.made and known.entry is None
        if self._borrows and (known is None or not known.brought or made):
            self._borrow(parent, name, entry, link=made)
            return
        # Look first: a link that cannot be made must not cost the file that is there.
        if stat.S_ISDIR(os.stat(target, dir_fd=there.fd, follow_symlinks=False).st_mode):
            raise UnpackError(
                f"layer entry {shown(entry.name)}: its hard link target {shown(entry.link)} is a directory"
            )
        if there.node is parent.node and target == name:
            return
        self._flags.lift_name(there.fd, target, there.node.below(target))
        self._remove(parent, name, missing_ok=True)
        os.link(target, name, src_dir_fd=there.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        if known is not None:
            parent.node.below(name).borrowed = known.borrowed

    def _borrow(self, parent: Parent, name: bytes, entry: Entry, *, link: bool) -> None:
        """Hold the place of a file of a layer below."""
        path, target = (cleaned(one) for one in (entry.name, entry.link))
        if self.tree.hides(target):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._remove(parent, name, missing_ok=True)
        os.close(os.open(name, _CREATE, 0o600, dir_fd=parent.fd))
        borrowed = Borrowed(path, target, self._number, link)
        parent.node.below(name).borrowed = borrowed
        self.tree.borrows.append(borrowed)

    def _make_special(self, parent: Parent, name: bytes, entry: Entry) -> None:
        self._remove(parent, name, missing_ok=True)
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
        if entry.type != tarstream.SYMLINK:  # a link has no list
            for record, text in entry.acls.items():
                with self._storable(record):
                    acls.set_on_name(parent.fd, name, record, text)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent.fd, follow_symlinks=False)

    # Whiteouts

    def _add_whiteout(self, above: bytes, name: bytes) -> None:
        if name == _OPAQUE:
            parent = self._parents.find(above)
            if not self._stacked:
                self._clear(parent.fd, parent.node)
            parent.node.opaque = parent.node.opaque or self._number
            parent.node.bring(self._number)
            return
        if name.startswith(_AUFS_PRIVATE):
            return  # bookkeeping of AUFS, which deletes nothing
        hidden = name[len(_WHITEOUT) :]
        if hidden in {b"", b".", b".."}:
            raise UnpackError(f"layer entry {shown(name)}: a whiteout of {os.fsdecode(hidden)!r}")
        try:
            # overlayfs needs the directory of a whiteout, be there anything below it or not.
            parent = self._parents.find(above, create=self._stacked, replace=False)
        except (FileNotFoundError, NotADirectoryError):
            return  # there is nothing to delete
        node = parent.node.below(hidden)
        if not self._stacked and not (node.hidden and node.brought):
            self._remove_lower(parent, hidden, node)
        node = parent.node.below(hidden)
        node.hidden = node.hidden or self._number

    def _remove_lower(self, parent: Parent, name: bytes, node: Node) -> None:
        """Remove `name` and what is below it, as far as layers below brought it."""
        if not node.brought:
            self._remove(parent, name, missing_ok=True)
            return
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode):
            return
        fd = os.open(name, DIRECTORY, dir_fd=parent.fd)
        try:
            self._clear(fd, node)
            self._forget_lower(fd, node)
        finally:
            os.close(fd)

    def _clear(self, fd: int, node: Node) -> None:
        """Remove from an open directory what layers below have in it. None is looked at twice."""
        if node.opaque:
            return
        with Descent(fd) as place:
            levels = [(node, self._clear_one(place, node))]
            while levels:
                self._check()
                above, below = levels[-1]
                if below:
                    child = above.children[name := below.pop()]
                    place.down(name)
                    levels.append((child, [] if child.opaque else self._clear_one(place, child)))
                    continue
                levels.pop()
                if levels:
                    left = place.up()
                    try:
                        self._forget_lower(left, above)
                    finally:
                        os.close(left)

    def _clear_one(self, place: Descent, node: Node) -> list[bytes]:
        """As `_clear`, without the directories that this layer has here too: their names."""
        node.opaque = node.opaque or self._number
        self._flags.lift(place.fd, node)
        own = []
        parent = Parent(place.fd, [], node)
        for name in _children(place.fd):
            self._check()
            child = node.children.get(name)
            if child is None or not child.brought:
                self._remove(parent, name)
            elif stat.S_ISDIR(os.stat(name, dir_fd=place.fd, follow_symlinks=False).st_mode):
                own.append(name)
        return own

    def _forget_lower(self, fd: int, node: Node) -> None:
        """A directory that this layer has, but did not name or make, is a new one in place of that below."""
        if node.made:
            return
        node.made = True
        if node.entry is None:
            if self._may_chown:
                os.chown(fd, 0, 0)
            os.chmod(fd, IMPLIED_DIRECTORY_MODE)
        self._strip(fd)

    # Helpers

    def _remove(self, parent: Parent, name: bytes, *, missing_ok: bool = False) -> None:
        try:
            found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            if not missing_ok:
                raise
            parent.node.replace(name, self._number)
            return
        if stat.S_ISDIR(found.st_mode):
            removal.remove_tree(name, dir_fd=parent.fd, check=self._check)
        else:
            self._flags.unlink(parent.fd, name, found)
        parent.node.replace(name, self._number)
        if stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode):
            self._parents.forget()

    def _note_flags(self, node: Node, entry: Entry) -> None:
        if self._may_chown:
            self._flags.note(node, entry.flags)

    def _finish_directory(self, fd: int, node: Node) -> None:
        if node.entry is None:
            return
        if not node.made:
            self._strip(fd, node.entry.xattrs.keys())
        try:
            self._apply(fd, node.entry, (node.entry.uid, node.entry.gid))
        except OSError as error:
            raise UnpackError(
                f"layer entry {shown(node.path())}: {_refused(node.entry.xattrs, error)}"
            ) from error

    def _strip(self, fd: int, kept: Collection[bytes] = ()) -> None:
        """Remove the attributes that a directory has of a layer below."""
        for name in xattrs.names_on_fd(fd):
            if name not in kept and not name.startswith(overlay.NOT_OF_LAYERS):
                xattrs.remove_from_fd(fd, name)

    def _apply(self, fd: int, entry: Entry | Attributes, owner: tuple[int, int]) -> None:
        if self._may_chown:
            os.chown(fd, *owner)
        os.chmod(fd, entry.mode)
        for attribute, value in entry.xattrs.items():
            with self._storable(attribute) as wanted:
                if wanted:
                    xattrs.set_on_fd(fd, attribute, value)
        for record, text in entry.acls.items():
            with self._storable(record):
                acls.set_on_fd(fd, record, text)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    @contextlib.contextmanager
    def _storable(self, attribute: bytes) -> Iterator[bool]:
        """Note what the file system cannot keep; yields False for what must not be set."""
        try:
            yield not attribute.startswith(overlay.PRIVATE)
        except NamesOnlyError:
            self.skipped_xattrs.add(os.fsdecode(attribute))
        except OSError as error:
            if error.errno not in xattrs.NOT_STORABLE:
                raise
            self.skipped_xattrs.add(os.fsdecode(attribute))


def _children(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def _attributes(entry: Entry) -> Attributes:
    return Attributes(entry.mode, *_owner(entry), entry.mtime_ns, entry.xattrs, entry.acls)


def _owner(entry: Entry) -> tuple[int, int]:
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise CorruptLayerError(
            f"layer entry {shown(entry.name)}: owner {entry.uid}:{entry.gid} does not exist"
        )
    return entry.uid, entry.gid


def _reason(entry: Entry, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if entry.type == tarstream.HARD_LINK and number == errno.ENOENT:
        return f"its hard link target {shown(entry.link)} is not in the layer"
    if entry.type in {tarstream.CHAR_DEVICE, tarstream.BLOCK_DEVICE} and number == errno.EPERM:
        return "a device node can only be made by root outside of user namespaces and jails"
    return _refused(entry.xattrs, error)


def _refused(attributes: Collection[bytes], error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, OSError) and error.errno == errno.EPERM and attributes:
        names = ", ".join(map(os.fsdecode, attributes))
        return f"{reason}; setting its extended attributes ({names}) may need root"
    return reason
