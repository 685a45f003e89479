"""Who runs a process: users and groups looked up in the files of an image, which nobody trusts.

Parsers for passwd(5) and group(5). The files are read after the change of root, so no link in them leads outside; size and kind
are checked, as an image can hold a FIFO there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from cri.sandbox.host import StartError
from cri.sandbox.spec import Credentials, GroupsPolicy, UserSpec

_MAX_FILE = 16 * 1024 * 1024
_MAX_ID = 2**32 - 2


@dataclass(frozen=True, slots=True)
class PasswdEntry:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


def parse_passwd(text: str) -> Iterator[PasswdEntry]:
    """The valid lines of a passwd file."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and _is_id(fields[2]) and _is_id(fields[3]):
            yield PasswdEntry(fields[0], int(fields[2]), int(fields[3]), fields[5])


def parse_group(text: str) -> Iterator[GroupEntry]:
    """The valid lines of a group file."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and _is_id(fields[2]):
            yield GroupEntry(fields[0], int(fields[2]), tuple(filter(None, fields[3].strip().split(","))))


def read_accounts(root: str = "/") -> tuple[list[PasswdEntry], list[GroupEntry]]:
    """The entries of both files below the current root; none where a file is missing."""
    return (
        list(parse_passwd(_read(f"{root}/etc/passwd"))),
        list(parse_group(_read(f"{root}/etc/group"))),
    )


def resolve(user: UserSpec, passwd: list[PasswdEntry], groups: list[GroupEntry]) -> tuple[Credentials, str]:
    """The ids that `user` means, and the home directory.

    A number needs no entry. Raises StartError for a name that the files do not have.
    """
    name, _, group_name = user.user.partition(":")
    entry = _find_user(name, passwd)
    if entry is None:
        raise StartError(
            "start as", f'user "{name}"', f"unable to find user {name}: no matching entries in passwd file"
        )
    gid = entry.gid
    if group_name:
        gid = _find_group(group_name, groups)
    if user.group is not None:
        gid = user.group
    extra = set(user.supplemental_groups)
    if user.groups_policy is GroupsPolicy.MERGE and entry.name:
        extra |= {group.gid for group in groups if entry.name in group.members}
    # The primary group is among the supplemental ones too: dropping it by setgid would else be a way around a
    # directory that it may not enter (CVE-2022-36109).
    return Credentials(entry.uid, gid, tuple(sorted(extra | {gid}))), entry.home or "/"


def _find_user(name: str, passwd: list[PasswdEntry]) -> PasswdEntry | None:
    name = name or "0"
    for entry in passwd:
        if entry.name == name:
            return entry
    if not _is_id(name):
        return None
    uid = int(name)
    for entry in passwd:
        if entry.uid == uid:
            return entry
    return PasswdEntry("", uid, 0, "/root" if uid == 0 else "/")


def _find_group(name: str, groups: list[GroupEntry]) -> int:
    for group in groups:
        if group.name == name:
            return group.gid
    if _is_id(name):
        return int(name)
    raise StartError(
        "start with", f'group "{name}"', f"unable to find group {name}: no matching entries in group file"
    )


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return ""
        return file.read(min(found.st_size, _MAX_FILE)).decode(errors="surrogateescape")
