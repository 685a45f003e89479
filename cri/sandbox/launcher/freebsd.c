/* FreeBSD's part of the launcher: the calls, by its C library, and the steps that only FreeBSD has.

   The warden executes it for each plan (vfork and fexecve, kernel.c), so what it becomes is the warden's own child. The kernel
   knows the processes of an exec, wherever they go and whoever their parents are by then, by the child of the reaper that they
   descend from (p_reapsubtree, which PROC_REAP_KILL takes); those that a resident launcher had forked would be one such tree.
   There is no CLONE_PARENT to get around that, and a second fork and the wait for the reparenting cost as much as this does. */

#include <sys/param.h>
#include <sys/cpuset.h>
#include <sys/domainset.h>
#include <sys/ioctl.h>
#include <sys/jail.h>
#include <sys/mman.h>
#include <sys/procctl.h>
#include <sys/resource.h>
#include <sys/rtprio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysctl.h>
#include <sys/uio.h>
#include <bsm/audit.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* What freebsd/run_plan.py has as numbers. */
_Static_assert(RLIMIT_MEMLOCK == 6 && RTP_PRIO_NORMAL == 3, "setrlimit, rtprio");
_Static_assert(PROC_ASLR_CTL == 13 && PROC_ASLR_NOFORCE == 3 && PROC_PROTMAX_CTL == 15 && PROC_PROTMAX_NOFORCE == 3 &&
               PROC_STACKGAP_CTL == 17 && PROC_STACKGAP_ENABLE == 1 && PROC_STACKGAP_ENABLE_EXEC == 4 &&
               PROC_WXMAP_CTL == 21 && PROC_WX_MAPPINGS_PERMIT == 1 && PROC_TRAPCAP_CTL == 9 &&
               PROC_TRAPCAP_CTL_DISABLE == 2 && PROC_SPROTECT == 1 && PPROT_CLEAR == 2, "procctl");

#define CALL(expression) ({ long called = (expression); called < 0 ? -(long)errno : called; })

/* Memory, files, sockets */

_Noreturn static void sys_exit(int status) { _exit(status); }
static long sys_size(int fd) {
    struct stat found;
    return fstat(fd, &found) < 0 ? -errno : found.st_size;
}
static void *sys_map(size_t size, int fd) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}
static long sys_open(const char *path, int flags, int mode) { return CALL(open(path, flags, mode)); }
static long sys_close(int fd) { return CALL(close(fd)); }
static long sys_close_range(unsigned int first, unsigned int last) { return CALL(close_range(first, last, 0)); }
static long sys_dup_to(int fd, int number, int flags) { return CALL(dup3(fd, number, flags)); }
static long sys_keep_open(int fd) { return CALL(fcntl(fd, F_SETFD, 0)); }
static long sys_write(int fd, const char *data, size_t size) { return CALL(write(fd, data, size)); }
static long sys_fchown(int fd, int64_t uid) { return CALL(fchown(fd, uid, -1)); }
static long sys_mkdir(const char *path, int mode) { return CALL(mkdir(path, mode)); }
static long sys_chdir(const char *path) { return CALL(chdir(path)); }
/* A pipe without a name belongs to nobody here, and fdescfs opens it for whoever has it. */
static int sys_is_pipe(int fd) {
    (void)fd;
    return 0;
}
static int sys_is_device(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISCHR(found.st_mode);
}
static long sys_send(int fd, void *data, size_t size, int descriptor) {
    union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int))]; } rights;
    struct iovec part = { data, size };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
    if (descriptor >= 0) {
        memset(&rights, 0, sizeof rights);
        rights.header.cmsg_len = CMSG_LEN(sizeof(int));
        rights.header.cmsg_level = SOL_SOCKET;
        rights.header.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&rights.header), &descriptor, sizeof descriptor);
        message.msg_control = &rights;
        message.msg_controllen = sizeof rights;
    }
    /* POSIX has the sender say where a record ends; FreeBSD 15 joins what is not ended. */
    return CALL(sendmsg(fd, &message, MSG_NOSIGNAL | MSG_EOR));
}
static long sys_tell(int fd, void *data, size_t size) { return sys_send(fd, data, size, -1); }

/* The process */

static long sys_death_signal(int64_t number) {
    struct pollfd warden = { REPORT, 0, 0 };
    int signal_ = number;
    long result = CALL(procctl(P_PID, 0, PROC_PDEATHSIG_CTL, &signal_));
    if (result < 0) return result;
    if (poll(&warden, 1, 0) > 0 && warden.revents & POLLHUP) _exit(LOST); /* it died before */
    return 0;
}
static long untraceable(void) {
    int how = PROC_TRACE_CTL_DISABLE; /* until it executes something, whatever it forks */
    return CALL(procctl(P_PID, getpid(), PROC_TRACE_CTL, &how));
}
/* What the plan needs stays open, up to its program; nothing else of the warden's has a number that is known. */
static void sys_begin(unsigned int descriptors) {
    unsigned int number;
    for (number = REPORT; number < REPORT + descriptors; number++) fcntl(number, F_SETFD, FD_CLOEXEC);
    sys_close_range(0, REPORT - 1);
    sys_close_range(REPORT + descriptors, ~0u);
}
static long sys_own_pid(void) { return getpid(); }
static long sys_execute(const char *path, const char *const *argv, const char *const *environment) {
    return CALL(execve(path, (char *const *)argv, (char *const *)environment));
}
static long sys_limit(int64_t resource, int64_t soft, int64_t hard) {
    struct rlimit both = { soft < 0 ? RLIM_INFINITY : soft, hard < 0 ? RLIM_INFINITY : hard };
    long result = CALL(setrlimit(resource, &both));
    return result == -EINVAL && getrlimit(resource, &both) < 0 ? 0 : result; /* one that only a newer kernel has */
}
static long sys_priority(int64_t nice) { return CALL(setpriority(PRIO_PROCESS, 0, nice)); }
static void sys_umask(int64_t mask) { umask(mask); }
static long sys_session(void) { return CALL(setsid()); }
static long sys_groups(int64_t count, const uint32_t *groups) { return CALL(setgroups(count, groups)); }
static long sys_ids(int64_t uid, int64_t gid) {
    long result = CALL(setresgid(gid, gid, gid));
    return result < 0 ? result : CALL(setresuid(uid, uid, uid));
}
static long process_control(int command, int64_t value, int64_t tolerated) {
    int given = value;
    long result = CALL(procctl(P_PID, getpid(), command, &given));
    return tolerated == TOLERATE_ALL && result < 0 ? 0 : result;
}
static long sys_no_new_privileges(void) {
    return process_control(PROC_NO_NEW_PRIVS_CTL, PROC_NO_NEW_PRIVS_ENABLE, TOLERATE_NOTHING);
}
static long sys_reset_signals(void) {
    struct sigaction standard = { .sa_handler = SIG_DFL };
    sigset_t none;
    int number;
    for (number = 1; number <= _SIG_MAXSIG; number++) sigaction(number, &standard, NULL);
    sigemptyset(&none);
    return CALL(sigprocmask(SIG_SETMASK, &none, NULL));
}
/* Nothing leads out of a jail for who has no directory open, and nobody is let in who has. */
static long sys_see_that_inside(void) { return 0; }

/* A pty, which shows only in the devfs of the jail that has opened it. */
static long sys_terminal(int64_t pty, int64_t terminal, int64_t owner, int64_t rows, int64_t columns) {
    struct winsize size = { .ws_row = rows, .ws_col = columns };
    const char *name;
    long result, fd = CALL(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)), other;

    if (fd < 0) return fd;
    if (grantpt(fd) < 0 || unlockpt(fd) < 0 || (name = ptsname(fd)) == NULL) return -errno;
    if ((other = sys_open(name, O_RDWR | O_NOCTTY | O_CLOEXEC, 0)) < 0) return other;
    if ((result = sys_fchown(other, owner)) < 0) return result;
    if ((result = CALL(fchmod(other, 0620))) < 0) return result;
    if ((rows || columns) && (result = CALL(ioctl(other, TIOCSWINSZ, &size))) < 0) return result;
    if ((result = sys_dup_to(fd, pty, O_CLOEXEC)) < 0) return result;
    if ((result = sys_dup_to(other, terminal, O_CLOEXEC)) < 0) return result;
    sys_close(other);
    return sys_close(fd);
}
static long sys_take_terminal(int fd) { return CALL(ioctl(fd, TIOCSCTTY, 0)); }

/* All CPUs, and all memory domains, as the node's first processes have them. Of what a process has less, a jail's set is cut down
   to that, and may have nothing left (EDEADLK): so before the jail, which then gives its own. */
static long use_all_cpus(void) {
    cpusetid_t root;
    cpuset_t cpus;
    long result = CALL(cpuset_getid(CPU_LEVEL_ROOT, CPU_WHICH_PID, -1, &root));
    if (result >= 0) result = CALL(cpuset_setid(CPU_WHICH_PID, -1, root));
    if (result >= 0) result = CALL(cpuset_getaffinity(CPU_LEVEL_ROOT, CPU_WHICH_PID, -1, sizeof cpus, &cpus));
    return result < 0 ? result : CALL(cpuset_setaffinity(CPU_LEVEL_WHICH, CPU_WHICH_PID, -1, sizeof cpus, &cpus));
}
static long use_all_memory(void) {
    domainset_t domains;
    int policy;
    long result = CALL(cpuset_getdomain(CPU_LEVEL_ROOT, CPU_WHICH_PID, -1, sizeof domains, &domains, &policy));
    return result < 0 ? result : CALL(cpuset_setdomain(CPU_LEVEL_WHICH, CPU_WHICH_PID, -1, sizeof domains, &domains, policy));
}
/* Of the session of whoever started the daemon. A kernel without audit has none. */
static long leave_audit_session(void) {
    struct auditinfo_addr nobody = { .ai_auid = AU_DEFAUDITID, .ai_termid = { .at_type = AU_IPv4 } };
    long result = CALL(setaudit_addr(&nobody, sizeof nobody));
    return result == -ENOSYS ? 0 : result;
}
static long set_realtime(int64_t class_, int64_t level) {
    struct rtprio priority = { class_, level };
    return CALL(rtprio(RTP_SET, 0, &priority));
}

/* The descriptor, under the number by which the plan calls it. */
static long keep_as(long fd, int64_t number) {
    long result;
    if (fd < 0 || fd == number) return fd;
    result = sys_dup_to(fd, number, O_CLOEXEC);
    sys_close(fd);
    return result;
}

/* A copy of a file that nobody else has: of its first bytes, or of none if there is no such file. */
static long copy_file(const char *path, int64_t most) {
    char buffer[4096];
    struct stat found;
    long copy = CALL(memfd_create("copy", MFD_CLOEXEC)), fd, size = 0;

    if (copy < 0) return copy;
    fd = sys_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);
    if (fd >= 0 && fstat(fd, &found) == 0 && S_ISREG(found.st_mode))
        while (most > 0 && (size = CALL(read(fd, buffer, most < (int64_t)sizeof buffer ? (size_t)most : sizeof buffer))) > 0) {
            most -= size;
            if ((size = sys_write(copy, buffer, size)) < 0) break;
        }
    if (fd >= 0) sys_close(fd);
    if (size >= 0) return copy;
    sys_close(copy);
    return size;
}

/* Which variable is meant depends on the jail. */
static long exchange(const char *name, const char *value) {
    char before[4096];
    size_t room = sizeof before;
    long result, copy = CALL(memfd_create("value", MFD_CLOEXEC));

    if (copy < 0) return copy;
    result = CALL(sysctlbyname(name, before, &room, value, value == NULL ? 0 : plan_length(value)));
    if (result >= 0) result = sys_write(copy, before, room);
    if (result >= 0) return copy;
    sys_close(copy);
    return result;
}

static long take_own(uint32_t operation, const int64_t *integer, const char *const *text, uint32_t texts) {
    switch (operation) {
    case OP_AFFINITY: return use_all_cpus();
    case OP_MEMORY_POLICY: return use_all_memory();
    case OP_AUDIT: return leave_audit_session();
    case OP_UNTRACEABLE: return untraceable();
    case OP_ROUTING_TABLE: return CALL(setfib(integer[0]));
    case OP_JAIL: return CALL(jail_attach(integer[0]));
    case OP_PROCESS_CONTROL: return process_control(integer[0], integer[1], integer[2]);
    case OP_LOGIN_NAME: return CALL(setlogin(text[0]));
    case OP_LOGIN_CLASS: return CALL(setloginclass(text[0]));
    case OP_REALTIME_PRIORITY: return set_realtime(integer[0], integer[1]);
    case OP_SOCKET: return keep_as(CALL(socket(integer[1], integer[2] | SOCK_CLOEXEC, integer[3])), integer[0]);
    case OP_SYSCTL: return keep_as(exchange(text[0], texts > 1 ? text[1] : NULL), integer[0]);
    case OP_COPY: return keep_as(copy_file(text[0], integer[2]), integer[0]);
    default: return -ENOSYS;
    }
}

_Noreturn void launcher_main(void);
int main(void) { launcher_main(); }
