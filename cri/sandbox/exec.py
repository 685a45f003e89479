"""ExecSync: run a command in a container and collect what it prints, bounded in time and size."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import structlog

from cri.errors import DeadlineExceededError
from cri.sandbox.host import Exec, HostError, Warden
from cri.sandbox.processes import exec_process
from cri.sandbox.spec import ContainerSpec

log = structlog.get_logger(__name__)

OUTPUT_LIMIT = 16 * 1024 * 1024 - 64 * 1024
"""Bytes of stdout and stderr together: the kubelet's client takes messages of 16 MiB at most."""

DRAIN_PATIENCE = 1.0
"""Seconds to wait for the rest of the output after the process has ended.

A child that it left in the background may hold the pipe open for ever."""

_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command printed and how it ended."""

    stdout: bytes
    stderr: bytes
    exit_code: int


async def exec_sync(warden: Warden, container: ContainerSpec, argv: list[str], limit: float) -> ExecResult:
    """Run `argv` in the container. `limit` is in seconds; 0 is none.

    Raises DeadlineExceededError after KILL to everything the command started in its session, StartError when it
    cannot be started. Output beyond OUTPUT_LIMIT is read and dropped.
    """
    process = exec_process(container, argv)
    budget = _Budget(OUTPUT_LIMIT)
    out, err = _Collector(budget), _Collector(budget)
    starting = asyncio.ensure_future(
        warden.exec(container.id, process, stdin=None, stdout=out.writer, stderr=err.writer)
    )
    try:
        async with asyncio.timeout(limit or None):
            running = await asyncio.shield(starting)
            out.started()
            err.started()
            exit_code = await running.wait()
        await asyncio.gather(out.end(), err.end())
    except TimeoutError:
        raise DeadlineExceededError(
            f"exec of {argv[0]!r} in container {container.id} took more than {limit:g} s and was killed"
        ) from None
    finally:
        out.close()
        err.close()
        letting_go = asyncio.ensure_future(_let_go(starting))
        if starting.done():
            await asyncio.shield(letting_go)
        else:  # the start hangs; whenever it is over, nobody wants its process any more
            _background.add(letting_go)
            letting_go.add_done_callback(_background.discard)
    if budget.dropped:
        log.warning(
            "exec output truncated", container=container.id, command=argv[0], dropped_bytes=budget.dropped
        )
    return ExecResult(bytes(out.data), bytes(err.data), exit_code)


_background: set[asyncio.Task[None]] = set()


async def _let_go(starting: asyncio.Future[Exec]) -> None:
    """KILL what still runs of an exec, and have the warden forget it."""
    try:
        running = await starting
    except HostError:
        return  # it never started; whoever waits for it is told
    await running.close()


class _Budget:
    """How much may still be kept."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.dropped = 0


class _Collector:
    """One pipe: the write end for the process, and what came out of the read end."""

    def __init__(self, budget: _Budget) -> None:
        self.data = bytearray()
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._ended = asyncio.Event()
        self._open = True
        self._loop.add_reader(self._reader, self._read)

    def started(self) -> None:
        """The process has its own copy of the write end: let go of ours, or the pipe would never end."""
        os.close(self.writer)
        self.writer = -1

    async def end(self) -> None:
        """Wait for the end of the output, for a bounded time."""
        try:
            async with asyncio.timeout(DRAIN_PATIENCE):
                await self._ended.wait()
        except TimeoutError:
            log.debug("output left behind by a background process")

    def close(self) -> None:
        """Let go of the pipe; may be repeated."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
        if self.writer >= 0:
            self.started()

    def _read(self) -> None:
        try:
            chunk = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._loop.remove_reader(self._reader)
            self._ended.set()
            return
        kept = chunk[: self._budget.left]
        self._budget.left -= len(kept)
        self._budget.dropped += len(chunk) - len(kept)
        self.data += kept
