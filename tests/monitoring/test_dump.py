"""SIGUSR1, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

PROGRAM = """
import asyncio, itertools, sys, threading, time
from cri.monitoring.dump import Dumper

async def innermost():
    await asyncio.Event().wait()

async def outermost():
    await innermost()

async def generator():
    await asyncio.sleep(3600)
    yield

async def walk():
    async for _ in generator():
        pass

async def main():
    dumper = Dumper()
    dumper.install()
    threading.Thread(target=time.sleep, args=(3600,), name="idle", daemon=True).start()
    tasks = [asyncio.create_task(outermost(), name="waiting"), asyncio.create_task(walk(), name="walking")]
    await asyncio.sleep(0)
    print("there", flush=True)
    stuck = await asyncio.to_thread(sys.stdin.readline)
    sum(itertools.repeat(1, int(stuck)))  # nothing turns, and nobody else has the interpreter
    print("goes on", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    dumper.remove()
    print("removed", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


class Program:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "there\n"

    def say(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def until(self, end: str) -> str:
        found = ""
        while end not in found:
            line = self.process.stderr.readline()
            assert line, found
            found += line
        return found


def test_threads_and_tasks_are_told_with_all_that_they_wait_for() -> None:
    program = Program()
    program.process.send_signal(signal.SIGUSR1)
    told = program.until("end of tasks")
    assert told.index("Thread 0x") < told.index(" tasks\n")
    waiting = told.index("Task waiting:")
    assert waiting < told.index(", in outermost", waiting) < told.index(", in innermost", waiting)
    walking = told.index("Task walking:")
    assert walking < told.index(", in walk", walking)
    program.process.send_signal(signal.SIGUSR1)  # as often as wanted
    program.until("end of tasks")
    program.say("0")
    program.say("")
    while program.process.stdout.readline() != "removed\n":
        pass
    program.process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    assert program.process.poll() is None  # it would end the daemon
    program.process.communicate("\n", timeout=10)
    assert program.process.returncode == 0


def test_a_loop_that_stands_still_does_not_keep_the_threads_from_being_told() -> None:
    program = Program()
    program.say("300000000")  # seconds
    time.sleep(0.3)
    began = time.monotonic()
    program.process.send_signal(signal.SIGUSR1)
    told = program.until("in main\n")
    assert time.monotonic() - began < 1
    assert "Current thread 0x" in told
    assert "tasks" not in told + program.until("\n")
    program.until("end of tasks")  # once it turns again
    program.say("")
    program.process.communicate("\n", timeout=10)
    assert program.process.returncode == 0
