"""A client of a gRPC server that asks and does not read: HTTP/2 by hand, with flow-control windows that stay shut."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value  # a literal, not indexed


class UnreadClient:
    """One connection."""

    def __init__(self, path: Path | str, window: int = 0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.sendall(
            _PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))
        )
        self._stream = 1

    def call(self, rpc: str, request: bytes = b"") -> None:
        """Ask, and leave it at that. `rpc` is a service and a method, such as `runtime.v1.ImageService/ListImages`."""
        headers = (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/" + rpc.encode()), (b":authority", b"x"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        )  # fmt: skip
        message = b"\0" + struct.pack(">I", len(request)) + request
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, b"".join(_header(*pair) for pair in headers))
            + _frame(_DATA, _END_STREAM, self._stream, message)
        )
        self._stream += 2

    def received(self, patience: float) -> bytes:
        """What has come, after a wait for something to come."""
        self._socket.settimeout(patience)
        try:
            return self._socket.recv(1 << 20)
        except TimeoutError:
            return b""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
