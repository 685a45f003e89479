"""Users and groups as a spec asks for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.host import StartError
from cri.sandbox.spec import Credentials, GroupsPolicy, UserSpec
from cri.sandbox.warden import users
from cri.sandbox.warden.accounts import Accounts

FILES = Accounts(
    b"root:x:0:0:root:/root:/bin/sh\n"
    b"12:x:0:0::/evil:\n"
    b"web:x:1000:1001::/srv/web:\n"
    b"web:x:0:0::/second:\n"
    b"twin:x:1000:7::/twin:\n"
    b"1000:x:0:0::/evil:\n"
    b"+5:x:0:0::/evil:\n"
    b"-1:x:0:0::/evil:\n"
    b"0x1:x:9:9::/odd:\n"
    b"99999999999:x:0:0::/evil:\n"
    b"lost:x:99999999999:0::/:\n"
    b"astray:x:44:4294967295::/:\n",
    b"root:x:0:\n"
    b"1001:x:0:\n"
    b"extra:x:2000:web,other\n"
    b"staff:x:50:web\n"
    b"staff:x:0:\n"
    b"wheel:x:10:12,1000,twin\n"
    b"lost:x:4294967295:web\n",
)


@pytest.mark.parametrize(
    ("user", "expected", "home"),
    [
        (UserSpec(), Credentials(0, 0, (0,)), "/root"),
        (UserSpec("web"), Credentials(1000, 1001, (50, 1001, 2000)), "/srv/web"),
        (UserSpec("1000"), Credentials(1000, 1001, (50, 1001, 2000)), "/srv/web"),
        (UserSpec("01000"), Credentials(1000, 1001, (50, 1001, 2000)), "/srv/web"),
        (UserSpec("twin"), Credentials(1000, 7, (7, 10)), "/twin"),
        (UserSpec("web:staff"), Credentials(1000, 50, (50, 2000)), "/srv/web"),
        (UserSpec("web:77"), Credentials(1000, 77, (50, 77, 2000)), "/srv/web"),
        (UserSpec("1000:1001"), Credentials(1000, 1001, (50, 1001, 2000)), "/srv/web"),
        (UserSpec("web:"), Credentials(1000, 1001, (50, 1001, 2000)), "/srv/web"),
        (UserSpec(":77"), Credentials(0, 77, (77,)), "/root"),
        (UserSpec("web", group=0), Credentials(1000, 0, (0, 50, 2000)), "/srv/web"),
        (UserSpec("web:nogroup", group=5), Credentials(1000, 5, (5, 50, 2000)), "/srv/web"),
        (UserSpec("12"), Credentials(12, 0, (0,)), "/"),
        (UserSpec("0x1"), Credentials(9, 9, (9,)), "/odd"),
        (UserSpec("astray", group=5), Credentials(44, 5, (5,)), "/"),
        (UserSpec("555"), Credentials(555, 0, (0,)), "/"),
        (UserSpec("4294967294"), Credentials(4294967294, 0, (0,)), "/"),
        (UserSpec("web", None, (9,)), Credentials(1000, 1001, (9, 50, 1001, 2000)), "/srv/web"),
        (UserSpec("web", None, (9, 50)), Credentials(1000, 1001, (9, 50, 1001, 2000)), "/srv/web"),
        (UserSpec("web", None, (9,), GroupsPolicy.STRICT), Credentials(1000, 1001, (9, 1001)), "/srv/web"),
        (UserSpec("12", 3, (9,), GroupsPolicy.STRICT), Credentials(12, 3, (3, 9)), "/"),
    ],
)
def test_resolve(user, expected, home):
    assert users.resolve(user, FILES) == (expected, home)


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "-1",
        "+5",
        "+0",
        " 0",
        "0 ",
        "0\n",
        "1.5",
        "0b0",
        "\u0660",
        "web:nogroup",
        "web:-3",
        "web:+0",
        "web:a:b",
    ],
)
def test_unknown_names(name):
    with pytest.raises(StartError, match="unable to find"):
        users.resolve(UserSpec(name), FILES)


@pytest.mark.parametrize(
    "user",
    [
        UserSpec("4294967295"),
        UserSpec("4294967296"),
        UserSpec("99999999999"),
        UserSpec("18446744073709551616"),
        UserSpec("9" * 5000),
        UserSpec("lost"),
        UserSpec("astray"),
        UserSpec("web:lost"),
        UserSpec("web:4294967296"),
        UserSpec("web", group=-1),
        UserSpec("web", group=2**40),
        UserSpec("web", None, (5, -1)),
        UserSpec("web", None, (2**32 - 1,)),
    ],
)
def test_ids_out_of_range(user):
    with pytest.raises(StartError, match=r"out of range: ids are from 0 to 4294967294"):
        users.resolve(user, FILES)


def test_without_files():
    assert users.resolve(UserSpec(), Accounts()) == (Credentials(0, 0, (0,)), "/root")
    assert users.resolve(UserSpec("5:6"), Accounts()) == (Credentials(5, 6, (6,)), "/")
    with pytest.raises(StartError):
        users.resolve(UserSpec("web"), Accounts())


@given(st.text(), st.binary(), st.binary())
def test_whatever_is_asked_for_of_whatever_files(user, passwd, group):
    try:
        found, home = users.resolve(UserSpec(user), Accounts(passwd, group))
    except StartError:
        return
    assert all(0 <= one < 2**32 - 1 for one in (found.uid, found.gid, *found.groups))
    assert home


@given(st.integers(0, 2**32 - 2), st.binary())
def test_a_number_is_that_id_whatever_the_files_say(uid, passwd):
    found, _ = users.resolve(UserSpec(str(uid), group=1), Accounts(passwd))
    assert found.uid == uid
