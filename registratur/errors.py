"""What can go wrong between a registry and the content store.

Every error carries one message that names the object, what failed and, where there is one, the remedy.
Messages never hold credentials, tokens or the query of a URL (redirects to object stores are signed there).
"""


class RegistryError(Exception):
    """Anything this package raises on purpose; unspecific answers of a registry are of this very class."""

    status: int | None = None
    """The HTTP status that it is about, if it is about one."""


class InvalidReferenceError(RegistryError, ValueError):
    """A text is no image reference."""


class InvalidDigestError(RegistryError, ValueError):
    """A text is no digest, or uses an algorithm other than sha256 and sha512."""


class InvalidEndpointError(RegistryError, ValueError):
    """A configured mirror or registry name cannot be turned into a URL."""


class MalformedContentError(RegistryError):
    """A manifest, index, image config or token answer is not what its specification asks for."""


class UnsupportedContentError(RegistryError):
    """Content is well formed, but no container image that can be run (schema 1, an artifact, a chart)."""


class NotFoundError(RegistryError):
    """The registry or the content store has no such manifest or blob."""


class UnauthorizedError(RegistryError):
    """The registry wants credentials, or refuses those it was given."""


class UnavailableError(RegistryError):
    """The registry answered 429 or 5xx until the tries were used up."""

    retry_after: str | None = None
    """Its Retry-After header."""
    is_final: bool = False
    """It asks for more patience than there is."""


class DigestMismatchError(RegistryError):
    """Content does not hash to its digest, or has another size than its descriptor says."""


class NoMatchingPlatformError(RegistryError):
    """An image exists, but for none of the platforms that were asked for."""


class TransportError(RegistryError):
    """The network, TLS or HTTP failed."""


class ConnectError(TransportError):
    """No connection could be made: name resolution, refusal, timeout or the TLS handshake."""


class RedirectError(TransportError):
    """A server redirects to where no request of ours may go, or without end."""


class IdleTimeoutError(TransportError):
    """A connection stood without a single byte for the idle timeout."""
