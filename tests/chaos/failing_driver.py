"""A warden's driver on an unreliable kernel."""

from __future__ import annotations

import errno
import importlib
import os
import random
import sys
from typing import Any

from cri.sandbox.spec import SandboxSpec

ONE_IN = 40
METHODS = ("start", "exec", "signal", "kill", "kill_exec", "end", "end_exec", "make_socket")


class FailingDriver:
    """Passes calls on to the system's own driver, but for one in so many."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._random = random.Random(os.getpid())

    def __getattr__(self, name: str) -> Any:
        if name in METHODS and self._random.randrange(ONE_IN) == 0:
            raise OSError(errno.EIO, f"injected into {name}")
        return getattr(self._driver, name)


def make_driver() -> FailingDriver:
    """The driver, for a warden."""
    return FailingDriver(_driver_module().make_driver())


def fits_spare(sandbox: SandboxSpec) -> bool:
    """Whether a spare warden may become this pod's, as the system's own driver has it."""
    fits: bool = _driver_module().fits_spare(sandbox)
    return fits


def _driver_module() -> Any:
    system = sys.platform.rstrip("0123456789")
    return importlib.import_module(f"cri.sandbox.{system}.driver")
