"""What a sandbox, a container and a process are to be, in the words of no particular kernel.

The life cycles (`pod.py`, `container.py`) make these values out of CRI messages; a host driver makes jails or
namespaces out of them. They also travel to the warden as JSON, so this module imports the standard library only.
Text that comes from users (arguments, environment, paths) may hold any bytes: it is kept as `str` with the
`surrogateescape` error handler, as `os.fsdecode` does.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Sharing(enum.Enum):
    """With whom a namespace is shared (CRI NamespaceMode)."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"
    TARGET = "target"


class Propagation(enum.Enum):
    """Whether mounts made later cross a volume mount (CRI MountPropagation)."""

    PRIVATE = "private"
    HOST_TO_CONTAINER = "rslave"
    BIDIRECTIONAL = "rshared"


class GroupsPolicy(enum.Enum):
    """Where a process's supplemental groups come from (CRI SupplementalGroupsPolicy)."""

    MERGE = "merge"
    STRICT = "strict"


@dataclass(frozen=True, slots=True)
class Namespaces:
    """What the pod or container has of its own, and what it shares."""

    network: Sharing = Sharing.POD
    pid: Sharing = Sharing.CONTAINER
    ipc: Sharing = Sharing.POD
    target_id: str = ""
    """The container whose processes are visible, when `pid` is TARGET."""


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the node that leads to a port of the pod."""

    protocol: str
    """tcp, udp, sctp."""
    host_port: int
    container_port: int
    host_ip: str = ""
    """The one address of the node that it is open on; empty: every one."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A pod sandbox."""

    id: str
    name: str
    namespace: str
    directory: str
    """State directory of the sandbox: exists, is ours alone, and survives the daemon and a reboot."""
    runtime_directory: str
    """Directory for the warden's socket: gone after a reboot."""
    hostname: str = ""
    namespaces: Namespaces = field(default_factory=Namespaces)
    limits_parent: str = ""
    """The accounting group that the kubelet made for the pod (CRI cgroup_parent); empty: one of our own."""
    sysctls: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    privileged: bool = False
    user: UserSpec | None = None
    uid: str = ""
    """The pod's uid, as the kubelet has it."""
    port_mappings: tuple[PortMapping, ...] = ()
    resources: Resources | None = None
    """Limits of the pod as a whole, once it has been given some while it ran."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """What resolv.conf(5) is to say."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodAddresses:
    """What a pod's network has given it."""

    addresses: tuple[str, ...]
    """The first one is the primary."""
    resolver: Resolver = field(default_factory=Resolver)
    """For pods that are told of none elsewhere."""


@dataclass(frozen=True, slots=True)
class MountSpec:
    """A file or directory of the node, shown inside the container."""

    source: str
    """Path on the node, links already resolved."""
    target: str
    """Path in the container; resolved by the driver without leaving the root filesystem."""
    readonly: bool = False
    recursive_readonly: bool = False
    propagation: Propagation = Propagation.PRIVATE
    options: tuple[str, ...] = ()
    """Of noexec, nodev, nosuid."""
    tmpfs: bool = False
    """An empty memory filesystem instead of `source`."""
    image_layers: tuple[str, ...] = ()
    """Chain ids of an unpacked image to show instead of `source`, lowest first."""
    image_path: str = ""
    """What of that image; empty: all of it."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device node of the node, shown inside the container."""

    source: str
    target: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits; None leaves a resource as it is (CRI LinuxContainerResources)."""

    cpu_period: int | None = None
    """Microseconds."""
    cpu_quota: int | None = None
    """Microseconds of CPU time in one period; -1 is no limit."""
    cpu_shares: int | None = None
    """Relative weight, 2 to 262144."""
    memory_limit: int | None = None
    """Bytes."""
    memory_swap_limit: int | None = None
    """Bytes of memory and swap together."""
    pids_limit: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    oom_score_adj: int | None = None
    hugepage_limits: dict[str, int] = field(default_factory=dict)
    unified: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UserSpec:
    """Who runs the process, as asked for; names are looked up in the files of the image by the driver."""

    user: str = ""
    """A name or a number, or NAME:GROUP as an image config has it; empty is root."""
    group: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who runs the process, as it came out (CRI LinuxContainerUser)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Of a terminal, in characters."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process of a container: its first one, or one of an exec."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    """KEY=VALUE each."""
    cwd: str = "/"
    user: UserSpec = field(default_factory=UserSpec)
    tty: bool = False
    terminal_size: TerminalSize | None = None
    """What the program finds when it starts; the kernel's default (0 x 0) if None."""
    stdin: bool = False
    stdin_once: bool = False
    """The first stdin that is attached and ends, ends the program's."""


@dataclass(frozen=True, slots=True)
class SeccompProfile:
    """Which system calls the processes of a container may make."""

    path: str = ""
    """The profile, a file of the node; empty: the runtime's own (RuntimeDefault)."""


@dataclass(frozen=True, slots=True)
class Security:
    """What the processes of a container may do."""

    privileged: bool = False
    readonly_root: bool = False
    no_new_privileges: bool = False
    add_capabilities: tuple[str, ...] = ()
    """Without the CAP_ prefix; ALL stands for every one."""
    drop_capabilities: tuple[str, ...] = ()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SeccompProfile | None = None
    """None: all of them (Unconfined)."""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container of a pod."""

    id: str
    sandbox_id: str
    directory: str
    """State directory of the container: exists, is ours alone; its `exit.json` is the exit record."""
    layers: tuple[str, ...]
    """Chain ids of the unpacked image, lowest first."""
    process: ProcessSpec
    os: str = ""
    """What the image was built for, as the OCI spells it; empty: this node's own system."""
    namespaces: Namespaces = field(default_factory=Namespaces)
    hostname: str = ""
    mounts: tuple[MountSpec, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    resources: Resources = field(default_factory=Resources)
    security: Security = field(default_factory=Security)
    log_path: str = ""
    """Absolute path of the CRI log file; empty: output is dropped."""
    limits_parent: str = ""
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Started:
    """A container's first process, as the warden started it."""

    pid: int
    started_at: int
    """Nanoseconds since the epoch."""
    credentials: Credentials


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a container ended; on disk before anybody is told."""

    container_id: str
    exit_code: int
    """The exit status, or 128 plus the signal's number, as shells have it."""
    finished_at: int
    """Nanoseconds since the epoch."""
    signal: int = 0
    """The signal that ended it, or 0."""
    oom_killed: bool = False
    """The memory limit ended it."""
    message: str = ""
    """Why there is no true exit code, where there is none (a warden that died)."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What a directory tree takes on disk."""

    bytes: int
    inodes: int
