"""HTTP as a registry client needs it: redirects by hand, silence as the only timeout, errors translated.

aiohttp would follow redirects by itself and keep the Authorization header on some of them; here the
header stays with the origin it was made for. Content-Encoding is left alone, since digests cover the
bytes as stored.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from multidict import CIMultiDict
from yarl import URL

from registratur.body import Body, Feed
from registratur.errors import (
    ConnectError,
    IdleTimeoutError,
    InvalidEndpointError,
    RedirectError,
    TransportError,
)
from registratur.hosts import HostOptions, HostsConfig, origin
from registratur.proxies import Proxies, Proxy
from registratur.tls import Contexts

if TYPE_CHECKING:
    import aiohttp

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})  # those that say: as it was (RFC 9110, 15.4)
_SAFE = frozenset({"GET", "HEAD"})
_REDIRECT_LIMIT = 8
_HEAD_PATIENCE = 4  # times the idle timeout: who sends a byte now and then, or 1xx without end, is no server
_READ_BUFFER = 256 * 1024  # bytes held per connection before the peer is slowed down
_USER_AGENT = "registratur"


@dataclass(frozen=True, slots=True)
class Answer:
    """An open answer; `own` says whether the origin that was asked gave it, or one it redirected to: that of `url`."""

    response: aiohttp.ClientResponse
    own: bool
    url: URL

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
    """Pools of connections. `idle_timeout` and `connect_timeout` are in seconds.

    `environment` says which proxies to go through where `hosts` does not; by default that of this process.
    """

    def __init__(
        self,
        hosts: HostsConfig,
        *,
        idle_timeout: float,
        connect_timeout: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._hosts = hosts
        self._proxies = Proxies.of(os.environ if environment is None else environment)
        self.idle_timeout = idle_timeout
        self._connect_timeout = connect_timeout
        self._head_seconds = connect_timeout + _HEAD_PATIENCE * idle_timeout
        self._contexts = Contexts()
        self._is_open = False
        self._session: aiohttp.ClientSession | None = None
        self._heads: aiohttp.ClientSession | None = None
        """For HEAD: some servers answer it with a body. Nobody knows whether one is still to come, and the next answer on
        that connection would begin with it: so there is no next one."""

    def configure(self, hosts: HostsConfig) -> None:
        """Go by other rules from the next request on. Files with certificates are read anew."""
        self._hosts = hosts
        self._contexts = Contexts()

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        sessions = self._session, self._heads
        self._session = self._heads = None
        self._is_open = False
        for session in filter(None, sessions):
            await session.close()

    async def _session_for(self, method: str) -> aiohttp.ClientSession:
        """Return a session to send a request with."""
        if self._session is None or self._heads is None:
            # Not before: it takes megabytes, and a fifth of a second, which is not to be the event loop's.
            await asyncio.to_thread(importlib.import_module, "aiohttp")
            if not self._is_open:
                raise RuntimeError("the client is not open: use it as 'async with Client(...)'")
            self._session = self._session or self._open()
            self._heads = self._heads or self._open(one_request=True)
        return self._heads if method == "HEAD" else self._session

    def _open(self, *, one_request: bool = False) -> aiohttp.ClientSession:
        """Return a session, whose connections serve one request or many."""
        import aiohttp  # noqa: PLC0415 - has been imported, in a thread

        # No limit of connections: waiting for one would count as connect time. pull() bounds its layers.
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=one_request),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
        )

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        body: Body | None = None,
        options: HostOptions | None = None,
    ) -> AsyncIterator[Answer]:
        """Send one request and follow its redirects; whatever status comes at the end is an answer.

        `authorization` is dropped at the first redirect to another origin and does not come back. `options` are for the
        origin of `url` alone, before those that the configuration has for its host.
        Raises TransportError, ConnectError, RedirectError, IdleTimeoutError, and what the stream of `body` raises.
        """
        start, target = origin(url), url
        for _ in range(_REDIRECT_LIMIT):
            feed = None if body is None else Feed(body)
            try:
                known = self._hosts.options_for(target)
                if options is not None and origin(target) == start:
                    known = options.over(known)
                response = await self._send(method, target, headers, authorization, form, feed, known)
                try:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        yield Answer(response, origin(target) == start, target)
                        return
                finally:
                    # A body read to its end has given its connection back; any other connection is spoilt.
                    response.close()
            finally:
                if feed is not None:
                    await feed.close()
            if form is not None:
                raise RedirectError(f"{shown(url)} redirects a POST: refused, it carries a secret")
            if method not in _SAFE and response.status not in _SAME_METHOD:
                raise RedirectError(
                    f"{shown(url)} redirects a {method} by HTTP {response.status}, which makes it a GET: refused"
                )
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
        feed: Feed | None,
        options: HostOptions,
    ) -> aiohttp.ClientResponse:
        session = await self._session_for(method)
        import aiohttp  # noqa: PLC0415 - has been imported, in a thread

        context, proxy = await self._contexts.of(url.host, options), self._proxy(url, options)
        own = CIMultiDict(options.headers)
        own.update(headers)
        if authorization is not None:
            own["Authorization"] = authorization
        passing: dict[str, str] = {}
        if proxy is not None and proxy.authorization is not None:
            # What is for the proxy goes with CONNECT, or else beside what is for the server.
            (passing if url.scheme == "https" else own)["Proxy-Authorization"] = proxy.authorization
        head = asyncio.timeout(self._head_seconds)

        def taken() -> None:
            if not head.expired():
                head.reschedule(asyncio.get_running_loop().time() + self._head_seconds)

        with translated(url, self.idle_timeout, proxy):
            try:
                async with head:
                    return await session.request(
                        method,
                        url,
                        headers=own,
                        data=form if feed is None else feed.pieces(taken),
                        ssl=context,
                        allow_redirects=False,
                        proxy=None if proxy is None else proxy.url,
                        proxy_headers=passing,
                        timeout=aiohttp.ClientTimeout(
                            total=None,
                            connect=options.connect_timeout or self._connect_timeout,
                            sock_read=self.idle_timeout,
                        ),
                    )
            except TimeoutError:
                if not head.expired():
                    raise
                moved = "though bytes came" if feed is None else "and no byte was taken"
                text = f"{shown(url)}: no answer within {self._head_seconds:g} s, {moved}"
                raise IdleTimeoutError(text) from None
            except aiohttp.ClientError as error:
                if feed is not None and feed.failure is not None:
                    raise feed.failure from error
                raise

    def _proxy(self, url: URL, options: HostOptions) -> Proxy | None:
        """Return the proxy to go through: of the configuration, or else of the environment."""
        configured = self._hosts.proxy_for(url, options)
        try:
            if configured is True:
                return self._proxies.proxy_for(url)
        except InvalidEndpointError as error:
            raise ConnectError(f"{shown(url)}: {error}") from error
        return configured or None


def shown(url: URL) -> str:
    """Return a URL fit for a message: without user, password, query and fragment."""
    return str(url.with_user(None).with_query(None).with_fragment(None))


@contextmanager
def translated(url: URL, idle_timeout: float, proxy: Proxy | None = None) -> Iterator[None]:
    """Turn aiohttp's errors into ours, naming the URL, and the proxy on the way to it."""
    import aiohttp  # noqa: PLC0415 - has been imported, in a thread

    through = "" if proxy is None else f" through the proxy {proxy.url}"
    try:
        yield
    except aiohttp.ClientHttpProxyError as error:
        # No chained cause: it has the headers that were sent.
        raise ConnectError(
            f"{shown(url)}: the proxy {proxy and proxy.url} refuses to connect to it: HTTP {error.status}; "
            "look at its rules, and at the user and password for it"
        ) from None
    except aiohttp.ConnectionTimeoutError as error:
        raise ConnectError(f"{shown(url)}: no connection within the connect timeout{through}") from error
    except TimeoutError as error:
        raise IdleTimeoutError(f"{shown(url)}: not one byte for {idle_timeout:g} s") from error
    except aiohttp.ClientConnectorError as error:
        raise ConnectError(f"{shown(url)}: {error}{through}") from error
    except (
        aiohttp.InvalidURL,
        UnicodeError,
    ):  # the latter is what a resolver says of a name that DNS cannot have
        raise TransportError(f"{shown(url)}: not a usable URL") from None
    except aiohttp.ClientError as error:
        # What TLS of the other side objects to comes late, as a broken connection: a missing client certificate, for one.
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise TransportError(f"{shown(url)}: {type(error).__name__}: the connection broke{reason}") from error


def _follow(source: URL, location: str) -> URL:
    return resolved(source, location, "redirects")


def resolved(source: URL, location: str, what: str) -> URL:
    """Return where a Location header of `source` leads; `what` it does by it is for messages.

    Raises RedirectError for what is no URL of http, and for a way out of TLS.
    """
    try:
        # encoded=True: the signature of a signed URL covers its exact spelling.
        target = source.join(URL(location, encoded=True)).with_user(None)
        usable = target.scheme in ("http", "https") and target.host is not None
    except ValueError:
        usable = False
    if not usable:
        raise RedirectError(f"{shown(source)} {what} to what is no http or https URL")
    if source.scheme == "https" and target.scheme == "http":
        raise RedirectError(f"{shown(source)} {what} from https to plain http: refused")
    return target
