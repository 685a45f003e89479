"""The account files of an image, as the C library reads them."""

import grp
import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.host import StartError
from cri.sandbox.warden import accounts
from cri.sandbox.warden.accounts import Accounts, Group, User


def users(text: bytes) -> list[User]:
    return list(Accounts(passwd=text).users())


def groups(text: bytes) -> list[Group]:
    return list(Accounts(group=text).groups())


@pytest.mark.parametrize(
    ("line", "entries"),
    [
        (b"web:x:1000:1001:Web:/srv/web:/bin/sh\n", [User("web", 1000, 1001, "/srv/web")]),
        (b"web:x:1000:1001:Web:/srv/web:/bin/sh", [User("web", 1000, 1001, "/srv/web")]),
        (b"web:x:1000:1001::/a:/bin/sh:of:colons\n", [User("web", 1000, 1001, "/a")]),
        (b"web:x:1000:1001\n", [User("web", 1000, 1001, "")]),
        (b"web:x:1000:1001:\n", [User("web", 1000, 1001, "")]),
        (b"web:x:1000:1001:Web:/srv/web\n", [User("web", 1000, 1001, "/srv/web")]),
        (b" \t web::1: 2::/a:\n", [User("web", 1, 2, "/a")]),
        (b"web::007:+08::/a:\n", [User("web", 7, 8, "/a")]),
        (b"web:x:0:0::/a:\0:b:\n", [User("web", 0, 0, "/a")]),
        (b"\xff:x:1:1::/\xfe:\n", [User("\udcff", 1, 1, "/\udcfe")]),
        ("é:x:1:1::/:\n".encode(), [User("é", 1, 1, "/")]),
        ("a\u2028b\x85\x0c:x:1:1::/:\n".encode(), [User("a\u2028b\x85\x0c", 1, 1, "/")]),
        (b"web:x:1000:1001::/srv/web\r\n", [User("web", 1000, 1001, "/srv/web\r")]),
        (b":x:5:5::/:\n", [User("", 5, 5, "/")]),
        # What is larger than any id is one that nobody can have: the line counts, and a later one does not.
        (b"web:x:4294967295:0::/:\n", [User("web", 2**32 - 1, 0, "/")]),
        (b"web:x:99999999999999999999999:4294967296::/:\n", [User("web", 2**32 - 1, 2**32 - 1, "/")]),
        (b"web:x:-1:-0::/:\n", [User("web", 2**32 - 1, 0, "/")]),
        (b"web:x:" + b"0" * 9999 + b"1:0::/:\n", [User("web", 1, 0, "/")]),
        (b"web:x:" + b"9" * 9999 + b":0::/:\n", [User("web", 2**32 - 1, 0, "/")]),
        (b"web:x:1:1:" + b"g" * 100_000 + b":/far:\n", [User("web", 1, 1, "/far")]),
        # No accounts
        (b"\n  \n# root:x:0:0::/:\n #web:x:0:0::/:\n", []),
        (b"web\nweb:x\nweb:x:0\nweb:x::0::/:\nweb:x:0:::/:\n", []),
        (b"web:x:zero:0::/:\nweb:x:0x1:0::/:\nweb:x:1 :0::/:\nweb:x:1.5:0::/:\nweb:x:1:0\r\n", []),
        (b"+\n+::::::\n-web\n+web:x:0:0::/:\n-web:x:0:0::/:\n+@admins::::::\n", []),
        (b"web:x\0:0:0::/:\n\0web:x:0:0::/:\n", []),
        (b"", []),
    ],
)
def test_passwd(line, entries):
    assert users(line) == entries


@pytest.mark.parametrize(
    ("line", "entries"),
    [
        (b"staff:x:50:web,mail\n", [Group("staff", 50, ("web", "mail"))]),
        (b"staff:x:50:\n", [Group("staff", 50)]),
        (b"staff:x:50\n", [Group("staff", 50)]),
        (b"staff:x:50:,web,, mail,\tpost ,\n", [Group("staff", 50, ("web", "mail", "post "))]),
        (b"staff:x:50:web,a:b\n", [Group("staff", 50, ("web", "a:b"))]),
        (b"staff:x:50:mail,web\r\n", [Group("staff", 50, ("mail", "web\r"))]),
        (b"staff:x:50:" + b",".join(b"u%d" % n for n in range(9999)), [Group("staff", 50, tuple(f"u{n}" for n in range(9999)))]),
        (b"staff:x\nstaff\n+\n+staff:x:0:web\n-staff:x:0:\n#staff:x:0:web\nstaff:x:x:web\n", []),
    ],
)  # fmt: skip
def test_group(line, entries):
    assert groups(line) == entries


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("1000", 1000), ("05", 5), ("00", 0), ("4294967294", 2**32 - 2), ("4294967296", 2**32),
        ("9" * 30, 2**32 - 1), ("9" * 9999, 2**32 - 1), ("0" * 9999, 0),
        ("", None), ("+5", None), ("-5", None), (" 5", None), ("5 ", None), ("0x1", None), ("1e3", None),
        ("1_000", None), ("5\n", None), ("\u0665", None), ("²", None), ("web", None),
    ],
)  # fmt: skip
def test_what_is_a_number(text, number):
    assert accounts.number(text) == number


@pytest.mark.parametrize("size", [0, 7])
def test_files(tmp_path, size):
    """As `read` finds them below a root."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"x" * size)

    def opener(path):
        return os.open(f"{tmp_path}{path}", os.O_RDONLY | os.O_NONBLOCK)

    assert accounts.read(opener) == Accounts(b"x" * size, b"")
    os.mkfifo(tmp_path / "etc/group")
    assert accounts.read(opener) == Accounts(b"x" * size, b"")
    (tmp_path / "etc/group").unlink()
    (tmp_path / "etc/group").mkdir()
    assert accounts.read(opener) == Accounts(b"x" * size, b"")


def test_a_file_that_is_too_large_is_refused_and_not_cut(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StartError, match="read /etc/passwd: it has more than 16 MiB"):
        accounts.read(lambda _: os.open(path, os.O_RDONLY))
    os.truncate(path, accounts.MAX_FILE)
    assert len(accounts.read(lambda _: os.open(path, os.O_RDONLY)).passwd) == accounts.MAX_FILE


def test_this_systems_own_files_are_read_as_its_library_does():
    """Where they have no more than files, as in a container that builds this."""
    known = accounts.read()
    for entry in known.users():
        assert (pwd.getpwnam(entry.name).pw_uid, pwd.getpwnam(entry.name).pw_gid) == (entry.uid, entry.gid)
    for group in known.groups():
        assert grp.getgrnam(group.name).gr_gid == group.gid
    assert known.passwd == Path("/etc/passwd").read_bytes()


@given(st.binary())
def test_parsers_take_anything(data):
    for entry in users(data):
        assert 0 <= entry.uid < 2**32
        assert 0 <= entry.gid < 2**32
        assert entry.name[:1] not in ("+", "-", "#")
    for group in groups(data):
        assert all(group.members)
        assert 0 <= group.gid < 2**32
