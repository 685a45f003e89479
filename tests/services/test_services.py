"""Both services over gRPC, on the kernel in memory: what the kubelet is told."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1
from cri.events import Events
from cri.image_service import ImageService
from cri.metrics import Metrics
from cri.runtime_service import RuntimeService
from cri.sandbox.fake import FakeHost, FakeKernel, FakeNetwork
from cri.sandbox.host import Condition
from cri.sandbox.node import Node
from cri.sandbox.pods import Pods
from cri.sandbox.recovery import recover
from cri.sandbox.trash import Trash
from cri.state import Store
from cri.stats import Stats
from cri.statuses import Statuses
from cri.streaming import StreamingRequests
from cri.streaming.server import StreamingServer

from . import conftest
from .conftest import IMAGE_ID, TAG


class Images(conftest.Images):
    """An image store with one image, and what was asked of it."""

    def __init__(self) -> None:
        self.pulled: list[object] = []

    async def pull(self, reference: str, credentials) -> str:
        self.pulled.append((reference, credentials))
        return await super().pull(reference, credentials)


class Network(FakeNetwork):
    async def condition(self) -> Condition:
        return Condition(ok=False, reason="BridgeMissing", message="bridge cri0: it is no bridge")


@pytest.fixture(scope="module")
def images() -> Images:
    return Images()


@pytest.fixture(scope="module")
def grpc_servicer(grpc_run, images):
    directory = Path(tempfile.mkdtemp())
    kernel = FakeKernel()
    host, network = FakeHost(kernel, directory), Network(kernel)

    async def make():
        events = Events()
        store = await Store.open(directory / "state.db")
        node = Node(
            host=host,
            store=store,
            network=network,
            images=images,
            state_dir=directory,
            runtime_dir=directory / "run",
            trash=Trash(directory / "removed"),
            runtime_handlers=("linux",),
            witness=events,
        )
        pods = Pods(node)
        events.watch(pods.sandboxes)
        await host.open(pods.lost)
        await recover(node, pods)
        stats = Stats(host, pods, images, directory)
        server = StreamingServer()
        await server.start()
        runtime = RuntimeService(
            host=host,
            pods=pods,
            events=events,
            statuses=Statuses(images),
            network=network,
            stats=stats,
            streaming=StreamingRequests(pods, server, Metrics(), 60),
            runtime_handlers=("linux",),
            config={"key": "value"},
            pulls=lambda: [{"image": "app"}],
        )
        return (runtime, ImageService(images, stats, ["linux"])), pods, store, server

    services, pods, store, server = grpc_run(make())
    yield services
    grpc_run(server.stop())
    grpc_run(pods.disconnect())
    grpc_run(store.close())


@pytest.fixture
def pod(grpc_stub) -> str:
    config = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="pod", uid="u", namespace="ns", attempt=2),
        hostname="pod",
        labels={"app": "x"},
        annotations={"note": "y"},
    )
    sandbox_id = grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest(config=config)).pod_sandbox_id
    yield sandbox_id
    grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))


def create(grpc_stub, pod: str, *command: str, **fields: object) -> str:
    config = v1.ContainerConfig(
        metadata=v1.ContainerMetadata(name=fields.pop("name", "c"), attempt=1),
        image=v1.ImageSpec(image=TAG, user_specified_image="app:1"),
        command=list(command),
        **fields,
    )
    request = v1.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    return grpc_stub.CreateContainer(request).container_id


def test_version_and_status(grpc_stub):
    version = grpc_stub.Version(v1.VersionRequest())
    assert (version.runtime_name, version.runtime_api_version) == ("cri-jails", "v1")
    status = grpc_stub.Status(v1.StatusRequest(verbose=True))
    conditions = {condition.type: condition for condition in status.status.conditions}
    assert conditions["RuntimeReady"].status
    assert not conditions["NetworkReady"].status
    assert "cri0" in conditions["NetworkReady"].message
    assert [handler.name for handler in status.runtime_handlers] == ["", "linux"]
    assert status.features.mount_options
    assert json.loads(status.info["config"]) == {"key": "value"}
    assert json.loads(status.info["pulls"]) == [{"image": "app"}]
    assert grpc_stub.Status(v1.StatusRequest()).info == {}
    assert grpc_stub.RuntimeConfig(v1.RuntimeConfigRequest()).linux.cgroup_driver == v1.CgroupDriver.CGROUPFS


def test_sandbox_as_it_was_asked_for(grpc_stub, pod):
    status = grpc_stub.PodSandboxStatus(v1.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    assert status.status.metadata == v1.PodSandboxMetadata(name="pod", uid="u", namespace="ns", attempt=2)
    assert status.status.labels == {"app": "x"}
    assert status.status.annotations == {"note": "y"}
    assert status.status.network.ip.startswith("10.0.0.")
    assert status.status.created_at > 10**18
    assert json.loads(status.info["info"])["pid"] == 1
    (item,) = grpc_stub.ListPodSandbox(v1.ListPodSandboxRequest()).items
    assert (item.id, item.state, item.labels) == (pod, v1.PodSandboxState.SANDBOX_READY, {"app": "x"})
    streamed = list(grpc_stub.StreamPodSandboxes(v1.StreamPodSandboxesRequest()))
    assert [one.id for message in streamed for one in message.pod_sandboxes] == [pod]


def test_container_as_it_was_asked_for(grpc_stub, pod):
    container = create(grpc_stub, pod, "sleep", labels={"a": "b"}, stop_signal=v1.Signal.SIGUSR1)
    status = grpc_stub.ContainerStatus(v1.ContainerStatusRequest(container_id=container)).status
    assert status.state == v1.ContainerState.CONTAINER_CREATED
    assert (status.image.image, status.image.user_specified_image) == (TAG, "app:1")
    assert (status.image_id, status.image_ref) == (IMAGE_ID, "docker.io/library/app@sha256:b")
    assert status.stop_signal == v1.Signal.SIGUSR1
    assert (status.started_at, status.user) == (0, None)
    grpc_stub.StartContainer(v1.StartContainerRequest(container_id=container))
    status = grpc_stub.ContainerStatus(v1.ContainerStatusRequest(container_id=container)).status
    assert status.state == v1.ContainerState.CONTAINER_RUNNING
    assert status.user.linux.uid == 0
    (item,) = grpc_stub.ListContainers(v1.ListContainersRequest()).containers
    assert (item.id, item.pod_sandbox_id, item.image_id, item.labels) == (
        container,
        pod,
        IMAGE_ID,
        {"a": "b"},
    )
    assert item.state == v1.ContainerState.CONTAINER_RUNNING


def test_an_image_that_is_mounted_is_told_by_its_id(grpc_stub, pod):
    asked = v1.ImageSpec(image=TAG, user_specified_image="app:1")
    mounts = [
        v1.Mount(
            container_path="/i", image=asked, readonly=True, image_sub_path="etc", mount_options=["noexec"]
        ),
        v1.Mount(container_path="/v/", host_path=tempfile.gettempdir(), mount_options=["nodev", "nosuid"]),
    ]
    container = create(grpc_stub, pod, "sleep", mounts=mounts)
    status = grpc_stub.ContainerStatus(v1.ContainerStatusRequest(container_id=container)).status
    mounts[0].image.image_ref = IMAGE_ID
    assert status.mounts == mounts


def test_streamed_lists_have_each_item_once(grpc_stub, pod):
    made = {create(grpc_stub, pod, "sleep", name=f"c{number}") for number in range(60)}
    messages = list(grpc_stub.StreamContainers(v1.StreamContainersRequest()))
    streamed = [container.id for message in messages for container in message.containers]
    assert all(message.containers for message in messages)
    assert sorted(streamed) == sorted(made)


def test_a_list_that_no_client_takes_is_streamed(grpc_stub, pod):
    annotations = {"fat": "x" * 300_000}
    made = [
        create(grpc_stub, pod, "sleep", name=f"c{number}", annotations=annotations) for number in range(60)
    ]
    with pytest.raises(grpc.RpcError, match="call StreamContainers") as refused:
        grpc_stub.ListContainers(v1.ListContainersRequest())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 16777216" in refused.value.details()
    one = v1.ListContainersRequest(filter=v1.ContainerFilter(id=made[3]))
    assert [container.id for container in grpc_stub.ListContainers(one).containers] == [made[3]]
    messages = list(grpc_stub.StreamContainers(v1.StreamContainersRequest()))
    assert [container.id for message in messages for container in message.containers] == made
    assert all(len(message.containers) == 1 for message in messages), "as each of them is a large message"
    for container in made:
        grpc_stub.StartContainer(v1.StartContainerRequest(container_id=container))
    with pytest.raises(grpc.RpcError, match="call StreamContainerStats"):
        grpc_stub.ListContainerStats(v1.ListContainerStatsRequest())
    streamed = list(grpc_stub.StreamContainerStats(v1.StreamContainerStatsRequest()))
    assert [stats.attributes.id for message in streamed for stats in message.container_stats] == made
    assert streamed[0].container_stats[0].attributes.annotations == annotations


def test_a_container_of_thousands_of_everything(grpc_stub, pod):
    """Which is read and encoded in threads; what comes out is what went in."""
    many = {f"key{number}": "value" for number in range(5_000)}
    mounts = [v1.Mount(container_path=f"/m{number}", host_path="/tmp") for number in range(2_000)]
    container = create(grpc_stub, pod, "sleep", annotations=many, labels=many, mounts=mounts)
    asked = v1.ContainerStatusRequest(container_id=container, verbose=True)
    answer = grpc_stub.ContainerStatus(asked)
    assert (answer.status.annotations, answer.status.labels) == (many, many)
    assert answer.status.mounts == mounts
    assert len(json.loads(answer.info["info"])["spec"]["mounts"]) >= 2_000
    limits = v1.LinuxContainerResources(cpu_shares=77)
    grpc_stub.UpdateContainerResources(
        v1.UpdateContainerResourcesRequest(container_id=container, linux=limits)
    )
    answer = grpc_stub.ContainerStatus(asked)
    assert answer.status.resources.linux.cpu_shares == 77
    assert (answer.status.annotations, answer.status.mounts) == (many, mounts)
    (item,) = grpc_stub.ListContainers(v1.ListContainersRequest()).containers
    assert item.annotations == many


def test_a_sandbox_of_thousands_of_everything(grpc_stub):
    many = {f"key{number}": "value" for number in range(5_000)}
    config = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="many", uid="u", namespace="ns"), annotations=many, labels=many
    )
    request = v1.RunPodSandboxRequest(config=config)
    pod = grpc_stub.RunPodSandbox(request).pod_sandbox_id
    try:
        with pytest.raises(grpc.RpcError, match="is taken by") as taken:
            grpc_stub.RunPodSandbox(request)
        assert taken.value.code() is grpc.StatusCode.ALREADY_EXISTS
        asked = v1.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        answer = grpc_stub.PodSandboxStatus(asked)
        assert (answer.status.annotations, answer.status.labels) == (many, many)
        (item,) = grpc_stub.ListPodSandbox(v1.ListPodSandboxRequest()).items
        assert (item.annotations, item.labels) == (many, many)
    finally:
        grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_exec_sync_and_stats(grpc_stub, pod):
    container = create(grpc_stub, pod, "sleep")
    with pytest.raises(grpc.RpcError) as early:
        grpc_stub.ExecSync(v1.ExecSyncRequest(container_id=container, cmd=["true"]))
    assert early.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert grpc_stub.ListContainerStats(v1.ListContainerStatsRequest()).stats == []
    grpc_stub.StartContainer(v1.StartContainerRequest(container_id=container))
    assert grpc_stub.ExecSync(v1.ExecSyncRequest(container_id=container, cmd=["exit", "3"])).exit_code == 3
    with pytest.raises(grpc.RpcError) as late:
        grpc_stub.ExecSync(v1.ExecSyncRequest(container_id=container, cmd=["sleep"], timeout=1))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (stats,) = grpc_stub.ListContainerStats(v1.ListContainerStatsRequest()).stats
    assert stats.attributes.id == container
    assert stats.cpu.timestamp > 10**18
    assert grpc_stub.ContainerStats(
        v1.ContainerStatsRequest(container_id=container)
    ).stats.memory.usage_bytes.value
    (message,) = grpc_stub.StreamContainerStats(v1.StreamContainerStatsRequest())
    assert message.container_stats[0].attributes.id == container


def test_metrics(grpc_stub, pod):
    container = create(grpc_stub, pod, "sleep")
    grpc_stub.StartContainer(v1.StartContainerRequest(container_id=container))
    described = grpc_stub.ListMetricDescriptors(v1.ListMetricDescriptorsRequest()).descriptors
    keys = {one.name: one.label_keys for one in described}
    (found,) = grpc_stub.ListPodSandboxMetrics(v1.ListPodSandboxMetricsRequest()).pod_metrics
    (inner,) = found.container_metrics
    assert (found.pod_sandbox_id, inner.container_id) == (pod, container)
    for metric in (*found.metrics, *inner.metrics):
        labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
        assert (labels["namespace"], labels["pod"]) == ("ns", "pod")
        assert metric.value is not None
    assert {one.name for one in inner.metrics} > {"container_cpu_usage_seconds_total", "container_memory_rss"}
    (message,) = grpc_stub.StreamPodSandboxMetrics(v1.StreamPodSandboxMetricsRequest())
    assert message.pod_sandbox_metrics == [found]
    grpc_stub.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert grpc_stub.ListPodSandboxMetrics(v1.ListPodSandboxMetricsRequest()).pod_metrics == []
    assert list(grpc_stub.StreamPodSandboxMetrics(v1.StreamPodSandboxMetricsRequest())) == []


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        (dict(mounts=[v1.Mount(container_path="/a", host_path="b")]), "INVALID_ARGUMENT", "must be absolute"),
        (dict(mounts=[v1.Mount(container_path="", host_path="/b")]), "INVALID_ARGUMENT", "container_path is empty"),
        (
            dict(mounts=[v1.Mount(container_path="/a", host_path="/", recursive_read_only=True)]),
            "INVALID_ARGUMENT",
            "needs readonly",
        ),
        (dict(devices=[v1.Device(host_path="/etc/passwd")]), "INVALID_ARGUMENT", "not a character or block device"),
        (dict(mounts=[v1.Mount(container_path="/i", image=v1.ImageSpec(image=TAG))]), "INVALID_ARGUMENT", "readonly is false"),
        (
            dict(mounts=[v1.Mount(container_path="/m", host_path="/tmp", mount_options=["exec"])]),
            "INVALID_ARGUMENT",
            "mount_options has 'exec'",
        ),
        (dict(devices=[v1.Device(host_path="/dev/null", permissions="rx")]), "INVALID_ARGUMENT", "have 'x'"),
        (dict(log_path="../../etc/cron.d/x"), "INVALID_ARGUMENT", "leads out of"),
        (
            dict(linux=v1.LinuxContainerConfig(security_context=v1.LinuxContainerSecurityContext(privileged=True))),
            "INVALID_ARGUMENT",
            "its sandbox",
        ),
        (
            dict(
                linux=v1.LinuxContainerConfig(
                    security_context=v1.LinuxContainerSecurityContext(run_as_group=v1.Int64Value(value=1))
                )
            ),
            "INVALID_ARGUMENT",
            "run_as_group is set without",
        ),
        (
            dict(
                linux=v1.LinuxContainerConfig(
                    security_context=v1.LinuxContainerSecurityContext(
                        seccomp=v1.SecurityProfile(
                            profile_type=v1.SecurityProfileProfileType.Localhost, localhost_ref="/p.json"
                        )
                    )
                )
            ),
            "UNIMPLEMENTED",
            "profile /p.json: localhost profiles are not supported",
        ),
    ],
)  # fmt: skip
def test_what_can_be_seen_to_be_wrong_is_refused_before_anything_is_made(grpc_stub, fields, code, message):
    config = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="strict", uid="u", namespace="ns"),
        log_directory=tempfile.gettempdir(),
    )
    pod = grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest(config=config)).pod_sandbox_id
    try:
        with pytest.raises(grpc.RpcError, match=message) as refused:
            create(grpc_stub, pod, "sleep", **fields)
        assert refused.value.code() is grpc.StatusCode[code]
        assert grpc_stub.ListContainers(v1.ListContainersRequest()).containers == []
    finally:
        grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_sandbox_requests_that_are_refused(grpc_stub):
    for config, message in (
        (None, "config is missing"),
        (v1.PodSandboxConfig(), "metadata"),
        (v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="p", namespace="n")), "uid"),
    ):
        with pytest.raises(grpc.RpcError, match=message):
            grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest(config=config))
    assert grpc_stub.ListPodSandbox(v1.ListPodSandboxRequest()).items == []


def test_images(grpc_stub, images):
    (image,) = grpc_stub.ListImages(v1.ListImagesRequest()).images
    assert (image.id, image.repo_tags, image.size, image.uid.value) == (IMAGE_ID, [TAG], 7, 1000)
    assert image.username == ""
    asked = v1.ImageStatusRequest(image=v1.ImageSpec(image=TAG))
    assert grpc_stub.ImageStatus(asked).image == image
    assert grpc_stub.ImageStatus(v1.ImageStatusRequest(image=v1.ImageSpec(image="gone"))).image is None
    verbose = grpc_stub.ImageStatus(v1.ImageStatusRequest(image=v1.ImageSpec(image=TAG), verbose=True))
    assert verbose.image == image
    assert json.loads(verbose.info["info"]) == {"chainID": ["sha256:c"], "imageSpec": {}}
    nothing = v1.ListImagesRequest(filter=v1.ImageFilter(image=v1.ImageSpec(image="gone")))
    assert grpc_stub.ListImages(nothing).images == []
    auth = v1.AuthConfig(username="me", password="secret", server_address="example.org")
    pulled = grpc_stub.PullImage(v1.PullImageRequest(image=v1.ImageSpec(image="app"), auth=auth))
    assert pulled.image_ref == IMAGE_ID
    ((reference, credentials),) = images.pulled
    assert (reference, credentials.username, credentials.password) == ("app", "me", "secret")
    assert "secret" not in repr(credentials)
    spec = v1.ImageSpec(image="app", runtime_handler="linux")
    assert grpc_stub.PullImage(v1.PullImageRequest(image=spec)).image_ref == IMAGE_ID
    spec.runtime_handler = "wine"
    with pytest.raises(grpc.RpcError, match="'wine' is not configured; there is: linux") as refused:
        grpc_stub.PullImage(v1.PullImageRequest(image=spec))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = grpc_stub.ImageFsInfo(v1.ImageFsInfoRequest())
    assert info.image_filesystems[0].used_bytes.value == 1000
    assert info.container_filesystems


@pytest.fixture
def running(grpc_stub):
    """A sandbox with a running container that has no stdin."""
    config = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="streams", uid="u", namespace="ns"),
        log_directory=tempfile.gettempdir(),
    )
    pod = grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest(config=config)).pod_sandbox_id
    container = create(grpc_stub, pod, "sleep")
    grpc_stub.StartContainer(v1.StartContainerRequest(container_id=container))
    yield pod, container
    grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_a_stream_begins_at_a_url_that_nobody_guesses(grpc_stub, running):
    pod, container = running
    urls = [
        grpc_stub.Exec(v1.ExecRequest(container_id=container, cmd=["true"], stdout=True)).url,
        grpc_stub.Attach(v1.AttachRequest(container_id=container[:12], stdout=True)).url,
        grpc_stub.PortForward(v1.PortForwardRequest(pod_sandbox_id=pod, port=[80])).url,
    ]
    for url, kind in zip(urls, ("exec", "attach", "portforward"), strict=True):
        assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/{kind}/[\w-]{{32}}", url)


@pytest.mark.parametrize(
    ("rpc", "request_", "code", "message"),
    [
        ("Exec", v1.ExecRequest(cmd=["true"]), "INVALID_ARGUMENT", "one of stdin, stdout and stderr"),
        ("Exec", v1.ExecRequest(stdout=True), "INVALID_ARGUMENT", "cmd is empty"),
        (
            "Exec",
            v1.ExecRequest(cmd=["true"], stdout=True, stderr=True, tty=True),
            "INVALID_ARGUMENT",
            "stderr must be false",
        ),
        ("Exec", v1.ExecRequest("none", cmd=["true"], stdout=True), "NOT_FOUND", "none"),
        ("Attach", v1.AttachRequest(), "INVALID_ARGUMENT", "one of stdin, stdout and stderr"),
        ("Attach", v1.AttachRequest(stdin=True), "FAILED_PRECONDITION", "made without stdin"),
        ("Attach", v1.AttachRequest("none", stdout=True), "NOT_FOUND", "none"),
        ("PortForward", v1.PortForwardRequest(port=[80, 65536]), "INVALID_ARGUMENT", "65536 is no port"),
        ("PortForward", v1.PortForwardRequest("none"), "NOT_FOUND", "none"),
    ],
)
def test_a_stream_that_makes_no_sense_gets_no_url(grpc_stub, running, rpc, request_, code, message):
    pod, container = running
    field, own = ("pod_sandbox_id", pod) if rpc == "PortForward" else ("container_id", container)
    if not getattr(request_, field):
        setattr(request_, field, own)
    with pytest.raises(grpc.RpcError, match=message) as refused:
        getattr(grpc_stub, rpc)(request_)
    assert refused.value.code() is grpc.StatusCode[code]


def test_what_does_not_run_has_no_streams(grpc_stub, running):
    pod, container = running
    grpc_stub.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    for rpc, request_ in (
        ("Exec", v1.ExecRequest(container_id=container, cmd=["true"], stdout=True)),
        ("Attach", v1.AttachRequest(container_id=container, stdout=True)),
        ("PortForward", v1.PortForwardRequest(pod_sandbox_id=pod)),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            getattr(grpc_stub, rpc)(request_)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
