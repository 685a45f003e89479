"""What kuberuntime 1.36 sends for a pod: every field that a real kubelet fills, with the values that it would have.

Sources: kubernetes v1.36.0, pkg/kubelet/kuberuntime (kuberuntime_sandbox.go, kuberuntime_container.go and _linux.go, labels.go,
security_context.go, helpers.go), pkg/kubelet/kubelet_pods.go, pkg/kubelet/cm/helpers_linux.go.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cri.api.runtime import v1
from tests.kubelet.specs import Container, Pod

POD_NAME, POD_NAMESPACE, POD_UID, CONTAINER_NAME = (
    f"io.kubernetes.{name}" for name in ("pod.name", "pod.namespace", "pod.uid", "container.name")
)
TERMINATION_LOG = "/dev/termination-log"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
CLUSTER_DNS = "10.96.0.10"
PERIOD = 100_000
"""Microseconds; of a CPU quota."""
LEAST_SHARES, LEAST_QUOTA = 2, 1000

MASKED_PATHS = (
    *(f"/proc/{name}" for name in ("asound", "acpi", "interrupts", "kcore", "keys", "latency_stats")),
    *(f"/proc/{name}" for name in ("timer_list", "timer_stats", "sched_debug", "scsi")),
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = tuple(f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger"))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the kubelet keeps what belongs to pods."""

    root: Path
    """Its own directory: /var/lib/kubelet."""
    logs: Path
    """/var/log/pods."""

    def pod(self, pod: Pod) -> Path:
        """A pod's directory."""
        return self.root / "pods" / pod.uid

    def volume(self, pod: Pod, name: str) -> Path:
        """An emptyDir."""
        return self.pod(pod) / "volumes/kubernetes.io~empty-dir" / name

    def token(self, pod: Pod) -> Path:
        """The service account's token and what else is projected beside it."""
        return self.pod(pod) / "volumes/kubernetes.io~projected/kube-api-access"

    def hosts(self, pod: Pod) -> Path:
        """The pod's /etc/hosts."""
        return self.pod(pod) / "etc-hosts"

    def pod_logs(self, pod: Pod) -> Path:
        """What RunPodSandbox is told as log_directory."""
        return self.logs / f"{pod.namespace}_{pod.name}_{pod.uid}"

    def container_logs(self, pod: Pod, name: str) -> Path:
        """Where a container's logs are, one for each attempt."""
        return self.pod_logs(pod) / name


@dataclass(frozen=True, slots=True)
class ImageUser:
    """Whom an image's processes run as: a number or a name."""

    uid: int | None = 0
    name: str = ""


def sandbox(pod: Pod, places: Places, attempt: int, cgroup_parent: str) -> v1.PodSandboxConfig:
    """A pod's sandbox."""
    security = v1.LinuxSandboxSecurityContext(
        namespace_options=namespaces(),
        seccomp=v1.SecurityProfile(profile_type=v1.SecurityProfileProfileType.RuntimeDefault),
        supplemental_groups=groups(pod),
    )
    return v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name=pod.name, namespace=pod.namespace, uid=pod.uid, attempt=attempt),
        hostname=pod.name,
        log_directory=str(places.pod_logs(pod)),
        dns_config=v1.DnsConfig(
            servers=[CLUSTER_DNS],
            searches=[f"{pod.namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local"],
            options=["ndots:5"],
        ),
        labels={**pod.labels, POD_NAME: pod.name, POD_NAMESPACE: pod.namespace, POD_UID: pod.uid},
        annotations=dict(pod.annotations),
        linux=v1.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=security,
            resources=pod_resources(pod),
            overhead=v1.LinuxContainerResources(),
        ),
    )


def container(
    pod: Pod,
    spec: Container,
    places: Places,
    attempt: int,
    image_id: str,
    user: ImageUser,
    ips: Sequence[str],
) -> v1.ContainerConfig:
    """A container; its termination log, the pod's /etc/hosts and its log directory are made on the way, as they must."""
    places.container_logs(pod, spec.name).mkdir(parents=True, exist_ok=True)
    return v1.ContainerConfig(
        metadata=v1.ContainerMetadata(name=spec.name, attempt=attempt),
        image=v1.ImageSpec(image=image_id, user_specified_image=spec.image),
        command=list(spec.command),
        args=list(spec.args),
        envs=[v1.KeyValue(key=key, value=value.encode()) for key, value in _environment(spec).items()],
        mounts=_mounts(pod, spec, places, ips),
        labels={
            POD_NAME: pod.name,
            POD_NAMESPACE: pod.namespace,
            POD_UID: pod.uid,
            CONTAINER_NAME: spec.name,
        },
        annotations=_annotations(pod, spec, attempt),
        log_path=f"{spec.name}/{attempt}.log",
        linux=v1.LinuxContainerConfig(
            resources=container_resources(pod, spec), security_context=_security(pod, spec, user)
        ),
    )


def pod_resources(pod: Pod) -> v1.LinuxContainerResources:
    """What a pod's containers may use together."""
    return _resources(
        sum(each.cpu_request for each in pod.containers),
        sum(each.cpu_limit for each in pod.containers),
        sum(each.memory_limit for each in pod.containers),
    )


def container_resources(pod: Pod, spec: Container) -> v1.LinuxContainerResources:
    """A container's limits, at its start and when it is resized in place."""
    found = _resources(spec.cpu_request, spec.cpu_limit, spec.memory_limit)
    if pod.qos == "":
        found.oom_score_adj = -997
    elif pod.qos == "besteffort":
        found.oom_score_adj = 1000
    else:
        share = 1000 * spec.memory_request // _memory_capacity()
        found.oom_score_adj = min(max(1000 - share, 3), 999)
    found.hugepage_limits = [v1.HugepageLimit(page_size=size, limit=0) for size in _page_sizes()]
    if Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists():
        found.memory_swap_limit_in_bytes = spec.memory_limit  # none beside the memory
    return found


def namespaces() -> v1.NamespaceOption:
    """Those of a pod that wants nothing of the node's."""
    return v1.NamespaceOption(
        network=v1.NamespaceMode.POD, ipc=v1.NamespaceMode.POD, pid=v1.NamespaceMode.CONTAINER
    )


def groups(pod: Pod) -> list[int]:
    """Groups of all processes of a pod."""
    return [*([pod.fs_group] if pod.fs_group is not None else []), *pod.supplemental_groups]


def prepare(pod: Pod, places: Places) -> None:
    """Make a pod's directories and volumes, which are there before any RPC is called for it."""
    for name in pod.volumes:
        place = places.volume(pod, name)
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o777)
        if pod.fs_group is not None:
            os.chown(place, -1, pod.fs_group)
            place.chmod(0o2777)
    token = places.token(pod)
    token.mkdir(parents=True, exist_ok=True)
    (token / "token").write_text("a token")
    (token / "namespace").write_text(pod.namespace)


def _resources(request: int, limit: int, memory: int) -> v1.LinuxContainerResources:
    """CPU in thousandths, memory in bytes."""
    shares = (request or limit) * 1024 // 1000
    return v1.LinuxContainerResources(
        cpu_shares=max(shares, LEAST_SHARES),
        cpu_period=PERIOD,
        cpu_quota=max(limit * PERIOD // 1000, LEAST_QUOTA) if limit else 0,
        memory_limit_in_bytes=memory,
    )


def _security(pod: Pod, spec: Container, user: ImageUser) -> v1.LinuxContainerSecurityContext:
    found = v1.LinuxContainerSecurityContext(
        namespace_options=namespaces(),
        readonly_rootfs=spec.read_only_root,
        supplemental_groups=groups(pod),
        no_new_privs=not spec.allow_privilege_escalation,
        masked_paths=list(MASKED_PATHS),
        readonly_paths=list(READONLY_PATHS),
        seccomp=v1.SecurityProfile(profile_type=v1.SecurityProfileProfileType.Unconfined),
    )
    if spec.run_as_user is not None:
        found.run_as_user = v1.Int64Value(value=spec.run_as_user)
    elif user.uid is not None:
        found.run_as_user = v1.Int64Value(value=user.uid)
    else:
        found.run_as_username = user.name
    return found


def _annotations(pod: Pod, spec: Container, attempt: int) -> dict[str, str]:
    policy = "FallbackToLogsOnError" if spec.message_from_logs else "File"
    found = {
        "io.kubernetes.container.hash": spec.hash(),
        "io.kubernetes.container.restartCount": str(attempt),
        "io.kubernetes.container.terminationMessagePath": TERMINATION_LOG,
        "io.kubernetes.container.terminationMessagePolicy": policy,
        "io.kubernetes.pod.terminationGracePeriod": str(pod.grace_seconds),
    }
    if spec.pre_stop:
        hook = json.dumps({"exec": {"command": list(spec.pre_stop)}})
        found["io.kubernetes.container.preStopHandler"] = hook
    return found


def _environment(spec: Container) -> dict[str, str]:
    """What services of the default namespace add to each container, then its own."""
    address = "10.96.0.1"
    port = f"tcp://{address}:443"
    return {
        "KUBERNETES_SERVICE_HOST": address,
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "443",
        "KUBERNETES_PORT": port,
        "KUBERNETES_PORT_443_TCP": port,
        "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_443_TCP_PORT": "443",
        "KUBERNETES_PORT_443_TCP_ADDR": address,
        **spec.env,
    }


def _mounts(pod: Pod, spec: Container, places: Places, ips: Sequence[str]) -> list[v1.Mount]:
    hosts = places.hosts(pod)
    lines = ["# Kubernetes-managed hosts file.", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost"]
    hosts.write_text("\n".join([*lines, *(f"{ip}\t{pod.name}" for ip in ips)]) + "\n")
    # Another file for each instance of the container.
    message = places.pod(pod) / "containers" / spec.name / secrets.token_hex(4)
    message.parent.mkdir(parents=True, exist_ok=True)
    message.touch()
    message.chmod(0o666)
    return [
        *(
            v1.Mount(container_path=path, host_path=str(places.volume(pod, name)))
            for path, name in spec.volume_mounts.items()
        ),
        v1.Mount(container_path=SERVICE_ACCOUNT, host_path=str(places.token(pod)), readonly=True),
        v1.Mount(container_path="/etc/hosts", host_path=str(hosts)),
        v1.Mount(container_path=TERMINATION_LOG, host_path=str(message)),
    ]


@functools.cache
def _memory_capacity() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _page_sizes() -> tuple[str, ...]:
    """Sizes of large pages that the node has, as the kubelet calls them: 2MB."""
    if sys.platform != "linux":
        return ()
    found = []
    for each in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        kilobytes = int(each.name.removeprefix("hugepages-").removesuffix("kB"))
        large = kilobytes >= 1024 * 1024
        found.append(f"{kilobytes // (1024 * 1024)}GB" if large else f"{kilobytes // 1024}MB")
    return tuple(found)
