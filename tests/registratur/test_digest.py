import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registratur import DigestMismatchError, InvalidDigestError, compute_digest, parse_digest
from registratur.digest import Verifier, split_digest


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_computed_digests_parse(data, algorithm):
    digest = compute_digest(data, algorithm)
    assert parse_digest(digest) == digest
    assert split_digest(digest) == (algorithm, hashlib.new(algorithm, data).hexdigest())


@given(
    st.one_of(
        st.text(), st.from_regex(r"(sha256|sha512|md5|sha1)[:+-][0-9a-fA-F]{30,130}\n?", fullmatch=True)
    )
)
def test_only_well_formed_digests_pass(text):
    algorithm, _, encoded = text.partition(":")
    good = {"sha256": 64, "sha512": 128}.get(algorithm) == len(encoded) and set(encoded) <= set(
        "0123456789abcdef"
    )
    if good:
        assert parse_digest(text) == text
    else:
        with pytest.raises(InvalidDigestError):
            parse_digest(text)


@pytest.mark.parametrize("text", ["sha256:../../etc/passwd", "sha256:" + "/" * 64, "sha256:" + "A" * 64])
def test_no_digest_is_a_path(text):
    with pytest.raises(InvalidDigestError):
        parse_digest(text)


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_verifier_accepts_the_content_in_any_pieces(chunks):
    data = b"".join(chunks)
    verifier = Verifier(compute_digest(data), len(data))
    for chunk in chunks:
        verifier.update(chunk)
    verifier.finish()


@pytest.mark.parametrize(
    ("data", "reason"), [(b"abx", "hashes to"), (b"ab", "ended after 2"), (b"abcd", "longer than")]
)
def test_verifier_refuses_other_content(data, reason):
    def judge(verifier):
        verifier.update(data)
        verifier.finish()

    with pytest.raises(DigestMismatchError, match=reason):
        judge(Verifier(compute_digest(b"abc"), 3))
