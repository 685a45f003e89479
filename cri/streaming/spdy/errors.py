"""What a client can break."""

from __future__ import annotations


class SpdyError(Exception):
    """The client broke the protocol, or one of our limits, in a way that only the end of the connection mends.

    The message holds numbers and names of the protocol, nothing that the client has sent as text.
    Source: SPDY Protocol, Draft 3.1, section 2.4.1 (session error handling).
    """
