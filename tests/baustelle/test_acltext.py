"""Access control lists in the words of archives."""

import struct

import pytest

from baustelle import acltext
from baustelle.errors import CorruptLayerError

PLAIN = [(1, 7, 2**32 - 1), (2, 5, 502), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 4, 2**32 - 1)]


@pytest.mark.parametrize(
    "text",
    [
        b"user::rwx,user:lisa:r-x:502,group::r-x,mask::rwx,other::r--",
        b"user::rwx,user:502:r-x,group::r-x,mask:rwx,other:r--",
        b"user::rwx\nother::r--\nmask::rwx # effective\ngroup::r-x\nuser:lisa:r-x:502\n",
        b"u::rwx,u:lisa:rx:502,g::rx,m::rwx,o::r",
        b"default:user::rwx,default:user:lisa:r-x:502,default:group::r-x,default:mask::rwx,default:other::r--",
    ],
)
def test_spellings(text):
    assert acltext.posix(text) == PLAIN
    value = acltext.attribute(text)
    assert struct.unpack("<I", value[:4]) == (2,)
    assert list(struct.iter_unpack("<HHI", value[4:])) == PLAIN
    expected = b"user::rwx,user:502:r-x,group::r-x,mask::rwx,other::r--"
    assert acltext.numeric(text, nfs4=False) == expected
    assert acltext.posix(expected) == PLAIN


def test_lists_of_nfs():
    text = b"owner@:rw-p--aARWcCos:-------:allow,user:lisa:r-----a-R-c--s:-------:allow:502,group:7:r::deny"
    expected = b"owner@:rw-p--aARWcCos:-------:allow,user:502:r-----a-R-c--s:-------:allow,group:7:r::deny"
    assert acltext.numeric(text, nfs4=True) == expected


@pytest.mark.parametrize("text", [b"user:lisa:rwx", b"group:wheel:r--:"])
def test_names_alone_say_nothing(text):
    with pytest.raises(acltext.NamesOnlyError):
        acltext.posix(text)


@pytest.mark.parametrize(
    "text", [b"x", b"user", b"user::q", b"who::rwx", b"user:1:rwx:99999999999", b"::", b":"]
)
def test_what_is_none(text):
    with pytest.raises(CorruptLayerError, match="no access control list"):
        acltext.posix(text)
    with pytest.raises(CorruptLayerError, match="no access control list"):
        acltext.numeric(text, nfs4=True)
