"""The configuration: one table of settings, each from a flag, the environment, the file, or its default, in this order.

The file is TOML. The setting `log.level` is the key `level` in the table `[log]`, the variable `CRI_JAILS_LOG_LEVEL`, and
the flag `--log-level`. Registries are tables by name, `[registries."docker.io"]`; the variable and the flag take all of them
as one inline table, such as `{"docker.io" = {mirrors = ["https://mirror.example.org"]}}`.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baustelle.bounds import Bounds
from cri import config_values as kind
from cri.settings import ENV_PREFIX, REGISTRIES, REGISTRY_SETTINGS, SECRET, SETTINGS
from cri.sockets import SocketError, check_path


class ConfigError(Exception):
    """The configuration cannot be used; names the place, the key, and what is expected."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How the daemon logs."""

    level: str
    """debug, info, warning, error."""
    format: str
    """console, json."""


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Where traces go."""

    endpoint: str
    """http(s)://HOST:PORT of a collector, or empty for none."""
    sampling_ratio: float
    """From 0 to 1: how many of the calls are traced whose caller does not say whether they are."""


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """The HTTP server for exec, attach and port-forward."""

    address: str
    """HOST:PORT; port 0 takes a free one."""
    cert_file: Path | None
    """Certificates (PEM) for TLS; read anew when the file changes."""
    key_file: Path | None
    """The certificate's private key (PEM)."""
    idle_timeout: float
    """Seconds without a byte in either direction after which a session is ended."""

    def endpoint(self) -> tuple[str, int]:
        """Host and port to listen on."""
        return kind.endpoint(self.address)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How images are pulled."""

    max_parallel_downloads: int
    """Layers of one image at a time."""
    idle_timeout: float
    """Seconds without a single byte after which a download counts as dead."""
    hosts_dir: Path | None
    """Directory of HOST/hosts.toml, containerd's way to configure registries."""
    credentials_file: Path | None
    """Docker's config.json, with credentials for pulls that bring none, and for mirrors."""
    pinned: tuple[str, ...]
    """Names of images that are shown as pinned; see `cri.pinned`."""
    max_entries: int
    """Files, directories and links of one image; as the others a field of `baustelle.bounds.Bounds`."""
    max_unpacked_bytes: int
    """Plain bytes of one image."""
    max_expansion_ratio: int
    """How many plain bytes a byte of a long layer may stand for."""
    max_zstd_window: int
    """Bytes that a zstd layer may have held in memory."""

    def bounds(self) -> Bounds:
        """What one image may bring."""
        return Bounds(
            max_entries=self.max_entries,
            max_unpacked_bytes=self.max_unpacked_bytes,
            max_expansion_ratio=self.max_expansion_ratio,
            max_zstd_window=self.max_zstd_window,
        )


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The pods' network."""

    conf_dir: Path
    """Directory of CNI network configurations; the first valid file by name counts. What follows is for the network that
    is there when this has none."""
    external_plugins: tuple[str, ...]
    """Directories with plugins of others, run for types that this package has no class for."""
    bridge: str
    """Name of the bridge interface, and of the network."""
    subnets: tuple[str, ...]
    """Prefixes that pods get an address from each, one per address family at most, such as 10.88.0.0/16."""
    mtu: int
    """Bytes; 0 takes the kernel's default."""
    masquerade: bool
    """Packets of pods that leave the cluster bear the node's address."""
    cluster: tuple[str, ...]
    """Prefixes that are reached without masquerading, besides the pods' own."""


@dataclass(frozen=True, slots=True)
class FreeBSDConfig:
    """What only the FreeBSD driver needs."""

    allow: tuple[str, ...]
    """The allow.* parameters of jail(8) that annotations may give to containers."""
    devfs_ruleset: int
    """Number of the devfs ruleset that is ours."""


@dataclass(frozen=True, slots=True)
class StatsConfig:
    """How containers and pods are measured."""

    interval: float
    """Seconds between two samples of the same."""


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How one registry is reached."""

    mirrors: tuple[str, ...] = ()
    """URLs to ask first, in this order."""
    ca_file: Path | None = None
    """Certificates (PEM) to trust instead of the system's."""
    skip_verify: bool = False
    """Take any certificate. For tests."""
    proxy: str | None = field(default=None, repr=False)
    """The URL of a proxy to go through, which may hold user and password; empty: none; None: what the environment says."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the daemon runs with."""

    state_dir: Path
    """What survives a reboot: content, snapshots, the state database."""
    runtime_dir: Path
    """What does not: wardens, sockets."""
    socket: Path
    socket_group: str
    """Name or number of the group that may connect; empty: the daemon's own."""
    metrics_address: str
    """HOST:PORT, or empty for none."""
    host: str
    """auto, linux, freebsd."""
    snapshotter: str
    """auto, overlay, copy, zfs."""
    runtime_handlers: tuple[str, ...]
    """Names of RuntimeClass handlers that pods may ask for, beside the unnamed default."""
    log: LogConfig
    tracing: TracingConfig
    streaming: StreamingConfig
    image: ImageConfig
    stats: StatsConfig
    network: NetworkConfig
    freebsd: FreeBSDConfig
    registries: Mapping[str, RegistryConfig]
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each value came from, by key."""

    def metrics_endpoint(self) -> tuple[str, int] | None:
        """Host and port for metrics, or None."""
        return kind.endpoint(self.metrics_address) if self.metrics_address else None


_BY_KEY = {setting.key: setting for setting in SETTINGS}
_SECTIONS = {key.partition(".")[0] for key in _BY_KEY if "." in key}


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Config:
    """Read the configuration. `flags` are by setting key. Raises ConfigError."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(key: str, value: Any, source: str) -> None:
        values[key] = _read(_BY_KEY[key].read, key, value, source)
        sources[key] = source

    for setting in SETTINGS:
        values[setting.key], sources[setting.key] = setting.default, "default"
    contents = _parse(file) if file is not None else {}
    registries = _registries(contents.pop("registries", {}), str(file), sources)
    for key, value in _flatten(contents, file):
        take(key, value, str(file))
    for given, prefix in (
        (_variables(os.environ if environment is None else environment), "variable"),
        ((flags or {}).items(), "flag"),
    ):
        for key, value in given:
            if key == REGISTRIES.key:
                source = getattr(REGISTRIES, prefix)
                registries |= _registries(_inline(value, source), source, sources)
            else:
                take(key, value, getattr(_BY_KEY[key], prefix))

    for key in ("state_dir", "runtime_dir", "network.conf_dir"):
        values[key] = Path(values[key])
    if values["socket"] is None:
        values["socket"], sources["socket"] = values["runtime_dir"] / "cri-jails.sock", "runtime_dir"
    try:
        check_path(values["socket"])
    except SocketError as error:
        raise ConfigError(f"{sources['socket']}: {error}") from None
    return Config(
        log=LogConfig(**_section(values, "log")),
        tracing=TracingConfig(**_section(values, "tracing")),
        streaming=StreamingConfig(**_section(values, "streaming")),
        image=ImageConfig(**_section(values, "image")),
        stats=StatsConfig(**_section(values, "stats")),
        network=NetworkConfig(**_section(values, "network")),
        freebsd=FreeBSDConfig(**_section(values, "freebsd")),
        registries=registries,
        sources=sources,
        **{key: value for key, value in values.items() if "." not in key},
    )


def dump(config: Config) -> str:
    """The configuration as TOML, with the source of each value as a comment; passwords are left out."""
    lines: list[str] = []
    section = ""
    for setting in SETTINGS:
        table, _, name = setting.key.rpartition(".")
        if table != section:
            lines += ["", f"[{table}]"]
            section = table
        value = getattr(getattr(config, table) if table else config, name)
        lines.append(f"{name} = {_toml(value)}  # {config.sources.get(setting.key, 'given')}")
    for registry, settings in config.registries.items():
        lines += ["", f"[registries.{_toml(registry)}]"]
        for name in REGISTRY_SETTINGS:
            key = f'registries."{registry}".{name}'
            if key in config.sources:
                value = getattr(settings, name)
                lines.append(f"{name} = {_toml(_shown(name, value))}  # {config.sources[key]}")
    return "\n".join(lines) + "\n"


def _read(reader: kind.Reader, key: str, value: Any, source: str) -> Any:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and (
            "\0" in one or any("\ud800" <= character <= "\udfff" for character in one)
        ):
            raise ConfigError(f"{source}: {key} is {one!a}, but must be UTF-8 without zero bytes")
    try:
        return reader(value)
    except ValueError as error:
        shown = _shown(key.rpartition(".")[2], value)
        raise ConfigError(f"{source}: {key} is {shown!r}, but must be {error}") from None


def _shown(name: str, value: Any) -> Any:
    """A value as messages may have it."""
    if name not in SECRET or not isinstance(value, str) or "@" not in value:
        return value
    scheme, mark, _ = value.rpartition("@")[0].partition("://")
    return (
        f"{scheme}{mark}<secret>@{value.rpartition('@')[2]}"
        if mark
        else f"<secret>@{value.rpartition('@')[2]}"
    )


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{file}: not a configuration: nested too deeply") from None


def _flatten(contents: Mapping[str, Any], file: Path | None) -> list[tuple[str, Any]]:
    """The settings of a file, dotted; ConfigError for one that is not in the table."""
    found: list[tuple[str, Any]] = []
    for name, value in contents.items():
        if name in _SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {name} is {value!r}, but must be a table [{name}]")
            found += [(f"{name}.{inner}", one) for inner, one in value.items()]
        else:
            found.append((name, value))
    for key, _ in found:
        if key not in _BY_KEY:
            raise ConfigError(_unknown(f"{file}: unknown key {key}", key, [*_BY_KEY, "registries"]))
    return found


def _variables(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    known = {setting.variable: setting.key for setting in (*SETTINGS, REGISTRIES)}
    found: list[tuple[str, str]] = []
    for name, value in environment.items():
        if name in known:
            found.append((known[name], value))
        elif name.startswith(ENV_PREFIX):
            raise ConfigError(_unknown(f"environment: unknown variable {name}", name, list(known)))
    return found


def _inline(text: str, source: str) -> Any:
    try:
        return tomllib.loads(f"registries = {text}")["registries"]
    except (
        tomllib.TOMLDecodeError,
        KeyError,
        RecursionError,
    ) as error:  # not the text: it may hold passwords
        raise ConfigError(f"{source}: no inline table of TOML: {error or 'nested too deeply'}") from None


def _registries(tables: Any, source: str, sources: dict[str, str]) -> dict[str, RegistryConfig]:
    if not isinstance(tables, dict):
        raise ConfigError(f'{source}: registries is {tables!r}, but must be tables [registries."NAME"]')
    found: dict[str, RegistryConfig] = {}
    for given, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f'{source}: registries."{given}" is {type(table).__name__}, but must be a table'
            )
        name = _registry_name(given, source)
        if name in found:
            raise ConfigError(
                f'{source}: registries."{name}" is there twice, in two spellings; make one table of both'
            )
        values: dict[str, Any] = {}
        for key, value in table.items():
            full = f'registries."{name}".{key}'
            if key not in REGISTRY_SETTINGS:
                raise ConfigError(_unknown(f"{source}: unknown key {full}", key, list(REGISTRY_SETTINGS)))
            values[key] = _read(REGISTRY_SETTINGS[key], full, value, source)
            sources[full] = source
        found[name] = RegistryConfig(**values)
        _check_registry(name, found[name], source)
    return found


def _registry_name(given: str, source: str) -> str:
    """A registry's name as image references have it. Raises ConfigError for what none can have."""
    if given == "*":
        return given
    from registratur.errors import InvalidEndpointError  # noqa: PLC0415 - it brings an HTTP client along
    from registratur.names import registry_name  # noqa: PLC0415

    try:
        return registry_name(given)
    except InvalidEndpointError as error:
        raise ConfigError(f"{source}: registries.{_toml(given)}: {error}") from None


def _check_registry(name: str, registry: RegistryConfig, source: str) -> None:
    from registratur.errors import InvalidEndpointError  # noqa: PLC0415 - as above
    from registratur.hosts import HostsConfig  # noqa: PLC0415
    from registratur.names import can_be_referenced  # noqa: PLC0415

    if registry.mirrors and name != "*" and not can_be_referenced(name):
        raise ConfigError(
            f'{source}: registries."{name}" has mirrors for what no image reference can name: without a dot or a port it is '
            "somebody's name on docker.io; write the registry's host in full"
        )
    try:
        HostsConfig(mirrors={name: registry.mirrors})
    except InvalidEndpointError as error:
        raise ConfigError(f'{source}: registries."{name}": {error}') from None


def _unknown(message: str, key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{message}; did you mean {near[0]}?" if near else message


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        return '""'
    if isinstance(value, str | Path):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
