"""What ends a command with a message, and no traceback."""

from __future__ import annotations


class CommandError(Exception):
    """Something did not work; names it, and the remedy."""


class DaemonError(CommandError):
    """The daemon has refused a call, or failed at it."""

    def __init__(self, message: str, code: str) -> None:
        """`code` is the name of gRPC's status, such as NOT_FOUND."""
        super().__init__(message)
        self.code = code
