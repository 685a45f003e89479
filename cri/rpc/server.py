"""The gRPC server: generic handlers for both services, reflection and health, on a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import grpc
import structlog
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
from cri.sockets import ListeningSocket, SocketError

log = structlog.get_logger(__name__)

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),  # `cri.rpc.answers` sees to it, and says more
)

LOOK_SECONDS = 1.0
"""Between two looks whether the socket is still at its path."""
MOST_SERVERS = 4
"""Each time that it was not, a further server listens; those before it serve whoever is connected to them."""

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
        self._services = runtime, image, metrics
        self._health = health_aio.HealthServicer()
        self._servers = [self._make()]
        self._socket: ListeningSocket | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def start(self, path: Path, group: str = "") -> None:
        """Listen at `path` (see `cri.sockets`); the socket appears when calls are answered. Raises SocketError."""
        for name in ("", *TABLE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        place = ListeningSocket(path, group)
        await _listen(self._servers[0], place, place.prepare())
        self._socket = place
        self._keeping = asyncio.create_task(self._keep(), name="socket")

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way `grace` seconds, then cancel them. Succeeds if not started."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self._socket is not None:
            self._socket.discard()
            self._socket = None
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(*(server.stop(grace) for server in self._servers))

    def _make(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=OPTIONS)
        add_services(server, *self._services)
        add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*TABLE, HEALTH_SERVICE, reflection.SERVICE_NAME), server, pool=_reflection_pool()
        )
        return server

    async def _keep(self) -> None:
        """Have the socket again when somebody has removed or replaced it."""
        told = ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            assert self._socket is not None
            if await asyncio.to_thread(self._socket.is_there):
                continue
            try:
                place = await asyncio.to_thread(self._socket.successor)
                await self._listen_anew(place)
            except (SocketError, RuntimeError) as error:  # gRPC's own, where it cannot bind
                if str(error) != told:
                    log.error("the socket is gone, and cannot be made again", error=str(error))
                told = str(error)
                continue
            self._socket, told = place, ""
            log.warning("somebody has removed the socket; it is there again", socket=str(place.path))
            if len(self._servers) > MOST_SERVERS:
                await self._servers.pop(0).stop(0)

    async def _listen_anew(self, place: ListeningSocket) -> None:
        address = place.prepare()
        server = self._make()
        try:
            await _listen(server, place, address)
        except BaseException:
            await server.stop(0)
            raise
        self._servers.append(server)


async def _listen(server: grpc.aio.Server, place: ListeningSocket, address: str) -> None:
    try:
        server.add_insecure_port(address)
        await server.start()
        place.publish()
    except BaseException:
        place.discard()
        raise


def _reflection_pool() -> DescriptorPool:
    """What reflection may show: the CRI, health, and reflection itself."""
    pool = descriptors.new_pool()
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
