"""Spans for a collector by OTLP over gRPC. Imports OpenTelemetry, so it is imported only where a collector is configured.

What is told here goes into a queue; a thread of its own sends it. If the collector does not take it, the oldest goes, and
no call waits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cri._version import __version__
from cri.threads import in_own_thread
from cri.tracing import Metadata

log = structlog.get_logger(__name__)

QUEUE = 4096
"""Spans that wait for the collector at most: a few megabytes."""
BATCH = 512
PAUSE = 2.0
"""Seconds between two batches, unless there are many spans."""
EXPORT_SECONDS = 5.0
"""What a batch may take, its retries included."""
FAREWELL_SECONDS = 2.0
"""What the daemon waits at its end for the last spans to be taken."""
_LONGEST = 1000  # characters of a text
_PROPAGATED = ("traceparent", "tracestate")  # https://www.w3.org/TR/trace-context/

_current: ContextVar[Context] = ContextVar("cri_tracing_current")
"""What the current task is doing. Our own, so that a span can be ended wherever a stream's generator is."""


class OtlpTracer:
    """Collects spans and sends them (`cri.tracing.Tracer`)."""

    def __init__(self, endpoint: str, ratio: float, count: Callable[[str, int], object]) -> None:
        """`endpoint` is http(s)://HOST:PORT, `ratio` what part is traced of the calls whose caller does not say.

        `count` is told how many spans have ended, were sent, have failed; from any thread.
        """
        # The library says so each time that a batch fails; here it is said when that begins and ends.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _Exporter(
            OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS), endpoint, count
        )
        self._batches = BatchSpanProcessor(
            self._exporter,
            max_queue_size=QUEUE,
            schedule_delay_millis=PAUSE * 1000,
            max_export_batch_size=BATCH,
        )
        resource = Resource.create(
            {"service.name": "cri-jails", "service.version": __version__, "host.name": socket.gethostname()}
        )
        provider = TracerProvider(
            ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False
        )
        provider.add_span_processor(_Counter(count))
        provider.add_span_processor(self._batches)
        self._tracer = provider.get_tracer("cri-jails", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def span(self, name: str, attributes: Mapping[str, object]) -> _Span:
        """A part of what the current task does."""
        parent = _current.get(None) or Context()
        started = self._tracer.start_span(name, parent)
        made = _Span(started, current=True)
        if started.is_recording():
            for key, value in attributes.items():
                made.set(key, value)
        return made

    def call(self, service: str, rpc: str, metadata: Metadata, *, current: bool) -> _Span:
        """An RPC, as a part of what its caller does."""
        carrier = {key: value for key, value in metadata if key in _PROPAGATED and isinstance(value, str)}
        parent = self._propagator.extract(carrier, Context())
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc}
        started = self._tracer.start_span(
            f"{service}/{rpc}", parent, kind=SpanKind.SERVER, attributes=attributes
        )
        return _Span(started, current=current)

    async def close(self) -> None:
        """Send what is left, if the collector takes it soon."""
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await in_own_thread(self._batches.force_flush)
        except TimeoutError:
            log.warning("the collector of traces does not take the last of them")
        # First, so that the thread of the batches does not try again, and this one need not wait for it.
        self._exporter.shutdown()
        await in_own_thread(self._batches.shutdown)


class _Span:
    """A span, and what the task was doing before."""

    __slots__ = ("_current", "_span", "_token")

    def __init__(self, span: Span, *, current: bool) -> None:
        self._span = span
        self._current = current
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        if self._current:
            self._token = _current.set(set_span_in_context(self._span, Context()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, _text(error) or type(error).__name__))
        self._span.end()

    def set(self, name: str, value: object) -> None:
        """Say more of it."""
        self._span.set_attribute(name, value if isinstance(value, bool | int | float) else _text(value))

    def answered(self, code: str, *, failed: bool) -> None:
        """Say how the call was answered."""
        self._span.set_attribute("rpc.grpc.status", code)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR, code))


class _Counter(SpanProcessor):
    """Counts what ends and is to be sent."""

    def __init__(self, count: Callable[[str, int], object]) -> None:
        self._count = count

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._count("ended", 1)


class _Exporter(SpanExporter):
    """Sends batches, in the processor's thread; tells when that begins to fail, and when it works again."""

    def __init__(self, exporter: SpanExporter, endpoint: str, count: Callable[[str, int], object]) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._count = count
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        self._count("failed" if failed else "sent", len(spans))
        if failed and not self._failing:
            log.warning(
                "traces are lost: their collector does not take them",
                collector=self._endpoint,
                remedy="look whether it listens there, or change tracing.endpoint",
            )
        elif self._failing and not failed:
            log.info("the collector takes traces again", collector=self._endpoint)
        self._failing = failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _text(value: object) -> str:
    """A text as OTLP may have it: paths in messages may hold bytes that are no UTF-8."""
    return str(value)[:_LONGEST].encode("utf-8", "backslashreplace").decode()
