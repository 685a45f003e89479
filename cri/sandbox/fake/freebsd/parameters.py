"""The parameters that jail_set(2) takes, and the checks that need no jail to look at."""

from __future__ import annotations

import enum
import errno
import os
import re
from collections.abc import Callable, Collection, Mapping

from cri.sandbox.freebsd.calls import DISABLE, INHERIT, NEW, JailValue

NAME_SIZE = 256
"""MAXHOSTNAMELEN, with the NUL: jail names, host names."""
META_SIZE = 4096
"""security.jail.meta_maxbufsize, with the NUL."""


class Kind(enum.Enum):
    """How a parameter's value is given."""

    INTEGER = enum.auto()
    STRING = enum.auto()
    FLAG = enum.auto()
    """By presence."""
    JAILSYS = enum.auto()
    """disable, new, inherit."""
    FIXED = enum.auto()
    """Known, but not to be set, or not through `Calls`."""


_ALLOW = (
    *(
        "set_hostname",
        "sysvipc",
        "raw_sockets",
        "chflags",
        "mount",
        "quotas",
        "socket_af",
        "mlock",
        "reserved_ports",
    ),
    *("read_msgbuf", "unprivileged_proc_debug", "suser", "nfsd", "extattr", "adjtime", "settime", "routing"),
    *("unprivileged_parent_tampering", "setaudit"),
)
ALLOW = frozenset(f"allow.{name}" for name in _ALLOW)
ALLOW_DEFAULT = frozenset(
    {"allow.set_hostname", "allow.reserved_ports", "allow.unprivileged_proc_debug", "allow.suser"}
)
"""What a new jail has, if its parent has it."""
ALLOW_BEYOND_PARENT = frozenset({"allow.unprivileged_proc_debug", "allow.unprivileged_parent_tampering"})
"""What a jail may have though its parent has it not."""
SYSV = ("sysvmsg", "sysvsem", "sysvshm")

_KINDS: Mapping[Kind, Collection[str]] = {
    Kind.INTEGER: {
        *(
            "jid",
            "securelevel",
            "osreldate",
            "enforce_statfs",
            "devfs_ruleset",
            "children.max",
            "host.hostid",
        ),
    },
    Kind.STRING: {
        *("name", "path", "osrelease", "host.hostname", "host.domainname", "host.hostuuid", "meta", "env"),
    },
    Kind.FLAG: {"persist", "ip4.saddrsel", "ip6.saddrsel", *ALLOW},
    Kind.JAILSYS: {"host", "vnet", "ip4", "ip6"},
    Kind.FIXED: {"parent", "dying", "children.cur", "cpuset.id", "ip4.addr", "ip6.addr"},
}
_OF_MODULES: Mapping[str, Mapping[str, Kind]] = {
    "linux_common": {
        "linux": Kind.JAILSYS,
        "linux.osname": Kind.STRING,
        "linux.osrelease": Kind.STRING,
        "linux.oss_version": Kind.INTEGER,
    },
    "zfs": {"zfs": Kind.JAILSYS, "zfs.mount_snapshot": Kind.INTEGER, "allow.mount.zfs": Kind.FLAG},
    **{name: {name: Kind.JAILSYS} for name in SYSV},
    **{
        kind: {f"allow.mount.{kind}": Kind.FLAG}
        for kind in ("nullfs", "tmpfs", "devfs", "procfs", "fdescfs", "linprocfs", "linsysfs")
    },
}
_LAST_CHANCE = {
    "vnet": "vnet cannot be changed after creation",
    "ip4": "ip4 cannot be changed after creation",
    "ip6": "ip6 cannot be changed after creation",
    "path": "path cannot be changed after creation",
    "osrelease": "osrelease cannot be changed after creation",
    "osreldate": "osreldate cannot be changed after creation",
}
"""What the kernel says of those that are for creation only."""


def known(modules: Collection[str]) -> dict[str, Kind]:
    """Every parameter of a kernel with these modules."""
    found = {name: kind for kind, names in _KINDS.items() for name in names}
    for module in modules:
        found |= _OF_MODULES.get(module, {})
    return found


def refuse(number: int, text: str = "", subject: str | None = None) -> OSError:
    """The kernel's error, with its errmsg if there is one."""
    return OSError(number, text or os.strerror(number), subject)


def check(parameters: Mapping[str, JailValue], kinds: Mapping[str, Kind], *, new: bool) -> None:
    """Raise what the kernel says to parameters that are wrong by themselves."""
    for name, value in parameters.items():
        kind = kinds.get(name, Kind.FIXED)
        if kind is Kind.FIXED:
            raise refuse(errno.EINVAL, f"unknown parameter: {name}", name)
        if not new and name in _LAST_CHANCE:
            raise refuse(errno.EINVAL, _LAST_CHANCE[name], name)
        if kind is Kind.FLAG and not isinstance(value, bool):
            # The kernel would take any value for true: a mistake that no error tells of.
            raise TypeError(f"{name} is given by presence: True or False, not {value!r}")
        expected = {Kind.FLAG: bool, Kind.STRING: str}.get(kind, int)
        if type(value) is not expected or (kind is Kind.JAILSYS and value not in (DISABLE, NEW, INHERIT)):
            raise refuse(errno.EINVAL, subject=name)
        if name in _CHECKS:
            _CHECKS[name](value)
    if "vnet" in parameters and {"ip4", "ip6"} & parameters.keys():
        # Even if it is inherited.
        raise refuse(errno.EINVAL, "vnet jails cannot have IP address restrictions", "vnet")
    if new and not parameters.get("persist"):
        raise refuse(errno.EINVAL, "new jail must persist or attach", "persist")


def _range(lowest: int, highest: int) -> Callable[[JailValue], None]:
    def test(value: JailValue) -> None:
        if not lowest <= int(value) <= highest:
            raise refuse(errno.EINVAL)

    return test


def _length(size: int, number: int = errno.ENAMETOOLONG) -> Callable[[JailValue], None]:
    def test(value: JailValue) -> None:
        text = str(value)
        if len(os.fsencode(text)) >= size:
            raise refuse(number, subject=text)
        if "\0" in text:
            raise refuse(errno.EINVAL, subject=text)

    return test


def _not_disabled(value: JailValue) -> None:
    if value == DISABLE:
        raise refuse(errno.EINVAL)


def _build_date(value: JailValue) -> None:
    if value == 0:
        raise refuse(errno.EINVAL, "osreldate cannot be 0", "osreldate")


def _linux_release(value: JailValue) -> None:
    if not re.fullmatch(r"0*[1-9]\d*\.\d+\.\d+(-.+)?", str(value)):
        raise refuse(errno.EINVAL, "linux.osrelease format error", "linux.osrelease")


_CHECKS: Mapping[str, Callable[[JailValue], None]] = {
    "name": _length(NAME_SIZE),
    "host.hostname": _length(NAME_SIZE),
    "host.domainname": _length(NAME_SIZE),
    "host.hostuuid": _length(64),
    "osrelease": _length(31),
    "meta": _length(META_SIZE, errno.EFBIG),
    "env": _length(META_SIZE, errno.EFBIG),
    "enforce_statfs": _range(0, 2),
    "devfs_ruleset": _range(0, 0xFFFF),
    "host": _not_disabled,
    "vnet": _not_disabled,
    "linux": _not_disabled,
    "linux.osname": _length(65),
    "linux.osrelease": _linux_release,
    "osreldate": _build_date,
}
