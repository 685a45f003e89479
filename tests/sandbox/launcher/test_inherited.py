"""What fork and exec hand down (docs/inherited.md): a launcher that has the wrong value of all of it makes processes that have none."""

import os
import resource
import tempfile
from pathlib import Path

import pytest

from cri.sandbox.launcher import _build
from cri.sandbox.linux import kernel, run_plan, stated
from cri.sandbox.linux.run_plan import Processes, Run
from cri.sandbox.spec import Credentials
from tests.inherited.table import compile_program, printed, readings, rows
from tests.inherited.table import stated as expected_of

pytestmark = pytest.mark.node

AS_ASKED = {
    "user ids": "1234 1234 1234 1234",
    "group ids": "1235 1235 1235 1235",
    "supplementary groups": "77 1235",
    "permitted capabilities": "0" * 16,
    "effective capabilities": "0" * 16,
    "bounding set": f"{0x21:016x}",
    "no_new_privs": "1",
    "working directory": "/tmp",
    "OOM score adjustment": "7",
}
SAME_AS_THE_NODE = {
    "security label",
    "time slice",
    "no memory both writable and executable",
    "speculation of stores",
    "speculation of indirect branches",
    "flush of the L1 cache",
    "vector length",
    "streaming vector length",
    "fault injection",
    "seccomp",
    "CPU affinity",
    "cgroups",
    *(f"{kind} namespace" for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")),
}
"""Here, where there is no container; tests/node/test_inherited.py has one."""
NEVER_WRONG = {
    # What fork, exec or this plan's own words decide, whatever was there.
    *("pending signals", "root directory", "session", "controlling terminal", "reset on fork", "dumpable"),
    *("child subreaper", "authority over a request"),
    "time stamp counter",  # the launcher's is, which the reader, with a C library, would not survive
    # What only some kernels have, or take SYS_RESOURCE.
    *(
        "utilisation clamps",
        "core scheduling cookie",
        "I/O ports",
        "I/O flusher",
        "limit NICE",
        "limit RTPRIO",
    ),
}
"""What cannot be made wrong, or not everywhere."""


@pytest.fixture(scope="module")
def reader():
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # pytest's own directories are root's only
        yield compile_program(Path(directory), "linux.c")


@pytest.fixture
def program(tmp_path):
    """A launcher that begins with all of it wrong."""
    _build.compile_launcher(tmp_path / "launcher")
    return compile_program(tmp_path, "spoil_linux.c", f'-DNEXT="{tmp_path}/launcher"')


def test_the_page_has_a_row_for_every_reading(reader):
    assert set(printed(reader)) - {"session keyring's id"} == set(rows("Linux"))


def test_what_a_process_gets(starter, program, reader):
    node, wrong = printed(reader), printed(program, reader)
    mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)

    def steps(end):
        run = Run(
            argv=[str(reader)],
            candidates=[str(reader)],
            env={},
            cwd="/tmp",
            credentials=Credentials(1234, 1235, (77, 1235)),
            drop=kernel.bounding_capabilities() & ~0x21,
            capabilities=0x21,
            no_new_privileges=True,
            mounts=mounts,
            processes=Processes.NODE,
            oom_score=7,
            stdio=(-1, end, end),
        )
        return run_plan.plan(run)

    launch, text = starter.output(steps)
    os.close(mounts)
    assert launch.failed is None, (launch.failed, os.strerror(launch.error))
    found = readings(text)
    keyrings = {each.pop("session keyring's id") for each in (found, node, wrong)}
    assert len(keyrings) == 3
    # possessor: all; user: view, read, search (keyctl(2), KEYCTL_SETPERM)
    assert found.pop("session keyring") == "keyring;0;0;3f0b0000;_ses, 0 keys"

    expected = AS_ASKED | {name: node[name] for name in SAME_AS_THE_NODE}
    expected |= expected_of("Linux", node, may_raise=stated.may_raise())
    assert found == expected

    was_right = {name for name, value in expected.items() if wrong[name] == value}
    assert was_right <= NEVER_WRONG | SAME_AS_THE_NODE | {
        name for name, value in node.items() if value == "-"
    }


def test_limits_are_not_raised_by_who_may_not(monkeypatch):
    monkeypatch.setattr(
        resource, "getrlimit", lambda number: (5, 700 if number == 7 else resource.RLIM_INFINITY)
    )
    found = stated.limits(raised=False)
    assert found[7] == (700, 700)
    assert found[3] == (8 << 20, resource.RLIM_INFINITY)
    assert stated.limits(raised=True)[7] == (1024, 524288)


def test_what_no_plan_takes_back_is_told():
    assert (
        stated.kept(
            "Name:\tpython\nNoNewPrivs:\t0\nSeccomp:\t0\nSpeculation_Store_Bypass:\tthread vulnerable\n"
        )
        == []
    )
    told = stated.kept("NoNewPrivs:\t1\nSeccomp:\t2\nSpeculation_Store_Bypass:\tthread force mitigated\n")
    assert [text.split()[0] for text in told] == ["no_new_privs,", "a", "disabled"]
    assert stated.kept("") == []  # as other kernels have it
