"""What survives a full collection is spared, but not for ever."""

from __future__ import annotations

import gc
import weakref

import pytest

from cri import garbage
from cri.garbage import Sparing


class Knot:
    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def sparing():
    made = []

    def make(everything: float) -> Sparing:
        made.append(Sparing(everything))
        return made[-1]

    yield make
    for one in made:
        one.end()
    gc.collect()


def test_survivors_are_not_looked_at_again(sparing) -> None:
    sparing(3600).begin()
    knot = Knot()
    gc.collect()
    before = gc.get_freeze_count()
    gone = weakref.ref(knot)
    assert before > 1000
    del knot
    gc.collect()
    assert gone() is not None
    young = weakref.ref(Knot())
    gc.collect()
    assert young() is None


def test_once_in_a_while_everything_is_looked_at(sparing) -> None:
    sparing(0).begin()
    knot = Knot()
    gone = weakref.ref(knot)
    gc.freeze()
    del knot
    gc.collect()
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_the_collector_is_left_as_it_was(sparing) -> None:
    before = list(gc.callbacks)
    one = sparing(3600)
    one.begin()
    one.end()
    one.end()
    assert gc.callbacks == before
    assert gc.get_freeze_count() == 0


def test_collections_wait_for_all_who_have_paused_them() -> None:
    assert gc.isenabled()
    with garbage.paused():
        with pytest.raises(ValueError, match="inside"), garbage.paused():
            raise ValueError("inside")
        assert not gc.isenabled()
    assert gc.isenabled()
