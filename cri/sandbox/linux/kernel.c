/* What cri.sandbox.linux.kernel needs of Linux and Python does not have. Each function returns what the kernel
   returns, -1 with errno on failure. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/stat.h>
#include <unistd.h>
#include <grp.h>
#include <poll.h>
#include <linux/capability.h>

/* <linux/mount.h> clashes with <sys/mount.h> in several C libraries, so what is missing is spelled out here:
   the numbers are kernel ABI (include/uapi/linux/mount.h, include/uapi/linux/fcntl.h). */
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef OPEN_TREE_CLOEXEC
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 0x00000004
#define MOVE_MOUNT_T_EMPTY_PATH 0x00000040
#endif
#ifndef MOUNT_ATTR_RDONLY
#define MOUNT_ATTR_RDONLY 0x00000001
#define MOUNT_ATTR_NOSUID 0x00000002
#define MOUNT_ATTR_NODEV 0x00000004
#define MOUNT_ATTR_NOEXEC 0x00000008
#endif
#ifndef FSOPEN_CLOEXEC
#define FSOPEN_CLOEXEC 1
#endif
#ifndef FSMOUNT_CLOEXEC
#define FSMOUNT_CLOEXEC 1
#endif
#ifndef CLONE_NEWCGROUP
#define CLONE_NEWCGROUP 0x02000000
#endif
#if !defined(__GLIBC__) || !__GLIBC_PREREQ(2, 36)
enum { FSCONFIG_SET_FLAG = 0, FSCONFIG_SET_STRING = 1, FSCONFIG_CMD_CREATE = 6 };
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

static int cri_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d) {
    return prctl(option, a, b, c, d);
}
static int cri_pivot_root(const char *new_root, const char *put_old) {
    return syscall(SYS_pivot_root, new_root, put_old);
}
/* open(2) below a directory that stands for the root: openat2(2), RESOLVE_IN_ROOT. */
static int cri_open_in_root(int root, const char *path, uint64_t flags) {
    uint64_t how[3] = { flags, 0, 0x10 };
    return syscall(SYS_openat2, root, path, how, sizeof how);
}
static int cri_open_tree(int directory, const char *path, unsigned int flags) {
    return syscall(SYS_open_tree, directory, path, flags);
}
static int cri_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned int flags) {
    return syscall(SYS_move_mount, from, from_path, to, to_path, flags);
}
static int cri_mount_setattr(int directory, const char *path, unsigned int flags,
                             uint64_t set, uint64_t clear, uint64_t propagation) {
    /* struct mount_attr, version 0: mount_setattr(2) */
    uint64_t attributes[4] = { set, clear, propagation, 0 };
    return syscall(SYS_mount_setattr, directory, path, flags, attributes, sizeof attributes);
}
static int cri_fsopen(const char *type, unsigned int flags) { return syscall(SYS_fsopen, type, flags); }
static int cri_fsconfig(int fd, unsigned int command, const char *key, const char *value, int aux) {
    return syscall(SYS_fsconfig, fd, command, key, value, aux);
}
static int cri_fsmount(int fd, unsigned int flags, unsigned int attributes) {
    return syscall(SYS_fsmount, fd, flags, attributes);
}

/* A program for a cgroup: its text is loaded, and stays as long as the cgroup does. bpf(2) */
static int cri_bpf(int command, void *attributes, unsigned int size) {
    return syscall(SYS_bpf, command, attributes, size);
}

static int cri_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable) {
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0) return -1;
    *effective = data[0].effective | (uint64_t)data[1].effective << 32;
    *permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
    *inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
    return 0;
}
static int cri_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2] = {
        { (uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable },
        { effective >> 32, permitted >> 32, inheritable >> 32 },
    };
    return syscall(SYS_capset, &header, data);
}

static int cri_close_on_exec_from(unsigned int first) {
    /* CLOSE_RANGE_CLOEXEC (Linux 5.11): marks instead of closing, so that the status channel lives until exec. */
    return syscall(SYS_close_range, first, ~0U, 4U);
}
static int cri_close_but(unsigned int kept) {
    if (kept > 3 && syscall(SYS_close_range, 3U, kept - 1, 0U) < 0) return -1;
    return syscall(SYS_close_range, kept + 1, ~0U, 0U);
}
static void cri_reset_signals(void) {
    /* The kernel's struct sigaction and sigset_t, by system call: sigaction(3) refuses the two signals that the C library
       keeps to itself, but a program inherits those too. All zero is SIG_DFL, and an empty set. */
    uint64_t zero[4] = { 0, 0, 0, 0 };
    int number;
    for (number = 1; number <= 64; number++) syscall(SYS_rt_sigaction, number, zero, NULL, 8);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, zero, NULL, 8);
}
static int cri_set_name(const char *name) { return prctl(PR_SET_NAME, name, 0, 0, 0); }

static void cri_reap_forever(void) {
    /* The init of a pod's pid namespace. In C, because a loop in Python would copy the interpreter's pages. */
    sigset_t all;
    int number;
    syscall(SYS_close_range, 0U, ~0U, 0U);
    /* The containers of the pod see it: it has nothing that they could want. */
    for (number = 0; number < 64; number++) prctl(PR_CAPBSET_DROP, number, 0, 0, 0);
    cri_capset(0, 0, 0);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (;;)
        if (waitpid(-1, NULL, 0) < 0) sigwait(&all, &number);
}

/* How a forked child becomes the program of a container: all from the cgroups to exec. In C, as every page of the
   interpreter that the child touches is copied first. Everything it needs is in the struct before; it allocates nothing,
   and makes system calls only. (setresuid(2) and friends by number: the C library's would tell threads that are not there.)

   The child is in the container's pid namespace already, so the container may try to stop or to read it. It must have
   memory of its own, and nobody may wait for it: see LinuxDriver.enter and .exec. */
struct program {
    const char *const *cgroups;     /* files to write 0 to */
    const char *const *late_cgroups; /* the same, of groups that may not be made yet: Group.late_join_files */
    const char *oom_score;          /* or NULL */
    int mounts, cgroup_namespace;   /* namespaces to enter, or -1 */
    int terminal;                   /* session and standard streams are made already */
    int stdio[3];                   /* -1: /dev/null */
    const char *cwd;
    uint64_t drop, capabilities;    /* from the bounding set; for root */
    uint32_t uid, gid;
    const uint32_t *groups;
    int group_count;
    int no_new_privileges;
    int report;                     /* a socket to the warden, to see that it lives */
    const char *const *candidates, *const *argv, *const *env;
    const char *failed;             /* out: what could not be done */
    int error;                      /* out: errno */
};

#define MUST(what, call) do { if ((call) < 0) { program->failed = what; program->error = errno; return; } } while (0)

static int cri_write(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC), result;
    if (fd < 0) return -1;
    result = write(fd, text, strlen(text));
    close(fd);
    return result;
}

static int cri_use_stdio(const struct program *program) {
    int number, fds[3];
    struct stat found;
    for (number = 0; number < 3; number++) {
        fds[number] = program->stdio[number];
        if (fds[number] < 0) fds[number] = open("/dev/null", O_RDWR | O_CLOEXEC);
        /* out of the way of 0, 1 and 2: dup2 would close a source that happens to be a target */
        if (fds[number] >= 0 && fds[number] < 3) fds[number] = fcntl(fds[number], F_DUPFD_CLOEXEC, 3);
        if (fds[number] < 0) return -1;
    }
    for (number = 0; number < 3; number++) {
        if (dup2(fds[number], number) < 0) return -1;
        /* the user may want to open /dev/stdout by name */
        if (fstat(number, &found) == 0 && S_ISFIFO(found.st_mode) && fchown(number, program->uid, -1) < 0) return -1;
    }
    return 0;
}

static void cri_become(struct program *program) {
    const char *const *name;
    struct pollfd warden = { program->report, 0, 0 };
    int number, failure = ENOENT;
    char here[4096];

    for (name = program->cgroups; *name; name++) MUST("join cgroup", cri_write(*name, "0"));
    for (name = program->late_cgroups; *name; name++)
        if (cri_write(*name, "0") < 0 && errno != ENOENT && errno != ENODEV && errno != ENOSPC)
            MUST("join cgroup", -1);
    if (program->oom_score) cri_write("/proc/self/oom_score_adj", program->oom_score); /* needs SYS_RESOURCE; do without */
    if (program->cgroup_namespace >= 0) MUST("enter cgroup namespace", setns(program->cgroup_namespace, CLONE_NEWCGROUP));
    if (program->mounts >= 0) MUST("enter mount namespace", setns(program->mounts, CLONE_NEWNS));
    if (!program->terminal) {
        MUST("make session", setsid());
        MUST("use standard streams", cri_use_stdio(program));
    }
    /* Before chdir: the container may have made its working directory a link to one of them, /proc/self/fd/N. */
    MUST("close descriptors", cri_close_but(program->report));
    MUST("chdir", chdir(program->cwd));
    /* Outside the root, the kernel answers "(unreachable)": getcwd(2). */
    if (syscall(SYS_getcwd, here, sizeof here) < 0 || here[0] != '/') {
        program->failed = "chdir";
        program->error = ENOENT;
        return;
    }

    /* Each step needs what later ones give up. */
    for (number = 0; number < 64; number++)
        if (program->drop >> number & 1) MUST("drop capability", prctl(PR_CAPBSET_DROP, number, 0, 0, 0));
    MUST("set groups", syscall(SYS_setgroups, (long)program->group_count, program->groups));
    MUST("set group", syscall(SYS_setresgid, (long)program->gid, (long)program->gid, (long)program->gid));
    MUST("set user", syscall(SYS_setresuid, (long)program->uid, (long)program->uid, (long)program->uid));
    MUST("clear ambient capabilities", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    /* Another user has lost them all with setresuid, and gains none by exec: no inheritable, no ambient ones. */
    if (program->uid == 0) MUST("set capabilities", cri_capset(program->capabilities, program->capabilities, 0));
    else MUST("clear capabilities", cri_capset(0, 0, 0));
    if (program->no_new_privileges) MUST("set no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    umask(022);
    MUST("mark descriptors", cri_close_on_exec_from(3));
    /* After setresuid, which clears it. A warden that dies takes its containers along: nobody would record their end.
       (A setuid program clears it once more; the daemon then kills by cgroup.) */
    MUST("bind to warden", prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
    if (poll(&warden, 1, 0) > 0 && warden.revents & POLLHUP) _exit(127); /* it died before the prctl */
    cri_reset_signals();

    for (name = program->candidates; *name; name++) {
        execve(*name, (char *const *)program->argv, (char *const *)program->env);
        /* A directory without permission, or none at all, does not end the search: execvp(3). */
        if (errno != ENOENT && errno != ENOTDIR && failure != EACCES) failure = errno;
        if (errno != ENOENT && errno != ENOTDIR && errno != EACCES) break;
    }
    program->failed = "exec";
    program->error = failure;
}
