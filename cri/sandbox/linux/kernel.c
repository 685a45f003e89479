/* What cri.sandbox.linux.kernel needs of Linux and Python does not have. Each function returns what the kernel
   returns, -1 with errno on failure. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
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
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif

static int cri_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d) {
    return prctl(option, a, b, c, d);
}
/* open(2) below a directory that stands for the root: openat2(2), RESOLVE_IN_ROOT. */
static int cri_open_in_root(int root, const char *path, uint64_t flags) {
    uint64_t how[3] = { flags, 0, 0x10 };
    return syscall(SYS_openat2, root, path, how, sizeof how);
}
static int cri_open_tree(int directory, const char *path, unsigned int flags) {
    return syscall(SYS_open_tree, directory, path, flags);
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
static int cri_set_name(const char *name) { return prctl(PR_SET_NAME, name, 0, 0, 0); }
