"""`python -m baustelle build`: build an image into an OCI layout, and into a tree for a static web server."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from baustelle.build import build
from baustelle.errors import BaustelleError
from baustelle.layout import ImageLayout, export_registry_tree, with_tag
from registratur import InvalidReferenceError, Platform, Reference


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m baustelle", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="build an image from a Containerfile and a directory")
    command.add_argument("context", type=Path, metavar="CONTEXT", help="directory that COPY takes from")
    command.add_argument("-f", "--file", type=Path, help="default: CONTEXT/Containerfile")
    command.add_argument("-t", "--tag", action="append", default=[], help="name:tag, repeatable")
    command.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="value of an ARG")
    command.add_argument("--layout", type=Path, required=True, help="OCI layout, made if missing")
    command.add_argument("--tree", type=Path, help="also write what a registry would serve, below TREE/v2")
    command.add_argument("--platform", type=Platform.parse, help="os/architecture; default: this machine's")
    command.add_argument("--digest", choices=("sha256", "sha512"), default="sha256", help="of what is built")
    options = parser.parse_args(arguments)
    values = {}
    for pair in options.arg:
        name, equals, value = pair.partition("=")
        if not equals:
            parser.error(f"--arg {pair}: expected NAME=VALUE")
        values[name] = value
    try:
        references = [(name, Reference.parse(name)) for name in options.tag]
        layout = ImageLayout(options.layout, options.digest)
        image = build(
            options.file or options.context / "Containerfile",
            options.context,
            layout=layout,
            args=values,
            platform=options.platform,
        )
        layout.tag(image, *(with_tag(name) for name, _ in references))
        if options.tree is not None:
            for _, reference in references:
                tag = reference.tag or "latest"
                export_registry_tree(layout, image, reference.repository, tag, options.tree)
    except (BaustelleError, InvalidReferenceError, OSError) as error:
        print(f"baustelle: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(image.manifest_blob.digest)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
