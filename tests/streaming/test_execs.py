from __future__ import annotations

import asyncio
import hashlib

import pytest

from cri.sandbox.host import StartError
from cri.sandbox.spec import TerminalSize
from cri.streaming import execs
from cri.streaming.execs import run_exec
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams


async def run(warden, container, streams, client, *argv: str, idle_timeout: float = 60) -> None:
    async with asyncio.timeout(20):
        client.outcome = await run_exec(warden, container, argv, streams, client, idle_timeout)


def shell(script: str) -> tuple[str, ...]:
    return "sh", "-c", script


@pytest.mark.parametrize(
    ("script", "code"), [("true", 0), ("exit 1", 1), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
async def test_the_client_learns_the_exit_code(warden, container, streams, client, script, code):
    client.input.put_nowait(b"")
    await run(warden, container, streams, client, *shell(script))
    assert client.outcome == Outcome(code)


async def test_outputs_are_apart(warden, container, streams, client):
    client.input.put_nowait(b"")
    await run(warden, container, streams, client, *shell("echo out; echo err >&2"))
    assert client.output == {Output.STDOUT: b"out\n", Output.STDERR: b"err\n"}


async def test_a_command_that_is_not_there(warden, container, streams, client):
    with pytest.raises(StartError, match="executable file not found"):
        await run(warden, container, streams, client, "no-such-program")


async def test_much_stdin_arrives_whole_and_its_end_too(warden, container, streams, client):
    chunk = bytes(range(256)) * 1024
    for _ in range(100):
        client.input.put_nowait(chunk)
    client.input.put_nowait(b"")
    await run(warden, container, streams, client, "sha256sum")
    assert client.output[Output.STDOUT].split()[0].decode() == hashlib.sha256(chunk * 100).hexdigest()


async def test_stdin_that_was_not_asked_for_is_empty(warden, container, client):
    await run(
        warden, container, Streams(False, True, False, False), client, *shell("cat; echo end; echo no >&2")
    )
    assert client.output == {Output.STDOUT: b"end\n", Output.STDERR: b""}


async def test_stdin_that_nobody_reads_keeps_nobody_waiting(warden, container, streams, client):
    for _ in range(100):
        client.input.put_nowait(b"x" * 65536)
    await run(warden, container, streams, client, *shell("exec 0<&-; sleep 0.2; echo done"))
    assert client.outcome == Outcome(0)
    assert client.output[Output.STDOUT] == b"done\n"


async def test_a_slow_client_gets_everything_and_the_command_waits(warden, container, streams, client):
    client.input.put_nowait(b"")
    client.reads.clear()
    running = asyncio.create_task(
        run(warden, container, streams, client, *shell("head -c 20000000 /dev/zero"))
    )
    await asyncio.sleep(0.5)
    assert warden.execs[0].process.poll() is None  # it waits, as nobody reads
    client.reads.set()
    await running
    assert len(client.output[Output.STDOUT]) == 20_000_000
    assert client.outcome == Outcome(0)


async def test_what_stays_in_the_background_does_not_hold_the_session(warden, container, streams, client):
    client.input.put_nowait(b"")
    began = asyncio.get_running_loop().time()
    await run(warden, container, streams, client, *shell("echo now; sleep 30 & exit 3"))
    assert execs.DRAIN_PATIENCE <= asyncio.get_running_loop().time() - began < 5
    assert client.outcome == Outcome(3)
    assert client.output[Output.STDOUT] == b"now\n"


async def test_a_terminal_has_the_size_from_the_start(warden, container, terminal, client):
    client.sizes.put_nowait(TerminalSize(101, 37))
    client.sizes.put_nowait(None)
    await run(warden, container, terminal, client, "stty", "size")
    assert client.output[Output.STDOUT] == b"37 101\r\n"


async def test_a_terminal_of_a_client_that_tells_no_size(warden, container, terminal, client):
    await run(warden, container, terminal, client, "stty", "size")
    assert client.output[Output.STDOUT] == b"0 0\r\n"
    assert client.outcome == Outcome(0)


async def test_a_terminal_follows_and_interrupts(warden, container, terminal, client):
    client.sizes.put_nowait(TerminalSize(80, 24))
    script = "trap 'stty size' WINCH; trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    running = asyncio.create_task(run(warden, container, terminal, client, *shell(script)))
    await client.see(b"ready")
    client.sizes.put_nowait(TerminalSize(132, 50))
    await client.see(b"50 132")
    client.input.put_nowait(b"\x03")
    await running
    assert b"interrupted" in client.output[Output.STDOUT]
    assert client.outcome == Outcome(5)


async def test_the_end_of_stdin_does_not_close_a_terminal(warden, container, terminal, client):
    client.sizes.put_nowait(TerminalSize(80, 24))
    client.input.put_nowait(b"hello\n")
    client.input.put_nowait(b"")
    await run(warden, container, terminal, client, *shell("read line; sleep 0.3; echo got $line"))
    assert b"got hello" in client.output[Output.STDOUT]


async def test_a_terminal_is_hung_up_when_its_client_goes(warden, container, terminal, client):
    client.sizes.put_nowait(TerminalSize(80, 24))
    running = asyncio.create_task(run(warden, container, terminal, client, *shell("echo ready; sleep 60")))
    await client.see(b"ready")
    client.leave()
    began = asyncio.get_running_loop().time()
    with pytest.raises(ClientGoneError):
        await running
    assert asyncio.get_running_loop().time() - began < 5  # SIGHUP, not patience, has ended it


async def test_a_command_ends_with_its_client(warden, container, streams, client, monkeypatch):
    monkeypatch.setattr(execs, "HANG_UP_PATIENCE", 0.3)
    running = asyncio.create_task(run(warden, container, streams, client, *shell("echo ready; sleep 60")))
    await client.see(b"ready")
    client.leave()
    with pytest.raises(ClientGoneError):
        await running
    assert warden.execs[0].process.poll() == -9


async def test_a_filter_ends_by_the_end_of_stdin_when_its_client_goes(warden, container, streams, client):
    running = asyncio.create_task(run(warden, container, streams, client, *shell("echo ready; cat; exit 7")))
    await client.see(b"ready")
    client.leave()
    with pytest.raises(ClientGoneError):
        await running
    assert warden.execs[0].process.poll() == 7


async def test_cancelling_leaves_nothing(warden, container, streams, client):
    running = asyncio.create_task(run(warden, container, streams, client, *shell("echo ready; sleep 60")))
    await client.see(b"ready")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert warden.execs[0].closed


async def test_a_session_in_which_nothing_moves_is_ended(warden, container, streams, client):
    began = asyncio.get_running_loop().time()
    script = "trap 'exit 0' PIPE; for i in 1 2 3; do echo $i; sleep 0.2; done; cat"
    await run(warden, container, streams, client, *shell(script), idle_timeout=0.5)
    assert asyncio.get_running_loop().time() - began > 0.9
    assert client.output[Output.STDOUT] == b"1\n2\n3\n"
    assert client.outcome is not None
    assert "nothing had moved for 0.5 s" in client.outcome.error
