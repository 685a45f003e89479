"""The calls of FreeBSD that Python has no binding for, with types and exceptions.

The module satisfies `calls.Calls`, whose docstrings tell what each call means; the second half is a warden's. What a process
does on its way into a jail, the launcher does. Every function raises OSError with the kernel's errno, the kernel's own words
where it gives some, and the object. A binding that was built on 14 has on 15 what came with 15.

Standard library and the compiled binding only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cri.sandbox.freebsd import devfs, encoding
from cri.sandbox.freebsd._kernel import ffi, lib
from cri.sandbox.freebsd.calls import Jail, JailValue, Mount, Process
from cri.sandbox.freebsd.native import Options, check, text_of
from cri.sandbox.usage import InterfaceUsage

_NAME_ROOM = 256
_PATH_ROOM = 1024
"""MAXHOSTNAMELEN and MAXPATHLEN (sys/param.h), with the NUL."""
_META_ROOM = 4096
"""What security.jail.meta_maxbufsize is unless changed."""


# jail(2)


def jail_create(parameters: Mapping[str, JailValue]) -> int:
    """Make a jail; its jid."""
    return _set_jail(parameters, lib.JAIL_CREATE, f"jail {parameters.get('name', '')}")


def jail_update(jid: int, parameters: Mapping[str, JailValue]) -> None:
    """Change a jail."""
    _set_jail({"jid": jid, **parameters}, lib.JAIL_UPDATE, f"jail {jid}")


def jail_find(name: str, *, dying: bool = False) -> Jail | None:
    """The jail of a name."""
    options = Options(f"jail {name}")
    name_buffer = options.put("name", encoding.c_string(name), _NAME_ROOM)
    return _get_jail(options, name_buffer, dying=dying)


def jails(*, dying: bool = False) -> list[Jail]:
    """Every jail below the caller's."""
    found: list[Jail] = []
    last = 0
    while True:
        options = Options(f"jail after {last}")
        options.put("lastjid", encoding.c_integer(last))
        jail = _get_jail(options, options.put("name", b"", _NAME_ROOM), dying=dying)
        if jail is None:
            return found
        found.append(jail)
        last = jail.jid


def jail_remove(jid: int) -> None:
    """KILL everything in a jail and its children."""
    check(lib.jail_remove(jid), f"jail {jid}")


def jail_meta(jid: int) -> str | None:
    """The jail's parameter `meta`, which it cannot see itself; None on a kernel that has none (14)."""
    if not has_parameter("meta"):
        return None
    room = max(int.from_bytes(sysctl("security.jail.meta_maxbufsize"), "little"), _META_ROOM)
    options = Options(f"jail {jid}")
    options.put("jid", encoding.c_integer(jid))
    meta = options.put("meta", b"", room + 1)
    options.call(lib.jail_get, lib.JAIL_DYING)
    return str(ffi.string(meta).decode())


def has_parameter(name: str) -> bool:
    """Whether this kernel knows a jail parameter."""
    oid = ffi.new("int[24]")
    size = ffi.new("size_t *", len(oid))
    # A name, and not a value: groups of parameters (`host`) are parameters themselves.
    return bool(lib.sysctlnametomib(encoding.c_string(f"security.jail.param.{name}"), oid, size) == 0)


# nmount(2), unmount(2), getfsstat(2)


def mount(kind: str, target: str, options: Mapping[str, str | None], flags: int = 0) -> None:
    """Mount a filesystem."""
    native = Options(target)
    for name, value in {"fstype": kind, "fspath": target, **options}.items():
        native.put(name, None if value is None else encoding.c_string(value))
    native.call(lib.nmount, flags)


def unmount(mount: Mount, *, force: bool = False) -> None:
    """Take a mount away, by its fsid."""
    first, second = mount.fsid
    flags = lib.MNT_BYFSID | (lib.MNT_FORCE if force else 0)
    check(lib.unmount(f"FSID:{first}:{second}".encode(), flags), mount.target)


def mounts() -> list[Mount]:
    """Every mount, in the order in which they were made."""
    while True:
        count = check(lib.getfsstat(ffi.NULL, 0, lib.MNT_NOWAIT), "mounts")
        table = ffi.new("struct statfs[]", count + 8)
        count = check(lib.getfsstat(table, ffi.sizeof(table), lib.MNT_NOWAIT), "mounts")
        if count < len(table):
            return [_mount(table[number]) for number in range(count)]


def mount_of(path: str) -> Mount:
    """The mount that a path lies on."""
    native = ffi.new("struct statfs *")
    check(lib.statfs(encoding.c_string(path), native), path)
    return _mount(native)


# devfs(4)

devfs_ruleset = devfs.set_ruleset
devfs_apply = devfs.apply


def devfs_refresh() -> None:
    """Have every devfs notice which of its devices are gone.

    A terminal that was opened in a jail keeps it dying, until each devfs that had the terminal is looked into.
    """
    for mount in mounts():
        if mount.kind == "devfs":
            with contextlib.suppress(
                FileNotFoundError, NotADirectoryError
            ):  # or the mount has gone meanwhile
                os.lstat(f"{mount.target}/.refresh")


# rctl(2)


def rctl_add(rule: str) -> None:
    """Add a rule."""
    text = encoding.c_string(rule)
    check(lib.rctl_add_rule(text, len(text), ffi.NULL, 0), f"rule {rule}")


def rctl_remove(rule_filter: str) -> None:
    """Remove the rules that match."""
    text = encoding.c_string(rule_filter)
    with contextlib.suppress(ProcessLookupError):  # ESRCH: no rule
        check(lib.rctl_remove_rule(text, len(text), ffi.NULL, 0), f"rules {rule_filter}")


def rctl_rules(rule_filter: str) -> list[str]:
    """The rules that match."""
    return encoding.rctl_rules(_ask_rctl(lib.rctl_get_rules, rule_filter))


def rctl_usage(subject: str) -> dict[str, int]:
    """What a subject uses now, by resource."""
    usage = encoding.rctl_amounts(_ask_rctl(lib.rctl_get_racct, subject))
    # The kernel keeps accounts by name, and has one of nothing but zeros for whatever name it is asked for.
    kind, _, name = subject.partition(":")
    if kind == "jail" and jail_find(name.partition(":")[0], dying=True) is None:
        raise ProcessLookupError(errno.ESRCH, "there is no such jail", subject)
    return usage


# cpuset(2)


def jail_cpus(jid: int, cpus: Collection[int]) -> None:
    """Let a jail run on these CPUs only."""
    check(lib.cri_jail_cpus(jid, list(cpus), len(cpus)), f"CPUs of jail {jid}")


def jail_cpus_now(jid: int) -> set[int]:
    """The CPUs that a jail may run on."""
    room = 1024
    while True:
        cpus = ffi.new("int[]", room)
        count = check(lib.cri_jail_cpus_now(jid, cpus, room), f"CPUs of jail {jid}")
        if count <= room:
            return set(ffi.unpack(cpus, count)) if count else set()
        room = count


# sysctl(3), modfind(2)


def sysctl(name: str) -> bytes:
    """A variable's bytes."""
    key = encoding.c_string(name)
    size = ffi.new("size_t *")
    while True:
        check(lib.sysctlbyname(key, ffi.NULL, size, ffi.NULL, 0), name)
        size[0] += size[0] // 8  # it may grow until the next call
        value = ffi.new("char[]", size[0] + 1)
        result = lib.sysctlbyname(key, value, size, ffi.NULL, 0)
        if result == 0 or ffi.errno != errno.ENOMEM:
            check(result, name)
            return bytes(ffi.buffer(value, size[0]))


def sysctl_kind(name: str) -> int:
    """The type of a variable (CTLTYPE_*), which says what its bytes mean. ENOENT."""
    return check(lib.cri_sysctl_kind(encoding.c_string(name)), name)


def sysctl_set(name: str, value: bytes) -> None:
    """Set a variable; one of a vnet is that of the caller's own. EPERM, EINVAL, ENOENT."""
    check(lib.sysctlbyname(encoding.c_string(name), ffi.NULL, ffi.NULL, value, len(value)), name)


def has_module(name: str) -> bool:
    """Whether a kernel module is there, by its own name or its file's."""
    return any(find(encoding.c_string(name)) >= 0 for find in (lib.modfind, lib.kldfind))


def process_start(pid: int) -> str | None:
    """When a process was started, None if it is gone."""
    started = ffi.new("int64_t[2]")
    try:
        check(lib.cri_process_start(pid, started), f"process {pid}")
    except ProcessLookupError:
        return None
    return f"{started[0]}.{started[1]:06}"


def processes(jids: Collection[int]) -> list[Process]:
    """The processes of these jails."""
    page = os.sysconf("SC_PAGE_SIZE")
    room = 64
    while True:
        found = ffi.new("struct process[]", room)
        count = check(lib.cri_processes(list(jids), len(jids), found, room), "processes")
        if count <= room:
            return [
                Process(
                    one.pid,
                    one.jid,
                    one.cpu_microseconds,
                    one.resident_pages * page,
                    one.system_microseconds,
                    one.threads,
                    one.minor_faults,
                    one.major_faults,
                )
                for one in found[0:count]
            ]
        room = count + count // 8


def interfaces() -> list[InterfaceUsage]:
    """The interfaces of this process's network stack."""
    room = 64
    while True:
        found = ffi.new("struct interface[]", room)
        count = check(lib.cri_interfaces(found, room), "interfaces")
        if count <= room:
            return [
                InterfaceUsage(
                    text_of(one.name),
                    one.received_bytes,
                    one.received_packets,
                    one.receive_errors,
                    one.receive_drops,
                    one.sent_bytes,
                    one.sent_packets,
                    one.send_errors,
                    one.send_drops,
                )
                for one in found[0:count]
            ]
        room = count + count // 8


# The warden


def become_reaper() -> None:
    """Inherit orphaned descendants instead of init; nothing happens if this process does already."""
    check(lib.cri_become_reaper(), "reaper")


def reaper_pids() -> list[int]:
    """All descendants, in whatever jail they are; zombies do not count."""
    room = 64
    while True:
        pids = ffi.new("int[]", room)
        found = ffi.new("unsigned int *")
        if check(lib.cri_reaper_pids(pids, room, found), "descendants") < room:
            return list(pids[0 : found[0]])
        room *= 4


def reaper_kill(signal: int, subtree: int | None = None) -> bool:
    """Send a signal to all descendants, or to a child and all that came of it. False if there was nobody."""
    try:
        check(lib.cri_reaper_kill(signal, subtree or 0), f"descendants of {subtree or 'this process'}")
    except ProcessLookupError:
        return False
    return True


def spawn(program: int, title: str, given: int, descriptors: Sequence[int], first: int) -> int:
    """Execute an open file in a child, whose pid this returns. Nothing of this process is copied; it waits for that moment.

    The child has `given` as descriptor 3, the others from number `first` on, and no environment; all signals are blocked in it.
    """
    numbers = list(descriptors)
    return check(lib.cri_spawn(program, encoding.c_string(title), given, numbers, len(numbers), first), title)


def set_title(text: str) -> None:
    """What ps and top show in place of the command line."""
    lib.cri_set_title(encoding.c_string(text))


def _set_jail(parameters: Mapping[str, JailValue], flags: int, subject: str) -> int:
    options = Options(subject)
    for name, value in parameters.items():
        options.put(*encoding.jail_option(name, value))
    return options.call(lib.jail_set, flags)


def _get_jail(options: Options, name: Any, *, dying: bool) -> Jail | None:
    path = options.put("path", b"", _PATH_ROOM)
    is_dying = ffi.cast("int *", options.put("dying", encoding.c_integer(0)))
    try:
        jid = options.call(lib.jail_get, lib.JAIL_DYING if dying else 0)
    except FileNotFoundError:
        return None
    return Jail(jid, text_of(name), text_of(path), bool(is_dying[0]))


def _mount(native: Any) -> Mount:
    return Mount(
        fsid=tuple(native.f_fsid.val),
        kind=text_of(native.f_fstypename),
        source=text_of(native.f_mntfromname),
        target=text_of(native.f_mntonname),
        flags=native.f_flags,
    )


def _ask_rctl(function: Callable[[bytes, int, Any, int], int], question: str) -> str:
    text = encoding.c_string(question)
    room = 4096
    while True:
        answer = ffi.new("char[]", room)
        result = function(text, len(text), answer, room)
        if result == 0 or ffi.errno != errno.ERANGE:
            check(result, question)
            return text_of(answer)
        room *= 4
