"""Docker's config.json, written: a registry's credentials put in, or taken out. For command lines.

Whatever else the file says stays, known or not. Where it names a credential helper for the registry, the secret goes there,
and the file gets an empty entry, as from Docker's own command.

Source: https://docs.docker.com/reference/cli/docker/login/.
"""

import asyncio
import base64
import contextlib
import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from registratur import credential_helpers
from registratur.docker_config import DockerConfig, is_for, server_name
from registratur.errors import MalformedContentError

_SIZE_LIMIT = 4 * 1024 * 1024  # bytes
_AUTHS = "auths"
_OURS = frozenset({"auth", "username", "password", "identitytoken", "registrytoken"})
"""The keys of an entry that a login replaces, in lower case: Go, which wrote the file, knows no case."""


async def log_in(file: Path, registry: str, user: str, password: str) -> str:
    """Write down a registry's user and password; return the helper that has them, "" if the file does.

    Raises MalformedContentError for a file that is not Docker's, UnauthorizedError where the helper fails, OSError.
    """
    data = await asyncio.to_thread(_read, file)
    helper = DockerConfig.parse(data, str(file)).helper(registry) or ""
    if helper:
        await credential_helpers.store(helper, server_name(registry), user, password)
    pair = "" if helper else base64.b64encode(f"{user}:{password}".encode()).decode()
    # A helper takes its time: what others have written meanwhile is to stay.
    await asyncio.to_thread(lambda: _write(file, with_entry(_read(file), str(file), registry, pair)))
    return helper


async def log_out(file: Path, registry: str) -> bool:
    """Forget a registry's user and password; False if there were none.

    Raises MalformedContentError for a file that is not Docker's, UnauthorizedError where the helper fails, OSError.
    """
    known = DockerConfig.parse(await asyncio.to_thread(_read, file), str(file))
    helper, server = known.helper(registry), server_name(registry)
    had = helper is not None and await credential_helpers.ask(helper, server) is not None
    if helper is not None and had:
        await credential_helpers.erase(helper, server)
    shorter = await asyncio.to_thread(lambda: without_entry(_read(file), str(file), registry))
    if shorter is not None:
        await asyncio.to_thread(_write, file, shorter)
    return had or shorter is not None


def with_entry(data: bytes, source: str, registry: str, auth: str) -> bytes:
    """Return the text of a file with an entry for a registry, in place of those that it had.

    `auth` is base64 of ``user:password``; "" says that a helper knows. Raises MalformedContentError, which shows no secret.
    """
    document, entries = _parse(data, source)
    kept: dict[str, Any] = {}
    for key in [key for key in entries if is_for(key, registry)]:
        kept |= {
            name: value for name, value in (entries.pop(key) or {}).items() if name.casefold() not in _OURS
        }
    entries[server_name(registry)] = kept | ({"auth": auth} if auth else {})
    return _text(document, source)


def without_entry(data: bytes, source: str, registry: str) -> bytes | None:
    """Return the text of a file without its entries for a registry; None if it has none.

    Raises MalformedContentError, which shows no secret.
    """
    document, entries = _parse(data, source)
    doomed = [key for key in entries if is_for(key, registry)]
    for key in doomed:
        del entries[key]
    return _text(document, source) if doomed else None


def _parse(data: bytes, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a file's document, and the part of it that has the entries."""
    DockerConfig.parse(data, source)  # which says what is wrong
    try:
        document: dict[str, Any] = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedContentError(f"{source} has what is no JSON, and cannot be written anew") from error
    # Go takes the last of several, however they are spelt.
    said = (
        key for key, value in reversed(document.items()) if key.casefold() == _AUTHS and value is not None
    )
    if (key := next(said, None)) is None:
        document[key := _AUTHS] = {}
    return document, document[key]


def _text(document: dict[str, Any], source: str) -> bytes:
    try:
        return json.dumps(document, indent="\t", allow_nan=False).encode() + b"\n"
    except (ValueError, RecursionError) as error:
        raise MalformedContentError(
            f"{source} has a number that is none here, and cannot be written anew"
        ) from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _read(file: Path) -> bytes:
    """Return what a file says; that of one that is missing or empty is an empty document."""
    try:
        # O_NONBLOCK: nobody waits for a FIFO.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b"{}"
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(file))
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            data = opened.read(_SIZE_LIMIT + 1)
    finally:
        os.close(descriptor)
    if len(data) > _SIZE_LIMIT:
        raise MalformedContentError(f"{file} has more than {_SIZE_LIMIT} bytes, which no such file has")
    return data if data.strip() else b"{}"


def _write(file: Path, data: bytes) -> None:
    """Put a file into place as a whole, for its owner alone. A link to it stays one. Raises OSError, with nothing left."""
    try:
        target = file.resolve()
    except RuntimeError:  # what Python before 3.13 says of links in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(file)) from None
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as opened:
            with contextlib.suppress(FileNotFoundError):
                before = target.stat()
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            opened.write(data)
            opened.flush()
            os.fsync(descriptor)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
