"""Specs as JSON, which daemons and wardens of several releases read."""

import dataclasses
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.sandbox import wire
from cri.sandbox.host import ContainerState
from cri.sandbox.spec import (
    ContainerSpec,
    MountSpec,
    ProcessSpec,
    Resources,
    Security,
    TerminalSize,
    UserSpec,
)

PROCESS_OF_VERSION_1 = {"argv", "env", "cwd", "user", "tty", "stdin", "stdin_once"}
"""What a warden of the first release takes; it knows no other field."""


def test_an_old_warden_takes_what_has_no_news():
    assert set(wire.encode(ProcessSpec(("true",), tty=True))) == PROCESS_OF_VERSION_1
    assert wire.encode(ProcessSpec(("true",), terminal_size=TerminalSize(80, 25)))["terminal_size"] == {
        "width": 80,
        "height": 25,
    }


def test_what_has_no_default_is_said_even_if_it_is_none():
    assert wire.encode(ContainerState("c", None, None)) == {
        "container_id": "c",
        "started": None,
        "exited": None,
    }


@given(
    st.none() | st.builds(TerminalSize, st.integers(0, 9), st.integers(0, 9)),
    st.builds(UserSpec, st.text(), st.none() | st.integers(0, 9)),
    st.none() | st.integers(0, 9),
)
def test_all_comes_back(size, user, limit):
    process = ProcessSpec(("true",), terminal_size=size, user=user)
    spec = ContainerSpec("c", "s", "/d", (), process, resources=Resources(memory_limit=limit))
    assert wire.decode(ContainerSpec, json.loads(json.dumps(wire.encode(spec)))) == spec


def test_what_is_none_without_being_told_is_none_by_default():
    """Leaving None out is right only for what the other side fills in as None."""
    for kind in (ProcessSpec, Resources, UserSpec):
        required = {
            field.name: None
            for field in dataclasses.fields(kind)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        assert wire.encode(kind(**required)).keys() >= required.keys()


TEXT = st.text(st.characters(), max_size=6)


@given(
    st.lists(TEXT, max_size=450),
    st.dictionaries(TEXT, TEXT, max_size=300),
    st.text(st.characters(), max_size=60),
)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_pieces_of_json_say_what_it_says_in_one(argv, annotations, text) -> None:
    spec = ContainerSpec(
        id="c",
        sandbox_id="s",
        directory="/d",
        layers=(),
        process=ProcessSpec(argv=tuple(argv), user=UserSpec(supplemental_groups=tuple(range(len(argv))))),
        mounts=tuple(MountSpec(one, "/t") for one in argv),
        annotations=annotations,
        security=Security(masked_paths=tuple(argv)),
    )
    assert json.loads(wire.dumps(spec)) == wire.encode(spec)
    assert wire.dumps(wire.replace(spec, annotations={})) == json.dumps(
        wire.encode(wire.replace(spec, annotations={}))
    )
    assert "".join(wire.text_pieces(text * 400)) == json.dumps(text * 400)
