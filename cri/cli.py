"""The command `cri-jails`. Imports the standard library and the configuration only, until a command needs more."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cri import config as configuration
from cri._version import __version__
from cri.commands.image import arguments as image_arguments
from cri.config import Config, ConfigError
from cri.settings import REGISTRIES, SETTINGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 for a failure, 2 for wrong usage or configuration."""
    options = _parser().parse_args(arguments)
    if options.command == "version":
        sys.stdout.write(f"cri-jails {__version__}\n")
        return 0
    if options.command == "image":
        from cri.commands.image.run import run  # noqa: PLC0415 - only needed here

        return run(options)
    try:
        config = configuration.load(options.config, flags=_flags(options))
    except ConfigError as error:
        sys.stderr.write(f"cri-jails: {error}\n")
        return 2
    if options.command == "config":
        sys.stdout.write(configuration.dump(config))
        return 0
    if options.command == "doctor":
        return _doctor(config, as_json=options.json, strict=options.strict)
    return _serve(config, lambda: configuration.load(options.config, flags=_flags(options)))


def _doctor(config: Config, *, as_json: bool, strict: bool) -> int:
    from cri import doctor  # noqa: PLC0415 - drivers, and only needed here
    from cri.sandbox.host import HostError  # noqa: PLC0415

    try:
        findings = doctor.examine(config)
    except HostError as error:
        sys.stderr.write(f"cri-jails: {error}\n")
        return 2
    if as_json:
        sys.stdout.write(doctor.render_json(findings))
    else:
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else None
        colour = terminal and not os.environ.get("NO_COLOR")
        sys.stdout.write(doctor.render_table(findings, width=width, colour=colour))
    return doctor.exit_status(findings, strict=strict)


def _serve(config: Config, read: Callable[[], Config]) -> int:
    for number in (signal.SIGHUP, signal.SIGUSR1):
        # Until the daemon answers them they would end it. No SIG_IGN: whatever is started would inherit that.
        signal.signal(number, lambda *_: None)
    # structlog imports it wherever it is installed, for tracebacks that would show secrets: three megabytes for nothing.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from cri import log  # noqa: PLC0415 - heavy, and only needed here
    from cri.server import run  # noqa: PLC0415

    log.configure(config.log.level, config.log.format)
    return run(config, read)


def _parser() -> argparse.ArgumentParser:
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("--config", type=Path, metavar="FILE", help="configuration in TOML")
    group = settings.add_argument_group(
        "settings", "Each goes before its environment variable, which goes before the file."
    )
    for setting in (*SETTINGS, REGISTRIES):
        default = f" (default: {_shown(setting.default)})" if setting.default else ""
        group.add_argument(
            setting.flag,
            dest=setting.key,
            metavar="VALUE",
            help=f"{setting.help}{default}".replace("%", "%%"),
        )

    parser = argparse.ArgumentParser(
        prog="cri-jails", description="The Kubernetes CRI server for FreeBSD nodes.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "serve", parents=[settings], help="run the daemon in the foreground", allow_abbrev=False
    )
    config = commands.add_parser("config", help="look at the configuration", allow_abbrev=False)
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser(
        "dump",
        parents=[settings],
        help="print the effective configuration and where each value is from",
        allow_abbrev=False,
    )
    doctor = commands.add_parser(
        "doctor",
        parents=[settings],
        help="look for what is wrong with this node, and name what mends it",
        description="Look for what is wrong with this node, and name what mends it. Changes nothing.",
        epilog="Exit status: 0 if there is no failure, 1 if there is one, 2 if the node could not be examined.",
        allow_abbrev=False,
    )
    doctor.add_argument("--json", action="store_true", help="for programs instead of people")
    doctor.add_argument("--strict", action="store_true", help="let warnings count as failures")
    image_arguments.add(
        commands.add_parser(
            "image",
            help="pull, look at and remove images",
            description="Pull, look at and remove images, by a running daemon.",
            allow_abbrev=False,
        )
    )
    commands.add_parser("version", help="print the version")
    return parser


def _flags(options: argparse.Namespace) -> dict[str, str]:
    """The settings that were given as flags, by key."""
    given = vars(options)
    return {
        setting.key: given[setting.key]
        for setting in (*SETTINGS, REGISTRIES)
        if given.get(setting.key) is not None
    }


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
