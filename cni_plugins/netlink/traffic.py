"""The messages of NETLINK_ROUTE about queueing disciplines and filters, which only Linux has.

Sources: rtnetlink(7), tc(8), tc-tbf(8), tc-u32(8), tc-mirred(8); linux/{rtnetlink,pkt_sched,pkt_cls}.h,
linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cni_plugins.netlink.codec import (
    TEXT,
    U32,
    U64,
    Choice,
    HeaderType,
    Integers,
    Nested,
    Table,
    header,
)
from cni_plugins.netlink.messages import Dialect

NEWQDISC, DELQDISC, GETQDISC = 36, 37, 38
NEWTFILTER, DELTFILTER, GETTFILTER = 44, 45, 46

ECHO = 0x8
"""The flag without which the kernel tells the answer to GETQDISC to its listeners only."""

# Handles: where a discipline or a filter hangs (linux/pkt_sched.h).
ROOT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
INGRESS_HANDLE = 0xFFFF0000

ETH_P_ALL = 3
LINKLAYER_ETHERNET = 1
U32_TERMINAL = 1
ACT_STOLEN = 4
EGRESS_REDIRECT = 1


@header("=BxxxiIII")
class TrafficHeader(NamedTuple):
    """struct tcmsg. Of a filter `info` is its priority and its protocol, see `filter_info`."""

    family: int = 0
    ifindex: int = 0
    handle: int = 0
    parent: int = 0
    info: int = 0


class RateSpec(NamedTuple):
    """struct tc_ratespec; `rate` in bytes per second."""

    cell_log: int = 0
    linklayer: int = LINKLAYER_ETHERNET
    overhead: int = 0
    cell_align: int = 0
    mpu: int = 0
    rate: int = 0


class TokenBucket(NamedTuple):
    """struct tc_tbf_qopt: two struct tc_ratespec, and how long its queue may be, in bytes; `buffer` and `mtu` in ticks."""

    rate: RateSpec = RateSpec()
    peakrate: RateSpec = RateSpec(linklayer=0)
    limit: int = 0
    buffer: int = 0
    mtu: int = 0


class TokenBucketCodec:
    """TCA_TBF_PARMS."""

    _layout = struct.Struct("=" + "BBHhHI" * 2 + "III")

    def encode(self, value: TokenBucket) -> bytes:
        """Refuses what does not fit."""
        return self._layout.pack(*value.rate, *value.peakrate, value.limit, value.buffer, value.mtu)

    def decode(self, payload: bytes) -> TokenBucket:
        """Refuses another length."""
        values = self._layout.unpack(payload)
        return TokenBucket(RateSpec(*values[:6]), RateSpec(*values[6:12]), *values[12:])


def filter_info(priority: int, protocol: int) -> int:
    """Return a filter's `info`: its protocol is an Ethernet type, in network byte order."""
    swapped: int = struct.unpack("=H", struct.pack("!H", protocol))[0]
    return priority << 16 | swapped


EVERYTHING = (U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""struct tc_u32_sel with one key that every packet has: no bit of its first word is looked at."""

TBF = Table(
    parameters=(1, TokenBucketCodec()),
    rate64=(4, U64),  # for more than 4 GiB/s
    burst=(6, U32),  # bytes, instead of `buffer`
)
# generic action: index, capabilities, verdict, references, bindings; and then what to do, and on which link
MIRRED = Table(parameters=(2, Integers("=IIiiiiI")))
ACTION = Table(kind=(1, TEXT)).choose(options=Choice(2, "kind", {"mirred": MIRRED}))
ACTIONS = Table(first=(1, Nested(ACTION)))
U32_FILTER = Table(selector=(5, Integers("=BBBxHHhhIIIii")), actions=(7, Nested(ACTIONS)))

DISCIPLINE = Table(kind=(1, TEXT)).choose(options=Choice(2, "kind", {"tbf": TBF}))
FILTER = Table(kind=(1, TEXT)).choose(options=Choice(2, "kind", {"u32": U32_FILTER}))

MESSAGES: dict[int, tuple[HeaderType, Table]] = {
    **dict.fromkeys((NEWQDISC, DELQDISC, GETQDISC), (TrafficHeader, DISCIPLINE)),
    **dict.fromkeys((NEWTFILTER, DELTFILTER, GETTFILTER), (TrafficHeader, FILTER)),
}
DIALECT = Dialect(MESSAGES)
