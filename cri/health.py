"""Whether this node can take new pods: the kernel's side of it, and whether what happens can be written down."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NoReturn

import structlog

from cri.reserves import DiskReserve
from cri.sandbox.host import Condition
from cri.state import Store
from cri.threads import in_own_thread

log = structlog.get_logger(__name__)

FRESH_SECONDS = 1.0
"""How long a look at the disk is good for."""
PATIENCE = 2.0
"""Seconds that a disk may take to answer."""
WATCH_SECONDS = 10.0
_PROBE = bytes(4096)
_STILL = "pods can be stopped and removed, and images too"
_SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class NodeHealth:
    """What Status says of the runtime. It is ready again by itself once the cause is gone."""

    def __init__(
        self,
        host: Callable[[], Awaitable[Condition]],
        store: Store,
        reserve: DiskReserve,
        directories: Sequence[Path],
    ) -> None:
        """`host` asks the kernel's side; `directories` are those that the daemon must be able to write to."""
        self._host = host
        self._store = store
        self._reserve = reserve
        self._directories = tuple(dict.fromkeys(directories))
        self._looking: asyncio.Task[Condition] | None = None
        self._looked = float("-inf")
        self._faults: dict[str, str] = {}
        self._told = Condition(ok=True)

    def fault(self, part: str, message: str) -> None:
        """Let Status say, from now on, that a part of the daemon could not start; "" takes it back."""
        if message:
            self._faults[part] = message
        else:
            self._faults.pop(part, None)

    async def condition(self) -> Condition:
        """Whether pods can be run, and if not, why, what still works, and what to do."""
        found = await self._disk()
        if found.ok and self._store.problem:
            message = f"{self._store.problem}; {_STILL}. It is tried again every few seconds"
            found = Condition(ok=False, reason="StateNotWritable", message=message)
        if found.ok and self._faults:
            found = Condition(ok=False, reason="StartIncomplete", message="; ".join(self._faults.values()))
        if found.ok:
            found = await self._host()
        if (found.ok, found.reason) != (self._told.ok, self._told.reason):
            tell = log.info if found.ok else log.error
            tell(
                "the runtime is ready" if found.ok else "the runtime is not ready",
                reason=found.reason,
                message=found.message,
            )
            self._told = found
        return found

    async def watch(self) -> NoReturn:
        """Look from time to time even if nobody asks, so that the reserve is taken again and the log tells what happens."""
        while True:
            try:
                await self.condition()
            except Exception:
                # Whatever it was: the next look may go well, and there must be one.
                log.exception("the node was not looked at")
            await asyncio.sleep(WATCH_SECONDS)

    async def _disk(self) -> Condition:
        """A look that is at most a second old. One at a time: a disk that hangs costs one thread."""
        fresh = time.monotonic() - self._looked < FRESH_SECONDS
        if self._looking is None or (self._looking.done() and not fresh):
            self._looking = asyncio.create_task(in_own_thread(self._look), name="a look at the disk")
            self._looked = time.monotonic()
        for _ in range(2):  # if it was the loop that was late, the disk has the second half to itself
            await asyncio.wait({self._looking}, timeout=PATIENCE / 2)
            if self._looking.done():
                return self._looking.result()
        places = " and ".join(map(str, self._directories))
        message = f"the disk does not answer within {PATIENCE:g} s ({places}); look at the kernel's messages"
        return Condition(ok=False, reason="DiskSilent", message=message)

    def _look(self) -> Condition:
        for directory in self._directories:
            try:
                _write(directory)
            except OSError as error:
                if error.errno not in _SCARCE:
                    self._reserve.close()  # so that the disk can be unmounted and mended
                return _refusal(directory, error)
        # Not before: what is left of a full disk is for what must be written, not for the reserve.
        if not self._reserve.take():
            free = _free(self._directories[0])
            message = (
                f"the disk of {self._directories[0]} is nearly full ({free}): the reserve for removals is used up; "
                f"{_STILL}. Remove images, logs or pods; the reserve is taken again when there is room"
            )
            return Condition(ok=False, reason="DiskFull", message=message)
        return Condition(ok=True)


def _write(directory: Path) -> None:
    """Write a little, and remove it. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=".probe-", dir=directory)
    try:
        os.write(descriptor, _PROBE)
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108 - as mkstemp calls it


def _refusal(directory: Path, error: OSError) -> Condition:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = (
            f"the disk of {directory} is full ({_free(directory)}): {error.strerror}; {_STILL}. "
            "Remove images, logs or pods, or enlarge the disk"
        )
        return Condition(ok=False, reason="DiskFull", message=message)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        message = (
            f"the daemon is out of descriptors ({error.strerror}); {_STILL}. Remove pods, or start it with a "
            "higher limit (LimitNOFILE= in systemd, ulimit -n, login.conf)"
        )
        return Condition(ok=False, reason="OutOfDescriptors", message=message)
    if error.errno in _READ_ONLY:
        message = (
            f"{directory} cannot be written ({error.strerror}): its disk is mounted read-only, perhaps after an error; "
            f"{_STILL}, as far as their files are elsewhere. See dmesg(8); mount it read-write"
        )
        return Condition(ok=False, reason="DiskReadOnly", message=message)
    message = f"{directory} cannot be written: {error.strerror or error}; {_STILL}, as far as the disk works. See dmesg(8)"
    return Condition(ok=False, reason="StateNotWritable", message=message)


def _free(directory: Path) -> str:
    try:
        found = os.statvfs(directory)
    except OSError:
        return "how much is free is not known"
    inodes = f", {found.f_favail} inodes" if found.f_files else ""
    return f"{found.f_bavail * found.f_frsize // 1024} KiB free{inodes}"
