"""A List answers from memory: a container that will not die and a registry that says nothing do not slow it down."""

from __future__ import annotations

import socket
import threading
import time

import grpc
import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

CALLS = 600
ALLOWED_RATIO = 3.0


def p99(daemon) -> float:
    """Seconds, of ListContainers calls one after another."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        daemon.client("ListContainers", v1.ListContainersRequest())
        times.append(time.perf_counter() - began)
    return sorted(times)[int(CALLS * 0.99)]


def test_lists_stay_fast_when_something_hangs(daemon):
    daemon.pull()
    pod = daemon.pod()
    for number in range(5):
        daemon.container(pod, "sleep", "1000", name=f"c{number}")
    stubborn = daemon.container(
        pod, "sh", "-c", "trap '' TERM; while true; do sleep 1; done", name="stubborn"
    )
    p99(daemon)  # warm-up
    idle = p99(daemon)

    silent = socket.create_server(("127.0.0.1", 0))
    hung = [
        ("StopContainer", v1.StopContainerRequest(container_id=stubborn, timeout=60)),
        (
            "PullImage",
            v1.PullImageRequest(
                image=v1.ImageSpec(image=f"localhost:{silent.getsockname()[1]}/silent:latest")
            ),
        ),
    ]
    outcomes: dict[str, grpc.StatusCode] = {}

    def hang(name: str, request: object) -> None:
        try:
            daemon.client(name, request, timeout=25)
        except grpc.RpcError as error:
            outcomes[name] = error.code()

    threads = [threading.Thread(target=hang, args=call) for call in hung]
    for thread in threads:
        thread.start()
    try:
        connection, _ = silent.accept()
        time.sleep(0.5)
        ratios = []
        for _ in range(3):
            ratios.append(p99(daemon) / idle)
            if ratios[-1] <= ALLOWED_RATIO:
                break
        print(f"ListContainers p99: idle {idle * 1e3:.2f} ms, ratios with two calls hung {ratios}")
        assert all(thread.is_alive() for thread in threads), "nothing hung: the test shows nothing"
        assert min(ratios) <= ALLOWED_RATIO
        assert daemon.status(stubborn).status.state == v1.ContainerState.CONTAINER_RUNNING
    finally:
        daemon.client("StopContainer", v1.StopContainerRequest(container_id=stubborn, timeout=0))
        connection.close()
        silent.close()
        for thread in threads:
            thread.join()
    assert "StopContainer" not in outcomes, "the second stop, without grace, ends the first"
