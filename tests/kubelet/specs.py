"""What the API server gives a kubelet: pods, as far as a runtime hears of them."""

from __future__ import annotations

import enum
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NAMESPACE = "default"


class Restart(enum.Enum):
    """A pod's restartPolicy."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


@dataclass(frozen=True, slots=True)
class Probe:
    """An exec probe."""

    command: Sequence[str]
    timeout_seconds: int = 1
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod."""

    name: str
    image: str
    command: Sequence[str] = ()
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cpu_request: int = 0
    """Thousandths of a CPU; 0: none, here and below."""
    cpu_limit: int = 0
    memory_request: int = 0
    """Bytes."""
    memory_limit: int = 0
    volume_mounts: Mapping[str, str] = field(default_factory=dict)
    """The pod's volumes by the path that each is seen at."""
    sidecar: bool = False
    """An init container that is to go on: restartPolicy Always."""
    liveness: Probe | None = None
    post_start: Sequence[str] = ()
    """Hooks: commands."""
    pre_stop: Sequence[str] = ()
    run_as_user: int | None = None
    read_only_root: bool = False
    allow_privilege_escalation: bool = True
    message_from_logs: bool = False
    """terminationMessagePolicy FallbackToLogsOnError."""

    def hash(self) -> str:
        """Changes with the definition."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that is assigned to the node."""

    name: str
    containers: Sequence[Container]
    init_containers: Sequence[Container] = ()
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    namespace: str = NAMESPACE
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    restart: Restart = Restart.ALWAYS
    grace_seconds: int = 30
    volumes: Sequence[str] = ()
    """Names of emptyDirs."""
    fs_group: int | None = None
    supplemental_groups: Sequence[int] = ()

    @property
    def all_containers(self) -> list[Container]:
        """In the order of their start."""
        return [*self.init_containers, *self.containers]

    def container(self, name: str) -> Container:
        """By name. Raises StopIteration if there is none."""
        return next(one for one in self.all_containers if one.name == name)

    @property
    def qos(self) -> str:
        """Its quality of service, as in the name of the cgroup above its own; empty: guaranteed."""
        every = self.all_containers
        if not any(
            (each.cpu_request, each.cpu_limit, each.memory_request, each.memory_limit) != (0, 0, 0, 0)
            for each in every
        ):
            return "besteffort"
        if all(
            each.cpu_limit
            and each.memory_limit
            and each.cpu_request in (0, each.cpu_limit)
            and each.memory_request in (0, each.memory_limit)
            for each in every
        ):
            return ""
        return "burstable"
