"""Connections of a client to ports inside a pod, by sockets that were made there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection

import structlog

from cri.sandbox.host import HostError, Warden
from cri.streaming.activity import Activity
from cri.streaming.descriptors import Sink, Source
from cri.streaming.session import ClientGoneError, ForwardedConnection, ForwardSession
from cri.streaming.waiting import first_of, watching

log = structlog.get_logger(__name__)

CONNECT_PATIENCE = 10.0
"""Seconds until a port of the pod counts as silent."""

CHUNK = 64 * 1024
"""Bytes that each connection may have waiting for its turn at the client."""

LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
"""Where programs in a pod are looked for, as by every runtime: what listens on all addresses is found there too."""


class RefusedError(Exception):
    """Nothing in the pod takes connections to this port."""


async def run_forward(
    warden: Warden,
    sandbox_id: str,
    allowed: Collection[int],
    session: ForwardSession,
    idle_timeout: float,
) -> None:
    """Serve a client's connections until it goes, or nothing moves for `idle_timeout` seconds.

    `allowed` are the ports that it asked for, none: any.
    """
    activity = Activity(idle_timeout)
    connections: set[asyncio.Task[None]] = set()

    async def serve_all() -> None:
        while (connection := await session.connection()) is not None:
            activity.mark()
            task = asyncio.create_task(_serve(warden, sandbox_id, allowed, connection, activity))
            connections.add(task)
            task.add_done_callback(connections.discard)

    try:
        async with watching(serve_all(), activity.ceased()) as (serving, idle):
            await first_of(serving, idle)
            if serving.done():
                serving.result()
    finally:
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await session.close()


async def _serve(
    warden: Warden,
    sandbox_id: str,
    allowed: Collection[int],
    connection: ForwardedConnection,
    activity: Activity,
) -> None:
    try:
        _check(connection.port, allowed)
        with await connect(warden, sandbox_id, connection.port) as inside:
            await _relay(inside, connection, activity)
    except (RefusedError, HostError, OSError) as error:
        log.info("port not forwarded", sandbox=sandbox_id, port=connection.port, error=str(error))
        await connection.fail(str(error))
    except ClientGoneError:
        log.debug("client of a forwarded port has gone", sandbox=sandbox_id, port=connection.port)
    finally:
        await connection.close()


def _check(port: int, allowed: Collection[int]) -> None:
    if allowed and port not in allowed:
        raise RefusedError(f"port {port} is none of those that were asked for")


async def connect(warden: Warden, sandbox_id: str, port: int) -> socket.socket:
    """A connection to a port of the pod, from inside it. Raises RefusedError, HostError."""
    loop = asyncio.get_running_loop()
    refusals: list[str] = []
    for family, address in LOOPBACK:
        with contextlib.ExitStack() as undo:
            try:
                made = undo.enter_context(await warden.socket(family, socket.SOCK_STREAM))
                made.setblocking(False)
                async with asyncio.timeout(CONNECT_PATIENCE):
                    await loop.sock_connect(made, (address, port))
            except TimeoutError:
                refusals.append(f"{address}: no answer within {CONNECT_PATIENCE:.0f} s")
            except OSError as error:
                refusals.append(f"{address}: {os.strerror(error.errno or 0).lower()}")
            else:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                undo.pop_all()
                return made
    raise RefusedError(f"connect to port {port} in sandbox {sandbox_id}: {', '.join(refusals)}")


async def _relay(inside: socket.socket, connection: ForwardedConnection, activity: Activity) -> None:
    """Both directions, each until its own end. Raises ClientGoneError, OSError."""
    source = Source(os.dup(inside.fileno()))
    try:
        sink = Sink(os.dup(inside.fileno()))
    except OSError:
        source.close()
        raise

    async def to_client() -> None:
        while data := await source.read(CHUNK):
            activity.mark()
            await connection.write(data)
        await connection.finish()

    async def to_pod() -> None:
        wanted = True
        while data := await connection.read():
            activity.mark()
            # What nobody wants is read all the same: it must not keep other connections waiting.
            wanted = wanted and await sink.write(data)
        with contextlib.suppress(OSError):  # it is not connected any more
            inside.shutdown(socket.SHUT_WR)

    directions = [asyncio.create_task(to_client()), asyncio.create_task(to_pod())]
    try:
        await asyncio.gather(*directions)
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
        source.close()
        sink.close()
