"""CRI messages to specs: the one place that reads a PodSandboxConfig or ContainerConfig.

Everything that can be found wrong with a request by looking at it is found here, before anything is made.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import cni_plugins
from baustelle.bundle import ImageDefaults, command
from cri import pod_bandwidth
from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox import mount_specs
from cri.sandbox.host import Features
from cri.sandbox.spec import (
    ContainerSpec,
    GroupsPolicy,
    MountSpec,
    Namespaces,
    PortMapping,
    ProcessSpec,
    Resources,
    SandboxSpec,
    Security,
    Sharing,
    UserSpec,
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SHARING = {
    v1.NamespaceMode.POD: Sharing.POD,
    v1.NamespaceMode.CONTAINER: Sharing.CONTAINER,
    v1.NamespaceMode.NODE: Sharing.NODE,
    v1.NamespaceMode.TARGET: Sharing.TARGET,
}
_PROTOCOLS = {v1.Protocol.TCP: "tcp", v1.Protocol.UDP: "udp", v1.Protocol.SCTP: "sctp"}
_POLICY = {
    v1.SupplementalGroupsPolicy.Merge: GroupsPolicy.MERGE,
    v1.SupplementalGroupsPolicy.Strict: GroupsPolicy.STRICT,
}

LONG = 500
"""Entries of a config: encoding as many takes a few milliseconds."""


def is_long(config: v1.PodSandboxConfig) -> bool:
    """Whether a config has so many entries (not bytes) that to look at all of them takes the loop a while."""
    linux = config.linux or v1.LinuxPodSandboxConfig()
    groups = linux.security_context.supplemental_groups if linux.security_context else ()
    entries = (config.labels, config.annotations, config.port_mappings, linux.sysctls, groups)
    return sum(map(len, entries)) > LONG


def sandbox_spec(
    sandbox_id: str,
    config: v1.PodSandboxConfig,
    *,
    directory: Path,
    runtime_directory: Path,
    features: Features,
) -> SandboxSpec:
    """What RunPodSandbox asks for. Raises InvalidArgumentError or UnsupportedError, naming the field."""
    metadata = config.metadata
    if metadata is None or not metadata.name or not metadata.namespace or not metadata.uid:
        raise InvalidArgumentError(
            "config.metadata needs name, namespace and uid: they make the sandbox's name"
        )
    linux = config.linux or v1.LinuxPodSandboxConfig()
    security = linux.security_context or v1.LinuxSandboxSecurityContext()
    if security.run_as_group is not None and security.run_as_user is None:
        raise InvalidArgumentError(
            "security_context.run_as_group is set without run_as_user: set both or neither"
        )
    if linux.sysctls and not features.sysctls:
        raise UnsupportedError(
            f"sysctls {sorted(linux.sysctls)}: this host has no sysctls per sandbox; remove them"
        )
    namespaces = _namespaces(security.namespace_options, features)
    if namespaces.pid is Sharing.TARGET:
        raise InvalidArgumentError("namespace_options.pid TARGET is for containers; a sandbox has no target")
    _check_profiles(security.seccomp, security.apparmor)
    pod_bandwidth.of(config.annotations)  # which says what is wrong with an annotation
    return SandboxSpec(
        id=sandbox_id,
        name=metadata.name,
        namespace=metadata.namespace,
        directory=str(directory),
        runtime_directory=str(runtime_directory),
        hostname=config.hostname,
        namespaces=namespaces,
        limits_parent=linux.cgroup_parent,
        sysctls=dict(linux.sysctls),
        annotations=dict(config.annotations),
        privileged=security.privileged,
        uid=metadata.uid,
        port_mappings=_port_mappings(config, namespaces),
    )


def container_spec(
    container_id: str,
    config: v1.ContainerConfig,
    sandbox: SandboxSpec,
    sandbox_config: v1.PodSandboxConfig,
    *,
    directory: Path,
    image: ImageDefaults,
    layers: Iterable[str],
    volumes: Mapping[str, tuple[str, ...]],
    system: str,
    pod_files: Iterable[MountSpec],
    features: Features,
) -> ContainerSpec:
    """What CreateContainer asks for. Raises InvalidArgumentError or UnsupportedError, naming the field.

    `volumes` has the layers of the images that are mounted, by reference; `system` is what the container's own image was
    built for.
    """
    if config.metadata is None or not config.metadata.name:
        raise InvalidArgumentError("config.metadata.name is empty: a container needs a name")
    linux = config.linux or v1.LinuxContainerConfig()
    context = linux.security_context or v1.LinuxContainerSecurityContext()
    if context.privileged and not sandbox.privileged:
        raise InvalidArgumentError(
            f"container {config.metadata.name} is privileged but its sandbox {sandbox.id} is not: "
            "set security_context.privileged on both"
        )
    _check_profiles(context.seccomp, context.apparmor)
    capabilities = context.capabilities or v1.Capability()
    if capabilities.add_ambient_capabilities:
        raise UnsupportedError("capabilities.add_ambient_capabilities: not supported; use add_capabilities")
    mounts = mount_specs.asked(config, features, volumes)
    return ContainerSpec(
        id=container_id,
        sandbox_id=sandbox.id,
        directory=str(directory),
        layers=tuple(layers),
        process=_process(config, context, image, sandbox),
        os=system,
        namespaces=_container_namespaces(context.namespace_options, sandbox, features),
        hostname=sandbox.hostname,
        mounts=mount_specs.together(
            mounts,
            pod_files=[replace(file, readonly=context.readonly_rootfs) for file in pod_files],
            declared=image.volumes,
            directory=directory,
        ),
        devices=mount_specs.devices(config.devices),
        resources=resources(linux.resources),
        security=Security(
            privileged=context.privileged,
            readonly_root=context.readonly_rootfs,
            no_new_privileges=context.no_new_privs,
            add_capabilities=_capabilities(capabilities.add_capabilities),
            drop_capabilities=_capabilities(capabilities.drop_capabilities),
            masked_paths=() if context.privileged else tuple(context.masked_paths),
            readonly_paths=() if context.privileged else tuple(context.readonly_paths),
        ),
        log_path=_log_path(sandbox_config.log_directory, config.log_path),
        limits_parent=sandbox.limits_parent,
        annotations=dict(config.annotations),
    )


def exec_process(container: ContainerSpec, argv: list[str], *, tty: bool = False) -> ProcessSpec:
    """A process beside the container's own: its user, environment and directory, another command."""
    if not argv:
        raise InvalidArgumentError(f"exec in container {container.id}: cmd is empty")
    own = container.process
    return ProcessSpec(argv=tuple(argv), env=own.env, cwd=own.cwd, user=own.user, tty=tty)


def resources(message: v1.LinuxContainerResources | None) -> Resources:
    """Limits as the CRI has them, where 0 and empty mean "not given"."""
    if message is None:
        return Resources()
    return Resources(
        cpu_period=message.cpu_period or None,
        cpu_quota=message.cpu_quota or None,
        cpu_shares=message.cpu_shares or None,
        memory_limit=message.memory_limit_in_bytes or None,
        memory_swap_limit=message.memory_swap_limit_in_bytes or None,
        cpuset_cpus=message.cpuset_cpus or None,
        cpuset_mems=message.cpuset_mems or None,
        oom_score_adj=message.oom_score_adj or None,
        hugepage_limits={limit.page_size: limit.limit for limit in message.hugepage_limits},
        unified=dict(message.unified),
    )


def _port_mappings(config: v1.PodSandboxConfig, namespaces: Namespaces) -> tuple[PortMapping, ...]:
    """The ports to be opened; those without a host port, as the kubelet sends for every port of a pod, are none.

    With the node's network the pod has its ports anyway.
    """
    if namespaces.network is Sharing.NODE:
        return ()
    found = []
    for at, port in enumerate(config.port_mappings):
        where = f"port_mappings[{at}]"
        if not port.host_port:
            continue
        for name, number in (("host_port", port.host_port), ("container_port", port.container_port)):
            if not 0 < number < 1 << 16:
                raise InvalidArgumentError(f"{where}.{name} is {number}: must be from 1 to 65535")
        if port.protocol not in _PROTOCOLS:
            raise InvalidArgumentError(f"{where}.protocol is {port.protocol}: must be TCP, UDP or SCTP")
        mapping = PortMapping(_PROTOCOLS[port.protocol], port.host_port, port.container_port, port.host_ip)
        try:
            # What the plugins have against it is told now, and not once half the pod is made.
            cni_plugins.PortMapping(
                mapping.host_port,
                mapping.container_port,
                mapping.protocol,
                ip_address(mapping.host_ip) if mapping.host_ip else None,
            )
        except ValueError as error:
            raise InvalidArgumentError(f"{where}.host_ip is {port.host_ip!r}: {error}") from None
        found.append(mapping)
    return tuple(found)


def _namespaces(options: v1.NamespaceOption | None, features: Features) -> Namespaces:
    if options is None:
        return Namespaces()
    if options.userns_options is not None and options.userns_options.mode == v1.NamespaceMode.POD:
        if not features.user_namespaces:
            raise UnsupportedError("userns_options.mode POD: this host has no user namespaces; use NODE")
    elif options.userns_options is not None and options.userns_options.mode != v1.NamespaceMode.NODE:
        raise InvalidArgumentError(
            f"userns_options.mode {options.userns_options.mode!r}: must be POD or NODE"
        )
    network, pid, ipc = _SHARING[options.network], _SHARING[options.pid], _SHARING[options.ipc]
    if network not in (Sharing.POD, Sharing.NODE):
        raise InvalidArgumentError(f"namespace_options.network {network.name}: must be POD or NODE")
    if ipc not in (Sharing.POD, Sharing.NODE):
        raise InvalidArgumentError(f"namespace_options.ipc {ipc.name}: must be POD or NODE")
    if pid in (Sharing.POD, Sharing.TARGET) and not features.shared_pids:
        raise UnsupportedError(
            f"namespace_options.pid {pid.name}: on this host a container sees its own processes only; use CONTAINER"
        )
    if pid is Sharing.NODE and not features.host_pid:
        raise UnsupportedError(
            "namespace_options.pid NODE: this host cannot show the node's processes to a pod"
        )
    if ipc is Sharing.NODE and not features.host_ipc:
        raise UnsupportedError("namespace_options.ipc NODE: this host cannot share the node's IPC with a pod")
    return Namespaces(network=network, pid=pid, ipc=ipc, target_id=options.target_id)


def _container_namespaces(
    options: v1.NamespaceOption | None, sandbox: SandboxSpec, features: Features
) -> Namespaces:
    if options is None:
        return sandbox.namespaces
    wanted = _namespaces(options, features)
    # Network and IPC belong to the sandbox, whatever the container's message repeats of them.
    return Namespaces(sandbox.namespaces.network, wanted.pid, sandbox.namespaces.ipc, wanted.target_id)


def _check_profiles(seccomp: v1.SecurityProfile | None, apparmor: v1.SecurityProfile | None) -> None:
    for name, profile in (("seccomp", seccomp), ("apparmor", apparmor)):
        if profile is not None and profile.profile_type == v1.SecurityProfileProfileType.Localhost:
            raise UnsupportedError(
                f"{name} profile {profile.localhost_ref}: localhost profiles are not supported; "
                "use RuntimeDefault or Unconfined"
            )


def _process(
    config: v1.ContainerConfig,
    context: v1.LinuxContainerSecurityContext,
    image: ImageDefaults,
    sandbox: SandboxSpec,
) -> ProcessSpec:
    argv = command(image, config.command, config.args)
    environment = {"PATH": DEFAULT_PATH}
    if sandbox.hostname:
        environment["HOSTNAME"] = sandbox.hostname
    if config.tty:
        environment["TERM"] = "xterm"
    for entry in image.env:
        key, _, value = entry.partition("=")
        environment[key] = value
    for pair in config.envs:
        environment[pair.key] = os.fsdecode(pair.value)
    for index, text in enumerate(argv):
        if "\0" in text:
            raise InvalidArgumentError(f"argument {index} has a NUL byte: no process can take it")
    for key, value in environment.items():
        if "\0" in key or "\0" in value:
            # Without the value, which may be a secret.
            raise InvalidArgumentError(
                f"the environment variable {key!r} has a NUL byte: no process can take it"
            )
    return ProcessSpec(
        argv=tuple(argv),
        env=tuple(f"{key}={value}" for key, value in environment.items()),
        cwd=config.working_dir or image.working_dir or "/",
        user=_user(context, image),
        tty=config.tty,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
    )


def _user(context: v1.LinuxContainerSecurityContext, image: ImageDefaults) -> UserSpec:
    user = image.user
    if context.run_as_user is not None:
        user = str(context.run_as_user.value)
    elif context.run_as_username:
        user = context.run_as_username
    elif context.run_as_group is not None:
        raise InvalidArgumentError(
            "security_context.run_as_group is set without run_as_user or run_as_username"
        )
    return UserSpec(
        user=user,
        group=None if context.run_as_group is None else context.run_as_group.value,
        supplemental_groups=tuple(context.supplemental_groups),
        groups_policy=_POLICY[context.supplemental_groups_policy],
    )


def _capabilities(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.upper().removeprefix("CAP_") for name in names)


def _log_path(log_directory: str, log_path: str) -> str:
    if not log_path or not log_directory:
        return ""
    joined = posixpath.normpath(posixpath.join(log_directory, log_path))
    if posixpath.commonpath([joined, posixpath.normpath(log_directory)]) != posixpath.normpath(log_directory):
        raise InvalidArgumentError(
            f"log_path {log_path!r} leads out of the pod's log_directory {log_directory!r}"
        )
    return joined
