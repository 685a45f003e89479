"""What the values of fields must be like, as far as that can be seen by looking at one of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be like: `says` ends the sentence "must be ..."."""

    says: str
    holds: Callable[[Any], bool]
    secret: bool = False
    """A value that breaks it is not shown."""


MAX_ID = (1 << 32) - 2
"""The highest user or group: the one above means "nobody in particular" to system calls, on Linux and FreeBSD alike."""

LONGEST_PATH = 4095
LONGEST_PART = 255
"""Bytes (PATH_MAX and NAME_MAX of Linux; FreeBSD takes 1023 in one call, and says so itself)."""

CAPABILITIES = frozenset(
    [
        "ALL",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ]
)
"""Names of capabilities(7), and ALL."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What ends a line or means something to a terminal; no file of lines can hold it."""
_CPUS = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
_UNIFIED = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)+")
_SYSCTL = re.compile(r"[A-Za-z0-9_:-]+([./][A-Za-z0-9_:-]+)*")
_PAGE_SIZE = re.compile(r"[1-9]\d{0,8}[KMGT]?B")


def _number(low: int, high: int, remark: str = "") -> Rule:
    return Rule(f"from {low} to {high}{remark}", lambda value: low <= value <= high)


def _is_line(text: str) -> bool:
    return _CONTROL.search(text) is None


def _is_word(text: str) -> bool:
    return bool(text) and _is_line(text) and not any(map(str.isspace, text))


def _is_path(text: str) -> bool:
    if not text:
        return True
    if len(text) <= LONGEST_PART // 4 and text[0] == "/":  # whatever it is made of, it is not too long
        return "\0" not in text
    return (
        text.startswith("/")
        and "\0" not in text
        and len(text.encode()) <= LONGEST_PATH
        and all(len(part.encode()) <= LONGEST_PART for part in text.split("/"))
    )


def _is_relative_or_path(text: str) -> bool:
    return _is_path(f"/{text}")


def _are_cpus(text: str) -> bool:
    if not text:
        return True
    if _CPUS.fullmatch(text) is None:
        return False
    ends = (part.partition("-") for part in text.split(","))
    return all(not last or int(first) <= int(last) for first, _, last in ends)


ANY = Rule("anything", lambda _: True)
TEXT = Rule("without NUL bytes", lambda text: "\0" not in text, secret=True)
"""What a string is held to that has no other rule: it may be a password, or an argument."""
SECRET_BYTES = Rule("without NUL bytes", lambda value: b"\0" not in value, secret=True)
LINE = Rule("one line, without control characters", _is_line)
NAME = Rule(
    "one line of at most 1024 bytes, without control characters",
    lambda text: _is_line(text) and len(text.encode()) <= 1024,
)
HOST_NAME = Rule(
    "one word of at most 64 bytes, without control characters or #",
    lambda text: not text or (_is_word(text) and "#" not in text and len(text.encode()) <= 64),
)
WORD = Rule("one word, without blanks or control characters", _is_word)
PATH = Rule("absolute, with at most 255 bytes in each part and 4095 in all", _is_path)
FILE = Rule("a path with at most 255 bytes in each part and 4095 in all", _is_relative_or_path)
CGROUP = Rule(
    'a path without ".." and control characters, whose parts have at most 255 bytes',
    lambda text: _is_relative_or_path(text) and _is_line(text) and ".." not in text.split("/"),
)
ID = _number(0, MAX_ID)
PORT = _number(0, 65535)
VARIABLE = Rule(
    'a name without "=" and NUL bytes', lambda text: bool(text) and "=" not in text and "\0" not in text
)
SYSCTL = Rule("the name of a sysctl, such as net.core.somaxconn", lambda text: bool(_SYSCTL.fullmatch(text)))
CAPABILITY = Rule(
    "the name of a capability(7), with or without CAP_, or ALL",
    lambda name: name.upper().removeprefix("CAP_") in CAPABILITIES,
)
UNIFIED = Rule(
    "the name of a file of cgroup v2, such as memory.high", lambda key: bool(_UNIFIED.fullmatch(key))
)
PAGE_SIZE = Rule("a page size such as 2MB or 1GB", lambda text: bool(_PAGE_SIZE.fullmatch(text)))
CPU_LIST = Rule("numbers and ranges that rise, such as 0-3,7", _are_cpus)
CPU_PERIOD = Rule(
    "0 (none) or from 1000 to 1000000 microseconds", lambda value: value == 0 or 1000 <= value <= 1_000_000
)
CPU_QUOTA = Rule(
    "0 (none), -1 (no limit) or at least 1000 microseconds", lambda value: value in (0, -1) or value >= 1000
)
BYTES = Rule("0 (none), -1 (no limit) or a number of bytes", lambda value: value >= -1)
NOT_NEGATIVE = Rule("0 or more", lambda value: value >= 0)
SIGNED = Rule("less than 2^63", lambda value: value < 1 << 63)
OOM_SCORE = _number(-1000, 1000)

OLD_SECCOMP = Rule(
    "empty, runtime/default, docker/default, unconfined, or localhost/ with the absolute path of a profile",
    lambda text: (
        text in ("", "runtime/default", "docker/default", "unconfined")
        or (text.startswith("localhost//") and _is_path(text.removeprefix("localhost/")))
    ),
)
OLD_APPARMOR = Rule(
    "empty, runtime/default or unconfined: profiles of the node (localhost/) are not supported",
    lambda text: text in ("", "runtime/default", "unconfined"),
)
NO_CDI = Rule(
    "none of the Container Device Interface (cdi.k8s.io/): name the device nodes in `devices`",
    lambda key: not key.startswith("cdi.k8s.io/"),
)

UNSUPPORTED = (OLD_SECCOMP, OLD_APPARMOR, NO_CDI)
"""A value that breaks one of these is sound, but asks for what there is not."""
