"""Spans on their way to a collector, which may be anything."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import grpc
import pytest
import structlog

from cri import tracing
from cri.api.runtime import v1
from cri.errors import NotFoundError
from cri.metrics import Metrics
from cri.rpc.calls import Call
from cri.rpc.table import RUNTIME_SERVICE, Rpc
from cri.tracing import otlp
from cri.tracing.otlp import OtlpTracer
from tests.tracing.collector import Collector

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = ("traceparent", f"00-{TRACE}-{CALLER}-01")
NOT_SAMPLED = ("traceparent", f"00-{TRACE}-{CALLER}-00")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.end()


@pytest.fixture
def counted() -> Counter[str]:
    return Counter()


@pytest.fixture
def make(counted):
    """Makes the tracer that everything uses, until the test ends."""

    def make(endpoint: str, ratio: float = 1.0) -> OtlpTracer:
        tracer = OtlpTracer(endpoint, ratio, lambda outcome, number: counted.update({outcome: number}))
        tracing.use(tracer)
        return tracer

    yield make
    tracing.use(None)


class Context:
    """gRPC's, of one call."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def invocation_metadata(self):
        return self._metadata

    async def abort(self, code, message):
        raise RuntimeError(f"{code.name}: {message}")


def call(method, *, stream: bool = False) -> Call:
    rpc = Rpc("Version", "version", v1.VersionRequest, v1.VersionResponse, stream=stream)
    return Call(RUNTIME_SERVICE, rpc, method, Metrics())


async def test_a_call_and_its_parts_are_one_trace_with_the_caller_s(collector, make, counted):
    async def version(request):
        with tracing.span("first", what="pod \udcff"):
            with tracing.span("inner", number=3, yes=True):
                pass
            # Whatever a task is started for is a part of what starts it.
            await asyncio.create_task(other())
        return v1.VersionResponse(version="1")

    async def other():
        with tracing.span("in another task"):
            await asyncio.sleep(0)

    tracer = make(collector.endpoint, 0.0)  # the caller traces
    await call(version).unary(b"", Context(SAMPLED))
    with tracing.span("nobody's part"):
        pass
    await tracer.close()
    names = {span.name: span for span in collector.spans}
    assert set(names) == {f"{RUNTIME_SERVICE}/Version", "first", "inner", "in another task"}
    whole = names[f"{RUNTIME_SERVICE}/Version"]
    assert (whole.trace, whole.parent) == (TRACE, CALLER)
    assert whole.attributes == {
        "rpc.system": "grpc",
        "rpc.service": RUNTIME_SERVICE,
        "rpc.method": "Version",
        "rpc.grpc.status": "OK",
    }
    (first,) = collector.below(whole)
    assert [span.name for span in collector.below(first)] == ["inner", "in another task"]
    assert first.attributes == {"what": "pod \\udcff"}
    assert names["inner"].attributes == {"number": 3, "yes": True}
    assert whole.began <= first.began <= first.ended <= whole.ended
    assert collector.resources[0]["service.name"] == "cri-jails"
    assert counted == {"ended": 4, "sent": 4}


async def test_what_the_caller_does_not_trace_is_not_traced(collector, make, counted):
    async def version(request):
        with tracing.span("part"):
            return v1.VersionResponse()

    tracer = make(collector.endpoint)
    await call(version).unary(b"", Context(NOT_SAMPLED))
    await tracer.close()
    assert (collector.spans, counted) == ([], {})


@pytest.mark.parametrize("metadata", [(), ("traceparent", "nonsense"), ("traceparent", b"\xff"), ("x", "y")])
async def test_a_caller_that_says_nothing_that_can_be_understood_begins_a_trace(collector, make, metadata):
    async def version(request):
        return v1.VersionResponse()

    tracer = make(collector.endpoint)
    await call(version).unary(b"", Context(*([metadata] if metadata else [])))
    await tracer.close()
    (span,) = collector.spans
    assert (span.parent, span.failed) == ("", "")


async def test_trouble_is_told_and_a_caller_s_own_is_not_ours(collector, make):
    async def missing(request):
        raise NotFoundError("no such pod")

    async def broken(request):
        with tracing.span("part"):
            raise RuntimeError("odd")

    async def stuck(request):
        with tracing.span("long"):
            await asyncio.Event().wait()

    tracer = make(collector.endpoint)
    for method in (missing, broken):
        with pytest.raises(RuntimeError):
            await call(method).unary(b"", Context())
    waiting = asyncio.create_task(call(stuck).unary(b"", Context()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await tracer.close()
    whole = f"{RUNTIME_SERVICE}/Version"
    assert [(span.name, span.failed, span.attributes.get("rpc.grpc.status")) for span in collector.spans] == [
        (whole, "", "NOT_FOUND"),
        ("part", "odd", None),
        (whole, "INTERNAL", "INTERNAL"),
        ("long", "CancelledError", None),
        (whole, "CancelledError", "CANCELLED"),
    ]


async def test_a_stream_is_one_span_wherever_its_generator_ends(collector, make):
    async def version(request):
        for _ in range(3):
            yield v1.VersionResponse()

    tracer = make(collector.endpoint)
    assert len([one async for one in call(version, stream=True).stream(b"", Context())]) == 3
    left = call(version, stream=True).stream(b"", Context())
    await anext(left)
    await asyncio.create_task(left.aclose())  # in another context, as asyncio does to those that are left
    with tracing.span("of its own"):
        pass
    await tracer.close()
    assert [span.parent for span in collector.spans] == ["", "", ""]


async def test_a_collector_that_is_not_there_costs_no_call_anything(make, counted, monkeypatch):
    monkeypatch.setattr(otlp, "PAUSE", 0.05)
    monkeypatch.setattr(otlp, "EXPORT_SECONDS", 0.3)
    monkeypatch.setattr(otlp, "FAREWELL_SECONDS", 0.3)
    with structlog.testing.capture_logs() as logs:
        tracer = make("http://127.0.0.1:1")
        async with asyncio.timeout(10):
            while not counted["failed"]:
                with tracing.span("lost"):
                    await asyncio.sleep(0.01)
        for _ in range(2 * otlp.QUEUE):
            with tracing.span("lost, too"):
                pass
        began = time.monotonic()
        await tracer.close()
        assert time.monotonic() - began < 5
    assert [entry["event"] for entry in logs].count(
        "traces are lost: their collector does not take them"
    ) == 1
    assert counted["sent"] == 0
    assert counted["ended"] > 2 * otlp.QUEUE


async def test_a_collector_that_says_nothing_holds_up_nobody(make, counted, monkeypatch):
    collector = Collector(silent=True)
    monkeypatch.setattr(otlp, "PAUSE", 0.05)
    monkeypatch.setattr(otlp, "FAREWELL_SECONDS", 0.3)
    try:
        tracer = make(collector.endpoint)
        slowest = 0.0
        deadline = time.monotonic() + 1
        while not collector.calls or time.monotonic() < deadline:
            began = time.perf_counter()
            for _ in range(100):
                with tracing.span("waits"):
                    pass
            slowest = max(slowest, time.perf_counter() - began)
            await asyncio.sleep(0.001)
        assert slowest < otlp.EXPORT_SECONDS / 2  # which is what one would wait for the collector
        async with asyncio.timeout(otlp.EXPORT_SECONDS):
            await tracer.close()
    finally:
        collector.end()
    assert counted["sent"] == 0


async def test_a_collector_that_comes_back_is_told_again(make, counted, monkeypatch):
    monkeypatch.setattr(otlp, "PAUSE", 0.05)
    monkeypatch.setattr(otlp, "EXPORT_SECONDS", 0.3)
    first = Collector()
    with structlog.testing.capture_logs() as logs:
        tracer = make(first.endpoint)

        async def until(outcome: str) -> None:
            before = counted[outcome]
            async with asyncio.timeout(20):
                while counted[outcome] == before:
                    with tracing.span("told"):
                        await asyncio.sleep(0.02)

        await until("sent")
        first.end()
        await until("failed")
        second = Collector(first.port)
        await until("sent")
        await tracer.close()
        second.end()
    events = [entry["event"] for entry in logs]
    assert events == [
        "traces are lost: their collector does not take them",
        "the collector takes traces again",
    ]


def test_without_a_collector_nothing_is_made() -> None:
    assert tracing.tracer() is None
    assert tracing.span("x", big=SimpleNamespace()) is tracing.NOTHING
    with tracing.span("x") as span:
        span.set("a", 1)
        span.answered(grpc.StatusCode.OK.name, failed=False)
