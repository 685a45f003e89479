"""Profiles as JSON: what is understood, and that all else is refused with its place."""

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.linux.seccomp.machine import ARCHITECTURES, Machine
from cri.sandbox.linux.seccomp.profile import (
    MAX_RULES,
    Action,
    Condition,
    Kind,
    Operator,
    Profile,
    ProfileError,
    Rule,
    parse,
)

AMD64 = Machine("amd64", "x86_64", ("x86", "x32"), (6, 1))
ALLOWED = {"defaultAction": "SCMP_ACT_ALLOW"}


def read(data, machine=AMD64, capabilities=()) -> Profile:
    return parse(json.dumps(data).encode(), machine, capabilities)


def rules(*syscalls, **context) -> tuple[Rule, ...]:
    return read({**ALLOWED, "syscalls": list(syscalls)}, **context).rules


def test_a_whole_one() -> None:
    found = read(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_S390X"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "comment": "needed"},
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_TRACE",
                    "errnoRet": 5,
                    "args": [
                        {"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_EQ"},
                        {"index": 5, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"},
                    ],
                },
            ],
        }
    )
    assert found == Profile(
        Action(Kind.ERRNO, 38),
        (
            Rule(("read", "write"), Action(Kind.ALLOW)),
            Rule(
                ("personality",),
                Action(Kind.TRACE, 5),
                (Condition(0, Operator.EQ, 2**64 - 1), Condition(5, Operator.MASKED_EQ, 7, 1)),
            ),
        ),
        ("x86",),
        6,
    )


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("KILL_PROCESS", 0x80000000),
        ("TRAP", 0x30000),
        ("ERRNO", 0x50001),
        ("TRACE", 0x7FF00001),
        ("LOG", 0x7FFC0000),
        ("ALLOW", 0x7FFF0000),
    ],
)
def test_actions_are_the_kernel_s(word, number) -> None:
    assert read({"defaultAction": f"SCMP_ACT_{word}"}).default.number == number


def test_old_and_foreign_spellings() -> None:
    denied = Action(Kind.ERRNO, errno.ENOSYS)
    for rule in (
        {"name": "mount", "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS"},
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS", "errnoRet": 38, "args": None},
    ):
        assert rules(rule) == (Rule(("mount",), denied),)
    assert read({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS"}).default == denied


def test_two_comparisons_of_one_argument_are_two_rules() -> None:
    equal = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (0, 8)]
    found = rules({"names": ["personality"], "action": "SCMP_ACT_LOG", "args": equal})
    assert [rule.conditions for rule in found] == [
        (Condition(0, Operator.EQ, 0),),
        (Condition(0, Operator.EQ, 8),),
    ]


def test_architectures_of_the_processor_alone() -> None:
    mapped = [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_S390X", "subArchitectures": None},
    ]
    assert read({**ALLOWED, "archMap": mapped}).architectures == ("x86", "x32")
    arm = Machine("arm64", "aarch64", ("arm",))
    assert read({**ALLOWED, "archMap": mapped}, arm).architectures == ("arm",)
    every = [f"SCMP_ARCH_{name.upper()}" for name in sorted(ARCHITECTURES)]
    assert read({**ALLOWED, "architectures": every}, arm).architectures == ("arm",)
    assert read(ALLOWED).architectures == ()


@pytest.mark.parametrize(
    ("limits", "there"),
    [
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
        ({"includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}}, False),
        ({"includes": {"arches": ["amd64", "x32"]}}, True),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"includes": {"minKernel": "6.1"}}, True),
        ({"includes": {"minKernel": "6.2"}}, False),
        ({"includes": {"minKernel": "4.18", "caps": ["CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF", "SYS_ADMIN"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, True),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"excludes": {"minKernel": "6.1"}}, False),
        ({"excludes": {"minKernel": "6.10"}}, True),
        ({"includes": {}, "excludes": None}, True),
    ],
)
def test_rules_for_some_containers(limits, there) -> None:
    rule = {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", **limits}
    assert bool(rules(rule, capabilities={"SYS_ADMIN"})) is there


def one(**rule):
    return {**ALLOWED, "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ALLOW"}, {**rule}]}


def argument(**values):
    arguments = [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ", **values}]
    return one(names=["mount"], action="SCMP_ACT_LOG", args=arguments)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the profile: a list instead of an object"),
        ({}, "defaultAction: nothing is none of"),
        ({"defaultAction": "ALLOW"}, "defaultAction: 'ALLOW' is none of SCMP_ACT_KILL"),
        ({"defaultAction": ["x"]}, "defaultAction: a list is none of"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction: SCMP_ACT_NOTIFY: no agent"),
        ({**ALLOWED, "defaultErrnoRet": 1}, "defaultErrnoRet: goes with SCMP_ACT_ERRNO"),
        ({**ALLOWED, "sycalls": []}, "the profile: 'sycalls' is no key"),
        ({**ALLOWED, "syscalls": {}}, "syscalls: a dict instead of a list"),
        ({**ALLOWED, "syscalls": [1]}, r"syscalls\[0\]: 1 instead of an object"),
        ({**ALLOWED, "listenerPath": "/run/agent"}, "listenerPath: no agent"),
        ({**ALLOWED, "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}, "flags: .* is none of"),
        (
            {**ALLOWED, "architectures": ["SCMP_ARCH_Z80"]},
            "architectures: 'SCMP_ARCH_Z80' is no architecture",
        ),
        (
            {**ALLOWED, "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_ARM"}]},
            "archMap: goes without architectures",
        ),
        ({**ALLOWED, "archMap": [{}]}, r"archMap\[0\]: nothing instead of a text"),
        (one(action="SCMP_ACT_ALLOW"), r"syscalls\[1\].names: no call is named"),
        (one(names=["a"], name="b", action="SCMP_ACT_ALLOW"), r"syscalls\[1\]: has both"),
        (one(names=["mo unt"], action="SCMP_ACT_ALLOW"), r"names: 'mo unt' is not the name"),
        (one(names=["\ud800"], action="SCMP_ACT_ALLOW"), r"names: '\\ud800' is not the name"),
        (one(names=["a\n"], action="SCMP_ACT_ALLOW"), "is not the name"),
        (one(names=[3], action="SCMP_ACT_ALLOW"), r"syscalls\[1\].names: 3 instead of a text"),
        (one(names=["a"]), r"syscalls\[1\].action: nothing is none of"),
        (
            one(names=["a"], action="SCMP_ACT_ERRNO", errnoRet=4096),
            r"syscalls\[1\].errnoRet: 4096 instead of",
        ),
        (
            one(names=["a"], action="SCMP_ACT_ERRNO", errnoRet=-1),
            "errnoRet: -1 instead of a number from 0 to 4095",
        ),
        (one(names=["a"], action="SCMP_ACT_ERRNO", errnoRet=True), "errnoRet: a bool instead of"),
        (one(names=["a"], action="SCMP_ACT_ERRNO", errnoRet=1.0), "errnoRet: a float instead of"),
        (
            one(names=["a"], action="SCMP_ACT_ERRNO", errno="ENOTHING"),
            r"syscalls\[1\].errno: 'ENOTHING' is no error",
        ),
        (one(names=["a"], action="SCMP_ACT_ERRNO", errno="errorcode"), "errno: 'errorcode' is no error"),
        (
            one(names=["a"], action="SCMP_ACT_ERRNO", errno="EPERM", errnoRet=2),
            "is no error, or not errnoRet's",
        ),
        (one(names=["a"], action="SCMP_ACT_TRAP", errnoRet=1), "errnoRet: goes with SCMP_ACT_ERRNO"),
        (one(names=["a"], action="SCMP_ACT_ALLOW", includes={"cap": []}), r"includes: 'cap' is no key"),
        (
            one(names=["a"], action="SCMP_ACT_ALLOW", includes={"minKernel": "4"}),
            r"includes.minKernel: '4' is no",
        ),
        (
            one(names=["a"], action="SCMP_ACT_ALLOW", excludes={"caps": "X"}),
            r"excludes.caps: 'X' instead of a list",
        ),
        (argument(index=6), r"syscalls\[1\].args\[0\].index: 6 instead of a number from 0 to 5"),
        (argument(index=None), r"args\[0\].index: nothing instead of"),
        (argument(value=2**64), r"args\[0\].value: a int instead of a number"),
        (argument(valueTwo=-1), r"args\[0\].valueTwo: -1 instead"),
        (argument(op="SCMP_CMP_MAYBE"), r"args\[0\].op: 'SCMP_CMP_MAYBE' is none of SCMP_CMP_NE"),
        (argument(extra=1), r"args\[0\]: 'extra' is no key"),
        (one(names=["a"] * (MAX_RULES + 1), action="SCMP_ACT_LOG"), f"names more than {MAX_RULES} calls"),
    ],
)
def test_what_is_wrong_is_named(data, words) -> None:
    with pytest.raises(ProfileError, match=words):
        read(data)


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a": ' * 50_000, b"1" * 10_000, b"NaN", b'"\\ud800"']
)
def test_what_is_no_json(text) -> None:
    with pytest.raises(ProfileError):
        parse(text, AMD64, ())


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = """
    defaultAction defaultErrnoRet defaultErrno architectures archMap flags syscalls listenerPath name names action errnoRet
    errno args includes excludes caps arches minKernel index value valueTwo op architecture subArchitectures comment
"""
SPELLINGS = """
    SCMP_ACT_ALLOW SCMP_ACT_ERRNO SCMP_ACT_NOTIFY SCMP_CMP_EQ SCMP_ARCH_X86 EPERM mount CAP_SYS_ADMIN amd64 4.8
"""
WORDS = st.sampled_from(SPELLINGS.split())
LIKELY = st.recursive(
    WORDS | st.integers(-1, 7) | ANYTHING,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(LIKELY)
def test_anything_is_read_or_refused(data) -> None:
    try:
        found = parse(json.dumps(data).encode(), AMD64, {"SYS_ADMIN"})
    except ProfileError as error:
        words = str(error)
        assert words.isprintable()
    else:
        assert isinstance(found, Profile)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(text) -> None:
    try:
        parse(text, AMD64, ())
    except ProfileError:
        return


CONDITIONS = st.fixed_dictionaries(
    {
        "value": st.integers(0, 2**64 - 1),
        "op": st.sampled_from([f"SCMP_CMP_{one.name}" for one in Operator]),
    },
    optional={"valueTwo": st.integers(0, 2**64 - 1)},
)
RULES = st.fixed_dictionaries(
    {
        "names": st.lists(
            st.sampled_from(["mount", "read", "no_such_call", "clone"]), min_size=1, max_size=3
        ),
        "action": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_KILL", "SCMP_ACT_LOG"]),
        "args": st.dictionaries(st.integers(0, 5), CONDITIONS, max_size=3).map(
            lambda found: [{"index": index, **rest} for index, rest in found.items()]
        ),
    }
)


@given(st.lists(RULES, max_size=5))
def test_what_is_sound_is_read_as_it_stands(given_rules) -> None:
    found = rules(*given_rules)
    assert len(found) == len(given_rules)
    for rule, given_rule in zip(found, given_rules, strict=True):
        assert rule.names == tuple(given_rule["names"])
        assert rule.action.kind.name.startswith(given_rule["action"].removeprefix("SCMP_ACT_"))
        assert [
            (one.argument, f"SCMP_CMP_{one.operator.name}", one.value, one.second) for one in rule.conditions
        ] == [(one["index"], one["op"], one["value"], one.get("valueTwo", 0)) for one in given_rule["args"]]
