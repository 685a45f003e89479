"""Bringing one blob to one registry (distribution-spec v1.1, Pushing Blobs), over as many connections as it takes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace

from yarl import URL

from registratur.body import Body
from registratur.digest import Verifier
from registratur.errors import (
    DigestMismatchError,
    MalformedContentError,
    NotFoundError,
    RedirectError,
    RegistryError,
    TransportError,
    UnauthorizedError,
    UnavailableError,
)
from registratur.exchange import Exchange, Request, Route
from registratur.manifest import Descriptor
from registratur.sources import BlobSource
from registratur.transport import Answer, resolved

_PROGRESS = 256 * 1024  # bytes after which a broken upload counts as a fresh one
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Session:
    """An upload that a registry has begun: where it goes on, and how many bytes are there."""

    url: URL
    offset: int
    chunk: int
    """Bytes in one request; 0 for all that are left."""


class _LostError(RegistryError):
    """The registry does not know the upload any more, or counts otherwise than we do."""


class Upload:
    """One blob on its way to one repository."""

    def __init__(
        self, exchange: Exchange, route: Route, blob: Descriptor, source: BlobSource, chunk: int
    ) -> None:
        self._exchange = exchange
        self._route = route
        self._blob = blob
        self._source = source
        self._chunk = chunk
        self._plain = replace(route, beside="")
        self._verifier = Verifier(blob.digest, blob.size)
        self._session: _Session | None = None

    async def run(self) -> str:
        """See that the registry has the blob; return how: ``there``, ``mounted`` or ``uploaded``.

        A cut upload goes on at the byte that the registry names. Raises DigestMismatchError where the source has other
        bytes than the descriptor says, RegistryError, and what the source raises.
        """
        if await self._is_there():
            return "there"
        if self._route.beside and await self._mount():
            return "mounted"
        attempt, furthest, is_doubtful = 0, 0, False
        while True:
            failure: RegistryError
            try:
                if is_doubtful and await self._settle():
                    return "uploaded"
                is_doubtful = False
                if self._session is None:
                    self._session = await self._begin()
                if self._session.offset >= furthest + _PROGRESS:
                    attempt, furthest = 0, self._session.offset
                await self._transfer()
            except (RedirectError, DigestMismatchError):
                await self._give_up()
                raise
            except _LostError as error:
                failure, self._session = error, None
            except (TransportError, UnavailableError) as error:
                failure = error
            else:
                return "uploaded"
            attempt += 1
            is_final = isinstance(failure, UnavailableError) and failure.is_final
            if attempt >= self._route.policy.tries or is_final:
                raise failure
            told = failure.retry_after if isinstance(failure, UnavailableError) else None
            await asyncio.sleep(self._route.policy.delay(attempt - 1, told))
            is_doubtful = True

    async def _is_there(self) -> bool:
        try:
            async with self._exchange.open("HEAD", self._plain, "blobs", self._blob.digest, {}):
                return True
        except NotFoundError:
            return False

    async def _mount(self) -> bool:
        """Ask for the blob of the repository beside; a registry that does not do it has begun an upload instead."""
        query = {"mount": self._blob.digest, "from": self._route.beside}
        try:
            self._session = await self._open_session(self._route, query)
        except (NotFoundError, UnauthorizedError, TransportError, UnavailableError):
            return False  # that repository is not for us to read; our own may well be
        return self._session is None

    async def _begin(self) -> _Session:
        session = await self._open_session(self._plain, {})
        if session is None:
            raise MalformedContentError(f"{self._route.what}: an upload has ended before it began")
        return session

    async def _open_session(self, route: Route, query: Mapping[str, str]) -> _Session | None:
        url = route.endpoint.address(route.ref.repository, "blobs", "uploads/").update_query(query)
        request = Request("POST", url, {"Content-Length": "0"}, once=True)
        async with self._exchange.send(route, request) as answer:
            if answer.response.status == 201:
                return None
            least = answer.response.headers.get("OCI-Chunk-Min-Length", "")[:15]
            chunk = max(self._chunk, int(least)) if self._chunk and least.isdecimal() else self._chunk
            return _Session(self._next(answer), 0, chunk)

    async def _transfer(self) -> None:
        """Send what is missing, and close the upload."""
        session, size = self._current(), self._blob.size
        if session.offset == 0 and (not session.chunk or size <= session.chunk):
            await self._put(session, 0)
            return
        while session.offset < size:
            stop = min(session.offset + (session.chunk or size), size)
            headers = {"Content-Range": f"{session.offset}-{stop - 1}"}
            async with self._send("PATCH", session.url, session.offset, stop, headers) as answer:
                reached = _reached(answer, stop)
                if not session.offset < reached <= stop:
                    raise _LostError(
                        f"{self._route.what}: {self._blob.digest}: bytes {session.offset} to {stop - 1} were sent, "
                        f"and the registry has {reached}"
                    )
                session = self._session = replace(session, url=self._next(answer), offset=reached)
        await self._put(session, size)

    async def _put(self, session: _Session, start: int) -> None:
        text = str(session.url)
        url = URL(f"{text}{'&' if '?' in text else '?'}digest={self._blob.digest}", encoded=True)
        async with self._send("PUT", url, start, self._blob.size, {}):
            pass

    @asynccontextmanager
    async def _send(
        self, method: str, url: URL, start: int, stop: int, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Open the answer to a request with the blob's bytes from `start` to before `stop`."""
        length = {"Content-Length": str(stop - start), "Content-Type": _OCTETS}
        body = Body(stop - start, lambda: self._bytes(start, stop)) if stop > start else None
        try:
            async with self._exchange.send(
                self._plain, Request(method, url, {**headers, **length}, body, once=True)
            ) as answer:
                yield answer
        except RegistryError as error:
            if error.status in (404, 416):
                raise _LostError(str(error)) from error
            raise

    async def _bytes(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Yield a part of the blob; the last byte goes out only if all are those of the digest."""
        position = start
        async with aclosing(self._source.stream(self._blob.digest, start)) as pieces:
            async for piece in pieces:
                kept = piece[: stop - position]
                new = kept[max(0, self._verifier.received - position) :]
                position += len(kept)
                if new:
                    await asyncio.to_thread(self._verifier.update, new)
                if position == self._blob.size:
                    self._verifier.finish()
                yield kept
                if position == stop:
                    return
        raise DigestMismatchError(
            f"{self._blob.digest} ended after {position} of the {self._blob.size} bytes of its descriptor"
        )

    async def _settle(self) -> bool:
        """Ask how far the upload has come whose last request failed; say whether the blob is there already."""
        session = self._session
        if session is None:
            return False
        try:
            async with self._exchange.send(self._plain, Request("GET", session.url, once=True)) as answer:
                reached = _reached(answer, 0)
                url = self._next(answer) if "Location" in answer.response.headers else session.url
        except (TransportError, UnavailableError):
            raise
        except RegistryError:
            # Nothing is known of it: it has been given up, or it was complete, and what was cut is the answer to that.
            self._session = None
            return await self._is_there()
        self._session = replace(session, url=url, offset=reached) if reached <= self._blob.size else None
        return False

    async def _give_up(self) -> None:
        """Have the registry forget what it has got."""
        if self._session is not None:
            with suppress(RegistryError):
                async with self._exchange.send(self._plain, Request("DELETE", self._session.url, once=True)):
                    pass

    def _current(self) -> _Session:
        assert self._session is not None
        return self._session

    def _next(self, answer: Answer) -> URL:
        """Return where the upload goes on. A registry may well name another host; its secrets do not go there."""
        location = answer.response.headers.get("Location")
        if location is None:
            raise MalformedContentError(
                f"{self._route.what}: the registry does not say where an upload goes on"
            )
        return resolved(answer.url, location, "sends an upload")


def _reached(answer: Answer, otherwise: int) -> int:
    """Return the bytes that a registry has of an upload. Some say ``0-0`` of none, too."""
    found = _RANGE.fullmatch(answer.response.headers.get("Range", "").strip())
    if found is None:
        return otherwise
    last = int(found[1])
    return last + 1 if last else min(otherwise, 1)
