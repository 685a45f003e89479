"""A command in a running container, with its client's streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

from cri.sandbox.host import Exec, Warden
from cri.sandbox.processes import exec_process
from cri.sandbox.spec import ContainerSpec, TerminalSize
from cri.streaming.activity import Activity
from cri.streaming.plumbing import Plumbing
from cri.streaming.session import ClientGoneError, CommandSession, Outcome, Streams
from cri.streaming.waiting import first_of, watching

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
) -> Outcome:
    """Run a command for a client until it ends; how it ended. Raises ClientGoneError, HostError, OSError.

    If the client goes first, or nothing moves for `idle_timeout` seconds, terminal and pipes are closed, which ends most
    commands (SIGHUP, SIGPIPE, end of stdin); one that goes on for `HANG_UP_PATIENCE` is killed with all that it has
    started. What it leaves behind when it ends stays, as it does after a hangup anywhere (nohup(1)).
    """
    activity = Activity(idle_timeout)
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
    async with watching(running.wait(), session.gone(), activity.ceased()) as (ended, gone, idle):
        await first_of(ended, gone, idle)
        if ended.done():
            async with watching(plumbing.rest(DRAIN_PATIENCE)) as (rest,):
                await first_of(rest, gone, idle)
            return Outcome(ended.result())
        await plumbing.close()
        _hang_up(running)
        await first_of(ended, patience=HANG_UP_PATIENCE)
        if gone.done():
            raise ClientGoneError
        return Outcome(error=f"ended, as nothing had moved for {activity.patience:g} s")


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
