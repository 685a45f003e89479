"""Rules of rctl(8) as sys/kern/kern_rctl.c reads them."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, replace

from cri.sandbox.fake.freebsd.parameters import NAME_SIZE, refuse

_SUBJECTS = ("process", "user", "loginclass", "jail")
_THROTTLED = ("readbps", "writebps", "readiops", "writeiops")
RESOURCES = (
    *(
        "cputime",
        "datasize",
        "stacksize",
        "coredumpsize",
        "memoryuse",
        "memorylocked",
        "maxproc",
        "openfiles",
    ),
    *(
        "vmemoryuse",
        "pseudoterminals",
        "swapuse",
        "nthr",
        "msgqqueued",
        "msgqsize",
        "nmsgq",
        "nsem",
        "nsemop",
    ),
    *("nshm", "shmsize", "wallclock", "pcpu", *_THROTTLED),
)
_ACTIONS = frozenset(
    {
        *("deny", "log", "devctl", "throttle"),
        *(
            "sighup",
            "sigint",
            "sigquit",
            "sigill",
            "sigtrap",
            "sigabrt",
            "sigemt",
            "sigfpe",
            "sigkill",
            "sigbus",
        ),
        *(
            "sigsegv",
            "sigsys",
            "sigpipe",
            "sigalrm",
            "sigterm",
            "sigurg",
            "sigstop",
            "sigtstp",
            "sigchld",
            "sigttin",
        ),
        *("sigttou", "sigio", "sigxcpu", "sigxfsz", "sigvtalrm", "sigprof", "sigwinch", "siginfo", "sigusr1"),
        *("sigusr2", "sigthr"),
    }
)
_UNDENIABLE = frozenset({"cputime", "wallclock", *_THROTTLED})
_SLOPPY = frozenset(
    {"pseudoterminals", "swapuse", "msgqqueued", "msgqsize", "nmsgq", "nsem", "nshm", "shmsize"}
)
"""Counted for jails and users, but not for each process."""
_IN_MILLIONS = frozenset({"cputime", "wallclock", "pcpu"})
_MOST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, or a filter; what is empty matches everything."""

    subject: str = ""
    name: str = ""
    resource: str = ""
    action: str = ""
    amount: int | None = None
    per: str = ""

    def matches(self, rule: Rule) -> bool:
        """Whether a rule passes this filter."""
        wanted = (self.subject, self.name, self.resource, self.action, self.per)
        given = (rule.subject, rule.name, rule.resource, rule.action, rule.per)
        fits = all(not want or want == have for want, have in zip(wanted, given, strict=True))
        return fits and self.amount in (None, rule.amount)

    def __str__(self) -> str:
        per = f"/{self.per}" if self.per != self.subject else ""
        return f"{self.subject}:{self.name}:{self.resource}:{self.action}={self.amount}{per}"


def parse(text: str) -> Rule:
    """A rule or a filter. EINVAL, ERANGE, ENAMETOOLONG."""
    subject, name, resource, rest = (*text.split(":", 3), "", "", "", "")[:4]
    action, amount, per = re.fullmatch(r"([^=/]*)(?:[=/]([^/]*))?(?:/(.*))?", rest, re.DOTALL).groups("")  # type: ignore[union-attr]
    for word, words in ((subject, _SUBJECTS), (resource, RESOURCES), (action, _ACTIONS), (per, _SUBJECTS)):
        if word and word not in words:
            raise refuse(errno.EINVAL, subject=text)
    if name and not subject:
        raise refuse(errno.EINVAL, subject=text)
    if len(name) >= NAME_SIZE:
        raise refuse(errno.ENAMETOOLONG, subject=text)
    return Rule(subject, name, resource, action, _amount(text, amount, resource), per)


def add(rules: list[Rule], text: str) -> None:
    """Add a rule; a `deny` takes the place of one that differs in its amount only."""
    rule = parse(text)
    rule = replace(rule, per=rule.per or rule.subject)
    if not all((rule.subject, rule.name, rule.resource, rule.action)) or rule.amount is None:
        raise refuse(errno.EINVAL, subject=text)
    wrong = (
        (rule.action == "deny" and rule.resource in _UNDENIABLE)
        or (rule.action == "throttle" and rule.resource not in _THROTTLED)
        or (rule.per == "process" and rule.resource in _SLOPPY)
    )
    if wrong:
        raise refuse(errno.EOPNOTSUPP, subject=text)
    same = replace(rule, amount=None) if rule.action == "deny" else rule
    remove(rules, same)
    rules.append(rule)


def remove(rules: list[Rule], wanted: Rule) -> None:
    """Remove what matches."""
    rules[:] = [rule for rule in rules if not wanted.matches(rule)]


def _amount(text: str, amount: str, resource: str) -> int | None:
    if not amount:
        return None
    if not re.fullmatch(r"[+-]?\d+", amount.lstrip(" \t\n\v\f\r")):
        raise refuse(errno.EINVAL, subject=text)
    value = int(amount)
    if not 0 <= value <= (_MOST // 1_000_000 if resource in _IN_MILLIONS else _MOST):
        raise refuse(errno.ERANGE, subject=text)
    return value
