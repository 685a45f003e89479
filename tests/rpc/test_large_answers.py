"""Large answers: pieces, limits, and clients that do not read what they have asked for."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from cri.api.runtime import v1
from cri.metrics import Metrics
from cri.rpc import ending
from cri.rpc.answers import MAX_MESSAGE_BYTES
from cri.rpc.room import PATIENCE, ROOM, SMALL, TINY, Room
from cri.rpc.server import OPTIONS, add_services

sys.path.insert(0, str(Path(__file__).parents[1] / "bench/lists"))

from unread import UnreadClient

MIB = 1 << 20
LIST = "runtime.v1.RuntimeService/ListContainers"
STREAM = "runtime.v1.RuntimeService/StreamContainers"
ITEM = bytes(v1.ListContainersResponse(containers=[v1.Container(id="x" * (MIB - 8))]))


class Server:
    """A server on the test's own loop."""

    def __init__(self, path: Path, room: Room) -> None:
        self.path = path
        self.room = room
        self.channel = grpc.aio.insecure_channel(
            f"unix:{path}",
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    async def call(self, name: str, request=v1.ListContainersRequest(), timeout: float = 20):  # noqa: B008
        return await self.channel.unary_unary(f"/runtime.v1.RuntimeService/{name}", bytes)(
            request, timeout=timeout
        )


@pytest.fixture
async def serve(short_dir, grpc_servicer):
    """Serves on the loop of the test: what ListContainers and others answer, by the name of the method."""
    runtime, image = grpc_servicer
    servers = []
    factory = asyncio.get_running_loop().get_task_factory()

    async def start(room: Room, **methods) -> Server:
        for name, method in methods.items():
            setattr(runtime, name, method)
        try:
            server = grpc.aio.server(options=OPTIONS)
            add_services(server, runtime, image, Metrics(), room)
        finally:
            for name in methods:
                delattr(runtime, name)
        path = short_dir / f"{len(servers)}.sock"
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        servers.append((server, made := Server(path, room)))
        return made

    yield start
    for server, made in servers:
        await made.channel.close()
        await server.stop(None)
        made.path.unlink(missing_ok=True)
    asyncio.get_running_loop().set_task_factory(factory)


def pieces(count: int):
    """A list of so many MiB, in pieces that are there already."""

    async def answer(_request):
        for _ in range(count):
            yield [ITEM]

    return answer


async def eventually(condition, patience: float = 10.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.02)


async def test_pieces_arrive_as_one_message(serve) -> None:
    server = await serve(Room(), list_containers=pieces(15), list_pod_sandbox=pieces(0))
    assert await server.call("ListContainers") == ITEM * 15
    assert await server.call("ListPodSandbox") == b""
    await eventually(lambda: server.room.used == 0)


async def test_an_answer_that_no_client_takes_is_refused_with_size_limit_and_remedy(serve) -> None:
    async def status(_request):
        return b"x" * (MAX_MESSAGE_BYTES + 1)

    server = await serve(Room(), list_containers=pieces(17), status=status)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.call("ListContainers")
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details() == (
        f"ListContainers: the answer has {17 * len(ITEM)} bytes, and a message at most 16777216; "
        "call StreamContainers, which sends the list in pieces, or give a filter"
    )
    with pytest.raises(grpc.aio.AioRpcError, match="Status: the answer has 16777217 bytes") as refused:
        await server.call("Status", v1.StatusRequest())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.room.used == 0


async def test_the_largest_message_passes(serve) -> None:
    async def status(_request):
        return b"x" * MAX_MESSAGE_BYTES

    server = await serve(Room(), status=status)
    assert len(await server.call("Status", v1.StatusRequest())) == MAX_MESSAGE_BYTES


@pytest.mark.parametrize("rpc", [LIST, STREAM])
async def test_whoever_does_not_read_makes_way(serve, rpc: str) -> None:
    """Clients that leave everything unread hold no more than the room, and keep others for no longer than it takes."""

    async def stream(_request):
        for _ in range(20):
            yield ITEM

    server = await serve(
        Room(size=4 * MIB, patience=0.3), list_containers=pieces(2), stream_containers=stream
    )
    clients = [UnreadClient(server.path) for _ in range(5)]
    for client in clients:
        for _ in range(10):
            client.call(rpc)
    await eventually(lambda: server.room.used > 3 * MIB)
    with capture_logs() as logs:
        for _ in range(3):
            assert await server.call("ListContainers") == ITEM * 2
            assert server.room.used <= 4 * MIB
    assert any("does not take the answer" in entry["event"] for entry in logs)
    assert any(b"CANCELLED" in client.received(1) for client in clients)
    for client in clients:
        client.close()
    await eventually(lambda: server.room.used == 0)


async def test_small_answers_pass_while_large_ones_wait(serve) -> None:
    async def small(_request):
        return b"x" * SMALL

    server = await serve(Room(size=2 * MIB, patience=60), list_containers=pieces(2), status=small)
    with UnreadClient(server.path) as client:
        client.call(LIST)
        await eventually(lambda: server.room.used > 0)
        assert len(await server.call("Status", v1.StatusRequest(), timeout=5)) == SMALL
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await server.call("ListContainers", timeout=0.5)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: server.room.used == 0)
    assert await server.call("ListContainers") == ITEM * 2


async def test_small_answers_are_bounded_in_their_sum(serve) -> None:
    async def small(_request):
        return b"x" * SMALL

    server = await serve(Room(size=4 * SMALL, patience=0.2), status=small)
    with UnreadClient(server.path) as client:
        for _ in range(40):
            client.call("runtime.v1.RuntimeService/Status")
        await eventually(lambda: server.room.used > 4 * SMALL)
        await eventually(lambda: server.room.used <= 4 * SMALL)
        assert b"CANCELLED" in client.received(1)
        assert len(await server.call("Status", v1.StatusRequest())) == SMALL


async def test_an_unread_answer_is_left_alone_while_nobody_needs_its_room(serve) -> None:
    server = await serve(Room(size=8 * MIB, patience=0.1), list_containers=pieces(2))
    with UnreadClient(server.path) as client:
        client.call(LIST)
        await eventually(lambda: server.room.used > 0)
        await asyncio.sleep(0.5)
        assert await server.call("ListContainers") == ITEM * 2
        assert b"CANCELLED" not in client.received(0.1)
        assert server.room.used > 0


async def test_who_gives_up_while_waiting_leaves_nothing(serve) -> None:
    server = await serve(Room(size=2 * MIB, patience=60), list_containers=pieces(2))
    with UnreadClient(server.path) as client, UnreadClient(server.path) as other:
        client.call(LIST)
        await eventually(lambda: server.room.used > 0)
        for _ in range(5):
            other.call(LIST)
        await asyncio.sleep(0.2)
        used = server.room.used
        other.close()
        await asyncio.sleep(0.2)
        assert server.room.used == used
    await eventually(lambda: server.room.used == 0)
    assert await server.call("ListContainers") == ITEM * 2


async def test_room_is_given_by_turns_to_the_newest_and_the_oldest() -> None:
    """So a crowd of answers that nobody takes keeps a newcomer for two turns at most."""
    room, order, doors = Room(size=MIB), [], {}

    async def call(name: str) -> None:
        await room.take(MIB)
        order.append(name)
        await doors.setdefault(name, asyncio.Event()).wait()

    calls = [asyncio.create_task(call(name)) for name in "abcdef"]
    for _ in range(6):
        await asyncio.sleep(0.01)
        doors[order[-1]].set()
    await asyncio.gather(*calls)
    assert "".join(order) == "abfced"
    assert room.used == 0


async def test_a_turn_that_comes_with_the_cancellation_goes_to_the_next() -> None:
    room, leave = Room(size=MIB), asyncio.Event()

    async def call() -> None:
        await room.take(MIB)
        await leave.wait()

    first = asyncio.create_task(call())
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(call()) for _ in range(4)]
    await asyncio.sleep(0.01)
    for task in (*waiting[:2], waiting[3], first):
        task.cancel()
    await asyncio.wait([first, *waiting[:2], waiting[3]])
    await asyncio.sleep(0.01)
    assert room.used == MIB
    leave.set()
    await waiting[2]
    await asyncio.sleep(0.01)
    assert room.used == 0


async def test_an_answer_larger_than_the_room_gets_it_alone() -> None:
    room = Room(size=MIB)

    async def call(size: int) -> None:
        await room.take(size)
        await asyncio.sleep(0.05)

    await asyncio.wait_for(asyncio.gather(call(MIB), call(5 * MIB), call(MIB)), 5)
    assert room.used == 0


async def test_the_tiny_do_not_count() -> None:
    room = Room()
    await room.take(TINY)
    assert room.used == 0


def test_the_room_fits_the_largest_answers() -> None:
    assert ROOM >= 3 * MAX_MESSAGE_BYTES
    assert PATIENCE > 0


async def test_a_call_that_cannot_be_ended_keeps_its_room_and_is_told_of() -> None:
    """As with a release of grpc.aio that holds calls in another way."""
    room = Room(size=MIB, patience=0.05)

    async def call() -> None:
        await room.take(MIB)
        await asyncio.sleep(0.2)

    with capture_logs() as logs:
        await asyncio.wait_for(asyncio.gather(call(), call()), 5)
    assert {entry["event"] for entry in logs} == {"a client does not take an answer, and grpc.aio keeps it"}
    assert room.used == 0


async def test_a_loop_with_a_task_factory_of_its_own_is_refused() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(lambda loop, work, **options: asyncio.Task(work, loop=loop, **options))
    try:
        with pytest.raises(RuntimeError, match="task factory"):
            ending.remember_makers(loop)
    finally:
        loop.set_task_factory(before)
