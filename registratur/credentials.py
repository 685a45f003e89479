"""What a caller knows about itself (the fields of the CRI's AuthConfig and of Docker's config.json)."""

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import urlsplit

from registratur.errors import UnauthorizedError

_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "hub.docker.com"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials for one registry, never shown.

    `auth` is base64 of ``username:password`` and counts when `username` is empty; `identity_token` is an
    OAuth2 refresh token; `registry_token` is a bearer token that is sent as it is. `server_address`, a
    host or a URL, binds the credentials to that host; left empty they belong to the registry they are
    handed in for.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    auth: str = ""
    server_address: str = ""

    def __repr__(self) -> str:
        return f"Credentials(<redacted>, server_address={self.server_address!r})"

    def belong_to(self, host: str) -> bool:
        """Say whether they may be sent to the registry `host` (``host`` or ``host:port``).

        Raises UnauthorizedError if nobody can tell.
        """
        if not self.server_address:
            return True
        address = self.server_address
        try:
            server = urlsplit(address if "://" in address else f"//{address}").netloc
        except ValueError:
            raise UnauthorizedError("credentials: their server address is neither a host nor a URL") from None
        server = server.rpartition("@")[2].lower()
        host = host.lower()
        return server == host or (server in _DOCKER_HUB and host in _DOCKER_HUB)

    def basic(self) -> tuple[str, str] | None:
        """Return user and password, or None. Raises UnauthorizedError on a garbled `auth`."""
        if self.username:
            return self.username, self.password
        if not self.auth:
            return None
        try:
            user, colon, password = base64.b64decode(self.auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            # No chained cause: it would carry the decoded secret into a traceback.
            raise UnauthorizedError("credentials: 'auth' is not base64 of username:password") from None
        # Docker on Windows pads the password with NUL.
        return user, password.strip("\0")

    def basic_header(self) -> str | None:
        """Return the value of an Authorization header (RFC 7617), or None without a user."""
        pair = self.basic()
        if pair is None:
            return None
        return "Basic " + base64.b64encode(":".join(pair).encode()).decode()
