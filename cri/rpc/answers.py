"""Answers as gRPC is given them: encoded, of a size that clients take, and never built in one go when they are large.

A service answers with a message, with its encoding, or with an asynchronous generator of pieces of the encoding, some at
a time. Pieces may be shared between calls (the cached items of a list), so that a call that waits for its turn holds next
to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeAlias

import betterproto2
from google.protobuf.message import Message

from cri.errors import ResourceExhaustedError
from cri.rpc import messages
from cri.rpc.table import Rpc

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""What the kubelet and crictl take, and send."""

SHORT = 256 * 1024
"""Bytes up to which pieces are put together on the spot."""

Answer: TypeAlias = betterproto2.Message | Message | bytes
Parts = Sequence[bytes]


async def parts(answered: Awaitable[Answer] | AsyncGenerator[Parts, None]) -> Parts:
    """What a method of a service has answered, in pieces."""
    if not isinstance(answered, AsyncGenerator):
        return (encoded(await answered),)
    found: list[bytes] = []
    async with aclosing(answered) as pieces:
        async for some in pieces:
            found += some
    return found


def encoded(answer: Answer) -> bytes:
    """A message as bytes, by protobuf's own code: what a client could not read is never sent.

    Raises UnencodableError for a value that its field cannot have.
    """
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, Message):
        data: bytes = answer.SerializeToString()
        return data
    return messages.encoded(answer)


async def whole(pieces: Parts, size: int) -> bytes:
    """A message of this size in one piece, as gRPC wants it."""
    if len(pieces) == 1:
        return pieces[0]
    if size <= SHORT:
        return b"".join(pieces)
    return await asyncio.get_running_loop().run_in_executor(_joiner, b"".join, pieces)


_joiner = ThreadPoolExecutor(1, "answers")
"""One thread, which lets go of the interpreter while it copies. Of many, each would keep the memory that it had once needed."""


def checked_size(pieces: Parts, rpc: Rpc) -> int:
    """The bytes of a message in pieces. Raises ResourceExhaustedError if no client would take it."""
    size = sum(map(len, pieces))
    if size > MAX_MESSAGE_BYTES:
        instead = f"; {rpc.instead}" if rpc.instead else ""
        raise ResourceExhaustedError(
            f"{rpc.name}: the answer has {size} bytes, and a message at most {MAX_MESSAGE_BYTES}{instead}"
        )
    return size
