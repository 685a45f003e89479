"""What the kubelet of these tests decides, without a runtime: it must be as a real one's, or its tests show nothing."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from cri.rpc import descriptors
from tests.kubelet import actions, container_logs, manager
from tests.kubelet.actions import BackOff, decide
from tests.kubelet.configs import container_resources
from tests.kubelet.specs import Container, Pod, Restart
from tests.kubelet.statuses import PodStatus, SandboxState, State

FIRST, SIDECAR, SECOND = (
    Container("first", "i"),
    Container("sidecar", "i", sidecar=True),
    Container("second", "i"),
)
MAIN, OTHER = Container("main", "i"), Container("other", "i")
ALL = Pod("all", [MAIN, OTHER], init_containers=[FIRST, SIDECAR, SECOND])


def sandbox(state: SandboxState = SandboxState.SANDBOX_READY, attempt: int = 0, ip: str = "10.0.0.2") -> Any:
    return descriptors.strict_class("runtime.v1.PodSandboxStatus")(
        id=f"sandbox{attempt}", state=state, metadata={"attempt": attempt}, network={"ip": ip}
    )


def container(name: str, state: State, code: int = 0, finished: int = 0) -> Any:
    return descriptors.strict_class("runtime.v1.ContainerStatus")(
        id=name, metadata={"name": name}, state=state, exit_code=code, finished_at=finished
    )


RUNS, ENDED, CREATED, UNKNOWN = (
    State.CONTAINER_RUNNING,
    State.CONTAINER_EXITED,
    State.CONTAINER_CREATED,
    State.CONTAINER_UNKNOWN,
)


def status(*containers: Any, sandboxes: list[Any] | None = None) -> PodStatus:
    return PodStatus("u", "n", "ns", [sandbox()] if sandboxes is None else sandboxes, list(containers))


def starts(pod: Pod, *containers: Any) -> list[str]:
    return [spec.name for spec in decide(pod, status(*containers), ()).start]


def test_a_pod_begins_with_its_first_init_container() -> None:
    found = decide(ALL, status(sandboxes=[]), ())
    assert (found.create_sandbox, found.attempt, found.start) == (True, 0, [FIRST])
    assert decide(Pod("p", [MAIN, OTHER]), status(sandboxes=[]), ()).start == [MAIN, OTHER]


@pytest.mark.parametrize(
    "sandboxes",
    [
        [sandbox(SandboxState.SANDBOX_NOTREADY, 4)],
        [sandbox(attempt=4), sandbox(attempt=3)],
        [sandbox(attempt=4, ip="")],
    ],
    ids=["not ready", "two are ready", "no address"],
)
def test_a_sandbox_that_will_not_do_is_replaced(sandboxes) -> None:
    found = decide(ALL, status(sandboxes=sandboxes), ())
    assert (found.create_sandbox, found.kill_pod, found.attempt) == (True, True, 5)


def test_init_containers_follow_one_another() -> None:
    done = container("first", ENDED)
    assert starts(ALL) == ["first"]
    assert starts(ALL, container("first", RUNS)) == []
    assert starts(ALL, container("first", CREATED)) == ["first"]
    assert starts(ALL, container("first", ENDED, 1)) == ["first"]
    assert starts(ALL, done) == ["sidecar"]
    assert starts(ALL, done, container("sidecar", RUNS)) == ["second"]
    assert starts(ALL, done, container("sidecar", ENDED)) == ["sidecar"]
    assert starts(ALL, done, container("sidecar", RUNS), container("second", RUNS)) == []
    over = [done, container("sidecar", RUNS), container("second", ENDED)]
    assert starts(ALL, *over) == ["main", "other"]
    both = [container("main", RUNS), container("other", RUNS)]
    assert starts(ALL, *over, *both) == []
    # What is long past may have been removed; a sidecar is there as long as the pod.
    assert starts(ALL, *both) == ["sidecar"]
    assert starts(ALL, container("sidecar", ENDED, 3), *both) == ["sidecar"]


def test_a_failed_init_container_ends_a_pod_that_is_never_restarted() -> None:
    pod = Pod("p", [MAIN], init_containers=[FIRST], restart=Restart.NEVER)
    found = decide(pod, status(container("first", ENDED, 1)), ())
    assert (found.kill_pod, found.create_sandbox, found.start) == (True, False, [])


@pytest.mark.parametrize(
    ("restart", "code", "again"),
    [
        (Restart.ALWAYS, 0, True),
        (Restart.ALWAYS, 1, True),
        (Restart.ON_FAILURE, 0, False),
        (Restart.ON_FAILURE, 1, True),
        (Restart.NEVER, 1, False),
    ],
)
def test_policies(restart, code, again) -> None:
    found = decide(Pod("p", [MAIN], restart=restart), status(container("main", ENDED, code)), ())
    assert found.start == ([MAIN] if again else [])
    assert found.kill_pod is not again, "a pod in which nothing is left to run is ended"


def test_unhealthy_and_unknown_containers_end_first() -> None:
    found = decide(
        Pod("p", [MAIN, OTHER]), status(container("main", RUNS), container("other", UNKNOWN)), {"main"}
    )
    assert found.kill == {"main": MAIN, "other": OTHER}
    assert found.start == [MAIN, OTHER]


def test_back_off_doubles_and_is_forgotten(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(actions.time, "time", lambda: now[0])
    back_off = BackOff(10, 40)
    pod = Pod("p", [MAIN])

    def left(finished: float) -> float:
        return back_off.left(pod, MAIN, status(container("main", ENDED, 1, int(finished * 1e9))))

    assert back_off.left(pod, MAIN, status()) == 0
    waits = []
    for _ in range(5):
        ended = now[0]
        waits.append(left(ended))
        now[0] += waits[-1]
        assert not waits[-1] or left(ended) == 0
    assert waits == [0, 10, 20, 40, 40]
    now[0] += 200
    assert left(now[0]) == 0


def test_sidecars_end_last_and_in_reverse() -> None:
    later = Container("later", "i", sidecar=True)
    pod = Pod("p", [MAIN, OTHER], init_containers=[FIRST, SIDECAR, later])
    waits = manager._termination_order(pod, ["main", "sidecar", "later"])
    assert waits == {"main": [], "later": ["main"], "sidecar": ["main", "later"]}


@pytest.mark.parametrize(
    ("spec", "qos", "shares", "quota", "score"),
    [
        (Container("c", "i"), "besteffort", 2, 0, 1000),
        (Container("c", "i", cpu_limit=250, memory_limit=1 << 20), "", 256, 25_000, -997),
        (Container("c", "i", cpu_request=1000), "burstable", 1024, 0, 999),
        (Container("c", "i", cpu_limit=1, memory_request=1 << 60), "burstable", 2, 1000, 3),
    ],
)
def test_quality_of_service(spec, qos, shares, quota, score) -> None:
    pod = Pod("p", [spec])
    found = container_resources(pod, spec)
    assert pod.qos == qos
    assert (found.cpu_shares, found.cpu_quota, found.oom_score_adj) == (shares, quota, score)


def test_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    stamp = "2026-01-01T00:00:00.00000000"
    log.write_text(
        f"{stamp}1Z stdout F one\n{stamp}2Z stdout P be\n{stamp}3Z stderr F between\n{stamp}4Z stdout F gun\n"
        f"{stamp}5Z stdout F \n"
    )
    old = tmp_path / "0.log.20260101-000000.gz"
    old.write_bytes(gzip.compress(f"{stamp}0+00:00 stdout F zero  \n".encode()))
    first = 1767225600 * 10**9
    assert [(line.nanoseconds - first, line.stream, line.text) for line in container_logs.read_all(log)] == [
        (0, "stdout", "zero  "),
        (1, "stdout", "one"),
        (3, "stderr", "between"),
        (2, "stdout", "begun"),
        (5, "stdout", ""),
    ]
    for wrong in ("2026-01-01T00:00:00.1Z stdout F x", "2026-01-01T00:00:00.000000000Z stdout X x"):
        log.write_text(f"{wrong}\n")
        with pytest.raises(ValueError):
            container_logs.read(log)
