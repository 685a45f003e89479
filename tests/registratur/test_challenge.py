import pytest
from hypothesis import given
from hypothesis import strategies as st

from registratur.challenge import Challenge, parse_challenges

tokens = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", fullmatch=True)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


def written(scheme, parameters):
    quoted = (
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in parameters.items()
    )
    return f"{scheme} {', '.join(quoted)}"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a.example/token",service="s",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {"realm": "https://a.example/token", "service": "s", "scope": "repository:a/b:pull,push"},
                    "",
                )
            ],
        ),
        ('Basic realm="x"', [("basic", {"realm": "x"}, "")]),
        ("Basic realm=x", [("basic", {"realm": "x"}, "")]),
        ("BASIC", [("basic", {}, "")]),
        ("Negotiate, Basic realm=x", [("negotiate", {}, ""), ("basic", {"realm": "x"}, "")]),
        ("Negotiate dG9rZW4=, Basic realm=x", [("negotiate", {}, "dG9rZW4="), ("basic", {"realm": "x"}, "")]),
        (
            'Digest realm = "a, Basic b" , nonce=1,Bearer realm="r\\"q"',
            [("digest", {"realm": "a, Basic b", "nonce": "1"}, ""), ("bearer", {"realm": 'r"q'}, "")],
        ),
        ('Bearer realm="unfinished', [("bearer", {}, "")]),
        ("", []),
        ("   ,, ", []),
        ("=x", []),
    ],
)
def test_headers_seen_in_the_wild(header, expected):
    found = [(each.scheme, dict(each.parameters), each.token68) for each in parse_challenges([header])]
    assert found == expected


def test_several_headers():
    found = parse_challenges(["Basic realm=x", 'Bearer realm="y"'])
    assert [each.scheme for each in found] == ["basic", "bearer"]


@given(
    st.lists(
        st.tuples(tokens, st.dictionaries(tokens.map(str.lower), values, min_size=1, max_size=4)), max_size=4
    )
)
def test_round_trip(challenges):
    header = ", ".join(written(scheme, parameters) for scheme, parameters in challenges)
    assert parse_challenges([header]) == tuple(
        Challenge(scheme.lower(), pairs) for scheme, pairs in challenges
    )


@given(st.one_of(st.text(), st.from_regex(r'([A-Za-z]+ ?[a-z]*=?"?[^"]{0,8}"?[ ,\\]*){0,5}', fullmatch=True)))
def test_never_fails(header):
    assert isinstance(parse_challenges([header]), tuple)
