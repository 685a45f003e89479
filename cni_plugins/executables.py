"""Running an executable that may misbehave: bounded in time and in what it says.

The only place of this package that starts processes, and only `external` comes here. CPython starts them by vfork(2) on
Linux as long as nothing is to run between fork and exec, so a server with threads and gRPC may do it; elsewhere by fork(2).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from cni_plugins.errors import ExternalPluginError

MOST_OUTPUT = 1 << 20
"""Bytes of standard output; an executable that writes more is killed."""
_KEPT_ERRORS = 4096
"""Bytes of standard error that are kept, the last ones."""
_POLL, _DRAIN = 0.05, 1.0
"""Seconds: between two looks whether it has ended; and how long its output is read then, if somebody holds that open."""
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Finished:
    """How it went. `code` is as subprocess has it: below zero the signal that ended it."""

    code: int
    output: bytes
    errors: bytes


def run(path: Path, environment: Mapping[str, str], text: bytes, *, seconds: float, what: str) -> Finished:
    """Run an executable in a session of its own, with this text as its standard input, and wait for its end.

    After `seconds`, or when it writes too much, it is killed with all of its process group. `what` names it in errors.
    Raises ExternalPluginError.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - what to run is the operator's choice
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        reason = error.strerror or error
        raise ExternalPluginError(f"{what}: cannot run {path}: {reason}; install it anew") from error
    conversation = _Conversation(process, text, what)
    try:
        return conversation.hold(seconds)
    finally:
        conversation.close()


class _Conversation:
    """The streams of a process that runs."""

    def __init__(self, process: subprocess.Popen[bytes], text: bytes, what: str) -> None:
        self._process = process
        self._what = what
        self._unsent = memoryview(text)
        self._output = bytearray()
        self._errors = bytearray()
        self._selector = selectors.DefaultSelector()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for stream, events in (
            (process.stdin, selectors.EVENT_WRITE),
            (process.stdout, selectors.EVENT_READ),
            (process.stderr, selectors.EVENT_READ),
        ):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, events)

    def hold(self, seconds: float) -> Finished:
        """Write, read and wait."""
        deadline = time.monotonic() + seconds
        ended = False
        while self._selector.get_map():
            if not ended and self._process.poll() is not None:
                ended = True
                deadline = min(deadline, time.monotonic() + _DRAIN)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._turn(min(left, _POLL))
        try:
            code = self._process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            raise ExternalPluginError(
                f"{self._what}: no end after {seconds:g} s, so it was killed{self._said()}; look at what it waits for"
            ) from None
        return Finished(code, bytes(self._output), bytes(self._errors))

    def close(self) -> None:
        """Let go of the streams; if the process still runs, kill its group."""
        if self._process.poll() is None:
            # It is its group's leader, and not reaped: the number is nobody else's.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _turn(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            stream = cast("IO[bytes]", key.fileobj)  # one of the three
            if stream is self._process.stdin:
                self._write(stream)
            else:
                self._read(stream)

    def _write(self, stream: IO[bytes]) -> None:
        try:
            self._unsent = self._unsent[os.write(stream.fileno(), self._unsent[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want to know
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._selector.unregister(stream)
            stream.close()

    def _read(self, stream: IO[bytes]) -> None:
        try:
            chunk = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._selector.unregister(stream)
        elif stream is self._process.stderr:
            self._errors = (self._errors + chunk)[-_KEPT_ERRORS:]
        else:
            self._output += chunk
            if len(self._output) > MOST_OUTPUT:
                raise ExternalPluginError(
                    f"{self._what}: its output is longer than {MOST_OUTPUT} bytes, so it was killed{self._said()}"
                )

    def _said(self) -> str:
        return f" (it said: {in_one_line(bytes(self._errors))})" if self._errors else ""


def in_one_line(text: bytes | str, most: int = 1000) -> str:
    """Return the end of what somebody else has said, fit for a message."""
    words = " ".join((text if isinstance(text, str) else text.decode(errors="replace")).split())
    shown = "".join(character if character.isprintable() else "?" for character in words)
    return shown if len(shown) <= most else f"... {shown[-most:]}"
