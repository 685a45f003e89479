"""Whether a registry takes credentials: what there is to ask before they are written down.

Source: distribution-spec, section Determining Support; https://distribution.github.io/distribution/spec/auth/token/.
"""

from registratur.answers import ERROR_BODY_LIMIT, refusal
from registratur.auth import Access, Authorizer
from registratur.challenge import parse_challenges
from registratur.credentials import Credentials
from registratur.hosts import Endpoint
from registratur.transport import Transport


async def check(
    transport: Transport, authorizer: Authorizer, endpoint: Endpoint, credentials: Credentials
) -> bool:
    """Say whether an endpoint has looked at credentials, and taken them; False where it asks nobody for any.

    It is asked once, by somebody who waits: nothing is tried again. Raises UnauthorizedError where they are refused, and
    other RegistryErrors.
    """
    access = Access(endpoint.url, "", credentials)
    authorization = authorizer.known(access)
    while True:
        async with transport.request(
            "GET", endpoint.base, {}, authorization=authorization, options=endpoint.options
        ) as answer:
            response = answer.response
            if response.status < 300:
                return authorization is not None
            body = await answer.body(ERROR_BODY_LIMIT, transport.idle_timeout)
        challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
        if response.status != 401 or not answer.own or authorization is not None or not challenges:
            raise refusal(f"{endpoint.registry} at {endpoint}", response.status, body)
        authorization = await authorizer.answer(access, challenges, endpoint.options)
