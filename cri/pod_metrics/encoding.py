"""The CRI's metric messages, by the table.

Of a metric's encoding nearly all is the same every time: its name and type, and the labels of what it is about. Both are
encoded once, by protobuf, and what protobuf concatenates is one message; the moment and the value are put behind. That
takes half the time of a message for each of the ten thousand series that a node may have.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import structlog

from cri.encode import header
from cri.pod_metrics.metric import Metric, Subject
from cri.pod_metrics.table import TABLE
from cri.rpc import descriptors

log = structlog.get_logger(__name__)

_METRIC = descriptors.strict_class("runtime.v1.Metric")
_NUMBER = descriptors.strict_class("runtime.v1.UInt64Value")

LONGEST = 1024
"""Characters of a label's value. Kubernetes has none as long; and fifty series have each one that a client makes up."""

# Fields of PodSandboxMetrics; ContainerMetrics has the first two as well.
_ID, _METRICS, _CONTAINER_METRICS = 1, 2, 3
_VALUE = 5
"""Of Metric."""

_metric_header = functools.lru_cache(1024)(functools.partial(header, _METRICS))
_VALUE_HEADERS = [header(_VALUE, size) for size in range(12)]


@functools.cache
def metric_descriptors() -> bytes:
    """The ListMetricDescriptorsResponse."""
    kind: Any = descriptors.strict_class("runtime.v1.ListMetricDescriptorsResponse")
    answer = kind(
        descriptors=[
            {"name": metric.name, "help": metric.help, "label_keys": metric.labels} for metric in TABLE
        ]
    )
    data: bytes = answer.SerializeToString()
    return data


def labels(values: Sequence[str]) -> bytes:
    """Values of labels, encoded: not more than the beginning of one that is LONGEST.

    What is no text (the name of an interface may be any bytes) is escaped.
    """
    return _message(label_values=[_text(value) for value in values])


def sample_metrics(subject: Subject, labels_: bytes) -> bytes:
    """What was sampled of a container or pod: the field `metrics` of its message."""
    return _metrics(subject, labels_, live=False)


def live_metrics(subject: Subject, labels_: bytes) -> bytes:
    """What a container or pod was given. It has no time of its own: it is of the moment at which it is asked for."""
    return _metrics(subject, labels_, live=True)


def container_item(container_id: str, *metrics: bytes) -> bytes:
    """A container as an element of PodSandboxMetrics.container_metrics."""
    return _item(_CONTAINER_METRICS, container_id, metrics)


def pod_item(pod_id: str, *parts: bytes) -> bytes:
    """A pod as an element of the list of either response: its metrics, and its containers' items."""
    return _item(1, pod_id, parts)


def _item(field: int, id_: str, parts: Sequence[bytes]) -> bytes:
    encoded = id_.encode()
    name = header(_ID, len(encoded)) + encoded
    return b"".join((header(field, len(name) + sum(map(len, parts))), name, *parts))


def _metrics(subject: Subject, base: bytes, *, live: bool) -> bytes:
    stamp = b"" if live else _message(timestamp=subject.usage.timestamp)
    found: list[bytes] = []
    for metric, head in _part(live):
        for extra, number in _series(metric, subject).items():
            try:
                value = _NUMBER(value=number).SerializeToString()
            except (ValueError, TypeError) as error:
                _tell(metric, number, error)
                continue
            body = b"".join((head, base, extra, stamp, _VALUE_HEADERS[len(value)], value))
            found += (_metric_header(len(body)), body)
    return b"".join(found)


def _series(metric: Metric, subject: Subject) -> dict[bytes, int]:
    """The values of a metric by its extra labels. The kubelet shows none of a metric that has the same labels twice.

    So what has the same name (two devices of which only the name is told, say) is summed up.
    """
    found: dict[bytes, int] = {}
    for values, number in metric.values(subject):
        extra = _extra_labels(values) if values else b""
        found[extra] = found.get(extra, 0) + number
    return found


@functools.cache
def _part(live: bool) -> Sequence[tuple[Metric, bytes]]:
    """Half of the table, each metric with its name and type, encoded."""
    return [
        (metric, _message(name=metric.name, metric_type=int(metric.kind)))
        for metric in TABLE
        if metric.live is live
    ]


@functools.lru_cache(1024)
def _extra_labels(values: Sequence[str]) -> bytes:
    return labels(values)


def _message(**fields: Any) -> bytes:
    data: bytes = _METRIC(**fields).SerializeToString()
    return data


def _text(value: str) -> str:
    return value[:LONGEST].encode(errors="backslashreplace").decode()


def _tell(metric: Metric, number: object, error: Exception) -> None:
    """A kernel's figure that is no unsigned number costs itself alone."""
    if metric.name not in _told:
        _told.add(metric.name)
        log.error("a metric cannot be shown", metric=metric.name, value=repr(number), reason=str(error))


_told: set[str] = set()
"""Metrics of which the log has heard that they cannot be shown."""
