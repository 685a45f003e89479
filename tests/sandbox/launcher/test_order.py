"""In which order plans do things: what nobody may see is over before anybody can look."""

import sys

import pytest

from cri.sandbox.freebsd import run_plan as freebsd
from cri.sandbox.launcher import plan
from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, Operation
from cri.sandbox.spec import Credentials, TerminalSize

PROGRAM = {"argv": ["true"], "candidates": ["/bin/true"], "env": {"A": "b"}, "cwd": "/"}


def order(steps, *operations):
    names = [step.operation for step in steps]
    places = [names.index(operation) for operation in operations]
    assert places == sorted(places), [names[place].name for place in sorted(places)]
    return names


@pytest.mark.parametrize("stdio", [(7, 8, 8), (-1, 9, -1), None])
def test_a_jail_is_entered_with_nothing_of_the_nodes(stdio):
    run = freebsd.Run(
        **PROGRAM,
        credentials=Credentials(1000, 5, (4, 5, 6)),
        jid=3,
        fib=0,
        no_new_privileges=True,
        stdio=stdio,
        terminal_size=TerminalSize(80, 24),
    )
    steps, descriptors = freebsd.plan(run)
    plan.encode(steps, len(descriptors) + 1)
    names = order(
        steps,
        Operation.FORK,
        Operation.UNTRACEABLE,
        Operation.JAIL,
        Operation.STREAMS,
        Operation.CLOSE,
        Operation.WORKING_DIRECTORY,
        Operation.IDS,
        Operation.DEATH_SIGNAL,
        Operation.EXECUTE,
    )
    assert names[0] is Operation.FORK
    # Nothing is opened outside.
    assert not {Operation.OPEN, Operation.WRITE, Operation.TERMINAL} & set(
        names[: names.index(Operation.JAIL)]
    )
    group = next(step for step in steps if step.operation is Operation.GROUPS)
    assert group.texts[0] == b"".join(number.to_bytes(4, sys.byteorder) for number in (5, 4, 6))
    if stdio is not None:
        assert descriptors == [one for one in stdio if one >= 0]


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's binding")


def linux_plan(processes, **changes):
    from cri.sandbox.linux import run_plan

    given = {
        "credentials": Credentials(1000, 1000, (1000,)),
        "drop": 1 << 63 | 1,
        "capabilities": 0x21,
        "no_new_privileges": False,
        "mounts": 5,
        "pids": 6,
        "null": 7,
        "stdio": (8, 9, 10),
        "masked_proc": ("/proc/kcore",),
        "seccomp": run_plan.Filter(bytes(16)),
    }
    return run_plan.plan(
        run_plan.Run(**PROGRAM, **(given | changes), processes=run_plan.Processes[processes])
    )


@linux_only
@pytest.mark.parametrize("processes", ["SHARED", "NODE"])
@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("stdio", [(8, 9, 10), None])
def test_whoever_is_seen_has_given_up_everything(processes, no_new_privileges, stdio):
    steps, descriptors = linux_plan(processes, no_new_privileges=no_new_privileges, stdio=stdio)
    plan.encode(steps, len(descriptors) + 1)
    names = order(
        steps,
        Operation.JOIN_KEYRING,
        Operation.ENTER,
        Operation.STREAMS,
        Operation.CLOSE,
        Operation.WORKING_DIRECTORY,
        Operation.BOUNDING,
        Operation.GROUPS,
        Operation.IDS,
        Operation.CAPABILITIES,
        Operation.FORK,
        Operation.SESSION,
        Operation.EXECUTE,
    )
    after = set(names[names.index(Operation.FORK) + 1 :])
    assert after <= {
        Operation.SESSION,
        Operation.CONTROLLING_TERMINAL,
        Operation.SIGNALS,
        Operation.DEATH_SIGNAL,
        Operation.SECCOMP,
        Operation.EXECUTE,
    }
    # A filter takes SYS_ADMIN or no_new_privs, and must not be in the way of more than it has to.
    assert (Operation.SECCOMP in after) == no_new_privileges


@linux_only
def test_the_first_process_mounts_proc_before_it_gives_up_what_that_takes():
    steps, descriptors = linux_plan("NEW")
    plan.encode(steps, len(descriptors) + 1)
    order(
        steps,
        Operation.LEAVE,
        Operation.ENTER,
        Operation.STREAMS,
        Operation.FORK,
        Operation.FILESYSTEM,
        Operation.ATTACH,
        Operation.MASK,
        Operation.CLOSE,
        Operation.WORKING_DIRECTORY,
        Operation.IDS,
        Operation.SECCOMP,
        Operation.EXECUTE,
    )
    assert descriptors == [5, 8, 9, 10, 7]
    mask = next(step for step in steps if step.operation is Operation.MASK)
    assert mask.integers[1] == FIRST_DESCRIPTOR + 5
