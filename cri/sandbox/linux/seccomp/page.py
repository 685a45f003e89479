"""docs/seccomp.md: what our profile allows and denies, as its data say. `scripts/generate-seccomp` writes it."""

from __future__ import annotations

from collections.abc import Iterable

from cri.sandbox.linux.seccomp import runtime_default
from cri.sandbox.linux.seccomp.profile import Kind
from cri.sandbox.linux.seccomp.runtime_default import Limited, Shut

_BEFORE = """\
# Filters for system calls (seccomp, Linux)

*Made by `scripts/generate-seccomp` from `cri/sandbox/linux/seccomp/runtime_default.py`.*

A container asks for one of three (`securityContext.seccompProfile` of pod and container in Kubernetes):

| profile | means |
|---|---|
| Unconfined | no filter; so does saying nothing, unless the kubelet runs with `seccompDefault` |
| RuntimeDefault | the profile of this page |
| Localhost | a profile of the node, by its absolute path |

Every process of the container has the same filter, whether it is the first or one of an exec. It is made when the container is made: what
becomes of a profile's file later changes nothing for containers that are there. Privileged containers are unconfined, whatever
they ask for. Pods made before an upgrade to a release with filters keep their warden: their containers go on without RuntimeDefault, and
with Localhost they are refused, until the pod is made anew.

## On the node

Filters are made by libseccomp, version 2.5 or later, which is found at run time (Debian: `apt-get install libseccomp2`). Without it
containers that ask for RuntimeDefault or Localhost are refused with a message that says so; so do the node's condition
(RuntimeReady, SeccompMissing) and `cri-jails doctor`. On FreeBSD a jail is what confines: RuntimeDefault means that, and Localhost
is refused.

## Localhost

A file of at most 256 KiB with the OCI's `linux.seccomp` as JSON: defaultAction, defaultErrnoRet, architectures, flags (TSYNC, LOG,
SPEC_ALLOW), syscalls with names, action, errnoRet and args. Of what Docker's and Podman's profiles have besides, archMap,
includes, excludes (caps, arches, minKernel), name, comment, errno and defaultErrno are understood. Without flags none is set. Two comparisons of one argument in one
rule mean that one of them is enough, as with runc. Architectures that the processor does not have are passed over; so are calls that
libseccomp does not know, and these are logged. Two rules for a call of which one has no args, with different actions, are refused, as one
would be lost; so is what libseccomp would take minutes for, which is told with the call. SCMP_ACT_NOTIFY, listenerPath, unknown keys and values are refused, with their place.

Calls that are newer than all that a profile names are answered with ENOSYS, unless its default is to let through.

The way into a container goes on for a few calls after its filter is there. With no_new_privs (`allowPrivilegeEscalation: false`)
a profile has to let through {always}; without, also {more}. One that does not is refused when the
container is made, with the names of the calls.

## RuntimeDefault

A call is open if programs use it and the kernel checks by itself what it does to others. It is shut if it reaches what is the
node's, if namespaces do not tell apart what it changes, or if it opens much code of the kernel to everybody for few programs. A
capability that a container was given opens what it is for. What is shut answers EPERM; what is newer than this page, ENOSYS.
Calls of 32-bit programs are treated alike; those of x32 are not known. The filter does not ask for
the mitigation of speculative store bypass (SPEC_ALLOW), as Linux itself does not from 5.16 on.
"""


def text() -> str:
    """The page."""
    from cri.sandbox.linux.seccomp import entry  # noqa: PLC0415 - needs Linux's binding, which the data do not

    always = dict.fromkeys(name for name, _ in entry.ALWAYS)
    more = dict.fromkeys(name for name, _ in entry.WITHOUT_NO_NEW_PRIVILEGES)
    parts = [
        _BEFORE.format(always=_listed(always), more=_listed(more)),
        "### Shut\n",
        "| what | calls | unless the container has | why |\n|---|---|---|---|",
        *map(_shut, runtime_default.SHUT),
        "\n### Open with some arguments\n",
        "| call | open | and whole, if the container has | why |\n|---|---|---|---|",
        *map(_limited, runtime_default.LIMITED),
        "\n### Open\n",
        "| what | calls |\n|---|---|",
        *(f"| {group.title} | {_listed(group.calls)} |" for group in runtime_default.OPEN),
    ]
    return "\n".join(parts) + "\n"


def _shut(group: Shut) -> str:
    answer = "" if group.answer.kind is Kind.ERRNO and group.answer.data == 1 else " (ENOSYS)"
    return f"| {group.title}{answer} | {_listed(group.calls)} | {', '.join(group.unless)} | {group.why} |"


def _limited(limited: Limited) -> str:
    return f"| `{limited.call}` | {limited.allowed} | {', '.join(limited.unless)} | {limited.why} |"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
