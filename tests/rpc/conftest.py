"""Services that answer nothing by themselves: each test says what a method does."""

from __future__ import annotations

import pytest

from cri.rpc.table import IMAGE_SERVICE, RUNTIME_SERVICE, TABLE, UNIMPLEMENTED, Rpc


def make_service(name: str) -> object:
    """An object that serves a whole service; `object.does[rpc]` is called with the request, and answers."""

    def method(rpc: Rpc):
        async def unary(self, request):
            action = self.does.get(rpc.name, lambda _: rpc.response())
            result = action(request)
            return await result if hasattr(result, "__await__") else result

        async def stream(self, request):
            for answer in self.does.get(rpc.name, lambda _: ())(request):
                yield answer

        return stream if rpc.stream else unary

    methods = {rpc.method: method(rpc) for rpc in TABLE[name] if rpc.name not in UNIMPLEMENTED}
    service = type(name.rpartition(".")[2], (), methods)()
    service.does = {}
    return service


@pytest.fixture(scope="module")
def grpc_servicer() -> tuple[object, object]:
    return make_service(RUNTIME_SERVICE), make_service(IMAGE_SERVICE)


@pytest.fixture
def does(grpc_servicer):
    """What the services' methods do, by RPC name; empty again after the test."""
    runtime, image = grpc_servicer
    image.does = runtime.does
    yield runtime.does
    runtime.does.clear()
