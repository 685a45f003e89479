"""What one layer has, by path: the part of it that must be remembered until the whole layer is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from baustelle.bounds import Budget

_NONE: Mapping[bytes, "Node"] = MappingProxyType({})  # nearly all nodes are files


@dataclass(slots=True, eq=False)
class Borrowed:
    """A file of a layer below that the layer gives other names, by hard links."""

    name: bytes
    """The first of these names, without empty parts, . and .."""
    target: bytes
    """The path of the file, likewise."""
    number: int
    """That of the entry: the path is as the tree was before it."""
    link: bool
    """The layer has made a directory there, which is right only if there is a link below."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a directory gets at the end: of its entry no more is kept, as there may be a hundred thousand."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]
    acls: Mapping[bytes, bytes]


class Node:
    """A place in a layer's tree. Nodes take memory in proportion to the names in the archive, however deep those are.

    What became of a place is kept as the number of the entry that did it, counted from 1; 0 means that nothing did.
    """

    __slots__ = (
        "above",
        "borrowed",
        "brought",
        "children",
        "entry",
        "flags",
        "hidden",
        "made",
        "named",
        "opaque",
    )

    def __init__(self, above: "Node | None" = None) -> None:
        self.above = above
        self.children: Mapping[bytes, Node] = _NONE
        """What is in here, by name; see `put`."""
        self.brought = 0
        """The layer itself has something here: whiteouts of the layer spare it."""
        self.made = False
        """A directory was made here, for the layer's own entry or for what it has below."""
        self.entry: Attributes | None = None
        """The directory's attributes, which it gets when nothing is made in it any more."""
        self.named = 0
        """The last entry that named this directory."""
        self.hidden = 0
        """Nothing of the layers below shows here: not at this path, and not below it."""
        self.opaque = 0
        """Nothing of the layers below shows in this directory."""
        self.flags: int | None = None
        """The file flags that come last of all."""
        self.borrowed: Borrowed | None = None
        """What is here holds the place of a file of a layer below."""

    @property
    def last(self) -> int:
        """The last entry that put something here, beside what it has below."""
        return max(self.brought, self.named)

    def is_directory(self) -> bool:
        """Whether there is a directory here, as far as the layer has to do with it."""
        return bool(self.made or self.entry is not None or self.children)

    def below(self, name: bytes) -> "Node":
        """The node of a name in here, made if there is none."""
        return self.children.get(name) or self.put(name, Node(self))

    def put(self, name: bytes, node: "Node") -> "Node":
        """Have a node under a name, in place of what is there."""
        if not isinstance(self.children, dict):
            self.children = {}
        self.children[name] = node
        return node

    def take(self, name: bytes) -> "Node":
        """Remove the node of a name that is there."""
        found = self.children[name]
        assert isinstance(self.children, dict)
        del self.children[name]
        return found

    def at(self, names: list[bytes]) -> "Node":
        """The node that names lead to."""
        node = self
        for name in names:
            node = node.below(name)
        return node

    def hides(self, path: bytes) -> bool:
        """Whether the layer hides what those below have at a path of names, as far as those are no links."""
        node = self
        for name in path.split(b"/"):
            child = node.children.get(name)
            if node.opaque or (child is not None and child.hidden):
                return True
            if child is None:
                return False
            node = child
        return False

    def replace(self, name: bytes, number: int) -> "Node":
        """Forget what the layer had at a name: with entry `number` something else comes there, or nothing."""
        known = self.children.get(name)
        found = self.put(name, Node(self))
        found.hidden = (known.hidden if known is not None else 0) or number
        return found

    def path(self) -> bytes:
        """The names that lead here. For messages: it looks for them."""
        names: list[bytes] = []
        node = self
        while (above := node.above) is not None:
            names.append(next((name for name, child in above.children.items() if child is node), b"?"))
            node = above
        return b"/".join(names[::-1]) or b"/"

    def bring(self, number: int) -> Self:
        """With entry `number` the layer has something here, and so directories above."""
        node: Node | None = self
        while node is not None and not 0 < node.brought <= number:
            node.brought = number
            node = node.above
        return self


class LayerTree(Node):
    """The root."""

    __slots__ = ("borrows", "budget")

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget
        """What the image has left."""
        self.borrows: list[Borrowed] = []
        """All in the tree, and those whose names went to something else since: none may lead nowhere."""
