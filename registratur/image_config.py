"""The image configuration (OCI image-spec config.md; Docker's image JSON reads the same)."""

from dataclasses import dataclass

from registratur.digest import parse_digest
from registratur.errors import InvalidDigestError, MalformedContentError, UnsupportedContentError
from registratur.fields import Fields
from registratur.manifest import read_platform
from registratur.platform import Platform

MAX_ID = (1 << 32) - 2
"""The highest user or group id: the one above stands for "none" in system calls."""

LONGEST_USER = 1024
LONGEST_PATH = 4095
"""Bytes: longer ones cannot be used, and every list of images shows the user."""


_RUN = ("user", "env", "entrypoint", "cmd", "workingdir", "exposedports", "volumes", "stopsignal")

is_read = frozenset(
    {
        *((key,) for key in ("architecture", "os", "os.version", "variant", "created", "author")),
        *(("config",), *(("config", key) for key in _RUN)),
        *(("rootfs",), ("rootfs", "diff_ids")),
    }
).__contains__
"""The members of a config that mean something to us; the history and the labels are for people (`long_json.loads`)."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image wants to run, as whom, and which layers make its root filesystem.

    `user` is ``user[:group]``, each a name or a number. `diff_ids` are the digests of the *uncompressed*
    layers, lowest first. An empty `entrypoint` and `cmd` is legal: such an image needs a command from
    whoever runs it.
    """

    platform: Platform
    diff_ids: tuple[str, ...]
    created: str = ""
    author: str = ""
    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""

    @classmethod
    def parse(cls, data: bytes, what: str = "image config") -> "ImageConfig":
        """Read a config blob; keys match in any case, as in Go.

        Raises MalformedContentError, and UnsupportedContentError when it lists no root filesystem.
        """
        document = Fields.parse(what, data, is_read)
        if "rootfs" not in document:
            raise UnsupportedContentError(
                f"{what} has no 'rootfs': this is an artifact, not a container image"
            )
        run = document.child("config")
        made = cls(
            platform=read_platform(document),
            diff_ids=_diff_ids(document.child("rootfs")),
            created=document.string("created"),
            author=document.string("author"),
            user=run.string("User"),
            env=run.strings("Env"),
            entrypoint=run.strings("Entrypoint"),
            cmd=run.strings("Cmd"),
            working_dir=run.string("WorkingDir"),
            exposed_ports=run.keys("ExposedPorts"),
            volumes=run.keys("Volumes"),
            stop_signal=run.string("StopSignal"),
        )
        _check(made, run.what)
        return made


def _check(config: ImageConfig, what: str) -> None:
    """See that what the image wants to run can be: no kernel takes a NUL byte. Raises MalformedContentError."""
    texts = {
        "User": (config.user,),
        "Env": config.env,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "WorkingDir": (config.working_dir,),
        "Volumes": config.volumes,
        "StopSignal": (config.stop_signal,),
    }
    for key, values in texts.items():
        for value in values:
            if "\0" in value:
                raise MalformedContentError(f"{what}: {key!r} has a NUL byte: no process can be given it")
    for key, longest in (("User", LONGEST_USER), ("WorkingDir", LONGEST_PATH), ("StopSignal", LONGEST_USER)):
        if (size := len(texts[key][0].encode())) > longest:
            raise MalformedContentError(f"{what}: {key!r} has {size} bytes, at most {longest} are taken")
    for part in config.user.split(":"):
        if part.isdecimal() and (len(part) > len(str(MAX_ID)) or int(part) > MAX_ID):
            raise MalformedContentError(
                f"{what}: 'User' names the id {part:.40}: the highest there can be is {MAX_ID}"
            )


def _diff_ids(rootfs: Fields) -> tuple[str, ...]:
    try:
        return tuple(parse_digest(text) for text in rootfs.strings("diff_ids"))
    except InvalidDigestError as error:
        raise MalformedContentError(f"{rootfs.what}: {error}") from error
