"""The kinds of values that settings have.

Each reader takes a value of the file, or the text of a flag or variable, and raises ValueError with what it expects.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MOST_DIGITS = 20
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")

Reader = Callable[[Any], Any]


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError("a string")  # noqa: TRY004 - one kind of error for all expectations
    return value


def path(value: Any) -> Path:
    """An absolute path."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("an absolute path")
    return Path(value)


def file(value: Any) -> Path | None:
    """An absolute path, or nothing."""
    if value == "":
        return None
    try:
        return path(value)
    except ValueError:
        raise ValueError("an absolute path, or nothing") from None


def whole(low: int, high: int) -> Reader:
    """A whole number within bounds."""

    def read(value: Any) -> int:
        expected = f"a whole number from {low} to {high}"
        if isinstance(value, str):
            value = int(value) if value.isdecimal() and len(value) <= _MOST_DIGITS else None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(expected)
        return value

    return read


def seconds(value: Any) -> float:
    """A positive number of seconds."""
    try:
        number = (
            float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
        )
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError("a number of seconds greater than 0")
    return number


def ratio(value: Any) -> float:
    """A number from 0 to 1."""
    try:
        number = (
            float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
        )
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("a number from 0 to 1")
    return number


def collector(value: Any) -> str:
    """A URL of a scheme, a host and a port; or nothing."""
    if value == "":
        return ""
    scheme, mark, rest = text(value).partition("://")
    expected = "http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:4317, or nothing"
    if not mark or scheme not in ("http", "https") or "@" in rest or "/" in rest:
        raise ValueError(expected)
    try:
        endpoint(rest)
    except ValueError:
        raise ValueError(expected) from None
    return str(value)


def flag(value: Any) -> bool:
    """True or false."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004
    return value


def choice(*words: str) -> Reader:
    """One of some words."""

    def read(value: Any) -> str:
        if value not in words:
            raise ValueError("one of " + ", ".join(words))
        return str(value)

    return read


def texts(value: Any) -> tuple[str, ...]:
    """A list of strings; in a flag or variable, separated by commas."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of strings (in a flag or variable: separated by commas)")
    return tuple(value)


def directories(value: Any) -> tuple[str, ...]:
    """Absolute paths."""
    found = texts(value)
    if not all(one.startswith("/") for one in found):
        raise ValueError("a list of absolute paths")
    return found


def image_names(value: Any) -> tuple[str, ...]:
    """Names of images, which may have asterisks."""
    found = texts(value)
    if not found:
        return found
    from cri.pinned import Pinned  # noqa: PLC0415 - it brings an HTTP client along

    try:
        Pinned(found)
    except ValueError as error:
        raise ValueError(
            f"a list of images' names, in which an asterisk stands for anything ({error})"
        ) from error
    return found


def proxy(value: Any) -> str:
    """A proxy's URL; false, or nothing, for none."""
    if value in (False, "", "false"):
        return ""
    from registratur.errors import InvalidEndpointError  # noqa: PLC0415 - it brings an HTTP client along
    from registratur.proxies import Proxy  # noqa: PLC0415

    try:
        if isinstance(value, str):
            Proxy.parse(value, "proxy")
            return value
    except InvalidEndpointError:
        pass
    raise ValueError(
        "http://HOST:PORT or https://HOST:PORT, with USER:PASSWORD@ before HOST if need be, or false"
    )


def subnet(value: Any) -> str:
    """An address prefix."""
    try:
        return str(ipaddress.ip_network(text(value)))
    except ValueError:
        raise ValueError("an address prefix such as 10.88.0.0/16, without host bits") from None


def subnets(value: Any) -> tuple[str, ...]:
    """Address prefixes, as a list or separated by commas."""
    try:
        return tuple(map(subnet, texts(value)))
    except ValueError:
        raise ValueError("address prefixes such as 10.88.0.0/16, without host bits") from None


def families(value: Any) -> tuple[str, ...]:
    """Address prefixes, at least one, one per address family at most; as a kubelet's podCIDR has them."""
    try:
        found = subnets(value)
    except ValueError:
        found = ()
    if not found or len({ipaddress.ip_network(one).version for one in found}) != len(found):
        raise ValueError(
            "one address prefix per address family, such as 10.88.0.0/16,fd00:88::/64, without host bits"
        )
    return found


def address(value: Any) -> str:
    """HOST:PORT, or nothing."""
    if value:
        endpoint(text(value))
    return text(value)


def listener(value: Any) -> str:
    """HOST:PORT."""
    if not value:
        raise ValueError("HOST:PORT, such as 127.0.0.1:0")
    return address(value)


def interface(value: Any) -> str:
    """A name for a network interface."""
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value):
        raise ValueError("an interface name of at most 15 letters, digits, '_', '.' and '-', no mark first")
    return value


def endpoint(text: str) -> tuple[str, int]:
    """Host and port out of HOST:PORT."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("HOST:PORT, such as 127.0.0.1:9325, or nothing")
    return host, int(port)
