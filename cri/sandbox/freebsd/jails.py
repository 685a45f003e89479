"""The jails of pods and containers: their names, their parameters, and the way they are made and removed.

A pod's jail is `cri-<sandbox id>`: persistent, with a vnet, host name and System V IPC of its own, and no process in it
but those that make a socket for somebody outside. A container's is `cri-<sandbox id>.c<container id>`, a child of it
that shares all of these. Ids are hexadecimal; the letters before them keep jail(2) from taking one for a jid.

Two daemons may share a node: a jail is ours if its path lies in our state directory.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from cri.sandbox.freebsd.calls import DISABLE, INHERIT, NEW, Calls, Jail, JailValue
from cri.sandbox.host import HostError
from cri.sandbox.spec import ContainerSpec, SandboxSpec, Sharing

ANNOTATION = "org.freebsd.jail."
"""Annotations that begin so set jail parameters, as ocijail spells them."""
FIB_ANNOTATION = "org.cri-jails.fib"
"""The routing table of a container's processes (setfib(1)): jails have no parameter for it."""

DEFAULT_ALLOWED = frozenset(
    {
        "allow.chflags",
        "allow.mlock",
        "allow.raw_sockets",
        "allow.read_msgbuf",
        "allow.reserved_ports",
        "allow.set_hostname",
        "allow.socket_af",
        "allow.unprivileged_proc_debug",
    }
)
"""What annotations may give unless the operator says otherwise."""
PRIVILEGED = DEFAULT_ALLOWED | {
    "allow.mount",
    "allow.mount.devfs",
    "allow.mount.fdescfs",
    "allow.mount.procfs",
    "allow.mount.tmpfs",
    "allow.quotas",
}
"""What privileged containers have. Not allow.mount.nullfs, by which a jail could escape (CVE-2025-15547)."""
NEVER = frozenset({"allow.mount.nullfs"})

_SYSV = ("sysvmsg", "sysvsem", "sysvshm")
_JAILSYS = {"new": NEW, "inherit": INHERIT, "disable": DISABLE}
_POD = re.compile(r"cri-([0-9a-f]{8,64})")
_CONTAINER = re.compile(r"cri-([0-9a-f]{8,64})\.c([0-9a-f]{8,64})")
_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


def pod_name(sandbox_id: str) -> str:
    """The name of a pod's jail."""
    return f"cri-{sandbox_id}"


def container_name(spec: ContainerSpec) -> str:
    """The full name of a container's jail."""
    return f"{pod_name(spec.sandbox_id)}.c{spec.id}"


def pod_of(name: str) -> str | None:
    """The sandbox whose jail has this name, if it is a pod's."""
    match = _POD.fullmatch(name)
    return match[1] if match else None


def container_of(name: str) -> str | None:
    """The container whose jail has this name, if it is a container's."""
    match = _CONTAINER.fullmatch(name)
    return match[2] if match else None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator lets pods have."""

    allowed: frozenset[str] = DEFAULT_ALLOWED
    """The `allow.` parameters that annotations may give."""
    devfs_ruleset: int = 3185
    """Number of the devfs ruleset that is ours; 1 to 5 are those of /etc/defaults/devfs.rules."""


@dataclass(slots=True)
class Jails:
    """Makes and removes jails. Every method blocks."""

    calls: Calls
    policy: Policy = field(default_factory=Policy)

    def make_pod(self, spec: SandboxSpec, path: str) -> int:
        """Make a pod's jail, with `path` as its root; its jid."""
        return self._make(lambda: self._pod_parameters(spec, path), f"sandbox {spec.id}")

    def make_container(self, spec: ContainerSpec, path: str) -> int:
        """Make a container's jail, with `path` as its root; its jid."""
        return self._make(lambda: self._container_parameters(spec, path), f"container {spec.id}")

    def remove(self, name: str, subject: str, patience: float) -> bool:
        """KILL everything in a jail and remove it. Whether it is gone; after `patience` seconds it may still be dying.

        A dying jail holds nothing but its name and what still refers to it: a socket in TIME_WAIT, one that somebody
        was handed. It goes by itself. Succeeds if there is no such jail. Raises HostError.
        """
        try:
            if (jail := self.calls.jail_find(name)) is not None:
                self.calls.jail_remove(jail.jid)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # else somebody else was quicker
                raise HostError(
                    "remove jail of", subject, error.strerror or str(error), error.errno
                ) from error
        until = time.monotonic() + patience
        pause = 0.001
        while self.find(name, dying=True) is not None:
            if time.monotonic() >= until:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
            if pause == 0.1:  # long enough for a jail that nothing holds
                self._let_terminals_go()
        return True

    def _let_terminals_go(self) -> None:
        try:
            self.calls.devfs_refresh()
        except OSError as error:
            raise HostError("look into", "/dev", error.strerror or str(error), error.errno) from error

    def find(self, name: str, *, dying: bool = False) -> Jail | None:
        """The jail of a name. Raises HostError."""
        try:
            return self.calls.jail_find(name, dying=dying)
        except OSError as error:
            raise HostError("find", f"jail {name}", error.strerror or str(error), error.errno) from error

    def ours(self, state_directory: str) -> Iterator[Jail]:
        """The jails that a daemon with this state directory made, pods before their containers."""
        prefix = state_directory.rstrip("/") + "/"
        try:
            found = self.calls.jails()
        except OSError as error:
            raise HostError("list", "jails", error.strerror or str(error), error.errno) from error
        for jail in found:
            named = pod_of(jail.name) or container_of(jail.name)
            if named and jail.path.startswith(prefix):
                yield jail

    def fib(self, spec: ContainerSpec) -> int:
        """The routing table that a container asks for. Raises HostError if the kernel has no such table."""
        text = spec.annotations.get(FIB_ANNOTATION, "0")
        try:
            tables = int.from_bytes(self.calls.sysctl("net.fibs"), "little")
        except OSError:
            tables = 1
        if not text.isdecimal() or int(text) >= tables:
            raise HostError(
                "use",
                f"annotation {FIB_ANNOTATION} of container {spec.id}",
                f"{text!r} is no routing table of this kernel, which has 0 to {tables - 1}; "
                "set net.fibs in /boot/loader.conf",
                errno.EINVAL,
            )
        return int(text)

    def _make(self, parameters: Callable[[], Mapping[str, JailValue]], subject: str) -> int:
        try:
            return self.calls.jail_create(parameters())
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.EPERM:
                reason += " (a jail cannot give its child what it has not itself: look at security.jail of this node)"
            raise HostError("make jail of", subject, reason, error.errno) from error

    def _pod_parameters(self, spec: SandboxSpec, path: str) -> dict[str, JailValue]:
        parameters: dict[str, JailValue] = {
            "name": pod_name(spec.id),
            "path": path,
            "persist": True,
            # children.max stays 0: it bounds what is made from inside of the jail, not what its maker makes below it.
            # The least that a container may ask for; nothing of the pod runs in this jail itself.
            "enforce_statfs": 1,
        }
        if spec.namespaces.network is Sharing.NODE:
            parameters |= {"host": INHERIT, "ip4": INHERIT, "ip6": INHERIT}
        else:
            # Without a host name of its own a jail shows an empty one.
            parameters |= {"vnet": NEW, "host": NEW, "host.hostname": spec.hostname or spec.id[:12]}
        ipc = INHERIT if spec.namespaces.ipc is Sharing.NODE else NEW
        parameters |= {name: ipc for name in _SYSV if self.calls.has_parameter(name)}
        # A child has at most what its parent has; nothing runs in the pod's jail itself.
        allowed = self.policy.allowed | DEFAULT_ALLOWED | (PRIVILEGED if spec.privileged else frozenset())
        parameters |= dict.fromkeys(self._known(allowed - NEVER), True)
        if self.calls.has_parameter("meta"):
            parameters["meta"] = f"cri-jails.pod={spec.namespace}/{spec.name}\n"
        return parameters

    def _container_parameters(self, spec: ContainerSpec, path: str) -> dict[str, JailValue]:
        privileged = spec.security.privileged
        parameters: dict[str, JailValue] = {
            "name": container_name(spec),
            "path": path,
            "persist": True,
            "enforce_statfs": 1 if privileged else 2,
            "devfs_ruleset": self.policy.devfs_ruleset,
            "host": INHERIT,
            # Without these a child has no sockets at all, though it is in its parent's vnet.
            "ip4": INHERIT,
            "ip6": INHERIT,
        }
        parameters |= {name: INHERIT for name in _SYSV if self.calls.has_parameter(name)}
        allowed = (
            set(PRIVILEGED) - ({"allow.set_hostname"} if spec.namespaces.network is Sharing.NODE else set())
            if privileged
            else {"allow.reserved_ports", "allow.unprivileged_proc_debug"}
        )
        if privileged or not {"NET_RAW", "ALL"} & set(spec.security.drop_capabilities):
            allowed.add("allow.raw_sockets")  # ping works in the pods of every other runtime
        if "NET_RAW" in spec.security.add_capabilities:
            allowed.add("allow.raw_sockets")
        given = dict.fromkeys(self._known(allowed), True)
        given |= {
            f"allow.{name}": False
            for name in ("reserved_ports", "unprivileged_proc_debug", "set_hostname")
            if f"allow.{name}" not in allowed and self.calls.has_parameter(f"allow.{name}")
        }
        parameters |= given
        if spec.os == "linux":
            parameters |= {"linux": NEW} if self.calls.has_parameter("linux") else {}
        for key, value in spec.annotations.items():
            if key.startswith(ANNOTATION):
                parameters |= self._annotated(key, value, spec)
        return parameters

    def _annotated(self, key: str, value: str, spec: ContainerSpec) -> dict[str, JailValue]:
        """The parameter of an annotation. Raises HostError for one that must not or cannot be given."""
        name = key.removeprefix(ANNOTATION)
        lowered = value.strip().lower()

        def refused(reason: str) -> HostError:
            return HostError("use", f"annotation {key}={value} of container {spec.id}", reason, errno.EPERM)

        if name in _SYSV and lowered in _JAILSYS:
            return {name: _JAILSYS[lowered]}
        if name == "securelevel" and re.fullmatch(r"-1|[0-3]", lowered):
            return {name: int(lowered)}
        if name == "enforce_statfs" and lowered in ("1", "2"):
            return {name: int(lowered)}
        if (
            name in ("linux.osname", "linux.osrelease")
            and spec.os == "linux"
            and re.fullmatch(r"[\w.+-]{1,30}", value)
        ):
            return {name: value}
        if name == "allow.set_hostname" and spec.namespaces.network is Sharing.NODE:
            raise refused("with the node's network the name is the node's")
        if not name.startswith("allow."):
            raise refused("there is no such annotation, or it does not take this value")
        if name not in self.policy.allowed or name in NEVER:
            names = ", ".join(sorted(self.policy.allowed))
            raise refused(
                f"the operator allows only {names or 'none'}; see freebsd.allow in the configuration"
            )
        if not self.calls.has_parameter(name):
            raise refused("this kernel does not know the parameter; the module that has it may not be loaded")
        if lowered not in _TRUE | _FALSE:
            raise refused("choose true or false")
        return {name: lowered in _TRUE}

    def _known(self, names: Collection[str]) -> list[str]:
        return [name for name in sorted(names) if self.calls.has_parameter(name)]
