"""The /proc of a process namespace that several containers share.

Only a member of the namespace can mount one, with rights that none may have where others see it: so its first process makes
one before anybody else is there, and it is kept here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator

from cri.sandbox.host import HostError
from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, Attach, Operation, Tolerate
from cri.sandbox.launcher.plan import Step
from cri.sandbox.launcher.steps import at_path
from cri.sandbox.linux import kernel
from cri.sandbox.warden.launching import Pause, Sent, Stage, StepFailedError

_GIVEN = FIRST_DESCRIPTOR + 1
_ROOT, *_CLONES = range(_GIVEN + 1, _GIVEN + 4)


class SharedProc:
    """A mount that is nowhere, and is cloned for each container that shares it."""

    def __init__(self, mount: int) -> None:
        """`mount` is its descriptor, which it takes over."""
        self._mount = mount
        self._passing = False
        self._waiting: list[Callable[[], None]] = []

    def clone(self, place: str) -> Generator[Stage | Pause, Sent, int]:
        """Another one of it, the caller's. `place` is an empty directory of the node. Raises HostError."""
        while True:
            if self._mount < 0:
                raise HostError("share", "/proc", "the container whose processes it shows has ended")
            try:
                return kernel.clone_mount(self._mount)
            except OSError as error:
                # Before Linux 6.15 only what is mounted somewhere can be cloned.
                if error.errno != errno.EINVAL:
                    raise HostError("share", "/proc", error.strerror or str(error), error.errno) from error
            if not self._passing:
                break
            yield Pause(self._waiting.append)
        return (yield from self._pass_on(place))

    def close(self) -> None:
        """Let go of it."""
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1

    def _pass_on(self, place: str) -> Generator[Stage | Pause, Sent, int]:
        """By mounting it where nobody sees it, which uses it up. Not in a container's group: that may be killed meanwhile."""
        self._passing = True
        given = os.dup(self._mount)
        try:
            try:
                kept, clone = yield Stage(_pass_on_steps(place), [given])
            except StepFailedError as error:
                for descriptor in error.sent:
                    os.close(descriptor)
                raise HostError("share", "/proc", error.reason, error.errno) from error
            if self._mount < 0:
                os.close(kept)
            else:
                os.close(self._mount)
                self._mount = kept
            return clone
        finally:
            os.close(given)
            self._passing = False
            waiting, self._waiting = self._waiting, []
            for go_on in waiting:
                go_on()


def _pass_on_steps(place: str) -> list[Step]:
    steps = [
        Step(Operation.LEAVE, (kernel.CLONE_NEWNS,), (), "make mount namespace"),
        Step(
            Operation.MOUNT,
            (kernel.MS_REC | kernel.MS_SLAVE, Tolerate.NOTHING),
            (b"none", b"/", b"", b""),
            "leave the node's mounts",
        ),
        at_path(Operation.OPEN, (_ROOT, os.O_PATH | os.O_DIRECTORY), "/"),
        at_path(Operation.ATTACH, (_GIVEN, _ROOT, Attach.DIRECTORY | Attach.KEEP), place),
    ]
    for number in _CLONES:
        steps += [
            Step(Operation.CLONE_OF, (number, _GIVEN, 0), (), "clone /proc"),
            Step(Operation.ATTRIBUTES, (number, 0, 0, kernel.MS_PRIVATE), (), "clone /proc"),
        ]
    return [*steps, *(Step(Operation.SEND, (number,), (), "send /proc") for number in _CLONES)]
