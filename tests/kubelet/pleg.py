"""The pod life cycle event generator: by lists each second, or by the runtime's own events.

Source: kubernetes v1.36.0, pkg/kubelet/pleg/generic.go and evented.go.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from typing import Any

import grpc

from cri.api.runtime import v1
from tests.kubelet import statuses
from tests.kubelet.client import Runtime
from tests.kubelet.manager import RuntimeManager
from tests.kubelet.statuses import PodStatus, RuntimePod, SandboxState, State

EventType = v1.ContainerEventType


class Kind(enum.Enum):
    """What has happened to a container or sandbox."""

    STARTED = "ContainerStarted"
    DIED = "ContainerDied"
    REMOVED = "ContainerRemoved"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a pod's worker is told of."""

    pod: str
    """Its uid."""
    kind: Kind
    id: str
    """Of the container or the sandbox."""


class _Seen(enum.Enum):
    RUNNING = enum.auto()
    EXITED = enum.auto()
    UNKNOWN = enum.auto()
    """Created, too: no event tells of that."""
    GONE = enum.auto()


@dataclass(slots=True)
class Cache:
    """The newest status of each pod, whoever has found it out."""

    statuses: dict[str, PodStatus] = field(default_factory=dict)

    def put(self, status: PodStatus) -> bool:
        """Keep a status unless a newer one is known; whether it was kept."""
        known = self.statuses.get(status.uid)
        if known is not None and known.timestamp > status.timestamp:
            return False
        if not status.ips and known is not None and not _has_ready_sandbox(status):
            status.ips = known.ips  # a pod that has ended had an address
        self.statuses[status.uid] = status
        return True


class GenericPleg:
    """Compares lists with those before."""

    def __init__(self, manager: RuntimeManager, cache: Cache) -> None:
        self._manager = manager
        self._cache = cache
        self._seen: dict[str, dict[str, _Seen]] = {}
        self._again: set[str] = set()

    async def relist(self) -> list[Event]:
        """List everything; what has changed since. The pods that it is about have fresh statuses in the cache."""
        pods = await self._manager.pods()
        events: list[Event] = []
        again, self._again = self._again, set()
        for uid in [*self._seen.keys() - pods.keys(), *pods]:
            before, pod = self._seen.get(uid, {}), pods.get(uid)
            now = _states(pod) if pod is not None else {}
            found = [event for one in before | now for event in _events(uid, one, before, now)]
            if now == before and uid not in again:
                continue
            if pod is None:
                self._cache.statuses.pop(uid, None)
                del self._seen[uid]
            else:
                self._again.add(uid)  # until its status is known
                self._cache.put(await self._manager.status(pod))
                self._again.discard(uid)
                self._seen[uid] = now
            events += found
        return events


class EventedPleg:
    """Listens to GetContainerEvents. What happens while nobody listens is found by a relist."""

    def __init__(self, runtime: Runtime, cache: Cache) -> None:
        self._runtime = runtime
        self._cache = cache
        self._listening: asyncio.Task[None] | None = None
        self.heard: list[Any] = []
        """The runtime's events, as they came."""
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def start(self) -> None:
        """Subscribe."""
        self._listening = asyncio.create_task(self._listen())

    async def heard_of(self, one: str, kind: EventType, patience: float = 30.0) -> Any:
        """The first event of that kind about a container or sandbox, whenever it comes.

        Raises TimeoutError if it does not, and whatever the stream has ended with.
        """
        assert self._listening is not None
        async with asyncio.timeout(patience):
            while True:
                for event in self.heard:
                    if (event.container_id, event.container_event_type) == (one, kind):
                        return event
                if self._listening.done():
                    await self._listening
                    raise AssertionError("the runtime has ended the stream of events")
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Hang up, if need be. Raises AioRpcError if the runtime has refused to tell."""
        if self._listening is None:
            return
        self._listening.cancel()
        try:
            await self._listening
        except asyncio.CancelledError:
            pass
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        finally:
            self._listening = None

    async def _listen(self) -> None:
        async for message in self._runtime.stream("GetContainerEvents"):
            self.heard.append(message)
            self._take(message)

    def _take(self, message: Any) -> None:
        sandbox = message.pod_sandbox_status
        if not sandbox.HasField("metadata"):
            return  # the kubelet passes over it; a relist or the sandbox's own event will tell
        known = sandbox.metadata
        status = PodStatus(
            known.uid,
            known.name,
            known.namespace,
            [sandbox],
            statuses.newest_first(message.containers_statuses),
            statuses.addresses(sandbox),
            message.created_at,
        )
        kind = message.container_event_type
        if kind == EventType.CONTAINER_DELETED_EVENT:
            if message.container_id == sandbox.id:
                self._cache.statuses.pop(known.uid, None)
            self._tell(known.uid, Kind.DIED, message.container_id)
            self._tell(known.uid, Kind.REMOVED, message.container_id)
        elif self._cache.put(status):
            if kind == EventType.CONTAINER_STARTED_EVENT:
                self._tell(known.uid, Kind.STARTED, message.container_id)
            elif kind == EventType.CONTAINER_STOPPED_EVENT:
                self._tell(known.uid, Kind.DIED, message.container_id)

    def _tell(self, uid: str, kind: Kind, one: str) -> None:
        self.events.put_nowait(Event(uid, kind, one))


def _states(pod: RuntimePod) -> dict[str, _Seen]:
    """Of containers and sandboxes, by id."""
    kinds = {State.CONTAINER_RUNNING: _Seen.RUNNING, State.CONTAINER_EXITED: _Seen.EXITED}
    found = {one.id: kinds.get(one.state, _Seen.UNKNOWN) for one in pod.containers}
    for one in pod.sandboxes:
        ready = one.state == SandboxState.SANDBOX_READY
        found[one.id] = _Seen.RUNNING if ready else _Seen.EXITED
    return found


def _events(uid: str, one: str, before: dict[str, _Seen], now: dict[str, _Seen]) -> list[Event]:
    old, new = before.get(one, _Seen.GONE), now.get(one, _Seen.GONE)
    if old is new or new is _Seen.UNKNOWN:
        return []
    if new is _Seen.RUNNING:
        return [Event(uid, Kind.STARTED, one)]
    if new is _Seen.EXITED:
        return [Event(uid, Kind.DIED, one)]
    died = [] if old is _Seen.EXITED else [Event(uid, Kind.DIED, one)]
    return [*died, Event(uid, Kind.REMOVED, one)]


def _has_ready_sandbox(status: PodStatus) -> bool:
    return any(each.state == SandboxState.SANDBOX_READY for each in status.sandboxes)
