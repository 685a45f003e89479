"""Long JSON is read as the standard library reads it, in pieces."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from registratur import long_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=8),
    max_leaves=60,
)
SHORT_PIECES = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def short(monkeypatch):
    """Everything is long, and a piece is short."""
    monkeypatch.setattr(long_json, "LONG", 0)
    monkeypatch.setattr(long_json, "PIECE", 24)
    monkeypatch.setattr(long_json, "PAUSE", 0)


@SHORT_PIECES
@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_every_document_means_the_same(short, value, indent, ascii_only) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert long_json.loads(text) == json.loads(text) == value


@SHORT_PIECES
@given(st.text(st.sampled_from('[]{},:"\\ \n01e-.ntrufalse\x01é'), max_size=40))
@example("[,1]")
@example("[1,,2,3,4]")
@example("[1,2,]")
@example('{"a":1,}')
@example('{"a":1,"b"}')
@example('{,"a":1}')
@example('{1:2,"a":3}')
@example('["\\')
@example('{"a":1,"a":2,"b":3,"a":4}')
@example("[[[[")
@example("1 2")
@example("")
@example(' \n{"a": [1, 2, {"b": "}],"}]} ')
def test_what_is_no_json_is_refused_alike(short, text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            long_json.loads(text)
    else:
        assert long_json.loads(text) == expected


def without(value, is_read, path=()):
    """What is left of a value when long_json has passed over what is not read, if all of that is long."""
    if isinstance(value, list):
        return [without(one, is_read, path) for one in value]
    if not isinstance(value, dict):
        return value
    left = {}
    for key, one in value.items():
        below = (*path, key.casefold())
        emptied = isinstance(one, dict | list) and not is_read(below)
        left[key] = type(one)() if emptied else without(one, is_read, below)
    return left


@SHORT_PIECES
@given(VALUES, st.sampled_from([None, 1]))
@example({"a": {"": {"ß" * 30: ["x" * 30]}}, "B": [{"c": {"d": "y" * 30}}], "e": "z" * 30}, None)
def test_what_nobody_reads_is_left_out(short, monkeypatch, value, indent) -> None:
    def is_read(path) -> bool:
        assert path == tuple(key.casefold() for key in path)
        return len(path[-1]) % 2 == 1

    monkeypatch.setattr(long_json, "PIECE", 0)  # everything goes one by one
    text = json.dumps(value, indent=indent)
    assert long_json.loads(text, is_read) == without(value, is_read)


@SHORT_PIECES
@given(st.text(st.sampled_from('[]{},:"\\ \n01e-.ntrufalse\x01é'), max_size=40))
@example('{"a": [1,]}')
@example('{"a": {"b": [1, 2}}')
def test_what_nobody_reads_is_looked_at(short, text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            long_json.loads(text, lambda _: False)
    else:
        long_json.loads(text, lambda _: False)


def test_depth_is_bounded(short) -> None:
    with pytest.raises(RecursionError):
        long_json.loads("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    "document",
    [
        {"config": {"Labels": {f"label{number}": "x" * 90 for number in range(66_000)}}},
        {"history": [{"created_by": "y" * 100, "empty_layer": True} for _ in range(50_000)]},
        {"config": {"Env": [f"NAME{number}=value" for number in range(300_000)]}},
    ],
    ids=["labels", "history", "env"],
)
def test_other_threads_go_on_meanwhile(document, monkeypatch) -> None:
    """The longest that another thread waits is a part of the time that the whole takes, in one call of the parser."""
    monkeypatch.setattr(long_json, "MAX_VALUES", 1_000_000)
    text = json.dumps(document)
    began = time.perf_counter()
    json.loads(text)
    whole = time.perf_counter() - began
    done, longest = threading.Event(), [0.0]

    def watch() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.0005)
            now = time.perf_counter()
            longest[0] = max(longest[0], now - last)
            last = now

    ratios = []
    for _ in range(5):
        done.clear()
        longest[0] = 0.0
        watcher = threading.Thread(target=watch)
        watcher.start()
        assert long_json.loads(text) == document
        done.set()
        watcher.join()
        ratios.append(longest[0] / whole)
    print(f"longest wait, as a part of the whole: {[round(ratio, 2) for ratio in ratios]}")
    assert min(ratios) < 0.9


@pytest.mark.parametrize(
    "one", ['"ab"', "{}", "[]", '{"a": [1, 2]}', "[[1], [2]]", '{"a": 1, "b": 2}', "[[[]]]"]
)
def test_what_is_kept_of_a_long_document_is_bounded(one):
    text = f'{{"kept": [{",".join([one] * 110_000)}]}}'
    with pytest.raises(long_json.TooManyValuesError, match="more than 100000 values"):
        long_json.loads(text)
    assert long_json.loads(text, lambda path: path != ("kept",)) == {"kept": []}
    members = ",".join(f'"{number}": {one}' for number in range(110_000))
    with pytest.raises(long_json.TooManyValuesError):
        long_json.loads(f"{{{members}}}")
