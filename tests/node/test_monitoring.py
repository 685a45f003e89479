"""What an operator sees of a daemon that runs: pages and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from cri.api.runtime import v1
from tests.node.conftest import Daemon, free_subnets, interfaces, packet_filter, running_daemon

pytestmark = pytest.mark.node


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def node(registry: str) -> Iterator[Daemon]:
    port = free_port()
    variable = f"CRI_JAILS_METRICS_ADDRESS=127.0.0.1:{port}"
    with running_daemon(registry, f"crio{os.getpid()}", ["env", variable]) as daemon:
        daemon.pages = f"http://127.0.0.1:{port}"
        yield daemon


def page(node: Daemon, path: str) -> str:
    with urllib.request.urlopen(f"{node.pages}{path}", timeout=10) as answer:
        return answer.read().decode()


def figures(node: Daemon) -> dict[str, float]:
    lines = [line for line in page(node, "/metrics").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_the_figures_are_those_of_the_node(node) -> None:
    node.pull()
    with pytest.raises(Exception, match="NOT_FOUND"):
        node.client("PullImage", v1.PullImageRequest(image=v1.ImageSpec(image=f"{node.registry}/none:1")))
    pod = node.pod("figures")
    node.container(pod, "sleep", "1000", name="runs")
    ended = node.container(pod, "true", name="ends")
    node.wait(ended, v1.ContainerState.CONTAINER_EXITED)
    found = figures(node)
    assert found['cri_jails_pods{state="ready"}'] == 1
    assert found['cri_jails_pods{state="notready"}'] == 0
    assert found['cri_jails_containers{state="running"}'] == 1
    assert found['cri_jails_containers{state="exited"}'] == 1
    assert found["cri_jails_wardens"] == 1
    assert found["cri_jails_images"] == 1
    assert found['cri_jails_image_pulls_total{outcome="pulled"}'] == 1
    assert found['cri_jails_image_pulls_total{outcome="not_found"}'] == 1
    assert found["cri_jails_image_pull_bytes_total"] > 100_000
    assert found['cri_jails_condition{type="RuntimeReady"}'] == 1
    assert found['cri_jails_condition{type="NetworkReady"}'] == 1
    assert found["cri_jails_state_writable"] == 1
    assert found["cri_jails_state_write_duration_seconds_count"] >= 6
    run = 'cri_jails_rpc_total{code="OK",rpc="RunPodSandbox",service="runtime.v1.RuntimeService"}'
    assert found[run] == 1
    deaths, lag = found["cri_jails_warden_deaths_total"], found["cri_jails_loop_lag_seconds_count"]
    info = node.client("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)).info
    os.kill(int(re.search(r'"pid": ?(\d+)', info["info"])[1]), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (found := figures(node))['cri_jails_pods{state="notready"}'] != 1:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found["cri_jails_warden_deaths_total"] == deaths + 1
    node.remove_all()
    time.sleep(1.1)
    found = figures(node)
    assert found["cri_jails_loop_lag_seconds_count"] > lag
    assert found["cri_jails_wardens"] == 0
    assert found['cri_jails_collected_total{of="directories"}'] >= 3


def test_health_and_readiness(node) -> None:
    assert page(node, "/healthz") == "ok\n"
    assert page(node, "/readyz") == "RuntimeReady: true\nNetworkReady: true\n"
    broken = node.base / "net.d/1.conflist"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("{")
    try:
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            page(node, "/readyz")
        assert "NetworkReady: false, NetworkConfigInvalid: " in refused.value.read().decode()
        assert figures(node)['cri_jails_condition{type="NetworkReady"}'] == 0
        assert page(node, "/healthz") == "ok\n"
    finally:
        broken.unlink()
    assert "NetworkReady: true" in page(node, "/readyz")


def test_a_daemon_says_what_it_is_doing(node) -> None:
    node.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while "end of tasks" not in (told := node.log.read_text()):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    assert "Thread 0x" in told
    assert "in watch" in told  # the task that looks at the node
    assert node.client("Version", v1.VersionRequest())


def test_a_changed_configuration_is_read_on_sighup(node) -> None:
    before = node.config.read_text()
    said = "the configuration was read anew"

    def reload(text: str, event: str) -> dict[str, object]:
        known = len(node.events(event))
        node.config.write_text(text)
        node.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while len(found := node.events(event)) == known:
            assert time.monotonic() < deadline, node.log.read_text()
            time.sleep(0.05)
        return found[-1]

    node.pull()
    mirrored = f'\n[registries."localhost:1"]\nmirrors = ["http://{node.registry}"]\n'
    image = v1.ImageSpec(image="localhost:1/busybox:latest")
    with pytest.raises(Exception, match="localhost:1"):
        node.client("PullImage", v1.PullImageRequest(image=image))
    other = before.replace(f'bridge = "{node.network}"', f'bridge = "{node.network}x"')
    other = other.replace(json.dumps(node.subnets), json.dumps(free_subnets()))  # the old bridge has those
    done = reload(other.replace('format = "json"', 'format = "json"\nlevel = "debug"') + mirrored, said)
    assert done["changed"] == ["log.level", "network.bridge", "network.subnets", 'registries."localhost:1"']
    node.client("PullImage", v1.PullImageRequest(image=image))
    assert node.events("request")  # which is said at the level debug
    pod = node.pod("reloaded")
    try:
        assert f"{node.network}x" in interfaces()
        refused = reload("[log\n", "the new configuration cannot be used; nothing has changed")
        assert "not TOML" in refused["error"]
        status = node.client("Status", v1.StatusRequest(verbose=True))
        assert f"{node.network}x" in status.info["config"]
    finally:
        node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert reload(before, said)["changed"] == done["changed"]
    deadline = time.monotonic() + 10
    while f"{node.network}x" in f"{interfaces()}{packet_filter()}":  # nobody uses that network any more
        assert time.monotonic() < deadline
        time.sleep(0.1)
