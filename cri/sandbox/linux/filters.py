"""A container's filter as its plan keeps it: the daemon has made it, a warden gives it to every process of the container.

So all of them have the same, whatever has become of the profile, and of the daemon. Standard library only.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from typing import Any

from cri.sandbox.host import HostError
from cri.sandbox.linux.run_plan import Filter

_SIZE, _MOST = 8, 4096  # struct sock_filter, BPF_MAXINSNS
_FLAGS = 0x7
"""TSYNC, LOG and SPEC_ALLOW of seccomp(2)."""


def record(filter_: Filter | None) -> dict[str, Any] | None:
    """What JSON takes of a filter."""
    if filter_ is None:
        return None
    return {"program": base64.b64encode(filter_.instructions).decode("ascii"), "flags": filter_.flags}


def recorded(host: Mapping[str, Any]) -> Filter | None:
    """The filter that a plan's host part has; None without one. Raises HostError for one that is damaged."""
    found = host.get("seccomp")
    if found is None:
        return None
    try:
        return _decoded(found["program"], found["flags"])
    except (KeyError, TypeError, ValueError) as error:
        reason = f"the container's plan is damaged ({error!r}); make the container anew"
        raise HostError("use", "the seccomp filter", reason) from None


@functools.lru_cache(maxsize=16)
def _decoded(program: str, flags: int) -> Filter:
    instructions = base64.b64decode(program, validate=True)
    if not instructions or len(instructions) % _SIZE or len(instructions) > _SIZE * _MOST:
        raise ValueError(f"{len(instructions)} bytes are no program")
    if type(flags) is not int or flags & ~_FLAGS:
        raise ValueError(f"flags {flags!r}")
    return Filter(instructions, flags)
