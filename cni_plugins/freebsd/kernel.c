/* The interface ioctls that cni_plugins.freebsd.ioctl makes, ioctl(2) on any socket of the network stack in question, and
   sysctl(3). Each function returns -1 with errno on failure. Sources: netintro(4), if_bridge(4), epair(4), vnet(9). */

#include <sys/param.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/sockio.h>
#include <sys/sysctl.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_bridgevar.h>
#include <netinet/in.h>
#include <netinet/in_var.h>
#include <netinet6/nd6.h>
#include <netlink/netlink.h>
#include <netlink/netlink_route.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What a kernel would misread in silence if headers and kernel ever disagreed. struct ifbreq did change its size for a
   while between releases 14 and 15. */
_Static_assert(IFNAMSIZ == 16, "interface names");
_Static_assert(sizeof(struct ifreq) == 32, "struct ifreq");
_Static_assert(sizeof(struct ifdrv) == 40, "struct ifdrv");
_Static_assert(sizeof(struct ifbreq) == 80, "struct ifbreq");
_Static_assert(sizeof(struct ifbifconf) == 16, "struct ifbifconf");
_Static_assert(sizeof(struct ifgroupreq) == 40, "struct ifgroupreq");
_Static_assert(sizeof(struct ifg_req) == 16, "struct ifg_req");
_Static_assert(SIOCIFDESTROY == 0x80206979, "SIOCIFDESTROY");
_Static_assert(SIOCSIFNAME == 0x80206928, "SIOCSIFNAME");
_Static_assert(SIOCSIFVNET == 0xc020695a, "SIOCSIFVNET");
_Static_assert(SIOCSIFLLADDR == 0x8020693c, "SIOCSIFLLADDR");
_Static_assert(SIOCSIFMTU == 0x80206934, "SIOCSIFMTU");
_Static_assert(SIOCSDRVSPEC == 0x8028697b, "SIOCSDRVSPEC");
_Static_assert(SIOCGDRVSPEC == 0xc028697b, "SIOCGDRVSPEC");
_Static_assert(SIOCAIFGROUP == 0x80286987, "SIOCAIFGROUP");
_Static_assert(SIOCGIFGMEMB == 0xc028698a, "SIOCGIFGMEMB");
_Static_assert(BRDGADD == 0 && BRDGDEL == 1 && BRDGGIFFLGS == 2 && BRDGSIFFLGS == 3 && BRDGGIFS == 6, "bridge");
_Static_assert(IFBIF_PRIVATE == 0x800, "IFBIF_PRIVATE");
_Static_assert(ND6_IFF_ACCEPT_RTADV == 0x2 && ND6_IFF_IFDISABLED == 0x8, "flags of neighbour discovery");

/* The numbers that netlink/ shares with Linux. */
_Static_assert(AF_NETLINK == 38 && NETLINK_ROUTE == 0 && SOL_NETLINK == 270, "the family");
_Static_assert(NETLINK_CAP_ACK == 10 && NETLINK_EXT_ACK == 11, "socket options");
_Static_assert(NLMSG_ERROR == 2 && NLMSG_DONE == 3, "control messages");
_Static_assert(NLM_F_REQUEST == 1 && NLM_F_MULTI == 2 && NLM_F_ACK == 4 && NLM_F_DUMP == 0x300, "flags");
_Static_assert(NLM_F_EXCL == 0x200 && NLM_F_CREATE == 0x400, "flags of NEW");
_Static_assert(NLM_F_CAPPED == 0x100 && NLM_F_ACK_TLVS == 0x200, "flags of ERROR");
_Static_assert(NLMSGERR_ATTR_MSG == 1 && NLMSGERR_ATTR_OFFS == 2 && NLMSGERR_ATTR_COOKIE == 3, "acknowledgements");
_Static_assert(NL_RTM_NEWLINK == 16 && NL_RTM_DELLINK == 17 && NL_RTM_GETLINK == 18, "links");
_Static_assert(NL_RTM_NEWADDR == 20 && NL_RTM_DELADDR == 21 && NL_RTM_GETADDR == 22, "addresses");
_Static_assert(NL_RTM_NEWROUTE == 24 && NL_RTM_DELROUTE == 25 && NL_RTM_GETROUTE == 26, "routes");
_Static_assert(sizeof(struct ifinfomsg) == 16 && sizeof(struct ifaddrmsg) == 8 && sizeof(struct rtmsg) == 12,
    "headers");
_Static_assert(IFLA_ADDRESS == 1 && IFLA_IFNAME == 3 && IFLA_MTU == 4 && IFLA_MASTER == 10 && IFLA_LINKINFO == 18 &&
    IFLA_IFALIAS == 20 && IFLA_INFO_KIND == 1, "attributes of links");
_Static_assert(IFA_ADDRESS == 1 && IFA_LOCAL == 2 && IFA_BROADCAST == 4 && IFA_CACHEINFO == 6 && IFA_FLAGS == 8 &&
    IFA_F_NODAD == 2 && sizeof(struct ifa_cacheinfo) == 16, "attributes of addresses");
_Static_assert(IFLA_PROMISCUITY == 30 && IFF_UP == 0x1 && IFF_LOOPBACK == 0x8 && IFF_PROMISC == 0x100 &&
    IFF_ALLMULTI == 0x200, "flags of links");
_Static_assert(NL_RTA_METRICS == 8 && NL_RTAX_MTU == 2 && NL_RTA_TABLE == 15, "metrics of routes");
_Static_assert(NL_RTA_DST == 1 && NL_RTA_OIF == 4 && NL_RTA_GATEWAY == 5 && RT_TABLE_MAIN == 0 && RTPROT_STATIC == 4 &&
    RTN_UNICAST == 1, "routes");

/* The kernel would cut a longer name silently. */
static int copy_name(char *into, const char *name) {
    if (strlcpy(into, name, IFNAMSIZ) < IFNAMSIZ) return 0;
    errno = ENAMETOOLONG;
    return -1;
}

static int cni_rename(int fd, const char *name, const char *new_name) {
    struct ifreq request = {0};
    char copy[IFNAMSIZ] = {0};
    if (copy_name(request.ifr_name, name) || copy_name(copy, new_name)) return -1;
    request.ifr_data = copy;
    return ioctl(fd, SIOCSIFNAME, &request);
}

static int cni_destroy(int fd, const char *name) {
    struct ifreq request = {0};
    if (copy_name(request.ifr_name, name)) return -1;
    return ioctl(fd, SIOCIFDESTROY, &request);
}

static int cni_move(int fd, const char *name, int jid) {
    struct ifreq request = {0};
    if (copy_name(request.ifr_name, name)) return -1;
    request.ifr_jid = jid;
    return ioctl(fd, SIOCSIFVNET, &request);
}

static int cni_set_mac(int fd, const char *name, const char *mac) {
    struct ifreq request = {0};
    if (copy_name(request.ifr_name, name)) return -1;
    /* Here sa_len is the length of the address alone. */
    request.ifr_addr.sa_len = ETHER_ADDR_LEN;
    request.ifr_addr.sa_family = AF_LINK;
    memcpy(request.ifr_addr.sa_data, mac, ETHER_ADDR_LEN);
    return ioctl(fd, SIOCSIFLLADDR, &request);
}

static int cni_set_mtu(int fd, const char *name, int mtu) {
    struct ifreq request = {0};
    if (copy_name(request.ifr_name, name)) return -1;
    request.ifr_mtu = mtu;
    return ioctl(fd, SIOCSIFMTU, &request);
}

/* Needs a socket of AF_INET6. */
static int cni_disable_ipv6(int fd, const char *name) {
    struct in6_ndireq request = {0};
    if (copy_name(request.ifname, name)) return -1;
    if (ioctl(fd, SIOCGIFINFO_IN6, &request) != 0) return -1;
    if (request.ndi.flags & ND6_IFF_IFDISABLED) return 0;
    request.ndi.flags |= ND6_IFF_IFDISABLED;
    request.ndi.flags &= ~(ND6_IFF_ACCEPT_RTADV | ND6_IFF_AUTO_LINKLOCAL);
    return ioctl(fd, SIOCSIFINFO_FLAGS, &request);
}

/* Whether an interface takes router advertisements: 1 or 0. Needs a socket of AF_INET6. */
static int cni_listens(int fd, const char *name) {
    struct in6_ndireq request = {0};
    if (copy_name(request.ifname, name) || ioctl(fd, SIOCGIFINFO_IN6, &request) != 0) return -1;
    return (request.ndi.flags & ND6_IFF_ACCEPT_RTADV) != 0;
}

/* Needs a socket of AF_INET6. A fresh interface, without addresses, becomes what it would be were
   net.inet6.ip6.accept_rtadv 0: disabled until it is given an address. What it is given is there at once, for nobody else can
   have it: the kernel passes over IFA_F_NODAD, and marks what it finds on a link that is down or still disabled, once a
   second, for a check (nd6_timer in nd6.c). */
static int cni_ignore_advertisements(int fd, const char *name, int fresh) {
    struct in6_ndireq request = {0};
    if (copy_name(request.ifname, name) || ioctl(fd, SIOCGIFINFO_IN6, &request) != 0) return -1;
    unsigned int before = request.ndi.flags;
    if (fresh) request.ndi.flags |= ND6_IFF_NO_DAD | (before & ND6_IFF_ACCEPT_RTADV ? ND6_IFF_IFDISABLED : 0);
    request.ndi.flags &= ~ND6_IFF_ACCEPT_RTADV;
    return request.ndi.flags == before ? 0 : ioctl(fd, SIOCSIFINFO_FLAGS, &request);
}

static int cni_join_group(int fd, const char *name, const char *group) {
    struct ifgroupreq request = {0};
    if (copy_name(request.ifgr_name, name) || copy_name(request.ifgr_group, group)) return -1;
    return ioctl(fd, SIOCAIFGROUP, &request);
}

/* The number of a group's members, of which at most `room` names are written, IFNAMSIZ bytes each. */
static int cni_group_members(int fd, const char *group, char *names, int room) {
    for (;;) {
        struct ifgroupreq request = {0};
        if (copy_name(request.ifgr_name, group)) return -1;
        if (ioctl(fd, SIOCGIFGMEMB, &request) != 0) return errno == ENOENT ? 0 : -1;
        if (request.ifgr_len == 0) return 0;
        unsigned int length = request.ifgr_len;
        struct ifg_req *members = calloc(1, length);
        if (members == NULL) return -1;
        request.ifgr_groups = members;
        if (ioctl(fd, SIOCGIFGMEMB, &request) != 0) {
            int error = errno;
            free(members);
            if (error == EINVAL) continue; /* it has grown since */
            errno = error;
            return error == ENOENT ? 0 : -1;
        }
        int count = MIN(length, request.ifgr_len) / sizeof(*members);
        for (int i = 0; i < count && i < room; i++) memcpy(names + i * IFNAMSIZ, members[i].ifgrq_member, IFNAMSIZ);
        free(members);
        return count;
    }
}

static int bridge_call(int fd, unsigned long direction, const char *bridge, unsigned long command,
                       void *data, size_t length) {
    struct ifdrv request = { .ifd_cmd = command, .ifd_len = length, .ifd_data = data };
    if (copy_name(request.ifd_name, bridge)) return -1;
    return ioctl(fd, direction, &request);
}

static int cni_bridge_add(int fd, const char *bridge, const char *member) {
    struct ifbreq request = {0};
    if (copy_name(request.ifbr_ifsname, member)) return -1;
    return bridge_call(fd, SIOCSDRVSPEC, bridge, BRDGADD, &request, sizeof request);
}

static int cni_bridge_delete(int fd, const char *bridge, const char *member) {
    struct ifbreq request = {0};
    if (copy_name(request.ifbr_ifsname, member)) return -1;
    return bridge_call(fd, SIOCSDRVSPEC, bridge, BRDGDEL, &request, sizeof request);
}

/* Private members do not hear each other. */
static int cni_bridge_isolate(int fd, const char *bridge, const char *member) {
    struct ifbreq request = {0};
    if (copy_name(request.ifbr_ifsname, member)) return -1;
    if (bridge_call(fd, SIOCGDRVSPEC, bridge, BRDGGIFFLGS, &request, sizeof request) != 0) return -1;
    request.ifbr_ifsflags |= IFBIF_PRIVATE;
    return bridge_call(fd, SIOCSDRVSPEC, bridge, BRDGSIFFLGS, &request, sizeof request);
}

/* The number of a bridge's members, of which at most `room` names are written, IFNAMSIZ bytes each. */
static int cni_bridge_members(int fd, const char *bridge, char *names, int room) {
    for (;;) {
        struct ifbifconf request = {0};
        if (bridge_call(fd, SIOCGDRVSPEC, bridge, BRDGGIFS, &request, sizeof request) != 0) return -1;
        if (request.ifbic_len == 0) return 0;
        /* The kernel writes what fits and does not say that there is more, so have room for one more than there are. */
        uint32_t length = request.ifbic_len + sizeof(struct ifbreq);
        struct ifbreq *members = calloc(1, length);
        if (members == NULL) return -1;
        request.ifbic_len = length;
        request.ifbic_req = members;
        if (bridge_call(fd, SIOCGDRVSPEC, bridge, BRDGGIFS, &request, sizeof request) != 0) {
            free(members);
            return -1;
        }
        if (request.ifbic_len == length) {
            free(members);
            continue; /* it has grown since */
        }
        int count = request.ifbic_len / sizeof(*members);
        for (int i = 0; i < count && i < room; i++) memcpy(names + i * IFNAMSIZ, members[i].ifbr_ifsname, IFNAMSIZ);
        free(members);
        return count;
    }
}

/* Flags whose effect the kernel counts; the first is the user's share, the second shows the sum. */
static int set_shared_flag(int fd, const char *name, uint32_t own, uint32_t shown, int on) {
    struct ifreq request = {0};
    if (copy_name(request.ifr_name, name) || ioctl(fd, SIOCGIFFLAGS, &request) != 0) return -1;
    uint32_t flags = (request.ifr_flags & 0xffff) | (uint32_t)request.ifr_flagshigh << 16;
    flags = on ? flags | own : flags & ~own;
    request.ifr_flags = flags & 0xffff;
    request.ifr_flagshigh = flags >> 16;
    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0 || ioctl(fd, SIOCGIFFLAGS, &request) != 0) return -1;
    if (!on || (request.ifr_flags & shown)) return 0;
    errno = EOPNOTSUPP; /* a kernel that does not know the user's flag takes it, and does nothing */
    return -1;
}

static int cni_set_promiscuous(int fd, const char *name, int on) {
    return set_shared_flag(fd, name, IFF_PPROMISC, IFF_PROMISC, on);
}

#ifndef IFF_PALLMULTI
#define IFF_PALLMULTI 0x800000
#endif
_Static_assert(IFF_PPROMISC == 0x20000 && IFF_PALLMULTI == 0x800000, "flags of the user's");

static int cni_set_all_multicast(int fd, const char *name, int on) {
    return set_shared_flag(fd, name, IFF_PALLMULTI, IFF_ALLMULTI, on);
}

/* Of the calling process's own stack. */
static int cni_sysctl_read(const char *name, int *value) {
    size_t length = sizeof(*value);
    if (sysctlbyname(name, value, &length, NULL, 0) != 0) return -1;
    if (length == sizeof(*value)) return 0;
    errno = EINVAL;
    return -1;
}

static int cni_sysctl_write(const char *name, int value) {
    return sysctlbyname(name, NULL, NULL, &value, sizeof(value));
}
