"""What is to be done for a pod, given its status: the decisions of kuberuntime's computePodActions, without a runtime.

Source: kubernetes v1.36.0, pkg/kubelet/kuberuntime/kuberuntime_manager.go, kuberuntime_container.go, util/util.go.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tests.kubelet.specs import Container, Pod, Restart
from tests.kubelet.statuses import PodStatus, SandboxState, State, addresses


@dataclass(slots=True)
class Actions:
    """One round of SyncPod."""

    sandbox: str = ""
    """The one that is there and will do."""
    attempt: int = 0
    create_sandbox: bool = False
    kill_pod: bool = False
    """End all containers and stop all sandboxes."""
    kill: dict[str, Container] = field(default_factory=dict)
    """Containers that are to end, by id."""
    start: list[Container] = field(default_factory=list)


def decide(pod: Pod, status: PodStatus, unhealthy: Collection[str]) -> Actions:
    """The next round; `unhealthy` are ids of containers whose liveness probes have failed often enough."""
    changed, attempt = _sandbox_changed(status)
    if changed:
        return _anew(pod, status, attempt)
    found = Actions(sandbox=status.sandboxes[0].id, attempt=attempt)
    initialized = _init_containers(pod, status, found)
    if found.kill_pod or not initialized:
        return found
    kept = 0
    for spec in pod.containers:
        known = status.container(spec.name)
        if known is None or known.state != State.CONTAINER_RUNNING:
            if _restarts(pod, known):
                found.start.append(spec)
                if known is not None and known.state == State.CONTAINER_UNKNOWN:
                    found.kill[known.id] = spec
        elif known.id in unhealthy:
            found.kill[known.id] = spec
            if pod.restart is not Restart.NEVER:
                found.start.append(spec)
        else:
            kept += 1
    if not kept and not found.start:
        found.kill_pod = True
    return found


def _sandbox_changed(status: PodStatus) -> tuple[bool, int]:
    """Whether there must be another sandbox, and its attempt; or that of the one that there is."""
    if not status.sandboxes:
        return True, 0
    latest = status.sandboxes[0]
    ready = sum(each.state == SandboxState.SANDBOX_READY for each in status.sandboxes)
    fits = latest.state == SandboxState.SANDBOX_READY and ready == 1 and bool(addresses(latest))
    return not fits, latest.metadata.attempt + (not fits)


def _anew(pod: Pod, status: PodStatus, attempt: int) -> Actions:
    found = Actions(attempt=attempt, kill_pod=True)
    if pod.restart is Restart.NEVER and attempt and status.containers:
        return found
    wanted = [
        spec
        for spec in pod.containers
        if not (pod.restart is Restart.ON_FAILURE and _succeeded(status.container(spec.name)))
    ]
    if not wanted and any(status.container(spec.name) for spec in pod.containers):
        return found
    found.create_sandbox = True
    found.start = list(pod.init_containers[:1]) or wanted
    return found


def _init_containers(pod: Pod, status: PodStatus, found: Actions) -> bool:
    """Say which init containers are to start; whether the pod's own containers may.

    They are looked at from the last to the first, as finished ones may have been removed.
    """
    if not pod.init_containers:
        return True
    own = [status.container(spec.name) for spec in pod.containers]
    alive = (State.CONTAINER_CREATED, State.CONTAINER_RUNNING)
    done = passed = any(each is not None and each.state in alive for each in own)
    last = len(pod.init_containers) - 1
    starts: list[int] = []
    for index in range(last, -1, -1):
        spec = pod.init_containers[index]
        known = status.container(spec.name)
        if known is None:
            if passed and spec.sidecar:
                starts.append(index)
            continue
        if passed and not spec.sidecar:
            continue
        failed = known.state == State.CONTAINER_EXITED and known.exit_code != 0
        if known.state == State.CONTAINER_CREATED or (spec.sidecar and known.state == State.CONTAINER_EXITED):
            starts.append(index)
        elif failed or known.state == State.CONTAINER_UNKNOWN:
            if pod.restart is Restart.NEVER and not spec.sidecar:
                found.kill_pod, found.start = True, []
                return False
            if known.state == State.CONTAINER_UNKNOWN:
                found.kill[known.id] = spec
            starts.append(index)
        elif known.state == State.CONTAINER_EXITED or spec.sidecar:
            # Finished, or a sidecar that runs: what comes next may.
            if index == last:
                done = True
            elif not passed:
                starts.append(index + 1)
        passed = True
    if not passed:
        starts.append(0)
    found.start = [pod.init_containers[index] for index in sorted(starts)]
    return done


def _restarts(pod: Pod, known: Any | None) -> bool:
    """Whether a container that does not run is to be started."""
    if known is None or known.state != State.CONTAINER_EXITED:
        return True
    return pod.restart is Restart.ALWAYS or (pod.restart is Restart.ON_FAILURE and known.exit_code != 0)


def _succeeded(known: Any | None) -> bool:
    return known is not None and known.state == State.CONTAINER_EXITED and known.exit_code == 0


class BackOff:
    """How long a container that ends again and again has to wait: twice as long each time."""

    def __init__(self, first: float = 10.0, most: float = 300.0) -> None:
        """Seconds; a container that has run for twice `most` begins anew."""
        self._first, self._most = first, most
        self._waits: dict[tuple[str, str], tuple[float, float]] = {}
        """Seconds to wait after an end, and when that was decided."""

    def left(self, pod: Pod, spec: Container, status: PodStatus) -> float:
        """Seconds that are left until a container may be started; 0 starts it, and counts as its start."""
        ended = [one for one in status.attempts(spec.name) if one.state == State.CONTAINER_EXITED]
        if not ended:
            return 0.0
        now, finished = time.time(), ended[-1].finished_at / 1e9
        key = pod.uid, spec.name + spec.hash()
        wait, decided = self._waits.get(key, (0.0, finished))
        if finished - decided > 2 * self._most:
            wait = 0.0
        if (left := finished + wait - now) > 0:
            return left
        self._waits[key] = (min(wait * 2, self._most) if wait else self._first, now)
        return 0.0
