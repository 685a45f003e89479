"""Wardens over their life: reconnection, death, execs, logs, and what is left when all is over."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cni_plugins.rtnetlink import Routes
from cri.sandbox.host import DisconnectedError, HostError, StartError, UnfitRequestError, WardenGoneError
from cri.sandbox.spec import Namespaces, ProcessSpec, Resources, Sharing, UserSpec
from cri.sandbox.warden import protocol
from cri.sandbox.warden.supervisor import socket_path

pytestmark = pytest.mark.node


async def gone(pid: int, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            await asyncio.sleep(0.01)


async def test_a_later_daemon_finds_the_warden(node, pod):
    spec = pod.container("sleep", "1000")
    started = await pod.start(spec)
    await pod.warden.disconnect()
    node.host._spawner.close()
    assert node.lost == []

    found = await node.host.find_warden(pod.spec)
    assert found is not None
    pod.warden = found
    (state,) = await found.containers()
    assert state.started == started
    await found.kill(spec.id)
    record = await anext(found.exits())
    assert (record.container_id, record.exit_code, record.signal) == (spec.id, 137, 9)
    await found.forget(spec.id)
    assert await found.containers() == []


async def test_exits_while_no_daemon_is_there(node, pod):
    spec = pod.container("sh", "-c", "sleep 0.3; exit 9")
    await pod.start(spec)
    await pod.warden.disconnect()
    await asyncio.sleep(0.6)
    found = await node.host.find_warden(pod.spec)
    assert found is not None
    pod.warden = found
    (state,) = await found.containers()
    assert state.exited is not None
    assert state.exited.exit_code == 9


async def test_no_warden_is_found_after_shutdown(node, pod):
    pid = pod.warden.pid
    await pod.start(pod.container("sleep", "1000"))
    await pod.warden.shutdown()
    await gone(pid)
    assert await node.host.find_warden(pod.spec) is None
    assert node.lost == []
    with pytest.raises(WardenGoneError):
        await pod.warden.containers()


async def test_twenty_wardens_are_found_within_a_second(node):
    pods = [await node.pod() for _ in range(20)]
    for pod in pods:
        await pod.warden.disconnect()
    start = time.monotonic()
    for pod in pods:
        found = await node.host.find_warden(pod.spec)
        assert found is not None
        pod.warden = found
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("sharing", [Sharing.CONTAINER, Sharing.POD, Sharing.NODE])
async def test_a_warden_that_is_killed_takes_its_containers_along(node, sharing):
    pod = await node.pod(namespaces=Namespaces(pid=sharing))
    spec = pod.container("sleep", "1000")
    started = await pod.start(spec)
    waiting = asyncio.ensure_future(anext(pod.warden.exits(), None))
    os.kill(pod.warden.pid, signal.SIGKILL)
    await gone(started.pid)
    assert await waiting is None
    assert node.lost == [pod.spec.id]
    with pytest.raises(WardenGoneError):
        await pod.warden.signal(spec.id, 15)
    assert await node.host.find_warden(pod.spec) is None
    await node.host.stop_sandbox(pod.spec, None)


async def test_a_container_that_escapes_the_warden_s_death_is_killed_by_cgroup(node):
    pod = await node.pod(namespaces=Namespaces(pid=Sharing.NODE))
    spec = pod.container("sh", "-c", "setsid sleep 1000 & sleep 1000")
    await pod.start(spec)
    await asyncio.sleep(0.2)
    group = node.host._group(spec)
    os.kill(pod.warden.pid, signal.SIGKILL)
    await asyncio.sleep(0.2)
    assert group.processes()
    await node.host.stop_sandbox(pod.spec, None)
    assert not group.processes()
    assert not Path(group.directories["memory"]).exists()


async def test_signals_do_not_end_a_warden(pod):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pod.warden.pid, number)
    assert (await pod.run("true"))[0].exit_code == 0


async def test_containers_get_default_signals(pod):
    _, output = await pod.run("grep", "Sig", "/proc/self/status")
    assert re.findall(r"Sig(?:Blk|Ign|Cgt):\s*(\w+)", output) == ["0" * 16] * 3


async def test_exec(pod):
    process = ProcessSpec(
        ("sleep", "1000"), env=("A=1", os.fsdecode(b"ODD=\xff")), cwd="/tmp", user=UserSpec("web")
    )
    spec = pod.container(process=process)
    await pod.start(spec)
    code, output = await pod.exec(spec, "sh", "-c", "id -u; pwd; env; hostname; exit 5", env=("B=2",))
    assert code == 5
    assert {"1000", "/tmp", "A=1", "B=2", "HOME=/home/web", os.fsdecode(b"ODD=\xff"), "web-0"} <= set(
        output.split("\n")
    )
    code, output = await pod.exec(spec, "grep", "-E", "Cap(Eff|Bnd)|NoNew|Sig(Blk|Ign)", "/proc/self/status")
    assert "CapEff:\t0000000000000000" in output
    assert "CapBnd:\t00000000a80425fb" in output
    assert "SigIgn:\t0000000000000000" in output
    assert (await pod.exec(spec, "sh", "-c", "kill -9 $$"))[0] == 137
    code, output = await pod.exec(spec, "ls", "/proc/self/fd")
    assert output.split() == ["0", "1", "2", "3"]
    with pytest.raises(StartError, match=r"not found in \$PATH"):
        await pod.exec(spec, "nothing")


async def test_exec_streams(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    stdin, feed = os.pipe()
    reading, writing = os.pipe()
    running = await pod.warden.exec(
        spec.id, ProcessSpec(("tr", "a-z", "A-Z")), stdin=stdin, stdout=writing, stderr=None
    )
    os.close(stdin)
    os.close(writing)
    os.write(feed, b"hello")
    os.close(feed)
    assert await running.wait() == 0
    assert os.read(reading, 100) == b"HELLO"
    assert os.read(reading, 100) == b""
    os.close(reading)
    await running.close()


async def test_exec_on_a_terminal(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    running = await pod.warden.exec(
        spec.id, ProcessSpec(("sh", "-c", "tty; exit 4"), tty=True), stdin=None, stdout=None, stderr=None
    )
    assert running.pty is not None
    assert await running.wait() == 4
    assert os.read(running.pty, 100) == b"/dev/pts/0\r\n"
    await running.close()


async def test_exec_ends_while_its_child_keeps_the_pipe(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    reading, writing = os.pipe()
    running = await pod.warden.exec(
        spec.id,
        ProcessSpec(("sh", "-c", "echo x; sleep 100 & exit 3")),
        stdin=None,
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    async with asyncio.timeout(5):
        assert await running.wait() == 3
    assert os.read(reading, 10) == b"x\n"
    os.close(reading)
    await running.close()


async def test_killing_an_exec_ends_all_that_it_started(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    group = pod.node.host._group(spec)
    running = await pod.start_exec(
        spec, "sh", "-c", "(setsid sh -c '(setsid sleep 99 &)'); sleep 100 & sleep 101"
    )
    await asyncio.sleep(0.3)
    assert len(group.processes()) == 4
    await running.kill()
    assert await running.wait() == 137
    async with asyncio.timeout(5):
        while len(group.processes()) != 1:
            await asyncio.sleep(0.01)
    await running.kill()
    await running.close()


async def test_a_connection_that_dies_takes_its_execs_along(node, pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    other = await node.host.find_warden(pod.spec)
    running = await other.exec(spec.id, ProcessSpec(("sleep", "100")), stdin=None, stdout=None, stderr=None)
    await other.disconnect()
    await gone(running.pid)
    assert len(await pod.warden.containers()) == 1
    with pytest.raises(DisconnectedError):
        await running.wait()


async def test_exec_in_a_container_that_has_ended(pod):
    spec = pod.container("true")
    await pod.start(spec)
    await pod.exit_of(spec)
    with pytest.raises(HostError, match="it is not running"):
        await pod.exec(spec, "true")
    with pytest.raises(HostError, match="its warden has not started it"):
        await pod.warden.kill("nobody")
    await pod.warden.signal(spec.id, 15)
    await pod.warden.kill(spec.id)
    await pod.warden.forget(spec.id)
    await pod.warden.forget(spec.id)


async def test_many_execs_at_once(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    results = await asyncio.gather(*(pod.exec(spec, "sh", "-c", f"echo {n}; exit {n}") for n in range(40)))
    assert results == [(n, f"{n}\n") for n in range(40)]


async def test_a_big_message(pod):
    spec = pod.container(process=ProcessSpec(("sh", "-c", "echo ${#BIG}"), env=("BIG=" + "x" * 100_000,)))
    await pod.start(spec)
    await pod.exit_of(spec)
    assert pod.output(spec) == "100000"
    sleeper = pod.container("sleep", "100", name="d")
    await pod.start(sleeper)
    code, _output = await pod.exec(sleeper, "sh", "-c", "echo ${#BIG}", env=("BIG=" + "\udcff" * 90_000,))
    assert code == 0


async def test_bad_messages_are_answered_and_harm_nothing(pod):
    spec = pod.container("sleep", "100", name="sleeps")
    await pod.start(spec)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(socket_path(pod.spec))
        assert protocol.receive(channel)[0]["hello"] == pod.spec.id
        bad = [
            b"{",
            b"[]",
            b'"x"',
            b"\xff",
            b"[" * 30000,
            b"{}",
            b'{"id": 1, "op": "fly"}',
            b'{"id": 1, "op": ["x"]}',
        ]
        bad += [
            b'{"id": 1, "op": "start"}',
            b'{"id": 1, "op": "signal", "container": {}}',
            b'{"id":1,"op":"exec","container":1}',
            b'{"id":1,"op":"attach","container":1}',
            b'{"id":1,"op":"attach","container":"%s","stdio":[true,true,true]}' % spec.id.encode(),
            b'{"id":1,"op":"attach","container":"%s","stdio":[true]}' % spec.id.encode(),
            b'{"id":1,"op":"attach","container":"%s","stdio":7}' % spec.id.encode(),
            b'{"id":1,"op":"detach"}',
            b'{"id":1,"op":"detach","attach":[]}',
        ]
        bad += [
            b'{"spilled": 1}',
            b'{"id":1,"op":"socket","family":"x","type":1,"protocol":0}',
            b"x" * 100_000,
        ]
        for data in bad:
            channel.send(data)
            message, descriptors = protocol.receive(channel)
            protocol.close_all(descriptors)
            if "hello" not in message:
                assert "error" in message, data
    assert (await pod.run("true"))[0].exit_code == 0


async def test_sockets_of_the_pod(node, pod):
    stack = node.host.network_stack(pod.spec, pod.warden)
    inside = await asyncio.to_thread(stack.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0)
    inside.close()
    server = await pod.warden.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.close()
    own = Path(f"/proc/{pod.warden.pid}/ns/net").stat().st_ino
    assert os.fstat(stack.move_target).st_ino == own != Path("/proc/self/ns/net").stat().st_ino
    stack.close()
    stack.close()
    with pytest.raises(HostError):
        await pod.warden.socket(12345, 1)


async def test_sysctls_of_interfaces_wait_for_them(node):
    asked = {
        "net.ipv4.conf.dum0.rp_filter": "2",
        "net.ipv4.conf.all.rp_filter": "1",
        "net.ipv6.conf.dum0.stable_secret": "::1",
    }
    pod = await node.pod(sysctls=asked)
    stack = node.host.network_stack(pod.spec, pod.warden)

    def read(name):
        return asyncio.to_thread(stack.sysctl, name)

    assert await read("net.ipv4.conf.all.rp_filter") == "1"
    with pytest.raises(UnfitRequestError, match=r'the pod has no interface "dum0" on its network'):
        await node.host.network_attached(pod.spec, pod.warden)

    def appear():
        with Routes.of(stack) as routes:
            routes.link_add_bridge("dum0", "02:00:00:00:00:01")

    await asyncio.to_thread(appear)
    await node.host.network_attached(pod.spec, pod.warden)
    assert await read("net.ipv4.conf.dum0.rp_filter") == "2"
    assert await read("net.ipv6.conf.dum0.stable_secret") == "0000:0000:0000:0000:0000:0000:0000:0001"
    for name, value, reason in [
        ("no_such", "1", "no such sysctl"),
        ("rp_filter", "x", "not take this value"),
    ]:
        spec = replace(pod.spec, sysctls={f"net.ipv4.conf.dum0.{name}": value})
        with pytest.raises(UnfitRequestError, match=reason):
            await node.host.network_attached(spec, pod.warden)
    stack.close()


async def test_sysctls_of_the_pod(node, pod):
    stack = node.host.network_stack(pod.spec, pod.warden)
    own = Path("/proc/sys/net/ipv4/ip_forward").read_text()

    def exchange(*arguments):
        return asyncio.to_thread(stack.sysctl, *arguments)

    before = await exchange("net.ipv4.ip_forward", "1")
    assert before in ("0", "1")
    assert await exchange("net/ipv4/ip_forward", "0") == "1"
    assert await exchange("net.ipv4.ip_forward") == "0"
    assert await exchange("net.ipv4.tcp_rmem", "4096 65536 131072")
    assert (await exchange("net.ipv4.tcp_rmem")).split() == ["4096", "65536", "131072"]
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == own
    for name, value in [
        ("kernel.shmmax", None),
        ("kernel.hostname", "elsewhere"),
        ("net/../kernel/hostname", "elsewhere"),
        ("net.no.such", None),
        ("net.ipv4.ip_forward", "many"),
        ("net.ipv4.ip_forward", "\ud800"),
        ("net.ipv4.ip_forward\0", None),
    ]:
        with pytest.raises(OSError, match=r"sysctl"):
            await exchange(name, value)
    stack.close()
    await pod.warden.disconnect()
    with pytest.raises(OSError):
        await exchange("net.ipv4.ip_forward")
    pod.warden = await node.host.find_warden(pod.spec)  # to be ended with the others


async def test_a_second_start_is_refused(pod):
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    with pytest.raises(HostError, match="started already"):
        await pod.warden.start(spec)


async def test_log_rotation_under_load_loses_nothing(pod):
    lines = 200_000
    spec = pod.container("sh", "-c", f"seq 1 {lines}; printf end")
    await pod.start(spec)
    log = Path(spec.log_path)
    rotated = []
    ending = asyncio.ensure_future(pod.exit_of(spec))
    while not ending.done():
        rotated.append(log.with_name(f"log.{len(rotated)}"))
        log.rename(rotated[-1])
        await pod.warden.reopen_log(spec.id)
        await asyncio.sleep(0.01)
    await ending
    await asyncio.sleep(0.05)
    data = b"".join(path.read_bytes() for path in [*rotated, log])
    records = data.decode().splitlines()
    pattern = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout ([FP]) (.*)")
    parsed = [pattern.fullmatch(record) for record in records]
    assert all(parsed)
    assert [match[2] for match in parsed] == [*map(str, range(1, lines + 1)), "end"]
    assert parsed[-1][1] == "P"


async def test_a_log_that_cannot_be_opened(pod, tmp_path):
    spec = replace(pod.container("true"), log_path=str(tmp_path / "no" / "log"))
    with pytest.raises(HostError, match=r"open .*/no/log: No such file"):
        await pod.start(spec)


async def test_a_full_disk_does_not_stop_the_container(pod):
    spec = pod.container("sh", "-c", "seq 1 10000; exit 3")
    await pod.node.host.create_container(spec)
    with Path("/dev/full").open("wb") as full:
        await pod.warden.start(spec, full.fileno())
    assert (await pod.exit_of(spec)).exit_code == 3


async def test_a_background_child_does_not_hold_the_exit_back(node):
    pod = await node.pod(namespaces=Namespaces(pid=Sharing.NODE))
    spec = pod.container("sh", "-c", "setsid sleep 100 & echo done; exit 2")
    await pod.start(spec)
    assert (await pod.exit_of(spec, seconds=3)).exit_code == 2
    assert pod.output(spec) == "done"


async def test_fifty_sandboxes_leave_nothing(node):
    def processes() -> int:
        return sum(1 for path in Path("/proc").iterdir() if path.name.isdigit() and mine(path))

    def mine(path: Path) -> bool:
        with contextlib.suppress(OSError):
            return path.joinpath("comm").read_text().strip() in ("cri-jails-pod", "cri-jails-init", "sleep")
        return False

    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    mounts = Path("/proc/self/mountinfo").read_text()
    for number in range(50):
        pod = await node.pod(namespaces=Namespaces(pid=Sharing.POD if number % 5 == 0 else Sharing.CONTAINER))
        await pod.start(pod.container("sleep", "54321", resources=Resources(memory_limit=32 << 20)))
        await pod.remove()
        node.pods[-1].containers.clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert list((node.directory / "run").iterdir()) == []
    assert list((node.directory / "state/cgroups").iterdir()) == []
    for root in node.host._hierarchies.roots():
        parent = Path(root, "cri-jails")
        assert not [path for path in parent.glob("*") if path.name.startswith(f"test-{os.getpid()}-")]
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                assert b"54321" not in path.joinpath("cmdline").read_bytes()


async def test_leftovers(node):
    kept, lost = await node.pod(), await node.pod()
    first, second = kept.container("sleep", "100"), lost.container("sleep", "100")
    await kept.start(first)
    await lost.start(second)
    pid = lost.warden.pid
    lost.warden._ours = True  # this daemon has forgotten it
    await node.host.snapshots.begin("sha256:" + "b" * 64, None)
    kept_name = Path(kept.spec.runtime_directory).name
    removed = await node.host.leftovers([kept_name], [first.id])
    assert len(removed) == 3
    await gone(pid)
    assert not Path(lost.spec.runtime_directory).exists()
    assert not Path(node.host._group(second).directories["memory"]).exists()
    assert len(await kept.warden.containers()) == 1


async def test_the_spawner_is_started_again_if_it_dies(node):
    os.kill(node.host._spawner._pid, signal.SIGKILL)
    pod = await node.pod()
    assert (await pod.run("true"))[0].exit_code == 0


async def test_a_warden_that_cannot_listen(node):
    with pytest.raises(HostError, match="choose a shorter runtime directory"):
        await node.pod(runtime_directory=str(node.directory / ("x" * 100)))


async def test_a_sandbox_whose_maker_gave_up_ends_itself(node):
    runtime = node.directory / "run" / "given-up"
    making = asyncio.ensure_future(node.pod(runtime_directory=str(runtime)))
    while not (runtime / "warden.sock").exists():
        await asyncio.sleep(0)
        assert not making.done()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    async with asyncio.timeout(5):
        while (runtime / "warden.sock").exists():
            await asyncio.sleep(0.01)
    assert node.lost == []


async def test_arguments_with_a_nul(pod):
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    for argv in (("echo", "a\0b"), ("a\0b",)):
        with pytest.raises(HostError, match="a NUL byte inside"):
            await pod.exec(spec, *argv)
        with pytest.raises(HostError, match="a NUL byte inside"):
            await pod.start(pod.container(*argv, name=f"n{len(argv)}"))


async def test_a_cancelled_exec_is_killed(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    group = pod.node.host._group(spec)
    for delay in (0, 0.0005, 0.002, 0.01):
        starting = asyncio.ensure_future(pod.start_exec(spec, "sleep", "100"))
        await asyncio.sleep(delay)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            running = await starting
            await running.close()
    async with asyncio.timeout(5):
        while len(group.processes()) != 1:
            await asyncio.sleep(0.01)
