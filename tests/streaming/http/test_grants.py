"""Tokens: for one use, soon over, not too many, and fit for a URL."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.errors import ResourceExhaustedError
from cri.streaming.grants import Grants


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_token_is_for_one_use():
    grants = Grants()
    token = grants.issue("it")
    assert grants.redeem(token) == "it"
    assert grants.redeem(token) is None
    assert grants.redeem("") is None


def test_tokens_are_long_different_and_fit_for_urls():
    grants = Grants()
    tokens = {grants.issue("x") for _ in range(500)}
    assert len(tokens) == 500
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,}", token) for token in tokens)


def test_the_life_of_a_token():
    clock = Clock()
    grants = Grants(life=60, clock=clock)
    first, second = grants.issue(1), grants.issue(2)
    clock.now += 59.9
    assert grants.redeem(first) == 1
    clock.now += 0.1
    assert grants.redeem(second) is None


def test_a_full_table_takes_no_more_until_some_are_over_or_used():
    clock = Clock()
    grants = Grants(3, life=60, clock=clock)
    tokens = [grants.issue(number) for number in range(3)]
    with pytest.raises(ResourceExhaustedError, match="3 streaming requests wait"):
        grants.issue(3)
    grants.redeem(tokens[1])
    clock.now += 30
    late = grants.issue(3)
    clock.now += 30
    assert grants.issue(4)
    assert len(grants) == 2
    assert grants.redeem(late) == 3


@given(st.lists(st.one_of(st.just("issue"), st.integers(0, 20), st.floats(0.0, 40.0))))
def test_like_a_table_that_is_swept_all_the_time(steps):
    clock = Clock()
    grants = Grants(5, life=60, clock=clock)
    model: dict[str, tuple[float, int]] = {}
    issued: list[str] = []
    for step in steps:
        model = {token: entry for token, entry in model.items() if entry[0] > clock.now}
        if isinstance(step, float):
            clock.now += step
        elif step == "issue":
            if len(model) >= 5:
                with pytest.raises(ResourceExhaustedError):
                    grants.issue(-1)
                continue
            token = grants.issue(len(issued))
            model[token] = (clock.now + 60, len(issued))
            issued.append(token)
        elif step < len(issued):
            expected = model.pop(issued[step], (0.0, None))[1]
            assert grants.redeem(issued[step]) == expected
        assert len(grants) <= 5
