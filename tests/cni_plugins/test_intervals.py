"""Intervals against a model of them: a set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.intervals import Intervals

numbers = st.integers(0, 40)


@given(numbers, numbers, st.lists(numbers), st.lists(st.tuples(st.booleans(), numbers)))
def test_they_are_a_set(first, last, holes, changes):
    intervals, model = Intervals(first, last, holes), set(range(first, last + 1)) - set(holes)
    for add, number in changes:
        if add:
            intervals.add(number)
            model.add(number)
        else:
            intervals.remove(number)
            model.discard(number)
        for at in range(-1, 43):
            assert (at in intervals) == (at in model)
            assert intervals.next_from(at) == min((one for one in model if one >= at), default=None)


@given(st.lists(numbers))
def test_neighbours_are_one_interval(holes):
    intervals = Intervals(0, 40, holes)
    for hole in holes:
        intervals.add(hole)
    assert (intervals._firsts, intervals._lasts) == ([0], [40])


def test_an_ipv6_subnet_costs_no_more_than_its_holes():
    intervals = Intervals(0, 2**64 - 1)
    intervals.remove(2**63)
    assert intervals.next_from(2**63) == 2**63 + 1
    assert len(intervals._firsts) == 2
