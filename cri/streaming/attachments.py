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

DRAIN_PATIENCE = 0.5
"""Seconds to wait for output that is under way to a client that leaves."""

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

    A client goes by closing its stdin: the detach keys of crictl and kubectl do that. Only where the end of stdin is to
    reach the program (`stdin_once` without a terminal), the output goes on. Likewise if nothing moves for `idle_timeout` seconds.

    How the container ended is for its status to say: whoever was attached to its end is told of success, as by other
    runtimes.
    """
    try:
        outcome = await _run(warden, container, streams, session, Activity(idle_timeout))
    except ClientGoneError:
        log.info("client has detached", container=container.id)
        outcome = Outcome(error="the client has gone")
    except (HostError, OSError) as error:
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
        passed_on = container.process.stdin_once and not container.process.tty
        return await _until_ended(attachment, plumbing, session, activity, stays=passed_on)


async def _until_ended(
    attachment: Attachment,
    plumbing: Plumbing,
    session: CommandSession,
    activity: Activity,
    *,
    stays: bool,
) -> Outcome:
    """`stays`: the end of stdin is not the client's."""
    ended = asyncio.ensure_future(attachment.wait())
    gone = asyncio.ensure_future(session.gone())
    idle = asyncio.ensure_future(activity.ceased())
    left = asyncio.ensure_future(plumbing.stdin_ended.wait())
    ends = [ended, gone, idle] if stays else [ended, gone, idle, left]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ClientGoneError
        reason = ended.result() if ended.done() else ""
        if not ended.done():
            await attachment.close()
        rest = asyncio.ensure_future(plumbing.rest(DRAIN_PATIENCE))
        await asyncio.wait([rest, gone, idle], return_when=asyncio.FIRST_COMPLETED)
        rest.cancel()
        if idle.done():
            reason = reason or f"nothing had moved for {activity.patience:g} s"
        return Outcome(error=f"detached: {reason}" if reason else "")
    finally:
        for one in (ended, gone, idle, left):
            one.cancel()
