"""What every call goes through: decode, bind the log's context, call the service, measure, map the error."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import betterproto2
import grpc
import structlog

from cri import garbage, tracing
from cri.errors import UnsupportedError
from cri.metrics import Metrics
from cri.rpc import answers, descriptors, fields, messages
from cri.rpc.errors import code_of, message_of
from cri.rpc.room import Room
from cri.rpc.table import UNIMPLEMENTED, Rpc

log: structlog.stdlib.BoundLogger = structlog.get_logger("cri.rpc")
_debug = logging.getLogger("cri.rpc")

_IDS = (("pod_sandbox_id", "sandbox"), ("container_id", "container"))
"""Fields of requests that every log line of the call shows, and under which name."""

_ROUTINE = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
    }
)
"""Answers that tell of the caller's doing, not of trouble on the node."""

_FINE = _ROUTINE | {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


LONG_REQUEST = 64 * 1024
"""Bytes from which on a request is read in a thread: some ten times what the kubelet sends."""

READ_AT_ONCE = 1
"""Long requests of an RPC that are read at the same time: it is work for the processor, and others want it too."""


SYSTEM = "freebsd" if sys.platform.startswith("freebsd") else "linux"
"""What requests are held to (`cri.rpc.fields`)."""


@dataclass(slots=True)
class _Outcome:
    code: grpc.StatusCode = grpc.StatusCode.OK
    waited: float = 0.0
    """Seconds, for others' clients to take their answers."""


class Call:
    """One RPC of one service: `unary` or `stream` is the handler for grpc.aio, without serializers.

    grpc.aio runs every call in a task of its own, so what is bound to the log's context here ends with the call. A call
    that is cancelled (the client hung up, or its deadline passed) is counted as CANCELLED, and the cancellation goes on to
    grpc.aio untouched; what must be finished none the less, the services shield.
    """

    def __init__(
        self,
        service_name: str,
        rpc: Rpc,
        method: Callable[[Any], Any],
        metrics: Metrics,
        room: Room | None = None,
    ) -> None:
        self.rpc = rpc
        self._service_name = service_name
        self._method = method
        self._room = room or Room()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._strict = descriptors.strict_class(descriptors.full_name(rpc.request))
        fields = self._strict.DESCRIPTOR.fields_by_name
        self._ids = [(field, name) for field, name in _IDS if field in fields]
        self._seconds = metrics.rpc_seconds.labels(service_name, rpc.name)
        self._in_flight = metrics.rpc_in_flight.labels(service_name, rpc.name)
        self._totals = {
            code: metrics.rpc_total.labels(service_name, rpc.name, code.name) for code in grpc.StatusCode
        }

    async def unary(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Answer one request with one response."""
        with self._observed(context) as outcome:
            try:
                parts = await answers.parts(self._method(await self._received(data)))
                return await self._whole(parts, outcome)
            except Exception as error:  # noqa: BLE001 - every error becomes an answer here
                outcome.code, message = self._judge(error)
        return await _abort(context, outcome.code, message)

    async def stream(self, data: bytes, context: grpc.aio.ServicerContext) -> AsyncGenerator[bytes, None]:
        """Answer one request with a stream of responses."""
        with self._observed(context) as outcome:
            try:
                async with aclosing(self._method(await self._received(data))) as messages:
                    async for message in messages:
                        yield await self._whole([answers.encoded(message)], outcome)
                        self._room.give_back()
            except Exception as error:  # noqa: BLE001 - every error becomes an answer here
                outcome.code, message = self._judge(error)
            else:
                return
        await _abort(context, outcome.code, message)

    async def _whole(self, parts: answers.Parts, outcome: _Outcome) -> bytes:
        """A message in one piece, as gRPC wants it, once there is room for it. Raises ResourceExhaustedError."""
        size = answers.checked_size(parts, self.rpc)
        began = time.perf_counter()
        try:
            await self._room.take(size)
        finally:
            outcome.waited += time.perf_counter() - began
        return await answers.whole(parts, size)

    async def _received(self, data: bytes) -> betterproto2.Message:
        """As `_request`; a long one is read in a thread."""
        if len(data) <= LONG_REQUEST:
            return self._request(data)
        async with self._reading:
            request, ids = await asyncio.to_thread(self._read_long, data)
        structlog.contextvars.bind_contextvars(rpc=self.rpc.name, **ids)
        return request

    def _request(self, data: bytes) -> betterproto2.Message:
        """The request, or InvalidArgumentError; binds its ids to the log's context."""
        structlog.contextvars.bind_contextvars(rpc=self.rpc.name)
        if not data:
            return self.rpc.request()
        request, ids = self._read(data)
        structlog.contextvars.bind_contextvars(**ids)
        return request

    def _read(self, data: bytes) -> tuple[betterproto2.Message, dict[str, str]]:
        """The request, and its ids under the names that the log has for them.

        Raises InvalidArgumentError or UnsupportedError for what is refused by looking at it (`cri.rpc.fields`).
        """
        strict = descriptors.check(self._strict, data, self.rpc.name)
        if self.rpc.name not in UNIMPLEMENTED:
            fields.check(strict, SYSTEM)
        ids = {name: value for field, name in self._ids if (value := getattr(strict, field))}
        if _debug.isEnabledFor(logging.DEBUG):
            log.debug("request", **ids, request=descriptors.redacted(strict))
        return messages.adopted(self.rpc.request, strict), ids

    def _read_long(self, data: bytes) -> tuple[betterproto2.Message, dict[str, str]]:
        with garbage.paused():
            return self._read(data)

    @contextmanager
    def _observed(self, context: grpc.aio.ServicerContext) -> Iterator[_Outcome]:
        """Count, time and trace the call."""
        outcome = _Outcome()
        began = time.perf_counter()
        self._in_flight.inc()
        try:
            with self._traced(context) as span:
                try:
                    yield outcome
                except BaseException:
                    outcome.code = grpc.StatusCode.CANCELLED
                    raise
                finally:
                    span.answered(outcome.code.name, failed=outcome.code not in _FINE)
        finally:
            took = time.perf_counter() - began
            self._in_flight.dec()
            self._seconds.observe(took)
            self._totals[outcome.code].inc()
            if self.rpc.slow_after is not None and took - outcome.waited > self.rpc.slow_after:
                log.warning("slow call", seconds=round(took, 3), code=outcome.code.name)

    def _traced(self, context: grpc.aio.ServicerContext) -> tracing.Span:
        if (tracer := tracing.tracer()) is None:
            return tracing.NOTHING
        # The task goes on with a stream's generator now and then, and with others' work in between.
        return tracer.call(
            self._service_name,
            self.rpc.name,
            context.invocation_metadata() or (),
            current=not self.rpc.stream,
        )

    def _judge(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        """The answer that an error becomes; logs it."""
        code = code_of(error)
        message = message_of(error, self.rpc.name)
        if code is None:
            log.error("call failed unexpectedly", exc_info=error)
            return grpc.StatusCode.INTERNAL, message
        level = logging.DEBUG if code in _ROUTINE else logging.WARNING
        log.log(level, "call failed", code=code.name, error=str(error))
        return code, message


def unimplemented(rpc: Rpc, reason: str) -> Callable[[Any], Any]:
    """A service method that refuses, in the words of gRPC's own servers: the kubelet's tests look for them."""
    message = f"method {rpc.name} not implemented: {reason}"

    async def refuse(_request: betterproto2.Message) -> NoReturn:
        raise UnsupportedError(message)

    async def refuse_stream(_request: betterproto2.Message) -> AsyncGenerator[bytes, None]:
        raise UnsupportedError(message)
        yield b""  # marks an asynchronous generator

    return refuse_stream if rpc.stream else refuse


async def _abort(context: grpc.aio.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")
