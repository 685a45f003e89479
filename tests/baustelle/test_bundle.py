"""Image config to runtime defaults and command."""

import contextlib
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baustelle.bundle import ImageDefaults, command, signal_number
from baustelle.errors import ImageConfigError


def test_keys_match_in_any_case():
    document = {
        "CONFIG": {
            "cmd": ["/bin/sh"],
            "ENTRYPOINT": None,
            "env": ["A=b"],
            "workingdir": "/w",
            "user": "u:g",
            "StopSignal": "SIGQUIT",
            "Volumes": {"/data": {}},
        }
    }
    assert ImageDefaults.from_config(document) == ImageDefaults(
        (), ("/bin/sh",), ("A=b",), "/w", "u:g", "SIGQUIT", ("/data",)
    )


@pytest.mark.parametrize("document", [{}, {"config": None}, {"config": {}}])
def test_everything_may_be_missing(document):
    assert ImageDefaults.from_config(document) == ImageDefaults()


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"Cmd": [1]}, "Cmd"),
        ({"Env": {}}, "Env"),
        ({"User": 0}, "User"),
        ({"Volumes": []}, "Volumes"),
        ([], "config"),
        ({"Env": ["=x"]}, "Env"),
    ],
)
def test_wrong_types_name_the_key(config, key):
    with pytest.raises(ImageConfigError, match=key):
        ImageDefaults.from_config({"config": config})


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "own", "args", "expected"),
    [  # the table of the Kubernetes documentation
        (["/ep-1"], ["foo", "bar"], [], [], ["/ep-1", "foo", "bar"]),
        (["/ep-1"], ["foo", "bar"], ["/ep-2"], [], ["/ep-2"]),
        (["/ep-1"], ["foo", "bar"], [], ["zoo", "boo"], ["/ep-1", "zoo", "boo"]),
        (["/ep-1"], ["foo", "bar"], ["/ep-2"], ["zoo", "boo"], ["/ep-2", "zoo", "boo"]),
        ([], ["/sh"], [], [], ["/sh"]),
        ([], [], [], ["/sh"], ["/sh"]),
    ],
)
def test_command(entrypoint, cmd, own, args, expected):
    assert command(ImageDefaults(tuple(entrypoint), tuple(cmd)), own, args) == expected


def test_nothing_to_run():
    with pytest.raises(ImageConfigError, match="neither entrypoint nor cmd"):
        command(ImageDefaults(), [], [])
    with pytest.raises(ImageConfigError, match="empty"):
        command(ImageDefaults(("",)), [], [])


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15), ("term", 15), ("15", 15), (9, 9), (" SIGHUP ", 1),
        ("SIGRTMIN", signal.SIGRTMIN), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMINPLUS3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1), ("SIGRTMAXMINUS14", signal.SIGRTMAX - 14),
    ],
)  # fmt: skip
def test_signals(name, number):
    assert signal_number(name) == number


@pytest.mark.parametrize(
    "name", ["", "0", "-1", "SIG", "SIGNOPE", "999", "SIGRTMIN+99", "SIGRTMAX-99", "RUNTIME_DEFAULT", "²"]
)
def test_no_signals(name):
    with pytest.raises(ValueError, match="no signal"):
        signal_number(name)


@given(st.text())
def test_signal_names_are_numbers_or_errors(name):
    with contextlib.suppress(ImageConfigError):
        assert 0 < signal_number(name) <= signal.SIGRTMAX


@pytest.mark.parametrize("key", ["Cmd", "Entrypoint", "Env", "User", "WorkingDir", "StopSignal"])
def test_text_is_what_go_reads_and_has_no_nul_byte(key):
    several = key in ("Cmd", "Entrypoint", "Env")
    with pytest.raises(ImageConfigError, match=f"{key} has a NUL byte"):
        ImageDefaults.from_config({"config": {key: ["A=\0"] if several else "a\0"}})
    read = ImageDefaults.from_config({"config": {key: ["A=\udcff\ud800"] if several else "a\udcff"}})
    for text in (*read.cmd, *read.entrypoint, *read.env, read.user, read.working_dir, read.stop_signal):
        assert text.encode().decode() == text


def test_names_of_volumes_are_text():
    assert ImageDefaults.from_config({"config": {"Volumes": {"/\udcff": {}}}}).volumes == ("/\ufffd",)
    with pytest.raises(ImageConfigError, match="Volumes has a NUL byte"):
        ImageDefaults.from_config({"config": {"Volumes": {"/\0": {}}}})
