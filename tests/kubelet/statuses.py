"""What the kubelet knows of its pods from the runtime, and what it makes of a container's status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cri.api.runtime import v1
from tests.kubelet import container_logs
from tests.kubelet.configs import POD_NAME, POD_NAMESPACE, POD_UID

State = v1.ContainerState
SandboxState = v1.PodSandboxState
LONGEST_MESSAGE = 4096
MESSAGE_LINES = 80


@dataclass(slots=True)
class RuntimePod:
    """What lists show of a pod: items of ListPodSandbox and ListContainers, newest first."""

    uid: str
    name: str
    namespace: str
    sandboxes: list[Any] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class PodStatus:
    """A PodSandboxStatus and a ContainerStatus for each of them, newest first."""

    uid: str
    name: str
    namespace: str
    sandboxes: list[Any] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)
    ips: tuple[str, ...] = ()
    timestamp: int = 0
    """Nanoseconds since the epoch; nothing that is here is older."""

    def container(self, name: str) -> Any | None:
        """The newest attempt of a container; None if there is none."""
        return next((one for one in self.containers if one.metadata.name == name), None)

    def attempts(self, name: str) -> list[Any]:
        """All that there are of a container, the oldest first."""
        return [one for one in reversed(self.containers) if one.metadata.name == name]

    def running(self) -> list[Any]:
        """The containers that run."""
        return [one for one in self.containers if one.state == State.CONTAINER_RUNNING]


def group(sandboxes: Sequence[Any], containers: Sequence[Any]) -> dict[str, RuntimePod]:
    """Items of lists by the pods' uids, as the sandboxes' metadata and the containers' labels have them."""
    pods: dict[str, RuntimePod] = {}
    for each in newest_first(sandboxes):
        known = each.metadata
        pod = pods.setdefault(known.uid, RuntimePod(known.uid, known.name, known.namespace))
        pod.sandboxes.append(each)
    for each in newest_first(containers):
        uid = each.labels[POD_UID]
        pod = pods.setdefault(uid, RuntimePod(uid, each.labels[POD_NAME], each.labels[POD_NAMESPACE]))
        pod.containers.append(each)
    return pods


def newest_first(items: Sequence[Any]) -> list[Any]:
    """By creation, then by id."""
    return sorted(items, key=lambda one: (-one.created_at, one.id))


def addresses(sandbox: Any) -> tuple[str, ...]:
    """A sandbox's addresses, the primary one first."""
    found = [sandbox.network.ip, *(each.ip for each in sandbox.network.additional_ips)]
    return tuple(ip for ip in found if ip)


def termination_message(status: Any) -> str:
    """What the kubelet shows as a terminated container's message.

    The runtime's message, then what the program has left in its termination log, which is found by the mounts of the status;
    with FallbackToLogsOnError the log's end takes its place.
    """
    annotations = status.annotations
    path = annotations["io.kubernetes.container.terminationMessagePath"]
    written = next(
        (Path(each.host_path).read_text() for each in status.mounts if each.container_path == path), ""
    )
    fallback = annotations["io.kubernetes.container.terminationMessagePolicy"] == "FallbackToLogsOnError"
    if not written and fallback and status.exit_code != 0:
        lines = container_logs.read(Path(status.log_path))
        written = "".join(f"{line.text}\n" for line in lines[-MESSAGE_LINES:])
    return ": ".join(filter(None, (status.message, written[-LONGEST_MESSAGE:])))
