"""What `cri-jails image` takes on its command line. Imports argparse only: `cri-jails --help` waits for it."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = "Exit status: 0 if all went well, 1 if something did not, 2 for wrong usage or configuration, 130 if interrupted."


def add(parser: argparse.ArgumentParser) -> None:
    """Add the actions to the parser of `cri-jails image`."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    config = _config()
    daemon, keys = _daemon(config), _credentials()

    def make(
        name: str, text: str, *parents: argparse.ArgumentParser, more: str = ""
    ) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            parents=parents,
            help=text,
            description=f"{text[:1].upper()}{text[1:]}. {more}".rstrip(),
            epilog=EPILOG,
            allow_abbrev=False,
        )

    pull = make(
        "pull",
        "bring images here",
        daemon,
        keys,
        more="The daemon pulls; it is given the credentials that Docker's config.json, or a credential helper "
        "which that names, has for the registry, and else takes its own.",
    )
    pull.add_argument("images", nargs="+", metavar="IMAGE", help="name with tag or digest")
    pull.add_argument("-q", "--quiet", action="store_true", help="print ids only")

    ls = make(
        "ls",
        "list images",
        daemon,
        more="NAME is a repository, or a name with tag or digest, in full or as for pull, in which * and ? stand for "
        "any characters; or the beginning of an id. Images are shown that fit one of them.",
    )
    ls.add_argument("names", nargs="*", metavar="NAME", help="show these only")
    ls.add_argument("--digests", action="store_true", help="show digests too, each in a line of its own")
    _no_trunc(ls)
    how = ls.add_mutually_exclusive_group()
    _output(how, "table", "json", "name")
    how.add_argument("-q", "--quiet", action="store_true", help="print ids only")

    _images(make("inspect", "print all that is known of an image, its config included, as JSON", daemon))

    history = make("history", "show how an image was made, the last step first", daemon)
    _images(history)
    _no_trunc(history)
    _output(history, "table", "json")

    _images(
        make(
            "rm",
            "remove images, each with all its names",
            daemon,
            more="What a container uses of an image stays until the container is gone.",
        ),
        several=True,
    )

    prune = make(
        "prune",
        "remove images that have no tag and that no container uses",
        daemon,
        more="Pinned images stay.",
    )
    prune.add_argument("-a", "--all", action="store_true", help="also those that have a tag")
    prune.add_argument("--dry-run", action="store_true", help="only say which these are")

    _output(make("df", "show what images and containers take on disk", daemon), "table", "json")

    login = make(
        "login",
        "write credentials for a registry into Docker's config.json, once the registry has taken them",
        config,
        keys,
        more="Where that names a credential helper, they go there. Asks for what is not given, on a terminal.",
    )
    _registry(login)
    login.add_argument("-u", "--username", metavar="USER", help="default: asked for")
    login.add_argument("--password-stdin", action="store_true", help="read the password from standard input")

    _registry(make("logout", "take credentials for a registry out of Docker's config.json again", keys))


def _config() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--config", type=Path, metavar="FILE", help="the daemon's configuration in TOML")
    return parent


def _daemon(config: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False, parents=[config])
    parent.add_argument(
        "--address",
        metavar="SOCKET",
        help="the daemon's socket, a path or unix://PATH (default: as the daemon itself is configured)",
    )
    return parent


def _credentials() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--creds-file",
        type=Path,
        metavar="FILE",
        help="Docker's config.json (default: the one in $DOCKER_CONFIG, or else in ~/.docker)",
    )
    return parent


def _images(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    text = "name with tag or digest, or id"
    if several:
        parser.add_argument("images", nargs="+", metavar="IMAGE", help=text)
    else:
        parser.add_argument("image", metavar="IMAGE", help=text)


def _registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", help="host or host:port, or docker.io")


def _no_trunc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-trunc", action="store_true", help="cut nothing off")


def _output(parser: argparse._ActionsContainer, *formats: str) -> None:
    parser.add_argument("-o", "--output", choices=formats, default=formats[0], help=f"default: {formats[0]}")
