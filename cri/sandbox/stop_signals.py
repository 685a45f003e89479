"""The signal that asks a container to end: what an image or a pod calls it, what it is here, and what the CRI calls it.

An image's words are those of the system that it was built for: 10 is SIGUSR1 to Linux (signal(7)) and SIGBUS to FreeBSD
(signal(3)). Real-time signals count from 34 on Linux, as two are the C library's own, whatever library this program has.
FreeBSD's kernel translates what it delivers to a program for Linux (bsd_to_linux_signal() of sys/compat/linux/linux.c), so
what is sent there is the signal that becomes the right one.
"""

from __future__ import annotations

import re
import sys

DEFAULT = "SIGTERM"
"""What ends a container for which nobody has named another one."""

_COMMON = {
    "SIGHUP": 1,
    "SIGINT": 2,
    "SIGQUIT": 3,
    "SIGILL": 4,
    "SIGTRAP": 5,
    "SIGABRT": 6,
    "SIGIOT": 6,
    "SIGFPE": 8,
    "SIGKILL": 9,
    "SIGSEGV": 11,
    "SIGPIPE": 13,
    "SIGALRM": 14,
    "SIGTERM": 15,
    "SIGTTIN": 21,
    "SIGTTOU": 22,
    "SIGXCPU": 24,
    "SIGXFSZ": 25,
    "SIGVTALRM": 26,
    "SIGPROF": 27,
    "SIGWINCH": 28,
}
_NUMBERS = {
    "linux": _COMMON
    | {"SIGBUS": 7, "SIGUSR1": 10, "SIGUSR2": 12, "SIGSTKFLT": 16, "SIGCHLD": 17, "SIGCLD": 17, "SIGCONT": 18}
    | {"SIGSTOP": 19, "SIGTSTP": 20, "SIGURG": 23, "SIGIO": 29, "SIGPOLL": 29, "SIGPWR": 30, "SIGSYS": 31}
    | {"SIGUNUSED": 31},
    "freebsd": _COMMON
    | {"SIGEMT": 7, "SIGBUS": 10, "SIGSYS": 12, "SIGURG": 16, "SIGSTOP": 17, "SIGTSTP": 18, "SIGCONT": 19}
    | {"SIGCHLD": 20, "SIGCLD": 20, "SIGIO": 23, "SIGPOLL": 23, "SIGINFO": 29, "SIGUSR1": 30, "SIGUSR2": 31}
    | {"SIGTHR": 32, "SIGLWP": 32, "SIGLIBRT": 33},
}
"""Of several names for a number, the first is the one that is shown."""
_REAL_TIME = {"linux": (34, 64), "freebsd": (65, 126)}
_NAME = re.compile(r"SIGRT(MIN|MAX)(?:(\+|-|PLUS|MINUS)([0-9]{1,3}))?")
_CRI_PLUS, _CRI_MINUS = 15, 14
"""How far the CRI counts from either end of the real-time signals."""
_LINUX_KERNEL_FIRST = 32
"""From here on Linux's kernel itself takes signals for real-time ones, and FreeBSD's counts when it translates."""
_FREEBSD_POWER = 65 + 64 - 32 + 1
"""What FreeBSD's kernel delivers as SIGPWR, which it has not."""

HERE = "freebsd" if sys.platform.startswith("freebsd") else "linux"


def number(text: str, system: str = "", here: str = HERE) -> int:
    """The number to send on this system for what an image for `system` (empty: this one) means by `text`.

    Raises ValueError for what is no signal there, or none here.
    """
    system = _system(system, here)
    found = _number(text, system)
    if system == here:
        return found
    if (system, here) == ("linux", "freebsd"):
        return _of_linux_on_freebsd(found)
    for name, same in _NUMBERS[system].items():
        if same == found and name in _NUMBERS[here]:
            return _NUMBERS[here][name]
    lowest, highest = _REAL_TIME[here]
    same = found - _REAL_TIME[system][0] + lowest
    if not lowest <= same <= highest:
        raise ValueError(f"{text!r:.40} is a signal of {system} that {here} does not have; use SIGTERM")
    return same


def cri_name(text: str, system: str = "", here: str = HERE) -> str:
    """What the CRI calls it (Signal): SIGTERM, SIGRTMINPLUS3. Empty if it has no word for it. Raises ValueError."""
    system = _system(system, here)
    found = _number(text, system)
    lowest, highest = _REAL_TIME[system]
    if found >= lowest:
        if found == lowest:
            return "SIGRTMIN"
        if found == highest:
            return "SIGRTMAX"
        if found <= lowest + _CRI_PLUS:
            return f"SIGRTMINPLUS{found - lowest}"
        return f"SIGRTMAXMINUS{highest - found}" if found >= highest - _CRI_MINUS else ""
    if (name := _spelled(text)) in _NUMBERS["linux"] and name != "SIGUNUSED":
        return name
    names = (name for name, one in _NUMBERS[system].items() if one == found and name in _NUMBERS["linux"])
    return next(names, "")


def _system(system: str, here: str) -> str:
    return system if system in _NUMBERS else here


def _spelled(text: str) -> str:
    name = text.strip().upper()
    return name if name.startswith("SIG") else f"SIG{name}"


def _number(text: str, system: str) -> int:
    """What `text` is on the system whose words it has. Raises ValueError."""
    lowest, highest = _REAL_TIME[system]
    digits = text.strip()
    name = _spelled(text) if text.isascii() else ""
    if name and digits.isdigit():
        found = int(digits) if len(digits) <= 4 else 0
    elif (real_time := _NAME.fullmatch(name)) is not None:
        end, sign, distance = real_time[1], real_time[2] or "", int(real_time[3] or 0)
        towards = "-" if end == "MAX" else "+"
        inwards = not sign or {"PLUS": "+", "MINUS": "-"}.get(sign, sign) == towards or not distance
        found = (lowest + distance if end == "MIN" else highest - distance) if inwards else 0
        found = found if found >= lowest else 0
    else:
        found = _NUMBERS[system].get(name, 0)
    if not 0 < found <= highest:
        raise ValueError(
            f"{text!r:.40} is no signal of {system}: expected a name such as SIGTERM, or 1 to {highest}"
        )
    return found


def _of_linux_on_freebsd(found: int) -> int:
    """As linux_to_bsd_signal() of FreeBSD's kernel."""
    if found >= _LINUX_KERNEL_FIRST:
        return _REAL_TIME["freebsd"][0] + found - _LINUX_KERNEL_FIRST
    for name, one in _NUMBERS["linux"].items():
        if one == found and name in _NUMBERS["freebsd"]:
            return _NUMBERS["freebsd"][name]
    return _FREEBSD_POWER if found == _NUMBERS["linux"]["SIGPWR"] else _NUMBERS["freebsd"]["SIGBUS"]
