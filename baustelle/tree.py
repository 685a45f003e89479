"""What is in an image, by path, without unpacking it: enough to know where a COPY ends up."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from baustelle import tarstream
from baustelle.bounds import Budget, Window
from baustelle.decompress import plain_chunks
from baustelle.errors import BuildError
from baustelle.tarstream import TarStream

_MAX_LINKS = 255


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory and the metadata that a layer must repeat when it puts something into it."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class File:
    """Anything else."""


class ImageTree:
    """The files of an image after some of its layers. Paths have no slash at their ends; the root is ""."""

    def __init__(self) -> None:
        self._nodes: dict[str, Directory | Link | File] = {"": Directory()}

    def add_layer(self, stream: BinaryIO) -> None:
        """Lay a layer over what is there. Raises CorruptLayerError."""
        whiteouts: list[str] = []
        opaque: list[str] = []
        added: dict[str, Directory | Link | File] = {}
        for entry in TarStream(plain_chunks(stream, Window(Budget()))):
            path = posixpath.normpath("/" + entry.name.decode(errors="surrogateescape")).lstrip("/")
            above, name = posixpath.split(path)
            if name == ".wh..wh..opq":
                opaque.append(above)
            elif name.startswith(".wh."):
                whiteouts.append(posixpath.join(above, name[len(".wh.") :]))
            elif entry.type == tarstream.DIRECTORY:
                added[path] = Directory(entry.mode, entry.uid, entry.gid)
            elif entry.type == tarstream.SYMLINK:
                added[path] = Link(entry.link.decode(errors="surrogateescape"))
            else:
                added[path] = File()
        for path in whiteouts:
            self._remove(path)
        for path in opaque:
            for child in list(self._below(path)):
                del self._nodes[child]
        for path, node in added.items():
            self.add(path, node)

    def add(self, path: str, node: Directory | Link | File) -> None:
        """Put one file into the tree, in place of what is there."""
        if not isinstance(node, Directory):
            self._remove(path)
        for above in parents(path):
            if not isinstance(self._nodes.get(above), Directory | Link):
                self._nodes[above] = Directory()
        self._nodes[path] = node

    def get(self, path: str) -> Directory | Link | File | None:
        """What is at a link-free path."""
        return self._nodes.get(path)

    def resolve(self, path: str) -> str:
        """The link-free path, as in chroot; what is missing resolves to itself. Raises BuildError for loops."""
        pending = path.split("/")[::-1]
        done: list[str] = []
        links = 0
        while pending:
            name = pending.pop()
            if name in {"", "."}:
                continue
            if name == "..":
                del done[-1:]
                continue
            node = self._nodes.get("/".join([*done, name]))
            if not isinstance(node, Link):
                done.append(name)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise BuildError(f"the image's links at /{path} lead in a circle")
            if node.target.startswith("/"):
                done = []
            pending.extend(node.target.split("/")[::-1])
        return "/".join(done)

    def _below(self, path: str) -> Iterator[str]:
        start = f"{path}/" if path else ""
        return (child for child in self._nodes if child.startswith(start) and child not in {"", path})

    def _remove(self, path: str) -> None:
        # What is no directory has nothing below it, and what is below something has directories above.
        if not isinstance(self._nodes.get(path), Directory):
            self._nodes.pop(path, None)
            return
        for child in list(self._below(path)):
            del self._nodes[child]
        self._nodes.pop(path, None)


def parents(path: str) -> list[str]:
    """The directories above a path, the root not included, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
