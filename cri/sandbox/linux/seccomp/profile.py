"""A seccomp profile: the OCI's `linux.seccomp` as JSON, and what container engines add to it.

https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp. The additions (archMap, includes, excludes,
errno by name) are those of the profiles that Docker and Podman ship. What is not known is refused: a misspelt key would
let through what it was written to stop.
"""

from __future__ import annotations

import enum
import errno
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cri.sandbox.linux.seccomp.machine import ARCHITECTURES, Machine

T = TypeVar("T")

MAX_RULES = 4096
"""Calls, each as often as it is named: each takes an instruction, and the kernel takes no more (BPF_MAXINSNS)."""
_ARGUMENTS = 6
_MAX_ERRNO = 4095
_MAX_TRACE = 0xFFFF
_MAX_WORD = (1 << 64) - 1
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})")


class ProfileError(ValueError):
    """It is no profile, or asks for what there is not here. Says where in it, and what to do."""


class Kind(enum.IntEnum):
    """What becomes of a call: the values of seccomp(2), SECCOMP_RET_*."""

    KILL_PROCESS = 0x80000000
    KILL_THREAD = 0x00000000
    TRAP = 0x00030000
    ERRNO = 0x00050000
    TRACE = 0x7FF00000
    LOG = 0x7FFC0000
    ALLOW = 0x7FFF0000


class Operator(enum.IntEnum):
    """How an argument is compared: the values of libseccomp's enum scmp_compare."""

    NE = 1
    LT = 2
    LE = 3
    EQ = 4
    GE = 5
    GT = 6
    MASKED_EQ = 7


@dataclass(frozen=True, slots=True)
class Action:
    """What becomes of a call."""

    kind: Kind
    data: int = 0
    """Of ERRNO: the number. Of TRACE: what the tracer is told."""

    @property
    def number(self) -> int:
        """As the kernel has it."""
        return self.kind | self.data


ALLOW = Action(Kind.ALLOW)


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a call's argument."""

    argument: int
    operator: Operator
    value: int
    """Of MASKED_EQ: the mask."""
    second: int = 0
    """Of MASKED_EQ: what the masked argument must be."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Calls that something becomes of, if all conditions hold."""

    names: tuple[str, ...]
    action: Action
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """What becomes of every call."""

    default: Action
    rules: tuple[Rule, ...]
    architectures: tuple[str, ...] = ()
    """Whose calls are known besides the machine's own: those of 32-bit programs, say."""
    flags: int = 0
    """SECCOMP_FILTER_FLAG_* of seccomp(2)."""


_ACTIONS = {
    "SCMP_ACT_KILL": Kind.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": Kind.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": Kind.KILL_PROCESS,
    "SCMP_ACT_TRAP": Kind.TRAP,
    "SCMP_ACT_ERRNO": Kind.ERRNO,
    "SCMP_ACT_TRACE": Kind.TRACE,
    "SCMP_ACT_LOG": Kind.LOG,
    "SCMP_ACT_ALLOW": Kind.ALLOW,
}
_OPERATORS = {f"SCMP_CMP_{operator.name}": operator for operator in Operator}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_NO_NOTIFICATION = "no agent decides about calls here: use another action"
_COMMENTS = frozenset({"comment", "$schema"})
_PROFILE_KEYS = _COMMENTS | {
    "defaultAction",
    "defaultErrnoRet",
    "defaultErrno",
    "architectures",
    "archMap",
    "flags",
    "syscalls",
    "listenerPath",
    "listenerMetadata",
}
_RULE_KEYS = _COMMENTS | {
    "name",
    "names",
    "action",
    "errnoRet",
    "errno",
    "args",
    "includes",
    "excludes",
}


def parse(text: bytes, machine: Machine, capabilities: Collection[str]) -> Profile:
    """The profile for a container with these capabilities (without CAP_). Raises ProfileError, and nothing else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"it is no JSON: {error}") from None
    top = _mapping(data, "the profile", _PROFILE_KEYS)
    if top.get("listenerPath") or top.get("listenerMetadata"):
        raise ProfileError(f"listenerPath: {_NO_NOTIFICATION}, and leave it out")
    rules: list[Rule] = []
    room = MAX_RULES
    for place, entry in enumerate(_list(top, "syscalls", "")):
        where = f"syscalls[{place}]"
        one = _mapping(entry, where, _RULE_KEYS)
        found = _rules(one, where)
        if (room := room - sum(len(rule.names) for rule in found)) < 0:
            raise ProfileError(f"syscalls: names more than {MAX_RULES} calls, and no filter can be that long")
        if _applies(one, where, machine, capabilities):
            rules += found
    return Profile(
        _action(top, "", "defaultAction", "defaultErrnoRet", "defaultErrno"),
        tuple(rules),
        _architectures(top, machine),
        sum({_one_of(_FLAGS, flag, "flags") for flag in _list(top, "flags", "")}),
    )


def _rules(entry: Mapping[str, Any], where: str) -> list[Rule]:
    names = [_text(name, f"{where}.names") for name in _list(entry, "names", where)]
    if old := entry.get("name"):
        if names:
            raise ProfileError(f"{where}: has both name and names; use names")
        names = [_text(old, f"{where}.name")]
    if not names:
        raise ProfileError(f"{where}.names: no call is named")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ProfileError(f"{where}.names: {_shown(name)} is not the name of a system call")
    conditions = tuple(
        _condition(argument, f"{where}.args[{place}]")
        for place, argument in enumerate(_list(entry, "args", where))
    )
    action = _action(entry, where, "action", "errnoRet", "errno")
    if len({one.argument for one in conditions}) < len(conditions):
        # Of one argument there is one comparison in a rule. So as runc does: any one of them is enough.
        return [Rule(tuple(names), action, (one,)) for one in conditions]
    return [Rule(tuple(names), action, conditions)]


def _condition(data: Any, where: str) -> Condition:
    entry = _mapping(data, where, frozenset({"index", "value", "valueTwo", "op"}))
    return Condition(
        _number(entry.get("index"), f"{where}.index", _ARGUMENTS - 1),
        _one_of(_OPERATORS, entry.get("op"), f"{where}.op"),
        _number(entry.get("value"), f"{where}.value", _MAX_WORD),
        _number(entry.get("valueTwo", 0), f"{where}.valueTwo", _MAX_WORD),
    )


def _action(entry: Mapping[str, Any], where: str, key: str, number_key: str, name_key: str) -> Action:
    place = _at(where, key)
    if entry.get(key) == "SCMP_ACT_NOTIFY":
        raise ProfileError(f"{place}: SCMP_ACT_NOTIFY: {_NO_NOTIFICATION}")
    kind = _one_of(_ACTIONS, entry.get(key), place)
    given = entry.get(number_key)
    if given is not None:
        given = _number(given, _at(where, number_key), _MAX_TRACE if kind is Kind.TRACE else _MAX_ERRNO)
    if name := entry.get(name_key):
        named = getattr(errno, _text(name, _at(where, name_key)), None)
        if not isinstance(named, int) or given not in (None, named):
            raise ProfileError(f"{_at(where, name_key)}: {_shown(name)} is no error, or not {number_key}'s")
        given = named
    if kind not in (Kind.ERRNO, Kind.TRACE):
        if given is not None:
            raise ProfileError(f"{_at(where, number_key)}: goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE only")
        return Action(kind)
    return Action(kind, errno.EPERM if given is None else given)


def _architectures(top: Mapping[str, Any], machine: Machine) -> tuple[str, ...]:
    """Those of the profile that this machine runs programs of."""
    named = [_architecture(one, "architectures") for one in _list(top, "architectures", "")]
    entries = _list(top, "archMap", "")
    if named and entries:
        raise ProfileError("archMap: goes without architectures; leave one of them out")
    for place, data in enumerate(entries):
        where = f"archMap[{place}]"
        entry = _mapping(data, where, frozenset({"architecture", "subArchitectures"}))
        below = [_architecture(one, where) for one in _list(entry, "subArchitectures", where)]
        if _architecture(entry.get("architecture"), where) == machine.native:
            named += below
    return tuple(one for one in machine.others if one in named)


def _architecture(data: Any, where: str) -> str:
    name = _text(data, where).removeprefix("SCMP_ARCH_").lower()
    if name not in ARCHITECTURES:
        raise ProfileError(f"{where}: {_shown(data)} is no architecture; use SCMP_ARCH_X86_64 and the like")
    return name


def _applies(entry: Mapping[str, Any], where: str, machine: Machine, capabilities: Collection[str]) -> bool:
    """Whether a rule is meant for this machine and these capabilities, as in moby's profiles/seccomp."""
    for key in ("includes", "excludes"):
        place = f"{where}.{key}"
        given = entry.get(key)
        limits = _mapping({} if given is None else given, place, frozenset({"caps", "arches", "minKernel"}))
        caps = {_text(one, place).upper().removeprefix("CAP_") for one in _list(limits, "caps", place)}
        arches = {_text(one, place) for one in _list(limits, "arches", place)}
        kernel = _kernel(limits.get("minKernel"), f"{place}.minKernel")
        if key == "includes":
            fits = caps <= set(capabilities) and (not arches or machine.go_name in arches)
            if not fits or (kernel is not None and machine.kernel < kernel):
                return False
        elif (
            caps & set(capabilities)
            or machine.go_name in arches
            or (kernel is not None and machine.kernel >= kernel)
        ):
            return False
    return True


def _kernel(data: Any, where: str) -> tuple[int, int] | None:
    if data is None or data == "":
        return None
    found = _VERSION.fullmatch(_text(data, where))
    if found is None:
        raise ProfileError(f"{where}: {_shown(data)} is no version of a kernel such as 4.8")
    return int(found[1]), int(found[2])


def _mapping(data: Any, where: str, keys: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise ProfileError(f"{where}: {_shown(data)} instead of an object")
    if unknown := sorted(data.keys() - keys):
        raise ProfileError(f"{where}: {_shown(unknown[0])} is no key of a seccomp profile")
    return data


def _list(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    data = entry.get(key)
    if data is None:
        return []
    if not isinstance(data, list):
        raise ProfileError(f"{_at(where, key)}: {_shown(data)} instead of a list")
    return data


def _text(data: Any, where: str) -> str:
    if not isinstance(data, str):
        raise ProfileError(f"{where}: {_shown(data)} instead of a text")
    return data


def _number(data: Any, where: str, most: int) -> int:
    if type(data) is not int or not 0 <= data <= most:
        raise ProfileError(f"{where}: {_shown(data)} instead of a number from 0 to {most}")
    return data


def _one_of(values: Mapping[str, T], data: Any, where: str) -> T:
    if not isinstance(data, str) or data not in values:
        raise ProfileError(f"{where}: {_shown(data)} is none of {', '.join(values)}")
    return values[data]


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(data: Any) -> str:
    """What is there, for a message: short, and of characters that any log takes."""
    text = (
        ascii(data)
        if isinstance(data, str)
        else f"a {type(data).__name__}"
        if data is not None
        else "nothing"
    )
    if type(data) is int and abs(data) <= _MAX_WORD:
        text = str(data)
    return text if len(text) <= 80 else f"{text[:80]}..."
