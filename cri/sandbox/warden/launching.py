"""Processes on their way by a launcher: plan after plan, without waiting for any.

A driver writes a way down as a generator. It yields a `Stage`, and goes on with what became of it: what was sent, or a
`StepFailedError` where it stands. So a start reads as it happens (build the tree, look the user up, run the program), and
what fails can be tried in another way, by another plan. One that needs what another way has yields a `Pause`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cri.sandbox.host import HostError
from cri.sandbox.launcher.client import Kind, receive
from cri.sandbox.launcher.operations import Operation
from cri.sandbox.launcher.plan import PlanError, Step
from cri.sandbox.warden.loop import READ, Loop


@dataclass(frozen=True, slots=True)
class Stage:
    """A plan, and its descriptors, which stay the way's."""

    steps: Sequence[Step]
    descriptors: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Pause:
    """Goes on when what `until` is given is called; that may be called at once, and must be called one day."""

    until: Callable[[Callable[[], None]], None]


class Launcher(Protocol):
    """Who executes plans."""

    def launch(self, steps: Sequence[Step], descriptors: Sequence[int] = ()) -> socket.socket:
        """Have a plan executed; `descriptors` are FIRST_DESCRIPTOR + 1 and those after it there. Returns the report.

        Raises PlanError and OSError.
        """


Sent = list[int]
"""The descriptors that a stage has sent, in order. The way's from then on."""
Way = Generator[Stage | Pause, Sent, None]
_CUT_SHORT = "it ended before its program ran"


class StepFailedError(Exception):
    """A step of a stage has failed, and nothing of the stage is left but what it was to change."""

    def __init__(self, step: Step | None, number: int, sent: Sent) -> None:
        self.step = step
        """None: the launcher could not begin, or was killed on the way."""
        self.errno = number
        """0 for what was killed."""
        self.sent = sent
        """What was sent before. The way's."""
        self.reason = os.strerror(number) if number else _CUT_SHORT
        super().__init__(f"{step.subject if step else 'launch'}: {self.reason}")


class Subject(Protocol):
    """What comes of a way."""

    failure: HostError | None
    """Why nothing did."""

    def born(self, pid: int) -> None:
        """It is a process."""


def follow(
    loop: Loop,
    launcher: Launcher,
    way: Way,
    subject: Subject,
    started: Callable[[], None],
    ended: Callable[[int], None],
    kept: Sequence[int] = (),
) -> None:
    """Go a way. Call `started` when the program runs or nothing came of it; then, at its end, `ended` with its wait status.

    `started` is called at once for a way that fails before its first stage, `ended` only for what was born. `kept` are
    descriptors that the way names in its stages; they are closed when it is over.
    """
    _Following(loop, launcher, way, subject, started, ended, kept).go_on()


@dataclass
class _Outcome:
    """What became of a stage."""

    stage: Stage
    sent: Sent = field(default_factory=list)
    pid: int = 0
    failed: int | None = None
    errno: int = 0

    def failure(self) -> StepFailedError | None:
        steps = self.stage.steps
        if self.failed is not None:
            step = steps[self.failed] if 0 <= self.failed < len(steps) else None
            return StepFailedError(step, self.errno, self.sent)
        becomes = bool(steps) and steps[-1].operation is Operation.EXECUTE
        sends = sum(step.operation is Operation.SEND for step in steps)
        if len(self.sent) < sends or (becomes and not self.pid):
            return StepFailedError(None, 0, self.sent)
        return None


class _Following:
    def __init__(
        self,
        loop: Loop,
        launcher: Launcher,
        way: Way,
        subject: Subject,
        started: Callable[[], None],
        ended: Callable[[int], None],
        kept: Sequence[int],
    ) -> None:
        self._loop = loop
        self._launcher = launcher
        self._way = way
        self._subject = subject
        self._started: Callable[[], None] | None = started
        self._ended = ended
        self._kept = kept
        self._status: int | None = None
        self._report: socket.socket | None = None
        self._outcome = _Outcome(Stage(()))

    def go_on(self) -> None:
        """Begin what comes first."""
        self._advance(lambda: next(self._way))

    def _advance(self, step: Callable[[], Stage | Pause]) -> None:
        try:
            following = step()
            if isinstance(following, Pause):
                following.until(self.go_on)
            else:
                self._launch(following)
        except StopIteration:
            self._finish(None)
        except HostError as error:
            self._finish(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, a start that never ends is worse
            if isinstance(error, StepFailedError):
                for descriptor in error.sent:
                    os.close(descriptor)
                reason = str(error)
            elif isinstance(error, (OSError, PlanError)):
                reason = str(error)
            else:
                reason = f"{type(error).__name__}: {error}"
            self._way.close()
            self._finish(HostError("start", "the process", reason, getattr(error, "errno", None)))

    def _launch(self, stage: Stage) -> None:
        self._loop.births += 1
        try:
            self._report = self._launcher.launch(stage.steps, stage.descriptors)
        except BaseException:
            self._loop.born()
            raise
        self._report.setblocking(False)
        self._outcome = _Outcome(stage)
        self._loop.watch(self._report, READ, self._hear)

    def _hear(self, _: int = 0) -> None:
        """Read what there is of a report, and go on after its end."""
        report, outcome = self._report, self._outcome
        assert report is not None
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
                self._heard()
                return
            record, descriptor = received
            if record.kind is Kind.SENT:
                outcome.sent.append(descriptor)
            elif record.kind is Kind.BORN and not outcome.pid:
                outcome.pid = record.pid
                self._loop.adopt(record.pid, self._reaped)
                self._subject.born(record.pid)
            elif record.kind is Kind.FAILED and outcome.failed is None:
                outcome.failed, outcome.errno = record.step, record.error

    def _heard(self) -> None:
        assert self._report is not None
        self._loop.unwatch(self._report)
        self._report.close()
        self._report = None
        self._loop.born()
        failure = self._outcome.failure()
        if failure is not None:
            self._advance(lambda: self._way.throw(failure))
        else:
            self._advance(lambda: self._way.send(self._outcome.sent))

    def _finish(self, failure: HostError | None) -> None:
        self._subject.failure = failure
        started, self._started = self._started, None
        assert started is not None
        try:
            for descriptor in self._kept:
                os.close(descriptor)
            started()
        finally:
            if self._status is not None:
                self._ended(self._status)

    def _reaped(self, status: int) -> None:
        if self._started is None:
            self._ended(status)
            return
        self._status = status
        report = self._report
        if report is not None:
            self._hear()  # what it told, it told before
        if report is not None and self._report is report:
            # Who may trace it can have taken its report, and keep that open: that must not hold anybody up.
            self._heard()
