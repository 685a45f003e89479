"""`image pull`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cri.commands.image import credentials
from cri.commands.image.errors import CommandError, DaemonError
from cri.commands.image.text import complain, emit, size
from registratur import Reference

if TYPE_CHECKING:
    from cri.commands.image.daemon import Daemon


def pull(daemon: Daemon, names: Sequence[str], creds_file: Path | None, *, quiet: bool) -> bool:
    """Have images pulled, one after the other, and tell of each; False if one could not be."""
    is_well = True
    for name in names:
        try:
            _pull(daemon, name, creds_file, quiet=quiet)
        except CommandError as error:
            is_well = False
            text = str(error)
            complain(text if name in text else f"pull {name}: {text}")
        except KeyboardInterrupt:
            complain(f"pull {name}: interrupted; what the daemon has begun it goes on with")
            raise
    return is_well


def _pull(daemon: Daemon, name: str, creds_file: Path | None, *, quiet: bool) -> None:
    known = credentials.for_image(name, creds_file)
    before = daemon.image(name)
    began = time.monotonic()
    try:
        image_id = daemon.pull(name, known)
    except DaemonError as error:
        if error.code != "UNAUTHENTICATED":
            raise
        registry = Reference.parse(name).registry
        remedy = f"log in with: cri-jails image login {registry}"
        if known is not None:
            remedy = f"those in {credentials.file_of(creds_file)} were not enough; {remedy}"
        raise DaemonError(f"{error}; {remedy}", error.code) from error
    seconds = time.monotonic() - began
    if quiet:
        emit(f"{image_id}\n")
    elif before is not None and before.id == image_id:
        emit(f"{Reference.parse(name)} is up to date: {image_id}\n")
    else:
        image = daemon.image(image_id)
        bytes_ = "" if image is None else f"{size(image.size)} "
        emit(f"pulled {Reference.parse(name)}: {image_id} ({bytes_}in {seconds:.1f} s)\n")
