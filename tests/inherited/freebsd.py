"""What a process has of all that survives fork and exec on FreeBSD: read from outside, as root, by its number.

As a program, `freebsd.py PROGRAM ARGUMENT...` sets all of it to what no container should get, and executes the rest of its arguments.
Standard library only. Numbers are the kernel's: sys/procctl.h, sys/sysctl.h, sys/proc.h, sys/rtprio.h, sys/cpuset.h, bsm/audit.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import subprocess
import sys

LIMITS = (
    *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "MEMLOCK", "NPROC", "NOFILE", "SBSIZE", "VMEM", "NPTS"),
    *("SWAP", "KQUEUES", "UMTXP", "PIPEBUF"),
)
P_PID = 0
PAGE_TABLE_ISOLATION, ADDRESS_LENGTH = 0x10000000, 0x10000002
# P2_ and P_ of sys/proc.h: what procctl(2) and protect(1) leave.
FLAGS2 = {
    "tracing forbidden": 0x6,
    "signals in capability mode": 0x20,
    "address randomisation": 0xC0,
    "maximum protection": 0x600,
    "stack gap disabled": 0x1800,
    "no new privileges": 0x8000,
    "write and execute": 0x30000,
    "logging of fatal signals": 0x1800000,
    "protection is inherited": 0x1,
}
P_PROTECTED = 0x100000
_CPUS = 128
"""Bytes of a cpuset_t."""
_libc = ctypes.CDLL(None, use_errno=True)


class Audit(ctypes.Structure):
    """struct auditinfo_addr: user, mask, terminal, session, flags."""

    _fields_ = (
        ("user", ctypes.c_uint32),
        ("mask", ctypes.c_uint32 * 2),
        ("port", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("address", ctypes.c_uint32 * 4),
        ("session", ctypes.c_int32),
        ("flags", ctypes.c_uint64),
    )


class AuditOf(ctypes.Structure):
    """struct auditpinfo_addr."""

    _fields_ = (("pid", ctypes.c_int32), *Audit._fields_)


def read(pid: int) -> dict[str, str]:
    """All of a process, by the names of docs/inherited.md."""
    found = {
        "descriptors": " ".join(map(str, sorted(_descriptors(pid)))),
        "umask": f"{_number(39, pid, 'H'):03o}",  # KERN_PROC_UMASK
        "blocked signals": _ps("sigmask", pid),
        "ignored signals": _ps("ignored", pid),
        "session": "own" if _ps("sid", pid) == _ps("pgid", pid) == str(pid) else "another's",
        "controlling terminal": "none" if _ps("tt", pid) == "-" else "one",
        "jail": _ps("jid", pid),
        "user ids": " ".join(_ps(name, pid) for name in ("ruid", "uid", "svuid")),
        "group ids": " ".join(_ps(name, pid) for name in ("rgid", "gid", "svgid")),
        "login name": _ps("logname", pid),
        "login class": _ps("class", pid),
        "nice": str(int(_ps("nice", pid))),
        "scheduling class": _class(pid),
        "routing table": _ps("fib", pid),
        "kernel trace": _ps("ktrace", pid),
        "CPU affinity": _affinity(3, pid),  # CPU_LEVEL_WHICH
        "memory domains": _domains(3, pid),
        "audit user": _audit(pid),
        "page table isolation": _status(PAGE_TABLE_ISOLATION + 1, pid),
        "address length": _status(ADDRESS_LENGTH + 1, pid),
        "protection from lack of memory": str(int(_ps("flags", pid), 16) & P_PROTECTED),
    }
    flags = int(_ps("flags2", pid), 16)
    found |= {name: f"{flags & mask:x}" for name, mask in FLAGS2.items()}
    groups = _sysctl(34, pid)  # KERN_PROC_GROUPS
    found["supplementary groups"] = " ".join(map(str, struct.unpack(f"={len(groups) // 4}I", groups)))
    for number, name in enumerate(LIMITS):
        soft, hard = struct.unpack("=qq", _sysctl(37, pid, number))  # KERN_PROC_RLIMIT
        found[f"limit {name}"] = " ".join(
            str(-1 if one == resource.RLIM_INFINITY else one) for one in (soft, hard)
        )
    return found


def spoil() -> None:
    """Make all of it wrong, as far as that can be taken back."""
    os.setgroups([0, 4242])
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    _libc.rtprio(1, 0, struct.pack("=HH", 4, 0))  # RTP_SET, RTP_PRIO_IDLE
    os.umask(0o077)
    # Neither setsid, which a spawner does, nor setlogin, which would be for others of its session, too.
    _libc.setloginclass(b"spoiled")
    one = (1).to_bytes(_CPUS, "little")
    _libc.cpuset_setaffinity(3, 2, ctypes.c_int64(-1), ctypes.c_size_t(_CPUS), one)  # CPU_WHICH_PID
    _libc.cpuset_setdomain(
        3, 2, ctypes.c_int64(-1), ctypes.c_size_t(32), (1).to_bytes(32, "little"), 3
    )  # PREFER
    session = Audit(user=1000, kind=4)
    _libc.setaudit_addr(ctypes.byref(session), ctypes.sizeof(session))
    for command, value in (
        *(
            (13, 2),
            (15, 1),
            (17, 2 | 8),
            (23, 2),
            (9, 1),
            (7, 3),
        ),  # ASLR PROTMAX STACKGAP LOGSIGEXIT TRAPCAP TRACE
        *((1, 0x21), (ADDRESS_LENGTH, 1)),  # SPROTECT with its inheritance
    ):
        _libc.procctl(P_PID, ctypes.c_int64(os.getpid()), command, ctypes.byref(ctypes.c_int(value)))
    for number in range(len(LIMITS)):
        soft, hard = resource.getrlimit(number)
        less = {
            0: 1000000,
            2: 1 << 33,
            6: 1 << 20,
            3: 4 << 20,
            4: 1 << 20,
            7: 4000,
            8: 20000,
            11: 400,
            13: 4000,
            14: 4000,
        }.get(number, 1 << 40)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(number, (less, less if number in (0, 4, 7, 11) else hard))
        del soft
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.dup2(os.open("/etc/passwd", os.O_RDONLY), 77)


def _ps(keyword: str, pid: int) -> str:
    command = ["ps", "-ww", "-o", f"{keyword}=", "-p", str(pid)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _descriptors(pid: int) -> list[int]:
    """Of struct kinfo_file: its size, type, descriptor; a negative one is the root, say."""
    data, found = _sysctl(33, pid), []  # KERN_PROC_FILEDESC
    while data:
        size, _, number = struct.unpack_from("=iii", data)
        if size == 0:
            break
        found += [number] * (number >= 0)
        data = data[size:]
    return found


def _class(pid: int) -> str:
    priority = ctypes.create_string_buffer(4)
    if _libc.rtprio(0, pid, priority):  # RTP_LOOKUP
        raise OSError(ctypes.get_errno(), "rtprio")
    return {2: "realtime", 3: "normal", 4: "idle"}[struct.unpack("=HH", priority.raw)[0]]


def _sysctl(*mib: int) -> bytes:
    """kern.proc.SECOND.PID."""
    names = (ctypes.c_int * (len(mib) + 2))(1, 14, *mib)
    value, size = ctypes.create_string_buffer(1 << 20), ctypes.c_size_t(1 << 20)
    if _libc.sysctl(names, len(names), value, ctypes.byref(size), None, ctypes.c_size_t(0)):
        raise OSError(ctypes.get_errno(), f"sysctl {list(names)}")
    return value.raw[: size.value]


def _number(kind: int, pid: int, layout: str) -> int:
    return struct.unpack(f"={layout}", _sysctl(kind, pid))[0]


def _affinity(level: int, pid: int) -> str:
    mask = ctypes.create_string_buffer(_CPUS)
    if _libc.cpuset_getaffinity(level, 2, ctypes.c_int64(pid), ctypes.c_size_t(_CPUS), mask):
        raise OSError(ctypes.get_errno(), "cpuset_getaffinity")
    bits = int.from_bytes(mask.raw, "little")
    return " ".join(str(number) for number in range(8 * _CPUS) if bits >> number & 1)


def _domains(level: int, pid: int) -> str:
    mask, policy = ctypes.create_string_buffer(32), ctypes.c_int()
    if _libc.cpuset_getdomain(level, 2, ctypes.c_int64(pid), ctypes.c_size_t(32), mask, ctypes.byref(policy)):
        raise OSError(ctypes.get_errno(), "cpuset_getdomain")
    return f"policy {policy.value} of {int.from_bytes(mask.raw, 'little'):x}"


def _audit(pid: int) -> str:
    of = AuditOf(pid=pid)
    if _libc.auditon(28, ctypes.byref(of), ctypes.sizeof(of)):  # A_GETPINFO_ADDR
        return "-"
    return str(ctypes.c_int32(of.user).value)


def _status(command: int, pid: int) -> str:
    value = ctypes.c_int()
    if _libc.procctl(P_PID, ctypes.c_int64(pid), command, ctypes.byref(value)):
        return "-"
    return f"{value.value & 0xFFFF:x}"


if __name__ == "__main__":
    spoil()
    os.execv(sys.argv[1], sys.argv[1:])
