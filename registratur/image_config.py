"""The image configuration (OCI image-spec config.md; Docker's image JSON reads the same)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from registratur.digest import parse_digest
from registratur.errors import InvalidDigestError, MalformedContentError, UnsupportedContentError
from registratur.fields import Fields
from registratur.manifest import read_platform
from registratur.platform import Platform


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
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    stop_signal: str = ""

    @classmethod
    def parse(cls, data: bytes, what: str = "image config") -> "ImageConfig":
        """Read a config blob; keys match in any case, as in Go.

        Raises MalformedContentError, and UnsupportedContentError when it lists no root filesystem.
        """
        document = Fields.parse(what, data)
        if "rootfs" not in document:
            raise UnsupportedContentError(
                f"{what} has no 'rootfs': this is an artifact, not a container image"
            )
        run = document.child("config")
        return cls(
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
            labels=run.mapping("Labels"),
            stop_signal=run.string("StopSignal"),
        )


def _diff_ids(rootfs: Fields) -> tuple[str, ...]:
    try:
        return tuple(parse_digest(text) for text in rootfs.strings("diff_ids"))
    except InvalidDigestError as error:
        raise MalformedContentError(f"{rootfs.what}: {error}") from error
