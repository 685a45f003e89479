"""Joining work, and undoing it."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from cri.sandbox.shared_work import SharedWork
from cri.sandbox.undo import UndoStack
from registratur import Credentials


async def give_up(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.wait([task])


class Work:
    """Counts how often it is done, and waits to be let go."""

    def __init__(self) -> None:
        self.times = 0
        self.go_on = asyncio.Event()

    async def __call__(self) -> int:
        self.times += 1
        await self.go_on.wait()
        return self.times


async def test_callers_share_what_is_under_way():
    shared, work = SharedWork("test"), Work()
    callers = [asyncio.create_task(shared.run("key", work)) for _ in range(3)]
    await asyncio.sleep(0)
    assert shared.busy("key")
    work.go_on.set()
    assert [await caller for caller in callers] == [1, 1, 1]
    assert not shared.busy("key")
    assert await shared.run("key", work) == 2


async def test_work_goes_on_without_its_caller_and_the_result_waits_for_the_retry():
    shared, work = SharedWork("test", keep_unheard=True), Work()
    caller = asyncio.create_task(shared.run("key", work, fingerprint=1))
    await asyncio.sleep(0)
    await give_up(caller)
    work.go_on.set()
    await shared.settle()
    assert await shared.run("key", work, fingerprint=1) == 1
    assert await shared.run("key", work, fingerprint=1) == 2, "heard once, a result is gone"


async def test_an_unheard_result_is_not_for_others():
    shared, work = SharedWork("test", keep_unheard=True), Work()
    work.go_on.set()
    caller = asyncio.create_task(shared.run("key", work, fingerprint=1))
    await asyncio.sleep(0)
    await give_up(caller)
    await shared.settle()
    assert await shared.run("key", work, fingerprint=2) == 2
    shared.forget("key")


async def test_another_fingerprint_waits_and_does_its_own():
    shared, first, second = SharedWork("test"), Work(), Work()
    one = asyncio.create_task(shared.run("key", first, fingerprint=1))
    two = asyncio.create_task(shared.run("key", second, fingerprint=2))
    await asyncio.sleep(0.01)
    assert second.times == 0
    first.go_on.set()
    second.go_on.set()
    await asyncio.gather(one, two)
    assert (first.times, second.times) == (1, 1)


async def test_failure_reaches_all_and_is_not_kept():
    shared = SharedWork("test", keep_unheard=True)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("gone")

    results = await asyncio.gather(*(shared.run("key", fail) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, LookupError]
    with pytest.raises(LookupError):
        await shared.run("key", fail)


async def test_undo_runs_backwards_to_its_end_whatever_fails():
    done: list[str] = []

    def note(name: str, *, fails: bool = False):
        async def action() -> None:
            done.append(name)
            if fails:
                raise OSError("cannot")

        return action

    with pytest.raises(LookupError, match="cause"):
        async with UndoStack("test") as undo:
            undo.push("first", note("first"))
            undo.push("second", note("second", fails=True))
            undo.push("third", note("third"))
            raise LookupError("cause")
    assert done == ["third", "second", "first"]


async def test_nothing_is_undone_on_success():
    async with UndoStack("test") as undo:
        undo.push("step", lambda: pytest.fail("undone"))


async def test_undo_survives_cancellation():
    done: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(0.05)
        done.append("undone")

    async def transition() -> None:
        async with UndoStack("test") as undo:
            undo.push("step", slow)
            await asyncio.sleep(60)

    task = asyncio.create_task(transition())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.1)
    assert done == ["undone"]


async def test_what_fails_unheard_is_told_without_the_secrets_of_its_key():
    shared, go_on = SharedWork("test"), asyncio.Event()

    async def fail() -> None:
        await go_on.wait()
        raise ValueError("no more")

    key = ("image", Credentials("robot", "Eiszapfen"))
    with capture_logs() as told:
        caller = asyncio.create_task(shared.run(key, fail))
        await asyncio.sleep(0)
        await give_up(caller)
        go_on.set()
        await shared.settle()
    (line,) = told
    # No object: a writer of JSON may know how to take one apart.
    assert line["key"] == str(key)
    assert "Eiszapfen" not in str(line)
