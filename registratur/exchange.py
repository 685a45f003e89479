"""One request to one endpoint, with challenges met and 429 and 5xx waited out."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from yarl import URL

from registratur.answers import ERROR_BODY_LIMIT, refusal
from registratur.auth import Access, Authorizer
from registratur.body import Body
from registratur.challenge import parse_challenges
from registratur.credentials import Credentials
from registratur.errors import (
    ConnectError,
    IdleTimeoutError,
    RedirectError,
    RegistryError,
    TransportError,
    UnavailableError,
)
from registratur.hosts import Endpoint, origin
from registratur.login import check
from registratur.reference import Reference
from registratur.retry import RetryPolicy
from registratur.transport import Answer, Transport


@dataclass(frozen=True, slots=True)
class Route:
    """One way to a repository: where, how patiently, and with the credentials meant for there.

    `actions` and `beside` are those of :class:`registratur.auth.Access`.
    """

    ref: Reference
    endpoint: Endpoint
    policy: RetryPolicy
    credentials: Credentials | None
    actions: str = "pull"
    beside: str = ""

    @property
    def what(self) -> str:
        """Name what goes on, for messages."""
        return f"{self.ref} {'from' if self.actions == 'pull' else 'to'} {self.endpoint}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to be sent; with `once` it is not sent again by itself, whatever the answer, but for a challenge."""

    method: str
    url: URL
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    once: bool = False


class Exchange:
    """Sends requests over `transport` and keeps the tokens that opened doors."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._authorizer = Authorizer(transport)

    @property
    def idle_timeout(self) -> float:
        """The seconds without a byte after which reading fails."""
        return self._transport.idle_timeout

    async def check(self, endpoint: Endpoint, credentials: Credentials) -> bool:
        """Say whether an endpoint has looked at credentials, and taken them; see `registratur.login`. Raises RegistryError."""
        return await check(self._transport, self._authorizer, endpoint, credentials)

    @asynccontextmanager
    async def open(
        self, method: str, route: Route, kind: str, target: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Open the successful answer to a request for `kind` ("manifests" or "blobs") `target`.

        Raises NotFoundError, UnauthorizedError, UnavailableError, TransportError or plain RegistryError.
        """
        url = route.endpoint.address(route.ref.repository, kind, target)
        async with self.send(route, Request(method, url, headers)) as answer:
            yield answer

    @asynccontextmanager
    async def send(self, route: Route, request: Request) -> AsyncIterator[Answer]:
        """Open the successful answer to a request; credentials go to the origin of the route's endpoint only.

        Raises NotFoundError, UnauthorizedError, UnavailableError, TransportError or plain RegistryError.
        """
        async with AsyncExitStack() as stack:
            yield await self._succeed(stack, route, request)

    async def _succeed(self, stack: AsyncExitStack, route: Route, request: Request) -> Answer:
        access = Access(
            route.endpoint.url, route.ref.repository, route.credentials, route.actions, route.beside
        )
        trusted = origin(request.url) == origin(route.endpoint.url)
        options = route.endpoint.options if trusted else None
        authorization = self._authorizer.known(access) if trusted else None
        attempt, challenged = 0, False
        while True:
            retry_after: str | None = None
            failure: RegistryError
            try:
                answer = await stack.enter_async_context(
                    self._transport.request(
                        request.method,
                        request.url,
                        request.headers,
                        authorization=authorization,
                        body=request.body,
                        options=options,
                    )
                )
                response = answer.response
                if response.status < 300:
                    return answer
                body = await answer.body(ERROR_BODY_LIMIT, self.idle_timeout)
                await stack.aclose()
                # A 401 of the place a redirect led to is no question to us: our secrets are for the registry.
                if response.status == 401 and trusted and answer.own and not challenged:
                    challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                    if challenges:
                        authorization = await self._authorizer.answer(access, challenges, options)
                        challenged = True
                        continue
                retry_after = response.headers.get("Retry-After")
                failure = refusal(route.what, response.status, body, pushes=route.actions != "pull")
                if not isinstance(failure, UnavailableError):
                    raise failure
                failure.retry_after = retry_after
                if route.policy.is_too_long(retry_after):
                    raise _later(failure)
            except (ConnectError, IdleTimeoutError, RedirectError):
                raise  # those took their time already, this one would come again
            except TransportError as error:
                failure = error
                await stack.aclose()
            attempt += 1
            if request.once or attempt >= route.policy.tries:
                raise failure
            await asyncio.sleep(route.policy.delay(attempt - 1, retry_after))


def _later(failure: UnavailableError) -> UnavailableError:
    """Return the error of a registry that wants to be asked much later: nobody waits that long, nor asks before."""
    text = "".join(mark for mark in failure.retry_after or "" if mark.isprintable())[:40]
    told = UnavailableError(f"{failure}: it is not to be asked again before Retry-After: {text}")
    told.status, told.retry_after, told.is_final = failure.status, failure.retry_after, True
    return told
