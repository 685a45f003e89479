"""Typed reading of JSON from strangers, with the key rules of Go's encoding/json.

Registries are full of documents that Go wrote and only Go has read: keys match in any case (the ``cmd``
of FreeBSD's official images), null means absent, and a lone surrogate is replaced rather than kept.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Self

from registratur import long_json
from registratur.errors import MalformedContentError


class Fields:
    """One JSON object; `what` names it in errors."""

    def __init__(self, what: str, values: Mapping[str, object]) -> None:
        self.what = what
        self._values = {key.casefold(): value for key, value in values.items() if value is not None}

    @classmethod
    def parse(
        cls, what: str, data: bytes, is_read: Callable[[long_json.Path], bool] = long_json.everything
    ) -> Self:
        """Read a document whose top is an object; a long one blocks for a while. Raises MalformedContentError.

        See `long_json.loads` for `is_read`.
        """
        try:
            document = long_json.loads(data.decode(), is_read)
        except long_json.TooManyValuesError as error:
            raise MalformedContentError(f"{what} cannot be read: {error}") from error
        except (ValueError, RecursionError) as error:
            raise MalformedContentError(f"{what} is no JSON: {error}") from error
        if not isinstance(document, dict):
            raise MalformedContentError(f"{what} is a JSON {type(document).__name__}, expected an object")
        return cls(what, document)

    def __contains__(self, key: str) -> bool:
        return key.casefold() in self._values

    def string(self, key: str, default: str | None = "") -> str:
        """Return a string; `default` None makes the key mandatory. Raises MalformedContentError."""
        value = self._values.get(key.casefold(), default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return clean(value)

    def integer(self, key: str) -> int:
        """Return a mandatory integer that is not negative and has 63 bits. Raises MalformedContentError."""
        value = self._values.get(key.casefold())
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._wrong(key, "an integer from 0 to 2^63 - 1", value)
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; a bare string counts as a list of one, as in Docker's configs.

        Raises MalformedContentError.
        """
        value = self._values.get(key.casefold(), [])
        if isinstance(value, str):
            return (clean(value),)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings", value)
        return tuple(clean(item) for item in value)

    def mapping(self, key: str) -> dict[str, str]:
        """Return an object whose values are strings (annotations). Raises MalformedContentError."""
        value = self._values.get(key.casefold(), {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object of strings", value)
        pairs = {name: "" if item is None else item for name, item in value.items()}
        if not all(isinstance(item, str) for item in pairs.values()):
            raise self._wrong(key, "an object of strings", value)
        return {clean(name): clean(item) for name, item in pairs.items()}

    def keys(self, key: str) -> tuple[str, ...]:
        """Return the keys of an object used as a set. Raises MalformedContentError."""
        value = self._values.get(key.casefold(), {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return tuple(clean(name) for name in value)

    def child(self, key: str) -> Self:
        """Return the object under `key`, an empty one if there is none. Raises MalformedContentError."""
        value = self._values.get(key.casefold(), {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return type(self)(f"{self.what}: {key}", value)

    def children(self, key: str) -> Iterator[Self]:
        """Yield the objects of the list under `key`. Raises MalformedContentError."""
        value = self._values.get(key.casefold(), [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, "a list of objects", value)
        for number, item in enumerate(value):
            yield type(self)(f"{self.what}: {key}[{number}]", item)

    def _wrong(self, key: str, expected: str, value: object) -> MalformedContentError:
        found = "nothing" if value is None else repr(value)[:80]
        return MalformedContentError(f"{self.what}: {key!r} must be {expected}, found {found}")


def clean(text: str) -> str:
    """Text with each lone surrogate replaced, as Go reads it."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
