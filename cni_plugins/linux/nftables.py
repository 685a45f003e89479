"""nf_tables: tables, chains, rules, sets and their elements as requests, and transactions of them.

Names are those of nft(8). Everything here is of family inet, whose chains see IPv4 and IPv6. Integers are in network
byte order, data for the registers in that of the packets, or of the machine where the kernel made them (`ct status`).

Sources: nft(8); linux/netfilter/{nfnetlink,nf_tables}.h; net/netfilter/nfnetlink.c for what a transaction is.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cni_plugins.errors import KernelError
from cni_plugins.netlink.client import NETLINK_NETFILTER, Client, Request, refusal
from cni_plugins.netlink.codec import (
    BE32,
    BE64,
    OPAQUE,
    TEXT,
    U8,
    Attributes,
    Choice,
    Integer,
    Listed,
    Nested,
    Table,
    header,
)
from cni_plugins.netlink.messages import ACK, APPEND, CREATE, EXCL, REQUEST, Acknowledgement, Dialect, Message
from cni_plugins.types import SocketSource

INET = 1  # NFPROTO_INET
BATCH_BEGIN, BATCH_END = 0x10, 0x11
SUBSYSTEM = 10
(
    NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE, NEWSET, GETSET, DELSET,
    NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN,
) = (SUBSYSTEM << 8 | number for number in range(17))  # fmt: skip

PREROUTING, OUTPUT, POSTROUTING = 0, 3, 4  # NF_INET_*
SET_MAP = 0x8

_SO_SNDBUFFORCE = 32  # the socket module does not know it
_USERDATA_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl
_KEY_IN_HOST_ORDER = bytes([0, 4]) + (1).to_bytes(4, sys.byteorder)  # NFTNL_UDATA_SET_KEYBYTEORDER, likewise
_COMMENT_BYTES = 128  # nft(8) takes no longer ones
_SIGNED = Integer("!i")
_REGISTER_BYTES = 4  # parts of a concatenation are padded to registers of 32 bits


@header("!BBH")
class NetfilterHeader(NamedTuple):
    """struct nfgenmsg; `resource` is the subsystem that a transaction is for."""

    family: int = INET
    version: int = 0
    resource: int = 0


VERDICT = Table(code=(1, _SIGNED), chain=(2, TEXT))
DATA = Table(value=(1, OPAQUE), verdict=(2, Nested(VERDICT)))
_data = Nested(DATA)
EXPRESSION = Table(name=(1, TEXT)).choose(
    data=Choice(
        2,
        "name",
        {
            "immediate": Table(dreg=(1, BE32), data=(2, _data)),
            "cmp": Table(sreg=(1, BE32), op=(2, BE32), data=(3, _data)),
            "bitwise": Table(sreg=(1, BE32), dreg=(2, BE32), len=(3, BE32), mask=(4, _data), xor=(5, _data)),
            "payload": Table(dreg=(1, BE32), base=(2, BE32), offset=(3, BE32), len=(4, BE32)),
            "meta": Table(dreg=(1, BE32), key=(2, BE32)),
            "ct": Table(dreg=(1, BE32), key=(2, BE32), direction=(3, U8)),
            "fib": Table(dreg=(1, BE32), result=(2, BE32), flags=(3, BE32)),
            "lookup": Table(set=(1, TEXT), sreg=(2, BE32), dreg=(3, BE32), set_id=(4, BE32), flags=(5, BE32)),
            "nat": Table(
                type=(1, BE32), family=(2, BE32), address=(3, BE32), port=(5, BE32), flags=(7, BE32)
            ),
            "masq": Table(flags=(1, BE32)),
        },
    )
)
TABLE = Table(name=(1, TEXT), flags=(2, BE32), use=(3, BE32), handle=(4, BE64))
HOOK = Table(number=(1, BE32), priority=(2, _SIGNED))
CHAIN = Table(
    table=(1, TEXT), handle=(2, BE64), name=(3, TEXT), hook=(4, Nested(HOOK)), policy=(5, BE32), use=(6, BE32),
    type=(7, TEXT), flags=(10, BE32),
)  # fmt: skip
RULE = Table(
    table=(1, TEXT), chain=(2, TEXT), handle=(3, BE64), expressions=(4, Listed(1, Nested(EXPRESSION)))
)
SET = Table(
    table=(1, TEXT), name=(2, TEXT), flags=(3, BE32), key_type=(4, BE32), key_len=(5, BE32), data_type=(6, BE32),
    data_len=(7, BE32), id=(10, BE32), userdata=(13, OPAQUE), handle=(16, BE64),
)  # fmt: skip
ELEMENT = Table(key=(1, _data), data=(2, _data), flags=(3, BE32), userdata=(6, OPAQUE))
ELEMENTS = Table(table=(1, TEXT), set=(2, TEXT), elements=(3, Listed(1, Nested(ELEMENT))))

DIALECT = Dialect(
    {
        kind: (NetfilterHeader, table)
        for table, kinds in (
            (TABLE, (NEWTABLE, GETTABLE, DELTABLE)),
            (CHAIN, (NEWCHAIN, GETCHAIN, DELCHAIN)),
            (RULE, (NEWRULE, GETRULE, DELRULE)),
            (SET, (NEWSET, GETSET, DELSET)),
            (ELEMENTS, (NEWSETELEM, GETSETELEM, DELSETELEM)),
            (Table(id=(1, BE32)), (NEWGEN, GETGEN)),
            (Table(), (BATCH_BEGIN, BATCH_END)),
        )
        for kind in kinds
    }
)


class Datatype(NamedTuple):
    """One of nft's types: the number that it leaves in a set's description, its length in bytes, its byte order."""

    number: int
    length: int
    host_order: bool = False


# nft(8), DATA TYPES; the numbers are those of `enum datatypes` in nftables' include/datatype.h.
VERDICT_TYPE = Datatype(1, 16)
IPV4_ADDRESS = Datatype(7, 4)
IPV6_ADDRESS = Datatype(8, 16)
PROTOCOL = Datatype(12, 1)
PORT = Datatype(13, 2)
INTERFACE_NAME = Datatype(41, 16, host_order=True)

_VERDICT_DATA = 0xFFFFFF00  # NFT_DATA_VERDICT
_TYPE_BITS = 6


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with `data` a map. Keys of several types are concatenations."""

    name: str
    key: tuple[Datatype, ...]
    data: tuple[Datatype, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a packet. `chain` is for jump and goto."""

    code: int
    chain: str = ""

    def encoded(self) -> dict[str | int, Any]:
        """Return the attribute's value."""
        return {"verdict": {"code": self.code, **({"chain": self.chain} if self.chain else {})}}


DROP = Verdict(0)
RETURN = Verdict(-5)


def jump(chain: str) -> Verdict:
    """Go on with a chain, and come back."""
    return Verdict(-3, chain)


def goto(chain: str) -> Verdict:
    """Go on with a chain."""
    return Verdict(-4, chain)


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set: its key, a map's data, its owner as a comment for who lists it, and the words for errors.

    One that has an owner must not be there already; others may.
    """

    set: str
    key: bytes
    data: bytes | Verdict = b""
    owner: str = ""
    what: str = ""

    @property
    def shared(self) -> bool:
        """Whether it may be several owners'."""
        return not self.owner

    def create(self, table: str) -> list[Request]:
        """Return the request to add it; EEXIST if its key is somebody's already."""
        flags = CREATE if self.shared else CREATE | EXCL
        return [_request(NEWSETELEM, self._attributes(table), "add", self._words(table), flags)]

    def destroy(self, table: str) -> list[Request]:
        """Return the request to delete it; ENOENT if it is not there."""
        return [_request(DELSETELEM, self._attributes(table), "delete", self._words(table))]

    def is_in(self, nftables: Nftables, table: str) -> bool:
        """Ask whether the kernel has it, and its owner's it is. Raises KernelError."""
        attributes: dict[str | int, Any] = {
            "table": table,
            "set": self.set,
            "elements": [{"key": {"value": self.key}}],
        }
        try:
            answers = nftables.ask(_request(GETSETELEM, attributes, "get", self._words(table)))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        comment = _comment(self.owner) if self.owner else b""
        found = [element for answer in answers for element in answer.attributes.get("elements", ())]
        return any(element.get("userdata", b"") == comment for element in found)

    def _words(self, table: str) -> str:
        return f"{self.what or self.key.hex()} in set {self.set} of nftables table {table}"

    def _attributes(self, table: str) -> dict[str | int, Any]:
        element: dict[str | int, Any] = {"key": {"value": self.key}}
        if self.data:
            data = self.data
            element["data"] = data.encoded() if isinstance(data, Verdict) else {"value": data}
        if self.owner:
            element["userdata"] = _comment(self.owner)
        return {"table": table, "set": self.set, "elements": [element]}


def join(*parts: bytes) -> bytes:
    """Return the concatenation of values, as the registers hold them."""
    return b"".join(part + bytes(-len(part) % _REGISTER_BYTES) for part in parts)


def table_add(table: str) -> Request:
    """Return the request to make a table unless it is there."""
    return _request(NEWTABLE, {"name": table}, "make", f"nftables table {table}", CREATE)


def table_del(table: str) -> Request:
    """Return the request to delete a table with all that is in it; ENOENT if it is not there."""
    return _request(DELTABLE, {"name": table}, "delete", f"nftables table {table}")


def chain_add(
    table: str, name: str, hook: int | None = None, priority: int = 0, kind: str = "nat"
) -> Request:
    """Return the request to make a chain unless it is there, with a hook a base chain."""
    attributes: dict[str | int, Any] = {"table": table, "name": name}
    if hook is not None:
        attributes |= {"hook": {"number": hook, "priority": priority}, "type": kind}
    return _request(NEWCHAIN, attributes, "make", f"chain {name} of nftables table {table}", CREATE)


def chain_flush(table: str, name: str) -> Request:
    """Return the request to delete a chain's rules."""
    return _request(
        DELRULE, {"table": table, "chain": name}, "flush", f"chain {name} of nftables table {table}"
    )


def chain_del(table: str, name: str) -> Request:
    """Return the request to delete a chain and its rules; EBUSY while something leads there."""
    return _request(
        DELCHAIN, {"table": table, "name": name}, "delete", f"chain {name} of nftables table {table}"
    )


def rule_add(table: str, chain: str, *expressions: Sequence[dict[str | int, Any]]) -> Request:
    """Return the request to append a rule: matches and a statement, each made of expressions."""
    whole = [expression for part in expressions for expression in part]
    attributes: dict[str | int, Any] = {"table": table, "chain": chain, "expressions": whole}
    names = " ".join(expression["name"] for expression in whole)
    what = f"a rule ({names}) to chain {chain} of nftables table {table}"
    return _request(NEWRULE, attributes, "add", what, CREATE | APPEND)


def set_add(table: str, what: Set) -> Request:
    """Return the request to make a set or map."""
    flags = 0
    attributes: dict[str | int, Any] = {
        "table": table,
        "name": what.name,
        "key_type": _type_number(what.key),
        "key_len": _length(what.key),
        "id": 1,  # obligatory; only requests that name a set by it care
    }
    if what.data == (VERDICT_TYPE,):
        flags |= SET_MAP
        attributes |= {"data_type": _VERDICT_DATA, "data_len": VERDICT_TYPE.length}
    elif what.data:
        flags |= SET_MAP
        attributes |= {"data_type": _type_number(what.data), "data_len": _length(what.data)}
    attributes["flags"] = flags
    if what.key[0].host_order:
        attributes["userdata"] = _KEY_IN_HOST_ORDER
    return _request(NEWSET, attributes, "make", f"set {what.name} of nftables table {table}", CREATE | EXCL)


class Nftables(Client):
    """Transactions and questions to the nf_tables of the stack that a host makes sockets in."""

    def __init__(self, host: SocketSource) -> None:
        super().__init__(host, NETLINK_NETFILTER, DIALECT)

    def commit(self, requests: Iterable[Request]) -> None:
        """Do all of the requests at one instant, or raise KernelError for the first that is refused and do none.

        Raises UnansweredError if it cannot be known.
        """
        self._transact(list(requests), ending=True)

    def rehearse(self, requests: Iterable[Request]) -> None:
        """Have the kernel judge requests as `commit` does, and do none of them."""
        self._transact(list(requests), ending=False)

    def objects(self, table: str) -> int | None:
        """Return how many chains, sets and maps a table has; None if it is not there."""
        try:
            answers = self.ask(_request(GETTABLE, {"name": table}, "look at", f"nftables table {table}"))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return sum(int(answer.attributes.get("use", 0)) for answer in answers)

    def elements(self, table: str, name: str) -> list[dict[str | int, Any]]:
        """Return the elements of a set; none if it or the table is not there."""
        request = _request(
            GETSETELEM, {"table": table, "set": name}, "list", f"set {name} of nftables table {table}"
        )
        try:
            return [element for part in self.dump(request) for element in part.attributes.get("elements", ())]
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return []
            raise

    def _transact(self, requests: list[Request], *, ending: bool) -> None:
        # Without its end a transaction is judged and thrown away. Refusals come unasked; of successes only the last
        # request's is asked for, since hundreds would not fit into the socket's buffer.
        marker = NetfilterHeader(family=0, resource=SUBSYSTEM)
        whole = Request(Message(BATCH_BEGIN, marker), requests[0].operation, requests[0].object)
        datagram = [self._encode(whole, REQUEST)]
        begin = self._sequence
        pending = {}
        for request in requests:
            datagram.append(self._encode(request, REQUEST | (ACK if request is requests[-1] else 0)))
            pending[self._sequence] = request
        last = self._sequence
        if ending:
            datagram.append(self._encode(Request(Message(BATCH_END, marker), "", ""), REQUEST))
        self._make_room(sum(map(len, datagram)), whole)
        self._send(b"".join(datagram), whole)
        refusals = [
            refusal(pending.get(verdict.sequence, whole), verdict)
            for verdict in self._verdicts(begin, last, whole)
            if verdict.errno
        ]
        if refusals:
            raise refusals[0]

    def _verdicts(self, begin: int, last: int, request: Request) -> Iterator[Acknowledgement]:
        while True:
            for answer in self._receive(request):
                if not isinstance(answer, Acknowledgement) or not begin <= answer.sequence <= last:
                    continue
                yield answer
                # A verdict on the beginning is one on the whole: no rights, no memory, no such subsystem.
                if answer.sequence in (begin, last):
                    return

    def _make_room(self, length: int, request: Request) -> None:
        """Let the socket send that many bytes in one datagram."""
        if length < self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2:
            return
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, length)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, request.operation, request.object) from error


def _comment(text: str) -> bytes:
    """Return a comment as nft(8) reads it: type, length, string with its zero byte."""
    value = text.replace("\0", "").encode(errors="replace")[: _COMMENT_BYTES - 1]
    value = value.decode(errors="ignore").encode() + b"\0"
    return bytes([_USERDATA_COMMENT, len(value)]) + value


def comment_of(element: Attributes) -> str | None:
    """Return the comment of an element that the kernel has listed; one that was too long is not whole."""
    userdata: bytes = element.get("userdata", b"")
    while len(userdata) >= 2:
        kind, length = userdata[:2]
        if kind == _USERDATA_COMMENT:
            return userdata[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
        userdata = userdata[2 + length :]
    return None


def _length(types: tuple[Datatype, ...]) -> int:
    if len(types) == 1:
        return types[0].length
    return sum(part.length - part.length % -_REGISTER_BYTES for part in types)


def _type_number(types: tuple[Datatype, ...]) -> int:
    number = 0
    for part in types:
        number = number << _TYPE_BITS | part.number
    return number


def _request(
    kind: int, attributes: dict[str | int, Any], operation: str, what: str, flags: int = 0
) -> Request:
    return Request(Message(kind, NetfilterHeader(), attributes, flags), operation, what)
