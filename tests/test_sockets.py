"""The endpoint's socket: its rights, stale and live ones at its path."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import grpc
import pytest

from cri.metrics import Metrics
from cri.rpc import RpcServer, RpcTableError
from cri.rpc import server as rpc_server
from cri.sockets import ListeningSocket, SocketError, check_path


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()
    return server


def bind(prepared: str) -> socket.socket:
    return listen(Path(prepared.removeprefix("unix:")))


def test_rights_and_nothing_else_left_behind(short_dir: Path) -> None:
    directory = short_dir / "a"
    place = ListeningSocket(directory / "x.sock", str(os.getgid()))
    with bind(place.prepare()):
        assert not (directory / "x.sock").exists()
        assert [stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()] == [0o700]
        place.publish()
        found = (directory / "x.sock").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())
        assert [entry.name for entry in directory.iterdir()] == ["x.sock"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(directory / "x.sock"))
    place.discard()
    assert not list(directory.iterdir())
    place.discard()


def test_a_stale_socket_is_replaced(short_dir: Path) -> None:
    path = short_dir / "stale.sock"
    listen(path).close()
    place = ListeningSocket(path)
    with bind(place.prepare()):
        place.publish()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    place.discard()


def test_a_live_socket_is_refused(short_dir: Path) -> None:
    path = short_dir / "live.sock"
    with listen(path), pytest.raises(SocketError, match=r"another server answers at .*live\.sock"):
        ListeningSocket(path).prepare()
    assert path.exists()


def test_a_busy_socket_is_live(short_dir: Path) -> None:
    path = short_dir / "busy.sock"
    clients = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(0)
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(str(path))
            clients.append(client)
        if os.uname().sysname == "FreeBSD":
            pytest.skip("Linux only: FreeBSD refuses at a full backlog")
        with pytest.raises(SocketError, match="another server answers"):
            ListeningSocket(path).prepare()
    for client in clients:
        client.close()


def test_a_file_at_the_path_is_left_alone(short_dir: Path) -> None:
    path = short_dir / "file"
    path.write_text("mine")
    with pytest.raises(SocketError, match="no socket"):
        ListeningSocket(path).prepare()
    assert path.read_text() == "mine"


def test_another_servers_socket_is_not_removed(short_dir: Path) -> None:
    path = short_dir / "taken.sock"
    place = ListeningSocket(path)
    first = bind(place.prepare())
    place.publish()
    first.close()
    path.unlink()
    with listen(path):
        place.discard()
        assert path.exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/" + "x" * 103, "may have 103"),
        ("/" + "x" * 93 + "/s", "may have 103"),
        ("relative.sock", "not absolute"),
    ],
)
def test_paths_that_cannot_be(path: str, expected: str) -> None:
    with pytest.raises(SocketError, match=expected):
        check_path(Path(path))


def test_the_longest_path(short_dir: Path) -> None:
    directory = short_dir / ("d" * (89 - len(str(short_dir))))
    path = directory / ("s" * 12)
    check_path(path)
    place = ListeningSocket(path)
    with bind(place.prepare()):
        place.publish()
    place.discard()


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(SocketError, match="no group 'no-such-group'"):
        ListeningSocket(Path("/x.sock"), "no-such-group")


@pytest.fixture
def services():
    from cri.rpc.table import IMAGE_SERVICE, RUNTIME_SERVICE, TABLE, UNIMPLEMENTED

    def make(name: str) -> object:
        def method(rpc):
            async def unary(self, request):
                return rpc.response()

            async def stream(self, request):
                yield rpc.response()

            return stream if rpc.stream else unary

        return type(
            name, (), {rpc.method: method(rpc) for rpc in TABLE[name] if rpc.name not in UNIMPLEMENTED}
        )()

    return make(RUNTIME_SERVICE), make(IMAGE_SERVICE)


async def answers(path: Path) -> bytes:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        return await channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"", timeout=5)


@pytest.mark.parametrize("name", ["plain", "with space", "100%25", "ümlaut"])
async def test_a_real_server(short_dir: Path, services, name: str) -> None:
    path = short_dir / name / "x.sock"
    first, second = RpcServer(*services, Metrics()), RpcServer(*services, Metrics())
    await first.start(path)
    (short_dir / "link").unlink(missing_ok=True)
    (short_dir / "link").symlink_to(path)  # gRPC clients have their own ideas of escapes
    assert await answers(short_dir / "link") == b""
    with pytest.raises(SocketError, match="another server answers"):
        await second.start(path)
    assert await answers(short_dir / "link") == b""
    await second.stop(0)
    await first.stop(1)
    assert not list(path.parent.iterdir())


async def test_a_killed_servers_socket_is_taken_over(short_dir: Path, services) -> None:
    path = short_dir / "killed.sock"
    listen(path).close()
    server = RpcServer(*services, Metrics())
    await server.start(path)
    assert await answers(path) == b""
    await server.stop(1)


async def test_stop_lets_calls_finish(short_dir: Path, services) -> None:
    from cri.api.runtime import v1

    began = asyncio.Event()

    async def slow(request):
        began.set()
        await asyncio.sleep(0.3)
        return v1.StatusResponse()

    services[0].status = slow
    server = RpcServer(*services, Metrics())
    await server.start(short_dir / "slow.sock")
    async with grpc.aio.insecure_channel(f"unix:{short_dir}/slow.sock") as channel:
        call = asyncio.ensure_future(channel.unary_unary("/runtime.v1.RuntimeService/Status")(b""))
        await began.wait()
        await server.stop(5)
        assert await call == b""


async def test_health_and_reflection(short_dir: Path, services) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    server = RpcServer(*services, Metrics())
    await server.start(short_dir / "h.sock")
    async with grpc.aio.insecure_channel(f"unix:{short_dir}/h.sock") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "runtime.v1.RuntimeService", "runtime.v1.ImageService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest
        questions = [ask(list_services="")] + [
            ask(file_containing_symbol=name)
            for name in ("runtime.v1.ImageService", "grpc.health.v1.Health", "runtime.v1.KeyValue")
        ]
        listed, *files = [one async for one in stub.ServerReflectionInfo(iter(questions))]
        assert {one.name for one in listed.list_services_response.service} == {
            "runtime.v1.RuntimeService",
            "runtime.v1.ImageService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        assert all(one.file_descriptor_response.file_descriptor_proto for one in files)
    await server.stop(0)


async def test_a_service_that_does_not_fit_is_a_start_up_error(services) -> None:
    with pytest.raises(RpcTableError, match="version for Version is missing"):
        RpcServer(object(), services[1], Metrics())


async def until_it_answers(path: Path) -> bytes:
    async with asyncio.timeout(20):
        while True:
            try:  # a connection of its own: channels to one path share theirs
                own = (("grpc.use_local_subchannel_pool", 1),)
                async with grpc.aio.insecure_channel(f"unix:{path}", options=own) as channel:
                    return await channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"", timeout=5)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


@pytest.fixture
def looks(monkeypatch) -> None:
    monkeypatch.setattr(rpc_server, "LOOK_SECONDS", 0.05)


def remove(path: Path) -> None:
    path.unlink()


def empty_the_directory(path: Path) -> None:
    for each in path.parent.iterdir():
        each.unlink()


def remove_the_directory(path: Path) -> None:
    empty_the_directory(path)
    path.parent.rmdir()


def put_a_file_there(path: Path) -> None:
    path.unlink()
    path.write_text("mine")


def put_a_dead_socket_there(path: Path) -> None:
    path.unlink()
    listen(path).close()


def put_a_directory_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_link_there(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "harm",
    [
        remove,
        empty_the_directory,
        remove_the_directory,
        put_a_file_there,
        put_a_dead_socket_there,
        put_a_directory_there,
        put_a_link_there,
    ],
)
async def test_a_socket_that_somebody_removes_comes_back(short_dir: Path, services, looks, harm) -> None:
    path = short_dir / harm.__name__ / "x.sock"
    path.parent.mkdir(mode=0o711)
    server = RpcServer(*services, Metrics())
    await server.start(path, str(os.getgid()))
    async with grpc.aio.insecure_channel(f"unix:{path}") as connected:
        version = connected.unary_unary("/runtime.v1.RuntimeService/Version")
        assert await version(b"", timeout=5) == b""
        for _ in range(2):
            harm(path)
            assert await until_it_answers(path) == b""
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o711
            assert await version(b"", timeout=5) == b"", "whoever is connected stays so"
    await server.stop(1)
    assert not path.exists()
    kept = [each for each in path.parent.iterdir() if ".replaced-" in each.name]
    assert len(kept) == (2 if harm in (put_a_file_there, put_a_directory_there, put_a_link_there) else 0)


async def test_another_servers_socket_stays_until_that_one_ends(
    short_dir: Path, services, looks, capsys
) -> None:
    path = short_dir / "x.sock"
    server = RpcServer(*services, Metrics())
    await server.start(path)
    path.unlink()
    with listen(path):
        inode = path.stat().st_ino
        await asyncio.sleep(0.5)
        assert path.stat().st_ino == inode
    assert await until_it_answers(path) == b""
    await server.stop(1)


async def test_however_often_it_is_removed_few_servers_are_kept(short_dir: Path, services, looks) -> None:
    path = short_dir / "x.sock"
    server = RpcServer(*services, Metrics())
    await server.start(path)
    for _ in range(8):
        path.unlink()
        assert await until_it_answers(path) == b""
    assert len(server._servers) <= rpc_server.MOST_SERVERS
    await server.stop(1)
