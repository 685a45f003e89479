"""GetContainerEvents of the real daemon on a real kernel."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time

import grpc
import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

CREATED, STARTED, STOPPED, DELETED = v1.ContainerEventType
EXITED = v1.ContainerState.CONTAINER_EXITED
RUNNING = v1.ContainerState.CONTAINER_RUNNING


class Listener:
    """A client that follows the events in a thread."""

    def __init__(self, daemon) -> None:
        self._heard: queue.Queue = queue.Queue()
        self.channel = grpc.insecure_channel(
            f"unix:{daemon.base}/run/cri-jails.sock",
            options=[
                ("grpc.max_receive_message_length", 16 * 1024 * 1024),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        method = self.channel.unary_stream(
            "/runtime.v1.RuntimeService/GetContainerEvents",
            request_serializer=bytes,
            response_deserializer=v1.ContainerEventResponse.parse,
        )
        self.stream = method(v1.GetEventsRequest(), wait_for_ready=True)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for event in self.stream:
                self._heard.put(event)

    def until(self, kind, of: str, patience: float = 20) -> list:
        """All that is heard until and with this."""
        found = []
        deadline = time.monotonic() + patience
        while not found or told(found[-1:]) != [(kind, of)]:
            found.append(self._heard.get(timeout=max(deadline - time.monotonic(), 0.01)))
        return found

    def close(self) -> None:
        self.stream.cancel()
        self.thread.join(5)
        self.channel.close()


def told(events) -> list:
    return [(event.container_event_type, event.container_id) for event in events]


def status_of(event, container: str):
    return next(one for one in event.containers_statuses if one.id == container)


@pytest.fixture
def listen(daemon):
    made = []

    def make() -> Listener:
        made.append(Listener(daemon))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_life_of_a_pod(daemon, listen):
    daemon.pull()
    ear = listen()
    pod = daemon.pod()
    container = daemon.container(pod, "sleep", "1000")
    daemon.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=0))
    daemon.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))
    daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    heard = ear.until(DELETED, pod)
    assert told(heard) == [
        (CREATED, pod), (STARTED, pod), (CREATED, container), (STARTED, container), (STOPPED, container),
        (DELETED, container), (STOPPED, pod), (DELETED, pod),
    ]  # fmt: skip
    times = [event.created_at for event in heard]
    assert times == sorted(set(times))
    assert status_of(heard[3], container).state == RUNNING
    assert (status_of(heard[4], container).exit_code, status_of(heard[4], container).state) == (137, EXITED)
    assert all(event.pod_sandbox_status.metadata.uid == "pod" for event in heard)


def test_ends_that_nobody_asked_for(daemon, listen):
    daemon.pull()
    ear = listen()
    pod = daemon.pod()
    shot = daemon.container(pod, "sleep", "1000", name="shot")
    os.kill(daemon.pid(shot), signal.SIGKILL)
    event = ear.until(STOPPED, shot)[-1]
    assert status_of(event, shot).exit_code == 137
    assert daemon.status(shot).status == status_of(event, shot)
    limits = v1.LinuxContainerResources(
        memory_limit_in_bytes=20_000_000, memory_swap_limit_in_bytes=20_000_000
    )
    eats = daemon.container(
        pod, "sh", "-c", "x=a; while true; do x=$x$x; done", name="eats", linux=v1.LinuxContainerConfig(resources=limits),
    )  # fmt: skip
    event = ear.until(STOPPED, eats, patience=40)[-1]
    assert (status_of(event, eats).reason, status_of(event, eats).exit_code) == ("OOMKilled", 137)
    fails = None
    with pytest.raises(grpc.RpcError):
        daemon.container(pod, "/not/there", name="fails")
    fails = next(
        one
        for one in daemon.client("ListContainers", v1.ListContainersRequest()).containers
        if one.metadata.name == "fails"
    ).id
    heard = ear.until(STOPPED, fails)
    assert told(heard) == [(CREATED, fails), (STOPPED, fails)]
    assert status_of(heard[-1], fails).reason == "StartError"


def test_a_daemon_that_is_killed_and_its_successor(daemon, listen):
    daemon.pull()
    ear = listen()
    pod = daemon.pod()
    runs = daemon.container(pod, "sleep", "1000", name="runs")
    shot = daemon.container(pod, "sleep", "1000", name="shot")
    pid = daemon.pid(shot)
    last = ear.until(STARTED, shot)[-1]
    known = daemon.client("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert known.timestamp > last.created_at
    daemon.end(signal.SIGKILL)
    ear.thread.join(10)
    assert not ear.thread.is_alive(), "who listened is told by the end of the stream"
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    daemon.start()
    heard = listen().until(STOPPED, shot)
    assert told(heard) == [(STOPPED, shot)]
    assert heard[0].created_at > known.timestamp, "or the kubelet would pass over it"
    assert status_of(heard[0], shot).exit_code == 137
    assert status_of(heard[0], runs).state == RUNNING


def test_the_end_of_a_daemon_does_not_wait_for_who_listens(daemon, listen):
    ears = [listen() for _ in range(5)]
    pod = daemon.pod()
    for ear in ears:
        ear.until(STARTED, pod)
    began = time.monotonic()
    daemon.end(signal.SIGTERM)
    assert time.monotonic() - began < 4.5, "the grace of five seconds"
    for ear in ears:
        ear.thread.join(5)
        assert ear.stream.code() == grpc.StatusCode.OK
    daemon.start()


def test_who_takes_nothing_for_a_while_knows_all_ends_in_the_end(daemon, listen):
    """Large statuses, so that what gRPC keeps for him is soon full."""
    daemon.pull()
    slow = listen()
    slow.stream.cancel()
    slow.thread.join(5)
    taken = threading.Event()
    stream = slow.channel.unary_stream(
        "/runtime.v1.RuntimeService/GetContainerEvents",
        request_serializer=bytes,
        response_deserializer=v1.ContainerEventResponse.parse,
    )(v1.GetEventsRequest())
    pod = daemon.pod()
    annotations = {"large": "x" * 100_000}
    for number in range(20):
        container = daemon.container(pod, "true", name=f"c{number}", annotations=annotations)
        daemon.wait(container, EXITED)
        if number % 2:
            daemon.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))
    taken.set()
    last: dict[str, v1.ContainerEventType] = {}
    for event in stream:
        last[event.container_id] = event.container_event_type
        if (event.container_event_type, event.container_id) == (DELETED, container):
            break
    stream.cancel()
    left = {one.id for one in daemon.client("ListContainers", v1.ListContainersRequest()).containers}
    assert {of for of, kind in last.items() if kind is not DELETED} == left | {pod}
    assert all(last[of] is STOPPED for of in left)
