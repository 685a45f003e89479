"""Builds `cni_plugins.freebsd._pf`: the ioctls on /dev/pf, pf(4).

API mode: the C compiler takes layouts and numbers from the base system's headers. Every function returns -1 with errno
on failure. libnv is part of the base system.

    python cni_plugins/freebsd/_pf_build.py     # in place, from the root of the checkout
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

CDEF = """
    static const int PF_RULESET_SCRUB;
    static const int PF_RULESET_NAT;
    static const int PF_RULESET_RDR;
    static const int PF_NAT;
    static const int PF_NONAT;
    static const int PF_RDR;
    static const int CNI_PF_ANY;
    static const int CNI_PF_NETWORK;
    static const int CNI_PF_INTERFACE;

    typedef struct {
        uint8_t kind;
        uint8_t prefix;
        uint8_t bytes[16];
        char interface[16];
        uint8_t first;
    } cni_pf_address;

    typedef struct {
        uint8_t action;
        uint8_t family;
        uint8_t protocol;
        uint8_t pass;
        char interface[16];
        cni_pf_address from, to;
        uint16_t to_port;
        char tag[64];
        char tagged[64];
        uint8_t not_tagged;
        char label[64];
        uint16_t ports[2];
    } cni_pf_rule;

    typedef struct {
        char interface[16];
        uint8_t family;
        uint8_t prefix;
        uint8_t loopback;
        uint8_t bytes[16];
    } cni_pf_local;

    int cni_pf_begin(int fd, const char *anchor, const int *rulesets, uint32_t *tickets, int count);
    int cni_pf_commit(int fd, const char *anchor, const int *rulesets, uint32_t *tickets, int count);
    int cni_pf_rollback(int fd, const char *anchor, const int *rulesets, uint32_t *tickets, int count);
    int cni_pf_begin_pool(int fd, uint32_t *ticket);
    int cni_pf_add_to_pool(int fd, uint32_t ticket, uint8_t family, const cni_pf_address *address);
    int cni_pf_add_rule(
        int fd, const char *anchor, uint32_t ticket, uint32_t pool_ticket, const cni_pf_rule *rule);
    int cni_pf_count_rules(int fd, const char *anchor, uint8_t action, uint32_t *ticket);
    int cni_pf_called_anchor(
        int fd, uint8_t action, uint32_t ticket, uint32_t number, char *called, size_t room);
    int cni_pf_count_anchors(int fd, const char *anchor);
    int cni_pf_anchor_name(int fd, const char *anchor, uint32_t number, char *name);
    int cni_pf_kill_states(
        int fd, uint8_t family, const cni_pf_address *address, int as_destination,
        uint8_t protocol, uint16_t port);
    int cni_pf_running(int fd);
    int cni_pf_skips(int fd, const char *interface);
    int cni_pf_filters_local(void);
    int cni_pf_local_addresses(cni_pf_local *into, int room);
"""

ffibuilder = FFI()
ffibuilder.cdef(CDEF)
ffibuilder.set_source(
    "cni_plugins.freebsd._pf", Path(__file__).with_name("pf.c").read_text(), libraries=["nv"]
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
