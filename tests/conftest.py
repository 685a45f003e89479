"""What all tests share: pytest-grpc on grpc.aio, and skips that count as failures in CI."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

ALLOWED_SKIPS = ("FreeBSD only", "Linux only", "no history here")
"""How the reason of a skip may begin that CI accepts: another kernel's test; an old release's, in a clone that has none."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="a skipped test fails, unless it cannot run here"
    )


def _forbid_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (config.getoption("--no-skips") and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, but --no-skips was given: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    _forbid_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    _forbid_skip(collector.config, report)
    return report


# pytest-grpc serves with threads on TCP. The fixtures below put a grpc.aio server on a unix socket in their place; the
# plugin's own grpc_server, grpc_create_channel, grpc_channel and grpc_stub then work as documented. A test module
# provides `grpc_servicer`: a pair of objects, RuntimeService and ImageService. Stubs are synchronous.


class AioServer:
    """A grpc.aio server on a loop in a thread, with the methods that pytest-grpc calls."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        from cri.rpc.server import OPTIONS

        async def make():
            import grpc

            return grpc.aio.server(options=OPTIONS)

        self.run = run
        self.aio = run(make())

    def add_insecure_port(self, address: str) -> int:
        return self.aio.add_insecure_port(address)

    def start(self) -> None:
        self.run(self.aio.start())

    def stop(self, grace: float | None = None) -> None:
        self.run(self.aio.stop(grace))


@pytest.fixture(scope="module")
def grpc_run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine on the server's event loop and returns its result."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="grpc-loop")
    thread.start()
    yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets, wherever pytest keeps its own."""
    path = Path(tempfile.mkdtemp(prefix="cri-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def grpc_addr(short_dir: Path) -> str:
    return f"unix:{short_dir}/grpc.sock"


@pytest.fixture(scope="module")
def _grpc_server(grpc_run) -> AioServer:
    return AioServer(grpc_run)


@pytest.fixture(scope="module")
def grpc_metrics():
    from cri.metrics import Metrics

    return Metrics()


@pytest.fixture(scope="module")
def grpc_add_to_server(grpc_metrics):
    """Puts the pair of services of `grpc_servicer` on the server."""
    from cri.rpc.server import add_services

    def add(services: tuple[object, object], server: AioServer) -> None:
        async def register() -> None:
            add_services(server.aio, *services, grpc_metrics)

        server.run(register())

    return add


@pytest.fixture(scope="module")
def grpc_stub_cls():
    """A stub with every RPC of the CRI as a method that takes and returns betterproto2 messages."""
    from cri.rpc.table import TABLE

    class Stub:
        def __init__(self, channel) -> None:
            for service, rpcs in TABLE.items():
                for rpc in rpcs:
                    make = channel.unary_stream if rpc.stream else channel.unary_unary
                    call = make(
                        f"/{service}/{rpc.name}",
                        request_serializer=bytes,
                        response_deserializer=rpc.response.parse,
                    )
                    setattr(self, rpc.name, call)

    return Stub
