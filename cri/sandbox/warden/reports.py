"""Follows a forked child: its report over the socket that `launch.fork` made, and its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cri.sandbox.host import HostError
from cri.sandbox.warden import launch, protocol
from cri.sandbox.warden.launch import Child, Report
from cri.sandbox.warden.loop import READ, Loop


class Subject(Protocol):
    """What a child is to become."""

    report: Report | None
    failure: HostError | None
    """Why it did not."""

    def reported(self, report: Report) -> None:
        """Take the child's report over; its terminal comes with it."""


def follow(
    loop: Loop, subject: Subject, child: Child, started: Callable[[], None], ended: Callable[[int], None]
) -> None:
    """Call `started` when the child's program runs or has failed to; then, at its end, `ended` with its wait status."""

    def advance(_: int = 0) -> None:
        while (more := _read(subject, child)) is True:
            pass
        if more is False:
            finish()

    def finish() -> None:
        loop.unwatch(child.report)
        child.report.close()
        if subject.report is None and subject.failure is None:
            subject.failure = HostError("start", "the process", "it ended before its program ran")
        started()

    def reaped(status: int) -> None:
        try:
            if child.report.fileno() >= 0:  # the end may be known before the report was read
                advance()
            if child.report.fileno() >= 0:
                finish()
        finally:
            ended(status)

    loop.watch(child.report, READ, advance)
    loop.children[child.pid] = reaped


def _read(subject: Subject, child: Child) -> bool | None:
    """Read a message of a report. False at its end, None if nothing is there yet."""
    try:
        received = protocol.receive(child.report)
    except BlockingIOError:
        return None
    except (OSError, protocol.ProtocolError):
        return False
    if received is None:
        return False
    try:
        subject.reported(launch.read_report(*received))
    except HostError as error:
        subject.failure = error
    return True
