"""How much of the daemon one client may have."""

from __future__ import annotations

from dataclasses import dataclass

KiB = 1024
MiB = 1024 * KiB


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection."""

    control_frame: int = 16 * KiB
    """Bytes after the head of a control frame that has a meaning; section 2.2.1 asks for 8 KiB at least."""

    header_block: int = 64 * KiB
    """Bytes of a name/value block after decompression. Kubernetes sends about a hundred."""

    header_count: int = 100
    """Pairs in a name/value block. Kubernetes sends three."""

    open_streams: int = 2048
    """Streams at a time; the client is refused more. A forwarded connection takes two, and a descriptor of the daemon."""

    unaccepted_streams: int = 128
    """Opened, but not accepted yet; then the client is read no further."""

    stream_buffer: int = 512 * KiB
    """Bytes that a stream's reader has not taken yet; then the client is read no further. Also the window we offer."""

    connection_buffer: int = 4 * MiB
    """Likewise, of all streams together."""

    answers: int = 64
    """PINGs and RST_STREAMs of ours that wait to be written; then the client is read no further."""
