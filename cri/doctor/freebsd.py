"""Checks of a FreeBSD node."""

from __future__ import annotations

import errno
import ipaddress
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cni_plugins.errors import KernelError
from cri.config import Config
from cri.doctor import advisories, pf
from cri.doctor.common import existing
from cri.doctor.finding import Check, Finding, Level, failure, note, ok, warning
from cri.sandbox.freebsd import health, sysctls
from cri.sandbox.freebsd.calls import Calls, Mount
from cri.sandbox.freebsd.health import Module

LEAST_RELEASE = (14, 0)
"""Netlink and nullfs mounts of single files came with it."""
NEWEST_KNOWN = (15, 1)
"""The last release that this driver was run on."""

MODULES: Sequence[tuple[Module, Level]] = (
    *((module, Level.FAILURE) for module in health.ESSENTIAL_MODULES),
    (Module("tmpfs", "memory volumes and /dev/shm are mounted with it"), Level.FAILURE),
    (Module("fdescfs", "containers have /dev/fd by it"), Level.FAILURE),
    (Module("if_epair", "a pod is connected by a pair of these"), Level.FAILURE),
    (Module("if_bridge", "pods are connected by it"), Level.FAILURE),
    (Module("linux64elf", "Linux images run by it", "linux64"), Level.NOTE),
    (Module("linprocfs", "Linux images have /proc by it"), Level.NOTE),
    (Module("linsysfs", "Linux images have /sys by it"), Level.NOTE),
)
"""With how bad it is to be without them. pf and zfs have checks of their own."""

PF_REMEDY = "sysrc pf_enable=YES && service pf start"

FEW_CHILDREN = 512
"""Jails for 110 pods, the kubelet's usual limit, of some containers each."""

_FIRST_DESCRIPTORS = 1024
"""What was left open by accident has a low number."""


def checks(calls: Calls, config: Config) -> Sequence[Check]:
    """In the order in which they are shown."""
    return (
        Check("kernel", partial(kernel, calls)),
        Check("modules", partial(modules, calls)),
        Check("vimage", partial(vimage, calls)),
        Check("racct", partial(racct, calls)),
        Check("jail", partial(jail, calls)),
        Check("securelevel", partial(securelevel, calls)),
        Check("fds", inherited_directories),
        Check("forwarding", partial(forwarding, calls, config.network.subnets)),
        Check("pf", partial(packet_filter, calls)),
        Check("zfs", partial(zfs, calls, config)),
        Check("runtime_dir", partial(runtime_directory, calls, config.runtime_dir)),
    )


def kernel(calls: Calls) -> Iterator[Finding]:
    """Which kernel this is, and which advisories it is open to."""
    found = advisories.Kernel(
        release=sysctls.text(calls, "kern.osrelease") or "",
        version=sysctls.text(calls, "kern.version") or "",
        ident=sysctls.text(calls, "kern.ident") or "",
    )
    date = sysctls.number(calls, "kern.osreldate") or 0
    major_minor = date // 100_000, date // 1000 % 100
    name = f"{found.release} {found.ident}, __FreeBSD_version {date}"
    if major_minor < LEAST_RELEASE:
        yield failure(
            "kernel", f"{name}: FreeBSD 14.0 is the oldest that will do", "freebsd-update upgrade -r"
        )
    elif major_minor > NEWEST_KNOWN:
        yield note("kernel", f"{name}: newer than any that cri-jails was run on")
    elif not calls.has_parameter("meta"):
        yield note("kernel", f"{name}: jails have no meta before 15.0, so recovery goes by their names alone")
    else:
        yield ok("kernel", name)
    yield from advisories.judge(found)


def modules(calls: Calls) -> Iterator[Finding]:
    """Which kernel modules are there."""
    present = []
    for module, level in MODULES:
        if calls.has_module(module.name):
            present.append(module.name)
        else:
            yield Finding("modules", level, f"{module.name} is missing: {module.purpose}", module.remedy)
    yield ok("modules", f"{', '.join(present) or 'none'} are there")


def vimage(calls: Calls) -> Iterator[Finding]:
    """Whether a pod can have a network of its own."""
    if health.has_vnet(calls):
        yield ok("vimage", "a jail can have a network stack of its own")
    else:
        message = "this kernel was built without VIMAGE: only pods on the host's network can run"
        yield failure("vimage", message, "boot a GENERIC kernel, or build yours with: options VIMAGE")


def racct(calls: Calls) -> Iterator[Finding]:
    """Whether limits can be enforced."""
    if health.has_racct(calls):
        yield ok("racct", "resources are counted and can be limited")
    elif sysctls.number(calls, "kern.racct.enable") is None:
        message = "this kernel was built without RACCT: limits are neither enforced nor measured"
        yield warning("racct", message, "boot a GENERIC kernel, or build yours with: options RACCT, RCTL")
    else:
        message = "racct is off: limits are neither enforced nor measured"
        yield warning("racct", message, health.RACCT_REMEDY)


def jail(calls: Calls) -> Iterator[Finding]:
    """Whether jails can be made, if we are in one ourselves."""
    if not sysctls.number(calls, "security.jail.jailed"):
        yield ok("jail", "not in a jail")
        return
    children = health.child_jails(calls)
    if children < 2:
        message = f"we are in a jail that may have {children} jails below it; a pod needs 2 and more"
        yield failure("jail", message, health.CHILDREN_REMEDY)
    elif children < FEW_CHILDREN:
        message = f"we are in a jail that may have {children} jails below it: few for a node"
        yield warning("jail", message, health.CHILDREN_REMEDY)
    else:
        yield note("jail", f"we are in a jail, which may have {children} jails below it")
    if not sysctls.number(calls, "security.jail.vnet"):
        message = "this jail has no network stack of its own: the pods' bridge would be the host's"
        yield failure("jail", message, "in the jail.conf(5) of this jail, on its host: vnet;")


def securelevel(calls: Calls) -> Iterator[Finding]:
    """Whether the node's security level forbids what pods need (securelevel(7))."""
    level = sysctls.number(calls, "kern.securelevel") or 0
    message = f"securelevel is {level}"
    remedy = "sysrc kern_securelevel_enable=NO, then reboot"
    if level > 2:
        yield failure(
            "securelevel", f"{message}: pf rules cannot be changed, so there is no NAT for pods", remedy
        )
    elif level > 0:
        message += (
            ": no module can be loaded, and files with the flag schg, as in FreeBSD images, cannot be removed"
        )
        yield warning("securelevel", message, remedy)
    else:
        yield ok("securelevel", message)


def inherited_directories() -> Iterator[Finding]:
    """Whether whoever started us left directories open: jail_attach(2) then fails (FreeBSD-EN-24:17.pam_xdg)."""
    leaked = [number for number in range(3, _FIRST_DESCRIPTORS) if _is_directory(number)]
    if leaked:
        numbers = ", ".join(map(str, leaked))
        message = (
            f"our parent left directories open (descriptor {numbers}), which keeps processes out of jails"
        )
        yield warning("fds", f"{message}: EN-24:17.pam_xdg, if this is a login", advisories.UPDATE)
    else:
        yield ok("fds", "no directory was left open by our parent")


def _is_directory(descriptor: int) -> bool:
    try:
        return stat.S_ISDIR(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def forwarding(calls: Calls, subnets: Sequence[str]) -> Iterator[Finding]:
    """Whether pods can reach beyond the node."""
    pods = {ipaddress.ip_network(subnet).version for subnet in subnets}
    for version, name, variable in (
        (4, "net.inet.ip.forwarding", "gateway_enable"),
        (6, "net.inet6.ip6.forwarding", "ipv6_gateway_enable"),
    ):
        remedy = f"sysctl {name}=1 && sysrc {variable}=YES"
        if sysctls.number(calls, name):
            yield ok("forwarding", f"IPv{version} is forwarded")
        elif version in pods:
            message = f"IPv{version} is not forwarded; the daemon turns it on with the first pod"
            yield note("forwarding", message, remedy)
        else:
            yield note("forwarding", f"IPv{version} is not forwarded; pods have no addresses of it", remedy)


def packet_filter(calls: Calls, ask: Callable[[], pf.State] = pf.state) -> Iterator[Finding]:
    """Whether pf is there for NAT and host ports, and its ruleset leads to those of pods."""
    if not calls.has_module("pf"):
        message = "pf is not loaded: pods reach nothing beyond the node, and have no host ports"
        yield failure("pf", message, PF_REMEDY)
        return
    try:
        state = ask()
    except ImportError as error:
        message = f"pf is loaded; cannot tell whether it is enabled: the binding is not compiled: {error}"
        yield warning("pf", message, "install cri-jails again, with a C compiler there")
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM):
            raise
        yield warning("pf", f"pf is loaded; cannot tell whether it is enabled: {error}")
    else:
        if state.running:
            yield ok("pf", "pf is enabled")
        else:
            yield failure("pf", "pf is loaded but not enabled: there is no NAT for pods", PF_REMEDY)
        for line in state.missing:
            message = f"the loaded ruleset has no line `{line}`, so rules of pods are not read"
            yield failure(
                "pf", message, "put it in /etc/pf.conf before all filter rules && service pf reload"
            )
        if not state.missing:
            yield ok("pf", "the loaded ruleset leads to the rules of pods")
        for problem in state.host:
            yield warning("pf", problem)
        if not state.host:
            yield ok("pf", "what the node itself sends is redirected to host ports")


def zfs(calls: Calls, config: Config) -> Iterator[Finding]:
    """What the state directory lies on, and so how root filesystems are made."""
    under = mount_of(calls.mounts(), config.state_dir)
    kind = under.kind if under else "unknown"
    remedy = f"zfs create -o mountpoint={config.state_dir} POOL/cri-jails"
    if kind == "zfs" and under:
        yield ok("zfs", f"{config.state_dir} is on ZFS ({under.source}): root filesystems are clones")
    elif config.snapshotter == "zfs":
        yield failure("zfs", f"snapshotter is zfs, but {config.state_dir} is on {kind}", remedy)
    else:
        message = f"{config.state_dir} is on {kind}: every container gets a copy of its image"
        if not calls.has_module("zfsctrl"):
            remedy = f"sysrc zfs_enable=YES && service zfs start; then, in a pool: {remedy}"
        yield note("zfs", message, remedy)


def runtime_directory(calls: Calls, directory: Path) -> Iterator[Finding]:
    """Whether a reboot empties the runtime directory: what is in it would be taken for wardens that live."""
    under = mount_of(calls.mounts(), directory)
    kind = under.kind if under else "unknown"
    if kind == "tmpfs":
        yield ok("runtime_dir", f"{directory} is in memory")
    elif _real(directory).is_relative_to(_real(Path("/var/run"))):
        yield ok("runtime_dir", f"{directory} is cleared at boot by cleanvar, unless rc.conf turns that off")
    else:
        message = f"{directory} is on {kind} and outlives a reboot"
        remedy = f"echo 'tmpfs {directory} tmpfs rw,mode=711 0 0' >> /etc/fstab && mount {directory}"
        yield warning("runtime_dir", message, remedy)


def mount_of(mounts: Sequence[Mount], path: Path) -> Mount | None:
    """The mount that a path lies on, or would lie on. Of several at one place the last one counts."""
    real = _real(path)
    found: Mount | None = None
    for mount in mounts:
        target = Path(mount.target)
        if real.is_relative_to(target) and (found is None or target.is_relative_to(found.target)):
            found = mount
    return found


def _real(path: Path) -> Path:
    """The path with the links resolved that are there by now."""
    place = existing(path)
    return place.resolve() / path.relative_to(place)
