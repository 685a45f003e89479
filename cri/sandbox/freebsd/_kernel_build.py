"""Builds `cri.sandbox.freebsd._kernel`, the calls of FreeBSD that Python has no binding for.

API mode: the C compiler takes layouts and constants from the headers of the base system. Every function returns what the
kernel returns, -1 with errno on failure. `scripts/check-freebsd-abi` compiles it on other systems.

    python cri/sandbox/freebsd/_kernel_build.py     # in place, from the root of the checkout
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_CONSTANTS = [
    "JAIL_CREATE",
    "JAIL_UPDATE",
    "JAIL_DYING",
    "MNT_FORCE",
    "MNT_BYFSID",
    "MNT_NOWAIT",
    "DEVFS_MAGIC",
    "DEVFS_MAXPTRNLEN",
    "DEVFSIO_RADD",
    "DEVFSIO_RDEL",
    "DEVFSIO_RAPPLY",
    "DEVFSIO_RGETNEXT",
    "DRC_PATHPTRN",
    "DRA_BACTS",
    "DRA_MODE",
    "DRB_HIDE",
    "DRB_UNHIDE",
]

ffibuilder = FFI()
ffibuilder.cdef(
    "".join(f"static const unsigned long long {name};\n" for name in _CONSTANTS)
    + """
    struct iovec { void *iov_base; size_t iov_len; };
    int jail_set(struct iovec *iov, unsigned int niov, int flags);
    int jail_get(struct iovec *iov, unsigned int niov, int flags);
    int jail_remove(int jid);
    int cri_jail_cpus(int jid, const int *cpus, int count);
    int cri_jail_cpus_now(int jid, int *cpus, int room);

    typedef struct { int32_t val[2]; } fsid_t;
    struct statfs {
        uint64_t f_flags;
        fsid_t f_fsid;
        char f_fstypename[...];
        char f_mntfromname[...];
        char f_mntonname[...];
        ...;
    };
    int nmount(struct iovec *iov, unsigned int niov, int flags);
    int unmount(const char *fsid, int flags);
    int statfs(const char *path, struct statfs *mount);
    int getfsstat(struct statfs *mounts, long size, int mode);

    struct devfs_rule {
        uint32_t dr_magic;
        uint32_t dr_id;
        int dr_icond;
        char dr_pathptrn[...];
        int dr_iacts;
        int dr_bacts;
        uint16_t dr_mode;
        ...;
    };
    int cri_devfs(int fd, unsigned long request, void *argument);

    int rctl_add_rule(const char *rule, size_t size, char *out, size_t room);
    int rctl_remove_rule(const char *filter, size_t size, char *out, size_t room);
    int rctl_get_rules(const char *filter, size_t size, char *out, size_t room);
    int rctl_get_racct(const char *subject, size_t size, char *out, size_t room);

    int sysctlbyname(const char *name, void *value, size_t *size, const void *new_value, size_t new_size);
    int sysctlnametomib(const char *name, int *oid, size_t *size);
    int cri_sysctl_kind(const char *name);
    int modfind(const char *name);
    int kldfind(const char *file);
    int cri_process_start(int pid, int64_t *started);
    struct process {
        int pid, jid, threads;
        uint64_t cpu_microseconds, system_microseconds, resident_pages, minor_faults, major_faults;
    };
    int cri_processes(const int *jids, int jid_count, struct process *found, int room);
    struct interface {
        char name[...];
        uint64_t received_bytes, received_packets, receive_errors, receive_drops;
        uint64_t sent_bytes, sent_packets, send_errors, send_drops;
    };
    int cri_interfaces(struct interface *found, int room);

    int cri_become_reaper(void);
    int cri_reaper_pids(int *pids, unsigned int room, unsigned int *found);
    int cri_reaper_kill(int signal, int subtree);
    int cri_spawn(int program, const char *title, int input, const int *descriptors, int count, int first);
    void cri_set_title(const char *title);
    """
)
ffibuilder.set_source(
    "cri.sandbox.freebsd._kernel",
    Path(__file__).with_name("kernel.c").read_text(),
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
