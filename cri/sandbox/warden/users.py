"""Who runs a process: the users and groups that a spec asks for, looked up in the files of its image."""

from __future__ import annotations

from cri.sandbox.host import StartError
from cri.sandbox.spec import Credentials, GroupsPolicy, UserSpec
from cri.sandbox.warden import accounts
from cri.sandbox.warden.accounts import MAX_ID, Accounts, User


def resolve(user: UserSpec, files: Accounts) -> tuple[Credentials, str]:
    """The ids that `user` means, and the home directory.

    A number is an id, and needs no entry; the first entry with that id says what its group and its home are. Raises
    StartError for a name that the files do not have, and for ids that are out of range.
    """
    name, _, group_name = user.user.partition(":")
    entry = _find_user(name or "0", files)
    if user.group is not None:
        gid = _checked("group", str(user.group), "id", user.group)
    elif group_name:
        gid = _find_group(group_name, files)
    else:
        gid = _checked("user", name, "group id", entry.gid)
    extra = {_checked("group", str(one), "id", one) for one in user.supplemental_groups}
    if user.groups_policy is GroupsPolicy.MERGE and entry.name:
        extra |= {
            group.gid for group in files.groups() if entry.name in group.members and group.gid <= MAX_ID
        }
    # The primary group is among the supplemental ones too: dropping it by setgid would else be a way around a
    # directory that it may not enter (CVE-2022-36109).
    return Credentials(entry.uid, gid, tuple(sorted(extra | {gid}))), entry.home or "/"


def _find_user(name: str, files: Accounts) -> User:
    if (uid := accounts.number(name)) is not None:
        _checked("user", name, "id", uid)
        entries = (entry for entry in files.users() if entry.uid == uid)
        return next(entries, User("", uid, 0, "/root" if uid == 0 else "/"))
    for entry in files.users():
        if entry.name == name:
            _checked("user", name, "id", entry.uid)
            return entry
    raise StartError(
        "start as", f'user "{name}"', f"unable to find user {name}: no matching entries in passwd file"
    )


def _find_group(name: str, files: Accounts) -> int:
    if (gid := accounts.number(name)) is not None:
        return _checked("group", name, "id", gid)
    for group in files.groups():
        if group.name == name:
            return _checked("group", name, "id", group.gid)
    raise StartError(
        "start with", f'group "{name}"', f"unable to find group {name}: no matching entries in group file"
    )


def _checked(kind: str, name: str, what: str, number: int) -> int:
    if not 0 <= number <= MAX_ID:
        operation = "start as" if kind == "user" else "start with"
        raise StartError(
            operation, f'{kind} "{name}"', f"its {what} is out of range: ids are from 0 to {MAX_ID}"
        )
    return number
