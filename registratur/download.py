"""Streaming one blob from one endpoint, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from registratur.digest import Verifier
from registratur.errors import ConnectError, DigestMismatchError, IdleTimeoutError, TransportError
from registratur.exchange import Exchange, Route
from registratur.manifest import Descriptor

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_PROGRESS = 256 * 1024  # bytes after which a broken download counts as a fresh one
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-")


async def download(
    exchange: Exchange, route: Route, descriptor: Descriptor, verifier: Verifier
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes that `verifier` has not seen yet, and show them to it.

    A broken connection is continued by a Range request (RFC 9110, section 14) after a backoff; the count
    of tries starts anew when one brought a fair piece. Silence is tolerated once after bytes came, and
    never twice in a row.
    Raises DigestMismatchError, IdleTimeoutError, TransportError and other RegistryErrors.
    """
    attempt = 0
    while True:
        start = verifier.received
        failure: TransportError
        try:
            async with aclosing(_connection(exchange, route, descriptor, start)) as chunks:
                async for chunk in chunks:
                    verifier.update(chunk)
                    yield chunk
        except ConnectError as error:
            if not start:
                raise  # an endpoint that never answered is left to the next one at once
            failure = error
        except TransportError as error:
            failure = error
        else:
            failure = TransportError(
                f"{route.ref.name}: {descriptor.digest} broke off "
                f"after {verifier.received} of {descriptor.size} bytes"
            )
        if verifier.received == descriptor.size:
            return  # whatever broke behind the last byte
        gained = verifier.received - start
        if isinstance(failure, IdleTimeoutError) and not gained:
            raise failure
        attempt = 0 if gained >= _PROGRESS else attempt + 1
        if attempt >= route.policy.tries:
            raise failure
        await asyncio.sleep(route.policy.delay(attempt))


async def _connection(
    exchange: Exchange, route: Route, descriptor: Descriptor, start: int
) -> AsyncGenerator[bytes, None]:
    """Yield what one connection brings of a blob from byte `start` on."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    async with exchange.open("GET", route, "blobs", descriptor.digest, headers) as answer:
        skip = _surplus(answer.response, descriptor, start)
        async with aclosing(answer.chunks(exchange.idle_timeout)) as chunks:
            async for chunk in chunks:
                if skip < len(chunk):
                    yield chunk[skip:] if skip else chunk
                skip = max(0, skip - len(chunk))


def _surplus(response: ClientResponse, descriptor: Descriptor, start: int) -> int:
    """Return how many bytes at the front of the answer are known: a server may ignore Range."""
    if response.status == 206:
        begins = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        first = int(begins.group(1)) if begins else start
        if first > start:
            raise TransportError(
                f"{descriptor.digest}: asked for bytes from {start} on, the answer begins at {first}"
            )
        return start - first
    if response.content_length is not None and response.content_length != descriptor.size:
        raise DigestMismatchError(
            f"{descriptor.digest} is {response.content_length} bytes long on the server, "
            f"its descriptor says {descriptor.size}"
        )
    return start
