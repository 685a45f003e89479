"""The port: what a node's operating system must offer to carry pods and containers.

`linux/` and `freebsd/` implement it with kernels, `fake/` with a kernel in memory. The life cycles know nothing but
this. Rules for an implementation:

- A method that makes something undoes its own half-done work before it raises; the caller has recorded the object
  before it calls, and undoes what was finished.
- Methods that remove succeed on what is gone.
- No method blocks the event loop; what may hang in the kernel runs in a thread.
- Nothing here names a namespace or a jail: what only one kernel can do is a feature, told by `Features`, or refused
  with `UnsupportedError`.
"""

from __future__ import annotations

import abc
import errno
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cri.sandbox.spec import (
    ContainerSpec,
    Credentials,
    DiskUsage,
    ExitRecord,
    ProcessSpec,
    Resources,
    SandboxSpec,
    Started,
)

if TYPE_CHECKING:  # wardens import this module, and measure nothing
    from cri.sandbox.usage import Usage


class HostError(Exception):
    """The operating system refused or failed; says at what, on which object, and why.

    `errno` is the kernel's, where there is one.
    """

    def __init__(self, operation: str, subject: str, reason: str, errno: int | None = None) -> None:
        super().__init__(f"{operation} {subject}: {reason}")
        self.operation = operation
        self.subject = subject
        self.reason = reason
        self.errno = errno


class UnfitRequestError(HostError):
    """What was asked for does not fit what is there (a path that an image lacks); no retry can give it."""


class StartError(HostError):
    """The process could not be started: no such file, user, or working directory, or no right to it."""


class DisconnectedError(HostError):
    """The daemon has let go of the warden on purpose, and does not know what becomes of the call."""


class WardenGoneError(HostError):
    """The sandbox's warden has died or cannot be reached; its containers have ended with it."""


class UnreachableWardenError(HostError):
    """The warden is there, with containers, but cannot be worked with. `pid` is its process, 0 where nobody knows."""

    def __init__(
        self, operation: str, subject: str, reason: str, errno: int | None = None, *, pid: int = 0
    ) -> None:
        super().__init__(operation, subject, reason, errno)
        self.pid = pid


class WardenSilentError(UnreachableWardenError):
    """It says nothing: it was stopped, or hangs in the kernel. Its containers can be ended by the host's own means."""


class WardenVersionError(UnreachableWardenError):
    """It is of a release that this one cannot talk to. Its pod is left alone until somebody wants it stopped."""


class UnknownContainerError(HostError):
    """The warden does not know the container: it has never started it, or has been told to forget it."""


class LimitRefusedError(UnfitRequestError):
    """A limit that this kernel does not take: it makes no sense here, or not beside those of others, or what runs has more."""


class HalfUpdatedError(HostError):
    """An update of limits has failed, and not all of it could be put back: `changed` is what has the new value."""

    def __init__(
        self, operation: str, subject: str, reason: str, errno: int | None = None, *, changed: Resources
    ) -> None:
        super().__init__(operation, subject, reason, errno)
        self.changed = changed


_REFUSALS = frozenset(
    {
        errno.EINVAL,
        errno.ERANGE,
        errno.EOVERFLOW,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENODEV,
        errno.ENOSYS,
    }
    | {errno.EOPNOTSUPP, errno.EBUSY, errno.EDEADLK}
)


def refused_limit(error: HostError) -> HostError:
    """A LimitRefusedError in the place of a HostError whose number says that the kernel does not take what was asked for."""
    if type(error) is not HostError or error.errno not in _REFUSALS:
        return error
    return LimitRefusedError(error.operation, error.subject, error.reason, error.errno)


@dataclass(frozen=True, slots=True)
class Features:
    """What this kernel can do, for Status and for validation (CRI RuntimeHandlerFeatures, RuntimeFeatures)."""

    recursive_readonly_mounts: bool
    supplemental_groups_policy: bool = True
    user_namespaces: bool = False
    mount_propagation: bool = False
    host_pid: bool = False
    """Containers may see the node's processes."""
    host_ipc: bool = False
    sysctls: bool = False
    """A sandbox may have sysctls of its own."""
    shared_pids: bool = True
    """A container may see the processes of another one of its pod."""
    image_volumes: bool = False
    """An image may be mounted as a volume."""
    mount_options: bool = True
    """A mount may be noexec, nodev and nosuid."""
    device_permissions: bool = True
    """Also root of a container can be kept from reading, or from writing, a device that it is given."""
    hugepages: frozenset[str] = frozenset()
    """Sizes of large pages that can be limited, as the CRI spells them: 2MB."""
    capabilities: frozenset[str] | None = None
    """Those of capabilities(7) that a container may be given beside the default ones; None: any."""
    unified: frozenset[str] | None = frozenset()
    """The files of cgroup v2 that a limit may be given by; None: whatever there is."""
    seccomp: bool = False
    """The system calls of a container can be limited by profiles. Where they never can, RuntimeDefault is what confines there."""
    seccomp_missing: str = ""
    """Why they cannot on this node, though its kernel's kind could; names the remedy."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A finding about the node that Status reports."""

    ok: bool
    reason: str = ""
    """CamelCase, for programs."""
    message: str = ""
    """For people; names the remedy."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What a warden knows of a container."""

    container_id: str
    started: Started | None
    exited: ExitRecord | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A pod of which it is asked what it uses, or what some of its containers use."""

    sandbox: SandboxSpec
    warden: Warden | None
    containers: Sequence[ContainerSpec]
    """Running ones; all that there are, if the pod itself is asked about."""
    itself: bool = True
    """Whether the pod as a whole is asked about, and not its containers alone."""
    alone: bool = True
    """No other pod has the same `limits_parent`, so what that has used is this pod's."""
    interfaces: Mapping[str, str] = field(default_factory=dict)
    """The pod's interfaces, by the names of their other ends on the node, as far as those are known."""


class Exec(abc.ABC):
    """A process that was started beside a container's own, with the ends of its streams."""

    pid: int
    pty: int | None = None
    """Our end of its terminal, if it has one: to read, write, resize (TIOCSWINSZ); `close` closes it."""

    @abc.abstractmethod
    async def wait(self) -> int:
        """Wait for the end of the process; its exit code (128 plus the signal's number if a signal ended it)."""

    @abc.abstractmethod
    async def kill(self) -> None:
        """KILL the process and everything in its session. Returns at once; succeeds on what has ended."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of the process: it is killed if it still runs, and the warden forgets it."""


class Attachment(abc.ABC):
    """Somebody's streams, connected to those of a container's first process."""

    pty: int | None = None
    """Our end of the container's terminal, if it has one: only to resize (TIOCSWINSZ); `close` closes it."""

    @abc.abstractmethod
    async def wait(self) -> str:
        """Wait until no more output comes; why the warden let go, or "" if the container's output has ended."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Detach; the process goes on. Succeeds on what has ended."""


class Warden(abc.ABC):
    """The supervisor of one sandbox, which outlives the daemon. One connection to it."""

    pid: int

    @abc.abstractmethod
    async def containers(self) -> Sequence[ContainerState]:
        """All containers that this warden has started, for recovery."""

    @abc.abstractmethod
    async def start(self, container: ContainerSpec, log: int | None = None) -> Started:
        """Start the container's first process. `log` is where its output goes (the caller closes its own copy).

        Raises StartError when that process cannot be had, WardenGoneError when the warden is gone. After anything else it
        is not known whether the process runs.
        """

    @abc.abstractmethod
    async def exec(
        self,
        container_id: str,
        process: ProcessSpec,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
    ) -> Exec:
        """Start a process inside a running container, with these descriptors (the caller closes its own copies).

        None is /dev/null. Raises StartError, WardenGoneError.
        """

    @abc.abstractmethod
    async def attach(
        self, container_id: str, *, stdin: int | None, stdout: int | None, stderr: int | None
    ) -> Attachment:
        """Connect these descriptors (the caller closes its own copies) to a running container's first process.

        From now on its output goes to `stdout` and `stderr` as well as to the log, every byte of it, as long as somebody
        reads: who takes nothing for a second is let go, so that neither the log nor the process waits for long. (A pipe
        becomes writable by whole pages, so about 4 KiB a second are the least that a reader must take.) What comes from
        `stdin` goes to the process. Its end is passed on if the container has `stdin_once`; otherwise the process's stdin
        stays open for others. Many may be attached. Raises HostError, WardenGoneError.
        """

    @abc.abstractmethod
    async def signal(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's first process; succeeds if it has ended. Raises UnknownContainerError."""

    @abc.abstractmethod
    async def kill(self, container_id: str) -> None:
        """KILL everything in the container, also what has left the first process's session. Succeeds if it ended.

        Raises UnknownContainerError.
        """

    @abc.abstractmethod
    async def reopen_log(self, container_id: str, log: int | None = None) -> None:
        """Go on with `log` (the caller closes its own copy), between two lines."""

    @abc.abstractmethod
    async def forget(self, container_id: str) -> None:
        """Drop what the warden remembers of an ended container."""

    @abc.abstractmethod
    async def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """Make a socket that belongs to the pod's network stack; the caller closes it."""

    @abc.abstractmethod
    async def sysctl(self, name: str, value: str | None = None) -> str:
        """Return a variable of the pod's network stack; with a value, set it, and return what it was before."""

    @abc.abstractmethod
    async def exits(self) -> AsyncIterator[ExitRecord]:
        """The containers' ends, each once, as they happen; ends when the warden is gone."""
        yield  # type: ignore[misc]  # marks an asynchronous generator

    @abc.abstractmethod
    async def shutdown(self) -> None:
        """KILL everything in the sandbox and end the warden; returns when it has ended."""

    @abc.abstractmethod
    async def disconnect(self) -> None:
        """Close the connection; warden and containers go on."""


class Snapshotter(abc.ABC):
    """Unpacked layers, and the writable root filesystems made from them."""

    kind: str
    """As in the configuration: overlay, copy, zfs."""
    parallel: bool
    """Layers may be unpacked in any order; otherwise a layer's parent must be committed first."""
    overlay_whiteouts: bool
    """A layer is unpacked with overlayfs whiteouts instead of applied to its parent's content."""
    accounts: bool = False
    """The filesystem keeps account of what each root takes; else they are walked through."""

    @abc.abstractmethod
    async def chains(self) -> Mapping[str, DiskUsage | None]:
        """All committed chain ids that are whole, and what each takes; None: to be asked for by `measure`."""

    async def doubtful(self) -> Mapping[str, str]:
        """Committed chain ids that may be incomplete, each with the reason; as of the last call of `chains`."""
        return {}

    async def measure(self, chain_id: str) -> DiskUsage:
        """What a committed layer takes, which was not known. Takes its time."""
        return (await self.chains()).get(chain_id) or DiskUsage(0, 0)

    @abc.abstractmethod
    async def begin(self, chain_id: str, parent: str | None) -> Path:
        """An empty directory (or, without `overlay_whiteouts`, the parent's content) to unpack a layer into."""

    async def fit(self, chain_id: str, below: Sequence[str], tree: object) -> None:  # noqa: B027
        """Fit a layer that was unpacked by itself onto the committed ones `below`, highest first, before it is committed.

        `tree` is that of `baustelle.unpack.Unpacked`. Where layers are applied to their parents, nothing is left to do.
        Raises UnpackError.
        """

    @abc.abstractmethod
    async def commit(self, chain_id: str) -> DiskUsage:
        """Make the unpacked layer permanent, atomically: on disk as a whole when this returns."""

    @abc.abstractmethod
    async def abort(self, chain_id: str) -> None:
        """Throw a begun layer away."""

    @abc.abstractmethod
    async def remove(self, chain_id: str) -> None:
        """Take a committed layer out of sight; nothing is made from it any more. The deletion may go on behind."""


class NetworkStack(abc.ABC):
    """A pod's network stack, as the network plugins see it (`cni_plugins.types.NetworkStack`)."""

    move_target: int
    """Where an interface is moved to: a namespace descriptor on Linux, a jid on FreeBSD."""
    name: str
    """What CNI calls it (CNI_NETNS): a path on Linux, the jail's name on FreeBSD."""

    @abc.abstractmethod
    def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """A socket made inside the pod. Blocks; call it in a thread."""

    @abc.abstractmethod
    def sysctl(self, name: str, value: str | None = None) -> str:
        """A variable of the stack, and with a value, its value before that was set. Blocks. Raises OSError."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what `move_target` holds open."""


class Host(abc.ABC):
    """One node."""

    name: str
    """linux, freebsd, fake."""
    image_systems: Sequence[str] = ()
    """Operating systems whose images run here, best first; none given: only its own."""
    features: Features
    snapshots: Snapshotter
    counts_at_far_ends: bool = False
    """`usages` has to be told of the pods' interfaces by their other ends on the node."""

    @abc.abstractmethod
    async def open(self, lost: Callable[[str], None]) -> None:
        """Get ready to carry pods; `lost` is called with a sandbox id when its warden dies unasked.

        Must be called before anything starts threads that a fork could trip over (the spawner is forked here).
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of everything; pods go on."""

    @abc.abstractmethod
    def boot_id(self) -> str:
        """What tells this boot of the node from another. Raises HostError."""

    @abc.abstractmethod
    async def condition(self) -> Condition:
        """Whether pods can be run, and if not, why."""

    @abc.abstractmethod
    async def create_sandbox(self, spec: SandboxSpec) -> Warden:
        """Make the jail or the namespaces of a pod and start its warden."""

    @abc.abstractmethod
    async def find_warden(self, spec: SandboxSpec) -> Warden | None:
        """The warden of a sandbox made by an earlier daemon, or None if it is gone."""

    @abc.abstractmethod
    def network_stack(self, spec: SandboxSpec, warden: Warden) -> NetworkStack:
        """The pod's network stack, for the plugins."""

    @abc.abstractmethod
    async def network_attached(self, spec: SandboxSpec, warden: Warden) -> None:
        """Do what has to wait until the pod has its interfaces, and comes before its first container.

        Raises UnfitRequestError for what names an interface that has not come.
        """

    @abc.abstractmethod
    async def stop_sandbox(self, spec: SandboxSpec, warden: Warden | None) -> None:
        """End every process of the pod and give its kernel resources back, all but what its records need."""

    @abc.abstractmethod
    async def remove_sandbox(self, spec: SandboxSpec) -> None:
        """Remove what is left of a stopped sandbox."""

    @abc.abstractmethod
    async def update_sandbox(self, spec: SandboxSpec, resources: Resources) -> None:
        """Apply new limits to a pod as a whole, as far as the host has something of its own for that: all of them, or none.

        What it makes for them goes with `stop_sandbox`. Raises as `update_container`.
        """

    @abc.abstractmethod
    async def create_container(self, spec: ContainerSpec, first: Callable[[], None] | None = None) -> None:
        """Make root filesystem, limits and whatever else the warden needs to start the container.

        Calls `first` before that, which may block for as long as a volume does, and raises what it raises: a second visit to a
        thread would take longer than both.
        """

    @abc.abstractmethod
    async def stop_container(self, spec: ContainerSpec) -> None:
        """Give back what an ended container no longer needs (mounts, limits)."""

    @abc.abstractmethod
    async def remove_container(self, spec: ContainerSpec, then: Callable[[], None] | None = None) -> None:
        """Give back whatever of the container is not plain files below its directory, which is the caller's to remove.

        No process of it is left. A directory that is kept can be given to `create_container` again. Calls `then`, which
        may block, when that is done, and raises what it raises: a second visit to a thread would take longer than both.
        """

    @abc.abstractmethod
    async def update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        """Apply new limits to a created or running container, and to all that runs in it: all of them, or none.

        Raises LimitRefusedError for what cannot be; HalfUpdatedError, if not all of the others could be put back.
        """

    @abc.abstractmethod
    async def usages(self, pods: Sequence[Measured]) -> Mapping[str, Usage | HostError]:
        """What pods and containers have used so far, by id, each as far as it can be told; what is gone fails alone.

        Read in one visit to a thread, which takes about a tenth of a millisecond for each: the caller gives a few at a time.
        """

    @abc.abstractmethod
    async def root_usage(self, spec: ContainerSpec, check: Callable[[], None] = lambda: None) -> DiskUsage:
        """What the container's writable root filesystem takes.

        `check` is called, in a thread, for every file that has to be looked at, and may wait; not where the filesystem
        keeps account itself.
        """

    @abc.abstractmethod
    def device_of(self, path: str) -> str:
        """What the filesystem that a path is in was mounted from: a device, a dataset. May block. Raises OSError."""

    @abc.abstractmethod
    async def unknown_sandboxes(self, sandboxes: Sequence[str]) -> Sequence[str]:
        """Sandboxes of ours that are there, belong to none of these, and may still have an interface."""

    @abc.abstractmethod
    async def leftovers(self, sandboxes: Sequence[str], containers: Sequence[str]) -> Sequence[str]:
        """Remove whatever of ours belongs to none of these; says what was removed."""


__all__ = [
    "Attachment",
    "Condition",
    "ContainerState",
    "Credentials",
    "DisconnectedError",
    "Exec",
    "Features",
    "Host",
    "HostError",
    "Measured",
    "NetworkStack",
    "Snapshotter",
    "StartError",
    "UnfitRequestError",
    "UnknownContainerError",
    "UnreachableWardenError",
    "Warden",
    "WardenGoneError",
    "WardenSilentError",
    "WardenVersionError",
]
