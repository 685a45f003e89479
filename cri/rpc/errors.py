"""From exceptions to gRPC status codes: the one table."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from baustelle.errors import BoundExceededError, CorruptLayerError, ImageConfigError, UnpackError
from cni_plugins import AddressesExhaustedError, ClaimedError, ClosedError, ConfigurationError, NetworkError
from cri.errors import CRIError
from cri.sandbox.host import HostError, StartError, UnfitRequestError, WardenGoneError
from registratur import errors as registry

Code = grpc.StatusCode

CODES: Mapping[type[Exception], grpc.StatusCode] = {
    # The operating system. StartError is what the image or the pod asked for in vain; containerd answers the same.
    StartError: Code.INTERNAL,
    WardenGoneError: Code.UNAVAILABLE,
    UnfitRequestError: Code.INVALID_ARGUMENT,
    HostError: Code.INTERNAL,
    # The pods' network
    AddressesExhaustedError: Code.RESOURCE_EXHAUSTED,
    ClaimedError: Code.FAILED_PRECONDITION,
    ClosedError: Code.UNAVAILABLE,
    ConfigurationError: Code.FAILED_PRECONDITION,
    NetworkError: Code.INTERNAL,
    # Layers, and what an image says of itself
    UnpackError: Code.INTERNAL,
    CorruptLayerError: Code.FAILED_PRECONDITION,
    BoundExceededError: Code.FAILED_PRECONDITION,
    ImageConfigError: Code.FAILED_PRECONDITION,
    # Registries and their content
    registry.InvalidReferenceError: Code.INVALID_ARGUMENT,
    registry.InvalidDigestError: Code.INVALID_ARGUMENT,
    registry.InvalidEndpointError: Code.FAILED_PRECONDITION,  # of the operator's configuration: a caller can mend nothing
    registry.NotFoundError: Code.NOT_FOUND,
    registry.NoMatchingPlatformError: Code.NOT_FOUND,
    registry.UnauthorizedError: Code.UNAUTHENTICATED,
    registry.UnavailableError: Code.UNAVAILABLE,
    registry.TransportError: Code.UNAVAILABLE,
    registry.DigestMismatchError: Code.DATA_LOSS,
    registry.MalformedContentError: Code.FAILED_PRECONDITION,
    registry.UnsupportedContentError: Code.FAILED_PRECONDITION,
    registry.RegistryError: Code.UNKNOWN,
}
"""The most specific class of an exception decides; classes of `cri.errors` name their code themselves."""

MAX_MESSAGE_BYTES = 2000
"""The message travels in a header, where a byte may take three, and gRPC limits all headers to 8 KiB."""


def code_of(error: Exception) -> grpc.StatusCode | None:
    """The code to answer with, or None for an exception that nobody foresaw."""
    if isinstance(error, CRIError):
        return Code[error.code]
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return None


def message_of(error: Exception, rpc: str) -> str:
    """What the caller is told. An unforeseen exception may hold anything, so only its class is named."""
    if code_of(error) is None:
        return f"{rpc}: internal error ({type(error).__name__}); the log of cri-jails has the details"
    # Paths and arguments may hold bytes that are no UTF-8, as lone surrogates.
    text = (str(error) or type(error).__name__).encode("utf-8", "backslashreplace")
    if len(text) > MAX_MESSAGE_BYTES:
        return text[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + " …"
    return text.decode()
