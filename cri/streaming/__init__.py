"""Exec, attach and port-forward: an HTTP server whose connections become SPDY or WebSockets.

Written from the outside in: `requests` answers RPCs with URLs, `server` takes the connections, `carriers` makes sessions
of them (`spdy/`, `websocket/`), and `execs`, `attachments` and `forwarding` serve these.
"""

from cri.streaming.requests import StreamingRequests

__all__ = ["StreamingRequests"]
