"""Threads that somebody else starts."""

import asyncio
import threading

import pytest

from baustelle.starting import Starter
from baustelle.unpack import Whiteouts, unpack_stream


async def no_more(*_):
    """Bytes that end at once."""
    for chunk in ():
        yield chunk


def test_threads_run():
    done = [threading.Event() for _ in range(20)]
    starter, failures = Starter(), []
    for one in done:
        starter.start(threading.Thread(target=one.set), failures.append)
    assert all(one.wait(10) for one in done)
    assert not failures


@pytest.mark.parametrize("first", [True, False], ids=["the starter", "a thread"])
def test_where_there_can_be_no_more_it_is_told_and_the_next_one_runs(monkeypatch, first):
    starter, failures, told, done = Starter(), [], threading.Event(), threading.Event()
    if not first:
        starter.start(threading.Thread(target=done.set), failures.append)
        assert done.wait(10)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    def failed(error):
        failures.append(error)
        told.set()
        raise RuntimeError("Event loop is closed")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        if first:
            with pytest.raises(RuntimeError, match="closed"):
                starter.start(threading.Thread(), failed)
        else:
            starter.start(threading.Thread(), failed)
        assert told.wait(10)
    assert [str(error) for error in failures] == ["can't start new thread"]
    done.clear()
    starter.start(threading.Thread(target=done.set), failures.append)
    assert done.wait(10)


async def test_an_unpack_without_a_thread_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("baustelle.unpack.STARTER", Starter())

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="can't start"):
            await unpack_stream(no_more(), tmp_path, whiteouts=Whiteouts.APPLY)
