"""How fast something is, by two readings and the time between them."""

from __future__ import annotations

from cri.sandbox.usage import CpuUsage, Usage
from cri.stats.samples import LEAST_SPAN, first, following


def usage(total: int) -> Usage:
    return Usage(timestamp=1, cpu=CpuUsage(total=total))


def test_the_first_reading_has_no_rate() -> None:
    assert first(usage(50), 10.0, None).nano_cores is None
    assert first(usage(50), 10.0, LEAST_SPAN / 2).nano_cores is None


def test_of_a_young_container_the_first_reading_has_one() -> None:
    assert first(usage(500), 10.0, 2.0).nano_cores == 250
    young = first(usage(50), 10.0, 0.25)
    assert following(young, usage(100), 10.75).nano_cores == 100, "since its start"


def test_the_rate_is_over_the_time_between() -> None:
    before = first(usage(1000), 10.0, None)
    after = following(before, usage(3000), 12.0)
    assert after.nano_cores == 1000
    assert following(after, usage(3000), 14.0).nano_cores == 0


def test_readings_that_follow_closely_are_taken_together() -> None:
    sample = following(first(usage(0), 0.0, None), usage(1000), 1.0)
    for step in range(1, 5):
        sample = following(sample, usage(1000 + 100 * step), 1.0 + 0.1 * step)
        assert sample.nano_cores == 1000
        assert sample.usage.cpu.total == 1000 + 100 * step
    assert following(sample, usage(1600), 1.6).nano_cores == 1000


def test_a_counter_that_goes_back_begins_anew() -> None:
    sample = following(first(usage(1000), 0.0, None), usage(400), 1.0)
    assert sample.nano_cores is None
    assert following(sample, usage(500), 2.0).nano_cores == 100
