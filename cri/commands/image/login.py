"""`image login` and `image logout`."""

from __future__ import annotations

import asyncio
import getpass
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

from cri import registries
from cri.commands.image.credentials import file_of
from cri.commands.image.errors import CommandError
from cri.commands.image.text import complain, emit
from cri.config import Config
from registratur import Client, Credentials, HostsConfig, RegistryError
from registratur.docker_config_file import log_in, log_out
from registratur.names import registry_name

_LONGEST = 64 * 1024
"""Characters of a password; tokens of clouds have thousands."""


def login(
    config: Config, registry: str, user: str | None, creds_file: Path | None, *, password_stdin: bool
) -> None:
    """Have a registry look at credentials, and write them down. Raises CommandError; no message has the password."""
    name, file = _name(registry), file_of(creds_file)
    # What the daemon keeps for itself is not asked for.
    hosts, problems = registries.hosts(replace(config, image=replace(config.image, credentials_file=None)))
    for problem in problems:
        complain(f"a part of the configuration of registries cannot be used: {problem}")
    user = _user(user, is_asked=not password_stdin)
    password = _password(user, name, is_asked=not password_stdin)
    try:
        is_checked = asyncio.run(_check(hosts, name, Credentials(user, password)))
        helper = asyncio.run(log_in(file, name, user, password))
    except RegistryError as error:
        raise CommandError(f"login to {name}: {error}") from error
    except OSError as error:
        raise _unwritten(file, error) from error
    where = f"the credential helper {helper}" if helper else str(file)
    emit(f"logged in to {name} as {user}; {where} has the credentials\n")
    if not is_checked:
        emit(f"{name} lets anybody in, and has not looked at them\n")


def logout(registry: str, creds_file: Path | None) -> None:
    """Forget the credentials for a registry. Raises CommandError, also if there are none."""
    name, file = _name(registry), file_of(creds_file)
    try:
        had = asyncio.run(log_out(file, name))
    except RegistryError as error:
        raise CommandError(f"logout from {name}: {error}") from error
    except OSError as error:
        raise _unwritten(file, error) from error
    if not had:
        raise CommandError(f"there are no credentials for {name} in {file}: nobody is logged in there")
    emit(f"logged out from {name}\n")


async def _check(hosts: HostsConfig, name: str, credentials: Credentials) -> bool:
    async with Client(hosts) as client:
        return await client.check(name, credentials)


def _name(registry: str) -> str:
    try:
        return registry_name(registry)
    except RegistryError as error:
        raise CommandError(str(error)) from error


def _user(given: str | None, *, is_asked: bool) -> str:
    user = given
    if user is None:
        if not is_asked or not sys.stdin.isatty():
            raise CommandError("who logs in? Give --username")
        sys.stderr.write("Username: ")
        sys.stderr.flush()
        user = sys.stdin.readline().rstrip("\n")
    if not user or ":" in user or _has_controls(user):
        raise CommandError(
            f"{user!r} is no user name: it must have a character, and no colon or control character (RFC 7617)"
        )
    return user


def _password(user: str, name: str, *, is_asked: bool) -> str:
    if not is_asked:
        try:
            password = sys.stdin.buffer.read(_LONGEST + 1).decode()
        except UnicodeDecodeError:
            raise CommandError("the password on standard input is not UTF-8") from None
        password = password.removesuffix("\n").removesuffix("\r")
    elif sys.stdin.isatty():
        password = getpass.getpass(f"Password of {user} at {name}: ")
    else:
        raise CommandError(
            "there is no terminal to ask for the password at: give it on standard input, with --password-stdin"
        )
    if not password or len(password) > _LONGEST or _has_controls(password):
        raise CommandError(
            f"the password is empty, longer than {_LONGEST} characters, or has control characters (more than one line?): "
            "it cannot be used"
        )
    return password


def _has_controls(text: str) -> bool:
    """Whether there is what neither user nor password may have (RFC 7617, section 2)."""
    return any(unicodedata.category(mark) == "Cc" for mark in text)


def _unwritten(file: Path, error: OSError) -> CommandError:
    return CommandError(f"{file}: {error.strerror or error}; the credentials there are as they were")
