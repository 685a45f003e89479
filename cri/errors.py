"""What can go wrong, as the caller of an RPC is told of it.

Every error is raised once, where it is known, with a message that says what failed, on which object, and what to do.
`cri.rpc` maps the classes to gRPC status codes by the `code` each of them names; nothing else decides about codes.
"""

from __future__ import annotations


class CRIError(Exception):
    """The base of all errors that an RPC may answer with."""

    code = "INTERNAL"


class InvalidArgumentError(CRIError):
    """The request contradicts itself, lacks a field, or asks for what no retry can give."""

    code = "INVALID_ARGUMENT"


class NotFoundError(CRIError):
    """The named sandbox, container or image does not exist."""

    code = "NOT_FOUND"


class AlreadyExistsError(CRIError):
    """The name is taken by another object."""

    code = "ALREADY_EXISTS"


class FailedPreconditionError(CRIError):
    """The object is in a state that does not allow the call."""

    code = "FAILED_PRECONDITION"


class ResourceExhaustedError(CRIError):
    """A limit was reached: addresses, output size, disk space."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineExceededError(CRIError):
    """The time that the request itself names (such as an exec timeout) is over."""

    code = "DEADLINE_EXCEEDED"


class UnavailableError(CRIError):
    """Something outside is away for now: a registry, a warden; a retry may help."""

    code = "UNAVAILABLE"


class UnsupportedError(CRIError):
    """The node's operating system, or this release, cannot do what was asked."""

    code = "UNIMPLEMENTED"


class InternalError(CRIError):
    """The node failed; the message says at what."""
