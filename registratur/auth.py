"""From a challenge to an Authorization header: Basic, or a bearer token from the realm a registry names.

Sources: https://distribution.github.io/distribution/spec/auth/token/ and .../auth/oauth/. Tokens are
kept until shortly before they expire, per realm, service, scope and credentials; credentials of one pull
never serve another.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from yarl import URL

from registratur.challenge import Challenge
from registratur.credentials import Credentials
from registratur.errors import MalformedContentError, TransportError, UnauthorizedError
from registratur.fields import Fields
from registratur.hosts import HostOptions, origin
from registratur.transport import Transport, shown

_CLIENT_ID = "registratur"
_DEFAULT_LIFETIME = 60  # seconds, when expires_in is missing (the specification's own default)
_MARGIN = 10  # seconds before expiry at which a token is no longer used
_ANSWER_LIMIT = 1024 * 1024  # bytes
_KNOWN_LIMIT = 512  # tokens kept


@dataclass(frozen=True, slots=True)
class Access:
    """What is to be opened: a repository at an endpoint, with these credentials; without one (""), the endpoint itself.

    `actions` is ``pull`` or ``pull,push``; `beside` is another repository that is only read, or "".
    """

    endpoint: URL
    repository: str
    credentials: Credentials | None
    actions: str = "pull"
    beside: str = ""

    @property
    def scopes(self) -> tuple[str, ...]:
        """What is asked for, whatever the challenge names."""
        if not self.repository:
            return ()
        own = f"repository:{self.repository}:{self.actions}"
        return (own, f"repository:{self.beside}:pull") if self.beside else (own,)


@dataclass(frozen=True, slots=True)
class _Header:
    value: str
    expires: float  # on the monotonic clock


class Authorizer:
    """Answers challenges and remembers the answers."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._known: dict[Access, _Header] = {}

    def known(self, access: Access) -> str | None:
        """Return a header that served this access before, or the token the caller brought itself, or None.

        Raises UnauthorizedError for a token that no header can have.
        """
        if access.credentials is not None and (token := access.credentials.registry_token):
            if not _fits_header(token):
                raise UnauthorizedError(
                    "credentials: the registry token is not printable ASCII without spaces"
                )
            return f"Bearer {token}"
        header = self._known.get(access)
        if header is None or header.expires <= time.monotonic():
            return None
        return header.value

    async def answer(
        self, access: Access, challenges: Sequence[Challenge], options: HostOptions | None = None
    ) -> str:
        """Return the header that meets the best of `challenges`: Bearer before Basic.

        `options` are those of the endpoint, and count for a token service of the same origin.

        Raises UnauthorizedError, TransportError, MalformedContentError.
        """
        self._known.pop(access, None)
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in by_scheme:
            header = await self._token(access, by_scheme["bearer"], options)
        elif "basic" in by_scheme:
            header = _Header(_basic(access), float("inf"))
        else:
            offered = ", ".join(sorted(by_scheme)) or "no scheme at all"
            raise UnauthorizedError(
                f"{_what(access)} needs authentication by {offered}; only Bearer and Basic are known"
            )
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[access] = header
        return header.value

    async def _token(self, access: Access, challenge: Challenge, options: HostOptions | None) -> _Header:
        realm = self._realm(access, challenge)
        known = options if origin(realm) == origin(access.endpoint) else None
        service = challenge.parameters.get("service", "")
        scope = _scope(access, challenge.parameters.get("scope", ""))
        credentials = access.credentials
        asked = time.monotonic()
        if credentials is not None and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": _CLIENT_ID,
                "service": service,
                "scope": scope,
            }
            data = await self._ask("POST", realm, known, form=form)
        else:
            # Several scopes stand in one parameter with spaces between, and are asked for one by one.
            pairs = [*realm.query.items(), *((("service", service),) if service else ())]
            pairs += [("scope", part) for part in scope.split()]
            basic = None if credentials is None else credentials.basic_header()
            data = await self._ask("GET", realm.with_query(pairs), known, authorization=basic)
        answer = Fields.parse(f"token of {shown(realm)}", data)
        token = answer.string("token") or answer.string("access_token")
        if not token or not _fits_header(token):
            raise MalformedContentError(f"{shown(realm)} answered without a usable token")
        lifetime = answer.integer("expires_in") if "expires_in" in answer else _DEFAULT_LIFETIME
        return _Header(f"Bearer {token}", asked + lifetime - _MARGIN)

    def _realm(self, access: Access, challenge: Challenge) -> URL:
        try:
            realm = URL(challenge.parameters.get("realm", ""))
            usable = realm.scheme in ("http", "https") and realm.host is not None
        except ValueError:
            usable = False
        if not usable:
            raise UnauthorizedError(
                f"{shown(access.endpoint)} sends to a token realm that is no http or https URL"
            )
        if realm.scheme == "http" and access.endpoint.scheme == "https":
            raise UnauthorizedError(f"{shown(access.endpoint)} sends to a token realm without TLS: refused")
        return realm

    async def _ask(
        self,
        method: str,
        url: URL,
        options: HostOptions | None,
        *,
        authorization: str | None = None,
        form: dict[str, str] | None = None,
    ) -> bytes:
        headers = {"Accept": "application/json"}
        async with self._transport.request(
            method, url, headers, authorization=authorization, form=form, options=options
        ) as answer:
            status = answer.response.status
            if status in (400, 401, 403):
                raise UnauthorizedError(
                    f"{shown(url)} refuses a token (HTTP {status}): check the credentials"
                )
            if status != 200:
                raise TransportError(f"{shown(url)} gives no token: HTTP {status}")
            data = await answer.body(_ANSWER_LIMIT, self._transport.idle_timeout)
        if data is None:
            raise MalformedContentError(f"{shown(url)} answers with more than {_ANSWER_LIMIT} bytes")
        return data


def _scope(access: Access, named: str) -> str:
    """Return what to ask for: what the challenge names, and for more than a pull what is needed besides.

    The challenge to a HEAD names no push, and each token is worth a question.
    """
    parts = named.split()
    if parts and access.actions == "pull":
        return named
    own = [scope for scope in access.scopes if scope not in parts]
    return " ".join(
        [*own, *(part for part in parts if not any(scope.startswith(f"{part},") for scope in own))]
    )


def _fits_header(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token


def _what(access: Access) -> str:
    return ": ".join(filter(None, (shown(access.endpoint), access.repository)))


def _basic(access: Access) -> str:
    header = None if access.credentials is None else access.credentials.basic_header()
    if header is None:
        raise UnauthorizedError(f"{_what(access)} needs a user name and a password")
    return header
