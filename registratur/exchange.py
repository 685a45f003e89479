"""One request to one endpoint, with challenges met and 429 and 5xx waited out."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from yarl import URL

from registratur.answers import ERROR_BODY_LIMIT, refusal
from registratur.auth import Access, Authorizer
from registratur.challenge import parse_challenges
from registratur.credentials import Credentials
from registratur.errors import (
    ConnectError,
    IdleTimeoutError,
    RedirectError,
    RegistryError,
    TransportError,
)
from registratur.hosts import Endpoint
from registratur.reference import Reference
from registratur.retry import RETRIED_STATUSES, RetryPolicy
from registratur.transport import Answer, Transport


@dataclass(frozen=True, slots=True)
class Route:
    """One way to a repository: where, how patiently, and with the credentials meant for there."""

    ref: Reference
    endpoint: Endpoint
    policy: RetryPolicy
    credentials: Credentials | None


class Exchange:
    """Sends requests over `transport` and keeps the tokens that opened doors."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._authorizer = Authorizer(transport)

    @property
    def idle_timeout(self) -> float:
        """The seconds without a byte after which reading fails."""
        return self._transport.idle_timeout

    @asynccontextmanager
    async def open(
        self, method: str, route: Route, kind: str, target: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Open the successful answer to a request for `kind` ("manifests" or "blobs") `target`.

        Raises NotFoundError, UnauthorizedError, UnavailableError, TransportError or plain RegistryError.
        """
        async with AsyncExitStack() as stack:
            url = route.endpoint.address(route.ref.repository, kind, target)
            yield await self._succeed(stack, method, route, url, headers=headers)

    async def _succeed(
        self,
        stack: AsyncExitStack,
        method: str,
        route: Route,
        url: URL,
        *,
        headers: Mapping[str, str],
    ) -> Answer:
        access = Access(route.endpoint.url, route.ref.repository, route.credentials)
        authorization = self._authorizer.known(access)
        attempt, challenged = 0, False
        while True:
            retry_after: str | None = None
            failure: RegistryError
            try:
                request = self._transport.request(method, url, headers, authorization=authorization)
                answer = await stack.enter_async_context(request)
                response = answer.response
                if response.status < 300:
                    return answer
                body = await answer.body(ERROR_BODY_LIMIT, self.idle_timeout)
                await stack.aclose()
                # A 401 of the place a redirect led to is no question to us: our secrets are for the registry.
                if response.status == 401 and answer.own and not challenged:
                    challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                    if challenges:
                        authorization = await self._authorizer.answer(access, challenges)
                        challenged = True
                        continue
                failure = refusal(f"{route.ref} from {route.endpoint}", response.status, body)
                if response.status not in RETRIED_STATUSES:
                    raise failure
                retry_after = response.headers.get("Retry-After")
            except (ConnectError, IdleTimeoutError, RedirectError):
                raise  # those took their time already, this one would come again
            except TransportError as error:
                failure = error
                await stack.aclose()
            attempt += 1
            if attempt >= route.policy.tries:
                raise failure
            await asyncio.sleep(route.policy.delay(attempt - 1, retry_after))
