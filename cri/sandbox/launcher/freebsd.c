/* FreeBSD's part of the launcher: the calls, by its C library, and the steps that only FreeBSD has. */

#include <sys/param.h>
#include <sys/cpuset.h>
#include <sys/ioctl.h>
#include <sys/jail.h>
#include <sys/mman.h>
#include <sys/procctl.h>
#include <sys/resource.h>
#include <sys/rtprio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define CALL(expression) ({ long called = (expression); called < 0 ? -(long)errno : called; })

/* Memory, files, sockets */

_Noreturn static void sys_exit(int status) { _exit(status); }
static void *sys_map(size_t size, int fd) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | (fd < 0 ? MAP_ANON : 0), fd, 0);
    return at == MAP_FAILED ? NULL : at;
}
static void sys_unmap(void *at, size_t size) { munmap(at, size); }
static long sys_open(const char *path, int flags, int mode) { return CALL(open(path, flags, mode)); }
static long sys_close(int fd) { return CALL(close(fd)); }
static long sys_close_range(unsigned int first, unsigned int last) { return CALL(close_range(first, last, 0)); }
static long sys_dup_to(int fd, int number, int flags) { return CALL(dup3(fd, number, flags)); }
static long sys_keep_open(int fd) { return CALL(fcntl(fd, F_SETFD, 0)); }
static long sys_write(int fd, const char *data, size_t size) { return CALL(write(fd, data, size)); }
static long sys_fchown(int fd, int64_t uid) { return CALL(fchown(fd, uid, -1)); }
static long sys_mkdir(const char *path, int mode) { return CALL(mkdir(path, mode)); }
static long sys_chdir(const char *path) { return CALL(chdir(path)); }
static int sys_is_pipe(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISFIFO(found.st_mode);
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
static long sys_receive(int fd, void *data, size_t size, int *descriptors, unsigned int room, unsigned int *count) {
    union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int) * (PLAN_DESCRIPTORS + 1))]; } rights;
    struct iovec part = { data, size };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights };
    long result;

    message.msg_controllen = CMSG_SPACE(sizeof(int) * room);
    result = CALL(recvmsg(fd, &message, MSG_CMSG_CLOEXEC));
    *count = 0;
    if (result >= 0 && message.msg_controllen >= CMSG_LEN(0) && rights.header.cmsg_type == SCM_RIGHTS) {
        *count = (rights.header.cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(descriptors, CMSG_DATA(&rights.header), *count * sizeof(int));
    }
    return result;
}

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
static long sys_begin(void) {
    int kill = SIGKILL;
    long result = untraceable();
    sys_close_range(0, CONTROL - 1); /* the warden's */
    sys_close_range(CONTROL + 1, ~0u);
    signal(SIGCHLD, SIG_IGN); /* porters leave no zombies; newcomers are not ours */
    return result < 0 ? result : CALL(procctl(P_PID, 0, PROC_PDEATHSIG_CTL, &kill));
}
static long sys_fork_porter(void) { return CALL(fork()); }
/* There is no CLONE_PARENT: the newcomer falls to the reaper, the warden, when its porter ends. Before that it must not ask for
   a death signal, which it would get at once. The pipe ends a moment before the process does. */
static long sys_fork_newcomer(void) {
    pid_t porter = getpid(), pid;
    int ends[2];
    char byte;

    if (pipe2(ends, O_CLOEXEC) < 0) return -errno;
    pid = fork();
    if (pid != 0) return pid < 0 ? -errno : pid;
    close(ends[1]);
    while (read(ends[0], &byte, 1) < 0 && errno == EINTR) continue;
    while (getppid() == porter) sched_yield();
    close(ends[0]);
    return 0;
}
static long sys_execute(const char *path, const char *const *argv, const char *const *environment) {
    return CALL(execve(path, (char *const *)argv, (char *const *)environment));
}
static long sys_limit(int64_t resource, int64_t soft, int64_t hard) {
    struct rlimit both = { soft < 0 ? RLIM_INFINITY : soft, hard < 0 ? RLIM_INFINITY : hard };
    return CALL(setrlimit(resource, &both));
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
    for (number = 1; number < NSIG; number++) sigaction(number, &standard, NULL);
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

static long run_on(const char *mask) {
    return CALL(cpuset_setaffinity(CPU_LEVEL_WHICH, CPU_WHICH_PID, -1, plan_length(mask), (const cpuset_t *)mask));
}
static long set_realtime(int64_t class_, int64_t level) {
    struct rtprio priority = { class_, level };
    return CALL(rtprio(RTP_SET, 0, &priority));
}

static long take_own(uint32_t operation, const int64_t *integer, const char *const *text, uint32_t texts) {
    (void)texts;
    switch (operation) {
    case OP_AFFINITY: return run_on(text[0]);
    case OP_UNTRACEABLE: return untraceable();
    case OP_ROUTING_TABLE: return CALL(setfib(integer[0]));
    case OP_JAIL: return CALL(jail_attach(integer[0]));
    case OP_PROCESS_CONTROL: return process_control(integer[0], integer[1], integer[2]);
    case OP_LOGIN_NAME: return CALL(setlogin(text[0]));
    case OP_LOGIN_CLASS: return CALL(setloginclass(text[0]));
    case OP_REALTIME_PRIORITY: return set_realtime(integer[0], integer[1]);
    default: return -ENOSYS;
    }
}

_Noreturn void launcher_main(char *name);
int main(int count, char **arguments) { launcher_main(count > 0 ? arguments[0] : NULL); }
