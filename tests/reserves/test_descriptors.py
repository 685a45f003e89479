"""Descriptors are there for removals, whoever has used up the others."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cri.errors import ResourceExhaustedError
from cri.reserves import DescriptorReserve
from cri.reserves.descriptors import reserve_size


@pytest.fixture
def few():
    """A process that may open little more than it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 60, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def use_up() -> list[int]:
    taken = []
    while True:
        try:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return taken


def give_back(taken: list[int], count: int | None = None) -> None:
    for _ in range(len(taken) if count is None else count):
        os.close(taken.pop())


def test_what_is_lent_can_be_opened_and_is_taken_back(few: None) -> None:
    reserve = DescriptorReserve(20)
    assert reserve.whole
    taken = use_up()
    with reserve.lent():
        with reserve.lent():
            lent = use_up()
            assert len(lent) == 20
            give_back(lent)
        assert not use_up_is_impossible(20)
    assert use_up() == []
    assert reserve.whole
    give_back(taken)
    reserve.close()


def use_up_is_impossible(count: int) -> bool:
    lent = use_up()
    free = len(lent)
    give_back(lent)
    return free != count


def test_what_others_have_taken_is_taken_back_when_they_let_go(few: None) -> None:
    reserve = DescriptorReserve(20)
    reserve.demand("a pod")
    with reserve.lent():
        reserve.demand("a pod, while another one is stopped")
        taken = use_up()
        with pytest.raises(ResourceExhaustedError):
            reserve.demand("a pod")
    assert not reserve.whole
    with pytest.raises(ResourceExhaustedError, match=r"a pod: the daemon is out of descriptors.*remove pods"):
        reserve.demand("a pod")
    give_back(taken)
    reserve.demand("a pod")
    assert reserve.whole
    reserve.close()


def test_it_takes_what_there_is(few: None) -> None:
    taken = use_up()
    give_back(taken, 5)
    reserve = DescriptorReserve(20)
    assert not reserve.whole
    with reserve.lent():
        lent = use_up()
        assert len(lent) == 5
        give_back(lent)
    give_back(taken)
    assert reserve.whole
    reserve.close()
    reserve.close()


def test_a_failure_in_the_block_takes_them_back(few: None) -> None:
    reserve = DescriptorReserve(20)
    with pytest.raises(ZeroDivisionError), reserve.lent():
        1 / 0  # noqa: B018
    assert reserve.whole
    reserve.close()


def test_they_are_taken_back_later(few: None) -> None:
    due = []
    reserve = DescriptorReserve(20, due.append)
    taken = use_up()
    for _ in range(2):
        with reserve.lent():
            pass
    lent = use_up()
    assert len(lent) == 20
    with reserve.lent():
        for take_back in due:
            take_back()  # somebody has borrowed again: not now
        give_back(lent)
    assert not use_up_is_impossible(20)
    due.pop()()
    assert use_up() == []
    assert reserve.whole
    give_back(taken)
    reserve.close()


def test_threads() -> None:
    reserve = DescriptorReserve(8)
    before = len(list(Path("/dev/fd").iterdir()))

    def borrow(_: int) -> None:
        with reserve.lent():
            os.close(os.open(os.devnull, os.O_RDONLY))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(borrow, range(500)))
    assert reserve.whole
    assert len(list(Path("/dev/fd").iterdir())) == before
    reserve.close()


def test_they_are_closed_on_exec() -> None:
    reserve = DescriptorReserve(8)
    assert not any(os.get_inheritable(descriptor) for descriptor in reserve._held)
    reserve.close()


@pytest.mark.parametrize(("limit", "size"), [(128, 32), (1024, 64), (1048576, 64), (20, 5)])
def test_its_size_follows_the_limit(monkeypatch, limit: int, size: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert reserve_size() == size


def test_the_limit_is_raised_and_what_it_was_is_told() -> None:
    program = (
        "import resource; from cri.reserves import raise_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))\n"
        "print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE), raise_limit())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "(100, 300) (300, 300) (300, 300)\n"
