"""A command in a running container, with its client's streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

import structlog

from cri.sandbox.host import Exec, HostError, Warden
from cri.sandbox.spec import ContainerSpec, TerminalSize
from cri.sandbox.translate import exec_process
from cri.streaming.activity import Activity
from cri.streaming.plumbing import Plumbing
from cri.streaming.session import ClientGoneError, CommandSession, Outcome, Streams

log = structlog.get_logger(__name__)

SIZE_PATIENCE = 0.25
"""Seconds to wait for the size of a client's terminal, so that a program finds it right when it starts."""

DRAIN_PATIENCE = 1.0
"""Seconds without output, after the command has ended, that end the session though something holds its pipe."""

HANG_UP_PATIENCE = 10.0
"""Seconds that a command may go on after its client has gone."""


async def run_exec(
    warden: Warden,
    container: ContainerSpec,
    argv: Sequence[str],
    streams: Streams,
    session: CommandSession,
    idle_timeout: float,
) -> None:
    """Run a command for a client until it ends, and tell how it ended.

    If the client goes first, or nothing moves for `idle_timeout` seconds, terminal and pipes are closed, which ends most commands (SIGHUP, SIGPIPE, end of stdin);
    one that goes on for `HANG_UP_PATIENCE` is killed with all that it has started. What it leaves behind when it ends stays,
    as it does after a hangup anywhere (nohup(1)).
    """
    try:
        outcome = await _run(warden, container, argv, streams, session, Activity(idle_timeout))
    except ClientGoneError:
        log.info("client of an exec has gone", container=container.id)
        outcome = Outcome(error="the client has gone")
    except (HostError, OSError) as error:
        outcome = Outcome(error=str(error))
    await session.finish(outcome)


async def _run(
    warden: Warden,
    container: ContainerSpec,
    argv: Sequence[str],
    streams: Streams,
    session: CommandSession,
    activity: Activity,
) -> Outcome:
    process = exec_process(container, list(argv), tty=streams.tty)
    if streams.tty:
        process = replace(process, terminal_size=await _first_size(session))
        plumbing = Plumbing(session, activity)
    else:
        plumbing = Plumbing.pipes(session, activity, streams)
    async with plumbing, contextlib.AsyncExitStack() as end:
        running = await warden.exec(
            container.id, process, stdin=plumbing.stdin, stdout=plumbing.stdout, stderr=plumbing.stderr
        )
        end.push_async_callback(running.close)
        plumbing.handed_out()
        if running.pty is not None:
            plumbing.use_terminal(running.pty)
        plumbing.open()
        return await _until_ended(running, plumbing, session, activity)


async def _until_ended(
    running: Exec, plumbing: Plumbing, session: CommandSession, activity: Activity
) -> Outcome:
    ended = asyncio.ensure_future(running.wait())
    gone = asyncio.ensure_future(session.gone())
    idle = asyncio.ensure_future(activity.ceased())
    try:
        await asyncio.wait([ended, gone, idle], return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            rest = asyncio.ensure_future(plumbing.rest(DRAIN_PATIENCE))
            await asyncio.wait([rest, gone, idle], return_when=asyncio.FIRST_COMPLETED)
            rest.cancel()
            return Outcome(ended.result())
        await plumbing.close()
        _hang_up(running)
        await asyncio.wait([ended], timeout=HANG_UP_PATIENCE)
        if gone.done():
            raise ClientGoneError
        return Outcome(error=f"ended, as nothing had moved for {activity.patience:g} s")
    finally:
        for one in (ended, gone, idle):
            one.cancel()


def _hang_up(running: Exec) -> None:
    """Close the last of our ends of its terminal: the kernel tells its processes (SIGHUP)."""
    if running.pty is not None:
        os.close(running.pty)
        running.pty = None


async def _first_size(session: CommandSession) -> TerminalSize | None:
    try:
        async with asyncio.timeout(SIZE_PATIENCE):
            return await session.resized()
    except TimeoutError:
        return None
