"""Docker's credential helpers: programs ``docker-credential-NAME`` that know secrets. For command lines.

Nothing else of this package starts programs or imports this: what serves others cannot wait for a helper that may ask somebody
for a fingerprint.

Source: https://github.com/docker/docker-credential-helpers, README, section Development.
"""

import asyncio
import json
import re
import shutil

from registratur.credentials import Credentials
from registratur.errors import MalformedContentError, UnauthorizedError
from registratur.fields import Fields

TIMEOUT = 60.0
"""Seconds; it may have to ask somebody."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_USER = "<token>"  # noqa: S105 - says that the secret is an identity token
_NOT_FOUND = "credentials not found in native keychain"
_SHOWN = 200  # characters of what a helper says


async def ask(name: str, server: str, timeout: float = TIMEOUT) -> Credentials | None:  # noqa: ASYNC109 - kills the helper, too
    """Return what the helper has for `server`, a host or Docker Hub's URL; None if that is nothing.

    Raises UnauthorizedError, which never shows what was answered in place of an error.
    """
    found = await _run(name, "get", server, server.encode(), timeout)
    return None if found is None else _read(*found, server)


async def store(name: str, server: str, user: str, secret: str, timeout: float = TIMEOUT) -> None:  # noqa: ASYNC109
    """Have the helper keep a password for `server`, in place of what it had. Raises UnauthorizedError, without the password."""
    entry = json.dumps({"ServerURL": server, "Username": user, "Secret": secret})
    if await _run(name, "store", server, entry.encode(), timeout, secret) is None:
        raise UnauthorizedError(f"{server}: docker-credential-{name} has not kept the credentials")


async def erase(name: str, server: str, timeout: float = TIMEOUT) -> None:  # noqa: ASYNC109
    """Have the helper forget `server`; succeeds if it knows nothing of it. Raises UnauthorizedError."""
    await _run(name, "erase", server, server.encode(), timeout)


async def _run(
    name: str,
    verb: str,
    server: str,
    data: bytes,
    seconds: float,
    secret: str = "",
) -> tuple[bytes, str] | None:
    """Run a helper and return what it says, and its path; None where it knows no such server. Raises UnauthorizedError."""
    program = f"docker-credential-{name}"
    path = shutil.which(program) if _NAME.fullmatch(name) else None
    if path is None:
        raise UnauthorizedError(
            f"{server}: the credential helper {program!r} is not there; install it, or take it out of config.json"
        )
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            verb,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise UnauthorizedError(f"{server}: {path} cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(seconds):
            said, complaint = await process.communicate(data)
    except TimeoutError:
        raise UnauthorizedError(f"{server}: {path} has not answered within {seconds:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = " ".join((said + b" " + complaint).decode(errors="replace").split())
        if _NOT_FOUND in text:
            return None
        text = text.replace(secret, "<secret>") if secret else text
        raise UnauthorizedError(f"{server}: {path} failed with {process.returncode}: {text[:_SHOWN]}")
    return said, path


def _read(said: bytes, path: str, server: str) -> Credentials | None:
    try:
        answer = Fields.parse("answer", said)
        user, secret = answer.string("Username"), answer.string("Secret")
    except MalformedContentError:
        raise UnauthorizedError(f"{server}: {path} answers with what is no credentials") from None
    if not secret:
        return None
    if user == _TOKEN_USER:
        return Credentials(identity_token=secret, server_address=server)
    return Credentials(user, secret, server_address=server)
