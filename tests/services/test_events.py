"""GetContainerEvents on the kernel in memory: what subscribers are told, in which order, and what that costs the others."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cri import encode, events, statuses
from cri.api.runtime import v1
from cri.errors import ResourceExhaustedError
from cri.events import CREATED, DELETED, STARTED, STOPPED, Events
from cri.sandbox.fake import FakeHost, FakeKernel, FakeNetwork
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.node import Node
from cri.sandbox.pods import Pods
from cri.sandbox.recovery import recover
from cri.sandbox.trash import Trash
from cri.state import ContainerRecord, SandboxRecord, Store
from cri.statuses import Moment, Statuses

from .conftest import TAG, Images

READY, NOTREADY = v1.PodSandboxState.SANDBOX_READY, v1.PodSandboxState.SANDBOX_NOTREADY
_CREATED, RUNNING, EXITED, _ = v1.ContainerState


class Machine:
    """A machine that daemons come and go on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kernel = FakeKernel()
        self.host = FakeHost(self.kernel, directory)
        self.network = FakeNetwork(self.kernel)
        self.statuses = Statuses(Images())
        self.subscribers: list[Subscriber] = []

    async def start(self) -> Machine:
        self.events = Events()
        self.store = await Store.open(self.directory / "state.db")
        node = Node(
            host=self.host,
            store=self.store,
            network=self.network,
            images=Images(),
            state_dir=self.directory,
            runtime_dir=self.directory / "run",
            trash=Trash(self.directory / "removed"),
            witness=self.events,
        )
        self.pods = Pods(node)
        self.events.watch(self.pods.sandboxes)
        await self.host.open(self.pods.lost)
        await recover(node, self.pods)
        return self

    async def crash(self) -> None:
        for subscriber in self.subscribers:
            await subscriber.leave()
        self.subscribers.clear()
        await self.pods.disconnect()
        await self.store.close()

    async def listen(self) -> Subscriber:
        before = set(self.events._subscribers)
        subscriber = Subscriber(self)
        self.subscribers.append(subscriber)
        await asyncio.sleep(0)
        (subscriber.own,) = self.events._subscribers - before
        return subscriber

    async def pod(self, name: str = "pod", **fields) -> str:
        metadata = v1.PodSandboxMetadata(name=name, uid=name, namespace="ns")
        return await self.pods.run_sandbox(v1.PodSandboxConfig(metadata=metadata, **fields), "")

    async def container(self, pod: str, *command: str, name: str = "c", start: bool = True, **fields) -> str:
        config = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name),
            image=v1.ImageSpec(image=TAG),
            command=list(command) or ["sleep"],
            **fields,
        )
        container = await self.pods.create_container(pod, config)
        if start:
            await self.pods.start_container(container)
        return container


class Subscriber:
    """A client that takes all it is given."""

    def __init__(self, machine: Machine) -> None:
        self.heard: list[v1.ContainerEventResponse] = []
        self._machine = machine
        self._task = asyncio.ensure_future(self._listen(machine.events))

    async def _listen(self, source: Events) -> None:
        async with contextlib.aclosing(source.follow(self._machine.statuses)) as stream:
            async for event in stream:
                self.heard.append(v1.ContainerEventResponse.parse(event))

    async def settle(self) -> list[v1.ContainerEventResponse]:
        """All that has been told, once nothing waits to be told."""
        async with asyncio.timeout(10):
            while self.own.pending or self.own.news.is_set():
                await asyncio.sleep(0.001)
        return self.heard

    async def leave(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def machine(tmp_path):
    made = await Machine(tmp_path).start()
    yield made
    await made.crash()


def told(heard) -> list[tuple[v1.ContainerEventType, str]]:
    return [(event.container_event_type, event.container_id) for event in heard]


def states(event) -> dict[str, v1.ContainerState]:
    return {status.id: status.state for status in event.containers_statuses}


async def test_the_life_of_a_pod(machine) -> None:
    subscriber = await machine.listen()
    began = time.time_ns()
    pod = await machine.pod(labels={"app": "x"})
    container = await machine.container(pod)
    await machine.pods.stop_container(container, 0)
    await machine.pods.remove_container(container)
    await machine.pods.stop_sandbox(pod)
    await machine.pods.remove_sandbox(pod)
    heard = await subscriber.settle()
    assert told(heard) == [
        (CREATED, pod),
        (STARTED, pod),
        (CREATED, container),
        (STARTED, container),
        (STOPPED, container),
        (DELETED, container),
        (STOPPED, pod),
        (DELETED, pod),
    ]
    assert [states(event).get(container) for event in heard] == [
        None, None, _CREATED, RUNNING, EXITED, None, None, None,
    ]  # fmt: skip
    assert [event.pod_sandbox_status.state for event in heard] == [READY] * 6 + [NOTREADY] * 2
    for event in heard:
        assert event.pod_sandbox_status.metadata.uid == "pod", "without it the kubelet passes over the event"
        assert event.pod_sandbox_status.labels == {"app": "x"}
    times = [event.created_at for event in heard]
    assert times == sorted(set(times))
    assert began < times[0]
    assert times[-1] <= time.time_ns()
    assert heard[4].containers_statuses[0].exit_code == 137
    assert heard[1].pod_sandbox_status.network.ip.startswith("10.0.0.")


async def test_ways_to_end(machine) -> None:
    subscriber = await machine.listen()
    pod = await machine.pod()
    ends = await machine.container(pod, "exit", "3", name="ends")
    await asyncio.sleep(0.01)
    with pytest.raises(Exception, match="nothere"):
        await machine.container(pod, "nothere", name="fails")
    (fails,) = (one for one in machine.pods.containers if one != ends)
    never = await machine.container(pod, name="never", start=False)
    lost = await machine.container(pod, name="lost")
    machine.host.kill_warden(pod)
    await asyncio.sleep(0.05)
    await machine.pods.remove_sandbox(pod)
    heard = await subscriber.settle()
    of = {
        one: [kind for kind, about in told(heard) if about == one] for one in (pod, ends, fails, never, lost)
    }
    assert of[ends] == [CREATED, STARTED, STOPPED, DELETED]
    assert of[fails] == [CREATED, STOPPED, DELETED]
    assert of[never] == [CREATED, STOPPED, DELETED]
    assert of[lost] == [CREATED, STARTED, STOPPED, DELETED]
    assert of[pod] == [CREATED, STARTED, STOPPED, DELETED]
    assert told(heard)[-1] == (DELETED, pod), (
        "what came later would bring the pod back in the kubelet's cache"
    )
    ended = next(event for event in heard if told([event]) == [(STOPPED, fails)])
    (status,) = (one for one in ended.containers_statuses if one.id == fails)
    assert (status.reason, status.exit_code) == ("StartError", 128)


@pytest.mark.parametrize("fail_at", range(6))
async def test_what_fails_on_its_way_is_told_as_far_as_it_was_shown(machine, fail_at) -> None:
    """Nobody is left with a pod or a container that is not there."""
    subscriber = await machine.listen()
    machine.kernel.count_from_here(fail_at)
    with contextlib.suppress(Exception):
        await machine.container(await machine.pod())
    machine.kernel.count_from_here()
    assert follow(await subscriber.settle()) == listed(machine)


async def test_every_event_comes_when_everybody_is_shown_what_it_says(machine, monkeypatch) -> None:
    seen = []

    def changed(record, before, was=machine.events.changed):
        owners = machine.pods.sandboxes if isinstance(record, SandboxRecord) else machine.pods.containers
        assert owners[record.id].record is record
        assert owners[record.id].encoded is None
        seen.append(record.state)
        was(record, before)

    monkeypatch.setattr(machine.events, "changed", changed)
    pod = await machine.pod()
    await machine.container(pod, "true")
    await machine.pods.remove_sandbox(pod)
    assert {"ready", "created", "running", "exited", "notready"} <= set(seen)


async def test_what_happens_is_encoded_once_for_all_and_not_at_all_for_nobody(machine, monkeypatch) -> None:
    made, moments = [], []
    encoded, of = encode.container_status, Moment.of
    monkeypatch.setattr(encode, "container_status", lambda *given: made.append(1) or encoded(*given))
    monkeypatch.setattr(events.Moment, "of", staticmethod(lambda sandbox: moments.append(1) or of(sandbox)))
    pod = await machine.pod("unheard")
    await machine.container(pod)
    assert (made, moments) == ([], [])
    await machine.pods.remove_sandbox(pod)
    subscribers = [await machine.listen() for _ in range(20)]
    pod = await machine.pod("heard")
    moments.clear()
    await machine.container(pod)
    for subscriber in subscribers:
        await subscriber.settle()
    assert len(moments) == 2
    assert len(made) == 2, "one for each state of the one container"
    assert all(told(one.heard) == told(subscribers[0].heard) for one in subscribers)
    assert len(subscribers[0].heard) == 4


async def test_whoever_leaves_is_forgotten_at_once(machine) -> None:
    subscribers = [await machine.listen() for _ in range(events.MOST_SUBSCRIBERS)]
    with pytest.raises(ResourceExhaustedError, match="end some of them"):
        await anext(machine.events.follow(machine.statuses))
    for subscriber in subscribers:
        await subscriber.leave()
    assert not machine.events._subscribers
    await machine.pod()
    assert not any(subscriber.heard for subscriber in subscribers)


async def test_who_leaves_while_a_large_pod_is_encoded_does_not_cost_the_others_that(machine) -> None:
    first, second = await machine.listen(), await machine.listen()
    pod = await machine.pod(annotations={str(at): "x" * 50 for at in range(3000)})
    await asyncio.sleep(0)
    await first.leave()
    assert told(await second.settle()) == [(CREATED, pod), (STARTED, pod)]
    assert len(second.heard[1].pod_sandbox_status.annotations) == 3000


async def test_the_end_of_the_daemon_ends_all_streams(machine) -> None:
    subscriber = await machine.listen()
    idle = await machine.listen()
    await machine.pod()
    machine.events.end()
    async with asyncio.timeout(1):
        await subscriber._task
        await idle._task
        assert [event async for event in machine.events.follow(machine.statuses)] == []


async def test_times_never_go_back(machine, monkeypatch) -> None:
    """A kubelet takes no status for newer that has an earlier time."""
    subscriber = await machine.listen()
    pod = await machine.pod()
    await subscriber.settle()
    real = time.time_ns
    monkeypatch.setattr(events.time, "time_ns", lambda: real() - 3600 * 10**9)
    container = await machine.container(pod)
    heard = await subscriber.settle()
    times = [event.created_at for event in heard]
    assert times == sorted(set(times))
    assert told(heard)[-1] == (STARTED, container)
    assert machine.events.now() > times[-1]


# -- slow subscribers


def sandbox_record(number: int, state: str = "ready", **fields) -> SandboxRecord:
    values = {"config": b"", "addresses": [], "created_at": 1, "spec": "{}"} | fields
    return SandboxRecord(id=f"p{number}", name="p", namespace="n", uid=f"u{number}", state=state, **values)


def container_record(number: int, pod: int, state: str) -> ContainerRecord:
    return ContainerRecord(id=f"c{number}", sandbox_id=f"p{pod}", name="c", state=state)


class Cheap:
    """Pods without anything behind them, and one subscriber who takes nothing until he is asked to."""

    def __init__(self) -> None:
        self.events = Events()
        self.sandboxes: dict = {}
        self.events.watch(self.sandboxes)
        self.stream = self.events.follow(Statuses(Images()))
        self._first = asyncio.ensure_future(anext(self.stream))

    def pod(self, number: int, **fields) -> None:
        class Pod:
            containers: dict = {}  # noqa: RUF012
            record = sandbox_record(number, **fields)
            status = (record, b"")

        self.sandboxes[f"p{number}"] = Pod()
        self.events.changed(Pod.record, "creating")

    def container(self, number: int, pod: int, state: str, before: str) -> None:
        self.events.changed(container_record(number, pod, state), before)

    async def rest(self) -> list[tuple[v1.ContainerEventType, str]]:
        """All that waits, once it is taken."""
        found = [await self._first]
        (subscriber,) = self.events._subscribers
        while subscriber.pending:
            found.append(await anext(self.stream))
        return told(map(v1.ContainerEventResponse.parse, found))


async def test_a_slow_subscriber_is_told_the_last_of_each_of_a_thousand_pods() -> None:
    node = Cheap()
    await asyncio.sleep(0)
    for number in range(1000):
        node.pod(number)
    for times in range(10):
        for number in range(2000):
            pod = number // 2
            before = "exited" if times else "created"
            node.container(number, pod, "running", before)
            if (number + times) % 3:
                node.container(number, pod, "exited", "running")
    (subscriber,) = node.events._subscribers
    assert len(subscriber.pending) <= 2 * 3000 + 1
    heard = await node.rest()
    last = dict((of, kind) for kind, of in heard)  # noqa: C402
    assert {of: kind for of, kind in last.items() if of.startswith("c")} == {
        f"c{number}": STOPPED if (number + 9) % 3 else STARTED for number in range(2000)
    }
    assert {of for of in last if of.startswith("p")} == {f"p{number}" for number in range(1000)}
    assert subscriber.most == events.PENDING, "it has caught up"


async def test_a_fast_subscriber_is_told_all_beside_a_slow_one(machine) -> None:
    slow = machine.events.follow(machine.statuses)
    first = asyncio.ensure_future(anext(slow))
    await asyncio.sleep(0)
    fast = await machine.listen()
    pod = await machine.pod()
    for number in range(100):
        container = await machine.container(pod, name=f"c{number}")
        await machine.pods.remove_container(container)
        await asyncio.sleep(0)
    await fast.settle()
    assert len(fast.heard) == 2 + 400
    assert told([v1.ContainerEventResponse.parse(await first)]) == [(CREATED, pod)]
    waiting = max(machine.events._subscribers, key=lambda one: len(one.pending))
    assert 100 <= len(waiting.pending) <= events.PENDING + 1
    assert all(event._encoding is None for event in list(waiting.pending)[:50]), (
        "nothing encoded is kept for him"
    )
    await slow.aclose()


async def test_who_leaves_too_much_of_what_is_gone_must_list_anew() -> None:
    node = Cheap()
    await asyncio.sleep(0)
    kept = 0
    node.pod(100_000)
    await node._first
    for number in range(100_000):
        node.pod(number, config=b"x" * 20_000)
        node.events.gone(node.sandboxes[f"p{number}"].record)
        del node.sandboxes[f"p{number}"]
        (subscriber,) = node.events._subscribers
        kept = max(kept, len(subscriber.pending))
        if subscriber.is_overrun:
            break
    assert kept < 5000
    assert not subscriber.pending
    with pytest.raises(ResourceExhaustedError, match="subscribe anew"):
        await anext(node.stream)
    assert not node.events._subscribers


# -- new subscribers


async def test_a_new_subscriber_is_told_what_changed_last(machine, monkeypatch) -> None:
    pod = await machine.pod()
    first = await machine.container(pod, name="first")
    second = await machine.container(pod, name="second")
    gone = await machine.container(pod, name="gone")
    await machine.pods.stop_container(first, 0)
    await machine.pods.remove_container(gone)
    before = machine.events.now()
    heard = await (await machine.listen()).settle()
    assert told(heard) == [(STARTED, pod), (STARTED, second), (STOPPED, first)]
    assert all(event.created_at < before for event in heard), "the kubelet passes over what it knows already"
    assert all(states(event) == {first: EXITED, second: RUNNING} for event in heard)
    real = time.time_ns
    monkeypatch.setattr(events.time, "time_ns", lambda: real() + events.RECENT)
    later = await machine.listen()
    assert await later.settle() == []
    await machine.pods.stop_container(second, 0)
    assert told(await later.settle()) == [(STOPPED, second)]
    assert list(machine.events._recent) == [second], "what is long past is not kept"


async def test_what_ended_while_there_was_no_daemon_is_told_by_the_next(machine) -> None:
    pod, other = await machine.pod(), await machine.pod("other")
    ended = await machine.container(pod, name="ended")
    runs = await machine.container(pod, name="runs")
    pid = machine.pods.containers[ended].record.pid
    known = machine.events.now()  # the kubelet has listed
    await machine.crash()
    machine.kernel.exit(pid, 5)
    warden = machine.host.wardens.pop(other)
    warden.alive = False
    await machine.start()
    heard = await (await machine.listen()).settle()
    assert sorted(told(heard)) == sorted([(STOPPED, ended), (STOPPED, other)])
    assert all(event.created_at > known for event in heard), "else the kubelet would pass over it"
    (event,) = (event for event in heard if event.container_id == ended)
    assert states(event) == {ended: EXITED, runs: RUNNING}


# -- over gRPC


def test_a_client_that_hangs_up_is_forgotten(grpc_stub, node, grpc_channel) -> None:
    stream = grpc_stub.GetContainerEvents(v1.GetEventsRequest())
    config = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="heard", uid="u", namespace="ns"))
    pod = grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest(config=config)).pod_sandbox_id
    kinds = [next(event.container_event_type for event in stream if event.container_id == pod) for _ in "12"]
    assert kinds == [CREATED, STARTED]
    assert node.events._subscribers
    stream.cancel()
    deadline = time.monotonic() + 5
    while node.events._subscribers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not node.events._subscribers
    grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_a_status_has_the_containers_and_its_time(grpc_stub, node) -> None:
    config = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="whole", uid="u", namespace="ns"))
    pod = grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest(config=config)).pod_sandbox_id
    asked = v1.PodSandboxStatusRequest(pod_sandbox_id=pod)
    empty = grpc_stub.PodSandboxStatus(asked)
    assert (empty.containers_statuses, empty.timestamp > 0) == ([], True)
    made = []
    for name in ("one", "two"):
        container = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name), image=v1.ImageSpec(image=TAG), command=["sleep"]
        )
        request = v1.CreateContainerRequest(pod_sandbox_id=pod, config=container)
        made.append(grpc_stub.CreateContainer(request).container_id)
    grpc_stub.StartContainer(v1.StartContainerRequest(container_id=made[0]))
    status = grpc_stub.PodSandboxStatus(v1.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    assert status.timestamp > empty.timestamp
    assert abs(status.timestamp - time.time_ns()) < 10 * 10**9
    assert status.containers_statuses == [
        grpc_stub.ContainerStatus(v1.ContainerStatusRequest(container_id=one)).status for one in made
    ]
    assert states(status) == {made[0]: RUNNING, made[1]: _CREATED}
    assert status.info
    limits = v1.LinuxContainerResources(cpu_quota=5000)
    request = v1.UpdateContainerResourcesRequest(container_id=made[0], linux=limits)
    grpc_stub.UpdateContainerResources(request)
    later = grpc_stub.PodSandboxStatus(asked)
    assert later.containers_statuses[0].resources.linux.cpu_quota == 5000
    grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_what_is_still_being_made_is_not_there_yet(grpc_stub, node, monkeypatch) -> None:
    go_on, attach = threading.Event(), node.network.attach

    async def held(spec, warden):
        await asyncio.to_thread(go_on.wait, 10)
        return await attach(spec, warden)

    monkeypatch.setattr(node.network, "attach", held)
    config = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="made", uid="u", namespace="ns"))
    call = threading.Thread(target=grpc_stub.RunPodSandbox, args=[v1.RunPodSandboxRequest(config=config)])
    before = set(node.pods.sandboxes)
    call.start()
    while not (made := set(node.pods.sandboxes) - before):
        time.sleep(0.01)
    (pod,) = made
    with pytest.raises(grpc.RpcError, match="is still being made") as caught:
        grpc_stub.PodSandboxStatus(v1.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    go_on.set()
    call.join()
    assert grpc_stub.PodSandboxStatus(v1.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.state == READY
    grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_a_pod_too_large_for_a_message_is_shown_without_containers_and_without_time(grpc_stub, node) -> None:
    """Both or neither: then the kubelet asks for its containers one by one."""
    config = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="huge", uid="u", namespace="ns"))
    pod = grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest(config=config)).pod_sandbox_id
    for number in range(5):
        container = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=str(number)),
            image=v1.ImageSpec(image=TAG),
            annotations={str(at): "x" * 100_000 for at in range(35)},
        )
        last = grpc_stub.CreateContainer(
            v1.CreateContainerRequest(pod_sandbox_id=pod, config=container)
        ).container_id
        if number == 0:
            status = grpc_stub.PodSandboxStatus(v1.PodSandboxStatusRequest(pod_sandbox_id=pod))
            assert (len(status.containers_statuses), status.timestamp > 0) == (1, True)
    status = grpc_stub.PodSandboxStatus(v1.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert (status.status.id, status.containers_statuses, status.timestamp) == (pod, [], 0)
    stream = grpc_stub.GetContainerEvents(v1.GetEventsRequest())
    event = next(event for event in stream if event.container_id == last)
    assert (event.pod_sandbox_status, event.containers_statuses) == (None, [])
    stream.cancel()
    with pytest.raises(grpc.RpcError):
        list(stream)
    grpc_stub.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


# -- whatever happens, who follows the events knows what the lists say

_STATE = {CREATED: "created", STARTED: "running", STOPPED: "ended"}
_LISTED = {
    SandboxState.READY: "running",
    SandboxState.NOTREADY: "ended",
    SandboxState.REMOVING: "ended",
    ContainerState.CREATED: "created",
    ContainerState.RUNNING: "running",
    ContainerState.EXITED: "ended",
    ContainerState.REMOVING: "ended",
}


def follow(heard) -> dict[str, str]:
    """What somebody knows who has heard nothing but this."""
    known: dict[str, str] = {}
    for event in heard:
        if event.container_event_type is DELETED:
            known.pop(event.container_id, None)
        else:
            known[event.container_id] = _STATE[event.container_event_type]
    return known


def listed(machine: Machine) -> dict[str, str]:
    shown = [*machine.pods.visible_sandboxes(), *machine.pods.visible_containers()]
    return {one.id: _LISTED[one.state] for one in shown}


class Cache:
    """What a kubelet has of pods: pkg/kubelet/container/cache.go, Set and Delete, as evented.go calls them."""

    def __init__(self) -> None:
        self.pods: dict[str, tuple[int, dict[str, v1.ContainerState]]] = {}

    def take(self, event) -> None:
        pod = event.pod_sandbox_status
        if event.container_event_type is DELETED:
            if pod.id == event.container_id:
                self.pods.pop(pod.id, None)
        elif pod.id not in self.pods or self.pods[pod.id][0] <= event.created_at:
            self.pods[pod.id] = event.created_at, states(event)


NUMBERS = st.integers(0, 999)


class Life(RuleBasedStateMachine):
    """Calls and mishaps in any order, some of them at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()

    @initialize(directory=st.just(None))
    def begin(self, directory) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.names = 0
        self.machine = Machine(Path(self.directory.name))
        self.run(self.machine.start())
        self.subscriber = self.run(self.machine.listen())
        self.under_way: list[asyncio.Task] = []

    def run(self, call):
        return self.loop.run_until_complete(call)

    def begun(self, call) -> None:
        async def quietly() -> None:
            with contextlib.suppress(
                Exception
            ):  # a call that comes at the wrong time, or is failed by the kernel
                await call

        async def start() -> None:
            self.under_way.append(asyncio.ensure_future(quietly()))
            await asyncio.sleep(0)

        self.run(start())

    def any_of(self, number, things):
        """One of them; what there is depends on threads, so what is drawn must not."""
        return sorted(things)[number % len(things)] if things else None

    @rule(
        run=st.booleans(),
        program=st.sampled_from(["sleep", "true", "exit 4", "nothere"]),
        new=st.booleans(),
        number=NUMBERS,
    )
    def make(self, run, program, new, number) -> None:
        self.names += 1
        name = f"n{self.names}"
        pod = self.any_of(number, self.machine.pods.sandboxes)
        if pod is None or new:
            self.begun(self.machine.pod(name))
        else:
            self.begun(self.machine.container(pod, *program.split(), name=name, start=run))

    @rule(call=st.sampled_from(["start", "stop", "remove"]), number=NUMBERS)
    def container(self, call, number) -> None:
        pods, of = self.machine.pods, self.any_of(number, self.machine.pods.containers)
        if of is not None:
            calls = {
                "start": pods.start_container,
                "stop": lambda one: pods.stop_container(one, 0),
                "remove": pods.remove_container,
            }
            self.begun(calls[call](of))

    @rule(remove=st.booleans(), number=NUMBERS)
    def sandbox(self, remove, number) -> None:
        if (of := self.any_of(number, self.machine.pods.sandboxes)) is not None:
            self.begun((self.machine.pods.remove_sandbox if remove else self.machine.pods.stop_sandbox)(of))

    @rule(number=NUMBERS)
    def ends(self, number) -> None:
        if (pid := self.any_of(number, self.machine.kernel.processes)) is not None:
            self.machine.kernel.exit(pid, 1)

    @rule(number=NUMBERS)
    def warden_dies(self, number) -> None:
        async def kill() -> None:
            self.machine.host.kill_warden(of)

        if (of := self.any_of(number, self.machine.host.wardens)) is not None:
            self.run(kill())

    @rule(at=st.integers(0, 5))
    def kernel_fails(self, at) -> None:
        self.machine.kernel.count_from_here(at)

    @rule()
    def wait(self) -> None:
        self.settle()

    @rule()
    def daemon_dies(self) -> None:
        """What the next one tells a new subscriber, together with what it lists, is the truth again."""
        self.settle()
        self.run(self.machine.crash())
        for pid in list(self.machine.kernel.processes)[::2]:
            self.machine.kernel.exit(pid, 9)
        known = listed(self.machine)
        self.run(self.machine.start())
        self.subscriber = self.run(self.machine.listen())
        heard = self.run(self.subscriber.settle())
        told_now = follow(heard)
        gone = known.keys() - listed(self.machine).keys()
        assert {of: how for of, how in (known | told_now).items() if of not in gone} == listed(self.machine)
        self.subscriber.heard[:0] = [
            v1.ContainerEventResponse(container_id=of, container_event_type=kind, pod_sandbox_status=v1.PodSandboxStatus(id=""))
            for of, how in known.items() if of not in gone
            for kind, state in _STATE.items() if state == how
        ]  # fmt: skip

    def settle(self) -> None:
        self.machine.kernel.count_from_here()
        if self.under_way:
            self.run(asyncio.wait(self.under_way))
            self.under_way.clear()
        for _ in range(3):  # what the deaths of wardens and processes lead to
            self.run(asyncio.sleep(0.002))
        self.run(self.subscriber.settle())

    @invariant()
    def times_rise(self) -> None:
        if hasattr(self, "subscriber"):
            times = [event.created_at for event in self.subscriber.heard if event.created_at]
            assert times == sorted(set(times))

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.settle()
            assert follow(self.subscriber.heard) == listed(self.machine)
            cache = Cache()
            for event in self.subscriber.heard:
                cache.take(event)
            for sandbox in self.machine.pods.visible_sandboxes():
                if sandbox.id in cache.pods:
                    shown = {one.id: one for one in Moment.of(sandbox).sandbox.containers.values()}
                    known = {of: state for of, state in cache.pods[sandbox.id][1].items() if of in shown}
                    assert known == {of: encode.container_state(one) for of, one in shown.items()}
            self.run(self.machine.crash())
            self.directory.cleanup()
        self.loop.close()


def test_who_follows_the_events_knows_what_the_lists_say() -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_message_of_a_moment_is_of_that_moment(tmp_path) -> None:
    """However late, and whatever has become of the pod, it says what was."""

    async def run() -> None:
        machine = await Machine(tmp_path).start()
        pod = await machine.pod()
        container = await machine.container(pod)
        moment = Moment.of(machine.pods.sandboxes[pod])
        await machine.pods.remove_sandbox(pod)
        shown, containers = await machine.statuses.of_pod(moment)
        assert v1.PodSandboxStatus.parse(shown).state == READY
        assert [v1.ContainerStatus.parse(one).state for one in containers] == [RUNNING]
        assert v1.ContainerStatus.parse(containers[0]).id == container
        await machine.crash()

    asyncio.run(run())
    assert statuses.FEW > 1
