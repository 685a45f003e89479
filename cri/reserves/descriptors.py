"""Descriptors kept for removals: to stop and remove a pod takes some, and a process may be out of them."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable, Iterator

import structlog

from cri.errors import ResourceExhaustedError

log = structlog.get_logger(__name__)

MOST = 64
SHARE = 4
"""The reserve is at most this part of what the process may open."""


def raise_limit() -> tuple[int, int]:
    """Let this process open as many files as it may, and return the limits (soft, hard) that it was started with.

    What it starts should have those again: a high soft limit makes old programs close a million descriptors, and breaks
    those that use select(2).
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # FreeBSD: kern.maxfilesperproc may be below
            log.warning("the limit of open files stays as it is", soft=soft, hard=hard, reason=str(error))
    return before


def reserve_size() -> int:
    """How many descriptors to keep, by what this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(MOST, soft // SHARE)


class DescriptorReserve:
    """Descriptors that are held open for nothing, until somebody must not fail for want of one. Safe for threads.

    They are files of their own, not copies of one, so they stand for room in the system's table too.
    """

    def __init__(
        self,
        count: int | None = None,
        later: Callable[[Callable[[], None]], object] = lambda take_back: take_back(),
    ) -> None:
        """Take so many, or what the process's limit suggests; fewer if there is no room. Never raises for that.

        `later` has what it is given called when whoever has borrowed waits no more; it is called where they are.
        """
        self._later = later
        self._count = reserve_size() if count is None else count
        self._held: list[int] = []
        self._borrowers = 0
        self._lock = threading.Lock()
        with self._lock:
            self._refill()

    @property
    def whole(self) -> bool:
        """Whether all of it is there, after trying to take again what is missing. False while it is lent."""
        with self._lock:
            if not self._borrowers:
                self._refill()
            return len(self._held) == self._count

    def demand(self, what: str) -> None:
        """Refuse to make something new while descriptors are needed to get rid of the old.

        Raises ResourceExhaustedError, which names `what`, unless there are as many as the reserve should have: in it, or
        free while it is lent, which may be for as long as a container takes to stop.
        """
        with self._lock:
            self._refill()
            missing = self._count - len(self._held)
            if self._borrowers:
                self._free()
        if missing:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise ResourceExhaustedError(
                f"{what}: the daemon is out of descriptors (it may open {soft} files); remove pods, "
                "or start it with a higher limit (LimitNOFILE= in systemd, ulimit -n, login.conf)"
            )

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Free the descriptors for what is done in the block; the last of those who do so at the same time takes them back.

        Until that is done they may be used up by others, as in the block itself; `demand` and `whole` do it at once.
        """
        with self._lock:
            self._borrowers += 1
            self._free()
        try:
            yield
        finally:
            with self._lock:
                self._borrowers -= 1
                last = not self._borrowers
            if last:
                self._later(self._take_back)

    def close(self) -> None:
        """Give all of it up for good."""
        with self._lock:
            self._count = 0
            self._free()

    def _take_back(self) -> None:
        with self._lock:
            if not self._borrowers:
                self._refill()

    def _free(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _refill(self) -> None:
        with contextlib.suppress(OSError):  # there is no room yet; whoever asks next tries again
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
