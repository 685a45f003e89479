"""Netlink's attributes as tables: bytes in, values out.

An attribute is a type, a length and a value, padded to 4 bytes; some values are attributes again. Which attributes may
stand together, and what their values are, is said by a `Table` of codecs; `encode_attributes` and `decode_attributes`
walk it.

Attributes are dictionaries from a table's names to values. One that no table knows is kept, under its number, as
bytes.

Sources: netlink(7); linux/netlink.h.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from cni_plugins.errors import MalformedMessageError

Attributes: TypeAlias = Mapping[str | int, Any]
Header: TypeAlias = tuple[int, ...]
HeaderType: TypeAlias = type[Any]
"""A NamedTuple of integers that `header` knows the layout of."""

NESTED = 0x8000
"""Part of the number of an attribute of attributes; few receivers insist on it."""

_NLATTR = Struct("=HH")
_TYPE_MASK = 0x3FFF  # the two high bits say "nested" and "network byte order"; the kernel may set them

_AnyHeader = TypeVar("_AnyHeader")
_layouts: dict[HeaderType, Struct] = {}


def header(layout: str) -> Callable[[type[_AnyHeader]], type[_AnyHeader]]:
    """Decorate a NamedTuple: its fields lie in memory like this (the format is that of the struct module)."""

    def register(kind: type[_AnyHeader]) -> type[_AnyHeader]:
        _layouts[kind] = Struct(layout)
        return kind

    return register


def pack_header(kind: HeaderType, values: Header) -> bytes:
    """Return a header as bytes. Raises struct.error for values that do not fit."""
    return _layouts[kind].pack(*values)


def unpack_header(kind: HeaderType, data: bytes) -> tuple[Any, bytes]:
    """Return the header that some bytes begin with, and the bytes after it. Raises struct.error if they are too few."""
    layout = _layouts[kind]
    return kind(*layout.unpack_from(data)), data[layout.size :]


class Codec(Protocol):
    """Turns one attribute's value into its payload and back."""

    def encode(self, value: Any) -> bytes:
        """Return the payload for a value; raises what struct, str or ipaddress raise for a wrong one."""

    def decode(self, payload: bytes) -> Any:
        """Return the value of a payload, likewise."""


class Integer:
    """An integer of fixed width and byte order."""

    def __init__(self, layout: str) -> None:
        self._struct = Struct(layout)

    def encode(self, value: int) -> bytes:
        """Refuses what does not fit."""
        return self._struct.pack(value)

    def decode(self, payload: bytes) -> int:
        """Refuses another width."""
        value: int = self._struct.unpack(payload)[0]
        return value


class Integers:
    """A structure of integers, as a tuple."""

    def __init__(self, layout: str) -> None:
        self._struct = Struct(layout)

    def encode(self, value: tuple[int, ...]) -> bytes:
        """Refuses what does not fit."""
        return self._struct.pack(*value)

    def decode(self, payload: bytes) -> tuple[int, ...]:
        """Refuses another width."""
        return self._struct.unpack(payload)


class Opaque:
    """Bytes that only the receiver can read."""

    def encode(self, value: bytes) -> bytes:
        """Any."""
        return bytes(value)

    def decode(self, payload: bytes) -> bytes:
        """Any."""
        return payload


class Text:
    """A string, ended by a zero byte (which some senders leave out)."""

    def encode(self, value: str) -> bytes:
        """Refuses a zero inside, which would cut the string silently."""
        if "\0" in value:
            raise ValueError("a zero byte inside a string")
        return value.encode(errors="surrogateescape") + b"\0"

    def decode(self, payload: bytes) -> str:
        """Bytes that are no UTF-8 (an interface may be called so) survive as surrogates."""
        return payload.removesuffix(b"\0").decode(errors="surrogateescape")


class Hardware:
    """A link-layer address, written as aa:bb:cc:dd:ee:ff."""

    def encode(self, value: str) -> bytes:
        """Refuses what is not pairs of hex digits."""
        return bytes.fromhex(value.replace(":", ""))

    def decode(self, payload: bytes) -> str:
        """Any length: tunnels have 4 or 16 bytes here."""
        return payload.hex(":")


class Address:
    """An IPv4 or IPv6 address; its length tells which."""

    def encode(self, value: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
        """Network byte order."""
        return value.packed

    def decode(self, payload: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """Refuses lengths other than 4 and 16."""
        return ipaddress.ip_address(payload)


class Choice(NamedTuple):
    """An attribute whose own attributes depend on the value of another one beside it."""

    code: int
    selector: str
    tables: Mapping[str, Table]


class Table:
    """The attributes that may stand together: their names, numbers and codecs, readable both ways."""

    def __init__(self, **attributes: tuple[int, Codec]) -> None:
        self.by_name: dict[str, tuple[int, Codec]] = {}
        self.by_code: dict[int, tuple[str, Codec]] = {}
        self._choices: dict[str, Choice] = {}
        self._chosen: dict[tuple[str | None, ...], Table] = {}
        self.define(**attributes)

    def define(self, **attributes: tuple[int, Codec]) -> None:
        """Add attributes, or replace those of the same name (a table may contain itself)."""
        for name, (code, codec) in attributes.items():
            self.by_name[name] = code, codec
            self.by_code[code & _TYPE_MASK] = name, codec
        self._chosen.clear()

    def choose(self, **choices: Choice) -> Table:
        """Add attributes that hold what another attribute of the table says; return the table.

        Where the other one is missing or says something that no table is for, they stay bytes, under their number.
        """
        self._choices.update(choices)
        self._chosen.clear()
        return self

    def given(self, selectors: Callable[[str], Any]) -> Table:
        """Return the table without choices that holds for the values that `selectors` finds by name."""
        if not self._choices:
            return self
        said = tuple(
            value if (value := selectors(choice.selector)) in choice.tables else None
            for choice in self._choices.values()
        )
        if said not in self._chosen:
            table = Table(**self.by_name)
            for (name, choice), value in zip(self._choices.items(), said, strict=True):
                if value is not None:
                    table.define(**{name: (choice.code, Nested(choice.tables[value]))})
            self._chosen[said] = table
        return self._chosen[said]


class Nested:
    """Attributes inside an attribute, after a fixed header if there is one (as in veth's peer)."""

    def __init__(self, table: Table, header: HeaderType | None = None) -> None:
        self._table = table
        self._header = header

    def encode(self, value: Attributes) -> bytes:
        """Encode a dictionary; the fixed header is under the key "header"."""
        values = dict(value)
        prefix = b""
        if self._header:
            prefix = pack_header(self._header, values.pop("header", self._header()))
        return prefix + encode_attributes(values, self._table)

    def decode(self, payload: bytes) -> dict[str | int, Any]:
        """The reverse."""
        if not self._header:
            return decode_attributes(payload, self._table)
        found, rest = unpack_header(self._header, payload)
        return {"header": found, **decode_attributes(rest, self._table)}


class Listed:
    """A sequence of values of one kind: attributes that all have the same number."""

    def __init__(self, code: int, element: Codec) -> None:
        self._code = code
        self._element = element

    def encode(self, value: Sequence[Any]) -> bytes:
        """In their order."""
        return b"".join(_attribute(self._code, self._element.encode(element)) for element in value)

    def decode(self, payload: bytes) -> list[Any]:
        """Refuses attributes of another number."""
        values = []
        for code, element in _split(payload):
            if code != self._code:
                raise ValueError(f"an attribute {code} in a list of {self._code}")
            values.append(self._element.decode(element))
        return values


U8, U16, U32, U64 = Integer("=B"), Integer("=H"), Integer("=I"), Integer("=Q")
I32 = Integer("=i")
BE16, BE32, BE64 = Integer("!H"), Integer("!I"), Integer("!Q")
TEXT, HARDWARE, ADDRESS, OPAQUE = Text(), Hardware(), Address(), Opaque()


def padding(length: int) -> int:
    """Return how many bytes are missing to a multiple of four."""
    return -length % 4


def encode_attributes(values: Attributes, table: Table) -> bytes:
    """Return attributes as bytes, in the dictionary's order. Raises MalformedMessageError for what does not fit."""
    table = table.given(values.get)
    parts = []
    for name, value in values.items():
        if isinstance(name, int):
            code, payload = name, bytes(value)
        elif name in table.by_name:
            code, codec = table.by_name[name]
            try:
                payload = codec.encode(value)
            except (struct.error, ValueError, TypeError, AttributeError) as error:
                raise MalformedMessageError(
                    f"netlink attribute {name}: {value!r} does not fit: {error}"
                ) from error
        else:
            raise MalformedMessageError(
                f"netlink attribute {name} is not in the table; it has {sorted(table.by_name)}"
            )
        if _NLATTR.size + len(payload) > 0xFFFF:
            raise MalformedMessageError(
                f"netlink attribute {name}: {len(payload)} bytes are too long for one"
            )
        parts.append(_attribute(code, payload))
    return b"".join(parts)


def decode_attributes(data: bytes, table: Table) -> dict[str | int, Any]:
    """Return the attributes in some bytes. Raises MalformedMessageError for lengths or values that cannot be."""
    found = list(_split(data))
    table = table.given(lambda selector: _find(found, table, selector))
    values: dict[str | int, Any] = {}
    for code, payload in found:
        if code in table.by_code:
            name, codec = table.by_code[code]
            values[name] = _decode_one(name, codec, payload)
        else:
            values[code] = payload
    return values


def _attribute(code: int, payload: bytes) -> bytes:
    length = _NLATTR.size + len(payload)
    return _NLATTR.pack(length, code) + payload + bytes(padding(length))


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data):
        if len(data) - offset < _NLATTR.size:
            raise MalformedMessageError(f"netlink attribute cut short: {len(data) - offset} bytes are left")
        length, code = _NLATTR.unpack_from(data, offset)
        if not _NLATTR.size <= length <= len(data) - offset:
            raise MalformedMessageError(f"netlink attribute {code & _TYPE_MASK} claims {length} bytes")
        yield code & _TYPE_MASK, data[offset + _NLATTR.size : offset + length]
        offset += length + padding(length)


def _find(found: Sequence[tuple[int, bytes]], table: Table, name: str) -> Any:
    """Return the value of one attribute, in whatever order they came."""
    wanted, codec = table.by_name[name]
    return next((_decode_one(name, codec, payload) for code, payload in found if code == wanted), None)


def _decode_one(name: str, codec: Codec, payload: bytes) -> Any:
    try:
        return codec.decode(payload)
    except (struct.error, ValueError) as error:
        raise MalformedMessageError(f"netlink attribute {name}: {payload.hex()}: {error}") from error
