"""The states of sandboxes and containers, and every legal step between them.

The whole life of either object stands in its table here. A step that is not in the table is a programming error, or a
call that came at the wrong time; the life cycles check the latter before they begin.

What an object is after a crash follows from these states: one found CREATING is undone, one found CREATED may have been
STARTING (which is never written down) and is looked up at its warden, one found REMOVING is removed to the end. A container
that has ended is not written down as REMOVING: until its directory is out of sight it is what it was, and then it is removed,
whatever its record says (see `trash`).

Who enters a state before a call leaves it again whatever the call raises: STARTING has two ways out, and no third.
"""

from __future__ import annotations

import enum
from typing import TypeVar


class SandboxState(enum.StrEnum):
    """Of a pod sandbox; only READY and NOTREADY are ever shown to a client."""

    CREATING = "creating"
    READY = "ready"
    NOTREADY = "notready"
    REMOVING = "removing"


class ContainerState(enum.StrEnum):
    """Of a container. STARTING is shown as created, REMOVING as exited, CREATING not at all.

    UNKNOWN is one whose record cannot be understood, and of which no warden knows anything.
    """

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"
    REMOVING = "removing"


SANDBOX_STEPS: dict[SandboxState, frozenset[SandboxState]] = {
    SandboxState.CREATING: frozenset({SandboxState.READY, SandboxState.NOTREADY}),
    SandboxState.READY: frozenset({SandboxState.NOTREADY}),
    SandboxState.NOTREADY: frozenset({SandboxState.REMOVING}),
    SandboxState.REMOVING: frozenset(),
}

CONTAINER_STEPS: dict[ContainerState, frozenset[ContainerState]] = {
    ContainerState.CREATING: frozenset({ContainerState.CREATED}),
    ContainerState.CREATED: frozenset(
        {ContainerState.STARTING, ContainerState.EXITED, ContainerState.REMOVING}
    ),
    ContainerState.STARTING: frozenset({ContainerState.RUNNING, ContainerState.EXITED}),
    ContainerState.RUNNING: frozenset({ContainerState.EXITED}),
    ContainerState.EXITED: frozenset({ContainerState.REMOVING}),
    ContainerState.UNKNOWN: frozenset({ContainerState.STARTING, ContainerState.EXITED}),
    ContainerState.REMOVING: frozenset(),
}

State = TypeVar("State", SandboxState, ContainerState)


class IllegalStepError(AssertionError):
    """A transition that no table has: a defect in the life cycle that asked for it."""


def check_step(steps: dict[State, frozenset[State]], subject: str, now: State, to: State) -> None:
    """Raise IllegalStepError unless `steps` has the step from `now` to `to`."""
    if to not in steps[now]:
        raise IllegalStepError(f"{subject}: no step leads from {now} to {to}")
