"""Sets of whole numbers that are mostly runs: what is free in a range, of a /16 as well as of an IPv6 /64."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Intervals:
    """The numbers from `first` to `last` but for some, kept as sorted intervals that do not touch each other.

    Memory grows with the number of holes, not of numbers. Every method costs a binary search; changing the number of
    intervals moves a part of a list too, which at 30,000 intervals takes about ten microseconds.
    """

    @classmethod
    def of(cls, numbers: Iterable[int] = ()) -> Intervals:
        """Return the set of some numbers."""
        made = cls(0, -1)
        for number in numbers:
            made.add(number)
        return made

    def __init__(self, first: int, last: int, without: Iterable[int] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        begin = first
        for hole in sorted(set(without)):
            if first <= hole <= last:
                self._append(begin, hole - 1)
                begin = hole + 1
        self._append(begin, last)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def next_from(self, number: int) -> int | None:
        """Return the least member that is not below a number."""
        at = bisect_left(self._lasts, number)
        return max(self._firsts[at], number) if at < len(self._lasts) else None

    def remove(self, number: int) -> None:
        """Take a member out; nothing happens if it is none."""
        if number not in self:
            return
        at = bisect_right(self._firsts, number) - 1
        first, last = self._firsts[at], self._lasts[at]
        if first == last:
            del self._firsts[at], self._lasts[at]
        elif number == first:
            self._firsts[at] = number + 1
        elif number == last:
            self._lasts[at] = number - 1
        else:
            self._firsts.insert(at + 1, number + 1)
            self._lasts.insert(at, number - 1)

    def add(self, number: int) -> None:
        """Put a number in; nothing happens if it is there."""
        if number in self:
            return
        at = bisect_right(self._firsts, number)  # of the interval that follows
        joins_before = at > 0 and self._lasts[at - 1] == number - 1
        joins_after = at < len(self._firsts) and self._firsts[at] == number + 1
        if joins_before and joins_after:
            del self._lasts[at - 1], self._firsts[at]
        elif joins_before:
            self._lasts[at - 1] = number
        elif joins_after:
            self._firsts[at] = number
        else:
            self._firsts.insert(at, number)
            self._lasts.insert(at, number)

    def _append(self, first: int, last: int) -> None:
        if first <= last:
            self._firsts.append(first)
            self._lasts.append(last)
