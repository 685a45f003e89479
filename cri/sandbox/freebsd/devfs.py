"""Rules of devfs(4): what of /dev a mount shows. devfs(8) has the words, and its rule subsystem the ioctls."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

from cri.sandbox.freebsd import encoding
from cri.sandbox.freebsd._kernel import ffi, lib
from cri.sandbox.freebsd.calls import DevfsRule
from cri.sandbox.freebsd.native import check


def set_ruleset(number: int, rules: Sequence[DevfsRule]) -> None:
    """Make a ruleset hold just these rules; one that does already is not touched."""
    if not 0 < number < 1 << 16:
        raise OSError(errno.EINVAL, "rulesets have numbers from 1 to 65535", f"devfs ruleset {number}")
    subject = f"devfs ruleset {number}"
    wanted = [_native(rule, number) for rule in rules]
    with _directory("/dev") as fd:
        present = list(_rules(fd, number))
        if [_content(rule) for rule in present] == [_content(rule) for rule in wanted]:
            return
        # Backwards: the rule that hides everything is the first, and should go last.
        for rule in reversed(present):
            check(lib.cri_devfs(fd, lib.DEVFSIO_RDEL, ffi.addressof(rule, "dr_id")), subject)
        for rule in wanted:
            check(lib.cri_devfs(fd, lib.DEVFSIO_RADD, rule), subject)


def apply(target: str, rules: Sequence[DevfsRule]) -> None:
    """Apply rules once to the devfs that is mounted at `target`."""
    with _directory(target) as fd:
        for rule in rules:
            check(lib.cri_devfs(fd, lib.DEVFSIO_RAPPLY, _native(rule)), target)


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _native(rule: DevfsRule, ruleset: int = 0) -> Any:
    native = ffi.new("struct devfs_rule *")
    native.dr_magic = lib.DEVFS_MAGIC
    native.dr_id = ruleset << 16  # the kernel gives it a number in there
    if rule.path:
        pattern = encoding.c_string(rule.path)
        if len(pattern) > lib.DEVFS_MAXPTRNLEN:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), rule.path)
        native.dr_icond = lib.DRC_PATHPTRN
        native.dr_pathptrn = pattern
    if rule.hide is not None:
        native.dr_iacts |= lib.DRA_BACTS
        native.dr_bacts = lib.DRB_HIDE if rule.hide else lib.DRB_UNHIDE
    if rule.mode is not None:
        native.dr_iacts |= lib.DRA_MODE
        native.dr_mode = rule.mode
    return native


def _rules(fd: int, ruleset: int) -> Iterator[Any]:
    last = ruleset << 16
    while True:
        rule = _native(DevfsRule())
        rule.dr_id = last
        try:
            check(lib.cri_devfs(fd, lib.DEVFSIO_RGETNEXT, rule), f"devfs ruleset {ruleset}")
        except FileNotFoundError:
            return
        yield rule
        last = rule.dr_id


def _content(rule: Any) -> bytes:
    """All of a rule but its number."""
    copy = ffi.new("struct devfs_rule *", rule[0])
    copy.dr_id = 0
    return bytes(ffi.buffer(copy))
