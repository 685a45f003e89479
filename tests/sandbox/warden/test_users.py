"""Users and groups out of the files of an image."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.host import StartError
from cri.sandbox.spec import Credentials, GroupsPolicy, UserSpec
from cri.sandbox.warden import users

PASSWD = list(
    users.parse_passwd("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/srv/web:\n12:x:34:35::/odd:\n")
)
GROUPS = list(users.parse_group("root:x:0:\nextra:x:2000:web,other\nstaff:x:50:web\n"))


@pytest.mark.parametrize(
    ("user", "expected", "home"),
    [
        (UserSpec(), Credentials(0, 0, (0,)), "/root"),
        (UserSpec("web"), Credentials(1000, 1001, (50, 1001, 2000)), "/srv/web"),
        (UserSpec("1000"), Credentials(1000, 1001, (50, 1001, 2000)), "/srv/web"),
        (UserSpec("web:staff"), Credentials(1000, 50, (50, 2000)), "/srv/web"),
        (UserSpec("web:77"), Credentials(1000, 77, (50, 77, 2000)), "/srv/web"),
        (UserSpec("web", group=0), Credentials(1000, 0, (0, 50, 2000)), "/srv/web"),
        (UserSpec("12"), Credentials(34, 35, (35,)), "/odd"),
        (UserSpec("555"), Credentials(555, 0, (0,)), "/"),
        (UserSpec("4294967294"), Credentials(4294967294, 0, (0,)), "/"),
        (UserSpec("web", None, (9,)), Credentials(1000, 1001, (9, 50, 1001, 2000)), "/srv/web"),
        (UserSpec("web", None, (9,), GroupsPolicy.STRICT), Credentials(1000, 1001, (9, 1001)), "/srv/web"),
    ],
)
def test_resolve(user, expected, home):
    assert users.resolve(user, PASSWD, GROUPS) == (expected, home)


@pytest.mark.parametrize(
    "name", ["nobody", "-1", "4294967295", "99999999999", "1.5", "web:nogroup", "web:-3"]
)
def test_unknown_names(name):
    with pytest.raises(StartError, match="unable to find"):
        users.resolve(UserSpec(name), PASSWD, GROUPS)


def test_without_files():
    assert users.resolve(UserSpec(), [], []) == (Credentials(0, 0, (0,)), "/root")
    with pytest.raises(StartError):
        users.resolve(UserSpec("web"), [], [])


@given(st.text())
def test_parsers_take_anything(text):
    for entry in users.parse_passwd(text):
        assert 0 <= entry.uid < 2**32 - 1
    for group in users.parse_group(text):
        assert all(group.members)


def test_read_accounts(tmp_path):
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    (tmp_path / "etc/group").write_bytes(b"a:x:5:b\xff\n")
    assert users.read_accounts(str(tmp_path)) == ([], [users.GroupEntry("a", 5, ("b\udcff",))])
