"""What is sent can be read, and means what the table says."""

from __future__ import annotations

import structlog
from hypothesis import given
from hypothesis import strategies as st

from cri.pod_metrics import encoding
from cri.pod_metrics.metric import BASE_LABELS, Subject
from cri.pod_metrics.table import TABLE
from cri.rpc import descriptors
from cri.sandbox.usage import CpuUsage, DeviceUsage, InterfaceUsage, IoUsage, MemoryUsage, Usage
from tests.pod_metrics.usages import containers, names, pods

LIST = descriptors.strict_class("runtime.v1.ListPodSandboxMetricsResponse")
STREAM = descriptors.strict_class("runtime.v1.StreamPodSandboxMetricsResponse")
DESCRIPTORS = descriptors.strict_class("runtime.v1.ListMetricDescriptorsResponse")
METRIC = descriptors.strict_class("runtime.v1.Metric")

bases = st.lists(names, min_size=len(BASE_LABELS), max_size=len(BASE_LABELS))


def series(found) -> dict[tuple[str, ...], int]:
    return {(metric.name, *metric.label_values): metric.value.value for metric in found}


def encoded(subject: Subject, base: bytes) -> bytes:
    return encoding.sample_metrics(subject, base) + encoding.live_metrics(subject, base)


@given(containers, pods, bases)
def test_a_message_is_the_table(container: Subject, pod: Subject, base: list[str]) -> None:
    labels = encoding.labels(base)
    item = encoding.pod_item(
        "pod", encoded(pod, labels), encoding.container_item("container", encoded(container, labels))
    )
    (sent,) = LIST.FromString(item).pod_metrics
    assert list(STREAM.FromString(item).pod_sandbox_metrics) == [sent]
    (inner,) = sent.container_metrics
    assert (sent.pod_sandbox_id, inner.container_id) == ("pod", "container")
    keys = {
        one.name: one.label_keys for one in DESCRIPTORS.FromString(encoding.metric_descriptors()).descriptors
    }
    table = {metric.name: metric for metric in TABLE}
    assert list(keys) == list(table)
    for found, subject in ((sent.metrics, pod), (inner.metrics, container)):
        expected: dict[tuple[str, ...], int] = {}
        for metric in TABLE:
            for extra, value in metric.values(subject):
                shown = [one.encode(errors="backslashreplace").decode() for one in (*base, *extra)]
                key = (metric.name, *shown)
                expected[key] = expected.get(key, 0) + value
        # Sums of more than there can be are left out.
        assert series(found) == {key: value for key, value in expected.items() if value < 1 << 64}
        assert len(series(found)) == len(found), "the same labels twice"
        for one in found:
            assert len(one.label_values) == len(keys[one.name])
            assert one.metric_type == table[one.name].kind
            assert one.timestamp == (0 if table[one.name].live else subject.usage.timestamp)
            assert one.HasField("value")


@given(containers)
def test_what_is_put_together_is_what_protobuf_writes(subject: Subject) -> None:
    item = encoding.container_item("c", encoded(subject, encoding.labels(["x"] * 6)))
    (container,) = LIST.FromString(encoding.pod_item("p", item)).pod_metrics[0].container_metrics
    for metric in container.metrics:
        made = METRIC()
        made.MergeFrom(metric)
        assert METRIC.FromString(made.SerializeToString()) == metric


def test_what_is_of_the_same_name_is_summed_up() -> None:
    usage = Usage(
        timestamp=1,
        io=IoUsage((DeviceUsage("vda", 1, 0, 5), DeviceUsage("vda", 2, 0, 6))),
        interfaces=(InterfaceUsage("a\udcff", 1), InterfaceUsage("a\\udcff", 2)),
    )
    item = encoding.pod_item("p", encoding.sample_metrics(Subject(usage, 1), encoding.labels(["x"] * 6)))
    found = series(LIST.FromString(item).pod_metrics[0].metrics)
    base = ("x",) * 6
    assert found["container_fs_reads_bytes_total", *base, "/dev/vda"] == 11
    assert found["container_network_receive_bytes_total", *base, "a\\udcff"] == 3
    assert found["container_blkio_device_usage_total", *base, "/dev/vda", "2", "0", "Read"] == 6


def test_a_figure_that_is_none_costs_itself_alone_and_is_told_once() -> None:
    usage = Usage(timestamp=1, cpu=CpuUsage(total=10**9), memory=MemoryUsage(rss=-1, usage=1 << 64, swap=7))
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            item = encoding.pod_item("p", encoding.sample_metrics(Subject(usage, 1), b""))
    found = {metric.name: metric.value.value for metric in LIST.FromString(item).pod_metrics[0].metrics}
    assert found["container_cpu_usage_seconds_total"] == 1
    assert found["container_memory_swap"] == 7
    assert sorted(entry["metric"] for entry in logs) == [
        "container_memory_rss",
        "container_memory_usage_bytes",
    ]
    assert not found.keys() & {"container_memory_rss", "container_memory_usage_bytes"}
