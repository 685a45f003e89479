"""Specs as JSON, and the small files they live in. Imports the standard library only: the warden uses it."""

from __future__ import annotations

import dataclasses
import enum
import errno
import functools
import itertools
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cri.sandbox.spec import ExitRecord, Resources

T = TypeVar("T")

EXIT_RECORD = "exit.json"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def encode(value: Any) -> Any:
    """A spec as what `json.dumps` takes. Text with surrogate escapes survives, as JSON escapes it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name)) for name in _hints(type(value))}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(kind: type[T], data: Any) -> T:
    """The spec that `encode` was given. Fields that the data lacks take their defaults; others raise TypeError."""
    return typing.cast("T", _decode(kind, data))


def replace(value: T, **changes: Any) -> T:
    """A copy of a spec with some fields changed."""
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def merged(old: Resources, new: Resources) -> Resources:
    """Limits after an update: what the update names is new, the rest stays."""
    given = {field.name: getattr(new, field.name) for field in dataclasses.fields(new)}
    return dataclasses.replace(
        old, **{name: value for name, value in given.items() if value not in (None, {})}
    )


def read_exit_record(directory: Path) -> ExitRecord | None:
    """The exit record in a container's directory, or None if there is none. Blocks."""
    try:
        text = (directory / EXIT_RECORD).read_text()
    except FileNotFoundError:
        return None
    return decode(ExitRecord, json.loads(text))


def write_exit_record(directory: Path, record: ExitRecord) -> None:
    """Write the exit record so that a crash leaves either the whole of it or nothing. Blocks."""
    temporary = directory / f".{EXIT_RECORD}.new"
    with temporary.open("w") as file:
        json.dump(encode(record), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / EXIT_RECORD)


def remove_tree(directory: Path) -> None:
    """Remove a directory of ours with all its content; succeeds if it is gone. Blocks.

    However deep it is: directories are taken up to the top one by one, so neither the stack nor descriptors run out on
    what a container has nested. No link is followed. Raises OSError.
    """
    try:
        top = os.open(directory, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        numbers = itertools.count()
        while _empty(top, None, numbers):
            for name in os.listdir(top):  # noqa: PTH208 - by descriptor, so that no name can be exchanged
                below = os.open(name, _DIRECTORY, dir_fd=top)
                try:
                    _empty(below, top, numbers)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    directory.rmdir()


def _empty(directory: int, top: int | None, numbers: Iterator[int]) -> bool:
    """Unlink all files in a directory, and move what is none to `top`. Whether any directory is left in here."""
    left = False
    with os.scandir(directory) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in entries:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
        elif top is None:
            left = True
        else:
            _move_up(name, directory, top, numbers)
    return left


def _move_up(name: str, directory: int, top: int, numbers: Iterator[int]) -> None:
    while True:
        try:
            os.rename(name, f"{next(numbers)}.removed", src_dir_fd=directory, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise  # else the name is taken
        else:
            return


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if not name.startswith("_")}


def _decode(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None:
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
        return _decode(kind, data)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, element) for element in data)
    if origin is dict:
        item = typing.get_args(kind)[1]
        return {key: _decode(item, element) for key, element in data.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast("type", kind))
        return typing.cast("Any", kind)(**{name: _decode(hints[name], value) for name, value in data.items()})
    return data
