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
_PUSH_HINTS = {
    401: "authentication is needed, or the credentials are wrong, or they do not allow to push there",
    403: "access is denied: the credentials do not allow to push there",
    404: "there is no such repository, and none is made by a push",
    405: "pushes are not taken: the registry is read-only, or a mirror",
    413: "too much in one request for the registry, or for a proxy before it: push in smaller chunks",
}
_TYPES: dict[int, type[RegistryError]] = {401: UnauthorizedError, 403: UnauthorizedError, 404: NotFoundError}


def refusal(what: str, status: int, body: bytes | None, *, pushes: bool = False) -> RegistryError:
    """Return the error for an answer of 300 or more; `what` names the object and the endpoint."""
    if status in RETRIED_STATUSES:
        kind: type[RegistryError] = UnavailableError
    else:
        kind = _TYPES.get(status, RegistryError)
    hint = (_PUSH_HINTS.get(status) if pushes else None) or _HINTS.get(status, "")
    reasons = [part for part in (hint, _explanation(body or b"")) if part]
    error = kind(": ".join([what, f"HTTP {status}", *reasons]))
    error.status = status
    return error


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
