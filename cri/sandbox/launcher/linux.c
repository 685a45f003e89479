/* Linux's part of the launcher: the calls, without a C library, and the steps that only Linux has.

   No C library, because its memory, its start-up and its loader would be everything that is big here; and since a static
   executable of a few pages is what a sealed memfd per pod can hold. The numbers and layouts are kernel ABI. */

#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/stat.h>
#include <linux/uio.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov 8(%rsp), %rdi\n and $-16, %rsp\n call launcher_main\n hlt\n");
static long call6(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n ldr x0, [sp, #8]\n mov x29, #0\n mov x30, #0\n bl launcher_main\n brk #0\n");
static long call6(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "say how this processor makes a system call"
#endif
#define CALL_N(number, a, b, c, d, e, f, ...) \
    call6(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define CALL(...) CALL_N(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

enum { SIGCHLD_ = 17, SIGKILL_ = 9, AT_FDCWD_ = -100, MAP_PRIVATE_ = 2, MAP_ANONYMOUS_ = 32, PROT_ = 3 };
enum { SOL_SOCKET_ = 1, SCM_RIGHTS_ = 1, MSG_NOSIGNAL_ = 0x4000, MSG_CLOEXEC_ = 0x40000000 };
enum { OPEN_CLONE = 1, OPEN_CLOEXEC = 0x80000, RECURSIVE = 0x8000, EMPTY_PATH = 0x1000 }; /* open_tree(2) */
enum { FROM_EMPTY = 4, TO_EMPTY = 0x40 };                                              /* move_mount(2) */
enum { SET_FLAG = 0, SET_STRING = 1, CREATE = 6 };                                     /* fsconfig(2) */
enum { TAKE_TERMINAL = 0x540e, SET_SIZE = 0x5414, LOCK_PTY = 0x40045431, OTHER_END = 0x5441 }; /* ioctl_tty(2) */
enum { UNCLAMP = 0x60 };                                                               /* sched_setattr(2): both clamps */
enum { DETACH = 2, TYPE = 0170000, A_DIRECTORY = 0040000, A_PIPE = 0010000, A_FILE = 0100000, A_CHARACTER_DEVICE = 0020000 };
enum { ROOM = 4096, LINKS = 40, ATTEMPTS = 1000 };
#ifndef O_PATH
#define O_PATH 010000000
#endif

/* The compiler calls these by itself. */
void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    char *out = to;
    const char *in = from;
    while (size-- > 0) *out++ = *in++;
    return to;
}
void *memset(void *to, int byte, size_t size) {
    char *out = to;
    while (size-- > 0) *out++ = byte;
    return to;
}
static size_t length_of(const char *text) {
    const char *end = text;
    while (*end) end++;
    return end - text;
}

/* Memory, files, sockets */

_Noreturn static void sys_exit(int status) {
    for (;;) CALL(SYS_exit_group, status);
}
static void *sys_map(size_t size, int fd) {
    long at = CALL(SYS_mmap, 0, size, PROT_, fd < 0 ? MAP_PRIVATE_ | MAP_ANONYMOUS_ : MAP_PRIVATE_, fd, 0);
    return at < 0 && at > -4096 ? NULL : (void *)at;
}
static void sys_unmap(void *at, size_t size) { CALL(SYS_munmap, at, size); }
static long sys_open(const char *path, int flags, int mode) { return CALL(SYS_openat, AT_FDCWD_, path, flags, mode); }
static long sys_close(int fd) { return CALL(SYS_close, fd); }
static long sys_close_range(unsigned int first, unsigned int last) { return CALL(SYS_close_range, first, last, 0); }
static long sys_dup_to(int fd, int number, int flags) { return CALL(SYS_dup3, fd, number, flags); }
static long sys_keep_open(int fd) { return CALL(SYS_fcntl, fd, F_SETFD, 0); }
static long sys_write(int fd, const char *data, size_t size) { return CALL(SYS_write, fd, data, size); }
static long sys_fchown(int fd, int64_t uid) { return CALL(SYS_fchown, fd, uid, -1); }
static long sys_mkdir(const char *path, int mode) { return CALL(SYS_mkdirat, AT_FDCWD_, path, mode); }
static long sys_chdir(const char *path) { return CALL(SYS_chdir, path); }
static long look_at(int fd, struct statx *found) {
    return CALL(SYS_statx, fd, "", EMPTY_PATH, STATX_BASIC_STATS, found);
}
static int sys_is_pipe(int fd) {
    struct statx found;
    return look_at(fd, &found) == 0 && (found.stx_mode & TYPE) == A_PIPE;
}

static int sys_is_device(int fd) {
    struct statx found;
    return look_at(fd, &found) == 0 && (found.stx_mode & TYPE) == A_CHARACTER_DEVICE;
}

struct rights {
    size_t length;
    int level, kind;
    int descriptors[PLAN_DESCRIPTORS + 2];
};
struct message {
    void *name;
    int name_length;
    struct iovec *parts;
    size_t count;
    void *control;
    size_t control_length;
    int flags;
};
static long sys_send(int fd, void *data, size_t size, int descriptor) {
    struct iovec part = { data, size };
    struct rights rights = { 20, SOL_SOCKET_, SCM_RIGHTS_, { descriptor } };
    struct message message = { .parts = &part, .count = 1 };
    if (descriptor >= 0) {
        message.control = &rights;
        message.control_length = 24;
    }
    return CALL(SYS_sendmsg, fd, &message, MSG_NOSIGNAL_);
}
/* By write(2), which the container's filter lets through if it is there already. */
static long sys_tell(int fd, void *data, size_t size) { return sys_write(fd, data, size); }
static long sys_receive(int fd, void *data, size_t size, int *descriptors, unsigned int room, unsigned int *count) {
    struct iovec part = { data, size };
    struct rights rights = { 0 };
    struct message message = { .parts = &part, .count = 1, .control = &rights, .control_length = 16 + 4 * room };
    long result = CALL(SYS_recvmsg, fd, &message, MSG_CLOEXEC_);

    *count = 0;
    if (result >= 0 && message.control_length >= 16 && rights.kind == SCM_RIGHTS_)
        for (; *count < (rights.length - 16) / 4; (*count)++) descriptors[*count] = rights.descriptors[*count];
    return result;
}

/* The process */

static long control(int option, long a, long b, long c, long d) { return CALL(SYS_prctl, option, a, b, c, d); }
static long sys_begin(void) {
    /* Nobody reads or traces this one and what it forks, until they execute something. */
    long result = control(PR_SET_DUMPABLE, 0, 0, 0, 0);
    sys_close_range(0, CONTROL - 1); /* the warden's */
    sys_close_range(CONTROL + 1, ~0u);
#ifdef SYS_ioperm
    CALL(SYS_ioperm, 0, 65536, 0); /* forked and executed along, whatever fork(2) says; no plan asks for ports */
    CALL(SYS_iopl, 0);
#endif
    return result < 0 ? result : control(PR_SET_PDEATHSIG, SIGKILL_, 0, 0, 0);
}
/* Both are the warden's children: it reaps them, and neither misses a launcher that has died. */
static long sys_fork_porter(void) { return CALL(SYS_clone, CLONE_PARENT | SIGCHLD_, 0, 0, 0, 0); }
static long sys_fork_newcomer(void) { return sys_fork_porter(); }
/* In a cgroup of version 2: to be moved there would wait for an RCU grace period, some milliseconds. */
static long sys_fork_porter_in(int group) {
    /* The signal at its end is this one's own, SIGCHLD: clone3(2) takes none beside CLONE_PARENT. */
    struct clone_args arguments = { .flags = CLONE_PARENT | CLONE_INTO_CGROUP, .cgroup = group };
    return CALL(SYS_clone3, &arguments, sizeof arguments);
}
static long sys_execute(const char *path, const char *const *argv, const char *const *environment) {
    return CALL(SYS_execve, path, argv, environment);
}
static long sys_limit(int64_t resource, int64_t soft, int64_t hard) {
    int64_t both[2] = { soft, hard };
    return CALL(SYS_prlimit64, 0, resource, both, 0);
}
static long sys_priority(int64_t nice) { return CALL(SYS_setpriority, 0, 0, nice); }
static void sys_umask(int64_t mask) { CALL(SYS_umask, mask); }
static long sys_session(void) { return CALL(SYS_setsid); }
static long sys_groups(int64_t count, const uint32_t *groups) { return CALL(SYS_setgroups, count, groups); }
static long sys_ids(int64_t uid, int64_t gid) {
    long result = CALL(SYS_setresgid, gid, gid, gid);
    return result < 0 ? result : CALL(SYS_setresuid, uid, uid, uid);
}
static long sys_no_new_privileges(void) { return control(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }
static long sys_death_signal(int64_t signal) {
    struct { int fd; short events, found; } warden = { REPORT, 0, 0 };
    int64_t at_once[2] = { 0, 0 };
    long result = control(PR_SET_PDEATHSIG, signal, 0, 0, 0);
    if (result < 0) return result;
    if (CALL(SYS_ppoll, &warden, 1, at_once, 0, 0) > 0 && warden.found & 0x10) sys_exit(LOST); /* it died before */
    return 0;
}
static long sys_reset_signals(void) {
    uint64_t zero[4] = { 0, 0, 0, 0 }; /* SIG_DFL, and an empty set */
    int number;
    for (number = 1; number <= 64; number++) CALL(SYS_rt_sigaction, number, zero, 0, 8);
    return CALL(SYS_rt_sigprocmask, 2, zero, 0, 8);
}
static long sys_see_that_inside(void) {
    char here[ROOM];
    long result = CALL(SYS_getcwd, here, sizeof here); /* outside the root it says "(unreachable)" */
    if (result < 0) return result;
    return here[0] == '/' ? 0 : -ENOENT;
}

/* A pty of the container's own devpts. Its other end is got without a look-up by name that the container could answer. */
static long sys_terminal(int64_t pty, int64_t terminal, int64_t owner, int64_t rows, int64_t columns) {
    unsigned short size[4] = { rows, columns, 0, 0 }; /* struct winsize */
    int unlocked = 0;
    long result, fd = sys_open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, 0);

    if (fd < 0) return fd;
    if ((result = CALL(SYS_fcntl, fd, F_SETFL, O_RDWR)) < 0) return result;
    if ((result = sys_dup_to(fd, pty, O_CLOEXEC)) < 0) return result;
    sys_close(fd);
    if ((result = CALL(SYS_ioctl, pty, LOCK_PTY, &unlocked)) < 0) return result;
    if ((fd = CALL(SYS_ioctl, pty, OTHER_END, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) return fd;
    if ((result = sys_dup_to(fd, terminal, O_CLOEXEC)) < 0) return result;
    sys_close(fd);
    if ((result = sys_fchown(terminal, owner)) < 0) return result;
    return rows || columns ? CALL(SYS_ioctl, terminal, SET_SIZE, size) : 0;
}
static long sys_take_terminal(int fd) { return CALL(SYS_ioctl, fd, TAKE_TERMINAL, 0); }

static long tolerate(long result, int64_t tolerated) { return tolerated == TOLERATE_ALL && result < 0 ? 0 : result; }

static long join_keyring(int64_t permissions) {
    long id = CALL(SYS_keyctl, 1, 0); /* KEYCTL_JOIN_SESSION_KEYRING: a new one without a name */
    if (id == -ENOSYS) return 0;      /* a kernel without keys */
    CALL(SYS_keyctl, 14, 0);          /* KEYCTL_SET_REQKEY_KEYRING: by default, the first that there is */
    CALL(SYS_keyctl, 16, 0);          /* KEYCTL_ASSUME_AUTHORITY: over no request */
    return id < 0 ? id : CALL(SYS_keyctl, 5, id, permissions); /* KEYCTL_SETPERM */
}
static long set_scheduler(int64_t policy, int64_t nice) {
    /* struct sched_attr of Linux 5.3. Children are not reset, runs are as long as the kernel likes, and load is not clamped. */
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t times[3]; int32_t clamps[2]; }
        attributes = { 56, policy, UNCLAMP, nice, 0, { 0, 0, 0 }, { -1, -1 } };
    if (CALL(SYS_sched_setattr, 0, &attributes, 0) >= 0) return 0;
    attributes.size = 48; /* a kernel without clamps */
    attributes.flags = 0;
    return CALL(SYS_sched_setattr, 0, &attributes, 0);
}
static long drop_from_bounding_set(uint64_t capabilities) {
    long result;
    int number;
    for (number = 0; number < 64; number++)
        if (capabilities >> number & 1 && (result = control(PR_CAPBSET_DROP, number, 0, 0, 0)) < 0) return result;
    return 0;
}
static long set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2] = { { effective, permitted, inheritable },
                                              { effective >> 32, permitted >> 32, inheritable >> 32 } };
    return CALL(SYS_capset, &header, data);
}
static long install_filter(int64_t flags, int64_t instructions, const char *text) {
    struct sock_fprog program = { instructions, (struct sock_filter *)text };
    return CALL(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}
/* The init of a pod's process namespace. Its containers see it: it has nothing that they could want. */
_Noreturn static void reap_forever(const char *name) {
    uint64_t all = ~0ull;
    size_t at;

    control(PR_SET_NAME, (long)name, 0, 0, 0);
    for (at = 0; title != NULL && title[at]; at++) title[at] = at < length_of(name) ? name[at] : 0;
    sys_close_range(0, ~0u);
    CALL(SYS_rt_sigprocmask, 2, &all, 0, 8);
    for (;;)
        if (CALL(SYS_wait4, -1, 0, 0, 0) < 0) CALL(SYS_rt_sigtimedwait, &all, 0, 0, 8);
}

/* The tree */

static long keep_as(long fd, int64_t number) {
    long result;
    if (fd < 0) return fd;
    result = sys_dup_to(fd, number, O_CLOEXEC);
    sys_close(fd);
    return result;
}
/* What a path means to a process whose root is `root`: no link leads outside. */
static long open_in(int root, const char *path, uint64_t flags) {
    struct open_how how = { flags | O_CLOEXEC, 0, RESOLVE_IN_ROOT };
    long fd;
    int attempt;
    /* With a ".." on the way and somebody renaming anywhere on the node, the kernel cannot tell: openat2(2), EAGAIN. */
    for (attempt = 0; attempt < ATTEMPTS; attempt++)
        if ((fd = CALL(SYS_openat2, root, path, &how, sizeof how)) != -EAGAIN) break;
    return fd;
}
static long clone_tree(int from, const char *path, uint64_t flags) {
    return CALL(SYS_open_tree, from, path, flags | OPEN_CLONE | OPEN_CLOEXEC | (*path ? 0 : EMPTY_PATH));
}
static long set_attributes(int tree, int recursive, uint64_t set, uint64_t propagation) {
    uint64_t attributes[4] = { set, 0, propagation, 0 }; /* struct mount_attr */
    return CALL(SYS_mount_setattr, tree, "", EMPTY_PATH | (recursive ? RECURSIVE : 0), attributes, sizeof attributes);
}
static long move_to(int tree, int target) { return CALL(SYS_move_mount, tree, "", target, "", FROM_EMPTY | TO_EMPTY); }

static long new_filesystem(uint64_t attributes, const char *const *text, uint32_t texts) {
    long context = CALL(SYS_fsopen, text[0], 1), result = context;
    uint32_t number;
    char *value;

    if (context < 0) return context;
    for (number = 1; number < texts && result >= 0; number++) {
        for (value = (char *)text[number]; *value && *value != '='; value++) continue;
        if (*value) {
            *value++ = 0;
            result = CALL(SYS_fsconfig, context, SET_STRING, text[number], value, 0);
        } else {
            result = CALL(SYS_fsconfig, context, SET_FLAG, text[number], 0, 0);
        }
    }
    if (result >= 0) result = CALL(SYS_fsconfig, context, CREATE, 0, 0, 0);
    if (result >= 0) result = CALL(SYS_fsmount, context, 1, attributes);
    sys_close(context);
    return result;
}

/* Make what is missing of a path in a root, links and all, and open it. Dangling links are followed by making what they lead
   to. Everything is looked up by the kernel, from the root on, after each change. */
static long make_in(int root, const char *given, int directory) {
    static char path[3 * ROOM], link[ROOM];
    size_t length = length_of(given), end, start, rest, before;
    long fd, parent, result;
    int links = 0;
    char saved;

    if (length >= ROOM) return -ENAMETOOLONG;
    memcpy(path, given, length + 1);
    while (length > 1 && path[length - 1] == '/') path[--length] = 0;
    for (end = 0; end < length;) {
        for (start = end; path[start] == '/'; start++) continue;
        for (end = start; path[end] && path[end] != '/'; end++) continue;
        saved = path[end];
        path[end] = 0;
        fd = open_in(root, path, O_PATH);
        if (fd >= 0) sys_close(fd);
        if (fd < 0 && fd != -ENOENT) return fd;
        if (fd < 0) {
            char first = path[start];
            path[start] = 0;
            parent = open_in(root, start ? path : "/", O_PATH | O_DIRECTORY);
            path[start] = first;
            if (parent < 0) return parent;
            if (saved || directory) {
                result = CALL(SYS_mkdirat, parent, path + start, 0755);
            } else {
                result = CALL(SYS_openat, parent, path + start, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
                if (result >= 0) sys_close(result);
            }
            if (result == -EEXIST) { /* a link that leads nowhere yet */
                long size = ++links > LINKS ? -ELOOP : CALL(SYS_readlinkat, parent, path + start, link, sizeof link);
                sys_close(parent);
                if (size < 0) return size;
                path[end] = saved;
                rest = length - end;
                before = link[0] == '/' ? 0 : start;
                if (before + size + rest >= sizeof path || size == sizeof link) return -ENAMETOOLONG;
                if ((size_t)size + before <= end) { /* memmove */
                    memcpy(path + before + size, path + end, rest + 1);
                } else {
                    for (rest++; rest > 0; rest--) path[before + size + rest - 1] = path[end + rest - 1];
                }
                memcpy(path + before, link, size);
                length = length_of(path);
                end = 0;
                continue;
            }
            sys_close(parent);
            if (result < 0) return result;
        }
        path[end] = saved;
    }
    return open_in(root, path, O_PATH);
}

/* Whether a place in a root is the root itself, or lies in its /proc. By the node's own /proc, before the root is entered. */
static int is_out_of_bounds(int root, int fd) {
    static char above[ROOM], place[ROOM];
    char name[32] = "/proc/self/fd/";
    int fds[2] = { root, fd }, number, digits, value;
    char *texts[2] = { above, place };
    long size[2];
    size_t at;

    for (number = 0; number < 2; number++) {
        for (digits = 1, value = fds[number]; value >= 10; value /= 10) digits++;
        for (value = fds[number], name[14 + digits] = 0; digits > 0; value /= 10) name[13 + digits--] = '0' + value % 10;
        size[number] = CALL(SYS_readlinkat, AT_FDCWD_, name, texts[number], ROOM - 1);
        if (size[number] < 0) return 1;
        texts[number][size[number]] = 0;
    }
    for (at = 0; above[at] && above[at] == place[at]; at++) continue;
    if (above[at]) return 1; /* not even inside */
    if (at == 1) at = 0;     /* the root is the node's "/" */
    if (!place[at]) return 1;
    return place[at] == '/' && place[at + 1] == 'p' && place[at + 2] == 'r' && place[at + 3] == 'o' &&
           place[at + 4] == 'c' && (!place[at + 5] || place[at + 5] == '/');
}

static int is_directory(int tree) {
    struct statx found;
    return look_at(tree, &found) == 0 && (found.stx_mode & TYPE) == A_DIRECTORY;
}

/* Whether a tree's root is a device that a place is a node of, too, and not the very file. */
static int is_other_node(int tree, const struct statx *place) {
    struct statx own;
    return look_at(tree, &own) >= 0 && (own.stx_mode & TYPE) == (place->stx_mode & TYPE) &&
           own.stx_rdev_major == place->stx_rdev_major && own.stx_rdev_minor == place->stx_rdev_minor &&
           (own.stx_ino != place->stx_ino || own.stx_dev_minor != place->stx_dev_minor);
}

/* Where a volume shows a device that the container has its own of, /dev/null, say: that in its place. */
static long use_own_device(int tree, int first, int count, uint64_t attributes) {
    struct statx found;
    long result = look_at(tree, &found), clone;

    if (result < 0 || (found.stx_mode & TYPE) != A_CHARACTER_DEVICE) return result;
    for (; count > 0; first++, count--) {
        if (!is_other_node(first, &found)) continue;
        if ((clone = clone_tree(first, "", 0)) < 0) return clone;
        if ((result = set_attributes(clone, 0, attributes, 1 << 18)) < 0) return result; /* MS_PRIVATE */
        return keep_as(clone, tree);
    }
    return 0;
}

static long attach(int tree, int root, int64_t how, const char *path) {
    int directory = how & ATTACH_DIRECTORY || (how & ATTACH_LIKE && is_directory(tree));
    struct statx found;
    long result, target = open_in(root, path, O_PATH);
    int wanted;

    if ((target == -ENOENT || target == -ENOTDIR) && how & ATTACH_IF_FOUND) return how & ATTACH_KEEP ? 0 : sys_close(tree);
    if (target == -ENOENT && how & ATTACH_MAKE) target = make_in(root, path, directory);
    if (target < 0) return target;
    result = look_at(target, &found);
    if (result >= 0 && !directory != ((found.stx_mode & TYPE) != A_DIRECTORY)) result = directory ? -ENOTDIR : -EISDIR;
    if (result >= 0 && how & ATTACH_VISIBLE && is_out_of_bounds(root, target)) result = -EXDEV;
    wanted = !(how & ATTACH_UNLESS_MOUNTED && found.stx_attributes & STATX_ATTR_MOUNT_ROOT) &&
             !(how & ATTACH_SAME_DEVICE && !is_other_node(tree, &found));
    if (result >= 0 && wanted) result = move_to(tree, target);
    sys_close(target);
    if (!(how & ATTACH_KEEP)) sys_close(tree);
    return result;
}

static long put_over(int root, const char *path, int null, int64_t attributes, int restrict_it) {
    static const char *const empty[] = { "tmpfs", "size=0k" };
    struct statx found;
    long result, tree, target = open_in(root, path, O_PATH);

    if (target == -ENOENT || target == -ENOTDIR) return 0; /* nothing there to hide */
    if (target < 0) return target;
    result = look_at(target, &found);
    if (result >= 0) {
        if (restrict_it) tree = clone_tree(target, "", RECURSIVE);
        else if ((found.stx_mode & TYPE) != A_DIRECTORY) tree = clone_tree(null, "", 0);
        else {
            char option[] = "size=0k"; /* new_filesystem writes into it */
            const char *const options[] = { empty[0], option };
            tree = new_filesystem(attributes, options, 2);
        }
        result = tree;
        if (tree >= 0) {
            if (restrict_it) result = set_attributes(tree, 1, attributes, 0);
            if (result >= 0) result = move_to(tree, target);
            sys_close(tree);
        }
    }
    sys_close(target);
    return result;
}

static long make_node(const int64_t *integer, const char *name) {
    long result = CALL(SYS_mknodat, integer[0], name, integer[1], integer[2]);
    if (result >= 0) result = CALL(SYS_fchownat, integer[0], name, integer[3], integer[4], 0);
    return result < 0 ? result : CALL(SYS_fchmodat, integer[0], name, integer[1] & 07777); /* whatever the umask is */
}

static long pivot(int root) {
    long result = CALL(SYS_fchdir, root);
    if (result >= 0) result = CALL(SYS_pivot_root, ".", "."); /* stacks the old root on the new one: pivot_root(2), NOTES */
    if (result >= 0) result = CALL(SYS_umount2, ".", DETACH);
    return result < 0 ? result : sys_chdir("/");
}

/* A file of the container's, in memory: so that the warden does not wait for a disk that does not answer. What is no file is empty. */
static long copy_file(int root, const char *path, int64_t most) {
    static char buffer[ROOM];
    struct statx found;
    long copy = CALL(SYS_memfd_create, "copy", 1), size = 0, fd = open_in(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);

    if (copy >= 0 && fd >= 0 && look_at(fd, &found) == 0 && (found.stx_mode & TYPE) == A_FILE)
        while (most > 0 && (size = CALL(SYS_read, fd, buffer, most < ROOM ? most : ROOM)) > 0) {
            most -= size;
            if ((size = sys_write(copy, buffer, size)) < 0) break;
        }
    if (fd >= 0) sys_close(fd);
    return size < 0 ? size : copy;
}

static long take_own(uint32_t operation, const int64_t *integer, const char *const *text, uint32_t texts) {
    long fd;

    switch (operation) {
    case OP_ENTER: return CALL(SYS_setns, integer[0], integer[1]);
    case OP_LEAVE: return CALL(SYS_unshare, integer[0]);
    case OP_JOIN_KEYRING: return join_keyring(integer[0]);
    case OP_SCHEDULER: return set_scheduler(integer[0], integer[1]);
    case OP_AFFINITY: return CALL(SYS_sched_setaffinity, 0, plan_length(text[0]), text[0]);
    case OP_IO_PRIORITY: return CALL(SYS_ioprio_set, 1, 0, integer[0]);
    case OP_MEMORY_POLICY: return tolerate(CALL(SYS_set_mempolicy, 0, 0, 0), TOLERATE_ALL); /* a kernel without NUMA */
    case OP_PERSONALITY: return CALL(SYS_personality, integer[0]);
    case OP_CONTROL:
        return tolerate(control(integer[0], integer[1], integer[2], integer[3], integer[4]), integer[5]);
    case OP_BOUNDING: return drop_from_bounding_set(integer[0]);
    case OP_CAPABILITIES: return set_capabilities(integer[0], integer[1], integer[2]);
    case OP_SECCOMP: return install_filter(integer[0], integer[1], text[0]);
    case OP_REAP: reap_forever(text[0]);
    case OP_OPEN: return keep_as(sys_open(text[0], integer[1] | O_CLOEXEC, 0), integer[0]);
    case OP_OPEN_IN: return keep_as(open_in(integer[1], text[0], integer[2]), integer[0]);
    case OP_CLONE: return keep_as(clone_tree(AT_FDCWD_, text[0], integer[1]), integer[0]);
    case OP_CLONE_OF: return keep_as(clone_tree(integer[1], "", integer[2]), integer[0]);
    case OP_FILESYSTEM: return keep_as(new_filesystem(integer[1], text, texts), integer[0]);
    case OP_ATTRIBUTES: return set_attributes(integer[0], integer[1], integer[2], integer[3]);
    case OP_MOUNT: return tolerate(CALL(SYS_mount, text[0], text[1], text[2], integer[0], text[3]), integer[1]);
    case OP_UNMOUNT: return CALL(SYS_umount2, text[0], integer[0]);
    case OP_ATTACH: return attach(integer[0], integer[1], integer[2], text[0]);
    case OP_DIRECTORY: return CALL(SYS_mkdirat, integer[0], text[0], integer[1]);
    case OP_NODE: return make_node(integer, text[0]);
    case OP_LINK: return CALL(SYS_symlinkat, text[0], integer[0], text[1]);
    case OP_MASK: return put_over(integer[0], text[0], integer[1], integer[2], 0);
    case OP_RESTRICT: return put_over(integer[0], text[0], -1, integer[1], 1);
    case OP_MAKE_DIRECTORY:
        fd = open_in(integer[0], text[0], O_PATH | O_DIRECTORY);
        if (fd == -ENOENT) fd = make_in(integer[0], text[0], 1);
        return fd < 0 ? fd : sys_close(fd);
    case OP_WORK_IN: return sys_chdir(text[0]);
    case OP_PIVOT: return pivot(integer[0]);
    case OP_OWN_DEVICE: return use_own_device(integer[0], integer[1], integer[2], integer[3]);
    case OP_COPY: return keep_as(copy_file(integer[1], text[0], integer[2]), integer[0]);
    default: return -ENOSYS;
    }
}
