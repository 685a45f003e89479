"""Runs the checks that fit the operating system."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from cri.config import Config
from cri.doctor import common
from cri.doctor.finding import Check, Finding, failure, ok, warning
from cri.sandbox.host import HostError


def examine(config: Config) -> list[Finding]:
    """Look at this node. Raises HostError for an operating system that there is no driver for."""
    system = config.host if config.host != "auto" else sys.platform.rstrip("0123456789")
    findings = run(common.checks(config))
    if system == "linux":
        from cri.doctor import linux  # noqa: PLC0415 - the other system's is not needed

        return findings + run(linux.checks(config))
    if system == "freebsd":
        return findings + _examine_freebsd(config)
    raise HostError("examine", f"host {system}", "there is no driver for it; set host to freebsd or linux")


def _examine_freebsd(config: Config) -> list[Finding]:
    from cri.doctor import freebsd  # noqa: PLC0415
    from cri.sandbox.freebsd import health  # noqa: PLC0415

    try:
        calls = health.load_calls()
    except HostError as error:
        message = f"the kernel binding cannot be imported: {error.__cause__}"
        return [failure("binding", message, health.BINDING_REMEDY)]
    return [ok("binding", "the kernel can be spoken to"), *run(freebsd.checks(calls, config))]


def run(checks: Sequence[Check]) -> list[Finding]:
    """What the checks find, in their order. A check that cannot look is a finding, too."""
    return [finding for check in checks for finding in _run(check)]


def _run(check: Check) -> Iterator[Finding]:
    try:
        yield from check.run()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        yield warning(check.name, f"cannot tell:{where} {error.strerror or error}", "run the doctor as root")
