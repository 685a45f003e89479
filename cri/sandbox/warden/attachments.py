"""Who is attached to a container, and how its output gets to them without holding up the log for long.

What a reader does not take at once waits in a backlog of its own. When that is full, the container's outputs are not read any
further, so the process waits as it would at a terminal. A reader that goes on gets every byte; one that takes nothing at all for
`PATIENCE` while somebody waits for it is let go.

A pipe becomes writable by whole pages, so to take something means to take about 4 KiB: who reads less in a second cannot be
told from who reads nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping

from cri.sandbox.warden import protocol
from cri.sandbox.warden.loop import WRITE, Watcher
from cri.sandbox.warden.stdin import Source, Stdin

BACKLOG = 1024 * 1024
"""Bytes that wait for a reader, beyond what its pipe holds, before the container is held up."""
PATIENCE = 1.0
"""Seconds in which a reader that somebody waits for must take something."""

IDLE = (
    f"it has taken too little for {PATIENCE:g} s while output was waiting; the container's log has everything"
)
UNREAD = "nobody reads its output any more"
DETACHED = "it was detached"


class Attachments:
    """Everybody who is attached to one container."""

    def __init__(self, loop: Watcher, hold: Callable[[bool], None]) -> None:
        """`hold` is called with True when no more output must come for now, with False when it may again."""
        self._loop = loop
        self._hold = hold
        self._ends: dict[str, list[AttachedEnd]] = {}
        """The ends that each living stream of the container goes to."""
        self._full: set[AttachedEnd] = set()

    def begin(self, stream: str) -> None:
        """The container has this stream."""
        self._ends[stream] = []

    def feed(self, stream: str, data: bytes) -> None:
        """Output for everybody who is attached to the stream."""
        for end in tuple(self._ends[stream]):
            end.feed(data)

    def end(self, stream: str) -> None:
        """No more comes from this stream; what waits is still delivered."""
        for end in self._ends.pop(stream):
            end.finish()

    def attach(
        self,
        stdin: Stdin | None,
        source: int | None,
        outputs: Mapping[str, int],
        ended: Callable[[str], None],
    ) -> Attachment:
        """Connect descriptors, which are the attachment's from now on; `ended` is called once, with the reason.

        An output that the container has not, or has no more, ends at once. Raises OSError if `source`, which is for
        `stdin`, cannot be waited for; everything is closed then.
        """
        attachment = Attachment(self._loop, ended)
        if stdin is not None and source is not None:
            try:
                attachment.listen(stdin, source)
            except OSError:
                protocol.close_all(list(outputs.values()))
                raise
        ends = {name: AttachedEnd(self._loop, fd, attachment, self) for name, fd in outputs.items()}
        attachment.connect(ends.values())
        for name, end in ends.items():
            if name in self._ends:
                self._ends[name].append(end)
            else:
                end.finish()
        return attachment

    # What the ends tell

    def is_full(self, end: AttachedEnd) -> None:
        """No more must come, for the sake of this end."""
        self._full.add(end)
        if len(self._full) == 1:
            self._hold(True)

    def has_room(self, end: AttachedEnd) -> None:
        """This end can take more again, or has gone."""
        if end in self._full:
            self._full.remove(end)
            if not self._full:
                self._hold(False)

    def has_gone(self, end: AttachedEnd) -> None:
        """This end is closed."""
        for ends in self._ends.values():
            if end in ends:
                ends.remove(end)
        self.has_room(end)


class Attachment:
    """Somebody's streams, connected to those of a container."""

    def __init__(self, loop: Watcher, ended: Callable[[str], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._ends: list[AttachedEnd] = []
        self._stdin: Stdin | None = None
        self._source: Source | None = None
        self._reason = ""
        self.is_over = False
        self._moved_at = 0.0
        """When something was last taken."""
        self._judging = False

    def connect(self, ends: Iterable[AttachedEnd]) -> None:
        """Have these ends."""
        self._ends = list(ends)

    def listen(self, stdin: Stdin, fd: int) -> None:
        """Feed the container with what comes from a descriptor. Raises OSError, and closes it, if it cannot be waited for."""
        self._source = stdin.add(fd, self._all_said)
        self._stdin = stdin

    def close(self, reason: str = DETACHED) -> None:
        """Let go of everything. What its client has said so far is heard; what it has not read is lost. May be repeated."""
        if self.is_over:
            return
        self.is_over = True
        for end in self._ends:
            end.close()
        self._ends.clear()
        source, self._source = self._source, None
        if source is not None and self._stdin is not None:
            self._stdin.remove(source)
        self._ended(reason)

    # What its ends tell

    def took(self) -> None:
        """Somebody has read."""
        self._moved_at = time.monotonic()

    def hurry(self) -> None:
        """From now on somebody waits for it."""
        if not self._judging:
            self._judging = True
            self._moved_at = time.monotonic()
            self._loop.later(PATIENCE, self._judge)

    def delivered(self, end: AttachedEnd) -> None:
        """The container's stream has ended, and all of it was taken."""
        self._ends.remove(end)
        if not self._ends:
            self.close(self._reason)

    def unread(self, end: AttachedEnd) -> None:
        """The reader of an end has gone."""
        self._ends.remove(end)
        self._reason = UNREAD
        if not self._ends and self._source is None:
            self.close(self._reason)

    def _all_said(self) -> None:
        """Its stdin has ended, or the container's has."""
        self._source = None
        if not self._ends:
            self.close(self._reason)

    def _judge(self) -> None:
        self._judging = False
        if not any(end.is_awaited for end in self._ends):
            return
        left = self._moved_at + PATIENCE - time.monotonic()
        if left <= 0:
            self.close(IDLE)
        else:
            self._judging = True
            self._loop.later(left, self._judge)


class AttachedEnd:
    """The descriptor that one output goes to, and what waits for its reader."""

    def __init__(self, loop: Watcher, fd: int, attachment: Attachment, owner: Attachments) -> None:
        self._loop = loop
        self._fd = fd
        self._attachment = attachment
        self._owner = owner
        self._waiting = bytearray()
        self._watched = False
        self._full = False
        self._finishing = False
        os.set_blocking(fd, False)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for its reader: the container, or the end of the attachment."""
        return self._full or self._finishing

    def feed(self, data: bytes) -> None:
        """Give the reader what it takes, and keep the rest."""
        if self._fd < 0:
            return
        if self._waiting:
            self._waiting += data
        else:
            taken = self._write(data)
            if self._fd < 0 or taken == len(data):
                return
            self._waiting += memoryview(data)[taken:]
            self._watch()
        if len(self._waiting) >= BACKLOG and not self._full:
            self._full = True
            self._owner.is_full(self)
            self._attachment.hurry()

    def finish(self) -> None:
        """No more comes: close it as soon as all is taken."""
        if self._fd < 0:
            return
        self._finishing = True
        self._release()
        if self._waiting:
            self._attachment.hurry()
        else:
            self.close()
            self._attachment.delivered(self)

    def close(self) -> None:
        """Close it; what waits is lost."""
        self._unwatch()
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._waiting.clear()
        self._owner.has_gone(self)

    def _flush(self) -> None:
        del self._waiting[: self._write(self._waiting)]
        if self._fd < 0:
            return
        if len(self._waiting) <= BACKLOG // 2:
            self._release()
        if self._waiting:
            return
        if self._finishing:
            self.close()
            self._attachment.delivered(self)
        else:
            self._unwatch()

    def _release(self) -> None:
        if self._full:
            self._full = False
            self._owner.has_room(self)

    def _write(self, data: bytes | bytearray) -> int:
        """How much was taken. If nobody reads any more, it is closed."""
        try:
            taken = os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:  # EPIPE
            self._lose()
            return 0
        self._attachment.took()
        return taken

    def _watch(self) -> None:
        try:
            self._loop.watch(self._fd, WRITE, lambda _: self._flush())
            self._watched = True
        except OSError:
            self._lose()

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.unwatch(self._fd)
            self._watched = False

    def _lose(self) -> None:
        self.close()
        self._attachment.unread(self)
