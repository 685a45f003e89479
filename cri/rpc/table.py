"""The RPCs of the CRI: one table, checked at start-up against the descriptors and against the services."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import betterproto2

from cri.api.runtime import v1
from cri.rpc import descriptors


class RpcTableError(Exception):
    """The table, the CRI and the services do not agree: the release is broken; do not serve."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC."""

    name: str
    method: str
    """The method of the service object: an asynchronous generator of messages if `stream`.

    Else a coroutine function that returns the answer; or an asynchronous generator of the pieces that are its encoding,
    for an answer that may be large (`cri.rpc.answers`).
    """
    request: type[betterproto2.Message]
    response: type[betterproto2.Message]
    stream: bool = False
    """The server answers with a stream."""
    slow_after: float | None = 2.0
    """Seconds after which a call is logged as slow; None where the time is the caller's choice."""
    instead: str = ""
    """What a caller does whose answer is larger than a message may be."""


def _list_by(rpc: str) -> str:
    return f"call {rpc}, which sends the list in pieces, or give a filter"


RUNTIME_SERVICE = "runtime.v1.RuntimeService"
IMAGE_SERVICE = "runtime.v1.ImageService"

TABLE: Mapping[str, Sequence[Rpc]] = {
    RUNTIME_SERVICE: (
        Rpc("Version", "version", v1.VersionRequest, v1.VersionResponse),
        Rpc("Status", "status", v1.StatusRequest, v1.StatusResponse),
        Rpc("RuntimeConfig", "runtime_config", v1.RuntimeConfigRequest, v1.RuntimeConfigResponse),
        Rpc(
            "UpdateRuntimeConfig",
            "update_runtime_config",
            v1.UpdateRuntimeConfigRequest,
            v1.UpdateRuntimeConfigResponse,
        ),
        # Pod sandboxes
        Rpc("RunPodSandbox", "run_pod_sandbox", v1.RunPodSandboxRequest, v1.RunPodSandboxResponse),
        Rpc("StopPodSandbox", "stop_pod_sandbox", v1.StopPodSandboxRequest, v1.StopPodSandboxResponse),
        Rpc(
            "RemovePodSandbox", "remove_pod_sandbox", v1.RemovePodSandboxRequest, v1.RemovePodSandboxResponse
        ),
        Rpc(
            "PodSandboxStatus", "pod_sandbox_status", v1.PodSandboxStatusRequest, v1.PodSandboxStatusResponse
        ),
        Rpc(
            "ListPodSandbox",
            "list_pod_sandbox",
            v1.ListPodSandboxRequest,
            v1.ListPodSandboxResponse,
            instead=_list_by("StreamPodSandboxes"),
        ),
        Rpc(
            "StreamPodSandboxes",
            "stream_pod_sandboxes",
            v1.StreamPodSandboxesRequest,
            v1.StreamPodSandboxesResponse,
            stream=True,
        ),
        Rpc(
            "UpdatePodSandboxResources",
            "update_pod_sandbox_resources",
            v1.UpdatePodSandboxResourcesRequest,
            v1.UpdatePodSandboxResourcesResponse,
        ),
        Rpc("PortForward", "port_forward", v1.PortForwardRequest, v1.PortForwardResponse),
        Rpc("CheckpointPod", "checkpoint_pod", v1.CheckpointPodRequest, v1.CheckpointPodResponse),
        Rpc("RestorePod", "restore_pod", v1.RestorePodRequest, v1.RestorePodResponse),
        # Containers
        Rpc("CreateContainer", "create_container", v1.CreateContainerRequest, v1.CreateContainerResponse),
        Rpc("StartContainer", "start_container", v1.StartContainerRequest, v1.StartContainerResponse),
        Rpc(
            "StopContainer",
            "stop_container",
            v1.StopContainerRequest,
            v1.StopContainerResponse,
            slow_after=None,
        ),
        Rpc("RemoveContainer", "remove_container", v1.RemoveContainerRequest, v1.RemoveContainerResponse),
        Rpc("ContainerStatus", "container_status", v1.ContainerStatusRequest, v1.ContainerStatusResponse),
        Rpc(
            "ListContainers",
            "list_containers",
            v1.ListContainersRequest,
            v1.ListContainersResponse,
            instead=_list_by("StreamContainers"),
        ),
        Rpc(
            "StreamContainers",
            "stream_containers",
            v1.StreamContainersRequest,
            v1.StreamContainersResponse,
            stream=True,
        ),
        Rpc(
            "UpdateContainerResources",
            "update_container_resources",
            v1.UpdateContainerResourcesRequest,
            v1.UpdateContainerResourcesResponse,
        ),
        Rpc(
            "ReopenContainerLog",
            "reopen_container_log",
            v1.ReopenContainerLogRequest,
            v1.ReopenContainerLogResponse,
        ),
        Rpc("ExecSync", "exec_sync", v1.ExecSyncRequest, v1.ExecSyncResponse, slow_after=None),
        Rpc("Exec", "exec", v1.ExecRequest, v1.ExecResponse),
        Rpc("Attach", "attach", v1.AttachRequest, v1.AttachResponse),
        Rpc(
            "CheckpointContainer",
            "checkpoint_container",
            v1.CheckpointContainerRequest,
            v1.CheckpointContainerResponse,
        ),
        Rpc(
            "GetContainerEvents",
            "get_container_events",
            v1.GetEventsRequest,
            v1.ContainerEventResponse,
            stream=True,
            slow_after=None,
        ),
        # Statistics
        Rpc("ContainerStats", "container_stats", v1.ContainerStatsRequest, v1.ContainerStatsResponse),
        Rpc(
            "ListContainerStats",
            "list_container_stats",
            v1.ListContainerStatsRequest,
            v1.ListContainerStatsResponse,
            instead=_list_by("StreamContainerStats"),
        ),
        Rpc(
            "StreamContainerStats",
            "stream_container_stats",
            v1.StreamContainerStatsRequest,
            v1.StreamContainerStatsResponse,
            stream=True,
        ),
        Rpc("PodSandboxStats", "pod_sandbox_stats", v1.PodSandboxStatsRequest, v1.PodSandboxStatsResponse),
        Rpc(
            "ListPodSandboxStats",
            "list_pod_sandbox_stats",
            v1.ListPodSandboxStatsRequest,
            v1.ListPodSandboxStatsResponse,
            instead=_list_by("StreamPodSandboxStats"),
        ),
        Rpc(
            "StreamPodSandboxStats",
            "stream_pod_sandbox_stats",
            v1.StreamPodSandboxStatsRequest,
            v1.StreamPodSandboxStatsResponse,
            stream=True,
        ),
        Rpc(
            "ListMetricDescriptors",
            "list_metric_descriptors",
            v1.ListMetricDescriptorsRequest,
            v1.ListMetricDescriptorsResponse,
        ),
        Rpc(
            "ListPodSandboxMetrics",
            "list_pod_sandbox_metrics",
            v1.ListPodSandboxMetricsRequest,
            v1.ListPodSandboxMetricsResponse,
            instead="call StreamPodSandboxMetrics, which sends the list in pieces",
        ),
        Rpc(
            "StreamPodSandboxMetrics",
            "stream_pod_sandbox_metrics",
            v1.StreamPodSandboxMetricsRequest,
            v1.StreamPodSandboxMetricsResponse,
            stream=True,
        ),
    ),
    IMAGE_SERVICE: (
        Rpc(
            "ListImages",
            "list_images",
            v1.ListImagesRequest,
            v1.ListImagesResponse,
            instead=_list_by("StreamImages"),
        ),
        Rpc("StreamImages", "stream_images", v1.StreamImagesRequest, v1.StreamImagesResponse, stream=True),
        Rpc("ImageStatus", "image_status", v1.ImageStatusRequest, v1.ImageStatusResponse),
        Rpc("PullImage", "pull_image", v1.PullImageRequest, v1.PullImageResponse, slow_after=None),
        Rpc("RemoveImage", "remove_image", v1.RemoveImageRequest, v1.RemoveImageResponse),
        Rpc("ImageFsInfo", "image_fs_info", v1.ImageFsInfoRequest, v1.ImageFsInfoResponse),
    ),
}
"""Every RPC of both services, by the service's full name."""


_CHECKPOINT = "jails cannot be frozen into files, and the Linux driver has only what jails have"

UNIMPLEMENTED: Mapping[str, str] = {
    "CheckpointContainer": _CHECKPOINT,
    "CheckpointPod": _CHECKPOINT,
    "RestorePod": _CHECKPOINT,
}
"""RPCs that answer Unimplemented, and what the caller is told; the only place that says so."""


def check_table(table: Mapping[str, Sequence[Rpc]] = TABLE) -> None:
    """Hold the table against the descriptors. Raises RpcTableError that names all differences."""
    faults: list[str] = []
    for service_name, rpcs in table.items():
        methods = {method.name: method for method in descriptors.service(service_name).methods}
        names = [rpc.name for rpc in rpcs]
        faults += [f"{service_name} has no RPC {name}" for name in names if name not in methods]
        faults += [f"{service_name}/{name} is missing" for name in methods if name not in names]
        faults += [f"{service_name}/{name} is there twice" for name in set(names) if names.count(name) > 1]
        for rpc in rpcs:
            if (method := methods.get(rpc.name)) is None:
                continue
            for what, kind, expected in (
                ("request", rpc.request, method.input_type.full_name),
                ("response", rpc.response, method.output_type.full_name),
            ):
                if descriptors.full_name(kind) != expected:
                    faults.append(f"{service_name}/{rpc.name}: the {what} is {expected}, not {kind.__name__}")
            if rpc.stream != method.server_streaming or method.client_streaming:
                faults.append(f"{service_name}/{rpc.name}: streams otherwise than the CRI says")
    if faults:
        raise RpcTableError("the table of RPCs is wrong: " + "; ".join(sorted(faults)))


def check_service(
    service: object, rpcs: Sequence[Rpc], unimplemented: Mapping[str, str] = UNIMPLEMENTED
) -> None:
    """Hold a service object against the table. Raises RpcTableError that names all differences."""
    faults: list[str] = []
    for rpc in rpcs:
        method = getattr(service, rpc.method, None)
        if rpc.name in unimplemented:
            if method is not None:
                faults.append(f"{rpc.name} is listed as unimplemented, but there is {rpc.method}")
        elif method is None:
            faults.append(f"{rpc.method} for {rpc.name} is missing")
        elif rpc.stream and not inspect.isasyncgenfunction(method):
            faults.append(f"{rpc.method} must be an asynchronous generator")
        elif not (rpc.stream or inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)):
            faults.append(f"{rpc.method} must be a coroutine function")
    if faults:
        raise RpcTableError(f"{type(service).__name__} does not serve the CRI: " + "; ".join(faults))
