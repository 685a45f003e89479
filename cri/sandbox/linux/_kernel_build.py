"""Builds `cri.sandbox.linux._kernel`, the calls of Linux that Python has no binding for.

API mode: the C compiler takes layouts and constants from the headers of the system. Calls that older C libraries do not
wrap go through syscall(2) by number. Every function returns what the kernel returns, -1 with errno on failure.

    python cri/sandbox/linux/_kernel_build.py     # in place, from the root of the checkout
"""

from __future__ import annotations

from cffi import FFI

_CONSTANTS = """
    CLONE_NEWNS CLONE_NEWPID CLONE_NEWNET CLONE_NEWIPC CLONE_NEWUTS CLONE_NEWCGROUP
    MS_NOSUID MS_NODEV MS_NOEXEC MS_RDONLY MS_REC MS_PRIVATE MS_SLAVE MS_SHARED MNT_DETACH
    OPEN_TREE_CLONE OPEN_TREE_CLOEXEC AT_RECURSIVE AT_EMPTY_PATH AT_SYMLINK_NOFOLLOW
    MOVE_MOUNT_F_EMPTY_PATH MOVE_MOUNT_T_EMPTY_PATH
    MOUNT_ATTR_RDONLY MOUNT_ATTR_NOSUID MOUNT_ATTR_NODEV MOUNT_ATTR_NOEXEC
    FSOPEN_CLOEXEC FSMOUNT_CLOEXEC FSCONFIG_SET_FLAG FSCONFIG_SET_STRING FSCONFIG_CMD_CREATE
    PR_SET_PDEATHSIG PR_SET_CHILD_SUBREAPER PR_SET_NO_NEW_PRIVS PR_CAPBSET_READ PR_CAPBSET_DROP
    PR_CAP_AMBIENT PR_CAP_AMBIENT_CLEAR_ALL
""".split()

ffibuilder = FFI()
ffibuilder.cdef(
    "".join(f"static const unsigned long long {name};\n" for name in _CONSTANTS)
    + """
    int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
    int umount2(const char *target, int flags);
    int unshare(int flags);
    int setns(int fd, int type);
    int cri_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
    int cri_pivot_root(const char *new_root, const char *put_old);
    int cri_open_tree(int directory, const char *path, unsigned int flags);
    int cri_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned int flags);
    int cri_mount_setattr(int directory, const char *path, unsigned int flags,
                          uint64_t set, uint64_t clear, uint64_t propagation);
    int cri_fsopen(const char *type, unsigned int flags);
    int cri_fsconfig(int fd, unsigned int command, const char *key, const char *value, int aux);
    int cri_fsmount(int fd, unsigned int flags, unsigned int attributes);
    int cri_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable);
    int cri_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable);
    int cri_close_on_exec_from(unsigned int first);
    void cri_reset_signals(void);
    int cri_set_name(const char *name);
    void cri_reap_forever(void);
    """
)
ffibuilder.set_source(
    "cri.sandbox.linux._kernel",
    r"""
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
    #include <unistd.h>
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
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        for (;;)
            if (waitpid(-1, NULL, 0) < 0) sigwait(&all, &number);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
