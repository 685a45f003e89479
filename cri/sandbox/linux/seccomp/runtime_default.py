"""The profile of ours, RuntimeDefault: which system calls a container may make, by what they are for.

Every call that Linux has is in one group, and docs/seccomp.md is made from them. What guides the choice: a call is open if
programs use it and the kernel checks by itself what it does to others; it is shut if it reaches what is the node's, if
what it changes is not told apart by namespaces, or if it opens much code of the kernel to everybody for few programs.
A capability that a container was given opens what it is for.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from dataclasses import dataclass

from cri.sandbox.linux.seccomp.profile import ALLOW, Action, Condition, Kind, Operator, Profile, Rule

_EPERM = Action(Kind.ERRNO, errno.EPERM)
_ENOSYS = Action(Kind.ERRNO, errno.ENOSYS)
_SPEC_ALLOW = 4
"""SECCOMP_FILTER_FLAG_SPEC_ALLOW: no slower for speculation's sake, as from Linux 5.16 on without asking."""

_INT = 0xFFFFFFFF
_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
_NEW_TIME = 0x80
"""CLONE_NEWTIME; in clone(2) these bits are a signal."""


@dataclass(frozen=True, slots=True)
class Open:
    """Calls that every container may make."""

    title: str
    calls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shut:
    """Calls that only some containers may make."""

    title: str
    calls: tuple[str, ...]
    why: str
    unless: tuple[str, ...] = ()
    """Capabilities, each of which opens them."""
    answer: Action = _EPERM


@dataclass(frozen=True, slots=True)
class Limited:
    """A call that every container may make with some arguments."""

    call: str
    conditions: tuple[Condition, ...]
    """One of these must hold."""
    allowed: str
    """The same, in words."""
    why: str
    unless: tuple[str, ...] = ()
    """Capabilities, each of which opens all of it."""


def _among(argument: int, values: Collection[int]) -> tuple[Condition, ...]:
    # An int is passed in a word, whose other half is anything.
    return tuple(Condition(argument, Operator.MASKED_EQ, _INT, value) for value in values)


def _without(argument: int, bits: int) -> tuple[Condition, ...]:
    return (Condition(argument, Operator.MASKED_EQ, bits, 0),)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


OPEN = (
    Open(
        "Files: opening, reading, writing",
        _words(
            "access close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fadvise64_64 "
            "arm_fadvise64_64 fallocate fcntl fcntl64 fdatasync flock fsync ftruncate ftruncate64 ioctl _llseek lseek open "
            "openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice "
            "sync sync_file_range arm_sync_file_range syncfs tee truncate truncate64 vmsplice write writev cachestat"
        ),
    ),
    Open(
        "Files: names, attributes, directories",
        _words(
            "chdir chmod chown chown32 fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fgetxattr "
            "file_getattr file_setattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat "
            "getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch "
            "fanotify_mark lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lsetxattr "
            "lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat readdir readlink readlinkat removexattr "
            "removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs statfs64 statx symlink "
            "symlinkat umask unlink unlinkat utime utimensat utimensat_time64 utimes statmount listmount"
        ),
    ),
    Open(
        "Waiting for files and events",
        _words(
            "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 _newselect "
            "pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create "
            "timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 io_cancel io_destroy io_getevents "
            "io_pgetevents io_pgetevents_time64 io_setup io_submit"
        ),
    ),
    Open(
        "Memory",
        _words(
            "brk madvise map_shadow_stack memfd_create memfd_secret membarrier mincore mlock mlock2 mlockall mmap mmap2 "
            "mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise "
            "process_mrelease remap_file_pages get_mempolicy mbind set_mempolicy set_mempolicy_home_node cacheflush"
        ),
    ),
    Open(
        "Processes and threads",
        _words(
            "arch_prctl execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv "
            "futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority getrlimit "
            "getrusage getsid gettid get_tls ioprio_get ioprio_set nice pidfd_open prctl prlimit64 rseq "
            "sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam "
            "sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr "
            "sched_setparam sched_setscheduler sched_yield set_robust_list set_thread_area set_tid_address set_tls setpgid "
            "setpriority setrlimit setsid ugetrlimit uretprobe vfork wait4 waitid waitpid"
        ),
    ),
    Open(
        "Looking into processes of the same container, as far as the kernel lets one (ptrace(2), access mode checking)",
        _words("ptrace process_vm_readv process_vm_writev pidfd_getfd"),
    ),
    Open(
        "Signals",
        _words(
            "kill pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo "
            "rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sgetmask sigaction "
            "sigaltstack signal sigpending sigprocmask sigreturn sigsuspend ssetmask tgkill tkill breakpoint"
        ),
    ),
    Open(
        "Time",
        _words(
            "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 "
            "clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create "
            "timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times"
        ),
    ),
    Open(
        "Who one is",
        _words(
            "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 "
            "getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups "
            "setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid "
            "setuid32"
        ),
    ),
    Open(
        "Sockets, pipes of System V, message queues",
        _words(
            "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 "
            "recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair ipc mq_getsetattr mq_notify "
            "mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv "
            "msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget"
        ),
    ),
    Open(
        "Giving up rights, and what one may know of the system",
        _words(
            "seccomp landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules "
            "lsm_set_self_attr getrandom sysinfo uname olduname oldolduname"
        ),
    ),
)

LIMITED = (
    Limited(
        "clone",
        _without(0, _NAMESPACES),
        "without a flag for a new namespace",
        "In a user namespace of its own anybody has every capability, and reaches code of the kernel that was written for "
        "root: most ways out of a container that were found in the last ten years began there.",
        ("SYS_ADMIN",),
    ),
    Limited(
        "unshare",
        _without(0, _NAMESPACES | _NEW_TIME),
        "without a flag for a new namespace",
        "As clone. What a thread shares with others of its process (CLONE_FS, CLONE_FILES) is its own affair.",
        ("SYS_ADMIN",),
    ),
    Limited(
        "personality",
        _among(0, (0, 8, 0x20000, 0x20008, _INT)),
        "to be a program of Linux, of 64 or 32 bits, with version 2.6 or without, and to ask",
        "Other personalities turn protections off: addresses at random, and memory that is not executable.",
    ),
    Limited(
        "socket",
        _among(0, (1, 2, 10, 16, 17)),
        "of the families UNIX, INET, INET6, NETLINK and PACKET",
        "Other families are old, or for few, and rarely looked at; VSOCK leads to the hypervisor past every network "
        "policy; ALG opens the kernel's cryptography to everybody. The kernel loads their modules for whoever asks. Since a "
        "filter cannot see its arguments, socketcall(2) of 32-bit programs makes no socket at all.",
        ("SYS_ADMIN",),
    ),
)

SHUT = (
    Shut(
        "Clone by a structure",
        ("clone3",),
        "Its flags are in memory, where a filter cannot look. Told that there is no such call, C libraries use clone(2).",
        ("SYS_ADMIN",),
        _ENOSYS,
    ),
    Shut(
        "Mounts and namespaces",
        _words(
            "fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr pivot_root setns umount "
            "umount2"
        ),
        "A container's files are what the runtime made of them: what is masked, or read-only, stays so. In a user namespace these "
        "would need no rights of the node.",
        ("SYS_ADMIN",),
    ),
    Shut(
        "Names of the machine",
        ("sethostname", "setdomainname"),
        "They are the pod's, and its other containers see them.",
        ("SYS_ADMIN",),
    ),
    Shut(
        "Watching all of a file system",
        ("fanotify_init",),
        "It can see what other containers, and the node, do with the same file system.",
        ("SYS_ADMIN",),
    ),
    Shut(
        "Quotas",
        ("quotactl", "quotactl_fd"),
        "They are the node's: file systems are shared.",
        ("SYS_ADMIN",),
    ),
    Shut(
        "Root directory",
        ("chroot",),
        "A way out of a root is to have another one below it.",
        ("SYS_CHROOT",),
    ),
    Shut(
        "Programs in the kernel",
        ("bpf",),
        "A verifier of many thousand lines is all that is between such a program and the kernel's memory.",
        ("BPF", "SYS_ADMIN"),
    ),
    Shut(
        "Performance counters",
        ("perf_event_open", "lookup_dcookie"),
        "They measure the kernel and other programs, closely enough to read secrets, and have had many holes.",
        ("PERFMON", "SYS_ADMIN"),
    ),
    Shut(
        "io_uring",
        ("io_uring_enter", "io_uring_register", "io_uring_setup"),
        "It does what other calls do, past filters such as this one, and has had more holes than any other part in its "
        "time. Programs fall back on epoll(7).",
    ),
    Shut(
        "Page faults by a program",
        ("userfaultfd",),
        "It lets a program stop the kernel in the middle of its work, which turns races into certainties.",
        ("SYS_PTRACE",),
    ),
    Shut(
        "Keys",
        ("add_key", "keyctl", "request_key"),
        "Keyrings of a user are one on the whole node: user 0 of one container would have those of another.",
    ),
    Shut(
        "Files by handle",
        ("open_by_handle_at",),
        "A handle is a number that can be guessed, and leads to any file of the file system, whatever the root is.",
        ("DAC_READ_SEARCH",),
    ),
    Shut(
        "Comparing what the kernel keeps of processes, and moving their pages",
        ("kcmp", "migrate_pages", "move_pages"),
        "They tell where the kernel has put things, and which memory of the machine is whose.",
        ("SYS_PTRACE", "SYS_NICE"),
    ),
    Shut(
        "Modules",
        ("delete_module", "finit_module", "init_module"),
        "What is loaded is the kernel.",
        ("SYS_MODULE",),
    ),
    Shut(
        "Another kernel, and the end of this one",
        ("kexec_file_load", "kexec_load", "reboot"),
        "The node's.",
        ("SYS_BOOT",),
    ),
    Shut(
        "The machine's clock",
        ("clock_settime", "clock_settime64", "settimeofday", "stime"),
        "There is one for all.",
        ("SYS_TIME",),
    ),
    Shut(
        "Messages of the kernel",
        ("syslog",),
        "They tell of other containers and of addresses in the kernel.",
        ("SYSLOG", "SYS_ADMIN"),
    ),
    Shut("Accounting", ("acct",), "It is the node's, and is written to a file.", ("SYS_PACCT",)),
    Shut(
        "Ports of the machine",
        ("ioperm", "iopl", "pciconfig_iobase", "pciconfig_read", "pciconfig_write"),
        "With them a program drives the hardware itself.",
        ("SYS_RAWIO",),
    ),
    Shut(
        "Swap",
        ("swapoff", "swapon"),
        "It is the node's.",
    ),
    Shut(
        "Terminals of others",
        ("vhangup",),
        "It takes the terminal from everybody who has it.",
        ("SYS_TTY_CONFIG",),
    ),
    Shut(
        "Segments of the processor",
        ("modify_ldt", "vm86", "vm86old"),
        "For programs of 16 bits; this corner of the kernel has had holes beyond its use. Wine needs modify_ldt for such "
        "programs, and a profile of its own.",
    ),
    Shut(
        "What is left over",
        _words("bdflush nfsservctl _sysctl sysfs uselib ustat"),
        "Nothing new uses them.",
    ),
    Shut(
        "Numbers without a call",
        _words(
            "afs_syscall break create_module epoll_ctl_old epoll_wait_old ftime get_kernel_syms getpmsg gtty idle lock mpx "
            "oldfstat oldlstat oldstat prof profil putpmsg query_module security stty tuxcall ulimit usr26 usr32 vserver"
        ),
        "This kernel would say so, too.",
        answer=_ENOSYS,
    ),
)


def profile(capabilities: Collection[str], architectures: tuple[str, ...]) -> Profile:
    """RuntimeDefault for a container with these capabilities, on a machine that runs programs of these architectures too."""
    rules = [Rule(group.calls, ALLOW) for group in OPEN]
    for limited in LIMITED:
        opened = set(limited.unless) & set(capabilities)
        conditions = [()] if opened else [(one,) for one in limited.conditions]
        rules += [Rule((limited.call,), ALLOW, condition) for condition in conditions]
    for shut in SHUT:
        opened = set(shut.unless) & set(capabilities)
        rules.append(Rule(shut.calls, ALLOW if opened else shut.answer))
    # x32 is left out: nobody has programs of it, and each call of it is a second way into the kernel.
    others = tuple(one for one in architectures if one != "x32")
    return Profile(_EPERM, tuple(rules), others, _SPEC_ALLOW)


CAPABILITIES = frozenset(name for group in (*LIMITED, *SHUT) for name in group.unless)
"""Those that make a difference."""
