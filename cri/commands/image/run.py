"""What the actions of `cri-jails image` do, and what status each ends with."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cri import config as configuration
from cri.commands.image.errors import CommandError
from cri.commands.image.text import complain
from cri.config import Config, ConfigError

if TYPE_CHECKING:
    from cri.commands.image.daemon import Daemon

INTERRUPTED = 130
"""As a shell says of SIGINT."""


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; the exit status, see `arguments.EPILOG`."""
    try:
        _check_text(options)
        is_well = _without_daemon(options) if options.action in ("login", "logout") else _with_daemon(options)
        sys.stdout.flush()
    except ConfigError as error:
        complain(str(error))
        return 2
    except CommandError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever has read has had enough. At its end Python would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0 if is_well else 1


def _without_daemon(options: argparse.Namespace) -> bool:
    from cri.commands.image import login  # noqa: PLC0415 - a registry's client, and only needed here

    if options.action == "logout":
        login.logout(options.registry, options.creds_file)
    else:
        config = _config(options)
        login.login(
            config,
            options.registry,
            options.username,
            options.creds_file,
            password_stdin=options.password_stdin,
        )
    return True


def _with_daemon(options: argparse.Namespace) -> bool:
    from cri.commands.image.daemon import Daemon  # noqa: PLC0415 - gRPC, which takes its time

    with Daemon(_socket(options)) as daemon:
        return _done(daemon, options)


def _done(daemon: Daemon, options: argparse.Namespace) -> bool:
    from cri.commands.image import disk_use, inspection, listing, removal  # noqa: PLC0415

    match options.action:
        case "pull":
            from cri.commands.image import pull  # noqa: PLC0415 - the registry's names

            return pull.pull(daemon, options.images, options.creds_file, quiet=options.quiet)
        case "rm":
            return removal.rm(daemon, options.images)
        case "prune":
            return removal.prune(daemon, everything=options.all, dry_run=options.dry_run)
        case "ls":
            listing.ls(
                daemon,
                options.names,
                options.output,
                quiet=options.quiet,
                digests=options.digests,
                no_trunc=options.no_trunc,
            )
        case "inspect":
            inspection.inspect(daemon, options.image)
        case "history":
            inspection.history(daemon, options.image, options.output, no_trunc=options.no_trunc)
        case "df":
            disk_use.df(daemon, options.output)
    return True


def _config(options: argparse.Namespace) -> Config:
    return configuration.load(options.config)


def _socket(options: argparse.Namespace) -> Path:
    if options.address is None:
        return _config(options).socket
    return Path(options.address.removeprefix("unix://")).absolute()


def _check_text(options: argparse.Namespace) -> None:
    """Raise CommandError for a name that no message could have."""
    for value in vars(options).values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= mark <= "\udfff" for mark in text):
                raise CommandError(f"{text!a} is not UTF-8")
