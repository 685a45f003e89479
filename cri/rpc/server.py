"""The gRPC server: generic handlers for both services, reflection and health, on a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection, reflection_pb2

from cri.metrics import Metrics
from cri.rpc import descriptors, ending
from cri.rpc.answers import MAX_MESSAGE_BYTES
from cri.rpc.calls import Call, unimplemented
from cri.rpc.room import Room
from cri.rpc.table import IMAGE_SERVICE, RUNTIME_SERVICE, TABLE, UNIMPLEMENTED, check_service, check_table
from cri.sockets import ListeningSocket

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),  # `cri.rpc.answers` sees to it, and says more
)

HEALTH_SERVICE = "grpc.health.v1.Health"


def handlers(
    service_name: str,
    service: object,
    metrics: Metrics,
    room: Room,
    refused: Mapping[str, str] = UNIMPLEMENTED,
) -> dict[str, grpc.RpcMethodHandler]:
    """The handlers of one service by RPC name. Raises RpcTableError if the object does not serve the whole table."""
    rpcs = TABLE[service_name]
    check_service(service, rpcs, refused)
    made = {}
    for rpc in rpcs:
        method = (
            unimplemented(rpc, refused[rpc.name]) if rpc.name in refused else getattr(service, rpc.method)
        )
        call = Call(service_name, rpc, method, metrics, room)
        made[rpc.name] = (
            grpc.unary_stream_rpc_method_handler(call.stream)
            if rpc.stream
            else grpc.unary_unary_rpc_method_handler(call.unary)
        )
    return made


def add_services(
    server: grpc.aio.Server, runtime: object, image: object, metrics: Metrics, room: Room | None = None
) -> None:
    """Put both services on a server of the running loop. Raises RpcTableError if the release does not fit together."""
    check_table()
    ending.remember_makers(asyncio.get_running_loop())
    room = room or Room()
    for service_name, service in ((RUNTIME_SERVICE, runtime), (IMAGE_SERVICE, image)):
        made = handlers(service_name, service, metrics, room)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, made),))


class RpcServer:
    """Serves the CRI on a unix socket, from `start` to `stop`."""

    def __init__(self, runtime: object, image: object, metrics: Metrics) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        add_services(self._server, runtime, image, metrics)
        self._health = health_aio.HealthServicer()
        add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*TABLE, HEALTH_SERVICE, reflection.SERVICE_NAME), self._server, pool=_reflection_pool()
        )
        self._socket: ListeningSocket | None = None

    async def start(self, path: Path, group: str = "") -> None:
        """Listen at `path` (see `cri.sockets`); the socket appears when calls are answered. Raises SocketError."""
        socket = ListeningSocket(path, group)
        try:
            self._server.add_insecure_port(socket.prepare())
            await self._server.start()
            for name in ("", *TABLE):
                await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
            socket.publish()
        except BaseException:
            socket.discard()
            raise
        self._socket = socket

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way `grace` seconds, then cancel them. Succeeds if not started."""
        if self._socket is not None:
            self._socket.discard()
            self._socket = None
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


def _reflection_pool() -> DescriptorPool:
    """What reflection may show: the CRI, health, and reflection itself."""
    pool = descriptors.new_pool()
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
