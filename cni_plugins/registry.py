"""Where the classes of plugins are found: ours here, others' by the entry points of what is installed."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from cni_plugins.errors import ConfigurationError, UnknownPluginError
from cni_plugins.plugin import Plugin

ENTRY_POINTS = "cni_plugins"
"""The group in which other distributions offer classes, each called after its type."""

_OURS = {
    "bandwidth": "cni_plugins.plugins.bandwidth:BandwidthPlugin",
    "bridge": "cni_plugins.plugins.bridge:BridgePlugin",
    "host-local": "cni_plugins.plugins.host_local:HostLocalPlugin",
    "loopback": "cni_plugins.plugins.loopback:LoopbackPlugin",
    "masquerade": "cni_plugins.plugins.masquerade:MasqueradePlugin",
    "portmap": "cni_plugins.plugins.portmap:PortmapPlugin",
    "ptp": "cni_plugins.plugins.ptp:PtpPlugin",
    "static": "cni_plugins.plugins.static:StaticPlugin",
    "tuning": "cni_plugins.plugins.tuning:TuningPlugin",
}


def types() -> list[str]:
    """Return the types that there are classes for."""
    return sorted({*_OURS, *entry_points(group=ENTRY_POINTS).names})


def find(type_: str) -> type[Plugin]:
    """Return the class for a type; ours come before others' of the same name.

    Raises UnknownPluginError, and ConfigurationError for an entry point that leads nowhere.
    """
    if type_ in _OURS:
        module, _, name = _OURS[type_].partition(":")
        return _checked(getattr(importlib.import_module(module), name), type_)
    for entry in entry_points(group=ENTRY_POINTS, name=type_):
        try:
            return _checked(entry.load(), type_)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"plugin type {type_!r}: its entry point {entry.value} cannot be loaded: {error}; reinstall what offers it"
            ) from error
    raise UnknownPluginError(
        f"plugin type {type_!r} is not installed; there are {', '.join(types())}. Change the network configuration, "
        f"install a distribution that offers it (entry points {ENTRY_POINTS!r}), or allow external plugins"
    )


def _checked(found: object, type_: str) -> type[Plugin]:
    if not isinstance(found, type) or not issubclass(found, Plugin):
        raise ConfigurationError(
            f"plugin type {type_!r}: its entry point gives {found!r}, which is no Plugin"
        )
    return found
