"""What keeps the daemon from its state."""

from __future__ import annotations

from cri.errors import InternalError


class StateError(InternalError):
    """The state directory cannot be used: held by another daemon, or not there.

    Nothing in it has been changed. The message names the file and the remedy.
    """
