"""Content digests, ``algorithm:hex`` (OCI image-spec, descriptor.md, section Digests).

A digest travels as ``str``; :func:`parse_digest` is the gate that untrusted text passes once, and the
reason why a digest may be used as a file name afterwards.
"""

import hashlib
import re

from registratur.errors import DigestMismatchError, InvalidDigestError

_GRAMMAR = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")


def parse_digest(text: str) -> str:
    """Return `text` if it is a sha256 or sha512 digest in lower case.

    Raises InvalidDigestError.
    """
    if _GRAMMAR.fullmatch(text) is None:
        raise InvalidDigestError(
            f"{text[:160]!r} is no digest: expected sha256: and 64, or sha512: and 128 lower-case hex digits"
        )
    return text


def split_digest(text: str) -> tuple[str, str]:
    """Return algorithm and hex digits of a digest. Raises InvalidDigestError."""
    algorithm, _, encoded = parse_digest(text).partition(":")
    return algorithm, encoded


def compute_digest(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of `data`. Blocks for as long as hashing takes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Verifier:
    """Hashes a stream and says at its end whether it was the promised content.

    `size` is in bytes; a stream that grows beyond it is refused at once, so that nobody can be made to
    store more.
    """

    def __init__(self, digest: str, size: int) -> None:
        algorithm, self._expected = split_digest(digest)
        self._hash = hashlib.new(algorithm)
        self._digest = digest
        self._size = size
        self.received = 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes. Raises DigestMismatchError when there are more than promised."""
        self.received += len(chunk)
        if self.received > self._size:
            raise DigestMismatchError(
                f"{self._digest} is longer than the {self._size} bytes of its descriptor"
            )
        self._hash.update(chunk)

    def finish(self) -> None:
        """Judge the whole stream. Raises DigestMismatchError."""
        if self.received != self._size:
            raise DigestMismatchError(
                f"{self._digest} ended after {self.received} of the {self._size} bytes of its descriptor"
            )
        if self._hash.hexdigest() != self._expected:
            raise DigestMismatchError(
                f"content served as {self._digest} hashes to {self._hash.name}:{self._hash.hexdigest()}"
            )
