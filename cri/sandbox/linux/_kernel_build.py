"""Builds `cri.sandbox.linux._kernel`, the calls of Linux that Python has no binding for.

API mode: the C compiler takes layouts and constants from the headers of the system. Calls that older C libraries do not
wrap go through syscall(2) by number. Every function returns what the kernel returns, -1 with errno on failure.

    python cri/sandbox/linux/_kernel_build.py     # in place, from the root of the checkout
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_CONSTANTS = [
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWNET",
    "CLONE_NEWIPC",
    "CLONE_NEWUTS",
    "CLONE_NEWCGROUP",
    "MS_NODEV",
    "MS_REC",
    "MS_PRIVATE",
    "MS_SLAVE",
    "MS_SHARED",
    "MNT_DETACH",
    "OPEN_TREE_CLONE",
    "OPEN_TREE_CLOEXEC",
    "AT_RECURSIVE",
    "AT_EMPTY_PATH",
    "MOUNT_ATTR_RDONLY",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "FSCONFIG_SET_FLAG",
    "FSCONFIG_SET_STRING",
    "FSCONFIG_CMD_CREATE",
    "PR_SET_CHILD_SUBREAPER",
    "PR_CAPBSET_READ",
]

ffibuilder = FFI()
ffibuilder.cdef(
    "".join(f"static const unsigned long long {name};\n" for name in _CONSTANTS)
    + """
    int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
    int umount2(const char *target, int flags);
    int unshare(int flags);
    int syncfs(int fd);
    int cri_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
    int cri_open_tree(int directory, const char *path, unsigned int flags);
    int cri_open_in_root(int root, const char *path, uint64_t flags);
    int cri_fsopen(const char *type, unsigned int flags);
    int cri_fsconfig(int fd, unsigned int command, const char *key, const char *value, int aux);
    int cri_fsmount(int fd, unsigned int flags, unsigned int attributes);
    int cri_bpf(int command, void *attributes, unsigned int size);
    int cri_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable);
    int cri_set_name(const char *name);
    """
)
ffibuilder.set_source(
    "cri.sandbox.linux._kernel",
    Path(__file__).with_name("kernel.c").read_text(),
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
