"""Metrics of the daemon, in a registry of its own. `cri.monitoring` shows them; who counts is given them by `cri.server`."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from cri._version import __version__

BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Seconds: from an answer out of memory to a grace period."""

PULL_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Seconds: from an image of which all is here to one of gigabytes."""

LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds: a timer's own inaccuracy, up to a loop that stands still."""

PULL_OUTCOMES = (
    *("pulled", "cancelled", "not_found", "denied", "unreachable", "corrupt", "no_space", "failed"),
)
"""How a pull ends (`cri.images.outcomes`)."""


class Metrics:
    """All metrics of one daemon. Other parts add theirs to `registry`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rpc_seconds = Histogram(
            "cri_jails_rpc_duration_seconds",
            "Time from request to answer, of streams to their end",
            ("service", "rpc"),
            buckets=BUCKETS,
            registry=registry,
        )
        self.rpc_total = Counter(
            "cri_jails_rpc",
            "Answered calls by gRPC status code",
            ("service", "rpc", "code"),
            registry=registry,
        )
        self.rpc_in_flight = Gauge(
            "cri_jails_rpc_in_flight", "Calls being worked on", ("service", "rpc"), registry=registry
        )
        self.streaming_sessions = Gauge(
            "cri_jails_streaming_sessions",
            "Sessions of exec, attach and port-forward whose clients are connected",
            ("kind",),
            registry=registry,
        )
        self.pulls = Counter(
            "cri_jails_image_pulls", "Ended pulls of images by outcome", ("outcome",), registry=registry
        )
        self.pulls_in_flight = Gauge("cri_jails_image_pulls_in_flight", "Pulls under way", registry=registry)
        self.pull_seconds = Histogram(
            "cri_jails_image_pull_duration_seconds",
            "Time that a pull has taken, however it has ended",
            buckets=PULL_BUCKETS,
            registry=registry,
        )
        self.pull_bytes = Counter(
            "cri_jails_image_pull_bytes", "Bytes of layers that registries have sent", registry=registry
        )
        self.images = Gauge("cri_jails_images", "Images on the node", registry=registry)
        self.image_bytes = Gauge(
            "cri_jails_image_disk_bytes", "What all layers take on disk, unpacked", registry=registry
        )
        self.pods = Gauge("cri_jails_pods", "Pod sandboxes by state", ("state",), registry=registry)
        self.containers = Gauge("cri_jails_containers", "Containers by state", ("state",), registry=registry)
        self.wardens = Gauge(
            "cri_jails_wardens", "Wardens that the daemon is connected to", registry=registry
        )
        self.warden_deaths = Counter(
            "cri_jails_warden_deaths", "Wardens that have died unasked", registry=registry
        )
        self.undo_failures = Counter(
            "cri_jails_undo_failures",
            "Steps of failed transitions that could not be taken back",
            registry=registry,
        )
        self.collections = Counter(
            "cri_jails_collections", "Collections of what nobody needs any more", ("of",), registry=registry
        )
        self.collected = Counter(
            "cri_jails_collected",
            "Things that were collected, or deleted for good",
            ("of",),
            registry=registry,
        )
        self.collected_bytes = Counter(
            "cri_jails_collected_bytes", "Bytes of the layers that were collected", registry=registry
        )
        self.loop_lag = Histogram(
            "cri_jails_loop_lag_seconds",
            "How late a timer of the event loop was, looked at once a second",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.state_write_seconds = Histogram(
            "cri_jails_state_write_duration_seconds",
            "Time that a transaction of the state database has taken, whatever has come of it",
            buckets=BUCKETS,
            registry=registry,
        )
        self.stats_pass_seconds = Histogram(
            "cri_jails_stats_pass_duration_seconds",
            "Time that a pass over all that runs has taken for the statistics, rests included",
            buckets=BUCKETS,
            registry=registry,
        )
        self.state_writable = Gauge(
            "cri_jails_state_writable", "1 if the state database took the last write", registry=registry
        )
        self.condition = Gauge(
            "cri_jails_condition", "1 if the condition of Status is true", ("type",), registry=registry
        )
        self.spans = Counter(
            "cri_jails_trace_spans",
            "Spans of traced calls: that have ended, that the collector took, that it did not",
            ("outcome",),
            registry=registry,
        )
        started = Gauge(
            "cri_jails_start_time_seconds", "When the daemon began, since the epoch", registry=registry
        )
        started.set_to_current_time()
        # What has a figure from the beginning can be seen to grow from 0 on.
        for metric, words in (
            (self.pulls, PULL_OUTCOMES),
            (self.streaming_sessions, ("exec", "attach", "portforward")),
            (self.collected, ("layers", "content", "directories")),
            (self.spans, ("ended", "sent", "failed")),
        ):
            for word in words:
                metric.labels(word)
        Info("cri_jails_build", "The release that runs", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
