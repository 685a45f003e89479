"""Starts that cannot work, on a real kernel: each ends at once, and is in nobody's way afterwards."""

from __future__ import annotations

import functools
import http.server
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import grpc
import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

EXITED = v1.ContainerState.CONTAINER_EXITED
PATIENCE = 2.0


def resources(**fields):
    return {"linux": v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(**fields))}


def security(**fields):
    return {"linux": v1.LinuxContainerConfig(security_context=v1.LinuxContainerSecurityContext(**fields))}


def pid_of(mode, target: str = ""):
    return security(namespace_options=v1.NamespaceOption(pid=mode, target_id=target))


def check_ended(daemon, pod: str, container: str, *, codes=((128, "StartError"),)) -> None:
    """It has ended, and container and pod go without delay."""
    began = time.monotonic()
    status = daemon.wait(container, EXITED, PATIENCE)
    assert (status.exit_code, status.reason) in codes, status
    assert status.message or status.reason != "StartError"
    assert status.finished_at > 0
    daemon.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=30))
    daemon.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))
    daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert time.monotonic() - began < PATIENCE


IMAGES = {
    "proc is a file": {"proc": "no directory"},
    "dev is a file": {"dev": "no directory"},
    "hosts is a directory": {"etc/hosts/inside": "no file"},
    "600 layers": {},
}


@pytest.fixture(scope="module")
def hostile_registry(registry, tmp_path_factory):
    """The address of a file server with an image for each of IMAGES."""
    base = tmp_path_factory.mktemp("hostile")
    addresses = {}
    for number, (name, files) in enumerate(IMAGES.items()):
        root = base / f"{number}/root"
        (root / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/sleep")
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
        lines = ["FROM scratch", "COPY root/ /"]
        if name == "600 layers":
            (base / f"{number}/file").write_text("content")
            lines += [f"COPY file /layer-{layer}" for layer in range(599)]
        (base / f"{number}/Containerfile").write_text("\n".join(lines) + "\n")
        subprocess.run(
            [
                *(sys.executable, "-m", "baustelle", "build", "-f", base / f"{number}/Containerfile"),
                *("-t", f"localhost/hostile{number}:latest"),
                *("--layout", base / f"layout{number}", "--tree", base / "tree"),
                base / str(number),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        addresses[name] = f"hostile{number}:latest"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=base / "tree")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield {name: f"localhost:{server.server_port}/{image}" for name, image in addresses.items()}
        server.shutdown()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_cannot_run(module_daemon, hostile_registry, name, monkeypatch) -> None:
    image = hostile_registry[name]
    module_daemon.client("PullImage", v1.PullImageRequest(image=v1.ImageSpec(image=image)))
    monkeypatch.setattr(module_daemon, "image", image)
    pod = module_daemon.pod(f"image-{list(IMAGES).index(name)}")
    container = module_daemon.container(pod, "/bin/sleep", "1000", start=False)
    with pytest.raises(grpc.RpcError):
        module_daemon.client("StartContainer", v1.StartContainerRequest(container_id=container))
    check_ended(module_daemon, pod, container)
    module_daemon.client("RemoveImage", v1.RemoveImageRequest(image=v1.ImageSpec(image=image)))


@pytest.fixture
def volume(module_daemon):
    path = module_daemon.base / "volume"
    path.mkdir(exist_ok=True)
    (path / "file").write_text("content")
    return path


@pytest.fixture(autouse=True)
def image(module_daemon):
    module_daemon.pull()


WAYS = {
    # Of which the kernel takes some for the group inside.
    "memory of fifty pages": lambda volume: resources(memory_limit_in_bytes=200 << 10),
    "directory on a file": lambda volume: {
        "mounts": [v1.Mount(host_path=str(volume), container_path="/etc/passwd")]
    },
    "file on a directory": lambda volume: {
        "mounts": [v1.Mount(host_path=str(volume / "file"), container_path="/bin")]
    },
    "cwd is a file": lambda volume: {"working_dir": "/etc/passwd"},
    "cwd is a descriptor": lambda volume: {"working_dir": "/proc/self/fd/5"},
    "no such user": lambda volume: security(run_as_username="nobody-of-that-name"),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_cannot_start(module_daemon, volume, way) -> None:
    pod = module_daemon.pod(f"fails-{list(WAYS).index(way)}")
    container = module_daemon.container(pod, "sleep", "1000", start=False, **WAYS[way](volume))
    with pytest.raises(grpc.RpcError):
        module_daemon.client("StartContainer", v1.StartContainerRequest(container_id=container))
    check_ended(module_daemon, pod, container)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (security(capabilities=v1.Capability(add_capabilities=["CAP_NO_SUCH_THING"])), "capability"),
        ({"name": "n" * 300}, "log_path"),  # which is made of it
        (resources(memory_limit_in_bytes=4096), "memory.limit_in_bytes|memory.max"),
    ],
    ids=["unknown capability", "name of 300 characters", "memory of one page"],
)
def test_it_is_refused_before_it_is_made(module_daemon, fields, message) -> None:
    pod = module_daemon.pod(f"refused-{message}")
    with pytest.raises(grpc.RpcError, match=message) as refused:
        module_daemon.container(pod, "sleep", "1000", start=False, **fields)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    of_pod = v1.ListContainersRequest(filter=v1.ContainerFilter(pod_sandbox_id=pod))
    assert not module_daemon.client("ListContainers", of_pod).containers
    module_daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_a_target_that_has_ended(module_daemon) -> None:
    pod = module_daemon.pod("target")
    target = module_daemon.container(pod, "true", name="target")
    module_daemon.wait(target, EXITED)
    container = module_daemon.container(
        pod, "sleep", "1000", start=False, **pid_of(v1.NamespaceMode.TARGET, target)
    )
    with pytest.raises(grpc.RpcError):
        module_daemon.client("StartContainer", v1.StartContainerRequest(container_id=container))
    check_ended(module_daemon, pod, container)


def test_processes_of_a_pod_that_shares_none(module_daemon) -> None:
    pod = module_daemon.pod("alone")
    container = module_daemon.container(pod, "sleep", "1000", start=False, **pid_of(v1.NamespaceMode.POD))
    try:
        module_daemon.client("StartContainer", v1.StartContainerRequest(container_id=container))
    except grpc.RpcError:
        check_ended(module_daemon, pod, container)
    else:
        module_daemon.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=0))
        check_ended(module_daemon, pod, container, codes=((137, "Error"),))


def test_a_volume_that_went_in_between(module_daemon) -> None:
    gone = module_daemon.base / "gone"
    gone.mkdir()
    pod = module_daemon.pod("volume")
    mounts = [v1.Mount(host_path=str(gone), container_path="/data")]
    container = module_daemon.container(pod, "sleep", "1000", start=False, mounts=mounts)
    gone.rmdir()
    with pytest.raises(grpc.RpcError, match="gone"):
        module_daemon.client("StartContainer", v1.StartContainerRequest(container_id=container))
    check_ended(module_daemon, pod, container)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "link", "device"])
def test_a_log_that_cannot_be_opened(module_daemon, kind) -> None:
    """None of them holds the warden: it answers the other container's exec while they are tried."""
    pod = module_daemon.pod(f"log-{kind}")
    other = module_daemon.container(pod, "sleep", "1000", name="other")
    container = module_daemon.container(pod, "sleep", "1000", start=False, name="c")
    path = module_daemon.log_of(container)
    if kind == "missing":
        module_daemon.logs.rename(module_daemon.base / "elsewhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, 0o20666, os.makedev(5, 0))
    else:
        path.symlink_to("/etc/passwd")
    with pytest.raises(grpc.RpcError, match="open log"):
        module_daemon.client("StartContainer", v1.StartContainerRequest(container_id=container))
    if kind == "missing":
        (module_daemon.base / "elsewhere").rename(module_daemon.logs)
    assert module_daemon.exec(other, "echo", "here").stdout == b"here\n"
    check_ended(module_daemon, pod, container)
    if kind == "directory":
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def test_a_log_that_is_no_file_any_more(module_daemon) -> None:
    pod = module_daemon.pod("rotated")
    container = module_daemon.container(pod, "sh", "-c", "while true; do echo line; sleep 0.05; done")
    path = module_daemon.log_of(container)
    rotated = path.rename(f"{path}.1")
    os.mkfifo(path)
    with pytest.raises(grpc.RpcError, match=r"not a regular file|No such device"):
        module_daemon.client("ReopenContainerLog", v1.ReopenContainerLogRequest(container_id=container))
    size = rotated.stat().st_size
    time.sleep(0.3)
    assert rotated.stat().st_size > size, "it goes on with the old one"
    path.unlink()
    module_daemon.client("ReopenContainerLog", v1.ReopenContainerLogRequest(container_id=container))
    module_daemon.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=0))
    check_ended(module_daemon, pod, container, codes=((137, "Error"),))


def test_stops_at_random_moments_of_a_start(module_daemon) -> None:
    moments = random.Random(10)
    pod = module_daemon.pod("race")
    for number in range(100):
        container = module_daemon.container(pod, "sleep", "1000", name=f"c{number}", start=False)

        def start(container=container) -> None:
            try:
                module_daemon.client("StartContainer", v1.StartContainerRequest(container_id=container))
            except grpc.RpcError:
                return

        starting = threading.Thread(target=start)
        starting.start()
        time.sleep(moments.uniform(0, 0.02))
        deadline = time.monotonic() + PATIENCE
        # What comes before its start is no stop of it; the kubelet stops again and again, too.
        while True:
            module_daemon.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=0))
            status = module_daemon.status(container).status
            if status.state == EXITED:
                break
            assert time.monotonic() < deadline, status
        starting.join()
        assert (status.exit_code, status.reason) in ((128, "StartError"), (137, "Error")), status
        module_daemon.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))
    module_daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
