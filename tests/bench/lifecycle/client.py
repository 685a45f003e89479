"""A CRI client that costs little itself: upb messages made from the vendored proto, on a plain grpcio channel."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from nodekit import places
from nodekit.processes import run

PROTO = places.CHECKOUT / "cri" / "api" / "proto" / "api.proto"
PACKAGE = "runtime.v1"


def load_services() -> tuple[Any, Any]:
    """Return the descriptors of RuntimeService and ImageService, compiled by protoc from the vendored proto."""
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch) / "api.desc"
        protoc = (sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}")
        run(*protoc, "--include_imports", f"--descriptor_set_out={compiled}", PROTO)
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    runtime, image = (
        pool.FindServiceByName(f"{PACKAGE}.{name}") for name in ("RuntimeService", "ImageService")
    )
    return runtime, image


class Client:
    """One connection to one endpoint; every RPC is a method that takes the request's fields as a dictionary."""

    def __init__(self, address: str, seconds: float = 60) -> None:
        self._channel = grpc.insecure_channel(address)
        self._seconds = seconds
        self._requests: dict[str, Any] = {}
        self._calls: dict[str, Callable[..., Any]] = {}
        for service in load_services():
            for method in service.methods:
                if method.server_streaming:
                    continue
                self._requests[method.name] = message_factory.GetMessageClass(method.input_type)
                self._calls[method.name] = self._channel.unary_unary(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=self._requests[method.name].SerializeToString,
                    response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
                )

    def request(self, rpc: str, **fields: Any) -> Any:
        """Return the request message of RPC, ready to be sent."""
        return self._requests[rpc](**fields)

    def call(self, rpc: str, request: Any) -> Any:
        """Send REQUEST and return the response; gRPC's errors pass through."""
        return self._calls[rpc](request, timeout=self._seconds)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
