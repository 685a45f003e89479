"""What pf(4) of this host is like, asked by the binding that loads the rules of pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class State:
    """As far as pods depend on it."""

    running: bool
    """It filters packets in our vnet."""
    missing: Sequence[str]
    """The lines that the loaded ruleset would have to have for the rules of pods to be read, and has not."""
    host: Sequence[str] = ()
    """What keeps the node itself from the host ports of pods, a sentence each with the remedy."""


def state() -> State:
    """Ask pf. Raises KernelError, or ImportError where the binding is not compiled, as on every other system."""
    # Not at the top: every system has the doctor of FreeBSD, for its tests.
    from cni_plugins.freebsd.nat import host_problems, missing_lines  # noqa: PLC0415
    from cni_plugins.freebsd.pf import Pf  # noqa: PLC0415

    with Pf() as pf:
        return State(pf.running(), missing_lines(pf), host_problems(pf))
