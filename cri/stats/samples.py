"""One reading of what a container or a pod has used, and how fast that was."""

from __future__ import annotations

from dataclasses import dataclass, field

from cri.sandbox.usage import Usage

LEAST_SPAN = 0.5
"""Seconds that a rate is taken over at least: the kernel's counters go in steps, and the clock is read beside them."""


@dataclass(slots=True, eq=False)
class Sample:
    """A reading. The next one is another object, so whatever is made of this one can be kept by it."""

    usage: Usage
    taken: float
    """When, in seconds of time.monotonic()."""
    nano_cores: int | None
    """Nanoseconds of processor time per second, lately; None if there is nothing yet to compare with."""
    since: tuple[float, int]
    """When the processor time was read that the next rate is counted from, and what it was."""
    encoded: bytes | None = field(default=None, repr=False)
    """What `cri.stats.encoding` has made of it."""


def first(usage: Usage, taken: float, age: float | None) -> Sample:
    """The first reading; `age`: since when the counters run, in seconds, if that is recent."""
    total = usage.cpu.total
    if age is None or age < LEAST_SPAN:
        since = (taken, total) if age is None else (taken - age, 0)
        return Sample(usage, taken, None, since)
    return Sample(usage, taken, round(total / age), (taken, total))


def following(before: Sample, usage: Usage, taken: float) -> Sample:
    """The reading after another one."""
    began, counted = before.since
    span, spent = taken - began, usage.cpu.total - counted
    if spent < 0:
        # The counter began anew: the sum of a pod's containers loses those that have ended.
        return Sample(usage, taken, None, (taken, usage.cpu.total))
    if span < LEAST_SPAN:
        return Sample(usage, taken, before.nano_cores, before.since)
    return Sample(usage, taken, round(spent / span), (taken, usage.cpu.total))
