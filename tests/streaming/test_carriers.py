"""Whatever becomes of a command, its client is told: client-go takes silence for success."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from cri.errors import FailedPreconditionError
from cri.sandbox.host import HostError
from cri.streaming.carriers import CommandCarrier
from cri.streaming.session import ClientGoneError, Outcome


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            HostError("attach to", "container c", "it is not running"),
            "attach to container c: it is not running",
        ),
        (FailedPreconditionError("container c is exited, not running"), "container c is exited, not running"),
        (OSError(24, "Too many open files"), "[Errno 24] Too many open files"),
        (ClientGoneError(), "the client has gone"),
    ],
)
async def test_what_can_be_foreseen(client, streams, failure, told):
    async def serve(session):
        raise failure

    with capture_logs():
        await CommandCarrier("exec", "c", streams, serve)._serve(client)
    assert client.outcome == Outcome(error=told)


async def test_what_nobody_foresaw(client, streams):
    async def serve(session):
        raise KeyError("secret")

    with pytest.raises(KeyError):
        await CommandCarrier("exec", "c", streams, serve)._serve(client)
    assert client.outcome == Outcome(error="internal error (KeyError); the log of cri-jails has the details")


async def test_the_end_of_the_daemon(client, streams):
    async def serve(session):
        await asyncio.Event().wait()

    serving = asyncio.create_task(CommandCarrier("exec", "c", streams, serve)._serve(client))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert client.outcome == Outcome(error="cri-jails is stopping")
