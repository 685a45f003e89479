"""Pods and containers on a FreeBSD kernel: the driver, wardens and jails of a daemon, without gRPC."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from cri.api.runtime import v1
from cri.errors import CRIError
from cri.sandbox import wire
from cri.sandbox.host import HostError, StartError
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.spec import Credentials, ProcessSpec, TerminalSize

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]  # an emulated machine is slow

HOST_NETWORK = v1.LinuxPodSandboxConfig(
    security_context=v1.LinuxSandboxSecurityContext(
        namespace_options=v1.NamespaceOption(network=v1.NamespaceMode.NODE, pid=v1.NamespaceMode.CONTAINER)
    )
)


def context(**fields):
    return v1.LinuxContainerConfig(security_context=v1.LinuxContainerSecurityContext(**fields))


def limits(**fields):
    return v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(**fields))


def mount(source, target, **fields):
    return v1.Mount(host_path=str(source), container_path=target, **fields)


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


async def test_a_pod_is_a_vnet_jail_and_a_container_its_child(machine):
    pod = await machine.pod("web")
    container = await machine.container(pod)
    names = run("jls", "-h", "jid", "name", "vnet", "host.hostname").splitlines()[1:]
    by_name = {line.split()[1]: line.split()[2:] for line in names}
    assert by_name[f"cri-{pod}"] == ["new", "web"]
    assert by_name[f"cri-{pod}.c{container}"] == ["inherit", "web"]
    assert (await machine.sh(container, "hostname; id -u; pwd")).split()[:1] == ["web"]


async def test_exec_tells_output_and_code(machine):
    container = await machine.container(await machine.pod())
    result = await machine.exec(container, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 7)
    assert (await machine.exec(container, "sh", "-c", "kill -9 $$")).exit_code == 137
    with pytest.raises(StartError, match="executable file not found"):
        await machine.exec(container, "nosuch")


async def test_exec_timeout_kills_everything_it_started(machine):
    container = await machine.container(await machine.pod())
    with pytest.raises(CRIError, match="took more than"):
        await machine.exec(
            container,
            "sh",
            "-c",
            "sleep 4321 & (sleep 4322 & ) ; timeout 999 sleep 4323 & sleep 4324",
            limit=3,
        )
    until = time.monotonic() + 10
    while "432" in (seen := await machine.sh(container, "ps -axo command")) and time.monotonic() < until:
        await asyncio.sleep(0.2)
    assert "sleep 432" not in seen


async def test_a_container_sees_its_own_processes_only(machine):
    pod = await machine.pod()
    await machine.container(pod, "sleep", "4441", name="other")
    container = await machine.container(pod, "sleep", "4442")
    seen = await machine.sh(container, "ps -axo command")
    assert "sleep 4442" in seen
    assert "sleep 4441" not in seen


async def test_log_exit_code_and_streams(machine):
    container = await machine.container(await machine.pod(), "sh", "-c", "echo out; echo err >&2; exit 3")
    record = await machine.ended(container)
    assert (record.exit_code, record.reason) == (3, "Error")
    assert sorted(machine.log(container)) == ["stderr F err", "stdout F out"]


async def test_stop_asks_first_and_kills_what_is_deaf(machine):
    pod = await machine.pod()
    polite = await machine.container(
        pod, "sh", "-c", "trap 'exit 42' TERM; while :; do sleep 0.2; done", name="a"
    )
    deaf = await machine.container(pod, "sh", "-c", "trap '' TERM; while :; do sleep 1; done", name="b")
    await asyncio.sleep(1)
    await asyncio.gather(machine.pods.stop_container(polite, 60), machine.pods.stop_container(deaf, 3))
    assert (await machine.ended(polite)).exit_code == 42
    record = await machine.ended(deaf)
    assert (record.exit_code, record.reason) == (137, "Error")
    assert f"c{deaf}" not in run("jls", "name")


async def test_what_daemonizes_ends_with_its_container(machine):
    script = "(sleep 5551 &) ; (sh -c 'sleep 5552 & exit' &) ; sleep 1; exit 0"
    container = await machine.container(await machine.pod(), "sh", "-c", script)
    await machine.ended(container)
    until = time.monotonic() + 10
    while "sleep 555" in (seen := run("ps", "-axo", "command")) and time.monotonic() < until:
        await asyncio.sleep(0.2)
    assert "sleep 555" not in seen


async def test_users_groups_and_directories(machine):
    pod = await machine.pod()
    named = await machine.container(
        pod, name="a", linux=context(run_as_username="user"), working_dir="/work/deep"
    )
    assert (await machine.sh(named, "pwd; touch /x || true; echo $HOME")).split()[0] == "/work/deep"
    status = run("ps", "-o", "uid,gid,command", "-p", str(machine.pods.container(named).record.pid))
    assert status.splitlines()[1].split()[:2] == ["1000", "1000"]
    assert machine.pods.container(named).credentials.groups == (1000, 2000)
    strict = await machine.container(
        pod,
        name="b",
        linux=context(
            run_as_user=v1.Int64Value(1000),
            run_as_group=v1.Int64Value(7),
            supplemental_groups=[8],
            supplemental_groups_policy=v1.SupplementalGroupsPolicy.Strict,
        ),
    )
    assert machine.pods.container(strict).credentials.groups == (7, 8)
    with pytest.raises(StartError, match="unable to find user nobody-here"):
        await machine.container(pod, name="c", linux=context(run_as_username="nobody-here"))


async def test_devices_are_the_harmless_ones(machine):
    container = await machine.container(await machine.pod())
    seen = set((await machine.sh(container, "ls /dev")).split())
    assert {"null", "zero", "random", "urandom", "fd", "stdin", "stdout", "stderr"} <= seen
    assert not {"mem", "kmem", "pf", "devctl", "vtbd0", "ada0", "da0", "bpf", "mdctl", "io"} & seen
    assert await machine.sh(container, "echo x > /dev/null && echo ok; ls /dev/fd") != ""


async def test_a_device_that_is_given(machine):
    container = await machine.container(
        await machine.pod(),
        devices=[v1.Device(host_path="/dev/klog", container_path="/dev/klog", permissions="rw")],
    )
    assert "/dev/klog" in await machine.sh(container, "ls -l /dev/klog")


async def test_volumes(machine, directory):
    volume = directory / "volume"
    (volume / "inner").mkdir(parents=True)
    (volume / "file").write_text("of the node\n")
    (directory / "single").write_text("one file\n")
    (directory / "termination").touch()
    container = await machine.container(
        await machine.pod(),
        mounts=[
            mount(volume, "/data"),
            mount(volume, "/frozen", readonly=True),
            mount(directory / "single", "/etc/single"),
            mount(directory / "termination", "/dev/termination-log"),
            mount(volume / "inner", "/data/made/below"),
        ],
    )
    assert await machine.sh(container, "cat /data/file /etc/single") == "of the node\none file\n"
    assert await machine.sh(container, "echo back > /data/back; echo end > /dev/termination-log") == ""
    assert (volume / "back").read_text() == "back\n"
    assert (directory / "termination").read_text() == "end\n"
    assert "ead-only file system" in await machine.sh(container, "touch /frozen/x")
    await machine.pods.remove_container(container)
    assert (volume / "back").exists()


async def test_what_cannot_be_mounted_is_refused(machine, directory):
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
    pod = await machine.pod()
    with pytest.raises(HostError, match="directories and regular files only"):
        await machine.container(pod, mounts=[mount(directory / "socket", "/s")])
    with pytest.raises(CRIError, match="PROPAGATION_BIDIRECTIONAL"):
        await machine.container(
            pod, mounts=[mount(directory, "/d", propagation=v1.MountPropagation.PROPAGATION_BIDIRECTIONAL)]
        )
    assert not machine.pods.containers


async def test_read_only_root(machine, directory):
    volume = directory / "volume"
    volume.mkdir()
    container = await machine.container(
        await machine.pod(), linux=context(readonly_rootfs=True), mounts=[mount(volume, "/data")]
    )
    assert "ead-only file system" in await machine.sh(container, "touch /x")
    assert await machine.sh(container, "touch /data/x; echo > /dev/null; ls /data") == "x\n"


async def test_links_of_the_image_lead_nowhere_else(machine, directory):
    outside = directory / "outside"
    outside.mkdir()
    pod = await machine.pod()
    root = await machine.host.snapshots.begin(f"sha256:{'2' * 64}", None)
    await machine.host.snapshots.abort(f"sha256:{'2' * 64}")
    assert not root.exists()
    first = await machine.container(
        pod, "sh", "-c", f"ln -s {outside} /trap; mkdir /share; sleep 3600", name="a"
    )
    volume = directory / "volume"
    volume.mkdir()
    (volume / "trap").symlink_to(outside)
    container = await machine.container(
        pod, name="b", mounts=[mount(volume, "/data"), mount(volume, "/data/trap/new")]
    )
    assert list(outside.iterdir()) == []
    assert await machine.sh(first, "ls /") != ""
    await machine.pods.remove_container(container)
    assert list(outside.iterdir()) == []


async def test_limits_are_rules(machine):
    container = await machine.container(
        await machine.pod(),
        linux=limits(
            memory_limit_in_bytes=64 << 20, cpu_quota=50_000, cpu_period=100_000, unified={"pids.max": "5"}
        ),
    )
    name = f"cri-{machine.pods.container(container).spec.sandbox_id}.c{container}"
    rules = run("rctl", "-n", f"jail:{name}")
    for rule in ("memoryuse:sigkill=67108864", "pcpu:deny=50", "maxproc:deny=5"):
        assert f"jail:{name}:{rule}" in rules
    assert "fork" in await machine.sh(container, "for i in 1 2 3 4 5 6 7 8; do sleep 3 & done; wait")
    update = v1.LinuxContainerResources(cpu_quota=20_000, cpu_period=100_000)
    from cri.sandbox.limits import resources

    await machine.pods.container(container).update(resources(update, machine.host.features), update)
    rules = run("rctl", "-n", f"jail:{name}")
    assert "pcpu:deny=20" in rules
    assert "pcpu:deny=50" not in rules
    assert "memoryuse:sigkill=67108864" in rules
    await machine.pods.remove_container(container)
    assert name not in run("rctl")


async def test_an_update_that_fails_changes_nothing(machine):
    from cri.sandbox.limits import resources

    container = await machine.container(
        await machine.pod(),
        linux=limits(memory_limit_in_bytes=64 << 20, cpu_quota=50_000, cpu_period=100_000),
    )
    name = f"cri-{machine.pods.container(container).spec.sandbox_id}.c{container}"
    jid = machine.kernel.jail_find(name).jid
    cpus, rules = machine.kernel.jail_cpus_now(jid), run("rctl", "-n", f"jail:{name}")
    assert 0 in cpus
    assert "memoryuse:sigkill=67108864" in rules

    async def update(**fields):
        message = v1.LinuxContainerResources(**fields)
        await machine.pods.update_container(container, resources(message, machine.host.features), message)

    for fields in (
        {"cpuset_cpus": "0", "cpu_quota": 1 << 62},
        {"cpuset_cpus": "999", "memory_limit_in_bytes": 128 << 20},
        {"memory_limit_in_bytes": 128 << 20, "unified": {"memory.high": "1"}},
    ):
        with pytest.raises((HostError, CRIError)):
            await update(**fields)
        assert machine.kernel.jail_cpus_now(jid) == cpus
        assert run("rctl", "-n", f"jail:{name}") == rules
    await update(cpuset_cpus="0", memory_limit_in_bytes=128 << 20)
    assert machine.kernel.jail_cpus_now(jid) == {0}
    assert "memoryuse:sigkill=134217728" in run("rctl", "-n", f"jail:{name}")
    await machine.pods.stop_container(container, 0)
    with pytest.raises(CRIError, match="its limits cannot change"):
        await update(cpu_quota=10_000)
    await machine.pods.remove_container(container)
    assert name not in run("rctl")


async def test_the_stop_signal_of_an_image_for_linux(machine):
    """10 is SIGUSR1 there; a shell of this system's own has 30 for it."""
    script = "trap 'exit 5' USR1; while :; do sleep 0.1; done"
    container = await machine.container(await machine.pod(), "sh", "-c", script)
    held = machine.pods.container(container)
    held.record = held.record.replace(stop_signal="10")
    held.spec = wire.replace(held.spec, os="linux")
    assert machine.pods.stop_signal(held) == 30
    await asyncio.sleep(2)  # for the trap
    await machine.pods.stop_container(container, 60)
    assert (await machine.ended(container)).exit_code == 5


async def test_memory_limit_is_reported_as_oom(machine):
    # It grows in steps that racct, which looks once a second, can follow.
    script = "x=0123456789abcdef; while :; do x=$x$x; [ ${#x} -lt 10000000 ] || sleep 3; done"
    container = await machine.container(
        await machine.pod(), "sh", "-c", script, linux=limits(memory_limit_in_bytes=32 << 20)
    )
    record = await machine.ended(container, 120)
    assert (record.exit_code, record.reason) == (137, "OOMKilled")


async def test_what_is_set_aside_is_not_used(machine):
    """Runtimes set aside far more than they use, a fork reserves all once more, and the kubelet wants no swap: none of it ends a program."""
    script = """if True:
        import mmap, os, sys
        private = mmap.MAP_PRIVATE | mmap.MAP_ANON
        aside = mmap.mmap(-1, 64 << 30, private, 0)
        untouched = mmap.mmap(-1, 256 << 20, private)
        used = b"x" * (24 << 20)
        pid = os.fork()
        if not pid:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        try:
            mmap.mmap(-1, 1 << 30, private)
        except OSError:  # EINVAL, which is what the kernel makes of a shortage
            print("refused")
    """
    node = [mount(path, path, readonly=True) for path in (sys.base_prefix, "/lib", "/usr/lib")]
    for together in (0, 64 << 20):
        container = await machine.container(
            await machine.pod(f"pod{together}"),
            name=f"c{together}",
            mounts=node,
            linux=limits(memory_limit_in_bytes=64 << 20, memory_swap_limit_in_bytes=together),
        )
        result = await machine.exec(container, os.path.realpath(sys.executable), "-c", script)
        assert (result.exit_code, result.stdout, result.stderr) == (0, b"refused\n", b"")


async def test_what_execs_have_reserved_is_given_back(machine):
    """swapuse is wrong in one direction: too low. Else a container could do less with every probe."""
    container = await machine.container(await machine.pod(), linux=limits(memory_limit_in_bytes=64 << 20))
    name = f"cri-{machine.pods.container(container).spec.sandbox_id}.c{container}"

    def reserved() -> int:
        return machine.kernel.rctl_usage(f"jail:{name}:")["swapuse"]

    before = reserved()
    for _ in range(20):
        assert (await machine.exec(container, "sh", "-c", "echo $(echo x)")).exit_code == 0
    assert reserved() <= before


async def test_host_network(machine):
    pod = await machine.pod("hostnet", linux=HOST_NETWORK)
    container = await machine.container(pod)
    assert await machine.sh(container, "hostname") == run("hostname")
    assert machine.pods.sandbox(pod).addresses == []


async def test_privileged_and_annotations(machine):
    pod = await machine.pod()
    with pytest.raises(HostError, match="operator allows only"):
        await machine.container(pod, annotations={"org.freebsd.jail.allow.mount.nullfs": "true"})
    with pytest.raises(HostError, match="no such annotation"):
        await machine.container(pod, annotations={"org.freebsd.jail.nonsense": "1"})
    container = await machine.container(pod, annotations={"org.freebsd.jail.allow.mlock": "true"})
    names = run("jls", "-n", "name", "allow.mlock", "allow.chflags")
    line = next(line for line in names.splitlines() if f"c{container}" in line)
    assert "allow.mlock" in line.split()
    assert "allow.nochflags" in line.split()


class Attached:
    """Somebody who is attached to a container, with our ends of the streams."""

    async def attach(self, machine, container, *, stdin=True):
        running, self.warden = machine.pods.running(container)
        said, self.stdin = os.pipe()
        self.stdout, heard = os.pipe()
        try:
            self.attachment = await self.warden.attach(
                running.spec.id, stdin=said if stdin else None, stdout=heard, stderr=None
            )
        finally:
            os.close(said)
            os.close(heard)
        return self

    def say(self, data):
        os.write(self.stdin, data)

    async def hear(self, size, seconds=60):
        """So many bytes, or less at the end."""
        got = b""
        async with asyncio.timeout(seconds):
            while len(got) < size:
                more = await asyncio.to_thread(os.read, self.stdout, size - len(got))
                if not more:
                    break
                got += more
        return got

    async def hear_until(self, text, seconds=60):
        got = b""
        async with asyncio.timeout(seconds):
            while text not in got:
                more = await asyncio.to_thread(os.read, self.stdout, 65536)
                assert more, got
                got += more
        return got

    async def wait(self, seconds=60):
        async with asyncio.timeout(seconds):
            return await self.attachment.wait()

    def end_stdin(self):
        os.close(self.stdin)
        self.stdin = -1

    async def close(self):
        await self.attachment.close()
        for fd in (self.stdin, self.stdout):
            if fd >= 0:
                os.close(fd)


async def test_attached_ones_talk_to_cat(machine):
    container = await machine.container(await machine.pod(), "cat", stdin=True)
    first = await Attached().attach(machine, container)
    second = await Attached().attach(machine, container)
    first.say(b"one\n")
    assert await first.hear(4) == b"one\n"
    first.end_stdin()
    second.say(b"two\n")
    assert await first.hear(4) == b"two\n"
    assert await second.hear(8) == b"one\ntwo\n"
    await first.close()
    second.say(b"three\n")
    assert await second.hear(6) == b"three\n"
    assert machine.log(container) == ["stdout F one", "stdout F two", "stdout F three"]
    await machine.pods.stop_container(container, 0)
    assert await second.wait() == ""
    await second.close()


async def test_attached_stdin_once_is_the_end(machine):
    container = await machine.container(await machine.pod(), "cat", stdin=True, stdin_once=True)
    client = await Attached().attach(machine, container)
    data = b"0123456789abcdef" * 20_000
    hearing = asyncio.ensure_future(client.hear(len(data) + 1))
    await asyncio.to_thread(client.say, data)
    client.end_stdin()
    assert await hearing == data
    assert await client.wait() == ""
    await client.close()
    assert (await machine.ended(container)).exit_code == 0


async def test_attached_terminal_and_its_size(machine):
    container = await machine.container(await machine.pod(), "sh", stdin=True, tty=True)
    client = await Attached().attach(machine, container)
    for height, width in ((25, 81), (50, 132)):
        termios.tcsetwinsize(client.attachment.pty, (height, width))
        client.say(b"stty size\n")
        await client.hear_until(f"{height} {width}\r\n".encode())
    client.end_stdin()
    other = await Attached().attach(machine, container)
    other.say(b"echo $((40 + 2))\n")
    await client.hear_until(b"42\r\n")
    other.say(b"exit 3\n")
    assert (await machine.ended(container)).exit_code == 3
    assert await client.wait() == await other.wait() == ""
    await client.close()
    await other.close()


async def test_an_exec_finds_its_terminal_in_size(machine):
    container = await machine.container(await machine.pod())
    running, warden = machine.pods.running(container)
    process = ProcessSpec(("stty", "size"), tty=True, terminal_size=TerminalSize(132, 43))
    executed = await warden.exec(running.spec.id, process, stdin=None, stdout=None, stderr=None)
    assert os.read(executed.pty, 100) == b"43 132\r\n"
    assert await executed.wait() == 0
    await executed.close()


async def test_exec_without_a_terminal_beside_one(machine):
    """Its streams are its own, in both directions, and the log has nothing of it."""
    shell = await machine.container(await machine.pod(), "cat", tty=True, stdin=True)
    running, warden = machine.pods.running(shell)
    assert (await machine.exec(shell, "sh", "-c", "echo out; echo err >&2; exit 7")).stdout == b"out\n"
    said, stdin = os.pipe()
    stdout, heard = os.pipe()
    process = ProcessSpec(("sh", "-c", "tty; cat"))
    executed = await warden.exec(running.spec.id, process, stdin=said, stdout=heard, stderr=None)
    os.close(said)
    os.close(heard)
    assert executed.pty is None
    os.write(stdin, b"not for the shell\n")
    os.close(stdin)
    assert await executed.wait() == 0
    assert os.read(stdout, 100) == b"not a tty\nnot for the shell\n"
    os.close(stdout)
    await executed.close()
    on_terminal = ProcessSpec(("tty",), tty=True)
    executed = await warden.exec(running.spec.id, on_terminal, stdin=None, stdout=None, stderr=None)
    assert b"/dev/pts/" in os.read(executed.pty, 100)
    assert await executed.wait() == 0
    await executed.close()
    assert machine.log(shell) == []


async def test_a_number_is_an_id_whatever_the_image_says(machine, directory):
    passwd, group = directory / "passwd", directory / "group"
    passwd.write_text("root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n+web:x:0:0::/:\n")
    group.write_text("wheel:x:0:\n1000:x:0:\n")
    mounts = [mount(passwd, "/etc/passwd"), mount(group, "/etc/group")]
    pod = await machine.pod()
    container = await machine.container(pod, mounts=mounts, linux=context(run_as_username="1000:1000"))
    assert machine.pods.container(container).credentials == Credentials(1000, 1000, (1000,))
    status = run("ps", "-o", "uid,gid", "-p", str(machine.pods.container(container).record.pid))
    assert status.splitlines()[1].split() == ["1000", "1000"]
    for name, reason in (("+web", "unable to find user"), ("4294967295", "out of range")):
        with pytest.raises(StartError, match=reason):
            await machine.container(
                pod, name=name.strip("+"), mounts=mounts, linux=context(run_as_username=name)
            )


async def test_attached_but_never_reading(machine):
    script = "read x; dd if=/dev/zero bs=1m count=8 2>/dev/null | tr '\\0' x"
    container = await machine.container(await machine.pod(), "sh", "-c", script, stdin=True)
    idle = await Attached().attach(machine, container)
    gone = await Attached().attach(machine, container, stdin=False)
    os.close(gone.stdout)
    gone.stdout = -1
    idle.say(b"go\n")
    assert "it has taken too little for 1 s" in await idle.wait()
    assert "nobody reads" in await gone.wait()
    assert (await machine.ended(container)).exit_code == 0
    assert sum(len(line.split(" ", 2)[2]) for line in machine.log(container)) == 8 << 20
    await idle.close()
    await gone.close()


async def test_attached_and_slow(machine, directory):
    expected = b"".join(b"%d\n" % number for number in range(750_000))
    (directory / "numbers").write_bytes(expected)
    container = await machine.container(
        await machine.pod(),
        *("sh", "-c", "read x; cat /numbers"),
        stdin=True,
        mounts=[mount(directory / "numbers", "/numbers", readonly=True)],
    )
    client = await Attached().attach(machine, container)
    client.say(b"go\n")
    got = b""
    while piece := await client.hear(256 * 1024):
        got += piece
        await asyncio.sleep(0.1)
    assert got == expected
    assert await client.wait() == ""
    await client.close()
    await machine.ended(container)
    assert machine.log(container) == [f"stdout F {number}" for number in range(750_000)]


async def test_attached_to_a_connection_that_dies(machine):
    container = await machine.container(await machine.pod(), "cat", stdin=True)
    client = await Attached().attach(machine, container)
    await machine.crash()
    assert await client.hear(1) == b""
    await machine.start()
    later = await Attached().attach(machine, container)
    later.say(b"hello\n")
    assert await later.hear(6) == b"hello\n"
    await later.close()
    await client.close()


async def test_terminal(machine):
    container = await machine.container(await machine.pod(), "sh", "-c", "tty; stty size; sleep 1", tty=True)
    await machine.ended(container)
    assert any("/dev/pts/" in line for line in machine.log(container))


async def test_pods_reach_each_other_and_the_host(machine):
    first, second = await machine.pod("a"), await machine.pod("b")
    address = machine.pods.sandbox(second).addresses[0]
    run("ping", "-c", "1", "-t", "10", address)
    del first


async def test_daemon_may_die_and_come_back(machine):
    pod = await machine.pod()
    runs = await machine.container(pod, "sh", "-c", "while :; do echo tick; sleep 0.5; done", name="a")
    ends = await machine.container(pod, "sh", "-c", "sleep 3; exit 42", name="b")
    pid = machine.pods.container(runs).record.pid
    await machine.crash()
    await asyncio.sleep(6)
    await machine.start()
    assert machine.pods.container(runs).record.pid == pid
    assert machine.pods.container(runs).state is ContainerState.RUNNING
    assert (await machine.ended(ends)).exit_code == 42
    assert await machine.sh(runs, "echo hello") == "hello\n"


async def test_a_killed_warden_takes_its_pod_with_it(machine):
    pod = await machine.pod()
    container = await machine.container(pod)
    os.kill(machine.pods.sandbox(pod).warden.pid, signal.SIGKILL)
    record = await machine.ended(container)
    assert record.exit_code == 255
    async with asyncio.timeout(30):
        while machine.pods.sandbox(pod).state is not SandboxState.NOTREADY:
            await asyncio.sleep(0.1)
        while f"cri-{pod}" in run("jls", "name"):
            await asyncio.sleep(0.1)


async def test_a_lost_database(machine):
    pod = await machine.pod()
    container = await machine.container(pod)
    await machine.crash()
    for path in Path(machine.directory, "state").glob("state.db*"):
        path.unlink()
    await machine.start()
    assert machine.pods.containers[container].state is ContainerState.RUNNING
    assert await machine.sh(container, "echo here") == "here\n"
    await machine.pods.remove_sandbox(pod)
    assert f"cri-{pod}" not in run("jls", "name").split()


async def test_leftovers_of_a_daemon_without_memory(machine):
    pod = await machine.pod()
    await machine.container(pod)
    run("jail", "-c", "name=cri-abcdef0123456789", "persist", "path=/")
    try:
        await machine.crash()
        for path in Path(machine.directory, "state").glob("state.db*"):
            path.unlink()
        for path in Path(machine.directory, "state").glob("*/*/record.json"):
            path.unlink()
        await machine.start()
        names = run("jls", "name").split()
        assert f"cri-{pod}" not in names
        assert "cri-abcdef0123456789" in names, "the jail of somebody else, whatever its name"
        assert str(machine.directory) not in run("mount")
    finally:
        run("jail", "-r", "cri-abcdef0123456789")


async def test_fifty_pods(machine):
    async def one(number: int) -> None:
        pod = await machine.pod(f"pod{number}")
        container = await machine.container(pod, "sh", "-c", "echo hello; sleep 3600")
        assert await machine.sh(container, "echo here") == "here\n"
        await machine.pods.remove_sandbox(pod)

    slots = asyncio.Semaphore(5)

    async def slotted(number: int) -> None:
        async with slots:
            await one(number)

    await asyncio.gather(*(slotted(number) for number in range(50)))
    assert not machine.pods.sandboxes


@pytest.mark.skipif(
    not os.environ.get("LINUX_BUSYBOX"), reason="LINUX_BUSYBOX names no static busybox for Linux"
)
async def test_a_linux_image(machine):
    container = await machine.container(await machine.pod("tux"), image="linux")
    assert (await machine.sh(container, "uname -s")).strip() == "Linux"
    mounted = await machine.sh(container, "cat /proc/self/status; ls /sys; touch /dev/shm/x && ls /dev/shm")
    assert "Name:" in mounted
    assert mounted.split()[-1] == "x"
    assert "sleep 3600" in await machine.sh(container, "ps")
    assert "hello" in await machine.sh(container, "echo hello > /dev/stdout")


@pytest.mark.parametrize("readonly_root", [False, True])
async def test_roots_on_zfs(zfs_machine, readonly_root):
    machine = zfs_machine
    assert machine.host.snapshots.kind == "zfs"
    pod = await machine.pod()
    first, second = [
        await machine.container(pod, name=name, linux=context(readonly_rootfs=readonly_root)) for name in "ab"
    ]
    seen = await machine.sh(first, "touch /mine; ls /")
    assert ("mine" in seen.split()) is not readonly_root
    assert "mine" not in await machine.sh(second, "ls /")
    await machine.crash()
    await machine.start()
    assert await machine.sh(first, "echo here") == "here\n"
    await machine.pods.remove_container(first)
    assert first not in run("mount")
    with pytest.raises(HostError, match="quota"):
        await machine.container(pod, name="c", annotations={"org.cri-jails.quota": "much"})
    small = await machine.container(pod, name="d", annotations={"org.cri-jails.quota": "64M"})
    if not readonly_root:
        wrote = await machine.sh(small, "dd if=/dev/random of=/big bs=1m count=200")
        assert "quota exceeded" in wrote.lower()


async def test_what_a_container_has_open_is_its_own(machine):
    before = Path("/dev/null").stat().st_mode
    container = await machine.container(await machine.pod())
    assert "not found" not in await machine.sh(container, "chmod 000 /dev/fd/0; chmod 000 /dev/null")
    assert Path("/dev/null").stat().st_mode == before
