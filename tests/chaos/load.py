"""Random calls of a client and random kills, with what may come of them."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from cri.api.runtime import v1
from tests.chaos import inventory

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Client:
    """Blocking calls by RPC name, on a connection of its own."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
            ],
        )

    def __call__(self, name: str, patience: float = 60.0, /, **fields: Any) -> Any:
        service = "ImageService" if "Image" in name else "RuntimeService"
        request = getattr(v1, f"{name}Request")(**fields)
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{name}",
            request_serializer=bytes,
            response_deserializer=getattr(v1, f"{name}Response").parse,
        )
        return call(request, timeout=patience, wait_for_ready=True)

    def close(self) -> None:
        self._channel.close()


@dataclass(slots=True)
class Container:
    """What a client knows of a container that it has made."""

    code: int
    """Of its program, if that is left to end."""
    asked_to_end: bool = False
    """By anybody: then 137 and 143 are as right."""


@dataclass(slots=True)
class Load:
    """Clients of one daemon, in threads, for a while."""

    base: Path
    image: str
    seed: int
    pods: dict[str, dict[str, Container]] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    lost_wardens: set[str] = field(default_factory=set)
    """Sandboxes whose warden was killed or stopped: their containers' ends may be lost."""
    stopped: set[str] = field(default_factory=set)
    """Sandboxes that somebody has asked to stop: what was being made in them at that time ends too."""
    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    names: Any = field(default_factory=itertools.count)
    most_pods: int = 12

    def run(self, seconds: float, clients: int) -> None:
        """Have clients call until the time is over."""
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(random.Random(f"{self.seed}-{number}"), until))
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def forget(self) -> None:
        """All pods have been removed."""
        self.pods.clear()
        self.lost_wardens.clear()

    def kill_something(self, chance: random.Random, spawner: int) -> None:
        """A spawner, a warden or a first process, by KILL or STOP."""
        what = chance.choice(("spawner", "warden", "warden", "stopped warden", "first", "first", "first"))
        pods = list(self.pods)
        if what == "spawner":
            pid = spawner
        elif pods and "warden" in what:
            sandbox = chance.choice(pods)
            pid = inventory.warden(self.base, sandbox)
            self.lost_wardens.add(sandbox)
        else:
            known = [one for made in list(self.pods.values()) for one in list(made)]
            if not known:
                return
            container = chance.choice(known)
            pid = self._first(container)
            self.containers[container].asked_to_end = True
        if not pid or not inventory.living(pid):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if what == "stopped warden" else signal.SIGKILL)
            self.kills[what] += 1

    def _first(self, container: str) -> int:
        client = Client(self.base / "run/cri-jails.sock")
        try:
            told = client("ContainerStatus", 5, container_id=container, verbose=True)
            return int(json.loads(told.info["info"])["pid"])
        except grpc.RpcError:
            return 0
        finally:
            client.close()

    def _client(self, chance: random.Random, until: float) -> None:
        client = Client(self.base / "run/cri-jails.sock")
        actions = (
            *(self._run_pod,) * 3,
            *(self._run_container,) * 8,
            *(self._create_only, self._exec, self._stop_container, self._remove_container) * 2,
            *(self._stop_pod, self._remove_pod, self._remove_pod, self._look, self._image),
        )
        while time.monotonic() < until:
            action = chance.choice(actions)
            self.calls[action.__name__.strip("_")] += 1
            try:
                action(client, chance)
            except grpc.RpcError as error:
                if error.code() not in UNAVAILABLE:
                    what = action.__name__.strip("_")
                    self.errors[f"{what}: {error.code().name}: {_anonymous(error.details() or '')}"] += 1
        client.close()

    def _run_pod(self, client: Client, chance: random.Random) -> None:
        if len(self.pods) >= self.most_pods:
            return self._remove_pod(client, chance)
        name = f"chaos-{next(self.names)}"
        logs = self.base / "logs"
        config = v1.PodSandboxConfig(
            metadata=v1.PodSandboxMetadata(name=name, uid=name, namespace="chaos"),
            hostname=name,
            log_directory=str(logs),
            linux=v1.LinuxPodSandboxConfig(),
        )
        sandbox = client("RunPodSandbox", config=config).pod_sandbox_id
        self.pods[sandbox] = {}
        return None

    def _create(self, client: Client, chance: random.Random) -> str:
        sandbox = chance.choice(list(self.pods) or [""])
        code = chance.randrange(100)
        seconds = chance.choice((0, 0.05, 0.5, 3, 1000))
        name = f"c{next(self.names)}"
        config = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name),
            image=v1.ImageSpec(image=self.image),
            command=["sh", "-c", f"echo begins; sleep {seconds}; exit {code}"],
            log_path=f"{name}.log",
        )
        container = client(
            "CreateContainer", pod_sandbox_id=sandbox, config=config, sandbox_config=v1.PodSandboxConfig()
        ).container_id
        self.containers[container] = self.pods.setdefault(sandbox, {})[container] = Container(code)
        return container

    def _create_only(self, client: Client, chance: random.Random) -> None:
        self._create(client, chance)

    def _run_container(self, client: Client, chance: random.Random) -> None:
        client("StartContainer", container_id=self._create(client, chance))

    def _some_container(self, chance: random.Random) -> str:
        known = [one for containers in list(self.pods.values()) for one in list(containers)]
        return chance.choice(known) if known else "none"

    def _exec(self, client: Client, chance: random.Random) -> None:
        client("ExecSync", container_id=self._some_container(chance), cmd=["echo", "here"], timeout=10)

    def _stop_container(self, client: Client, chance: random.Random) -> None:
        container = self._some_container(chance)
        if container in self.containers:
            self.containers[container].asked_to_end = True
        client("StopContainer", container_id=container, timeout=chance.choice((0, 0, 1)))

    def _remove_container(self, client: Client, chance: random.Random) -> None:
        container = self._some_container(chance)
        if container in self.containers:
            self.containers[container].asked_to_end = True
        client("RemoveContainer", container_id=container)
        for containers in list(self.pods.values()):
            containers.pop(container, None)

    def end(self, sandbox: str) -> None:
        """Its containers are about to be asked to end."""
        self.stopped.add(sandbox)
        for container in list(self.pods.get(sandbox, {}).values()):
            container.asked_to_end = True

    def _stop_pod(self, client: Client, chance: random.Random) -> None:
        sandbox = chance.choice(list(self.pods) or ["none"])
        self.end(sandbox)
        client("StopPodSandbox", pod_sandbox_id=sandbox)

    def _remove_pod(self, client: Client, chance: random.Random) -> None:
        sandbox = chance.choice(list(self.pods) or ["none"])
        self.end(sandbox)
        client("RemovePodSandbox", pod_sandbox_id=sandbox)
        self.pods.pop(sandbox, None)

    def _look(self, client: Client, chance: random.Random) -> None:
        client("Status", verbose=True)
        client("ListContainers")
        client("ListPodSandbox")
        client("ListContainerStats")

    def _image(self, client: Client, chance: random.Random) -> None:
        if chance.randrange(3) == 0:
            client("RemoveImage", image=v1.ImageSpec(image=self.image))
        client("PullImage", image=v1.ImageSpec(image=self.image))


def _anonymous(text: str) -> str:
    """A message without the numbers that make each one another."""
    words = ["ID" if len(word.strip(":'\",;")) >= 32 and " " not in word else word for word in text.split()]
    return " ".join(words)[:160]
