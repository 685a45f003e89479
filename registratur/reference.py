"""Image references as Docker, containerd and the kubelet spell them.

Grammar: https://pkg.go.dev/github.com/distribution/reference, which is the one of the OCI
distribution-spec with a registry in front. Normalisation: no registry means docker.io, a single path
component there means library/, neither tag nor digest means latest.
"""

import re
from dataclasses import dataclass, replace
from typing import Self

from registratur.digest import parse_digest
from registratur.errors import InvalidDigestError, InvalidReferenceError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DEFAULT_REGISTRY = "index.docker.io"
_OFFICIAL_NAMESPACE = "library/"
_NAME_LIMIT = 255  # characters of registry and repository together

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised image reference: a name with a tag, a digest, or both.

    Where both are given the digest decides what is pulled; the tag is only kept for show.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if _REGISTRY.fullmatch(self.registry) is None:
            raise InvalidReferenceError(f"{self.registry!r} is no registry: expected host or host:port")
        if _REPOSITORY.fullmatch(self.repository) is None:
            hint = (
                "it must be lower case"
                if _REPOSITORY.fullmatch(self.repository.lower())
                else "see the OCI grammar"
            )
            raise InvalidReferenceError(f"{self.repository!r} is no repository name: {hint}")
        if len(self.name) > _NAME_LIMIT:
            raise InvalidReferenceError(f"{self.name[:40]!r}... is longer than {_NAME_LIMIT} characters")
        if self.tag is not None and _TAG.fullmatch(self.tag) is None:
            raise InvalidReferenceError(
                f"{self.tag[:160]!r} is no tag: 128 characters of A-Z a-z 0-9 _ . - at most"
            )
        if self.digest is not None:
            try:
                parse_digest(self.digest)
            except InvalidDigestError as error:
                raise InvalidReferenceError(f"{self.name}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference as a person or the kubelet writes it.

        A bare image id (64 or 128 hex digits) is refused, as Docker and containerd do: it names no repository.
        Raises InvalidReferenceError.
        """
        if _BARE_ID.fullmatch(text):
            algorithm = "sha256" if len(text) == 64 else "sha512"
            raise InvalidReferenceError(
                f"{text} is an image id, not a reference: write name@{algorithm}:{text}"
            )
        rest, has_digest, digest = text.partition("@")
        registry, path = _split_registry(rest)
        repository, has_tag, tag = path.partition(":")
        if registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = _OFFICIAL_NAMESPACE + repository
        try:
            if has_tag or has_digest:
                return cls(registry, repository, tag if has_tag else None, digest if has_digest else None)
            return cls(registry, repository, DEFAULT_TAG)
        except InvalidReferenceError as error:
            raise InvalidReferenceError(f"invalid image reference {text[:300]!r}: {error}") from error

    @property
    def name(self) -> str:
        """Registry and repository: ``docker.io/library/busybox``."""
        return f"{self.registry}/{self.repository}"

    @property
    def tagged(self) -> str | None:
        """``name:tag``, or None without a tag."""
        return None if self.tag is None else f"{self.name}:{self.tag}"

    @property
    def digested(self) -> str | None:
        """``name@digest``, or None without a digest."""
        return None if self.digest is None else f"{self.name}@{self.digest}"

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def with_digest(self, digest: str) -> Self:
        """Return the same name and tag, pinned to `digest`. Raises InvalidReferenceError."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.name}{tag}{digest}"


def _split_registry(text: str) -> tuple[str, str]:
    """Tell ``localhost/x``, ``host:5000/x`` and ``host.org/x`` from ``user/x``, which lives on docker.io."""
    first, slash, rest = text.partition("/")
    names_a_host = first == "localhost" or any(mark in first for mark in ".:") or first != first.lower()
    if not slash or not names_a_host:
        return DEFAULT_REGISTRY, text
    return (DEFAULT_REGISTRY if first == _LEGACY_DEFAULT_REGISTRY else first), rest
