"""Registries as containerd's users have them configured: a directory of HOST/hosts.toml.

HOST is a registry's name, ``host``, ``host:port`` or ``host_port_``; ``_default`` stands for all that have no directory. One
without hosts.toml may hold certificates by Docker's rule: ``*.crt`` to trust, ``*.cert`` with ``*.key`` to show. Paths are
relative to the file.

Source: docs/hosts.md of containerd, https://github.com/containerd/containerd/blob/main/docs/hosts.md.
"""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from registratur.errors import InvalidEndpointError
from registratur.hosts import EVERYTHING, WILDCARD, HostOptions, HostsConfig, RegistryHost
from registratur.names import registry_name, spellings
from registratur.proxies import Proxy

FILE = "hosts.toml"
_DEFAULT = "_default"
_SIZE_LIMIT = 1024 * 1024  # bytes of a file that are read
_ESCAPED_PORT = re.compile(r"(.+)_([0-9]+)_")
_KEYS = ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "proxy")
_TOP = (*_KEYS, "server", "host")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?(?:h|ms|us|µs|ns|m|s))+")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class _BadFileError(Exception):
    """A file cannot be used; the text begins with the key."""


def read_hosts(directory: Path, beside: HostsConfig | None = None) -> tuple[HostsConfig, list[str]]:
    """Return `beside` with what `directory` says of registries, and what somebody should be told of it. Blocks.

    A registry whose file cannot be used is not asked at all until it is mended: asking it without its mirrors, or without its
    certificates, might be what the file is there to prevent. The same goes for one that has mirrors in `beside`, too. Nothing is
    raised, whatever is found there.
    """
    known = beside or HostsConfig()
    mirrors, servers = dict(known.mirrors), dict(known.servers)
    broken, told = dict(known.broken), list[str]()
    seen: dict[str, Path] = {}
    try:
        folders = _folders(directory)
    except FileNotFoundError:
        return known, [f"{directory}: there is no such directory; make it, or do not name it"]
    except OSError as error:
        text = f"{directory}: cannot be read: {error.strerror}; mend that, and reload the configuration"
        return replace(known, broken={**broken, WILDCARD: text}), [text]
    for folder in folders:
        try:
            name = _registry(folder.name)
        except InvalidEndpointError as error:
            told.append(f"{folder}: {error}; it is passed over")
            continue
        if name in seen:
            told.append(f"{folder}: passed over, {seen[name]} is for the same registry; remove one of them")
            continue
        seen[name] = folder
        try:
            hosts, server = _read(folder, name, told, has_mirrors=bool(known.mirrors.get(name)))
            # Made to be checked: what it raises is about this file alone.
            HostsConfig(mirrors={name: hosts}, servers={name: server})
        except (_BadFileError, InvalidEndpointError) as error:
            broken[name] = f"{folder / FILE}: {error}"
            told.append(f"{broken[name]}; nothing is pulled from it until that is mended")
            broken[name] += "; mend that, and have the configuration read anew"
            continue
        mirrors[name], servers[name] = hosts, server
    return replace(known, mirrors=mirrors, servers=servers, broken=broken), told


def _folders(directory: Path) -> list[Path]:
    """Return the directories there; one with an escaped port counts before one with a colon, as with containerd."""
    found = [path for path in directory.iterdir() if path.is_dir()]
    return sorted(found, key=lambda path: (_ESCAPED_PORT.fullmatch(path.name) is None, path.name))


def _registry(name: str) -> str:
    if name == _DEFAULT:
        return WILDCARD
    escaped = _ESCAPED_PORT.fullmatch(name)
    return registry_name(f"{escaped[1]}:{escaped[2]}" if escaped else name)


def _read(
    folder: Path, name: str, told: list[str], *, has_mirrors: bool
) -> tuple[Sequence[RegistryHost], RegistryHost]:
    """Return the mirrors and the server of a directory. Raises _BadFileError."""
    if has_mirrors:
        raise _BadFileError(
            "the registry has mirrors in the daemon's own configuration, too; remove one of them"
        )
    file = folder / FILE
    data = _contents(file)
    if len(data) > _SIZE_LIMIT:
        raise _BadFileError(f"has more than {_SIZE_LIMIT} bytes, which no configuration has")
    if not data.strip():
        return (), RegistryHost("", options=_certificates(folder))
    try:
        contents = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _BadFileError(f"is no TOML in UTF-8: {str(error) or 'nested too deeply'}") from None
    _look_for_unknown(contents, _TOP, "", file, told)
    tables = _typed(contents, "host", dict, 'tables [host."URL"]', {})
    hosts = []
    for url, table in tables.items():
        key = f'host."{url}"'
        if not isinstance(table, dict):
            raise _BadFileError(f"{key}: must be a table")
        _look_for_unknown(table, _KEYS, f"{key}.", file, told)
        hosts.append(_host(url, table, f"{key}.", folder))
    server = _typed(contents, "server", str, "a URL", "")
    made = _host(server, contents, "", folder)
    own = [] if name == WILDCARD else [*spellings(name)]
    if made.url.startswith("https://") and made.url.removeprefix("https://") in own:
        made = replace(made, url="")  # as the example for Docker Hub has it, where no registry is
    return tuple(hosts), made


def _contents(file: Path) -> bytes:
    """Return what a file holds, nothing if it is not there. Raises _BadFileError."""
    try:
        # O_NONBLOCK: nobody waits for a FIFO.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:  # noqa: PTH123 - of a descriptor
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise _BadFileError("is no regular file")
            return opened.read(_SIZE_LIMIT + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _BadFileError(f"cannot be read: {error.strerror}") from None


def _look_for_unknown(
    table: Mapping[str, Any], keys: Sequence[str], prefix: str, file: Path, told: list[str]
) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            told.append(f"{file}: {prefix}{key} is not known, and does nothing{hint}")


def _host(url: str, table: Mapping[str, Any], prefix: str, folder: Path) -> RegistryHost:
    try:
        override = _typed(table, "override_path", bool, "true or false", False)
        return RegistryHost(
            _base(url, override), _capabilities(table.get("capabilities")), override, _options(table, folder)
        )
    except _BadFileError as error:
        raise _BadFileError(f"{prefix}{error}") from None


def _base(url: str, override: bool) -> str:
    if not url:
        return ""
    url = (url if "://" in url else f"https://{url}").rstrip("/")
    # The client says /v2 itself.
    return url if override else url.removesuffix("/v2")


def _capabilities(value: object) -> frozenset[str]:
    if value is None or value == []:
        return EVERYTHING
    words = _strings(value, "capabilities")
    for word in words:
        if word.lower() not in EVERYTHING:
            raise _BadFileError(f"capabilities: {word!r} is none; there are pull, resolve and push")
    return frozenset(map(str.lower, words))


def _options(table: Mapping[str, Any], folder: Path) -> HostOptions | None:
    authorities = table.get("ca")
    timeout = _typed(table, "dial_timeout", str, 'a duration such as "5s"', "")
    proxy = _typed(table, "proxy", str, "a URL", "")
    if proxy:
        try:
            Proxy.parse(proxy, "proxy")
        except InvalidEndpointError as error:
            raise _BadFileError(str(error)) from None
    options = HostOptions(
        skip_verify=_typed(table, "skip_verify", bool, "true or false", False),
        extra_ca_files=()
        if authorities is None
        else tuple(folder / one for one in _strings(authorities, "ca")),
        client_certificates=_pairs(table.get("client"), folder),
        headers=_headers(_typed(table, "header", dict, "a table of strings", {})),
        connect_timeout=_seconds(timeout) if timeout else None,
        proxy=proxy or None,
    )
    return None if options == HostOptions() else options


def _pairs(value: object, folder: Path) -> tuple[tuple[Path, Path | None], ...]:
    """Read ``client``: a file, files, or pairs of a certificate and a key, which may be empty."""
    if value is None:
        return ()
    found: list[tuple[Path, Path | None]] = []
    for one in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        texts = [one, ""] if isinstance(one, str) else one
        if not (isinstance(texts, list) and len(texts) == 2 and all(isinstance(text, str) for text in texts)):
            raise _BadFileError(
                "client: must be a path, a list of paths, or a list of pairs [certificate, key]"
            )
        found.append((folder / texts[0], folder / texts[1] if texts[1] else None))
    return tuple(found)


def _headers(table: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    found = []
    for name, value in table.items():
        if not _HEADER_NAME.fullmatch(name):
            raise _BadFileError(f"header: {name!r} can be no header's name")
        for text in _strings(value, f"header.{name}"):
            if not text.isprintable() or not text.isascii():
                raise _BadFileError(f"header.{name}: must be printable ASCII")
            found.append((name, text))
    return tuple(found)


def _seconds(text: str) -> float:
    """Read a duration as Go writes them."""
    if not _DURATION.fullmatch(text):
        raise _BadFileError(f'dial_timeout: {text!r} is no duration; write "5s" or "500ms"')
    total = sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9.]+)(h|ms|us|µs|ns|m|s)", text))
    if not 0 < total < 86400:
        raise _BadFileError(f"dial_timeout: {text!r} must be more than nothing, and less than a day")
    return total


def _strings(value: object, key: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(one, str) and one for one in values):
        raise _BadFileError(f"{key}: must be a string, or a list of strings")
    return values


def _typed(table: Mapping[str, Any], key: str, kind: type, expected: str, default: Any) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise _BadFileError(f"{key}: is {str(value)[:80]!r}, but must be {expected}")
    return value


def _certificates(folder: Path) -> HostOptions | None:
    """Return what Docker's rule makes of a directory without hosts.toml. Raises _BadFileError."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise _BadFileError(f"cannot be read: {error.strerror}") from None
    pairs: list[tuple[Path, Path | None]] = []
    for name in names:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            if key not in names:
                raise _BadFileError(f"has no {key} beside {name}; a client certificate needs its key")
            pairs.append((folder / name, folder / key))
    trusted = tuple(folder / name for name in names if name.endswith(".crt"))
    options = HostOptions(extra_ca_files=trusted, client_certificates=tuple(pairs))
    return None if options == HostOptions() else options
