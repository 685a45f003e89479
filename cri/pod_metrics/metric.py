"""What a metric is, and what one is made of."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from cri.sandbox.spec import DiskUsage, Resources
from cri.sandbox.usage import Usage

BASE_LABELS = ("container", "id", "image", "name", "namespace", "pod")
"""What every metric is labelled with, in the order of the values: as the kubelet labels cAdvisor's."""

SECOND = 1_000_000_000

MAX_LIMIT = 1 << 62
"""Bytes above which a limit is none, as kernels round the largest number there is; then it is shown as 0."""


class Kind(enum.IntEnum):
    """The CRI's MetricType."""

    COUNTER = 0
    GAUGE = 1


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Where the writable layers of containers are."""

    device: str
    size: int
    """Bytes that there are, in use or not."""
    inodes: int
    free_inodes: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of a container or a pod."""

    usage: Usage
    started_at: int
    """Nanoseconds since the epoch."""
    resources: Resources | None = None
    """A container's limits; None for a pod."""
    disk: DiskUsage | None = None
    """A container's writable layer, where it has been measured."""
    filesystem: Filesystem | None = None


Value: TypeAlias = tuple[tuple[str, ...], int]
"""The values of a metric's extra labels, and its own."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One name, and the series that there are of it."""

    name: str
    help: str
    kind: Kind
    values: Callable[[Subject], Iterable[Value]]
    extra_labels: tuple[str, ...] = ()
    live: bool = False
    """Not of the sample: what counts is what is configured when the metrics are asked for."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The keys of all labels."""
        return BASE_LABELS + self.extra_labels


def one(
    name: str,
    kind: Kind,
    help_: str,
    value: Callable[[Subject], int | None],
    *,
    demanded: bool = False,
    live: bool = False,
) -> Metric:
    """A metric of at most one series."""

    def values(subject: Subject) -> Iterable[Value]:
        found = value(subject)
        if found is None and demanded and subject.resources is not None:
            found = 0
        return () if found is None else (((), found),)

    return Metric(name, help_, kind, values, live=live)


def seconds(nanoseconds: int | None) -> int | None:
    """Whole seconds."""
    return None if nanoseconds is None else nanoseconds // SECOND


def limit(value: int | None) -> int:
    """A limit in bytes; 0 where there is none."""
    return value if value is not None and 0 < value <= MAX_LIMIT else 0
