"""Signals by the names that images and pods have for them."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.api.runtime import v1
from cri.sandbox import stop_signals


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("SIGTERM", 15, "SIGTERM"), ("TERM", 15, "SIGTERM"), ("term", 15, "SIGTERM"), ("15", 15, "SIGTERM"),
        ("SigQuit", 3, "SIGQUIT"), (" SIGHUP ", 1, "SIGHUP"), ("09", 9, "SIGKILL"), ("10", 10, "SIGUSR1"),
        ("SIGIOT", 6, "SIGIOT"), ("6", 6, "SIGABRT"), ("CLD", 17, "SIGCLD"), ("17", 17, "SIGCHLD"),
        ("SIGPOLL", 29, "SIGPOLL"), ("29", 29, "SIGIO"), ("30", 30, "SIGPWR"), ("16", 16, "SIGSTKFLT"),
        ("SIGUNUSED", 31, "SIGSYS"), ("32", 32, ""), ("33", 33, ""),
        ("SIGRTMIN", 34, "SIGRTMIN"), ("RTMIN", 34, "SIGRTMIN"), ("SIGRTMIN+0", 34, "SIGRTMIN"), ("34", 34, "SIGRTMIN"),
        ("SIGRTMIN+3", 37, "SIGRTMINPLUS3"), ("rtmin+3", 37, "SIGRTMINPLUS3"), ("37", 37, "SIGRTMINPLUS3"),
        ("SIGRTMINPLUS3", 37, "SIGRTMINPLUS3"), ("SIGRTMIN+15", 49, "SIGRTMINPLUS15"),
        ("SIGRTMIN+16", 50, "SIGRTMAXMINUS14"), ("SIGRTMAX-14", 50, "SIGRTMAXMINUS14"), ("50", 50, "SIGRTMAXMINUS14"),
        ("SIGRTMAX-15", 49, "SIGRTMINPLUS15"), ("SIGRTMAX-1", 63, "SIGRTMAXMINUS1"), ("SIGRTMAX", 64, "SIGRTMAX"),
        ("SIGRTMIN+30", 64, "SIGRTMAX"), ("SIGRTMAX-30", 34, "SIGRTMIN"), ("64", 64, "SIGRTMAX"),
    ],
)  # fmt: skip
def test_of_images_for_linux(text, number, name):
    assert stop_signals.number(text, "linux", "linux") == number
    assert stop_signals.cri_name(text, "linux", "linux") == name
    assert not name or v1.Signal[name]


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("SIGTERM", 15, "SIGTERM"), ("15", 15, "SIGTERM"), ("10", 10, "SIGBUS"), ("SIGUSR1", 30, "SIGUSR1"),
        ("30", 30, "SIGUSR1"), ("17", 17, "SIGSTOP"), ("20", 20, "SIGCHLD"), ("SIGPOLL", 23, "SIGPOLL"),
        ("SIGINFO", 29, ""), ("29", 29, ""), ("37", 37, ""), ("SIGRTMIN+3", 68, "SIGRTMINPLUS3"), ("68", 68, "SIGRTMINPLUS3"),
        ("SIGRTMAX-1", 125, "SIGRTMAXMINUS1"), ("SIGRTMIN+20", 85, ""), ("126", 126, "SIGRTMAX"),
    ],
)  # fmt: skip
def test_of_images_for_freebsd(text, number, name):
    assert stop_signals.number(text, "freebsd", "freebsd") == number
    assert stop_signals.cri_name(text, "freebsd", "freebsd") == name
    assert not name or v1.Signal[name]


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("10", 30, "SIGUSR1"), ("SIGUSR1", 30, "SIGUSR1"), ("12", 31, "SIGUSR2"), ("17", 20, "SIGCHLD"), ("7", 10, "SIGBUS"),
        ("SIGTERM", 15, "SIGTERM"), ("29", 23, "SIGIO"), ("SIGSTKFLT", 10, "SIGSTKFLT"), ("SIGPWR", 98, "SIGPWR"),
        # Two of what the kernel takes for real-time signals are the C library's own on Linux.
        ("32", 65, ""), ("SIGRTMIN+3", 70, "SIGRTMINPLUS3"), ("37", 70, "SIGRTMINPLUS3"), ("SIGRTMAX", 97, "SIGRTMAX"),
    ],
)  # fmt: skip
def test_of_images_for_linux_on_freebsd(text, number, name):
    assert stop_signals.number(text, "linux", "freebsd") == number
    assert stop_signals.cri_name(text, "linux", "freebsd") == name


def test_without_a_system_it_is_this_one():
    assert stop_signals.number("10", "", "freebsd") == 10
    assert stop_signals.cri_name("10", "", "freebsd") == "SIGBUS"
    assert stop_signals.number("SIGUSR1") == signal.SIGUSR1
    assert stop_signals.number("SIGRTMIN+1") == signal.SIGRTMIN + 1


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "-1", "+15", "1.0", "SIG", "SIGNOPE", "65", "999", "9" * 5000, "SIGRTMIN-1", "SIGRTMAX+1", "SIGRTMIN+31",
     "SIGRTMAX-31", "SIGRTMIN+", "SIGRTMIN+\u0663", "RUNTIME_DEFAULT", "\u00b2", "SIGSIGTERM", "\u017figterm", "SIGTERM\0", "SIGINFO"],
)  # fmt: skip
def test_no_signals(text):
    with pytest.raises(ValueError, match="is no signal of linux"):
        stop_signals.number(text, "linux", "linux")
    with pytest.raises(ValueError, match="is no signal of linux"):
        stop_signals.cri_name(text, "linux", "freebsd")


@pytest.mark.parametrize("name", [one.name for one in v1.Signal if one.name != "RUNTIME_DEFAULT"])
@pytest.mark.parametrize("system", ["linux", "freebsd"])
def test_every_signal_of_the_cri_is_shown_as_it_was_asked_for(name, system):
    """As far as the system has it, under one name for each."""
    try:
        assert stop_signals.cri_name(name, system, system) == name
    except ValueError:
        assert (name, system) in {("SIGPWR", "freebsd"), ("SIGSTKFLT", "freebsd")}


@given(st.text(), st.sampled_from(["", "linux", "freebsd"]), st.sampled_from(["linux", "freebsd"]))
def test_whatever_an_image_says(text, system, here):
    try:
        found = stop_signals.number(text, system, here)
    except ValueError:
        return
    assert 0 < found <= 126
    name = stop_signals.cri_name(text, system, here)
    assert not name or v1.Signal[name]


@given(st.integers(1, 126), st.sampled_from(["linux", "freebsd"]))
def test_what_is_shown_is_what_is_used(number, system):
    try:
        name = stop_signals.cri_name(str(number), system, system)
    except ValueError:
        assert system == "linux"
        assert number > 64
        return
    assert not name or stop_signals.number(name, system, system) == number
