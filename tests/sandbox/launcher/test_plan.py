"""Plans: what Python writes, C reads; and both refuse the same."""

import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox import launcher
from cri.sandbox.launcher import operations, plan
from cri.sandbox.launcher.operations import BINARY, SHAPES, Attach, Operation
from cri.sandbox.launcher.plan import PlanError, Step

HEADERS = Path(launcher.__file__).parent
HERE = Path(__file__).parent

integers = st.integers(-(2**63), 2**63 - 1)
words = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"\1"))
lists = st.lists(words, max_size=3)


@st.composite
def steps(draw):
    operation = draw(st.sampled_from(list(Operation)))
    count, least, most = SHAPES[operation]
    if operation is Operation.EXECUTE:
        candidates, argv, env = draw(lists), draw(lists.filter(len)), draw(lists)
        texts = (*candidates, None, *argv, None, *env, None)
        return Step(operation, (len(candidates) + 1, len(candidates) + len(argv) + 2), texts)
    if operation is Operation.GROUPS:
        data = draw(st.lists(st.integers(0, 2**32 - 1), max_size=5))
        return Step(operation, (len(data),), (struct.pack(f"={len(data)}I", *data),))
    if operation is Operation.SECCOMP:
        data = draw(st.lists(st.binary(min_size=8, max_size=8), max_size=5))
        return Step(operation, (draw(integers), len(data)), (b"".join(data),))
    numbers = draw(st.tuples(*[integers] * count))
    text = st.binary(max_size=20) if operation in BINARY else words
    return Step(
        operation, numbers, tuple(draw(st.lists(text, min_size=least, max_size=min(most, least + 3))))
    )


class Reader:
    """`plan_read` in a process of its own."""

    def __init__(self, program):
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, data, descriptors):
        """The plan as C wrote it anew; None if it refused it."""
        self._process.stdin.write(struct.pack("=II", descriptors, len(data)) + data)
        self._process.stdin.flush()
        (size,) = struct.unpack("=I", self._process.stdout.read(4))
        return self._process.stdout.read(size) if size else None

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    program = tmp_path_factory.mktemp("reader") / "echo_plans"
    command = [
        "cc",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=undefined",
        "-fno-sanitize-recover=all",
    ]
    subprocess.run([*command, "-I", HEADERS, "-o", program, HERE / "echo_plans.c"], check=True)
    reader = Reader(program)
    yield reader
    reader.close()


def accepts(data, descriptors):
    try:
        plan.decode(data, descriptors)
    except PlanError:
        return False
    return True


@given(given_steps=st.lists(steps(), max_size=6), descriptors=st.integers(0, operations.MAX_DESCRIPTORS))
def test_what_is_written_is_read(read, given_steps, descriptors):
    data = plan.encode(given_steps, descriptors)
    assert plan.decode(data, descriptors) == given_steps
    assert read(data, descriptors) == data
    assert read(data, descriptors + 1) is None


@given(
    given_steps=st.lists(steps(), min_size=1, max_size=3),
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 64),
)
def test_what_is_no_plan_is_refused_by_both(read, given_steps, changes, cut):
    data = bytearray(plan.encode(given_steps))
    for place, value in changes:
        data[place % len(data)] = value
    if cut % 3 == 0:
        data = data[: -cut or None]
    # No NULs are looked for by C, which sees the beginning; Python refuses to write them.
    assert (read(bytes(data), 0) is not None) == accepts(bytes(data), 0)


@given(st.binary(max_size=200))
def test_noise_is_no_plan(read, data):
    framed = struct.pack("=4I", 0x4C495243, len(data) + 16, 1, 0) + data
    assert (read(framed, 0) is not None) == accepts(framed, 0)


@pytest.mark.parametrize(
    "step",
    [
        Step(Operation.FORK, (1,)),
        Step(Operation.WRITE, (0,), (b"/path",)),
        Step(Operation.WRITE, (0,), (b"/path", None)),
        Step(Operation.WRITE, (0,), (b"/pa\0th", b"0")),
        Step(Operation.UMASK, (2**63,)),
        Step(Operation.GROUPS, (2,), (b"\0\0\0\0",)),
        Step(Operation.SECCOMP, (0, 1), (b"",)),
        Step(Operation.EXECUTE, (1, 2), (None, None, None, None, None)),
        Step(Operation.EXECUTE, (1, 9), (None, b"true", None, None, None)),
        Step(Operation.EXECUTE, (1, 3), (None, b"true", None, b"A=b", b"C=d")),
    ],
)
def test_what_no_launcher_could_do_is_not_written(step):
    with pytest.raises(PlanError):
        plan.encode([step])


def test_both_tables_are_the_same():
    header = (HEADERS / "plan.h").read_text()
    rows = re.findall(r"^ +OPERATION\((\w+), (\d+), (\d+), (\d+), (\w+)\)", header, re.MULTILINE)
    most = {"PLAN_MAX": operations.MAX_PLAN}
    assert {
        Operation(int(number)): (name, int(count), int(least), most.get(top) or int(top))
        for name, number, count, least, top in rows
    } == {operation: (operation.name, *shape) for operation, shape in SHAPES.items()}
    flags = dict(re.findall(r"ATTACH_(\w+) = (\d+)", header))
    assert flags == {flag.name: str(flag.value) for flag in Attach}
    numbers = dict(re.findall(r"#define (\w+) (\d+) ", header))
    assert int(numbers["PLAN_DESCRIPTORS"]) == operations.MAX_DESCRIPTORS
    assert int(numbers["FIRST_DESCRIPTOR"]) == operations.FIRST_DESCRIPTOR
