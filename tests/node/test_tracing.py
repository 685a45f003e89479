"""One trace shows what a call is made of, across the whole daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc
import pytest

from cri.api.runtime import v1
from tests.node.conftest import Daemon, running_daemon
from tests.tracing.collector import Collector, Span

pytestmark = pytest.mark.node

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.end()


@pytest.fixture(scope="module")
def node(registry: str, collector: Collector) -> Iterator[Daemon]:
    variables = [
        f"CRI_JAILS_TRACING_ENDPOINT={collector.endpoint}",
        "CRI_JAILS_TRACING_SAMPLING_RATIO=0",
    ]
    with running_daemon(registry, f"crit{os.getpid()}", ["env", *variables]) as daemon:
        yield daemon


def traced(node: Daemon, service: str, rpc: str, request, response):
    """A call of a kubelet that traces."""
    with grpc.insecure_channel(f"unix:{node.base}/run/cri-jails.sock") as channel:
        call = channel.unary_unary(
            f"/runtime.v1.{service}/{rpc}", request_serializer=bytes, response_deserializer=response.parse
        )
        return call(request, timeout=60, metadata=[("traceparent", f"00-{TRACE}-{CALLER}-01")])


def test_a_kubelet_s_trace_shows_the_steps_of_a_pod_and_of_a_pull(node, collector) -> None:
    image = v1.ImageSpec(image=node.image)
    traced(node, "ImageService", "PullImage", v1.PullImageRequest(image=image), v1.PullImageResponse)
    config = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="traced", uid="u", namespace="test"), hostname="traced"
    )
    pod = traced(
        node,
        "RuntimeService",
        "RunPodSandbox",
        v1.RunPodSandboxRequest(config=config),
        v1.RunPodSandboxResponse,
    ).pod_sandbox_id
    node.client("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod))  # by nobody who traces
    traced(
        node,
        "RuntimeService",
        "StopPodSandbox",
        v1.StopPodSandboxRequest(pod_sandbox_id=pod),
        v1.StopPodSandboxResponse,
    )
    node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))

    def parts(span: Span) -> list[str]:
        assert (span.failed, span.trace) == ("", TRACE)
        return [part.name for part in collector.below(span)]

    stop = collector.wait_for("runtime.v1.RuntimeService/StopPodSandbox")
    assert stop.parent == CALLER
    assert parts(stop) == ["stop containers", "detach network", "end warden", "write state"]
    run = collector.wait_for("runtime.v1.RuntimeService/RunPodSandbox")
    assert run.parent == CALLER
    assert parts(run) == [
        *("write state", "write files", "start warden", "attach network", "write addresses", "become ready")
    ]
    (ready,) = [part for part in collector.below(run) if part.name == "become ready"]
    (written,) = collector.below(ready)
    assert (written.name, written.attributes) == ("write state", {"objects": f"pod sandbox {pod}"})
    took = sum(part.ended - part.began for part in collector.below(run))
    assert took > 0.3 * (run.ended - run.began)  # nothing large is left out
    whole = collector.wait_for("runtime.v1.ImageService/PullImage")
    (pull,) = collector.below(whole)
    assert pull.attributes == {"image": node.image}
    (layer,) = [part for part in collector.below(pull) if part.name == "layer"]
    assert layer.attributes["number"] == 0
    assert layer.attributes["diff_id"].startswith("sha256:")
    assert layer.attributes["bytes"] > 100_000
    assert parts(pull)[-1] == "write state"
    assert not [span for span in collector.spans if span.name.endswith("Status")]
