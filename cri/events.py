"""What happens to pods and containers, told to whoever listens: GetContainerEvents.

The life cycles say what has changed in the same turn of the loop in which everybody is shown it, so no event is ahead of what a
status says. An event has the whole pod as it was then. It is encoded when the first subscriber takes it, once for all; while
nobody listens, nothing is done but to note what changed last.

The kubelet (pkg/kubelet/pleg/evented.go and container/cache.go) takes what an event or a PodSandboxStatus says of a pod for
newer than what it has by their times, which come from one clock here, and never go back. It lists *before* it subscribes
anew, and what happens between would be lost to it for five minutes. So a new subscriber is told first what changed last in
that time, with the time when it did: what the kubelet knows already it passes over. What a daemon finds at its start that
ended while there was none is told in this way, too.

A subscriber that does not keep up gets, of each container and sandbox, what happened to it last: the order stays, no end is
lost, and what is kept for it does not grow with what happens, only with what there is. What there is no more counts, and
who leaves too much of that has its stream ended, to list and subscribe anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from cri import encode
from cri.api.runtime import v1
from cri.errors import ResourceExhaustedError
from cri.rpc import answers
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.state import ContainerRecord, SandboxRecord
from cri.statuses import Moment, Statuses, fields

log = structlog.get_logger(__name__)

RECENT = 300 * 1_000_000_000
"""Nanoseconds that a change is told to new subscribers: as long as a kubelet that listens does not list."""

MOST_SUBSCRIBERS = 64
"""A node has one kubelet, and some people."""

PENDING = 256
"""Events that wait for a subscriber before older ones make way for newer ones of the same object."""

MOST_GONE = 16 * 1024 * 1024
"""Bytes that may be kept for a subscriber of what there is no more."""

_EVENT_BYTES = 4096
"""About what an event takes beside the configs of its pod."""

Kind: TypeAlias = v1.ContainerEventType
CREATED = v1.ContainerEventType.CONTAINER_CREATED_EVENT
STARTED = v1.ContainerEventType.CONTAINER_STARTED_EVENT
STOPPED = v1.ContainerEventType.CONTAINER_STOPPED_EVENT
DELETED = v1.ContainerEventType.CONTAINER_DELETED_EVENT

_OF_CONTAINERS: Mapping[str, Kind | None] = {
    ContainerState.CREATING: None,
    ContainerState.CREATED: CREATED,
    ContainerState.STARTING: CREATED,
    ContainerState.RUNNING: STARTED,
    ContainerState.EXITED: STOPPED,
    ContainerState.UNKNOWN: None,
    ContainerState.REMOVING: STOPPED,
}
"""The event that says that a container is in this state, as clients are shown it."""

_CREATING = SandboxState.CREATING.value
"""Of sandboxes and of containers: clients are not shown them yet."""

_OF_SANDBOXES: Mapping[str, Kind | None] = {
    SandboxState.CREATING: None,
    SandboxState.READY: STARTED,
    SandboxState.NOTREADY: STOPPED,
    SandboxState.REMOVING: STOPPED,
}


@dataclass(slots=True)
class Event:
    """Something that has happened; all subscribers have the same one."""

    of: str
    """The id of the container or sandbox."""
    kind: Kind
    at: int
    """Nanoseconds since the epoch; no two events have the same."""
    moment: Moment
    _encoding: asyncio.Future[bytes] | None = None

    async def encoded(self, statuses: Statuses) -> bytes:
        """A ContainerEventResponse."""
        if self._encoding is None:
            self._encoding = asyncio.ensure_future(self._encode(statuses))
        return await asyncio.shield(self._encoding)

    def forget(self) -> None:
        """Let go of what is encoded: who needs it later has it made anew."""
        if self._encoding is not None and self._encoding.done():
            self._encoding = None

    @property
    def weight(self) -> int:
        """About how many bytes it keeps of what there is no more."""
        return _EVENT_BYTES + self.moment.size if self.kind is DELETED else 0

    async def _encode(self, statuses: Statuses) -> bytes:
        pod, containers = await statuses.of_pod(self.moment)
        of = self.of.encode()
        head = [
            encode.header(1, len(of)), of, encode.number(2, self.kind), encode.number(3, self.at),
        ]  # fmt: skip
        pieces = [*head, *fields(4, [pod]), *fields(5, containers)]
        if (size := sum(map(len, pieces))) > answers.MAX_MESSAGE_BYTES:
            # Without the sandbox's status the kubelet passes over it, and lists.
            log.warning(
                "an event goes without statuses: no client takes so large a message", of=self.of, bytes=size
            )
            return b"".join(head)
        return await answers.whole(pieces, size)


@dataclass(slots=True, eq=False)
class _Subscriber:
    """What waits for one subscriber."""

    pending: deque[Event] = field(default_factory=deque)
    most: int = PENDING
    is_overrun: bool = False
    has_ended: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: Event) -> None:
        if self.is_overrun:
            return
        self.pending.append(event)
        if len(self.pending) > self.most:
            self._make_way()
        self.news.set()

    async def take(self) -> Event | None:
        """The next event; None when there will be no more. Raises ResourceExhaustedError."""
        while not (self.pending or self.is_overrun or self.has_ended):
            self.news.clear()
            await self.news.wait()
        if self.has_ended:
            return None
        if self.is_overrun:
            raise ResourceExhaustedError(
                "GetContainerEvents: too many events were not taken in time; list what there is, and subscribe anew"
            )
        event = self.pending.popleft()
        if not self.pending:
            self.most = PENDING
        return event

    def end(self) -> None:
        self.has_ended = True
        self.news.set()

    def _make_way(self) -> None:
        """Keep the last event of each object. What is kept may double before that is done again."""
        last: dict[str, Event] = {}
        for event in self.pending:
            event.forget()
            last.pop(event.of, None)
            last[event.of] = event
        self.pending = deque(last.values())
        self.most = max(PENDING, 2 * len(self.pending))
        if sum(event.weight for event in last.values()) > MOST_GONE:
            self.pending.clear()
            self.is_overrun = True


class Events:
    """Who listens, and what changed last. Used from the event loop. It is the life cycles' `Witness`."""

    def __init__(self) -> None:
        self._sandboxes: Mapping[str, PodSandbox] = {}
        self._subscribers: set[_Subscriber] = set()
        self._recent: OrderedDict[str, tuple[str, Kind, int]] = OrderedDict()
        """By id of container or sandbox, the oldest first: the sandbox, what happened last, and when."""
        self._last = 0
        self._ended = False

    def watch(self, sandboxes: Mapping[str, PodSandbox]) -> None:
        """The pods that events are about. Nobody may subscribe before."""
        self._sandboxes = sandboxes

    def now(self) -> int:
        """The time, in nanoseconds since the epoch, but later than ever before, even if the node's clock is set back."""
        self._last = max(time.time_ns(), self._last + 1)
        return self._last

    def changed(self, record: SandboxRecord | ContainerRecord, before: str) -> None:
        """See `Witness`."""
        if isinstance(record, SandboxRecord):
            of, sandbox_id, kinds = record.id, record.id, _OF_SANDBOXES
        else:
            of, sandbox_id, kinds = record.id, record.sandbox_id, _OF_CONTAINERS
        was, kind = kinds[before], kinds[record.state]
        if kind is None or kind is was:
            return
        if before == _CREATING and kind is not CREATED:
            # A sandbox is there and ready, or not, in one step.
            self._happened(of, CREATED, sandbox_id)
        self._happened(of, kind, sandbox_id)

    def gone(self, record: SandboxRecord | ContainerRecord) -> None:
        """See `Witness`."""
        if record.state != _CREATING:
            sandbox_id = record.id if isinstance(record, SandboxRecord) else record.sandbox_id
            self._happened(record.id, DELETED, sandbox_id)
            del self._recent[record.id]

    async def follow(self, statuses: Statuses) -> AsyncGenerator[bytes, None]:
        """What has changed lately, and then what happens, each as a ContainerEventResponse, until the daemon ends.

        Raises ResourceExhaustedError if there are too many subscribers, or if this one does not keep up.
        """
        if len(self._subscribers) >= MOST_SUBSCRIBERS:
            raise ResourceExhaustedError(
                f"GetContainerEvents: there are {MOST_SUBSCRIBERS} subscribers already; end some of them"
            )
        if self._ended:
            return
        subscriber = _Subscriber()
        for event in self._lately():
            subscriber.put(event)
        self._subscribers.add(subscriber)
        try:
            while (taken := await subscriber.take()) is not None:
                yield await taken.encoded(statuses)
        finally:
            self._subscribers.discard(subscriber)

    def end(self) -> None:
        """End all streams, and let no more begin: the daemon ends."""
        self._ended = True
        for subscriber in self._subscribers:
            subscriber.end()

    def _happened(self, of: str, kind: Kind, sandbox_id: str) -> None:
        at = self.now()
        self._recent.pop(of, None)
        self._recent[of] = sandbox_id, kind, at
        self._forget_before(at - RECENT)
        if self._subscribers and (sandbox := self._sandboxes.get(sandbox_id)) is not None:
            event = Event(of, kind, at, Moment.of(sandbox))
            for subscriber in self._subscribers:
                subscriber.put(event)

    def _lately(self) -> list[Event]:
        self._forget_before(time.time_ns() - RECENT)
        moments: dict[str, Moment] = {}
        found = []
        for of, (sandbox_id, kind, at) in self._recent.items():
            if (sandbox := self._sandboxes.get(sandbox_id)) is not None:
                moment = moments.get(sandbox_id) or moments.setdefault(sandbox_id, Moment.of(sandbox))
                found.append(Event(of, kind, at, moment))
        return found

    def _forget_before(self, time: int) -> None:
        while self._recent and next(iter(self._recent.values()))[2] < time:
            self._recent.popitem(last=False)
