"""Builds `cni_plugins.freebsd._kernel`: the interface ioctls that FreeBSD's netlink(4) has no message for.

API mode: the C compiler takes layouts and numbers from the base system's headers. It is an extension of its own
beside that of `cri.sandbox.freebsd` because this package stands alone. Every function returns -1 with errno on failure.

    python cni_plugins/freebsd/_kernel_build.py     # in place, from the root of the checkout
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef(
    """
    static const int IFNAMSIZ;
    int cni_rename(int fd, const char *name, const char *new_name);
    int cni_destroy(int fd, const char *name);
    int cni_move(int fd, const char *name, int jid);
    int cni_set_mac(int fd, const char *name, const char *mac);
    int cni_set_mtu(int fd, const char *name, int mtu);
    int cni_disable_ipv6(int fd, const char *name);
    int cni_listens(int fd, const char *name);
    int cni_ignore_advertisements(int fd, const char *name, int fresh);
    int cni_join_group(int fd, const char *name, const char *group);
    int cni_group_members(int fd, const char *group, char *names, int room);
    int cni_bridge_add(int fd, const char *bridge, const char *member);
    int cni_bridge_delete(int fd, const char *bridge, const char *member);
    int cni_bridge_isolate(int fd, const char *bridge, const char *member);
    int cni_bridge_members(int fd, const char *bridge, char *names, int room);
    int cni_set_promiscuous(int fd, const char *name, int on);
    int cni_set_all_multicast(int fd, const char *name, int on);
    int cni_sysctl_read(const char *name, int *value);
    int cni_sysctl_write(const char *name, int value);
    """
)
ffibuilder.set_source("cni_plugins.freebsd._kernel", Path(__file__).with_name("kernel.c").read_text())

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
