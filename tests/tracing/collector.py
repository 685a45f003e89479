"""A collector of traces, in the test's process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it has come."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: str
    """Why, or that it has not."""
    began: int
    ended: int


class Collector(TraceServiceServicer):
    """Keeps what comes. `silent` has it say nothing until the caller gives up."""

    def __init__(self, port: int = 0, *, silent: bool = False) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.calls = 0
        self._silent = silent
        self._ending = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._server.start()

    def Export(self, request, context):  # noqa: N802 - as gRPC has it
        self.calls += 1
        if self._silent:
            self._ending.wait()
        for one in request.resource_spans:
            self.resources.append(_values(one.resource.attributes))
            for scope in one.scope_spans:
                self.spans += [
                    Span(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        _values(span.attributes),
                        span.status.message or "error" if span.status.code == 2 else "",
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                    )
                    for span in scope.spans
                ]
        return service.ExportTraceServiceResponse()

    def wait_for(self, name: str, patience: float = 15.0) -> Span:
        deadline = time.monotonic() + patience
        while not (found := [span for span in self.spans if span.name == name]):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.05)
        return found[-1]

    def below(self, parent: Span) -> list[Span]:
        """The parts of a span, in order."""
        parts = [span for span in self.spans if span.parent == parent.id and span.trace == parent.trace]
        return sorted(parts, key=lambda span: span.began)

    def end(self) -> None:
        self._ending.set()
        self._server.stop(0).wait()


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
