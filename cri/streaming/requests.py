"""Exec, Attach and PortForward of the CRI: checks a request, and answers with the URL where its session begins."""

from __future__ import annotations

from functools import partial

import structlog

from cri.api.runtime import v1
from cri.errors import CRIError, FailedPreconditionError, InvalidArgumentError
from cri.metrics import Metrics
from cri.sandbox.pods import Pods
from cri.streaming.attachments import run_attach
from cri.streaming.carriers import CommandCarrier, ForwardCarrier
from cri.streaming.execs import run_exec
from cri.streaming.forwarding import run_forward
from cri.streaming.server import StreamingServer
from cri.streaming.session import CommandSession, ForwardSession, Outcome, Streams

log = structlog.get_logger(__name__)


class StreamingRequests:
    """What can be asked of pods and containers that takes a connection of its own."""

    def __init__(self, pods: Pods, server: StreamingServer, metrics: Metrics, idle_timeout: float) -> None:
        """Sessions in which nothing moves for `idle_timeout` seconds are ended."""
        self._pods = pods
        self._server = server
        self._metrics = metrics
        self._idle_timeout = idle_timeout

    def exec(self, request: v1.ExecRequest) -> str:
        """The URL of a command's session. Raises NotFoundError, FailedPreconditionError, InvalidArgumentError."""
        container, _ = self._pods.running(request.container_id)
        if not request.cmd:
            raise InvalidArgumentError(f"exec in container {container.id}: cmd is empty")
        streams = _streams("exec", request)
        serve = partial(self._exec, container.id, tuple(request.cmd), streams)
        # A terminal's size is to be there when its program starts, and comes after the streams.
        return self._server.offer(CommandCarrier("exec", container.id, streams, serve, early=not streams.tty))

    def attach(self, request: v1.AttachRequest) -> str:
        """The URL of an attachment. Raises NotFoundError, FailedPreconditionError, InvalidArgumentError."""
        container, _ = self._pods.running(request.container_id)
        streams = _streams("attach", request)
        if streams.stdin and not container.spec.process.stdin:
            raise FailedPreconditionError(
                f"container {container.id} was made without stdin: attach for its output only, or give it stdin: true"
            )
        serve = partial(self._attach, container.id, streams)
        return self._server.offer(CommandCarrier("attach", container.id, streams, serve))

    def port_forward(self, request: v1.PortForwardRequest) -> str:
        """The URL of a port-forward. Raises NotFoundError, FailedPreconditionError, InvalidArgumentError."""
        sandbox, _ = self._pods.ready(request.pod_sandbox_id)
        ports = tuple(request.port)
        if wrong := [port for port in ports if not 0 < port <= 65535]:
            raise InvalidArgumentError(f"port-forward to sandbox {sandbox.id}: {wrong[0]} is no port")
        return self._server.offer(ForwardCarrier(ports, partial(self._forward, sandbox.id, ports)))

    # What has become of pod and container since the URL was given out is looked at anew.

    async def _exec(
        self, container_id: str, argv: tuple[str, ...], streams: Streams, session: CommandSession
    ) -> Outcome:
        container, warden = self._pods.running(container_id)
        with self._metrics.streaming_sessions.labels("exec").track_inprogress():
            return await run_exec(warden, container.spec, argv, streams, session, self._idle_timeout)

    async def _attach(self, container_id: str, streams: Streams, session: CommandSession) -> Outcome:
        container, warden = self._pods.running(container_id)
        with self._metrics.streaming_sessions.labels("attach").track_inprogress():
            return await run_attach(warden, container.spec, streams, session, self._idle_timeout)

    async def _forward(self, sandbox_id: str, ports: tuple[int, ...], session: ForwardSession) -> None:
        try:
            _, warden = self._pods.ready(sandbox_id)
        except CRIError as error:
            log.info("no port-forward any more", sandbox=sandbox_id, error=str(error))
            await session.close()
            return
        with self._metrics.streaming_sessions.labels("portforward").track_inprogress():
            await run_forward(warden, sandbox_id, ports, session, self._idle_timeout)


def _streams(what: str, request: v1.ExecRequest | v1.AttachRequest) -> Streams:
    """What the client is going to open. Raises InvalidArgumentError for what contradicts itself (api.proto, ExecRequest)."""
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgumentError(f"{what}: one of stdin, stdout and stderr must be asked for")
    if request.tty and request.stderr:
        raise InvalidArgumentError(f"{what}: a terminal has one output: with tty, stderr must be false")
    return Streams(request.stdin, request.stdout, request.stderr, request.tty)
