"""What is done about every field of a PodSandboxConfig, a ContainerConfig and the requests that change them.

The table: a row for each field, by its path from the message that begins it. A row that ignores or refuses a message
stands for all that is in it. `cri.rpc.fields.walk` holds every request to it before a service sees it, a test holds it to
the proto, and `docs/fields.md` is made from it, so that what it says is what is so.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from cri.rpc.fields import rules
from cri.rpc.fields.rules import Rule


class Fate(enum.Enum):
    """What becomes of a field that is set."""

    DONE = "done"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Entry:
    """What becomes of a field on one system: how it is done, why it is ignored, or what the refusal says."""

    fate: Fate
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A field: what becomes of it, and what its values must be like; of a map, `keys` is about the keys."""

    linux: Entry
    freebsd: Entry
    rule: Rule | None = None
    keys: Rule | None = None

    def on(self, system: str) -> Entry:
        """What becomes of it on "linux" or "freebsd"."""
        return self.freebsd if system == "freebsd" else self.linux


def done(how: str, rule: Rule | None = None, *, keys: Rule | None = None, freebsd: str | Entry = "") -> Row:
    """A field that is done; `freebsd` is what differs there."""
    entry = Entry(Fate.DONE, how)
    other = freebsd if isinstance(freebsd, Entry) else Entry(Fate.DONE, freebsd or how)
    return Row(entry, other, rule, keys)


def ignored(why: str, rule: Rule | None = None, *, freebsd: str = "") -> Row:
    """A field that changes nothing."""
    return Row(Entry(Fate.IGNORED, why), Entry(Fate.IGNORED, freebsd or why), rule)


def refused(what: str) -> Row:
    """A field that must not be set."""
    return Row(Entry(Fate.REFUSED, what), Entry(Fate.REFUSED, what))


def unheeded(why: str) -> Entry:
    """Ignored on one system."""
    return Entry(Fate.IGNORED, why)


def denied(what: str) -> Entry:
    """Refused on one system."""
    return Entry(Fate.REFUSED, what)


ROOTS = (
    "RunPodSandboxRequest",
    "CreateContainerRequest",
    "UpdateContainerResourcesRequest",
    "UpdatePodSandboxResourcesRequest",
    "PodSandboxConfig",
    "ContainerConfig",
)
"""The messages that paths begin with. A field of one of them that holds another one leads to the other's rows."""

_NO_WINDOWS = "this node is no Windows node: leave it out"
_NO_USERNS = "there are no user namespaces on this node: leave the mappings out"
_SANDBOX_ONLY = "a sandbox has no process of its own that it could apply to (no pause container); containers have their own"
_PART = "see its fields"


def _limits(where: str) -> Mapping[str, Row]:
    """The rows of a LinuxContainerResources."""
    rows = {
        "cpu_period": done(
            "period of the CPU quota", rules.CPU_PERIOD, freebsd="with cpu_quota: pcpu of rctl(8)"
        ),
        "cpu_quota": done("CPU quota of the cgroup", rules.CPU_QUOTA, freebsd="pcpu:deny of rctl(8)"),
        "cpu_shares": done(
            "weight of the cgroup",
            rules.NOT_NEGATIVE,
            freebsd=unheeded("there are no weights between jails; the kubelet sends it for every container"),
        ),
        "memory_limit_in_bytes": done(
            "limit of the cgroup", rules.BYTES, freebsd="memoryuse:sigkill and swapuse:deny of rctl(8)"
        ),
        "oom_score_adj": done(
            "of the container's processes",
            rules.OOM_SCORE,
            freebsd=unheeded(
                "FreeBSD chooses whom it kills by size; the kubelet sends it for every container"
            ),
        ),
        "cpuset_cpus": done("cpuset of the cgroup", rules.CPU_LIST, freebsd="cpuset(2) of the jail"),
        "cpuset_mems": done(
            "cpuset of the cgroup",
            rules.CPU_LIST,
            freebsd=denied("memory domains are a policy of processes, not a limit of jails: leave it out"),
        ),
        "hugepage_limits": done(
            "limits of the hugetlb cgroup; one that is not 0 is refused where the node has no such pages or no such "
            "controller",
            freebsd="limits of 0; others are refused: FreeBSD has no limit for superpages",
        ),
        "hugepage_limits.page_size": done("which pages", rules.PAGE_SIZE),
        "hugepage_limits.limit": done("bytes", rules.SIGNED),
        "unified": done(
            "written to the cgroup; refused on a node of cgroup v1, which has no such files",
            rules.LINE,
            keys=rules.UNIFIED,
            freebsd="pids.max as maxproc:deny of rctl(8); other keys are refused",
        ),
        "memory_swap_limit_in_bytes": done(
            "memory and swap together; a container needs a memory limit beside it, which it must not be below",
            rules.BYTES,
            freebsd="moves swapuse:deny of rctl(8), which counts what is reserved: FreeBSD does not count what a jail has in swap",
        ),
    }
    return {f"{where}.{name}": row for name, row in rows.items()}


_NO_POD_RULES = (
    "recorded, and shown by a verbose status: rctl(8) measures a process by its own jail, so nothing holds the containers of a pod "
    "together but their own limits"
)


def _pod_limits(where: str) -> Mapping[str, Row]:
    """The rows of a LinuxContainerResources that is about a pod as a whole."""
    rows = {
        path: Row(row.linux, unheeded(_NO_POD_RULES), row.rule, row.keys)
        for path, row in _limits(where).items()
    }
    rows[f"{where}.oom_score_adj"] = refused("a pod has no processes of its own; give it to its containers")
    return rows


def _apparmor(where: str) -> Mapping[str, Row]:
    """The rows of AppArmor's SecurityProfile."""
    return {
        where: done(_PART),
        f"{where}.profile_type": done(
            "RuntimeDefault and Unconfined are the absence of a profile; Localhost is refused",
            freebsd="likewise: a jail is what confines here, and there is no AppArmor",
        ),
        f"{where}.localhost_ref": done("refused, as AppArmor profiles of the node are not supported"),
    }


_JAILED = (
    "RuntimeDefault and Unconfined are the absence of a profile; Localhost is refused: a jail is what confines here, and there "
    "is no seccomp"
)
_NO_SECCOMP = "refused, as seccomp profiles of the node are not supported"


def _namespaces(where: str, pods: str) -> Mapping[str, Row]:
    """The rows of a NamespaceOption."""
    return {
        where: done(_PART),
        f"{where}.network": done(
            f"POD and NODE{pods}", freebsd=f"POD is a vnet of the pod's jail; NODE{pods}"
        ),
        f"{where}.pid": done(
            "POD, CONTAINER and NODE, and for containers TARGET",
            freebsd="CONTAINER; others are refused, as a jail sees its own processes only",
        ),
        f"{where}.ipc": done(f"POD and NODE{pods}"),
        f"{where}.target_id": done("the container whose processes are seen, with pid TARGET", rules.LINE),
        f"{where}.userns_options": done(_PART),
        f"{where}.userns_options.mode": done(
            "NODE; POD is refused, as there are no user namespaces on this node"
        ),
        f"{where}.userns_options.uids": refused(_NO_USERNS),
        f"{where}.userns_options.gids": refused(_NO_USERNS),
    }


_SELINUX = ignored(
    "without SELinux on the node, as in other runtimes; refused where the node has SELinux",
    freebsd="labels of SELinux mean nothing on FreeBSD; pods with them are made for any node",
)

_POD: Mapping[str, Row] = {
    "metadata": done("the sandbox's name: name, namespace and uid are needed"),
    "metadata.name": done("part of the name", rules.NAME),
    "metadata.uid": done("part of the name", rules.NAME),
    "metadata.namespace": done("part of the name", rules.NAME),
    "metadata.attempt": done("part of the name"),
    "hostname": done(
        "host name of the UTS namespace, and in /etc/hosts",
        rules.HOST_NAME,
        freebsd="host.hostname of the jail, and in /etc/hosts",
    ),
    "log_directory": done("where the containers' logs are; made if it is missing", rules.PATH),
    "dns_config": done("the containers' /etc/resolv.conf"),
    "dns_config.servers": done("nameserver lines, three at most", rules.WORD),
    "dns_config.searches": done("the search line, 32 names at most", rules.WORD),
    "dns_config.options": done("the options line", rules.WORD),
    "port_mappings": done("host ports of the pod; nothing to do with the node's network"),
    "port_mappings.protocol": done("TCP, UDP and SCTP"),
    "port_mappings.container_port": done("where it leads", rules.PORT),
    "port_mappings.host_port": done("the node's port; 0: none", rules.PORT),
    "port_mappings.host_ip": done("the one address that it is open on; empty: all", rules.LINE),
    "labels": done("shown, and selected by", rules.ANY, keys=rules.ANY),
    "annotations": done("shown; those that limit bandwidth are done", rules.ANY, keys=rules.ANY),
    "linux": done(_PART),
    "linux.cgroup_parent": done(
        "the cgroup that the containers' are made in",
        rules.CGROUP,
        freebsd=unheeded("FreeBSD has no cgroups; racct adds up by jail"),
    ),
    "linux.security_context": done(_PART),
    **_namespaces("linux.security_context.namespace_options", ""),
    "linux.security_context.selinux_options": _SELINUX,
    "linux.security_context.run_as_user": ignored(_SANDBOX_ONLY),
    "linux.security_context.run_as_group": ignored(f"{_SANDBOX_ONLY}; refused without run_as_user"),
    "linux.security_context.readonly_rootfs": ignored(_SANDBOX_ONLY),
    "linux.security_context.supplemental_groups": ignored(_SANDBOX_ONLY),
    "linux.security_context.supplemental_groups_policy": ignored(_SANDBOX_ONLY),
    "linux.security_context.privileged": done("lets its containers be privileged"),
    "linux.security_context.seccomp": done(_PART),
    "linux.security_context.seccomp.profile_type": Row(unheeded(_SANDBOX_ONLY), Entry(Fate.DONE, _JAILED)),
    "linux.security_context.seccomp.localhost_ref": Row(
        unheeded(f"{_SANDBOX_ONLY}; refused without Localhost"), Entry(Fate.DONE, _NO_SECCOMP)
    ),
    **_apparmor("linux.security_context.apparmor"),
    "linux.security_context.seccomp_profile_path": done(
        "old form of seccomp, and as little heeded", rules.OLD_SECCOMP
    ),
    "linux.sysctls": done(
        "set in the pod's namespaces; those that are the node's are refused",
        rules.LINE,
        keys=rules.SYSCTL,
        freebsd=denied("FreeBSD has no sysctls per jail; remove them"),
    ),
    "linux.overhead": ignored(
        "the kubelet limits the pod as a whole itself, by cgroup_parent; this is for information"
    ),
    "linux.resources": ignored(
        "the kubelet limits the pod as a whole itself, by cgroup_parent; this is for information"
    ),
    "windows": refused(_NO_WINDOWS),
}

_CONTAINER: Mapping[str, Row] = {
    "metadata": done("the container's name in its sandbox: name is needed"),
    "metadata.name": done("part of the name", rules.NAME),
    "metadata.attempt": done("part of the name"),
    "image": done("what it is made from"),
    "image.image": done("the image's id or name", rules.LINE),
    "image.annotations": done("shown", rules.ANY, keys=rules.ANY),
    "image.user_specified_image": done("shown", rules.ANY),
    "image.runtime_handler": ignored("an image is the same for every handler"),
    "image.image_ref": ignored("image names the same image by its id", rules.ANY),
    "command": done("instead of the image's entrypoint"),
    "args": done("instead of the image's cmd"),
    "working_dir": done("where the process begins; else the image's", rules.PATH),
    "envs": done("added to the image's environment"),
    "envs.key": done("the name", rules.VARIABLE),
    "envs.value": done("any bytes but NUL", rules.SECRET_BYTES),
    "mounts": done("parents first, and of two on the same path the last one counts; on / and inside /proc they are refused"),
    "mounts.container_path": done("where, inside the container's root", rules.FILE),
    "mounts.host_path": done("what of the node; made as a directory if it is missing", rules.PATH),
    "mounts.readonly": done("a read-only mount"),
    "mounts.selinux_relabel": ignored("containers have the daemon's own label, so there is nothing to relabel for"),
    "mounts.propagation": done(
        "as far as the source's mount is shared, or a slave; refused where it is not",
        freebsd="PRIVATE; others are refused, as nullfs(4) shows no mount that is made later",
    ),
    "mounts.uidMappings": refused(_NO_USERNS),
    "mounts.gidMappings": refused(_NO_USERNS),
    "mounts.recursive_read_only": done("needs readonly and PRIVATE"),
    "mounts.image": done("an image as a volume"),
    "mounts.image.image": done("its id or name", rules.LINE),
    "mounts.image.annotations": ignored("they are about a pull", rules.ANY),
    "mounts.image.user_specified_image": ignored("shown by ImageStatus; it is the same image", rules.ANY),
    "mounts.image.runtime_handler": ignored("an image is the same for every handler"),
    "mounts.image.image_ref": ignored("image names the same image by its id", rules.ANY),
    "mounts.image_sub_path": done("what of the image", rules.FILE),
    "mounts.mount_options": done("noexec, nodev and nosuid"),
    "devices": done("device nodes of the container's own"),
    "devices.container_path": done("where", rules.FILE),
    "devices.host_path": done("which node", rules.PATH),
    "devices.permissions": done("of r, w and m", freebsd="rw, with or without m; less is refused, as root in a jail passes over a node's mode"),
    "labels": done("shown, and selected by", rules.ANY, keys=rules.ANY),
    "annotations": done("shown; those of the Container Device Interface are refused", rules.ANY, keys=rules.NO_CDI, freebsd="shown; parameters of the jail (docs of FreeBSD); those of the Container Device Interface are refused"),
    "log_path": done("below the pod's log_directory; without one there is no log", rules.FILE),
    "stdin": done("stdin stays open for an attachment"),
    "stdin_once": done("with stdin: ends with the first attachment"),
    "tty": done("a terminal"),
    "linux": done(_PART),
    "linux.resources": done(_PART),
    **_limits("linux.resources"),
    "linux.security_context": done(_PART),
    "linux.security_context.capabilities": done(_PART),
    "linux.security_context.capabilities.add_capabilities": done("added to the default ones", rules.CAPABILITY, freebsd="NET_RAW allows raw sockets; root in a jail has most of the others; those that no jail has are refused"),
    "linux.security_context.capabilities.drop_capabilities": done("taken away", rules.CAPABILITY, freebsd="NET_RAW and ALL: no raw sockets; the rights of root in a jail are not divided further"),
    "linux.security_context.capabilities.add_ambient_capabilities": refused("not supported; use add_capabilities"),
    "linux.security_context.privileged": done("all capabilities and devices; the sandbox must be privileged too", freebsd="what a jail can be allowed; the sandbox must be privileged too"),
    **_namespaces("linux.security_context.namespace_options", ", as the sandbox has it, whatever is said here"),
    "linux.security_context.selinux_options": _SELINUX,
    "linux.security_context.run_as_user": done(_PART),
    "linux.security_context.run_as_user.value": done("the user", rules.ID),
    "linux.security_context.run_as_group": done("needs run_as_user or run_as_username"),
    "linux.security_context.run_as_group.value": done("the group", rules.ID),
    "linux.security_context.run_as_username": done("the user, by the image's own passwd file", rules.LINE),
    "linux.security_context.readonly_rootfs": done("a read-only root"),
    "linux.security_context.supplemental_groups": done("groups beside the primary one", rules.ID),
    "linux.security_context.supplemental_groups_policy": done("Merge and Strict"),
    "linux.security_context.no_new_privs": done("no_new_privs of prctl(2)", freebsd="PROC_NO_NEW_PRIVS of procctl(2)"),
    "linux.security_context.masked_paths": done("hidden, unless privileged", rules.PATH),
    "linux.security_context.readonly_paths": done("read-only, unless privileged", rules.PATH),
    "linux.security_context.seccomp": done("for all processes of the container, unless privileged; without it there is no filter"),
    "linux.security_context.seccomp.profile_type": done("RuntimeDefault (docs/seccomp.md), Localhost and Unconfined; refused on a node without libseccomp, but for Unconfined", freebsd=_JAILED),
    "linux.security_context.seccomp.localhost_ref": done("the profile's path, with Localhost; it is read when the container is made", rules.PATH, freebsd=_NO_SECCOMP),
    **_apparmor("linux.security_context.apparmor"),
    "linux.security_context.apparmor_profile": done("old form of apparmor", rules.OLD_APPARMOR),
    "linux.security_context.seccomp_profile_path": done("old form of seccomp; where both are set, that counts", rules.OLD_SECCOMP, freebsd="likewise; localhost/ is refused"),
    "windows": refused(_NO_WINDOWS),
    "CDI_devices": refused("the Container Device Interface is not supported: name the device nodes in `devices`"),
    "stop_signal": done("before the image's own"),
}  # fmt: skip

_REQUESTS: Mapping[str, Row] = {
    "RunPodSandboxRequest.config": done("needed"),
    "RunPodSandboxRequest.runtime_handler": done("one that is configured, or empty", rules.LINE),
    "CreateContainerRequest.pod_sandbox_id": done("a ready sandbox", rules.LINE),
    "CreateContainerRequest.config": done("needed"),
    "CreateContainerRequest.sandbox_config": ignored(
        "what the sandbox was made with counts; the kubelet repeats it"
    ),
    "UpdateContainerResourcesRequest.container_id": done("a created or running container", rules.LINE),
    "UpdateContainerResourcesRequest.linux": done("needed; what is 0 or empty stays as it is"),
    **_limits("UpdateContainerResourcesRequest.linux"),
    "UpdateContainerResourcesRequest.windows": refused(_NO_WINDOWS),
    "UpdateContainerResourcesRequest.annotations": ignored("no annotation changes a limit", rules.ANY),
    "UpdatePodSandboxResourcesRequest.pod_sandbox_id": done("a ready sandbox", rules.LINE),
    "UpdatePodSandboxResourcesRequest.resources": done(
        "recorded, and limits of the pod's cgroup, unless that is one of the kubelet's (cgroup_parent), which sets them itself; "
        "what is 0 or empty stays as it is"
    ),
    **_pod_limits("UpdatePodSandboxResourcesRequest.resources"),
    "UpdatePodSandboxResourcesRequest.overhead": done("recorded, and added to the limits of memory and CPU"),
    **_pod_limits("UpdatePodSandboxResourcesRequest.overhead"),
}

TABLE: Mapping[str, Row] = {
    **_REQUESTS,
    **{f"PodSandboxConfig.{path}": row for path, row in _POD.items()},
    **{f"ContainerConfig.{path}": row for path, row in _CONTAINER.items()},
}
"""Every field, by the message that its path begins with and the names of the fields that lead to it."""
