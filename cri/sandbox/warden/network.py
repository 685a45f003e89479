"""A pod's network stack as its warden opens it to the daemon, whose threads may block on it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from cri.sandbox.host import HostError, NetworkStack, Warden

_SECONDS = 30.0

_Answer = TypeVar("_Answer")


class WardenNetworkStack(NetworkStack):
    """What the warden does in the pod's stack, or has a child do that enters it.

    Made on the event loop, used in other threads. Every call blocks, and raises TimeoutError if the warden does not
    answer.
    """

    def __init__(self, warden: Warden, move_target: int, name: str) -> None:
        self.move_target = move_target
        self.name = name
        self._warden = warden
        self._loop = asyncio.get_running_loop()

    def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """A socket made inside the pod. Raises OSError."""
        return self._ask(self._warden.socket(family, type_, protocol), "a socket")

    def sysctl(self, name: str, value: str | None = None) -> str:
        """A variable of the stack, and with a value, its value before that was set. Raises OSError."""
        return self._ask(self._warden.sysctl(name, value), f"sysctl {name}")

    def close(self) -> None:
        """Nothing is held open."""

    def _ask(self, question: Coroutine[Any, Any, _Answer], what: str) -> _Answer:
        answer = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return answer.result(_SECONDS)
        except HostError as error:
            raise OSError(error.errno or errno.EIO, error.reason, what) from error
        except TimeoutError:
            answer.cancel()
            raise
