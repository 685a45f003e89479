"""The Containerfile language: what is read, and how the rest is refused."""
# ruff: noqa: PT017 - errors are looked at where they may or may not come

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baustelle.containerfile import INSTRUCTIONS, parse
from baustelle.errors import ContainerfileError


def one(line):
    return parse(f"FROM scratch\n{line}")[1]


def test_comments_and_continuations():
    text = "# first\nARG A=1\n\nfrom x\nCOPY a \\\n  # between\n\n   b \\  \n c\nCMD x # no comment"
    found = [(entry.line, entry.keyword, entry.text.split()) for entry in parse(text)]
    assert found == [
        (2, "ARG", ["A=1"]),
        (4, "FROM", ["x"]),
        (5, "COPY", ["a", "b", "c"]),
        (10, "CMD", ["x", "#", "no", "comment"]),
    ]


@pytest.mark.parametrize(
    ("line", "json"),
    [
        ('CMD ["a", "b c"]', ("a", "b c")),
        ("CMD [ -f x ]", None),
        ("CMD [1]", None),
        ("CMD []", ()),
        ('USER ["a"]', None),
    ],
)
def test_json_form(line, json):
    assert one(line).json == json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ("'a b' \"c d\" e\\ f", ["a b", "c d", "e f"]),
        ("$X ${X}y '$X' \"$X\" \\$X", ["1 2", "1 2y", "$X", "1 2", "$X"]),
        ("${N:-d} ${X:-d} ${X:+s} n${N:+s} n$N", ["d", "1 2", "s", "n", "n"]),
        ('a"b"\'c\' "" "\\q\\""', ["abc", "", '\\q"']),
        ("5$ $% a\\", ["5$", "$%", "a\\"]),
    ],
)
def test_words(text, words):
    assert one("EXPOSE x").__class__(1, "ENV", {}, text, None).words({"X": "1 2"}) == words


@pytest.mark.parametrize("text", ["'open", '"open', "${X", "${X:?no}", "${}"])
def test_open_quotes_and_braces(text):
    with pytest.raises(ContainerfileError, match="line 2: LABEL"):
        one(f"LABEL a={text}").pairs({})


def test_pairs():
    assert one("ENV A=1 B='2 3'").pairs({}) == {"A": "1", "B": "2 3"}
    assert one('ENV A  all of "this"').pairs({}) == {"A": "all of this"}
    assert one("ENV A=b=c").pairs({}) == {"A": "b=c"}
    for line in ("ENV A", "ENV A=1 B", "LABEL =x"):
        with pytest.raises(ContainerfileError, match="key=value"):
            one(line).pairs({})


def test_flags():
    entry = one("COPY --chown=1:2 --chmod=0755 a b")
    assert (entry.flags, entry.words({})) == ({"chown": "1:2", "chmod": "0755"}, ["a", "b"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RUN make", "line 2: RUN: not supported here; prepare the files"),
        ("HEALTHCHECK NONE", "probes"),
        ("NOPE x", "known are ADD, ARG"),
        ("COPY --from=a b c", "--from is not supported; only one stage"),
        ("COPY --link a b", "--link is not supported"),
        ("COPY --chown a b", "needs a value"),
        ("COPY <<EOF /x", "here-documents"),
        ("COPY", "arguments are missing"),
        ("FROM y", "only one stage"),
        ("%", "line 2: not an instruction"),
    ],
)
def test_refusals_say_where_and_what_to_do(line, message):
    with pytest.raises(ContainerfileError, match=message):
        one(line)


def test_what_comes_before_from():
    with pytest.raises(ContainerfileError, match="line 1: ENV: only ARG"):
        parse("ENV a=b\nFROM x")
    with pytest.raises(ContainerfileError, match="no FROM"):
        parse("# nothing\nARG A\n")
    with pytest.raises(ContainerfileError, match="escape"):
        parse("# escape=`\nFROM x")


@given(st.text(st.sampled_from("FROMCPYrunenv  \n\\\"'$#{}[]=:-<a1")))
def test_any_text_is_read_or_refused(text):
    try:
        for entry in parse(f"FROM scratch\n{text}"):
            assert entry.keyword in INSTRUCTIONS
            entry.words({"a": "b"})
    except ContainerfileError as error:
        assert str(error).startswith("Containerfile")


@given(
    st.text(st.characters(exclude_characters="'\n\r\0", codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]))
)
def test_single_quotes_keep_everything(text):
    if not text.endswith("\\"):
        assert one(f"LABEL a='{text}'").pairs({"x": "y"}) == {"a": text}
