"""From a refusing HTTP status to a typed error (distribution-spec, section Error Codes)."""

from registratur.errors import (
    MalformedContentError,
    NotFoundError,
    RegistryError,
    UnauthorizedError,
    UnavailableError,
)
from registratur.fields import Fields
from registratur.retry import RETRIED_STATUSES

ERROR_BODY_LIMIT = 64 * 1024  # bytes of an error body that are read
_MESSAGE_LIMIT = 300  # characters of it that are shown
_HINTS = {
    401: "authentication is needed, the credentials are wrong, or there is no such repository",
    403: "access is denied",
    404: "there is no such manifest, blob or repository",
    429: "the rate limit is reached",
}
_TYPES: dict[int, type[RegistryError]] = {401: UnauthorizedError, 403: UnauthorizedError, 404: NotFoundError}


def refusal(what: str, status: int, body: bytes | None) -> RegistryError:
    """Return the error for an answer of 400 or more; `what` names the object and the endpoint."""
    if status in RETRIED_STATUSES:
        kind: type[RegistryError] = UnavailableError
    else:
        kind = _TYPES.get(status, RegistryError)
    reasons = [part for part in (_HINTS.get(status, ""), _explanation(body or b"")) if part]
    return kind(": ".join([what, f"HTTP {status}", *reasons]))


def _explanation(body: bytes) -> str:
    """Return the first ``code: message`` of an error body, "" when it is of no known form."""
    try:
        for entry in Fields.parse("error body", body).children("errors"):
            words = [word for word in (entry.string("code"), entry.string("message")) if word]
            text = ": ".join(words)[:_MESSAGE_LIMIT]
            return "".join(mark if mark.isprintable() else " " for mark in text)
    except MalformedContentError:
        # HTML of a proxy, or nothing at all: the status says what there is to say.
        return ""
    return ""
