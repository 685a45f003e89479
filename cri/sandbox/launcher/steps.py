"""Steps whose arguments take some care, for whoever writes a plan. Standard library only."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence

from cri.sandbox.launcher.operations import Operation, Tolerate
from cri.sandbox.launcher.plan import Step

_SIGNED = 1 << 63


def write(path: str, content: str, tolerate: Tolerate = Tolerate.NOTHING, subject: str = "") -> Step:
    """Write to a file that is there."""
    return Step(
        Operation.WRITE, (tolerate,), (os.fsencode(path), os.fsencode(content)), subject or f"write {path}"
    )


def at_path(operation: Operation, integers: tuple[int, ...], path: str, subject: str = "") -> Step:
    """A step whose only text is a path."""
    return Step(operation, integers, (os.fsencode(path),), subject or path)


def groups(ids: Sequence[int]) -> Step:
    """Be a member of these groups, and of no others."""
    return Step(Operation.GROUPS, (len(ids),), (struct.pack(f"={len(ids)}I", *ids),), "set groups")


def bits(mask: int) -> int:
    """A mask of 64 bits, as a plan's integers are signed."""
    return mask - 2 * _SIGNED if mask >= _SIGNED else mask


def execute(candidates: Iterable[str], argv: Iterable[str], env: Mapping[str, str]) -> Step:
    """Become the program: the first candidate that can be executed. The last step of a plan."""
    files = [os.fsencode(path) for path in candidates]
    words = [os.fsencode(word) for word in argv]
    variables = [os.fsencode(f"{name}={value}") for name, value in env.items()]
    places = len(files) + 1, len(files) + 1 + len(words) + 1
    return Step(Operation.EXECUTE, places, (*files, None, *words, None, *variables, None), "exec")
