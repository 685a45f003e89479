"""The files of the build context that a COPY means, none from outside of it."""

import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from baustelle.containerfile import Instruction
from baustelle.paths import resolve_beneath

_IGNORE_FILES = (".containerignore", ".dockerignore")


def copied(
    instruction: Instruction, context: Path, names: Sequence[str], *, into: bool
) -> Iterator[tuple[str, Path]]:
    """Yield what is copied: the place below the destination ("" is the destination itself), and the file.

    A directory stands for its contents, as in Docker. `into` says that the destination is a directory,
    in which files keep their names. Sources may be patterns. Links given as sources are followed inside the
    context; those found in directories are copied as links. Raises ContainerfileError.
    """
    for ignore in _IGNORE_FILES:
        if (context / ignore).exists():
            raise instruction.error(f"{context / ignore} would be needed, which is not supported; remove it")
    matches = [match for name in names for match in _matches(instruction, context, name)]
    for name in matches:
        try:
            source = resolve_beneath(context, name)
        except OSError as error:
            raise instruction.error(f"{name} in the context {context}: {error.strerror}") from error
        if source.is_dir():
            yield from _contents(source)
        else:
            in_directory = into or len(matches) > 1
            yield (posixpath.basename(posixpath.normpath(name)) if in_directory else ""), source


def _matches(instruction: Instruction, context: Path, name: str) -> list[str]:
    if not any(mark in name for mark in "*?["):
        return [name]
    pattern = posixpath.normpath(posixpath.join("/", name)).lstrip("/")
    found = sorted(path.relative_to(context).as_posix() for path in context.glob(pattern))
    if not found:
        raise instruction.error(f"nothing in the context {context} matches {name}")
    return found


def _contents(top: Path) -> Iterator[tuple[str, Path]]:
    yield "", top
    for folder, directories, files in os.walk(top):
        for name in sorted([*directories, *files]):
            path = Path(folder, name)
            yield path.relative_to(top).as_posix(), path
