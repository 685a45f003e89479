"""Both services of a runtime, called as the kubelet's cri-client calls them: its time limits, sizes and reconnection.

Requests are betterproto2's messages. Answers are protobuf's own: they are parsed as strictly as a kubelet parses them, and
five hundred times as fast, so that whoever polls 110 pods each second measures the runtime and not itself.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

# Those who use this start processes, and need no gRPC in what they fork; on FreeBSD that has crashed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio

from cri.rpc import descriptors
from cri.rpc.table import TABLE, Rpc

REQUEST_SECONDS = 120.0
"""The kubelet's runtimeRequestTimeout."""

OPTIONS = [
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 3000),
    # Or the client of a new daemon may be given the connection to one that was killed.
    ("grpc.use_local_subchannel_pool", 1),
]

RPCS: dict[str, tuple[str, Rpc]] = {
    rpc.name: (service, rpc) for service, rpcs in TABLE.items() for rpc in rpcs
}


class Runtime:
    """Coroutines by RPC name. An error of the runtime is a grpc.aio.AioRpcError; nothing is tried twice."""

    def __init__(self, socket: Path) -> None:
        self._address = f"unix:{socket}"
        self._channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        self.calls: list[str] = []
        """Every RPC that was called, in order; `order_since` shows what one duty is made of."""
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        """How long each call took that was answered, by RPC."""
        self.failures: collections.Counter[tuple[str, str]] = collections.Counter()
        """RPC and status code of those that were not."""
        self._made: dict[str, Any] = {}

    async def __call__(self, rpc: str, *, seconds: float | None = REQUEST_SECONDS, **fields: Any) -> Any:
        """Call a unary RPC with a request of these fields; the answer. `seconds` of None: no time limit."""
        self.calls.append(rpc)
        began = time.perf_counter()
        try:
            answer = await self._method(rpc)(RPCS[rpc][1].request(**fields), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            self.failures[rpc, error.code().name] += 1
            raise
        self.seconds[rpc].append(time.perf_counter() - began)
        return answer

    async def stream(self, rpc: str, **fields: Any) -> AsyncIterator[Any]:
        """The messages of a streaming RPC, until it ends or the caller has enough."""
        self.calls.append(rpc)
        call = self._method(rpc)(RPCS[rpc][1].request(**fields))
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()

    def order_since(self, mark: int) -> list[str]:
        """The RPCs since there were `mark` calls, without repetitions in a row."""
        since = self.calls[mark:]
        return [rpc for before, rpc in zip(["", *since], since, strict=False) if rpc != before]

    async def reconnect(self) -> None:
        """Hang up and call anew, at once; a connection that was lost waits before it is tried again."""
        await self._channel.close()
        self._made.clear()
        self._channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    def _method(self, name: str) -> Any:
        if name not in self._made:
            service, rpc = RPCS[name]
            make = self._channel.unary_stream if rpc.stream else self._channel.unary_unary
            answer = descriptors.strict_class(descriptors.full_name(rpc.response))
            self._made[name] = make(
                f"/{service}/{name}", request_serializer=bytes, response_deserializer=answer.FromString
            )
        return self._made[name]


def is_not_found(error: grpc.aio.AioRpcError) -> bool:
    """Whether the kubelet goes on as if the object had never been there."""
    return bool(error.code() is grpc.StatusCode.NOT_FOUND)
