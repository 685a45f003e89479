"""What one layer has, by path: the part of it that must be remembered until the whole layer is read."""

from typing import Self

from baustelle.tarstream import Entry


class Node:
    """A place in a layer's tree. Nodes take memory in proportion to the names in the archive, however deep those are."""

    __slots__ = ("above", "brought", "children", "entry", "flags", "hidden", "made", "opaque")

    def __init__(self, above: "Node | None" = None) -> None:
        self.above = above
        self.children: dict[bytes, Node] = {}
        self.brought = False
        """The layer itself has something here: whiteouts of the layer spare it."""
        self.made = False
        """A directory was made here, for the layer's own entry or for what it has below."""
        self.entry: Entry | None = None
        """The directory's attributes, which it gets when nothing is made in it any more."""
        self.hidden = False
        """Nothing of the layers below shows here: not at this path, and not below it."""
        self.opaque = False
        """Nothing of the layers below shows in this directory."""
        self.flags: int | None = None
        """The file flags that come last of all."""

    def is_directory(self) -> bool:
        """Whether there is a directory here, as far as the layer has to do with it."""
        return bool(self.made or self.entry is not None or self.children)

    def below(self, name: bytes) -> "Node":
        """The node of a name in here, made if there is none."""
        found = self.children.get(name)
        if found is None:
            found = self.children[name] = Node(self)
        return found

    def at(self, names: list[bytes]) -> "Node":
        """The node that names lead to."""
        node = self
        for name in names:
            node = node.below(name)
        return node

    def replace(self, name: bytes) -> "Node":
        """Forget what the layer had at a name: something else comes there, or nothing."""
        found = self.children[name] = Node(self)
        found.hidden = True
        return found

    def bring(self) -> Self:
        """The layer has something here, and so directories above."""
        node: Node | None = self
        while node is not None and not node.brought:
            node.brought = True
            node = node.above
        return self
