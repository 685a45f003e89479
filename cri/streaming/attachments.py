"""A client's streams at a running container's first process."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import structlog

from cri.sandbox.host import Attachment, HostError, Warden
from cri.sandbox.spec import ContainerSpec
from cri.streaming.activity import Activity
from cri.streaming.plumbing import Plumbing
from cri.streaming.session import ClientGoneError, CommandSession, Outcome, Streams

log = structlog.get_logger(__name__)

CHUNK = 32 * 1024
"""Bytes of output to take at a time: little, as a warden lets go of who takes nothing for a second."""


async def run_attach(
    warden: Warden,
    container: ContainerSpec,
    streams: Streams,
    session: CommandSession,
    idle_timeout: float,
) -> None:
    """Connect a client to a container until that has ended or the client goes; the container goes on.

    Likewise if nothing moves for `idle_timeout` seconds.

    How the container ended is for its status to say: whoever was attached to its end is told of success, as by other
    runtimes.
    """
    try:
        outcome = await _run(warden, container, streams, session, Activity(idle_timeout))
    except ClientGoneError:
        log.info("client has detached", container=container.id)
        outcome = Outcome(error="the client has gone")
    except HostError as error:
        outcome = Outcome(error=str(error))
    await session.finish(outcome)


async def _run(
    warden: Warden,
    container: ContainerSpec,
    streams: Streams,
    session: CommandSession,
    activity: Activity,
) -> Outcome:
    # With a terminal, both outputs are one.
    own = replace(streams, stderr=streams.stderr and not container.process.tty)
    plumbing = Plumbing.pipes(session, activity, own, CHUNK)
    async with plumbing, contextlib.AsyncExitStack() as end:
        attachment = await warden.attach(
            container.id, stdin=plumbing.stdin, stdout=plumbing.stdout, stderr=plumbing.stderr
        )
        end.push_async_callback(attachment.close)
        plumbing.handed_out()
        if attachment.pty is not None and streams.tty:
            plumbing.resize_terminal(attachment.pty)
        plumbing.open()
        return await _until_ended(attachment, plumbing, session, activity)


async def _until_ended(
    attachment: Attachment, plumbing: Plumbing, session: CommandSession, activity: Activity
) -> Outcome:
    ended = asyncio.ensure_future(attachment.wait())
    gone = asyncio.ensure_future(session.gone())
    idle = asyncio.ensure_future(activity.ceased())
    try:
        await asyncio.wait([ended, gone, idle], return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            reason = ended.result()
            await plumbing.outputs()
            return Outcome(error=f"detached: {reason}" if reason else "")
        if gone.done():
            raise ClientGoneError
        return Outcome(error=f"detached: nothing had moved for {activity.patience:g} s")
    finally:
        for one in (ended, gone, idle):
            one.cancel()
