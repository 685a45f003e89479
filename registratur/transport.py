"""HTTP as a registry client needs it: redirects by hand, silence as the only timeout, errors translated.

aiohttp would follow redirects by itself and keep the Authorization header on some of them; here the
header stays with the origin it was made for. Content-Encoding is left alone, since digests cover the
bytes as stored.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Self

import aiohttp
from yarl import URL

from registratur.errors import ConnectError, IdleTimeoutError, RedirectError, TransportError
from registratur.hosts import HostOptions, HostsConfig, origin

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECT_LIMIT = 8
_READ_BUFFER = 256 * 1024  # bytes held per connection before the peer is slowed down
_USER_AGENT = "registratur"


@dataclass(frozen=True, slots=True)
class Answer:
    """An open answer; `own` says whether the origin that was asked gave it, or one it redirected to."""

    response: aiohttp.ClientResponse
    own: bool

    async def chunks(self, idle_timeout: float) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes. Raises TransportError, IdleTimeoutError."""
        with translated(self.response.url, idle_timeout):
            while chunk := await self.response.content.readany():
                yield chunk

    async def body(self, limit: int, idle_timeout: float) -> bytes | None:
        """Return the whole body, or None if it is longer than `limit` bytes. Raises TransportError."""
        collected = bytearray()
        with translated(self.response.url, idle_timeout):
            while chunk := await self.response.content.readany():
                collected += chunk
                if len(collected) > limit:
                    return None
        return bytes(collected)


class Transport:
    """A pool of connections. `idle_timeout` and `connect_timeout` are in seconds."""

    def __init__(self, hosts: HostsConfig, *, idle_timeout: float, connect_timeout: float) -> None:
        self._hosts = hosts
        self.idle_timeout = idle_timeout
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout, sock_read=idle_timeout)
        self._contexts: dict[HostOptions, ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # No limit of connections: waiting for one would count as connect time. pull() bounds its layers.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Answer]:
        """Send one request and follow its redirects; whatever status comes at the end is an answer.

        `authorization` is dropped at the first redirect to another origin and does not come back.
        Raises TransportError, ConnectError, RedirectError, IdleTimeoutError.
        """
        start, target = origin(url), url
        for _ in range(_REDIRECT_LIMIT):
            response = await self._send(method, target, headers, authorization, form)
            try:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    yield Answer(response, own=origin(target) == start)
                    return
            finally:
                # A body read to its end has given its connection back; any other connection is spoilt.
                response.close()
            if form is not None:
                raise RedirectError(f"{shown(url)} redirects a POST: refused, it carries a secret")
            target = _follow(target, location)
            if origin(target) != start:
                authorization = None
        raise RedirectError(f"{shown(url)} redirects more than {_REDIRECT_LIMIT} times")

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        authorization: str | None,
        form: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the client is not open: use it as 'async with Client(...)'")
        context = await self._tls(url)
        own = dict(headers) if authorization is None else {**headers, "Authorization": authorization}
        with translated(url, self.idle_timeout):
            return await self._session.request(
                method, url, headers=own, data=form, ssl=context, allow_redirects=False
            )

    async def _tls(self, url: URL) -> ssl.SSLContext | bool:
        options = self._hosts.options_for(url)
        if options.skip_verify:
            return False
        if options.ca_file is None:
            return True
        if options not in self._contexts:
            try:
                made = await asyncio.to_thread(ssl.create_default_context, cafile=str(options.ca_file))
            except OSError as error:
                raise ConnectError(
                    f"{url.host}: cannot load the CA file {options.ca_file}: {error}"
                ) from error
            self._contexts[options] = made
        return self._contexts[options]


def shown(url: URL) -> str:
    """Return a URL fit for a message: without user, password, query and fragment."""
    return str(url.with_user(None).with_query(None).with_fragment(None))


@contextmanager
def translated(url: URL, idle_timeout: float) -> Iterator[None]:
    """Turn aiohttp's errors into ours, naming the URL."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise ConnectError(f"{shown(url)}: no connection within the connect timeout") from error
    except TimeoutError as error:
        raise IdleTimeoutError(f"{shown(url)}: not one byte for {idle_timeout:g} s") from error
    except aiohttp.ClientConnectorError as error:
        raise ConnectError(f"{shown(url)}: {error}") from error
    except aiohttp.InvalidURL:
        raise TransportError(f"{shown(url)}: not a usable URL") from None
    except aiohttp.ClientError as error:
        raise TransportError(f"{shown(url)}: {type(error).__name__}: the connection broke") from error


def _follow(source: URL, location: str) -> URL:
    try:
        # encoded=True: the signature of a signed URL covers its exact spelling.
        target = source.join(URL(location, encoded=True)).with_user(None)
        usable = target.scheme in ("http", "https") and target.host is not None
    except ValueError:
        usable = False
    if not usable:
        raise RedirectError(f"{shown(source)} redirects to what is no http or https URL")
    if source.scheme == "https" and target.scheme == "http":
        raise RedirectError(f"{shown(source)} redirects from https to plain http: refused")
    return target
