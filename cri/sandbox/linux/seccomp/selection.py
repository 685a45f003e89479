"""Which filter a container gets. What a profile of the node says when the container is made counts for all its processes."""

from __future__ import annotations

import errno
import functools
import os
import stat
from pathlib import Path

import structlog

from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.linux import capabilities
from cri.sandbox.linux.run_plan import Filter
from cri.sandbox.linux.seccomp import entry, library, machine, runtime_default
from cri.sandbox.linux.seccomp.compiler import compile_cached
from cri.sandbox.linux.seccomp.profile import Profile, ProfileError, parse
from cri.sandbox.spec import Security

LIMIT = 256 * 1024
"""Bytes of a profile. Those that engines ship have 20 to 60 KiB."""
_KERNEL = Path("/proc/sys/kernel/seccomp/actions_avail")

log = structlog.get_logger(__name__)


def missing() -> str:
    """Why there are no filters on this node, with the remedy; empty if there are."""
    if not _KERNEL.exists():
        return "this kernel has no seccomp filters: use one with CONFIG_SECCOMP_FILTER"
    return library.missing()


def choose(security: Security) -> Filter | None:
    """The filter of a container; None for one that is unconfined. Blocks, perhaps for good: the profile may be anywhere.

    Raises HostError; UnfitRequestError, naming profile and remedy, for what is wrong with a profile.
    """
    if security.seccomp is None or security.privileged:
        return None
    path = security.seccomp.path
    subject = f"seccomp profile {path or 'RuntimeDefault'}"
    held = capabilities.names(capabilities.wanted(security))
    here = machine.this()
    try:
        profile = parse(_read(path), here, held) if path else _default(held & runtime_default.CAPABILITIES)
        compiled = compile_cached(profile, here)
        shut = entry.forbidden(compiled.filter, here, no_new_privileges=security.no_new_privileges)
    except ProfileError as error:
        raise UnfitRequestError("use", subject, f"{error}; change the profile") from None
    except library.LibraryError as error:
        raise HostError("use", subject, str(error)) from None
    except OSError as error:
        # Of a disk or a server that fails, a later attempt may read it.
        kind = (
            HostError
            if error.errno in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
            else UnfitRequestError
        )
        reason = (
            f"{error.strerror}; put the profile there, on this node, as a file of at most {LIMIT // 1024} KiB"
        )
        raise kind("read", subject, reason, error.errno) from error
    if shut:
        way = (
            ""
            if security.no_new_privileges
            else ", or set no_new_privs (allowPrivilegeEscalation: false), which takes fewer"
        )
        raise UnfitRequestError(
            "use",
            subject,
            f"it forbids {', '.join(shut)}, without which no process gets into a container; allow that{way}",
        )
    if path and compiled.unknown:
        log.warning(
            "a seccomp profile names unknown calls", profile=path, calls=sorted(compiled.unknown)[:20]
        )
    return compiled.filter


@functools.lru_cache(maxsize=64)
def _default(held: frozenset[str]) -> Profile:
    return runtime_default.profile(held, machine.this().others)


def _read(path: str) -> bytes:
    """A profile's text. A FIFO or a device in its place is not opened. Raises OSError."""
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        with open(f"/proc/self/fd/{found}", "rb") as file:  # noqa: PTH123
            text = file.read(LIMIT + 1)
    finally:
        os.close(found)
    if len(text) > LIMIT:
        raise OSError(errno.EFBIG, f"it has more than {LIMIT // 1024} KiB", path)
    return text
