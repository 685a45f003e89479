"""Network configurations: reading one, and finding the one that counts in a directory.

Source: the CNI specification 1.1.0, "Section 1: Network configuration format"; that the first valid file by name counts is
what kubelets' runtimes have made the custom.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni_plugins import documents
from cni_plugins.errors import ConfigurationError, IncompatibleVersionError, MalformedConfigurationError
from cni_plugins.settings import Settings
from cni_plugins.types import CNI_VERSIONS, OLDEST_VERSION

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What networks and containers may be called."""

_MOST_BYTES = 1 << 20
SUFFIXES = (".conf", ".conflist", ".json")


@dataclass(frozen=True, slots=True)
class NetworkList:
    """A network: plugins in the order in which they are run."""

    name: str
    cni_version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: str = field(default="", compare=False)
    """Where it comes from, for messages."""

    @classmethod
    def from_json(cls, told: Any, source: str = "") -> NetworkList:
        """Read a configuration: a list of plugins, or a single one, which makes a list of one.

        One that does not say for which version of the specification it is written is one of the oldest, as libcni has it.

        Raises ConfigurationError for what breaks the specification, IncompatibleVersionError for another version of it.
        Whether the types of the plugins are known is not asked yet.
        """
        where = source or "network configuration"
        if not isinstance(told, dict):
            raise MalformedConfigurationError(f"{where}: {type(told).__name__} where an object is expected")
        settings = Settings(told, where)
        name = settings.text("name")
        if not NAME.fullmatch(name):
            raise settings.wrong("name", "letters, digits, '_', '.' and '-', a letter or digit first")
        single = "plugins" not in told
        plugins = [settings] if single else settings.parts("plugins")
        if not plugins:
            raise settings.wrong("plugins", "a list of at least one plugin")
        for plugin in plugins:
            if not plugin.type:
                raise plugin.wrong("type", "the type of a plugin")
        return cls(
            name,
            _version(settings),
            tuple(plugin.values for plugin in plugins),
            _switch(settings, "disableCheck"),
            _switch(settings, "disableGC"),
            source,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the list's form, as the ledger keeps it."""
        return {
            "name": self.name,
            "cniVersion": self.cni_version,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": [dict(plugin) for plugin in self.plugins],
        }


def _switch(settings: Settings, key: str) -> bool:
    """A boolean, or its word as a string, which the specification allows for those of a list as a whole."""
    value = settings.values.get(key)
    words = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    return settings.boolean(key)


def _version(settings: Settings) -> str:
    """Pick the version to speak: of those offered, the latest that is spoken here."""
    offered = {
        version for version in (*settings.texts("cniVersions"), settings.text("cniVersion")) if version
    }
    if not offered:
        return OLDEST_VERSION
    spoken = [version for version in CNI_VERSIONS if version in offered]
    if not spoken:
        versions = ", ".join(CNI_VERSIONS)
        raise IncompatibleVersionError(
            f"{settings.where}: cniVersion {', '.join(sorted(offered))!r} is none of {versions}"
        )
    return spoken[-1]


@dataclass(frozen=True, slots=True)
class Found:
    """What a directory has: the network that counts, if any, and what is wrong with files that come before it."""

    network: NetworkList | None = None
    problems: tuple[str, ...] = ()


class ConfDirectory:
    """A directory of network configurations, looked at anew whenever somebody asks.

    A look costs a stat(2) per file as long as nothing has changed. That is cheaper to get right than to be told by the
    kernel: no thread, no descriptor, and nothing is missed, whoever replaces files or the whole directory how ever.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: object = None
        self._found = Found()

    def look(self) -> Found:
        """Return what counts now; the same object as long as nothing has changed. A missing directory is an empty one."""
        try:
            files = sorted(path for path in self.path.iterdir() if path.suffix in SUFFIXES)
            seen = [(path.name, *_identity(path)) for path in files]
        except FileNotFoundError:
            files, seen = [], []
        except OSError as error:
            return Found(
                problems=(f"{self.path}: {error.strerror}; network configurations are looked for there",)
            )
        if seen != self._seen:
            self._found, self._seen = self._read(files), seen
        return self._found

    @staticmethod
    def _read(files: list[Path]) -> Found:
        problems: list[str] = []
        for path in files:
            try:
                return Found(NetworkList.from_json(_load(path), str(path)), tuple(problems))
            except ConfigurationError as error:
                problems.append(str(error))
        return Found(problems=tuple(problems))


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:  # a link that leads nowhere or in circles, which reading it will say
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def _load(path: Path) -> Any:
    try:
        if not path.is_file() and path.exists():  # nobody may ever write to a fifo(4)
            fault, text = "not a regular file", b""
        else:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
            fault = f"longer than {_MOST_BYTES} bytes; no network needs so much" * (len(text) > _MOST_BYTES)
    except OSError as error:
        raise MalformedConfigurationError(f"{path}: {error.strerror}") from error
    if fault:
        raise MalformedConfigurationError(f"{path}: {fault}")
    try:
        return documents.parse(text)
    except ValueError as error:
        raise MalformedConfigurationError(f"{path}: no JSON: {error}") from error
