"""JSON from strangers, however long, without holding up the other threads.

The standard library's parser is one call from beginning to end, and no other thread runs meanwhile: a tenth of a second
for some megabytes. Here a long document is parsed in pieces of a few milliseconds at most, each by the same parser, with a
pause behind each. What is accepted, and what comes out of it, is the same; but what nobody will read need not be kept, as
to make a dict of a hundred thousand entries, and to free it, are single steps, too.
"""

import json
import re
import time
from collections.abc import Callable
from typing import Any

LONG = 256 * 1024
"""Characters from which on a document is parsed in pieces."""

PIECE = 16 * 1024
"""Characters of a piece. A single string is not divided."""

PAUSE = 0.0002
"""Seconds between two pieces: long enough for another thread to begin."""

_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rf"(?:\{{(?:[^\"\[\]{{}}]++|{_STRING})*+\}}|\[(?:[^\"\[\]{{}}]++|{_STRING})*+\])"
_RUN = re.compile(rf"(?:(?:[^,\"\[\]{{}}]++|{_STRING}|{_FLAT})++,)++", re.DOTALL)
"""Elements or members of something, each with its comma, that hold at most flat arrays and objects."""
_SPACE = re.compile(r"[ \t\n\r]*+")

MAX_VALUES = 100_000
"""Members and elements of a long document that are kept. As objects they take twenty times the bytes that they are written in."""


class TooManyValuesError(ValueError):
    """A document has more than `MAX_VALUES` that are kept."""

    def __init__(self) -> None:
        super().__init__(f"it has more than {MAX_VALUES} values")


Path = tuple[str, ...]
"""The keys that lead to a member, from the top, in lower case (`str.casefold`); elements of arrays count for nothing."""

_decoder = json.JSONDecoder()


def everything(_: Path) -> bool:
    """Whether a member is read: all are."""
    return True


def loads(text: str, is_read: Callable[[Path], bool] = everything) -> Any:
    """The value of a JSON document. Blocks: long ones are for threads.

    Raises ValueError, of which TooManyValuesError is one, and RecursionError.

    An array or object that is a member for which `is_read` says no comes out empty if it is long: looked at like the rest, and
    thrown away.
    """
    if len(text) <= LONG:
        return _decoder.decode(text)
    value, end = _Parser(text, is_read).value(_after_space(text, 0), ())
    if (end := _after_space(text, end)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


class _Parser:
    """One pass over a text. Methods take a place in it, and return the one behind what they have read."""

    def __init__(self, text: str, is_read: Callable[[Path], bool]) -> None:
        self._text = text
        self._is_read = is_read
        self._paused = 0
        """Where the last pause was."""
        self._values = 0
        """How many were kept."""

    def value(self, at: int, path: Path | None) -> tuple[Any, int]:
        """The value that begins here. What is in it is kept if it has a path."""
        if at - self._paused >= PIECE:
            self._paused = at
            time.sleep(PAUSE)
        match self._text[at : at + 1]:
            case "{":
                return self._container(at, {}, "}", path)
            case "[":
                return self._container(at, [], "]", path)
        return _decoder.raw_decode(self._text, at)

    def _container(self, begin: int, found: Any, closing: str, path: Path | None) -> tuple[Any, int]:
        """An object or array, to which everything in it is added that is kept."""
        text = self._text
        at = _after_space(text, begin + 1)
        if text[at : at + 1] == closing:
            return found, at + 1
        while True:
            if run := _RUN.match(text, at, at + PIECE):
                self._add_run(run, found, closing, path)
                at = _after_space(text, run.end())
            at = self._add_one(at, found, path)
            if text[at : at + 1] == closing:
                return found, at + 1
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _after_space(text, at + 1)

    def _add_run(self, run: re.Match[str], found: Any, closing: str, path: Path | None) -> None:
        body = run[0][:-1]
        try:
            some = _decoder.decode(f"{{{body}}}" if closing == "}" else f"[{body}]")
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, self._text, run.start() + error.pos - 1) from None
        if not some:  # a comma behind nothing
            raise json.JSONDecodeError("Expecting value", self._text, run.start())
        if path is None:
            return
        self._keep(len(some))
        self._keep(sum(len(one) for one in _values(some) if isinstance(one, dict | list)))  # these are flat
        if closing == "}":
            found.update(some)
        else:
            found.extend(some)

    def _add_one(self, at: int, found: Any, path: Path | None) -> int:
        """Add one element or member, and pass over the space behind it."""
        text = self._text
        if isinstance(found, list):
            value, at = self.value(at, path)
            if path is not None:
                self._keep(1)
                found.append(value)
            return _after_space(text, at)
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        key, at = _decoder.raw_decode(text, at)
        at = _after_space(text, at)
        if text[at : at + 1] != ":":
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        below = None if path is None else (*path, key.casefold())
        if below is not None and not self._is_read(below):
            below = None
        value, at = self.value(_after_space(text, at + 1), below)
        if path is not None:
            self._keep(1)
            found[key] = value
        return _after_space(text, at)

    def _keep(self, count: int) -> None:
        self._values += count
        if self._values > MAX_VALUES:
            raise TooManyValuesError


def _values(some: Any) -> Any:
    return some.values() if isinstance(some, dict) else some


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()
