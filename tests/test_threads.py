"""Threads that end with those who wait for them."""

import asyncio
import threading
import time

import pytest

from cri import threads
from cri.threads import in_own_thread, threaded


async def test_results_and_errors():
    assert await threaded(lambda check: (check(), 7)[1]) == 7

    def fail(check):
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await threaded(fail)


async def test_the_thread_has_ended_before_the_task():
    begun, ended = threading.Event(), threading.Event()

    def work(check):
        begun.set()
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            time.sleep(0.05)
            ended.set()

    task = asyncio.create_task(threaded(work))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_where_there_can_be_no_more_threads_the_call_fails(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    assert await in_own_thread(int, "7") == 7  # there is a starter now
    monkeypatch.setattr(threads, "_idle", [])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match="can't start"):
                await in_own_thread(int, "7")
            with pytest.raises(RuntimeError, match="can't start"):
                await threaded(lambda _: 7)
    assert await threaded(lambda _: 7) == 7
