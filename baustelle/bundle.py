"""What an image says about how to run it, and the command that comes of it.

Spec: https://github.com/opencontainers/image-spec/blob/main/config.md; the rules for command and arguments:
https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/
"""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from baustelle.errors import ImageConfigError
from registratur.fields import clean

_REAL_TIME = re.compile(r"SIGRT(MIN|MAX)(?:(?:\+|-|PLUS|MINUS)(\d+))?")


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """What runs in a container, and how, where its creator does not say otherwise."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    """`NAME=value` each."""
    working_dir: str = ""
    user: str = ""
    """`user[:group]`, each a name in the image's own passwd and group files or a number."""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, document: Mapping[str, object]) -> Self:
        """Read the `config` part of an image config document; there may be none.

        Keys match in any case, as in Go, with which the formats were defined: FreeBSD's official images
        spell `cmd` in lower case. Raises ImageConfigError for values of the wrong type.
        """
        run = _fold(_mapping(_fold(document), "config"))
        for name in _strings(run, "Env"):
            if name.startswith("="):
                raise ImageConfigError(f"image config: Env {name!r} is not of the form NAME=value")
        return cls(
            entrypoint=_strings(run, "Entrypoint"),
            cmd=_strings(run, "Cmd"),
            env=_strings(run, "Env"),
            working_dir=_string(run, "WorkingDir"),
            user=_string(run, "User"),
            stop_signal=_string(run, "StopSignal"),
            volumes=tuple(_text(path, "Volumes") for path in _mapping(run, "Volumes")),
        )


def command(image: ImageDefaults, command: Sequence[str], args: Sequence[str]) -> list[str]:
    """The argument vector of a container, from its `command` and `args` and the image.

    A command replaces the image's entrypoint and drops its cmd; args replace the cmd.
    Raises ImageConfigError if nothing at all is left to run.
    """
    argv = [*command, *args] if command else [*image.entrypoint, *(args or image.cmd)]
    if not argv:
        raise ImageConfigError(
            "nothing to run: the image has neither entrypoint nor cmd; give the container a command"
        )
    if not argv[0]:
        raise ImageConfigError("nothing to run: the first word of the command is empty")
    return argv


def signal_number(name: str | int) -> int:
    """The number of a signal here: `SIGTERM`, `term`, `15`, 15, `SIGRTMIN+3` (in CRI `SIGRTMINPLUS3`).

    Raises ImageConfigError, a ValueError, for what is no signal of this system.
    """
    text = str(name).strip().upper()
    highest = int(getattr(signal, "SIGRTMAX", signal.NSIG - 1))
    if text.isascii() and text.isdigit():
        number = int(text)
    else:
        text = text if text.startswith("SIG") else f"SIG{text}"
        if real_time := _REAL_TIME.fullmatch(text):
            lowest = int(getattr(signal, "SIGRTMIN", 0))
            offset = int(real_time[2] or 0)
            number = lowest + offset if real_time[1] == "MIN" else highest - offset
            number = number if lowest <= number else 0
        else:
            number = int(signal.Signals.__members__.get(text, 0))
    if not 0 < number <= highest:
        raise ImageConfigError(
            f"{name!r} is no signal of this system: expected a name such as SIGTERM or 1 to {highest}"
        )
    return number


def _fold(document: Mapping[str, object]) -> dict[str, object]:
    return {key.casefold(): value for key, value in document.items() if value is not None}


def _mapping(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key.casefold(), {})
    if not isinstance(value, Mapping):
        raise ImageConfigError(f"image config: {key} must be an object, not {value!r:.80}")
    return value


def _strings(document: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = document.get(key.casefold(), [])
    if isinstance(value, str):  # Docker's oldest configs
        return (value,)
    if not isinstance(value, list):
        raise ImageConfigError(f"image config: {key} must be a list of strings, not {value!r:.80}")
    return tuple(_text(item, key) for item in value)


def _string(document: Mapping[str, object], key: str) -> str:
    return _text(document.get(key.casefold(), ""), key)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise ImageConfigError(f"image config: {key} must be a string, not {value!r:.80}")
    if "\0" in value:
        raise ImageConfigError(f"image config: {key} has a NUL byte: no process can be given it")
    return clean(value)
