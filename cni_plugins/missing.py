"""What stands in for a plugin that an attachment was made with and that is not installed any more."""

from __future__ import annotations

from collections.abc import Sequence

from cni_plugins.errors import UnknownPluginError
from cni_plugins.plugin import Plugin, Request
from cni_plugins.types import Result


class MissingPlugin(Plugin):
    """Does nothing but say what is missing, so that the other plugins of its list can go on."""

    translates = False

    def __init__(self, error: UnknownPluginError) -> None:
        self._error = error

    def add(self, request: Request) -> Result:  # noqa: ARG002
        """Raise UnknownPluginError."""
        raise self._error

    def delete(self, request: Request) -> None:  # noqa: ARG002
        """Raise UnknownPluginError: what it has made is still there."""
        raise self._error

    def check(self, request: Request) -> None:  # noqa: ARG002
        """Raise UnknownPluginError."""
        raise self._error

    def gc(self, requests: Sequence[Request]) -> None:  # noqa: ARG002
        """Raise UnknownPluginError."""
        raise self._error

    def status(self) -> list[str]:
        """Return what is missing."""
        return [str(self._error)]
