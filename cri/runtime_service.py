"""RuntimeService of the CRI: one short method per RPC. Translates and delegates; decides nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from cri import encode, lists
from cri._version import __version__
from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, NotFoundError
from cri.events import Events
from cri.network import CniNetwork
from cri.node_status import NodeStatus
from cri.pod_metrics import PodMetrics, metric_descriptors
from cri.rpc import messages
from cri.rpc.answers import MAX_MESSAGE_BYTES
from cri.sandbox import limits
from cri.sandbox.container import Container
from cri.sandbox.exec import exec_sync
from cri.sandbox.host import Condition, Host
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.pods import Pods
from cri.sandbox.shared_work import SharedWork
from cri.stats import Stats
from cri.statuses import Moment, Statuses, encoded, fields, is_short
from cri.streaming import StreamingRequests

RUNTIME_NAME = "cri-jails"
API_VERSION = "v1"

O = TypeVar("O", PodSandbox, Container)  # noqa: E741 - an object


class RuntimeService:
    """Pods and containers, as the kubelet asks for them."""

    def __init__(
        self,
        *,
        host: Host,
        pods: Pods,
        events: Events,
        statuses: Statuses,
        network: CniNetwork,
        stats: Stats,
        streaming: StreamingRequests,
        runtime_handlers: Iterable[str],
        config: dict[str, Any],
        pulls: Callable[[], list[dict[str, object]]],
        condition: Callable[[], Awaitable[Condition]] | None = None,
    ) -> None:
        """`pulls` tells those under way; `condition` whether pods can run here, by more than the host alone knows."""
        self._host = host
        self._pods = pods
        self._events = events
        self._statuses = statuses
        self._network = network
        self._stats = stats
        self._pod_metrics = PodMetrics(stats)
        self._streaming = streaming
        self._status = NodeStatus(
            host, network, tuple(runtime_handlers), config, condition or host.condition, pulls
        )
        self._pace = lists.Pace()
        self._encoding: SharedWork[bytes] = SharedWork("encode")

    # -- the runtime

    async def version(self, request: v1.VersionRequest) -> v1.VersionResponse:
        """Who answers."""
        del request
        return v1.VersionResponse(
            version="0.1.0",
            runtime_name=RUNTIME_NAME,
            runtime_version=__version__,
            runtime_api_version=API_VERSION,
        )

    async def status(self, request: v1.StatusRequest) -> bytes:
        """Whether pods can run here, and what they may ask for."""
        return await self._status.encoded(request.verbose)

    async def runtime_config(self, request: v1.RuntimeConfigRequest) -> v1.RuntimeConfigResponse:
        """How the kubelet should name its cgroups, where there are any."""
        del request
        return v1.RuntimeConfigResponse(
            linux=v1.LinuxRuntimeConfiguration(cgroup_driver=v1.CgroupDriver.CGROUPFS)
        )

    async def update_runtime_config(
        self, request: v1.UpdateRuntimeConfigRequest
    ) -> v1.UpdateRuntimeConfigResponse:
        """Give the pods to come addresses of the node's pod CIDR."""
        config = request.runtime_config
        if config is not None and config.network_config is not None and config.network_config.pod_cidr:
            await self._network.set_pod_cidr(config.network_config.pod_cidr)
        return v1.UpdateRuntimeConfigResponse()

    # -- sandboxes

    async def run_pod_sandbox(self, request: v1.RunPodSandboxRequest) -> v1.RunPodSandboxResponse:
        """Make a sandbox and bring it to READY."""
        if request.config is None:
            raise InvalidArgumentError("RunPodSandbox: config is missing")
        sandbox_id = await self._pods.run_sandbox(request.config, request.runtime_handler)
        return v1.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)

    async def stop_pod_sandbox(self, request: v1.StopPodSandboxRequest) -> v1.StopPodSandboxResponse:
        """Kill what runs in a sandbox and give its network back."""
        await self._pods.stop_sandbox(request.pod_sandbox_id)
        return v1.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, request: v1.RemovePodSandboxRequest) -> v1.RemovePodSandboxResponse:
        """Remove a sandbox with its containers."""
        await self._pods.remove_sandbox(request.pod_sandbox_id)
        return v1.RemovePodSandboxResponse()

    async def pod_sandbox_status(
        self, request: v1.PodSandboxStatusRequest
    ) -> AsyncGenerator[list[bytes], None]:
        """Everything about a sandbox, with the statuses of its containers and the time that all of it is of.

        Without both if no client would take so large an answer: then the kubelet asks for one after the other.
        """
        sandbox = _shown(self._pods.sandbox(request.pod_sandbox_id))
        moment, at = Moment.of(sandbox), self._events.now()
        pod, containers = await self._statuses.of_pod(moment)
        pieces = fields(1, [pod])
        if request.verbose:
            pieces += encode.info_field(await encoded(moment.record, lambda: encode.sandbox_info(sandbox)))
        beside = [*fields(3, containers), encode.number(4, at)]
        yield pieces
        if sum(map(len, pieces)) + sum(map(len, beside)) <= MAX_MESSAGE_BYTES:
            yield beside

    async def list_pod_sandbox(self, request: v1.ListPodSandboxRequest) -> AsyncGenerator[list[bytes], None]:
        """Sandboxes that match the filter."""
        async for items in self._sandboxes(request.filter):
            yield items

    async def stream_pod_sandboxes(
        self, request: v1.StreamPodSandboxesRequest
    ) -> AsyncGenerator[bytes, None]:
        """As ListPodSandbox, in messages of bounded size."""
        async for message in lists.batches(self._sandboxes(request.filter)):
            yield message

    async def update_pod_sandbox_resources(
        self, request: v1.UpdatePodSandboxResourcesRequest
    ) -> v1.UpdatePodSandboxResourcesResponse:
        """Change the limits of a pod as a whole."""
        resources = limits.of_pod(request.resources, request.overhead, self._host.features)
        await self._pods.update_sandbox(request.pod_sandbox_id, resources, request)
        return v1.UpdatePodSandboxResourcesResponse()

    # -- containers

    async def create_container(self, request: v1.CreateContainerRequest) -> v1.CreateContainerResponse:
        """Make a container in a sandbox."""
        if request.config is None:
            raise InvalidArgumentError("CreateContainer: config is missing")
        container_id = await self._pods.create_container(request.pod_sandbox_id, request.config)
        return v1.CreateContainerResponse(container_id=container_id)

    async def start_container(self, request: v1.StartContainerRequest) -> v1.StartContainerResponse:
        """Start a created container."""
        await self._pods.start_container(request.container_id)
        return v1.StartContainerResponse()

    async def stop_container(self, request: v1.StopContainerRequest) -> v1.StopContainerResponse:
        """Stop a container, with a grace period in seconds."""
        await self._pods.stop_container(request.container_id, request.timeout)
        return v1.StopContainerResponse()

    async def remove_container(self, request: v1.RemoveContainerRequest) -> v1.RemoveContainerResponse:
        """Remove a container, killing it first if it runs."""
        await self._pods.remove_container(request.container_id)
        return v1.RemoveContainerResponse()

    async def container_status(self, request: v1.ContainerStatusRequest) -> bytes:
        """Everything about a container."""
        container = _shown(self._pods.container(request.container_id))
        record = container.record
        pieces = fields(1, [await self._statuses.of_container(container, record, container.spec)])
        if request.verbose:
            pieces += encode.info_field(await encoded(record, lambda: encode.container_info(container)))
        return b"".join(pieces)

    async def list_containers(self, request: v1.ListContainersRequest) -> AsyncGenerator[list[bytes], None]:
        """Containers that match the filter."""
        async for items in self._container_items(request.filter):
            yield items

    async def stream_containers(self, request: v1.StreamContainersRequest) -> AsyncGenerator[bytes, None]:
        """As ListContainers, in messages of bounded size."""
        async for message in lists.batches(self._container_items(request.filter)):
            yield message

    async def update_container_resources(
        self, request: v1.UpdateContainerResourcesRequest
    ) -> v1.UpdateContainerResourcesResponse:
        """Change a container's limits."""
        if request.linux is None:
            raise InvalidArgumentError(
                "UpdateContainerResources: linux is missing; nothing else is supported"
            )
        resources = limits.resources(request.linux, self._host.features)
        await self._pods.update_container(request.container_id, resources, request.linux)
        return v1.UpdateContainerResourcesResponse()

    async def reopen_container_log(
        self, request: v1.ReopenContainerLogRequest
    ) -> v1.ReopenContainerLogResponse:
        """Open a container's log file anew, after the kubelet has moved it away."""
        await self._pods.container(request.container_id).reopen_log()
        return v1.ReopenContainerLogResponse()

    async def exec_sync(self, request: v1.ExecSyncRequest) -> AsyncGenerator[list[bytes], None]:
        """Run a command in a container and answer with what it printed."""
        container, warden = self._pods.running(request.container_id)
        result = await exec_sync(warden, container.spec, list(request.cmd), request.timeout)
        yield [messages.encoded(v1.ExecSyncResponse(exit_code=result.exit_code))]
        for field, output in ((1, result.stdout), (2, result.stderr)):
            if output:
                yield [encode.header(field, len(output)), output]

    # -- streams

    async def exec(self, request: v1.ExecRequest) -> v1.ExecResponse:
        """Where a client finds the streams of a command that is run for it."""
        return v1.ExecResponse(url=self._streaming.exec(request))

    async def attach(self, request: v1.AttachRequest) -> v1.AttachResponse:
        """Where a client finds the streams of a running container."""
        return v1.AttachResponse(url=self._streaming.attach(request))

    async def port_forward(self, request: v1.PortForwardRequest) -> v1.PortForwardResponse:
        """Where a client finds connections to the ports of a sandbox."""
        return v1.PortForwardResponse(url=self._streaming.port_forward(request))

    # -- events

    async def get_container_events(self, request: v1.GetEventsRequest) -> AsyncGenerator[bytes, None]:
        """What happens to pods and containers, until the client has enough."""
        del request
        async with aclosing(self._events.follow(self._statuses)) as events:
            async for event in events:
                yield event

    # -- statistics

    async def container_stats(
        self, request: v1.ContainerStatsRequest
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """One container's figures."""
        container = self._pods.container(request.container_id)
        async for some in self._stats.container_items([container]):
            for _, item in some:
                yield item
                return
        raise NotFoundError(
            f"container {container.id} is {container.state}: only running ones have statistics"
        )

    async def list_container_stats(
        self, request: v1.ListContainerStatsRequest
    ) -> AsyncGenerator[list[bytes], None]:
        """The figures of running containers that match the filter."""
        async for some in self._container_figures(request.filter):
            yield [piece for item in some for piece in item]

    async def stream_container_stats(
        self, request: v1.StreamContainerStatsRequest
    ) -> AsyncGenerator[bytes, None]:
        """As ListContainerStats, in messages of bounded size."""
        items = ([b"".join(item) for item in some] async for some in self._container_figures(request.filter))
        async for message in lists.batches(items):
            yield message

    async def pod_sandbox_stats(
        self, request: v1.PodSandboxStatsRequest
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """One pod's figures, with those of its running containers."""
        sandbox = self._pods.sandbox(request.pod_sandbox_id)
        async for some in self._stats.pod_items([sandbox]):
            for _, item in some:
                yield item
                return
        raise NotFoundError(f"sandbox {sandbox.id} is {sandbox.state}: only ready ones have statistics")

    async def list_pod_sandbox_stats(
        self, request: v1.ListPodSandboxStatsRequest
    ) -> AsyncGenerator[list[bytes], None]:
        """The figures of ready pods that match the filter, with those of their running containers."""
        async for some in self._pod_figures(request.filter):
            yield [piece for item in some for piece in item]

    async def stream_pod_sandbox_stats(
        self, request: v1.StreamPodSandboxStatsRequest
    ) -> AsyncGenerator[bytes, None]:
        """As ListPodSandboxStats, in messages of bounded size."""
        items = ([b"".join(item) for item in some] async for some in self._pod_figures(request.filter))
        async for message in lists.batches(items):
            yield message

    # -- metrics

    async def list_metric_descriptors(self, request: v1.ListMetricDescriptorsRequest) -> bytes:
        """The names of all metrics there are, with their labels."""
        del request
        return metric_descriptors()

    async def list_pod_sandbox_metrics(
        self, request: v1.ListPodSandboxMetricsRequest
    ) -> AsyncGenerator[list[bytes], None]:
        """What pods and containers use, as cAdvisor would tell it."""
        del request
        async for items in self._pod_metrics.items():
            yield items

    async def stream_pod_sandbox_metrics(
        self, request: v1.StreamPodSandboxMetricsRequest
    ) -> AsyncGenerator[bytes, None]:
        """As ListPodSandboxMetrics, in messages of bounded size."""
        del request
        async for message in lists.batches(self._pod_metrics.items()):
            yield message

    # -- what the lists show

    async def _sandboxes(self, wanted: v1.PodSandboxFilter | None) -> AsyncGenerator[list[bytes], None]:
        def shown(sandbox: PodSandbox) -> bool:
            # What is encoded has been shown before.
            return (sandbox.encoded is not None or sandbox.state is not SandboxState.CREATING) and (
                wanted is None
                or (
                    sandbox.id.startswith(wanted.id)
                    and (wanted.state is None or encode.sandbox_state(sandbox) == wanted.state.state)
                    and encode.matches_labels(sandbox.config.labels, wanted.label_selector)
                )
            )

        async for some in self._pace.over(list(self._pods.sandboxes.values())):
            yield [
                sandbox.encoded or await self._item(sandbox, encode.sandbox_item)
                for sandbox in some
                if shown(sandbox)
            ]

    async def _containers(self, wanted: v1.ContainerFilter | None) -> AsyncGenerator[list[Container], None]:
        def shown(container: Container) -> bool:
            return (container.encoded is not None or container.state is not ContainerState.CREATING) and (
                wanted is None
                or (
                    container.id.startswith(wanted.id)
                    and container.record.sandbox_id.startswith(wanted.pod_sandbox_id)
                    and (wanted.state is None or encode.container_state(container) == wanted.state.state)
                    and encode.matches_labels(container.config.labels, wanted.label_selector)
                )
            )

        async for some in self._pace.over(list(self._pods.containers.values())):
            yield [container for container in some if shown(container)]

    async def _container_items(self, wanted: v1.ContainerFilter | None) -> AsyncGenerator[list[bytes], None]:
        async for some in self._containers(wanted):
            yield [
                container.encoded or await self._item(container, encode.container_item) for container in some
            ]

    async def _item(self, of: O, item_of: Callable[[O], bytes]) -> bytes:
        """An object as the item of a list, kept until it changes; all who wait for it get the same bytes.

        Raises ResourceExhaustedError if no message can have it.
        """
        record = of.record

        async def make() -> bytes:
            item = await encoded(record, lambda: item_of(of))
            lists.checked(f"{record.kind} {of.id}", len(item))
            if of.record is record:  # else it has changed meanwhile
                of.encoded = item
            return item

        return await (make() if is_short(record) else self._encoding.run(of.id, make, fingerprint=id(record)))

    async def _container_figures(
        self, wanted: v1.ContainerStatsFilter | None
    ) -> AsyncGenerator[list[tuple[bytes, ...]], None]:
        wanted = wanted or v1.ContainerStatsFilter()
        chosen = v1.ContainerFilter(
            id=wanted.id, pod_sandbox_id=wanted.pod_sandbox_id, label_selector=wanted.label_selector
        )
        containers = [container async for some in self._containers(chosen) for container in some]
        async for items in self._stats.container_items(containers):
            for container, item in items:
                lists.checked(f"container {container}", sum(map(len, item)))
            yield [item for _, item in items]

    async def _pod_figures(
        self, wanted: v1.PodSandboxStatsFilter | None
    ) -> AsyncGenerator[list[tuple[bytes, ...]], None]:
        wanted = wanted or v1.PodSandboxStatsFilter()
        async for items in self._stats.pod_items(
            [
                sandbox
                async for some in self._pace.over(list(self._pods.sandboxes.values()))
                for sandbox in some
                if sandbox.id.startswith(wanted.id)
                and encode.matches_labels(sandbox.config.labels, wanted.label_selector)
            ]
        ):
            for sandbox, item in items:
                lists.checked(f"sandbox {sandbox}", sum(map(len, item)))
            yield [item for _, item in items]


def _shown(of: O) -> O:
    """The object, if clients are shown it. Raises NotFoundError while it is being made."""
    if of.state in (SandboxState.CREATING, ContainerState.CREATING):
        raise NotFoundError(f"{of.record.kind} {of.id} is still being made")
    return of
