"""Flow control (SPDY Protocol, Draft 3.1, section 2.6.8), among peers of which some have never heard of it.

moby/spdystream, which kubectl, crictl and the kubelet use, does no flow control: it never sends WINDOW_UPDATE or
SETTINGS, drops those that it gets, and sends whatever its user writes. Whoever took the protocol at its word would
wait for ever after 64 KiB. So both directions begin in good faith, and believe what the peer does:

- Sending, windows are counted from the first byte, but waited for only once the peer has shown that it opens them:
  by a WINDOW_UPDATE, or by a SETTINGS with INITIAL_WINDOW_SIZE. Streams and the session are believed separately, as
  SPDY/3 without .1 has no window of the session.
- Receiving, we open windows as data is consumed. A peer that has shown flow control and overruns one is in error. A
  peer that has not, and does, is `heedless`: it gets no more WINDOW_UPDATEs, which spdystream would queue behind data.

What really bounds memory is that the connection is not read while a buffer is full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cri.streaming.spdy.frames import MAX_WINDOW

DEFAULT_WINDOW: Final = 64 * 1024
"""Bytes of every window to begin with (2.6.8)."""


class SendWindow:
    """Room for bytes that the peer has promised to take.

    That of a stream is counted from the size that all streams have to begin with, as SETTINGS changes it for every one
    that is open: what this has is what was promised beyond it, less what was sent.
    """

    def __init__(self, size: int = 0) -> None:
        self.room = size
        """Bytes; negative if we sent before we knew that the peer counts, or if it has made its windows smaller."""

    def spend(self, size: int) -> None:
        """Count bytes that are being sent."""
        self.room -= size

    def grow(self, delta: int, base: int = 0) -> bool:
        """Take more room. False if that makes a window, which begins with `base`, larger than there may be."""
        self.room += delta
        return base + self.room <= MAX_WINDOW


class ReceiveWindow:
    """Room for bytes that we have promised to take."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._room = size
        self._consumed = 0

    def spend(self, size: int) -> bool:
        """Count bytes that have come. False if that was more than there was room for."""
        self._room -= size
        return self._room >= 0

    def consume(self, size: int) -> int:
        """Count bytes that are out of the way; how much to open the window by: 0 until it is worth a frame."""
        self._consumed += size
        if 2 * self._consumed < self._size:
            return 0
        delta, self._consumed = self._consumed, 0
        self._room += delta
        return delta


@dataclass(slots=True)
class Heed:
    """What a peer has shown of flow control."""

    streams: bool = False
    """It opens the windows of streams."""
    session: bool = False
    """It opens the session's window."""
    heedless: bool = False
    """It sends without looking at windows."""
