"""From a profile to a filter: libseccomp does the most, and two things are put before what it makes.

Calls that are newer than every one that the profile names are answered with ENOSYS, as by a kernel that is older than they are:
a C library that tries one, and is told EPERM, does not fall back on the old one. runc does the same.

32-bit programs of x86 may make sockets by socketcall(2), whose arguments no filter can see. Where the profile looks at those of
socket(2), that way is shut.
"""

from __future__ import annotations

import errno
import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cri.sandbox.linux.run_plan import Filter
from cri.sandbox.linux.seccomp import bpf, library
from cri.sandbox.linux.seccomp.library import UNKNOWN, LibraryError
from cri.sandbox.linux.seccomp.machine import Machine
from cri.sandbox.linux.seccomp.profile import Action, Kind, Operator, Profile, ProfileError, Rule

_ENOSYS = Action(Kind.ERRNO, errno.ENOSYS)
_EPERM = Action(Kind.ERRNO, errno.EPERM)
_SOCKETCALL, _MAKE_SOCKET = 102, 1  # socketcall(2) of i386, and SYS_SOCKET of include/uapi/linux/net.h
_MOST_COMPARISONS = 512
_MOST_WAYS = 512
"""What libseccomp makes a program of in some seconds at most: beyond, it takes minutes, and cannot be interrupted."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A filter, and what is to be told of it."""

    filter: Filter
    unknown: frozenset[str]
    """Calls that the profile names and nobody here knows: no rule is about them."""


def compile_profile(profile: Profile, machine: Machine) -> Compiled:
    """The filter of a profile. Raises ProfileError, LibraryError."""
    native = library.architecture(machine.native)
    if not native:
        raise LibraryError(f"libseccomp does not know this processor, {machine.native}")
    _check_size(profile)
    _check_contradictions(profile)
    others = [found for name in profile.architectures if (found := library.architecture(name))]
    names = {name for rule in profile.rules for name in rule.names}
    known = {name for name in names if library.number(native, name) != UNKNOWN}
    with library.Filter(profile.default.number) as building:
        for one in others:
            building.add_architecture(one)
        # Each once; and what is the default already is no rule, says libseccomp.
        wanted = [(name, rule.action, rule.conditions) for rule in profile.rules for name in rule.names]
        for name, action, conditions in dict.fromkeys(wanted):
            if name in known and action != profile.default:
                building.add(action.number, library.number(native, name), conditions, name)
        program = building.program()
    program = b"".join((*_before(profile, known, native, others), program))
    if len(program) > bpf.MAX_INSTRUCTIONS * bpf.SIZE:
        raise ProfileError(
            f"it makes a filter of {len(program) // bpf.SIZE} instructions, and the kernel takes {bpf.MAX_INSTRUCTIONS}; "
            "name fewer calls, or fewer architectures"
        )
    return Compiled(Filter(program, profile.flags), frozenset(names - known))


def _check_size(profile: Profile) -> None:
    """Refuse what would keep a thread busy for long. Raises ProfileError."""
    by_name: dict[str, list[Rule]] = defaultdict(list)
    for rule in profile.rules:
        for name in rule.names if rule.conditions else ():
            by_name[name].append(rule)
    count = sum(len(rule.conditions) for rules in by_name.values() for rule in rules)
    if count > _MOST_COMPARISONS:
        raise ProfileError(
            f"it compares {count} arguments, counted by call; {_MOST_COMPARISONS} are the most"
        )
    ways = 0
    for name, rules in by_name.items():
        if not any(len(rule.conditions) > 1 and _orders(rule) for rule in rules):
            continue
        # Where a comparison fails, all that is left to ask stands once more in the program.
        ways += len(rules) ** max(len(rule.conditions) for rule in rules)
        if ways > _MOST_WAYS:
            raise ProfileError(
                f"the {len(rules)} rules for {name} compare several arguments, not all of them for equality, which makes "
                "the filter too long; write fewer"
            )


def _check_contradictions(profile: Profile) -> None:
    """Refuse what libseccomp would pass over: of a rule without args and one with them, the second. Raises ProfileError."""
    whole = {
        name: rule.action
        for rule in profile.rules
        for name in rule.names
        if not rule.conditions and rule.action != profile.default
    }
    for rule in profile.rules:
        for name in rule.names:
            if rule.action == profile.default and not rule.conditions:
                continue  # says nothing
            if whole.get(name, rule.action) != rule.action:
                raise ProfileError(
                    f"a rule without args gives {name} to {whole[name].kind.name}, and another one to {rule.action.kind.name}; "
                    "leave one of them out, or give args to both"
                )


def _orders(rule: Rule) -> bool:
    return any(one.operator not in (Operator.EQ, Operator.MASKED_EQ) for one in rule.conditions)


def _before(profile: Profile, known: Iterable[str], native: int, others: list[int]) -> Iterable[bytes]:
    # In the other order a call of socketcall(2) would never be asked about, were it newer than those named.
    if library.architecture("x86") in (native, *others) and _looks_into_sockets(profile):
        yield bpf.answer_to(library.architecture("x86"), _SOCKETCALL, _MAKE_SOCKET, _EPERM.number)
    if profile.default.kind in (Kind.ALLOW, Kind.LOG) or profile.default == _ENOSYS:
        return
    x32 = library.architecture("x32")
    for one in (native, *others):
        numbers = [library.number(one, name) for name in known]
        if one != x32 and (newest := max(numbers, default=UNKNOWN)) >= 0:
            yield bpf.answer_above(one, newest, _ENOSYS.number, x32=x32 in others)


def _looks_into_sockets(profile: Profile) -> bool:
    rules = [rule for rule in profile.rules if "socket" in rule.names]
    return bool(rules) and all(rule.conditions for rule in rules)


compile_cached = functools.lru_cache(maxsize=64)(compile_profile)
"""The same; what most containers of a node ask for is the same."""
