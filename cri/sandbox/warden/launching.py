"""Processes on their way by a launcher: plan after plan, without waiting for any.

A driver writes a way down as a generator. It yields a `Stage`, and goes on with what became of it: what was sent, or a
`StepFailedError` where it stands. So a start reads as it happens (build the tree, look the user up, run the program), and
what fails can be tried in another way, by another plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cri.sandbox.host import HostError
from cri.sandbox.launcher.client import Kind, Launcher, receive
from cri.sandbox.launcher.plan import PlanError, Step
from cri.sandbox.warden.loop import READ, Loop


@dataclass(frozen=True, slots=True)
class Stage:
    """A plan, and its descriptors, which stay the way's."""

    steps: Sequence[Step]
    descriptors: Sequence[int] = ()


Sent = list[int]
"""The descriptors that a stage has sent, in order. The way's from then on."""
Way = Generator[Stage, Sent, None]


class StepFailedError(Exception):
    """A step of a stage has failed, and nothing of the stage is left but what it was to change."""

    def __init__(self, step: Step | None, number: int, sent: Sent) -> None:
        super().__init__(f"{step.subject if step else 'read the plan'}: {os.strerror(number)}")
        self.step = step
        """None: the launcher could not begin."""
        self.errno = number
        self.sent = sent
        """What was sent before. The way's."""


class Subject(Protocol):
    """What comes of a way."""

    failure: HostError | None
    """Why nothing did."""

    def born(self, pid: int) -> None:
        """It is a process."""


@dataclass
class _Outcome:
    sent: Sent = field(default_factory=list)
    pid: int = 0
    failed: int | None = None
    errno: int = 0


def follow(
    loop: Loop,
    launcher: Launcher,
    way: Way,
    subject: Subject,
    started: Callable[[], None],
    ended: Callable[[int], None],
) -> None:
    """Go a way. Call `started` when the program runs or nothing came of it; then, at its end, `ended` with its wait status.

    Both are called later, and `ended` only for what was born.
    """
    _Following(loop, launcher, way, subject, started, ended).advance(None)


class _Following:
    def __init__(
        self,
        loop: Loop,
        launcher: Launcher,
        way: Way,
        subject: Subject,
        started: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._launcher = launcher
        self._way = way
        self._subject = subject
        self._started: Callable[[], None] | None = started
        self._ended = ended
        self._status: int | None = None

    def advance(self, before: _Outcome | None, stage: Stage | None = None) -> None:
        """Begin the next stage."""
        try:
            if before is None:
                following = next(self._way)
            elif before.failed is not None:
                assert stage is not None
                step = stage.steps[before.failed] if before.failed >= 0 else None
                following = self._way.throw(StepFailedError(step, before.errno, before.sent))
            else:
                following = self._way.send(before.sent)
            self._launch(following)
        except StopIteration:
            self._finish(None)
        except HostError as error:
            self._finish(error)
        except (OSError, PlanError, StepFailedError) as error:
            if isinstance(error, StepFailedError):
                for descriptor in error.sent:
                    os.close(descriptor)
            self._way.close()
            self._finish(HostError("start", "the process", str(error), getattr(error, "errno", None)))

    def _launch(self, stage: Stage) -> None:
        self._loop.births += 1
        try:
            report = self._launcher.launch(stage.steps, stage.descriptors)
        except BaseException:
            self._loop.born()
            raise
        report.setblocking(False)
        outcome = _Outcome()

        def hear(_: int) -> None:
            while True:
                try:
                    received = receive(report)
                except BlockingIOError:
                    return
                except PlanError:
                    continue  # whoever sent that, it is no launcher
                except OSError:
                    received = None
                if received is None:
                    break
                record, descriptor = received
                if record.kind is Kind.SENT:
                    outcome.sent.append(descriptor)
                elif record.kind is Kind.BORN and not outcome.pid:
                    outcome.pid = record.pid
                    self._loop.adopt(record.pid, self._reaped)
                    self._subject.born(record.pid)
                elif record.kind is Kind.FAILED and outcome.failed is None:
                    outcome.failed, outcome.errno = _place(record.step, stage), record.error
            self._loop.unwatch(report)
            report.close()
            self._loop.born()
            self.advance(outcome, stage)

        self._loop.watch(report, READ, hear)

    def _finish(self, failure: HostError | None) -> None:
        self._subject.failure = failure
        started, self._started = self._started, None
        assert started is not None
        try:
            started()
        finally:
            if self._status is not None:
                self._ended(self._status)

    def _reaped(self, status: int) -> None:
        if self._started is None:
            self._ended(status)
        else:
            self._status = status  # its report is still to be read


def _place(step: int, stage: Stage) -> int:
    return step if 0 <= step < len(stage.steps) else -1
