"""Containerfile and context to an image. The same input gives the same digests."""

import datetime as dt
import os
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from baustelle.bundle import signal_number
from baustelle.containerfile import Instruction, parse
from baustelle.errors import BuildError, ImageConfigError
from baustelle.layer import Item, link_target, write_layer
from baustelle.layout import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, ImageLayout, LayoutImage, with_tag
from baustelle.sources import copied
from baustelle.tree import Directory, File, ImageTree, Link, parents
from registratur import Platform

_OWNER = re.compile(r"(\d{1,10})(?::(\d{1,10}))?")
_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/(tcp|udp|sctp))?")


def build(
    containerfile: Path,
    context: Path,
    *,
    layout: ImageLayout,
    args: Mapping[str, str] | None = None,
    base: Callable[[str], LayoutImage] | None = None,
    platform: Platform | None = None,
) -> LayoutImage:
    """Build an image into `layout`, without a name; `layout.tag` gives it some.

    `base` finds the image that FROM names (by default in `layout`). Files get the time SOURCE_DATE_EPOCH
    of the environment, in seconds, or 0. `platform` is this machine's unless given; a base keeps its own.
    Raises ContainerfileError, BuildError, and LayoutError for a missing base.
    """
    try:
        text = containerfile.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read {containerfile}: {error}") from error
    builder = _Builder(context, layout, dict(args or {}), base or layout.image, platform)
    for instruction in parse(text):
        builder.carry_out(instruction)
    return builder.finish()


class _Builder:
    """The image as far as it is built."""

    def __init__(
        self,
        context: Path,
        layout: ImageLayout,
        args: dict[str, str],
        base: Callable[[str], LayoutImage],
        platform: Platform | None,
    ) -> None:
        self._context = context
        self._layout = layout
        self._args = args
        self._base = base
        self._platform = platform or Platform.current()
        self._mtime = _source_date_epoch()
        self._created = dt.datetime.fromtimestamp(self._mtime, dt.UTC).isoformat().replace("+00:00", "Z")
        self._global_arguments: dict[str, str] = {}
        self._arguments: dict[str, str] = {}
        self._declared: set[str] = set()
        self._in_stage = False
        self._tree = ImageTree()
        self._layers: list[Mapping[str, Any]] = []
        self._diff_ids: list[str] = []
        self._history: list[Mapping[str, Any]] = []
        self._config: dict[str, Any] = {}
        self._own_cmd = False

    def carry_out(self, instruction: Instruction) -> None:
        """Carry out one instruction."""
        layers = len(self._layers)
        getattr(self, f"_do_{instruction.keyword.lower()}")(instruction)
        if instruction.keyword in {"FROM", "ARG"}:
            return
        entry: dict[str, Any] = {
            "created": self._created,
            "created_by": f"{instruction.keyword} {instruction.text}",
        }
        if len(self._layers) == layers:
            entry["empty_layer"] = True
        self._history.append(entry)

    def finish(self) -> LayoutImage:
        """Write config and manifest."""
        unknown = sorted(set(self._args) - self._declared)
        if unknown:
            raise BuildError(f"the Containerfile declares no ARG {', '.join(unknown)}; add it or drop --arg")
        platform = {"architecture": self._platform.architecture, "os": self._platform.os}
        if self._platform.variant:
            platform["variant"] = self._platform.variant
        config = self._layout.write_document(
            platform
            | {
                "created": self._created,
                "config": self._config,
                "rootfs": {"type": "layers", "diff_ids": self._diff_ids},
                "history": self._history,
            }
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(OCI_CONFIG),
            "layers": self._layers,
        }
        return self._layout.image_of(self._layout.write_document(manifest))

    # Instructions

    def _do_from(self, instruction: Instruction) -> None:
        words = instruction.words(self._variables())
        if len(words) not in {1, 3} or (len(words) == 3 and words[1].upper() != "AS"):
            raise instruction.error("expected FROM image")
        self._in_stage = True
        if words[0] == "scratch":
            return
        image = self._base(with_tag(words[0]))
        self._layout.adopt(image)
        for descriptor in image.layers:
            with self._layout.path(descriptor["digest"]).open("rb") as stream:
                self._tree.add_layer(stream)
        self._layers = image.layers
        self._diff_ids = image.diff_ids
        self._history = list(image.config.get("history", []))
        self._config = dict(image.config.get("config", {}))
        self._platform = Platform(
            image.config["os"], image.config["architecture"], image.config.get("variant", "")
        )

    def _do_arg(self, instruction: Instruction) -> None:
        for word in instruction.words(self._variables()):
            name, equals, default = word.partition("=")
            self._declared.add(name)
            value = self._args.get(name, default if equals else self._global_arguments.get(name))
            if value is not None:
                (self._arguments if self._in_stage else self._global_arguments)[name] = value

    def _do_env(self, instruction: Instruction) -> None:
        environment = self._environment() | instruction.pairs(self._variables())
        self._config["Env"] = [f"{key}={value}" for key, value in environment.items()]

    def _do_label(self, instruction: Instruction) -> None:
        self._config["Labels"] = self._config.get("Labels", {}) | instruction.pairs(self._variables())

    def _do_user(self, instruction: Instruction) -> None:
        self._config["User"] = instruction.value(self._variables())

    def _do_stopsignal(self, instruction: Instruction) -> None:
        value = instruction.value(self._variables())
        try:
            signal_number(value)
        except ImageConfigError as error:
            raise instruction.error(str(error)) from error
        self._config["StopSignal"] = value

    def _do_expose(self, instruction: Instruction) -> None:
        ports = self._config.get("ExposedPorts", {})
        for word in instruction.words(self._variables()):
            if not _PORT.fullmatch(word.lower()):
                raise instruction.error(f"{word!r} is no port: expected 80, 80/udp or 8000-8010")
            ports = ports | {word.lower() if "/" in word else f"{word}/tcp": {}}
        self._config["ExposedPorts"] = ports

    def _do_volume(self, instruction: Instruction) -> None:
        volumes: dict[str, Any] = {path: {} for path in instruction.words(self._variables())}
        self._config["Volumes"] = self._config.get("Volumes", {}) | volumes

    def _do_cmd(self, instruction: Instruction) -> None:
        self._config["Cmd"] = _command_line(instruction)
        self._own_cmd = True

    def _do_entrypoint(self, instruction: Instruction) -> None:
        self._config["Entrypoint"] = _command_line(instruction)
        # The base's cmd were arguments for the base's entrypoint.
        if not self._own_cmd:
            self._config.pop("Cmd", None)

    def _do_workdir(self, instruction: Instruction) -> None:
        path = self._absolute(instruction.value(self._variables()))
        self._config["WorkingDir"] = path
        target = self._tree.resolve(path)
        if self._tree.get(target) is None:
            self._add_layer({target: Item(None, 0o755, 0, 0)})

    def _do_copy(self, instruction: Instruction) -> None:
        *names, destination = instruction.words(self._variables())
        if not names:
            raise instruction.error("expected sources and a destination")
        uid, gid = _owner(instruction, self._variables())
        mode = _mode(instruction, self._variables())
        path = self._absolute(destination)
        into = len(names) > 1 or destination.endswith(("/", "/.")) or destination in {".", ".."}
        target = self._tree.resolve(path)
        into = into or isinstance(self._tree.get(target), Directory)
        items: dict[str, Item] = {}
        for place, source in copied(instruction, self._context, names, into=into):
            found = source.lstat()
            where = posixpath.join(target, place).strip("/")
            # A directory that is a link in the image stays one, and is filled where it leads to.
            above, name = posixpath.split(where)
            where = posixpath.join(self._tree.resolve(above), name).strip("/")
            if source.is_dir() and not source.is_symlink():
                where = self._tree.resolve(where)
            if place or not isinstance(self._tree.get(where), Directory):  # one that is there stays as it is
                items[where] = Item(source, found.st_mode & 0o7777 if mode is None else mode, uid, gid)
        self._add_layer(items)

    def _do_add(self, instruction: Instruction) -> None:
        for name in instruction.words(self._variables())[:-1]:
            if "://" in name or name.startswith("git@"):
                raise instruction.error(
                    f"{name}: nothing is fetched; download it into the context and COPY it"
                )
            if re.search(r"\.(tar|tgz|tbz2?|txz|tar\.\w+)$", name):
                raise instruction.error(
                    f"{name}: archives are not unpacked; unpack it and COPY the directory"
                )
        self._do_copy(instruction)

    # Helpers

    def _add_layer(self, items: dict[str, Item]) -> None:
        for path in list(items):
            for above in parents(path):
                node = self._tree.get(above)
                directory = node if isinstance(node, Directory) else Directory()
                items.setdefault(above, Item(None, directory.mode, directory.uid, directory.gid))
        blob, diff_id = write_layer(self._layout, items, self._mtime)
        self._layers = [*self._layers, blob.descriptor(OCI_LAYER_GZIP)]
        self._diff_ids = [*self._diff_ids, diff_id]
        for path in sorted(items):
            item = items[path]
            if item.source is not None and item.source.is_symlink():
                self._tree.add(path, Link(link_target(item.source)))
            elif item.source is None or item.source.is_dir():
                self._tree.add(path, Directory(item.mode, item.uid, item.gid))
            else:
                self._tree.add(path, File())

    def _environment(self) -> dict[str, str]:
        return dict(entry.partition("=")[::2] for entry in self._config.get("Env", []))

    def _variables(self) -> dict[str, str]:
        """ENV wins over ARG."""
        return (self._arguments if self._in_stage else self._global_arguments) | self._environment()

    def _absolute(self, path: str) -> str:
        return posixpath.normpath(posixpath.join("/", self._config.get("WorkingDir") or "/", path))


def _command_line(instruction: Instruction) -> list[str]:
    if instruction.json is not None:
        return list(instruction.json)
    return ["/bin/sh", "-c", instruction.text]


def _owner(instruction: Instruction, variables: Mapping[str, str]) -> tuple[int, int]:
    if "chown" not in instruction.flags:
        return 0, 0
    text = instruction.expand(instruction.flags["chown"], variables)
    match = _OWNER.fullmatch(text)
    if match is None:
        raise instruction.error(f"--chown={text}: only numbers are supported: --chown=uid:gid")
    return int(match[1]), int(match[2] or match[1])


def _mode(instruction: Instruction, variables: Mapping[str, str]) -> int | None:
    if "chmod" not in instruction.flags:
        return None
    text = instruction.expand(instruction.flags["chmod"], variables)
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise instruction.error(f"--chmod={text}: expected an octal mode such as 0755")
    return int(text, 8)


def _source_date_epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isascii() or not text.isdigit():
        raise BuildError(f"SOURCE_DATE_EPOCH={text!r} must be a number of seconds since 1970")
    return int(text)
