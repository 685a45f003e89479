"""The settings of one plugin, read with errors that say where the wrong one stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from cni_plugins.errors import ConfigurationError
from cni_plugins.types import Address, Network


class Settings:
    """One JSON object of a network's configuration. Keys that nobody reads are passed over, as CNI wants it."""

    def __init__(self, values: Mapping[str, Any], where: str, whole: Settings | None = None) -> None:
        self.values = values
        self.where = where
        """For messages: `network NAME: plugin TYPE`."""
        self.whole = whole or self
        """The plugin's settings that these are a part of: an IPAM plugin is given arguments there."""

    @property
    def type(self) -> str:
        """The type of plugin that the settings are for."""
        return self.text("type")

    @property
    def capabilities(self) -> frozenset[str]:
        """The capability arguments that the plugin is to be given."""
        return frozenset(name for name, wanted in self.mapping("capabilities").items() if wanted)

    def wrong(self, key: str, expected: str) -> ConfigurationError:
        """The error for a setting, to be raised."""
        return ConfigurationError(f"{self.where}: {key} is {self.values.get(key)!r}, but must be {expected}")

    def boolean(self, key: str, *, default: bool = False) -> bool:
        """A boolean."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def integer(self, key: str, *, default: int = 0, least: int = 0, most: int = (1 << 63) - 1) -> int:
        """A whole number between two bounds."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def text(self, key: str, *, default: str = "") -> str:
        """A string."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def address(self, key: str) -> Address | None:
        """An IP address; None if there is none."""
        value = self.text(key)
        try:
            return ip_address(value) if value else None
        except ValueError:
            raise self.wrong(key, "an IP address") from None

    def network(self, key: str) -> Network | None:
        """A subnet, whose host part is passed over; None if there is none."""
        value = self.text(key)
        try:
            return ip_network(value, strict=False) if value else None
        except ValueError:
            raise self.wrong(key, "a subnet such as 10.88.0.0/16") from None

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object, empty if there is none."""
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

    def sequence(self, key: str) -> Sequence[Any]:
        """A list, empty if there is none."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.sequence(key)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(key, "a list of strings")
        return tuple(values)

    def part(self, key: str) -> Settings:
        """An object within, as settings of its own."""
        return Settings(self.mapping(key), f"{self.where}: {key}", self.whole)

    def parts(self, key: str) -> list[Settings]:
        """A list of objects within."""
        values = self.sequence(key)
        if not all(isinstance(value, dict) for value in values):
            raise self.wrong(key, "a list of objects")
        return [Settings(value, f"{self.where}: {key}[{at}]", self.whole) for at, value in enumerate(values)]
