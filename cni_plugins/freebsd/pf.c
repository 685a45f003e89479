/* The ioctls on /dev/pf that cni_plugins.freebsd.pf makes: one in each function, which returns -1 with errno on failure.
   Rules travel as packed nvlist(9)s, the only form that FreeBSD 14 and 15 share. Sources: pf(4), nv(9), net/pfvar.h and
   what sys/netpfil/pf/pf_nv.c demands. */

#include <sys/param.h>
#include <sys/ioctl.h>
#include <sys/nv.h>
#include <sys/socket.h>
#include <sys/sysctl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <net/pfvar.h>
#include <errno.h>
#include <ifaddrs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What a kernel would misread in silence if headers and kernel ever disagreed; all of it is the same in 14.0 and 15.1. */
_Static_assert(MAXPATHLEN == 1024 && PF_ANCHOR_NAME_SIZE == 64, "names of anchors");
_Static_assert(PF_TAG_NAME_SIZE == 64 && PF_RULE_LABEL_SIZE == 64 && IFNAMSIZ == 16, "names in rules");
_Static_assert(PF_RULESET_SCRUB == 0 && PF_RULESET_NAT == 2 && PF_RULESET_RDR == 4, "rulesets");
_Static_assert(PF_NAT == 4 && PF_NONAT == 5 && PF_RDR == 8 && PF_OP_EQ == 2, "rules");
_Static_assert(PF_ADDR_ADDRMASK == 0 && PF_ADDR_DYNIFTL == 2 && PFI_AFLAG_NOALIAS == 8, "addresses");
_Static_assert(sizeof(struct pf_addr) == 16 && sizeof(struct pf_addr_wrap) == 48, "struct pf_addr_wrap");
_Static_assert(sizeof(struct pf_poolhashkey) == 16, "struct pf_poolhashkey");
_Static_assert(sizeof(struct pfioc_trans) == 16 && sizeof(struct pfioc_trans_e) == 1032, "struct pfioc_trans");
_Static_assert(sizeof(struct pfioc_nv) == 24, "struct pfioc_nv");
_Static_assert(sizeof(struct pfioc_ruleset) == 1092, "struct pfioc_ruleset");
_Static_assert(DIOCXBEGIN == 0xc0104451 && DIOCXCOMMIT == 0xc0104452 && DIOCXROLLBACK == 0xc0104453, "transactions");
_Static_assert(DIOCBEGINADDRS == 0xc4704433 && DIOCADDADDR == 0xc4704434, "pools");
_Static_assert(DIOCADDRULENV == 0xc0184404 && DIOCGETRULENV == 0xc0184407, "rules");
_Static_assert(DIOCGETRULESETS == 0xc444443a && DIOCGETRULESET == 0xc444443b, "anchors");
_Static_assert(sizeof(struct pfioc_iface) == 40 && DIOCIGETIFACES == 0xc0284457, "struct pfioc_iface");
_Static_assert(DIOCGETSTATUSNV == 0xc0184415 && DIOCKILLSTATESNV == 0xc0184429, "states");

/* Every nvlist that the kernel answers with is about 4 KiB. */
#define ANSWER_ROOM (64 * 1024)

enum { CNI_PF_ANY, CNI_PF_NETWORK, CNI_PF_INTERFACE };

typedef struct {
    uint8_t kind;
    uint8_t prefix;              /* CNI_PF_NETWORK: its length in bits */
    uint8_t bytes[16];           /* CNI_PF_NETWORK: in network order, four of them or sixteen */
    char interface[IFNAMSIZ];    /* CNI_PF_INTERFACE: whose addresses, whatever they are at the time */
    uint8_t first;               /* CNI_PF_INTERFACE: only its first address, no aliases */
} cni_pf_address;

typedef struct {
    uint8_t action;
    uint8_t family;
    uint8_t protocol;            /* 0: any */
    uint8_t pass;
    char interface[IFNAMSIZ];    /* empty: any */
    cni_pf_address from, to;
    uint16_t to_port;            /* 0: any */
    char tag[PF_TAG_NAME_SIZE];
    char tagged[PF_TAG_NAME_SIZE];
    uint8_t not_tagged;          /* the rule is for packets without that tag */
    char label[PF_RULE_LABEL_SIZE];
    uint16_t ports[2];           /* of the pool, in the host's order */
} cni_pf_rule;

typedef struct {
    char interface[IFNAMSIZ];
    uint8_t family;
    uint8_t prefix;
    uint8_t loopback;
    uint8_t bytes[16];
} cni_pf_local;

static void fill_mask(struct pf_addr *mask, unsigned int bits) {
    for (unsigned int i = 0; i < bits && i < 128; i++) mask->addr8[i / 8] |= 0x80 >> i % 8;
}

static void fill_address(struct pf_addr_wrap *wrap, const cni_pf_address *address) {
    memset(wrap, 0, sizeof *wrap);
    wrap->type = PF_ADDR_ADDRMASK;
    if (address->kind == CNI_PF_NETWORK) {
        memcpy(&wrap->v.a.addr, address->bytes, sizeof wrap->v.a.addr);
        fill_mask(&wrap->v.a.mask, address->prefix);
    }
    if (address->kind == CNI_PF_INTERFACE) {
        wrap->type = PF_ADDR_DYNIFTL;
        wrap->iflags = address->first ? PFI_AFLAG_NOALIAS : 0;
        /* The name lies over the address, and the mask behind it says how much of each address counts. */
        fill_mask(&wrap->v.a.mask, 128);
        strlcpy(wrap->v.ifname, address->interface, sizeof wrap->v.ifname);
    }
}

/* A list in a list belongs to the outer one. One that could not be made leaves the error there. */
static void add_binary_list(nvlist_t *to, const char *name, const void *bytes, size_t size) {
    nvlist_t *made = nvlist_create(0);
    nvlist_add_binary(made, "addr", bytes, size);
    nvlist_move_nvlist(to, name, made);
}

static void add_pair(nvlist_t *to, const char *name, uint64_t first, uint64_t second) {
    uint64_t pair[2] = { first, second };
    nvlist_add_number_array(to, name, pair, 2);
}

static void add_endpoint(nvlist_t *to, const char *name, const cni_pf_address *address, uint16_t port) {
    struct pf_addr_wrap wrap;
    nvlist_t *wrapped = nvlist_create(0), *made = nvlist_create(0);
    fill_address(&wrap, address);
    nvlist_add_number(wrapped, "type", wrap.type);
    nvlist_add_number(wrapped, "iflags", wrap.iflags);
    if (wrap.type == PF_ADDR_DYNIFTL) nvlist_add_string(wrapped, "ifname", wrap.v.ifname);
    add_binary_list(wrapped, "addr", &wrap.v.a.addr, sizeof wrap.v.a.addr);
    add_binary_list(wrapped, "mask", &wrap.v.a.mask, sizeof wrap.v.a.mask);
    nvlist_move_nvlist(made, "addr", wrapped);
    add_pair(made, "port", htons(port), 0);
    nvlist_add_number(made, "port_op", port ? PF_OP_EQ : PF_OP_NONE);
    nvlist_add_number(made, "neg", 0);
    nvlist_move_nvlist(to, name, made);
}

/* Users or groups: the kernel reads both under the name of the users. */
static void add_ids(nvlist_t *to, const char *name) {
    nvlist_t *made = nvlist_create(0);
    add_pair(made, "uid", 0, 0);
    nvlist_add_number(made, "op", PF_OP_NONE);
    nvlist_move_nvlist(to, name, made);
}

static void add_pool(nvlist_t *to, const uint16_t ports[2]) {
    const struct pf_poolhashkey key = {0};
    const struct pf_addr none = {0};
    nvlist_t *made = nvlist_create(0);
    nvlist_add_binary(made, "key", &key, sizeof key);
    add_binary_list(made, "counter", &none, sizeof none);
    nvlist_add_number(made, "tblidx", (uint64_t)-1);
    add_pair(made, "proxy_port", ports[0], ports[1]);
    nvlist_add_number(made, "opts", PF_POOL_NONE);
    nvlist_move_nvlist(to, "rpool", made);
}

/* Fields that the kernel refuses a rule without, and that mean nothing in rules of ours. */
static const char *const unused_numbers[] = {
    "nr", "os_fingerprint", "max_states", "max_src_nodes", "max_src_states", "max_src_conn", "max_src_conn_rate.limit",
    "max_src_conn_rate.seconds", "prob", "cuid", "cpid", "return_icmp", "return_icmp6", "max_mss", "scrub_flags",
    "rule_flag", "direction", "log", "logif", "quick", "ifnot", "keep_state", "type", "code", "flags", "flagset",
    "min_ttl", "allow_opts", "rt", "return_ttl", "tos", "set_tos", "flush", "prio",
};
static const char *const unused_strings[] = { "qname", "pqname", "overload_tblname" };

static nvlist_t *rule_list(const cni_pf_rule *rule) {
    const uint64_t timeouts[PFTM_MAX] = {0};
    nvlist_t *made = nvlist_create(0);
    for (size_t i = 0; i < nitems(unused_numbers); i++) nvlist_add_number(made, unused_numbers[i], 0);
    for (size_t i = 0; i < nitems(unused_strings); i++) nvlist_add_string(made, unused_strings[i], "");
    nvlist_add_number_array(made, "timeout", timeouts, PFTM_MAX); /* FreeBSD 14 insists on the number */
    add_pair(made, "set_prio", 0, 0);
    add_ids(made, "uid");
    add_ids(made, "gid");
    nvlist_add_number(made, "rtableid", (uint64_t)-1);

    nvlist_add_number(made, "action", rule->action);
    nvlist_add_number(made, "af", rule->family);
    nvlist_add_number(made, "proto", rule->protocol);
    nvlist_add_number(made, "natpass", rule->pass);
    nvlist_add_string(made, "ifname", rule->interface);
    add_endpoint(made, "src", &rule->from, 0);
    add_endpoint(made, "dst", &rule->to, rule->to_port);
    nvlist_add_string(made, "tagname", rule->tag);
    nvlist_add_string(made, "match_tagname", rule->tagged);
    nvlist_add_number(made, "match_tag_not", rule->not_tagged);
    nvlist_add_string(made, "label", rule->label);
    add_pool(made, rule->ports);
    return made;
}

/* Sends a list, which it destroys. Where `answer` is wanted, it is the caller's to destroy. */
static int exchange(int fd, unsigned long request, nvlist_t *list, nvlist_t **answer) {
    struct pfioc_nv call = {0};
    size_t length = 0;
    void *packed = nvlist_pack(list, &length);
    int error = packed == NULL ? nvlist_error(list) : 0;
    nvlist_destroy(list);
    if (packed == NULL) {
        errno = error ? error : ENOMEM;
        return -1;
    }
    call.len = length;
    call.size = MAX(length, ANSWER_ROOM);
    call.data = realloc(packed, call.size);
    if (call.data == NULL) {
        free(packed);
        return -1;
    }
    int result = ioctl(fd, request, &call);
    if (result == 0 && answer != NULL) {
        *answer = nvlist_unpack(call.data, call.len, 0);
        if (*answer == NULL) result = -1;
    }
    error = errno;
    free(call.data);
    errno = error;
    return result;
}

static int copy_anchor(char *into, const char *anchor) {
    if (strlcpy(into, anchor, MAXPATHLEN) < MAXPATHLEN) return 0;
    errno = ENAMETOOLONG;
    return -1;
}

/* DIOCXBEGIN, DIOCXCOMMIT or DIOCXROLLBACK of some of an anchor's rulesets. */
static int transact(int fd, unsigned long request, const char *anchor, const int *rulesets, uint32_t *tickets, int count) {
    struct pfioc_trans call = { .size = count, .esize = sizeof(struct pfioc_trans_e) };
    call.array = calloc(count, sizeof(struct pfioc_trans_e));
    if (call.array == NULL) return -1;
    int result = 0;
    for (int i = 0; i < count; i++) {
        call.array[i].rs_num = rulesets[i];
        call.array[i].ticket = tickets[i];
        if (copy_anchor(call.array[i].anchor, anchor)) result = -1;
    }
    if (result == 0) result = ioctl(fd, request, &call);
    for (int i = 0; i < count && result == 0; i++) tickets[i] = call.array[i].ticket;
    int error = errno;
    free(call.array);
    errno = error;
    return result;
}

static int cni_pf_begin(int fd, const char *anchor, const int *rulesets, uint32_t *tickets, int count) {
    return transact(fd, DIOCXBEGIN, anchor, rulesets, tickets, count);
}

static int cni_pf_commit(int fd, const char *anchor, const int *rulesets, uint32_t *tickets, int count) {
    return transact(fd, DIOCXCOMMIT, anchor, rulesets, tickets, count);
}

static int cni_pf_rollback(int fd, const char *anchor, const int *rulesets, uint32_t *tickets, int count) {
    return transact(fd, DIOCXROLLBACK, anchor, rulesets, tickets, count);
}

/* The pool of addresses that the next rule translates to: the kernel has one such buffer for everybody. */
static int cni_pf_begin_pool(int fd, uint32_t *ticket) {
    struct pfioc_pooladdr call = {0};
    if (ioctl(fd, DIOCBEGINADDRS, &call) != 0) return -1;
    *ticket = call.ticket;
    return 0;
}

static int cni_pf_add_to_pool(int fd, uint32_t ticket, uint8_t family, const cni_pf_address *address) {
    struct pfioc_pooladdr call = { .ticket = ticket, .af = family };
    fill_address(&call.addr.addr, address);
    return ioctl(fd, DIOCADDADDR, &call);
}

static int cni_pf_add_rule(int fd, const char *anchor, uint32_t ticket, uint32_t pool_ticket, const cni_pf_rule *rule) {
    nvlist_t *list = nvlist_create(0);
    nvlist_add_number(list, "ticket", ticket);
    nvlist_add_number(list, "pool_ticket", pool_ticket);
    nvlist_add_string(list, "anchor", anchor);
    nvlist_add_string(list, "anchor_call", "");
    nvlist_move_nvlist(list, "rule", rule_list(rule));
    return exchange(fd, DIOCADDRULENV, list, NULL);
}

/* The number of an anchor's rules of the kind that an action belongs to; the main ruleset is the anchor "". */
static int cni_pf_count_rules(int fd, const char *anchor, uint8_t action, uint32_t *ticket) {
    struct pfioc_rule *call = calloc(1, sizeof *call);
    if (call == NULL) return -1;
    call->rule.action = action;
    int result = copy_anchor(call->anchor, anchor) ? -1 : ioctl(fd, DIOCGETRULES, call);
    int error = errno;
    if (result == 0) {
        *ticket = call->ticket;
        result = call->nr;
    }
    free(call);
    errno = error;
    return result;
}

/* The anchor that one of the main ruleset's rules calls, empty if it is no call. Its length; of more than `room` - 1 bytes the rest
   is cut off. EBUSY if the ruleset is another one by now. */
static int cni_pf_called_anchor(int fd, uint8_t action, uint32_t ticket, uint32_t number, char *called, size_t room) {
    nvlist_t *list = nvlist_create(0), *answer = NULL;
    nvlist_add_string(list, "anchor", "");
    nvlist_add_number(list, "ruleset", action);
    nvlist_add_number(list, "ticket", ticket);
    nvlist_add_number(list, "nr", number);
    if (exchange(fd, DIOCGETRULENV, list, &answer) != 0) return -1;
    const char *found = nvlist_exists_string(answer, "anchor_call") ? nvlist_get_string(answer, "anchor_call") : "";
    int length = strlcpy(called, found, room);
    nvlist_destroy(answer);
    return length;
}

/* The number of anchors directly below one. */
static int cni_pf_count_anchors(int fd, const char *anchor) {
    struct pfioc_ruleset call = {0};
    if (copy_anchor(call.path, anchor) || ioctl(fd, DIOCGETRULESETS, &call) != 0) return -1;
    return call.nr;
}

/* The name of one of them, PF_ANCHOR_NAME_SIZE bytes; EBUSY if there are not that many any more. */
static int cni_pf_anchor_name(int fd, const char *anchor, uint32_t number, char *name) {
    struct pfioc_ruleset call = { .nr = number };
    if (copy_anchor(call.path, anchor) || ioctl(fd, DIOCGETRULESET, &call) != 0) return -1;
    memcpy(name, call.name, sizeof call.name);
    return 0;
}

/* End the states from an address or else to it, and the states that carry the same packets on another interface. A
   protocol or port of 0 is any. */
static int cni_pf_kill_states(int fd, uint8_t family, const cni_pf_address *address, int as_destination,
                              uint8_t protocol, uint16_t port) {
    const cni_pf_address any = {0};
    nvlist_t *list = nvlist_create(0), *comparison = nvlist_create(0);
    nvlist_add_number(comparison, "id", 0);
    nvlist_add_number(comparison, "creatorid", 0);
    nvlist_add_number(comparison, "direction", 0);
    nvlist_move_nvlist(list, "cmp", comparison);
    nvlist_add_number(list, "af", family);
    nvlist_add_number(list, "proto", protocol);
    add_endpoint(list, "src", as_destination ? &any : address, as_destination ? 0 : port);
    add_endpoint(list, "dst", as_destination ? address : &any, as_destination ? port : 0);
    add_endpoint(list, "rt_addr", &any, 0);
    nvlist_add_string(list, "ifname", "");
    nvlist_add_string(list, "label", "");
    /* Compare the addresses that the pod knows, not those on the wire outside. A kernel that does not know "nat" finds
       these states as the counterparts of the ones on the pod's side. */
    nvlist_add_bool(list, "nat", true);
    nvlist_add_bool(list, "kill_match", true);
    return exchange(fd, DIOCKILLSTATESNV, list, NULL);
}

/* Whether packets are filtered: 1 or 0. */
static int cni_pf_running(int fd) {
    nvlist_t *answer = NULL;
    if (exchange(fd, DIOCGETSTATUSNV, nvlist_create(0), &answer) != 0) return -1;
    int running = nvlist_exists_bool(answer, "running") && nvlist_get_bool(answer, "running");
    nvlist_destroy(answer);
    return running;
}

/* Whether pf.conf(5) has `set skip` for an interface, or for its group: 1 or 0. */
static int cni_pf_skips(int fd, const char *interface) {
    struct pfi_kif found = {0};
    struct pfioc_iface call = { .pfiio_buffer = &found, .pfiio_esize = sizeof found, .pfiio_size = 1 };
    if (strlcpy(call.pfiio_name, interface, sizeof call.pfiio_name) >= sizeof call.pfiio_name) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (ioctl(fd, DIOCIGETIFACES, &call) != 0) return -1;
    return call.pfiio_size > 0 && (found.pfik_flags & PFI_IFLAG_SKIP) != 0;
}

/* Whether what is delivered to the host itself is filtered: 1 or 0. ENOENT without pf. */
static int cni_pf_filters_local(void) {
    bool value = false;
    size_t size = sizeof value;
    if (sysctlbyname("net.pf.filter_local", &value, &size, NULL, 0) != 0) return -1;
    return value;
}

static unsigned int count_bits(const uint8_t *mask, size_t size) {
    unsigned int bits = 0;
    for (size_t i = 0; i < size; i++) bits += __builtin_popcount(mask[i]);
    return bits;
}

/* The number of addresses that interfaces of the calling process's stack have, of which at most `room` are written. It is
   the stack whose pf(4) the process reaches. */
static int cni_pf_local_addresses(cni_pf_local *into, int room) {
    struct ifaddrs *all;
    int count = 0;
    if (getifaddrs(&all) != 0) return -1;
    for (const struct ifaddrs *each = all; each != NULL; each = each->ifa_next) {
        if (each->ifa_addr == NULL || each->ifa_netmask == NULL) continue;
        const sa_family_t family = each->ifa_addr->sa_family;
        if (family != AF_INET && family != AF_INET6) continue;
        if (count++ >= room) continue;
        cni_pf_local *local = &into[count - 1];
        const size_t at = family == AF_INET ? offsetof(struct sockaddr_in, sin_addr) : offsetof(struct sockaddr_in6, sin6_addr);
        const size_t size = family == AF_INET ? sizeof(struct in_addr) : sizeof(struct in6_addr);
        memset(local, 0, sizeof *local);
        strlcpy(local->interface, each->ifa_name, sizeof local->interface);
        local->family = family;
        local->loopback = (each->ifa_flags & IFF_LOOPBACK) != 0;
        memcpy(local->bytes, (const uint8_t *)each->ifa_addr + at, size);
        local->prefix = count_bits((const uint8_t *)each->ifa_netmask + at, size);
    }
    freeifaddrs(all);
    return count;
}
