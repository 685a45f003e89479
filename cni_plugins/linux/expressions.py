"""What nf_tables' rules are made of: matches and statements of nft(8), as the kernel's expressions.

Each function returns expressions to hand to `nftables.rule_add`; its docstring has nft's words for them.

Sources: nft(8); linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from cni_plugins.linux.nftables import Verdict
from cni_plugins.types import Network

Expressions: TypeAlias = list[dict[str | int, Any]]

_VERDICT_REGISTER = 0
_REGISTERS = 8  # NFT_REG32_00: the first of 16 registers of 32 bits
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_IIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 15, 16
_CT_STATUS, _CT_PROTO_DST = 2, 12
_DIRECTION_ORIGINAL = 0
_STATUS_DNAT = 0x20  # IPS_DST_NAT
_FIB_ADDRTYPE, _FIB_DADDR = 3, 2
_RTN_LOCAL = 2
_EQUAL, _UNEQUAL = 0, 1
_DNAT = 1
_RANDOM_FULLY = 0x10  # NF_NAT_RANGE_PROTO_RANDOM_FULLY
_ADDRESS_OFFSETS = {4: (12, 16), 6: (8, 24)}  # of source and destination in the headers
_ADDRESS_LENGTH = {4: 4, 6: 16}


class Field(NamedTuple):
    """A value of a packet: its length in bytes, and the expression that loads it into a register."""

    length: int
    load: Callable[[int], dict[str | int, Any]]


class AddressField(NamedTuple):
    """An address in a packet; only where `family` has matched."""

    offset: int
    length: int

    def load(self, register: int) -> dict[str | int, Any]:
        """See `Field`."""
        return _payload(_NETWORK_HEADER, self.offset, self.length).load(register)


def source(version: int) -> AddressField:
    """`ip saddr`, `ip6 saddr`."""
    return AddressField(_ADDRESS_OFFSETS[version][0], _ADDRESS_LENGTH[version])


def destination(version: int) -> AddressField:
    """`ip daddr`, `ip6 daddr`."""
    return AddressField(_ADDRESS_OFFSETS[version][1], _ADDRESS_LENGTH[version])


def destination_port() -> Field:
    """`th dport`; means something only beside `protocol`."""
    return _payload(_TRANSPORT_HEADER, 2, 2)


def protocol() -> Field:
    """`meta l4proto`."""
    return _meta(_META_L4PROTO, 1)


def incoming_interface() -> Field:
    """`iifname`."""
    return _meta(_META_IIFNAME, 16)


def original_port() -> Field:
    """`ct original proto-dst`: the port that the client wanted."""
    return Field(
        2, lambda register: _named("ct", dreg=register, key=_CT_PROTO_DST, direction=_DIRECTION_ORIGINAL)
    )


def family(version: int) -> Expressions:
    """`meta nfproto ipv4`, `meta nfproto ipv6`."""
    number = socket.AF_INET6 if version == 6 else socket.AF_INET
    return _equals(_meta(_META_NFPROTO, 1), bytes([number]))


def protocol_is(number: int) -> Expressions:
    """`meta l4proto tcp`."""
    return _equals(protocol(), bytes([number]))


def within(address: AddressField, network: Network) -> Expressions:
    """`ip daddr 10.88.0.0/16`: as nft does, whole bytes are compared without a mask."""
    length, bits = divmod(network.prefixlen, 8)
    if not bits:
        prefix = network.network_address.packed[:length]
        return _equals(_payload(_NETWORK_HEADER, address.offset, length), prefix) if length else []
    return [
        address.load(_REGISTERS),
        _masked(network.netmask.packed),
        _named("cmp", sreg=_REGISTERS, op=_EQUAL, data={"value": network.network_address.packed}),
    ]


def in_set(name: str, *fields: Field | AddressField) -> Expressions:
    """`field . field @name`."""
    return [*_concatenated(fields), _named("lookup", set=name, sreg=_REGISTERS)]


def mapped(name: str, *fields: Field | AddressField) -> Expressions:
    """`field . field map @name`: the data are in the registers for the next expression."""
    return [*_concatenated(fields), _named("lookup", set=name, sreg=_REGISTERS, dreg=_REGISTERS)]


def verdict_map(name: str, *fields: Field | AddressField) -> Expressions:
    """`field . field vmap @name`."""
    return [*_concatenated(fields), _named("lookup", set=name, sreg=_REGISTERS, dreg=_VERDICT_REGISTER)]


def to_this_host() -> Expressions:
    """`fib daddr type local`: to any address of the host, also one that it gets later."""
    fib = Field(4, lambda register: _named("fib", dreg=register, result=_FIB_ADDRTYPE, flags=_FIB_DADDR))
    return _equals(fib, _RTN_LOCAL.to_bytes(4, sys.byteorder))


def translated() -> Expressions:
    """`ct status dnat`."""
    mask = _STATUS_DNAT.to_bytes(4, sys.byteorder)
    return [
        _named("ct", dreg=_REGISTERS, key=_CT_STATUS),
        _masked(mask),
        _named("cmp", sreg=_REGISTERS, op=_UNEQUAL, data={"value": bytes(4)}),
    ]


def verdict(what: Verdict) -> Expressions:
    """`drop`, `return`, `jump chain`, `goto chain`."""
    return [_named("immediate", dreg=_VERDICT_REGISTER, data=what.encoded())]


def dnat(version: int) -> Expressions:
    """`dnat ip to <what mapped() found>`, an address and a port."""
    number = socket.AF_INET6 if version == 6 else socket.AF_INET
    port = _REGISTERS + _ADDRESS_LENGTH[version] // 4
    return [_named("nat", type=_DNAT, family=number, address=_REGISTERS, port=port)]


def masquerade() -> Expressions:
    """`masquerade fully-random`: two connections that are made at once never choose the same port."""
    return [_named("masq", flags=_RANDOM_FULLY)]


def _named(name: str, **data: Any) -> dict[str | int, Any]:
    return {"name": name, "data": data}


def _payload(base: int, offset: int, length: int) -> Field:
    return Field(
        length, lambda register: _named("payload", dreg=register, base=base, offset=offset, len=length)
    )


def _meta(key: int, length: int) -> Field:
    return Field(length, lambda register: _named("meta", dreg=register, key=key))


def _equals(field: Field, value: bytes) -> Expressions:
    return [field.load(_REGISTERS), _named("cmp", sreg=_REGISTERS, op=_EQUAL, data={"value": value})]


def _masked(mask: bytes) -> dict[str | int, Any]:
    data = {"mask": {"value": mask}, "xor": {"value": bytes(len(mask))}}
    return _named("bitwise", sreg=_REGISTERS, dreg=_REGISTERS, len=len(mask), **data)


def _concatenated(fields: tuple[Field | AddressField, ...]) -> Expressions:
    expressions, register = [], _REGISTERS
    for field in fields:
        expressions.append(field.load(register))
        register += (field.length + 3) // 4
    return expressions
