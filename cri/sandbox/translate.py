"""CRI messages to specs: from here a PodSandboxConfig and a ContainerConfig are read.

What a single field cannot be was refused before (`cri.rpc.fields`). Everything else that can be found wrong with a request
by looking at it is found here, before anything is made.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import cni_plugins
from baustelle.bundle import ImageDefaults
from cri import pod_bandwidth
from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox import limits, mount_specs, processes, profiles, refusals, sharing
from cri.sandbox.host import Features
from cri.sandbox.spec import (
    ContainerSpec,
    MountSpec,
    Namespaces,
    PortMapping,
    SandboxSpec,
    Security,
    Sharing,
)

_PROTOCOLS = {v1.Protocol.TCP: "tcp", v1.Protocol.UDP: "udp", v1.Protocol.SCTP: "sctp"}

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
    namespaces = sharing.namespaces(security.namespace_options, features)
    if namespaces.pid is Sharing.TARGET:
        raise InvalidArgumentError("namespace_options.pid TARGET is for containers; a sandbox has no target")
    profiles.check_seccomp_of_sandbox(security.seccomp, features)
    profiles.check_apparmor(security.apparmor)
    refusals.check_selinux(security.selinux_options)
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
    profiles.check_apparmor(context.apparmor)
    refusals.check_selinux(context.selinux_options)
    capabilities = context.capabilities or v1.Capability()
    added = _capabilities(capabilities.add_capabilities)
    if not context.privileged:
        refusals.check_capabilities(added, features)
    mounts = mount_specs.asked(config, features, volumes)
    refusals.check_mounts(mounts)
    return ContainerSpec(
        id=container_id,
        sandbox_id=sandbox.id,
        directory=str(directory),
        layers=tuple(layers),
        process=processes.process(config, context, image, sandbox),
        os=system,
        namespaces=sharing.container_namespaces(context.namespace_options, sandbox, features),
        hostname=sandbox.hostname,
        mounts=mount_specs.together(
            mounts,
            pod_files=[replace(file, readonly=context.readonly_rootfs) for file in pod_files],
            declared=image.volumes,
            directory=directory,
        ),
        devices=mount_specs.devices(config.devices, features),
        resources=limits.of_container(linux.resources, features),
        security=Security(
            privileged=context.privileged,
            readonly_root=context.readonly_rootfs,
            no_new_privileges=context.no_new_privs,
            add_capabilities=added,
            drop_capabilities=_capabilities(capabilities.drop_capabilities),
            masked_paths=() if context.privileged else tuple(context.masked_paths),
            readonly_paths=() if context.privileged else tuple(context.readonly_paths),
            seccomp=profiles.seccomp(context, features),
        ),
        log_path=_log_path(sandbox_config.log_directory, config.log_path),
        limits_parent=sandbox.limits_parent,
        annotations=dict(config.annotations),
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
    return refusals.check_ports(found)


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
