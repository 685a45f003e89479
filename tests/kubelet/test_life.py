"""Pods come, fail, are started again and go: what the kubelet relies on at each step."""

from __future__ import annotations

import itertools
import time

import pytest

from cri.api.runtime import v1
from tests.kubelet import container_logs
from tests.kubelet.conftest import BACK_OFF
from tests.kubelet.images import USER
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.node import Node
from tests.kubelet.pleg import Kind
from tests.kubelet.specs import Container, Pod, Probe, Restart
from tests.kubelet.statuses import SandboxState, State, termination_message

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

SLEEP = ("sleep", "1000")
GIGABYTE = 1 << 30
INTRODUCTION = (
    "echo to $GREETING; echo $KUBERNETES_SERVICE_HOST; touch /work/mine; "
    "cat /work/order; id -u; id -G; cat /etc/hosts; exec sleep 1000"
)


def texts(status) -> list[str]:
    """What a container has printed."""
    return [line.text for line in container_logs.read(container_logs.Path(status.log_path))]


def in_order(*statuses) -> None:
    """Times of attempts that followed one another are nanoseconds, and rise."""
    times = [
        time for each in statuses for time in (each.created_at, each.started_at, each.finished_at) if time
    ]
    assert times == sorted(times)
    now = time.time_ns()
    assert all(now - 3600 * 10**9 < each <= now for each in times)
    assert any(each % 1_000_000 for each in times), "no nanoseconds"


async def test_a_pod_starts(kubelet: Kubelet, node: Node) -> None:
    image = node.images.shell
    pod = Pod(
        "web",
        volumes=["shared"],
        fs_group=2000,
        supplemental_groups=[3000],
        labels={"app": "web"},
        annotations={"example.org/note": "kept"},
        init_containers=[
            Container(
                "first", image, ["sh", "-c"], ["echo first >/work/order"], volume_mounts={"/work": "shared"}
            ),
            Container(
                "sidecar",
                image,
                ["sh", "-c", "echo sidecar >>/work/order; touch /work/up; exec sleep 1000"],
                sidecar=True,
                volume_mounts={"/work": "shared"},
            ),
            Container(
                "second",
                image,
                # It starts as soon as the sidecar runs, which may be before that has printed.
                ["sh", "-c", "while [ ! -e /work/up ]; do sleep 0.1; done; echo second >>/work/order"],
                volume_mounts={"/work": "shared"},
            ),
        ],
        containers=[
            Container(
                "main",
                image,
                ["sh", "-c"],
                [INTRODUCTION],
                env={"GREETING": "the world"},
                cpu_request=100,
                cpu_limit=500,
                memory_request=GIGABYTE // 16,
                memory_limit=GIGABYTE // 8,
                volume_mounts={"/work": "shared"},
                run_as_user=USER,
                allow_privilege_escalation=False,
            ),
            Container("other", image, SLEEP, read_only_root=True),
        ],
    )
    await kubelet.runtime("RemoveImage", image=v1.ImageSpec(image=image))
    mark = len(kubelet.runtime.calls)
    kubelet.add(pod)
    await kubelet.step()
    assert kubelet.runtime.order_since(mark) == [
        *("ListPodSandbox", "ListContainers"),
        *("RunPodSandbox", "PodSandboxStatus", "ImageStatus", "PullImage", "ImageStatus"),
        *("CreateContainer", "StartContainer"),
    ]
    events = []
    while not kubelet.is_running(pod):
        events += await kubelet.step()
    events += await kubelet.step()
    status = kubelet.status(pod)
    (sandbox,) = status.sandboxes
    assert (sandbox.state, sandbox.metadata.attempt) == (SandboxState.SANDBOX_READY, 0)
    assert sandbox.labels["app"] == "web"
    assert sandbox.annotations["example.org/note"] == "kept"
    assert sandbox.linux.namespaces.options.pid == v1.NamespaceMode.CONTAINER
    known = {each.metadata.name: each for each in status.containers}
    assert len({sandbox.id, *(each.id for each in status.containers)}) == 6
    first, sidecar, second, main, other = (known[each.name] for each in pod.all_containers)
    for each in (first, second):
        assert (each.state, each.exit_code, each.reason) == (State.CONTAINER_EXITED, 0, "Completed")
        in_order(each)
    for each in (sidecar, main, other):
        assert (each.state, each.finished_at, each.reason) == (State.CONTAINER_RUNNING, 0, "")
    assert sandbox.created_at < first.created_at
    assert first.finished_at < sidecar.created_at
    assert sidecar.started_at < second.created_at
    assert second.finished_at < main.created_at < other.created_at

    started = {event.id for event in events if event.kind is Kind.STARTED}
    assert {sandbox.id, sidecar.id, main.id, other.id} <= started
    assert {event.id for event in events if event.kind is Kind.DIED} == {first.id, second.id}

    listed = (await kubelet.manager.pods(pod.uid))[pod.uid]
    (pulled,) = [one for one in (await kubelet.runtime("ListImages")).images if image in one.repo_tags]
    assert {one.image_id for one in listed.containers} == {pulled.id}
    assert {each.image_id for each in status.containers} == {pulled.id}
    assert {one.image_ref for one in listed.containers} == {each.image_ref for each in status.containers}
    assert {each.image.user_specified_image for each in status.containers} == {image}

    assert main.log_path == str(kubelet.places.container_logs(pod, "main") / "0.log")
    while len(texts(main)) < 8:
        await kubelet.step()
    greeting, service, *rest = texts(main)
    assert (greeting, service) == ("to the world", "10.96.0.1")
    assert rest[:4] == ["first", "sidecar", "second", str(USER)]
    assert {"2000", "3000"} <= set(rest[4].split())
    assert any(line.split() == [status.ips[0], "web"] for line in rest[5:])
    volume = kubelet.places.volume(pod, "shared")
    assert (volume / "order").read_text() == "first\nsidecar\nsecond\n"
    assert ((volume / "mine").stat().st_uid, (volume / "mine").stat().st_gid) == (USER, 2000)
    assert main.resources.linux.memory_limit_in_bytes == GIGABYTE // 8
    assert main.resources.linux.cpu_quota == 50_000
    assert main.user.linux.uid == USER
    code, _ = await kubelet.manager.exec(other.id, ["touch", "/tmp/x"], 10)
    assert code != 0, "the root is to be read-only"


async def test_a_failing_container_is_restarted_later_and_later(kubelet: Kubelet, node: Node) -> None:
    script = "echo attempt; echo because >/dev/termination-log; exit 3"
    pod = Pod(
        "crash",
        [
            Container("crash", node.images.shell, ["sh", "-c", script]),
            Container(
                "talker",
                node.images.shell,
                ["sh", "-c", "echo last words >&2; exit 4"],
                message_from_logs=True,
            ),
            Container("steady", node.images.shell, SLEEP),
        ],
    )
    kubelet.add(pod)

    def attempt(name: str) -> int:
        known = kubelet.status(pod).container(name)
        return -1 if known is None or known.state != State.CONTAINER_EXITED else known.metadata.attempt

    await kubelet.until(lambda: attempt("crash") >= 3 and attempt("talker") >= 3)
    status = await kubelet.manager.status_of(pod)
    steady = status.container("steady")
    for name, code, message in (("crash", 3, "because\n"), ("talker", 4, "last words\n")):
        attempts = status.attempts(name)
        assert [each.metadata.attempt for each in attempts] == list(range(len(attempts)))
        assert len({each.id for each in attempts}) == len(attempts)
        for number, each in enumerate(attempts):
            assert (each.state, each.exit_code, each.reason) == (State.CONTAINER_EXITED, code, "Error")
            assert each.annotations["io.kubernetes.container.restartCount"] == str(number)
            assert each.log_path == str(kubelet.places.container_logs(pod, name) / f"{number}.log")
            assert len(texts(each)) == 1, "each attempt has a log of its own"
            assert termination_message(each).endswith(message)
        in_order(*attempts)
        waited = [
            (after.created_at - before.finished_at) / 1e9 for before, after in itertools.pairwise(attempts)
        ]
        assert waited[1] >= BACK_OFF
        assert waited[2] >= 2 * BACK_OFF
    assert steady.metadata.attempt == 0
    assert steady.state == State.CONTAINER_RUNNING

    # The collection leaves the last of each, and its log.
    await kubelet.collection.collect()
    after = await kubelet.manager.status_of(pod)
    assert [each.id for each in after.attempts("crash")] == [status.attempts("crash")[-1].id]
    logs = kubelet.places.container_logs(pod, "crash")
    assert [path.name for path in logs.iterdir()] == [f"{after.attempts('crash')[0].metadata.attempt}.log"]


async def test_a_container_that_fails_its_probes_is_replaced(kubelet: Kubelet, node: Node) -> None:
    script = "trap 'echo told to end; exit 0' TERM; touch /tmp/healthy; while :; do sleep 0.1; done"
    alive = Probe(["sh", "-c", "echo probed; cat /tmp/healthy"], timeout_seconds=5, failure_threshold=2)
    slow = Probe(["sleep", "30"], timeout_seconds=1, failure_threshold=1)
    pod = Pod(
        "probed",
        [
            Container("sick", node.images.shell, ["sh", "-c", script], liveness=alive),
            Container("stuck", node.images.shell, SLEEP, liveness=slow),
        ],
        grace_seconds=2,
    )
    await kubelet.run(pod)
    sick, stuck = (kubelet.status(pod).container(name) for name in ("sick", "stuck"))
    while (await kubelet.manager.exec(sick.id, ["cat", "/tmp/healthy"], 5))[0]:
        pass
    assert await kubelet.prober.is_alive(sick.id, alive)
    assert await kubelet.manager.exec(sick.id, ["rm", "/tmp/healthy"], 5) == (0, b"")
    code, output = await kubelet.manager.exec(sick.id, alive.command, 5)
    assert code != 0
    assert output.startswith(b"probed\n")

    began = time.monotonic()
    assert not await kubelet.prober.is_alive(stuck.id, slow), "a probe that takes too long has failed"
    assert 1.0 <= time.monotonic() - began < 15.0
    await kubelet.liveness()
    await kubelet.liveness()
    assert kubelet.manager.unhealthy == {sick.id, stuck.id}

    def replaced() -> bool:
        now = [kubelet.status(pod).container(name) for name in ("sick", "stuck")]
        return kubelet.is_running(pod) and not {sick.id, stuck.id} & {each.id for each in now}

    await kubelet.until(replaced)
    status = kubelet.status(pod)
    old_sick, old_stuck = status.attempts("sick")[0], status.attempts("stuck")[0]
    assert (old_sick.exit_code, old_sick.reason) == (0, "Completed")
    assert texts(old_sick) == ["told to end"]
    assert old_stuck.exit_code in (137, 143), "sleep is pid 1 and may pass over TERM"
    assert [status.container(name).metadata.attempt for name in ("sick", "stuck")] == [1, 1]


async def test_jobs_end(kubelet: Kubelet, node: Node) -> None:
    image = node.images.shell
    once = Pod("once", [Container("work", image, ["sh", "-c", "echo done; exit 5"])], restart=Restart.NEVER)
    again = Pod(
        "again",
        [
            Container(
                "work",
                image,
                ["sh", "-c", "if cat /work/tried; then exit 0; fi; echo >/work/tried; exit 6"],
                volume_mounts={"/work": "shared"},
            )
        ],
        volumes=["shared"],
        restart=Restart.ON_FAILURE,
    )
    uninitialized = Pod(
        "uninitialized",
        [Container("work", image, SLEEP)],
        init_containers=[Container("init", image, ["sh", "-c", "exit 7"])],
        restart=Restart.NEVER,
    )
    jobs = (once, again, uninitialized)
    kubelet.add(*jobs)

    def stopped(pod: Pod) -> bool:
        sandboxes = kubelet.status(pod).sandboxes
        return bool(sandboxes) and sandboxes[0].state == SandboxState.SANDBOX_NOTREADY

    await kubelet.until(lambda: all(map(stopped, jobs)))
    statuses = [kubelet.status(pod) for pod in jobs]
    codes = [[each.exit_code for each in reversed(status.containers)] for status in statuses]
    assert codes == [[5], [6, 0], [7]]
    assert [len(status.sandboxes) for status in statuses] == [1, 1, 1]
    assert all(status.ips for status in statuses), "an ended pod is shown with the address that it had"
    for _ in range(3):
        assert await kubelet.step() == [], "nothing is left to do"


async def test_a_lost_sandbox_is_replaced(kubelet: Kubelet, node: Node) -> None:
    image = node.images.shell
    pod = Pod(
        "lost",
        [Container("main", image, SLEEP)],
        init_containers=[Container("init", image, ["sh", "-c", "echo initialized"])],
    )
    await kubelet.run(pod)
    before = kubelet.status(pod)
    # As `crictl stopp` does behind the kubelet's back.
    await kubelet.runtime("StopPodSandbox", pod_sandbox_id=before.sandboxes[0].id)

    def replaced() -> bool:
        sandboxes = kubelet.status(pod).sandboxes
        return kubelet.is_running(pod) and sandboxes[0].id != before.sandboxes[0].id

    await kubelet.until(replaced)
    status = kubelet.status(pod)
    assert [each.metadata.attempt for each in status.sandboxes] == [1, 0]
    assert status.ips
    old, new = status.attempts("main")
    assert (old.state, old.exit_code, old.reason) == (State.CONTAINER_EXITED, 137, "Error")
    assert (new.state, new.metadata.attempt) == (State.CONTAINER_RUNNING, 1)
    (init,) = status.attempts("init")
    assert init.created_at > status.sandboxes[0].created_at, "a new sandbox is initialized anew"

    await kubelet.collection.collect(per_container=0)
    after = await kubelet.manager.status_of(pod)
    assert [each.id for each in after.sandboxes] == [status.sandboxes[0].id]
    assert [each.id for each in after.containers] == [new.id]
    assert await kubelet.step() != []
    assert kubelet.is_running(pod), "what was collected is not started again"


async def test_a_deleted_pod_ends_in_its_own_time(kubelet: Kubelet, node: Node) -> None:
    image = node.images.shell
    polite = "trap 'echo ending; sleep 1; echo ended; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    pod = Pod(
        "deleted",
        [
            Container(
                "polite",
                image,
                ["sh", "-c", polite],
                pre_stop=["sh", "-c", "echo hook >/work/hook"],
                volume_mounts={"/work": "shared"},
            ),
            Container("deaf", image, ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]),
        ],
        init_containers=[
            Container(
                "sidecar",
                image,
                ["sh", "-c", "trap 'exit 8' TERM; echo up; while :; do sleep 0.1; done"],
                sidecar=True,
            )
        ],
        volumes=["shared"],
        grace_seconds=4,
    )
    await kubelet.run(pod)
    # A shell that has said so has its traps.
    await kubelet.until(lambda: all(texts(each)[:1] == ["up"] for each in kubelet.status(pod).containers))
    volume = kubelet.places.volume(pod, "shared")
    began, mark = time.time_ns(), len(kubelet.runtime.calls)
    last = await kubelet.manager.terminate(pod)
    took = (time.time_ns() - began) / 1e9
    assert kubelet.runtime.order_since(mark) == [
        *("ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus"),
        *("StopContainer", "ExecSync", "StopContainer", "StopPodSandbox"),
        *("ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus"),
    ]
    polite_, deaf, sidecar = (last.container(name) for name in ("polite", "deaf", "sidecar"))
    assert (volume / "hook").read_text() == "hook\n"
    assert (polite_.exit_code, polite_.reason) == (9, "Error")
    assert texts(polite_) == ["up", "ending", "ended"]
    assert (deaf.exit_code, deaf.reason) == (137, "Error")
    assert sidecar.exit_code in (8, 137)
    # A sidecar waits for the others, but not for longer than the pod's grace, which is all that the deaf one has.
    assert polite_.finished_at < min(deaf.finished_at, sidecar.finished_at)
    assert (sidecar.finished_at - began) / 1e9 >= 3.9
    assert 4 <= (deaf.finished_at - began) / 1e9 < took
    assert last.sandboxes[0].state == SandboxState.SANDBOX_NOTREADY

    # Deleted for good; a kubelet may do every step of it twice.
    await kubelet.delete(pod)
    for rpc, field, one in (
        ("StopContainer", "container_id", deaf.id),
        ("RemoveContainer", "container_id", deaf.id),
        ("StopPodSandbox", "pod_sandbox_id", last.sandboxes[0].id),
        ("RemovePodSandbox", "pod_sandbox_id", last.sandboxes[0].id),
    ):
        await kubelet.runtime(rpc, **{field: one})
    assert not kubelet.places.pod_logs(pod).exists()
    assert pod.uid not in kubelet.cache.statuses
