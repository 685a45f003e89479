"""Where credentials are kept, and which are for an image: Docker's config.json, and the helpers that it names."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from cri.commands.image.errors import CommandError
from registratur import Credentials, DockerConfig, Reference, RegistryError
from registratur.credential_helpers import ask


def file_of(given: Path | None) -> Path:
    """The file to look at: the one that was given, or Docker's own. Raises CommandError where nobody knows."""
    if given is not None:
        return given
    if directory := os.environ.get("DOCKER_CONFIG"):
        return Path(directory, "config.json")
    try:
        return Path.home() / ".docker/config.json"
    except RuntimeError:
        raise CommandError(
            "this user has no home directory to keep credentials in: give a file with --creds-file"
        ) from None


def for_image(name: str, given: Path | None) -> Credentials | None:
    """What is known for an image's registry, bound to that. Raises CommandError, also where a file that was given is missing."""
    file = file_of(given)
    try:
        reference = Reference.parse(name)
        config = DockerConfig.read(file)
        found = asyncio.run(config.find(reference.registry, reference.repository, ask))
    except FileNotFoundError:
        if given is None:
            return None
        raise CommandError(f"there is no file {file}; cri-jails image login makes it") from None
    except OSError as error:
        raise CommandError(f"the credentials in {file} cannot be read: {error.strerror}") from error
    except RegistryError as error:
        raise CommandError(str(error)) from error
    return None if found is None else replace(found, server_address=reference.registry)
