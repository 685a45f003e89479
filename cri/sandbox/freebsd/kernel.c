/* What cri.sandbox.freebsd.kernel needs of FreeBSD and Python does not have. Each function returns what the kernel
   returns, -1 with errno on failure.

   The layouts and numbers come from the headers of the base system; the asserts say which of them the module relies on,
   so that scripts/check-freebsd-abi tells of a change before a node does. They hold on every 64-bit architecture. */

#include <sys/param.h>
#include <sys/cpuset.h>
#include <sys/ioctl.h>
#include <sys/jail.h>
#include <sys/linker.h>
#include <sys/module.h>
#include <sys/mount.h>
#include <sys/procctl.h>
#include <sys/queue.h>
#include <sys/rctl.h>
#include <sys/socket.h>
#include <sys/sysctl.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <net/if.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fs/devfs/devfs.h>

/* jail(2) */
_Static_assert(JAIL_CREATE == 0x01 && JAIL_UPDATE == 0x02, "jail_set: flags");
_Static_assert(JAIL_DYING == 0x08, "jail_get: flags");
_Static_assert(JAIL_SYS_DISABLE == 0 && JAIL_SYS_NEW == 1 && JAIL_SYS_INHERIT == 2, "jail: calls.DISABLE, NEW, INHERIT");
_Static_assert(sizeof(struct iovec) == 16, "jail_set, nmount: struct iovec");

/* mount(2) */
_Static_assert(MNT_RDONLY == 0x1 && MNT_NOEXEC == 0x4 && MNT_NOSUID == 0x8, "mount: calls.MNT_");
_Static_assert(MNT_IGNORE == 0x00800000, "mount: calls.MNT_IGNORE");
_Static_assert(MNT_FORCE == 0x00080000 && MNT_BYFSID == 0x08000000, "unmount: flags");
_Static_assert(MNT_NOWAIT == 2, "getfsstat: mode");
_Static_assert(STATFS_VERSION == 0x20140518 && sizeof(struct statfs) == 2344, "getfsstat: struct statfs");
_Static_assert(offsetof(struct statfs, f_fsid) == 192 && sizeof(fsid_t) == 8, "getfsstat: fsid");

/* devfs(4) */
_Static_assert(DEVFS_MAGIC == 0xdb0a087a, "devfs: magic");
_Static_assert(sizeof(struct devfs_rule) == 236 && DEVFS_MAXPTRNLEN == 200, "devfs: struct devfs_rule");
_Static_assert(DEVFSIO_RADD == 0xc0ec4400 && DEVFSIO_RDEL == 0x80044401, "devfs: rule add, rule del");
_Static_assert(DEVFSIO_RAPPLY == 0x80ec4402 && DEVFSIO_RGETNEXT == 0xc0ec4404, "devfs: rule apply, rule show");

/* procctl(2) */
_Static_assert(PROC_REAP_ACQUIRE == 2 && PROC_REAP_GETPIDS == 5 && PROC_REAP_KILL == 6, "procctl: reaper");
_Static_assert(sizeof(struct procctl_reaper_pids) == 72 && sizeof(struct procctl_reaper_pidinfo) == 72, "procctl: pids");
_Static_assert(REAPER_PIDINFO_VALID == 1 && REAPER_PIDINFO_ZOMBIE == 8, "procctl: flags of pids");
_Static_assert(sizeof(struct procctl_reaper_kill) == 80 && REAPER_KILL_SUBTREE == 2, "procctl: kill");

/* sysctl kern.proc, cpuset(2) */
_Static_assert(sizeof(struct kinfo_proc) == KINFO_PROC_SIZE && KINFO_PROC_SIZE == 1088, "kern.proc: struct kinfo_proc");
_Static_assert(offsetof(struct kinfo_proc, ki_pid) == 72 && offsetof(struct kinfo_proc, ki_rssize) == 264 &&
               offsetof(struct kinfo_proc, ki_runtime) == 328 && offsetof(struct kinfo_proc, ki_childtime) == 352 &&
               offsetof(struct kinfo_proc, ki_stat) == 388 && offsetof(struct kinfo_proc, ki_jid) == 592,
               "kern.proc: fields");
_Static_assert(SZOMB == 5, "kern.proc: zombie");
_Static_assert(CPU_LEVEL_WHICH == 3 && CPU_WHICH_JAIL == 5, "cpuset: level, which");

_Static_assert(CTLTYPE == 0xf && CTLTYPE_INT == 2 && CTLTYPE_STRING == 3 && CTLTYPE_S64 == 4 && CTLTYPE_UINT == 6 &&
               CTLTYPE_LONG == 7 && CTLTYPE_ULONG == 8 && CTLTYPE_U64 == 9 && CTLTYPE_U8 == 10 && CTLTYPE_U16 == 11 &&
               CTLTYPE_S8 == 12 && CTLTYPE_S16 == 13 && CTLTYPE_S32 == 14 && CTLTYPE_U32 == 15 && sizeof(long) == 8,
               "sysctl: sysctls.STRING, INTEGERS");

static int cri_devfs(int fd, unsigned long request, void *argument) { return ioctl(fd, request, argument); }

static int cri_become_reaper(void) {
    int result = procctl(P_PID, getpid(), PROC_REAP_ACQUIRE, NULL);
    return result < 0 && errno == EBUSY ? 0 : result; /* it is one already */
}

/* The pids of what is below this reaper, zombies left out; how many in `found`. Returns how many it saw, zombies too: if
   these are as many as there is room for, there may be more. */
static int cri_reaper_pids(pid_t *pids, unsigned int room, unsigned int *found) {
    struct procctl_reaper_pidinfo *all = calloc(room, sizeof *all);
    struct procctl_reaper_pids request = { .rp_count = room, .rp_pids = all };
    unsigned int number;
    int result, error, seen = 0;

    *found = 0;
    if (all == NULL) return -1;
    result = procctl(P_PID, getpid(), PROC_REAP_GETPIDS, &request);
    for (number = 0; result == 0 && number < room && all[number].pi_flags & REAPER_PIDINFO_VALID; number++) {
        seen++;
        if (!(all[number].pi_flags & REAPER_PIDINFO_ZOMBIE)) pids[(*found)++] = all[number].pi_pid;
    }
    error = errno;
    free(all);
    errno = error;
    return result < 0 ? -1 : seen;
}
static int cri_reaper_kill(int signal, pid_t subtree) {
    struct procctl_reaper_kill request = { .rk_sig = signal };
    if (subtree > 0) {
        request.rk_flags = REAPER_KILL_SUBTREE;
        request.rk_subtree = subtree;
    }
    return procctl(P_PID, getpid(), PROC_REAP_KILL, &request);
}
/* Execute `program`, a descriptor, in a child that has of this process's descriptors those that are given, from number `first`
   on, and `input` as 3; besides those that are not close-on-exec. All signals are blocked there. Its pid.

   vfork: nothing of this process is copied, and it waits until the child has executed the program or failed. */
static int cri_spawn(int program, const char *title, int input, const int *descriptors, int count, int first) {
    char *const argv[] = { (char *)(uintptr_t)title, NULL }, *const environment[] = { NULL };
    volatile int error = 0;
    int moved[64], number, pid, above = first + count;
    sigset_t all, before;

    if (count < 0 || count > (int)(sizeof moved / sizeof *moved)) {
        errno = EINVAL;
        return -1;
    }
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* no handler of this process's in the child, which has its memory */
    pid = vfork();
    if (pid == 0) {
        /* First out of the way of the numbers that they are to have. */
        program = fcntl(program, F_DUPFD_CLOEXEC, above);
        input = fcntl(input, F_DUPFD_CLOEXEC, above);
        for (number = 0; number < count; number++) moved[number] = fcntl(descriptors[number], F_DUPFD_CLOEXEC, above);
        for (number = 0; number < count; number++)
            if (moved[number] < 0 || dup2(moved[number], first + number) < 0) break;
        if (number == count && program >= 0 && dup2(input, 3) >= 0) fexecve(program, argv, environment);
        error = errno;
        _exit(127);
    }
    if (pid < 0) error = errno;
    else if (error != 0)
        while (waitpid(pid, &number, 0) < 0 && errno == EINTR) continue;
    sigprocmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return error != 0 ? -1 : pid;
}
static void cri_set_title(const char *title) { setproctitle("-%s", title); } /* "-": without the program's name before */

static int cri_jail_cpus(int jid, const int *cpus, int count) {
    cpuset_t set;
    int number;
    CPU_ZERO(&set);
    for (number = 0; number < count; number++) {
        if (cpus[number] < 0 || cpus[number] >= CPU_SETSIZE) {
            errno = EINVAL;
            return -1;
        }
        CPU_SET(cpus[number], &set);
    }
    return cpuset_setaffinity(CPU_LEVEL_WHICH, CPU_WHICH_JAIL, jid, sizeof set, &set);
}

/* The CPUs that a jail may run on, into `cpus`; how many, of which there may be more than there is room for. */
static int cri_jail_cpus_now(int jid, int *cpus, int room) {
    cpuset_t set;
    int number, count = 0;
    if (cpuset_getaffinity(CPU_LEVEL_WHICH, CPU_WHICH_JAIL, jid, sizeof set, &set) < 0) return -1;
    for (number = 0; number < CPU_SETSIZE; number++)
        if (CPU_ISSET(number, &set) && count++ < room) cpus[count - 1] = number;
    return count;
}

/* When a process was started: seconds and microseconds since the epoch, as the kernel keeps them from then on. */
static int cri_process_start(int pid, int64_t *started) {
    int name[] = { CTL_KERN, KERN_PROC, KERN_PROC_PID, pid };
    struct kinfo_proc found;
    size_t size = sizeof found;

    if (sysctl(name, 4, &found, &size, NULL, 0) < 0) return -1;
    if (size == 0 || found.ki_stat == SZOMB) {
        errno = ESRCH;
        return -1;
    }
    if (size != sizeof found || found.ki_structsize != sizeof found) {
        errno = EFTYPE; /* a kernel with another layout than this was compiled for */
        return -1;
    }
    started[0] = found.ki_start.tv_sec;
    started[1] = found.ki_start.tv_usec;
    return 0;
}

/* calls.Process, without what Python can add */
struct process {
    int pid, jid, threads;
    uint64_t cpu_microseconds, system_microseconds, resident_pages, minor_faults, major_faults;
};

static uint64_t cri_microseconds(const struct timeval *time) {
    return time->tv_sec * UINT64_C(1000000) + time->tv_usec;
}

/* The living processes of some jails. Returns how many there are, which may be more than there is room for. In C, as the
   kernel hands out a kilobyte for each process of the node. */
static int cri_processes(const int *jids, int jid_count, struct process *found, int room) {
    int name[] = { CTL_KERN, KERN_PROC, KERN_PROC_PROC }, count = 0, result, number, error;
    struct kinfo_proc *all = NULL, *one;
    size_t size;

    do {
        free(all);
        if (sysctl(name, 3, NULL, &size, NULL, 0) < 0) return -1;
        size += size / 8; /* for those that are born until the next call */
        all = malloc(size);
        if (all == NULL) return -1;
        result = sysctl(name, 3, all, &size, NULL, 0);
    } while (result < 0 && errno == ENOMEM);
    if (result == 0 && size > 0 && all->ki_structsize != sizeof *all) {
        errno = EFTYPE; /* a kernel with another layout than this was compiled for */
        result = -1;
    }
    for (one = all; result == 0 && one < all + size / sizeof *all; one++) {
        if (one->ki_stat == SZOMB) continue;
        for (number = 0; number < jid_count && jids[number] != one->ki_jid; number++) continue;
        if (number == jid_count) continue;
        if (count < room) {
            found[count].pid = one->ki_pid;
            found[count].jid = one->ki_jid;
            found[count].threads = one->ki_numthreads;
            found[count].cpu_microseconds = one->ki_runtime + cri_microseconds(&one->ki_childtime);
            found[count].system_microseconds = cri_microseconds(&one->ki_rusage.ru_stime)
                                               + cri_microseconds(&one->ki_rusage_ch.ru_stime);
            found[count].resident_pages = one->ki_rssize;
            found[count].minor_faults = one->ki_rusage.ru_minflt + one->ki_rusage_ch.ru_minflt;
            found[count].major_faults = one->ki_rusage.ru_majflt + one->ki_rusage_ch.ru_majflt;
        }
        count++;
    }
    error = errno;
    free(all);
    errno = error;
    return result < 0 ? -1 : count;
}

/* calls.InterfaceCounters */
struct interface {
    char name[IFNAMSIZ];
    uint64_t received_bytes, received_packets, receive_errors, receive_drops;
    uint64_t sent_bytes, sent_packets, send_errors, send_drops;
};

/* The counters of the interfaces of the caller's network stack. Returns how many there are, as above. */
static int cri_interfaces(struct interface *found, int room) {
    struct ifaddrs *all, *one;
    const struct if_data *data;
    int count = 0;

    if (getifaddrs(&all) < 0) return -1;
    for (one = all; one != NULL; one = one->ifa_next) {
        if (one->ifa_addr == NULL || one->ifa_addr->sa_family != AF_LINK || one->ifa_data == NULL) continue;
        if (count++ >= room) continue;
        data = one->ifa_data;
        strlcpy(found[count - 1].name, one->ifa_name, IFNAMSIZ);
        found[count - 1].received_bytes = data->ifi_ibytes;
        found[count - 1].received_packets = data->ifi_ipackets;
        found[count - 1].receive_errors = data->ifi_ierrors;
        found[count - 1].receive_drops = data->ifi_iqdrops;
        found[count - 1].sent_bytes = data->ifi_obytes;
        found[count - 1].sent_packets = data->ifi_opackets;
        found[count - 1].send_errors = data->ifi_oerrors;
        found[count - 1].send_drops = data->ifi_oqdrops;
    }
    freeifaddrs(all);
    return count;
}

/* The type of a variable. The kernel's answer is its kind and its format. */
static int cri_sysctl_kind(const char *name) {
    int oid[2 + CTL_MAXNAME] = {CTL_SYSCTL, CTL_SYSCTL_OIDFMT};
    size_t length = CTL_MAXNAME;
    char answer[1024];
    size_t size = sizeof answer;
    unsigned int kind;

    if (sysctlnametomib(name, oid + 2, &length) < 0) return -1;
    if (sysctl(oid, 2 + length, answer, &size, NULL, 0) < 0) return -1;
    memcpy(&kind, answer, sizeof kind);
    return kind & CTLTYPE;
}
