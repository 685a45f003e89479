"""SIGHUP: the configuration is read anew, and what can be changed under running pods is.

Whatever is wrong with the new one changes nothing at all. What only a restart can change is named in the log, and stays as
it is in force.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import structlog

from cni_plugins import NetworkError
from cri import log as logs
from cri.config import Config, ConfigError, NetworkConfig
from cri.settings import REGISTRIES, SETTINGS
from registratur import HostsConfig, RegistryError

log = structlog.get_logger(__name__)

RELOADED = frozenset(
    {
        *("log.level", "log.format", "image.hosts_dir", "image.credentials_file"),
        *("network.conf_dir", "network.bridge", "network.subnets"),
        *("network.mtu", "network.masquerade", "network.cluster"),
    }
)
"""The settings that are taken over, beside all registries."""

_REMEDY = "mend the configuration, and reload again; until then all stays as it is"


class Registries(Protocol):
    """Who asks registries."""

    def configure(self, hosts: HostsConfig) -> None:
        """Ask by other rules, from the next request on."""


class Network(Protocol):
    """Who gives pods their network."""

    async def prepare(self, config: NetworkConfig) -> Callable[[], None]:
        """Look whether a configuration can be; what is returned makes it count for pods to come. Raises NetworkError."""


class Reloader:
    """Reads the configuration anew when it is told to, once at a time."""

    def __init__(
        self,
        config: Config,
        *,
        read: Callable[[], Config],
        hosts: Callable[[Config], HostsConfig],
        registries: Registries,
        network: Network,
        changed: Callable[[Config], None],
    ) -> None:
        """`config` is as `read` gave it at the start; `changed` is told what is in force from then on."""
        self._config = config
        self._read = read
        self._hosts = hosts
        self._registries = registries
        self._network = network
        self._changed = changed

    async def reload(self) -> None:
        """Take over what can be. Never raises for what an operator can have written."""
        try:
            new = await asyncio.to_thread(self._read)
            hosts = await asyncio.to_thread(self._hosts, new)
            take_over = await self._network.prepare(new.network)
        except (ConfigError, NetworkError, RegistryError) as error:
            log.error(
                "the new configuration cannot be used; nothing has changed", error=str(error), remedy=_REMEDY
            )
            return
        differing = list(_differing(self._config, new))
        taken = [key for key in differing if _is_reloaded(key)]
        others = [key for key in differing if not _is_reloaded(key)]
        # Also if nothing differs: the files that it names may.
        self._registries.configure(hosts)
        if any(key.startswith("network.") for key in taken):
            take_over()
        if any(key.startswith("log.") for key in taken):
            logs.configure(new.log.level, new.log.format)
        self._config = _mixed(self._config, new)
        self._changed(self._config)
        log.info("the configuration was read anew", changed=taken)
        if others:
            log.warning(
                "some settings have changed that count after a restart only",
                settings=others,
                remedy="restart the daemon",
            )


class OnHangup:
    """Has something done, one time after the other, when SIGHUP comes, also for one that came before `serve`."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)

    async def serve(self, reloader: Reloader) -> None:
        """Wait for signals, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await reloader.reload()
            except Exception:
                # Whatever it was: the next one may go well.
                log.exception("the configuration was not read anew")


def _is_reloaded(key: str) -> bool:
    return key in RELOADED or key.startswith(f"{REGISTRIES.key}.")


def _differing(old: Config, new: Config) -> Iterator[str]:
    """The settings that have another value, by key; a registry as a whole."""
    for setting in SETTINGS:
        if _value(old, setting.key) != _value(new, setting.key):
            yield setting.key
    for name in sorted(old.registries.keys() | new.registries.keys()):
        if old.registries.get(name) != new.registries.get(name):
            yield f'{REGISTRIES.key}."{name}"'


def _value(config: Config, key: str) -> object:
    table, _, name = key.rpartition(".")
    value: object = getattr(getattr(config, table) if table else config, name)
    return value


def _mixed(old: Config, new: Config) -> Config:
    """What is in force: the new values of what was taken over, the old ones of the rest."""
    sources = {key: source for key, source in old.sources.items() if not _is_reloaded(key)}
    sources |= {key: source for key, source in new.sources.items() if _is_reloaded(key)}
    return replace(
        old,
        log=new.log,
        image=replace(old.image, hosts_dir=new.image.hosts_dir, credentials_file=new.image.credentials_file),
        network=replace(new.network, external_plugins=old.network.external_plugins),
        registries=new.registries,
        sources=sources,
    )
