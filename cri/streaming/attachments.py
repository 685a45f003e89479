"""A client's streams at a running container's first process."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from cri.sandbox.host import Attachment, Warden
from cri.sandbox.spec import ContainerSpec
from cri.streaming.activity import Activity
from cri.streaming.plumbing import Plumbing
from cri.streaming.session import ClientGoneError, CommandSession, Outcome, Streams
from cri.streaming.waiting import first_of, watching

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
) -> Outcome:
    """Connect a client to a container until that has ended or the client goes; the container goes on.

    A client goes by closing its stdin: the detach keys of crictl and kubectl do that. Only where the end of stdin is to
    reach the program (`stdin_once` without a terminal), the output goes on. Likewise if nothing moves for `idle_timeout`
    seconds.

    How the container ended is for its status to say: whoever was attached to its end is told of success, as by other
    runtimes. Raises ClientGoneError, HostError, OSError.
    """
    activity = Activity(idle_timeout)
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
    events = attachment.wait(), session.gone(), activity.ceased(), plumbing.stdin_ended.wait()
    async with watching(*events) as (ended, gone, idle, left):
        await first_of(ended, gone, idle, *(() if stays else (left,)))
        if gone.done():
            raise ClientGoneError
        reason = ended.result() if ended.done() else ""
        if not ended.done():
            await attachment.close()
        async with watching(plumbing.rest(DRAIN_PATIENCE)) as (rest,):
            await first_of(rest, gone, idle)
        if idle.done():
            reason = reason or f"nothing had moved for {activity.patience:g} s"
        return Outcome(error=f"detached: {reason}" if reason else "")
