"""What a pod and its containers share: from namespace options to namespaces."""

from __future__ import annotations

from collections.abc import Collection

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox.host import Features
from cri.sandbox.spec import Namespaces, SandboxSpec, Sharing

_SHARING = {
    v1.NamespaceMode.POD: Sharing.POD,
    v1.NamespaceMode.CONTAINER: Sharing.CONTAINER,
    v1.NamespaceMode.NODE: Sharing.NODE,
    v1.NamespaceMode.TARGET: Sharing.TARGET,
}


def namespaces(options: v1.NamespaceOption | None, features: Features) -> Namespaces:
    """What a config asks for. Raises InvalidArgumentError, UnsupportedError."""
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
    if options.target_id and pid is not Sharing.TARGET:
        raise InvalidArgumentError(
            f"namespace_options.target_id {options.target_id!r} goes with pid TARGET, not {pid.name}"
        )
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


def container_namespaces(
    options: v1.NamespaceOption | None, sandbox: SandboxSpec, features: Features
) -> Namespaces:
    """What a container of a sandbox has. Raises InvalidArgumentError, UnsupportedError."""
    if options is None:
        return sandbox.namespaces
    wanted = namespaces(options, features)
    # Network and IPC belong to the sandbox, whatever the container's message repeats of them.
    return Namespaces(sandbox.namespaces.network, wanted.pid, sandbox.namespaces.ipc, wanted.target_id)


def check_target(context: v1.LinuxContainerSecurityContext | None, containers: Collection[str]) -> None:
    """See that a container whose processes are to be seen is one of the pod's. Raises InvalidArgumentError."""
    options = context.namespace_options if context is not None else None
    if options is None or options.pid != v1.NamespaceMode.TARGET or options.target_id in containers:
        return
    raise InvalidArgumentError(
        f"namespace_options.target_id {options.target_id!r}: pid TARGET needs the id of a container of the same pod"
    )
