"""What a filter says to a call is what its profile says."""

import errno
import os
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.sandbox.linux.run_plan import Filter
from cri.sandbox.linux.seccomp import bpf, entry, library, machine, runtime_default
from cri.sandbox.linux.seccomp.compiler import compile_cached, compile_profile
from cri.sandbox.linux.seccomp.profile import (
    ALLOW,
    Action,
    Condition,
    Kind,
    Operator,
    Profile,
    ProfileError,
    Rule,
)

pytestmark = [
    pytest.mark.skipif(bool(library.missing()), reason="libseccomp is not installed"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="has the numbers of x86_64"),
]
X86_64, X86, X32 = 0xC000003E, 0x40000003, 0x40000000
EPERM, ENOSYS, EACCES = (Action(Kind.ERRNO, number) for number in (errno.EPERM, errno.ENOSYS, errno.EACCES))
NUMBERS = {"read": 0, "mount": 165, "clone": 56, "personality": 135, "sethostname": 170, "openat2": 437}
HERE = machine.Machine("amd64", "x86_64", ("x86", "x32"))


def answer(profile: Profile, name: str | int, *arguments: int, architecture: int = X86_64) -> int:
    number = NUMBERS[name] if isinstance(name, str) else name
    return bpf.run(compile_cached(profile, HERE).filter.instructions, architecture, number, arguments)


def test_calls_get_what_is_said_and_others_the_default() -> None:
    profile = Profile(
        ALLOW,
        (Rule(("mount", "no_such_call"), EPERM), Rule(("sethostname",), EACCES), Rule(("read",), ALLOW)),
        flags=2,
    )
    assert answer(profile, "mount") == EPERM.number
    assert answer(profile, "sethostname") == EACCES.number
    assert answer(profile, "read") == answer(profile, "clone") == answer(profile, 100_000) == ALLOW.number
    made = compile_profile(profile, HERE)
    assert made.unknown == {"no_such_call"}
    assert made.filter.flags == 2


def test_what_is_newer_than_the_profile_is_not_there() -> None:
    """C libraries fall back on an older call only if they are told that there is no newer one."""
    profile = Profile(EPERM, (Rule(("read", "openat2"), ALLOW),), ("x86",))
    assert answer(profile, 437) == ALLOW.number
    assert answer(profile, 436) == EPERM.number
    assert answer(profile, 438) == answer(profile, 5000) == ENOSYS.number
    assert answer(profile, X32 | 1) == ENOSYS.number
    assert answer(profile, 438, architecture=X86) == ENOSYS.number
    assert answer(profile, 2, architecture=X86) == EPERM.number
    assert answer(profile, 3, architecture=X86) == ALLOW.number
    for default in (ALLOW, Action(Kind.LOG), ENOSYS):
        assert answer(replace(profile, default=default), 438) == default.number
    assert answer(replace(profile, default=Action(Kind.KILL_PROCESS)), 438) == ENOSYS.number
    with_x32 = replace(profile, architectures=("x86", "x32"))
    assert answer(with_x32, X32 | 0) == ALLOW.number
    assert answer(with_x32, X32 | 1) == EPERM.number
    assert answer(with_x32, 438) == ENOSYS.number


def test_sockets_by_the_way_that_no_filter_can_see() -> None:
    socket = Rule(("socket",), ALLOW, (Condition(0, Operator.EQ, 1),))
    looking = Profile(EPERM, (socket, Rule(("connect",), ALLOW)), ("x86",))
    assert answer(looking, 102, 1, architecture=X86) == EPERM.number
    assert answer(looking, 102, 3, architecture=X86) == ALLOW.number  # SYS_CONNECT
    assert answer(looking, 359, 1, architecture=X86) == ALLOW.number
    assert answer(looking, 359, 40, architecture=X86) == EPERM.number
    all_open = Profile(EPERM, (Rule(("socket",), ALLOW),), ("x86",))
    assert answer(all_open, 102, 1, architecture=X86) == ALLOW.number
    native = Profile(EPERM, (socket,))
    assert len(compile_profile(native, HERE).filter.instructions) < len(
        compile_profile(looking, HERE).filter.instructions
    )


def holds(one: Condition, value: int) -> bool:
    left, right = value, one.value
    return {
        Operator.NE: left != right,
        Operator.LT: left < right,
        Operator.LE: left <= right,
        Operator.EQ: left == right,
        Operator.GE: left >= right,
        Operator.GT: left > right,
        Operator.MASKED_EQ: left & one.value == one.second,
    }[one.operator]


WORDS = st.sampled_from(
    [0, 1, 7, 8, 0xFFFFFFFF, 1 << 32, (1 << 32) + 8, 1 << 63, (1 << 64) - 1]
) | st.integers(0, (1 << 64) - 1)


@st.composite
def conditions(draw):
    found = []
    for argument in sorted(draw(st.sets(st.integers(0, 5), min_size=1, max_size=3))):
        operator = draw(st.sampled_from(Operator))
        value = draw(WORDS)
        second = draw(WORDS) & value if operator is Operator.MASKED_EQ else 0
        found.append(Condition(argument, operator, value, second))
    return tuple(found)


@settings(max_examples=150, deadline=None)
@given(conditions(), st.lists(WORDS, min_size=6, max_size=6), st.booleans())
def test_arguments_are_compared_as_words(wanted, arguments, near) -> None:
    if near:  # as good as never met by chance
        for one in wanted:
            arguments[one.argument] = one.second if one.operator is Operator.MASKED_EQ else one.value
    profile = Profile(EACCES, (Rule(("clone",), ALLOW, wanted), Rule(("openat2",), ALLOW)))
    met = all(holds(one, arguments[one.argument]) for one in wanted)
    assert answer(profile, "clone", *arguments) == (ALLOW if met else EACCES).number


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(NUMBERS)), st.sampled_from([ALLOW, EPERM, EACCES, Action(Kind.LOG)])
    ),
    st.sampled_from([ALLOW, EPERM, Action(Kind.KILL_PROCESS), Action(Kind.TRAP)]),
    st.sets(st.sampled_from(["x86", "x32"])),
)
def test_every_rule_is_kept(rules, default, others) -> None:
    profile = Profile(default, tuple(Rule((name,), action) for name, action in rules.items()), tuple(others))
    newest = max((NUMBERS[name] for name in rules), default=1 << 30)
    for name, number in NUMBERS.items():
        expected = rules.get(name, default)
        if number > newest and default != ALLOW:
            expected = ENOSYS
        assert answer(profile, name) == expected.number


def compared(count: int, operator: Operator, arguments: int) -> Profile:
    rules = [
        Rule(("clone",), ALLOW, tuple(Condition(one, operator, value + 1) for one in range(arguments)))
        for value in range(count)
    ]
    return Profile(EPERM, tuple(rules), HERE.others)


def test_what_would_be_passed_over_is_refused() -> None:
    """libseccomp keeps one of two such rules, and says nothing."""
    vsock = (Condition(0, Operator.EQ, 40),)
    both = (Rule(("socket",), ALLOW), Rule(("read", "socket"), EPERM, vsock))
    for default in (EPERM, EACCES):
        for rules in (both, both[::-1], (both[0], Rule(("socket",), EACCES, vsock))):
            with pytest.raises(ProfileError, match="gives socket to ALLOW, and another one to ERRNO; leave"):
                compile_profile(Profile(default, rules), HERE)
    with pytest.raises(ProfileError, match=r"gives read to (ALLOW|LOG), and another one to (LOG|ALLOW)"):
        compile_profile(Profile(EPERM, (Rule(("read",), Action(Kind.LOG)), Rule(("read",), ALLOW))), HERE)
    # What is let through anyway is no rule, and what is said twice is said.
    assert answer(Profile(ALLOW, both), 41, 40) == EPERM.number
    assert answer(Profile(ALLOW, both), 41, 2) == ALLOW.number
    twice = (Rule(("read", "read"), ALLOW), Rule(("read",), ALLOW), Rule(("read",), ALLOW, vsock))
    assert answer(Profile(EPERM, twice), "read") == ALLOW.number
    # Either may be asked about, if both are.
    apart = (Rule(("clone",), ALLOW, vsock), Rule(("clone",), EACCES, (Condition(0, Operator.EQ, 41),)))
    assert [answer(Profile(EPERM, apart), "clone", flags) for flags in (40, 41, 42)] == [
        ALLOW.number,
        EACCES.number,
        EPERM.number,
    ]


def test_what_would_take_minutes_is_refused_at_once() -> None:
    with pytest.raises(ProfileError, match="it compares 513 arguments, counted by call; 512 are the most"):
        compile_profile(compared(513, Operator.EQ, 1), HERE)
    for operator in (Operator.NE, Operator.GT, Operator.LE):
        with pytest.raises(
            ProfileError, match="the 4 rules for clone compare several arguments, not all of them"
        ):
            compile_profile(compared(4, operator, 6), HERE)
        compile_profile(compared(8, operator, 3), HERE)
        compile_profile(compared(400, operator, 1), HERE)


def test_what_the_kernel_could_not_take_is_refused() -> None:
    masks = tuple(
        Rule(
            ("clone",), ALLOW, (Condition(0, Operator.MASKED_EQ, value * 0x9E3779B97F4A7C15 % (1 << 64), 0),)
        )
        for value in range(1, 500)
    )
    with pytest.raises(ProfileError, match="instructions, and the kernel takes 4096; name fewer calls"):
        compile_profile(Profile(EPERM, masks, HERE.others), HERE)


def test_a_program_that_is_none_of_libseccomp_s() -> None:
    with pytest.raises(ValueError, match="does not end"):
        bpf.run(b"", X86_64, 0)
    with pytest.raises(ValueError, match="instruction 0 has the code 0x87"):
        bpf.run(struct.pack("=HBBI", 0x87, 0, 0, 0), X86_64, 0)


def test_the_way_in() -> None:
    open_profile = compile_profile(Profile(ALLOW, (Rule(("mount",), EPERM),)), HERE).filter
    for no_new_privileges in (True, False):
        assert entry.forbidden(open_profile, HERE, no_new_privileges=no_new_privileges) == []
    least = ("execve", "write", "exit_group")
    strict = compile_profile(Profile(EPERM, (Rule(least, ALLOW),)), HERE).filter
    assert entry.forbidden(strict, HERE, no_new_privileges=True) == []
    more = ["prctl", "capset", "clone", "setsid", "ppoll"]
    assert entry.forbidden(strict, HERE, no_new_privileges=False) == more
    nothing = compile_profile(Profile(Action(Kind.KILL_PROCESS), (Rule(("execve",), EPERM),)), HERE).filter
    assert entry.forbidden(nothing, HERE, no_new_privileges=True) == list(least)
    traced = compile_profile(Profile(ALLOW, (Rule(("execve",), Action(Kind.TRACE, 1)),)), HERE).filter
    assert entry.forbidden(traced, HERE, no_new_privileges=True) == ["execve"]
    some = Rule(("prctl",), EPERM, (Condition(0, Operator.EQ, 1),))
    assert entry.forbidden(
        compile_profile(Profile(ALLOW, (some,)), HERE).filter, HERE, no_new_privileges=False
    ) == ["prctl"]


@pytest.mark.parametrize("held", [(), ("SYS_ADMIN",), tuple(sorted(runtime_default.CAPABILITIES))])
@pytest.mark.parametrize("others", [(), ("x86", "x32")])
def test_ours_lets_everybody_in(held, others) -> None:
    made = compile_profile(runtime_default.profile(held, others), HERE).filter
    assert isinstance(made, Filter)
    for no_new_privileges in (True, False):
        assert entry.forbidden(made, HERE, no_new_privileges=no_new_privileges) == []
