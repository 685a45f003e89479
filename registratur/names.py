"""What registries are called: as image references have it, so that what is said of one is found again.

A reference keeps the registry as it was written, but for Docker's oldest name. A host's name has no case, an IPv6 address
several spellings, a port that is the default need not be there, and Docker's own registry is called otherwise than its host.
"""

import ipaddress
import re
from collections.abc import Iterator

from registratur.errors import InvalidEndpointError, InvalidReferenceError
from registratur.reference import DEFAULT_REGISTRY, Reference

DOCKER_HOST = "registry-1.docker.io"
"""The host that serves docker.io."""

_LEGACY_DOCKER = "index.docker.io"
_DEFAULT_PORT = 443
_PORT = re.compile(r"(.*):([0-9]{1,9})")
_LITERAL = re.compile(r"\[(.*)\]")


def registry_name(text: str) -> str:
    """Return the one spelling of a registry's name, `host` or `host:port`. Raises InvalidEndpointError with a remedy."""
    host, port = _split(text.lower())
    if port is not None and not 0 < int(port) < 1 << 16:
        raise InvalidEndpointError(
            f"{text!r} is no registry's name: {port} is no port; take one from 1 to 65535"
        )
    name = host if port is None else f"{host}:{int(port)}"
    if name in (_LEGACY_DOCKER, f"{_LEGACY_DOCKER}:{_DEFAULT_PORT}"):
        return DEFAULT_REGISTRY
    try:
        Reference(name, "x")
    except InvalidReferenceError:
        raise InvalidEndpointError(f"{text!r} is no registry's name: {_hint(text)}") from None
    return name


def can_be_referenced(name: str) -> bool:
    """Tell whether an image reference can name that registry: a host alone, without a dot, is somebody's name on Docker Hub."""
    try:
        return Reference.parse(f"{name}/x").registry == name
    except InvalidReferenceError:
        return False


def spellings(registry: str) -> Iterator[str]:
    """Yield under which names a registry may be spoken of, its own first. Raises InvalidEndpointError."""
    name = registry_name(registry)
    host, port = _split(name)
    yield name
    if port is None:
        yield f"{host}:{_DEFAULT_PORT}"
    elif int(port) == _DEFAULT_PORT:
        yield host
    else:
        return
    if host in (DEFAULT_REGISTRY, DOCKER_HOST):
        other = DOCKER_HOST if host == DEFAULT_REGISTRY else DEFAULT_REGISTRY
        yield from (other, f"{other}:{_DEFAULT_PORT}")


def _split(text: str) -> tuple[str, str | None]:
    """Return host and port, an address that is one in its shortest form."""
    found = _PORT.fullmatch(text)
    host, port = (found[1], found[2]) if found else (text, None)
    if literal := _LITERAL.fullmatch(host):
        try:
            host = f"[{ipaddress.IPv6Address(literal[1]).compressed}]"
        except ValueError:
            raise InvalidEndpointError(f"{text!r} is no registry's name: {host} is no IPv6 address") from None
    return host, port


def _hint(text: str) -> str:
    if "://" in text:
        return f"write {text.partition('://')[2].partition('/')[0] or 'the host'!r}, without the scheme"
    if text != text.strip() or any(character.isspace() for character in text):
        return "write it without spaces"
    if "@" in text:
        return "it must not hold credentials"
    if "/" in text:
        return f"a path has no place in it; write {text.partition('/')[0] or 'the host'!r}"
    if "*" in text:
        return "'*' stands for every other registry, alone; a part of names cannot be given"
    if not text.isascii():
        try:
            return f"write it as DNS has it, {text.encode('idna').decode()!r}"
        except UnicodeError:
            return "it is not ASCII, and cannot be a name in DNS"
    try:
        return f"write the IPv6 address in brackets, '[{ipaddress.IPv6Address(text)}]'"
    except ValueError:
        pass
    if text.endswith("."):
        return f"references have no dot at the end; write {text.rstrip('.')!r}"
    return "write host or host:port, of letters, digits, '-' and '.'"
