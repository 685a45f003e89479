"""Real containers of a real pod: file tree, identity, privileges, limits."""

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest

from cri.sandbox.host import HostError, Measured, StartError, UnfitRequestError
from cri.sandbox.spec import (
    DeviceSpec,
    GroupsPolicy,
    MountSpec,
    Namespaces,
    ProcessSpec,
    Propagation,
    Resources,
    Security,
    Sharing,
    UserSpec,
)
from cri.sandbox.trash import Trash

pytestmark = pytest.mark.node


async def test_exit_code_and_output_of_a_short_container(pod):
    record, output = await pod.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert record.exit_code == 7
    assert not record.signal
    assert sorted(output.split()) == ["err", "out"]


async def test_exit_record_is_on_disk_before_the_event(pod):
    spec = pod.container("true")
    await pod.start(spec)
    record = await anext(pod.warden.exits())
    assert record.container_id == spec.id
    assert '"exit_code": 0' in (Path(spec.directory) / "exit.json").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("no-such",), r'exec "no-such": executable file not found in \$PATH'),
        (("/no/such",), r'exec "/no/such": stat /no/such: no such file or directory'),
        (("/etc/passwd",), r'exec "/etc/passwd": permission denied'),
        ((), "no command specified"),
    ],
)
async def test_a_program_that_cannot_be_had(pod, argv, message):
    with pytest.raises(StartError, match=message):
        await pod.start(pod.container(*argv))
    assert await pod.warden.containers() == []


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (UserSpec(), "uid=0(root) gid=0(root) groups=0(root)"),
        (UserSpec("web"), "uid=1000(web) gid=1001(web) groups=1001(web),2000(extra)"),
        (UserSpec("1000"), "uid=1000(web) gid=1001(web) groups=1001(web),2000(extra)"),
        (UserSpec("web:other"), "uid=1000(web) gid=2001(other) groups=2000(extra),2001(other)"),
        (UserSpec("4242:4343"), "uid=4242 gid=4343 groups=4343"),
        (
            UserSpec("web", supplemental_groups=(77,)),
            "uid=1000(web) gid=1001(web) groups=77,1001(web),2000(extra)",
        ),
        (
            UserSpec("web", supplemental_groups=(77,), groups_policy=GroupsPolicy.STRICT),
            "uid=1000(web) gid=1001(web) groups=77,1001(web)",
        ),
        (UserSpec("web", group=5), "uid=1000(web) gid=5 groups=5,2000(extra)"),
    ],
)
async def test_users_and_groups(pod, user, expected):
    record, output = await pod.run(process=ProcessSpec(("id",), user=user))
    assert record.exit_code == 0
    assert output == expected


async def test_an_unknown_user(pod):
    with pytest.raises(StartError, match="unable to find user nobody-here"):
        await pod.start(pod.container(process=ProcessSpec(("id",), user=UserSpec("nobody-here"))))


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../../../../../../etc/real", "77"),
        ("/etc/real", "77"),
        ("/proc/1/root/etc/passwd", ""),
        ("/nowhere", ""),
        ("passwd", ""),
        (".", ""),
    ],
)
async def test_account_files_are_the_containers_own(pod, link, expected):
    """Also where the node's processes are seen, whose /proc/PID/root leads to its files."""
    name = "web" if expected else pwd.getpwuid(1).pw_name  # the node's own
    process = ProcessSpec(("id", "-u"), user=UserSpec(name))
    spec = pod.container(process=process, namespaces=Namespaces(pid=Sharing.NODE))
    await pod.node.host.create_container(spec)
    etc = pod.node.host.snapshots.writable(spec) / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "real").write_text("web:x:77:77::/:\n")
    (etc / "passwd").unlink(missing_ok=True)
    (etc / "passwd").symlink_to(link)
    if not expected:
        with pytest.raises(StartError, match=f"unable to find user {name}"):
            await pod.warden.start(spec)
        return
    await pod.warden.start(spec)
    await pod.exit_of(spec)
    assert pod.output(spec) == expected


async def test_a_number_is_an_id_whatever_the_image_says(pod):
    spec = pod.container(process=ProcessSpec(("id",), user=UserSpec("1000:1000")))
    await pod.node.host.create_container(spec)
    etc = pod.node.host.snapshots.writable(spec) / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\n1000:x:0:\n")
    await pod.warden.start(spec)
    await pod.exit_of(spec)
    assert pod.output(spec) == "uid=1000 gid=1000 groups=1000"


async def test_environment_cwd_and_hostname(pod):
    odd = os.fsdecode(b"ODD=\xff\xfe")
    process = ProcessSpec(
        ("sh", "-c", "env; pwd; hostname; umask; ls -1 /proc/self/fd"),
        env=("A=1", odd, "A=2"),
        cwd="/made/for/it",
        user=UserSpec("web"),
    )
    _, output = await pod.run(process=process)
    lines = output.split("\n")
    assert {"A=2", "HOME=/home/web", "HOSTNAME=web-0", odd, "/made/for/it", "web-0", "0022"} <= set(lines)
    assert lines[-4:] == ["0", "1", "2", "3"]  # 3 is what ls lists the directory with


def caps(output: str) -> dict[str, int]:
    return {
        key: int(value, 16)
        for key, value in (line.split(":\t") for line in output.split("\n") if line.startswith("Cap"))
    }


async def test_capabilities(pod):
    show = ("grep", "Cap", "/proc/self/status")
    default = 0x00000000A80425FB
    _, output = await pod.run(*show, name="a")
    assert caps(output) == {"CapInh": 0, "CapPrm": default, "CapEff": default, "CapBnd": default, "CapAmb": 0}
    _, output = await pod.run(process=ProcessSpec(show, user=UserSpec("web")), name="b")
    assert caps(output) == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": default, "CapAmb": 0}
    security = Security(drop_capabilities=("ALL",), add_capabilities=("NET_ADMIN", "cap_chown"))
    _, output = await pod.run(*show, name="c", security=security)
    assert caps(output)["CapEff"] == 1 << 12 | 1
    _, output = await pod.run(*show, name="d", security=Security(privileged=True))
    assert caps(output)["CapEff"] == caps(Path("/proc/self/status").read_text())["CapEff"]
    with pytest.raises(HostError, match="no capability of this name"):
        await pod.start(pod.container("true", name="e", security=Security(add_capabilities=("FLY",))))


async def test_no_new_privileges(pod):
    show = ("grep", "NoNewPrivs", "/proc/self/status")
    assert (await pod.run(*show, name="a"))[1].split() == ["NoNewPrivs:", "0"]
    security = Security(no_new_privileges=True)
    assert (await pod.run(*show, name="b", security=security))[1].split() == ["NoNewPrivs:", "1"]


async def test_readonly_root_masked_and_readonly_paths(pod):
    script = "touch /x; touch /tmp/y; touch /dev/shm/z && echo shm; wc -c /etc/passwd; ls /root; echo 1 > /proc/sys/kernel/panic"
    security = Security(
        readonly_root=True, masked_paths=("/etc/passwd", "/root", "/nowhere"), readonly_paths=("/proc/sys",)
    )
    _, output = await pod.run("sh", "-c", script, security=security)
    assert output.count("Read-only file system") == 2 + 1
    assert "shm" in output
    assert "0 /etc/passwd" in output


async def test_devices(pod):
    script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c; mknod /tmp/mem c 1 1 && cat /tmp/mem; ls -l /dev/fd /dev/ptmx"
    _record, output = await pod.run("sh", "-c", script)
    assert output.startswith("4\n")
    assert "can't open '/tmp/mem': Operation not permitted" in output
    device = DeviceSpec("/dev/zero", "/dev/mine/zero")
    _, output = await pod.run("sh", "-c", "head -c 3 /dev/mine/zero | wc -c", devices=(device,), name="b")
    assert output == "3"
    _, output = await pod.run("ls", "/dev", security=Security(privileged=True), name="p")
    assert {"null", "pts", "shm", "tty"} < set(output.split())


async def test_volumes(pod, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("hello")
    (tmp_path / "single").write_text("one")
    mounts = (
        MountSpec(str(tmp_path / "data"), "/a/b"),
        MountSpec(str(tmp_path / "data"), "/ro", readonly=True),
        MountSpec(str(tmp_path / "single"), "/etc/single"),
        MountSpec(str(tmp_path / "single"), "/a/b/nested"),
        MountSpec("", "/memory", tmpfs=True),
    )
    script = "cat /a/b/file /etc/single /a/b/nested; echo new > /a/b/new; touch /ro/x; touch /memory/x && grep -c '^[^ ]* /memory tmpfs' /proc/mounts"
    _, output = await pod.run("sh", "-c", script, mounts=mounts)
    assert "hellooneone1" in output
    assert "touch: /ro/x: Read-only file system" in output
    assert (tmp_path / "data/new").read_text() == "new\n"


async def test_recursive_readonly(pod, tmp_path):
    inner = MountSpec("/dev/shm", "/v")
    mounts = (
        MountSpec("/dev", "/plain", readonly=True),
        MountSpec("/dev", "/strict", readonly=True, recursive_readonly=True),
    )
    name = f"cri-jails-{os.getpid()}"
    script = f"touch /plain/shm/{name} && echo plain; touch /strict/shm/{name} || echo strict"
    try:
        _, output = await pod.run("sh", "-c", script, mounts=mounts)
    finally:
        Path(inner.source, name).unlink(missing_ok=True)
    assert "plain\n" in output
    assert "touch: /strict" in output


async def test_a_missing_volume_source(pod):
    with pytest.raises(HostError, match="mount /no/such/source: No such file"):
        await pod.start(pod.container("true", mounts=(MountSpec("/no/such/source", "/v"),)))


@pytest.mark.parametrize("link", ["/../../../..", "/proc/1/root", "../../../../../.."])
async def test_links_of_the_image_do_not_lead_outside(pod, tmp_path, link):
    """An image makes /way a link towards the node; mount targets, masks and working directory stay in the root."""
    secret = tmp_path / "secret"
    secret.mkdir()
    spec = pod.container(
        process=ProcessSpec(("sh", "-c", "pwd; ls -d /etc/cri-target"), cwd=f"/way{tmp_path}/cwd"),
        mounts=(
            MountSpec(str(secret), f"/way{tmp_path}/target"),
            MountSpec(str(secret), "/way/etc/cri-target"),
        ),
        security=Security(masked_paths=(f"/way{tmp_path}/mask",)),
    )
    await pod.node.host.create_container(spec)
    (pod.node.host.snapshots.writable(spec) / "way").symlink_to(link)
    with contextlib.suppress(HostError):  # refused is right too, as for a link into the container's own /proc
        await pod.warden.start(spec)
        await pod.exit_of(spec)
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "cwd").exists()
    assert not Path("/etc/cri-target").exists()
    assert list(secret.iterdir()) == []


async def test_out_of_memory(pod):
    spec = pod.container(
        "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1", resources=Resources(memory_limit=16 << 20)
    )
    await pod.start(spec)
    record = await pod.exit_of(spec)
    assert record.exit_code == 137
    assert record.oom_killed


async def test_pids_limit(pod):
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 2 & done; wait"
    _record, output = await pod.run("sh", "-c", script, resources=Resources(pids_limit=5))
    assert "Resource temporarily unavailable" in output


async def test_limits_update_and_usage(pod):
    host = pod.node.host
    spec = pod.container(
        "sleep",
        "100",
        resources=Resources(memory_limit=64 << 20, cpu_shares=512, cpu_quota=20000, cpu_period=100000),
    )
    await pod.start(spec)
    asked = [Measured(pod.spec, pod.warden, [spec], itself=False)]
    before = (await host.usages(asked))[spec.id]
    assert before.memory.usage > 0
    assert before.cpu.total > 0
    assert before.processes.processes == 1
    assert before.memory.available is not None
    assert before.memory.available < 64 << 20
    for limit in (128 << 20, 32 << 20):
        await host.update_container(spec, Resources(memory_limit=limit, memory_swap_limit=limit))
        memory = (await host.usages(asked))[spec.id].memory
        assert memory.available == limit - memory.working_set
    _code, output = await pod.exec(spec, "cat", "/sys/fs/cgroup/cpu/cpu.shares")
    assert output.split() == ["512"]
    assert (await host.root_usage(spec)).inodes > 0


async def test_terminal(pod):
    process = ProcessSpec(("sh", "-c", "tty; ls -l /dev/console; echo $TERM; stty -a | head -n 1"), tty=True)
    record, output = await pod.run(process=process)
    assert record.exit_code == 0
    assert output.startswith("/dev/pts/0")
    assert "xterm" in output


async def test_stdin_stays_open(pod):
    spec = pod.container(process=ProcessSpec(("cat",), stdin=True), name="open")
    await pod.start(spec)
    record, _ = await pod.run("cat", name="closed")
    assert record.exit_code == 0
    (open_state,) = (state for state in await pod.warden.containers() if state.container_id == spec.id)
    assert open_state.exited is None


async def test_processes_of_their_own(pod):
    _, output = await pod.run("sh", "-c", "echo $$; ls -d /proc/[0-9]*")
    assert output.split() == ["1", "/proc/1"]  # the shell alone: the pattern is expanded before it forks


async def test_shared_processes_have_an_init_that_reaps(node):
    pod = await node.pod(namespaces=Namespaces(pid=Sharing.POD))
    spec = pod.container("sleep", "100", name="a")
    await pod.start(spec)
    other = pod.container("sh", "-c", "(setsid sh -c 'sleep 0.1' &) ; sleep 0.5; ps", name="b")
    await pod.start(other)
    await pod.exit_of(other)
    output = pod.output(other)
    assert "cri-jails-init" in output.split("\n")[1] or output.split("\n")[1].split()[0] == "1"
    assert "sleep 100" in output
    assert "Z" not in [line.split()[2] for line in output.split("\n")[1:]]


async def test_processes_of_a_target_and_of_the_node(pod):
    first = pod.container("sleep", "12345", name="first")
    await pod.start(first)
    sharing = Namespaces(pid=Sharing.TARGET, target_id=first.id)
    _, output = await pod.run("ps", name="target", namespaces=sharing)
    assert "sleep 12345" in output
    _, output = await pod.run("ps", name="node", namespaces=Namespaces(pid=Sharing.NODE))
    assert len(output.split("\n")) > 10
    missing = Namespaces(pid=Sharing.TARGET, target_id="nobody")
    with pytest.raises(HostError, match="it is not running"):
        await pod.start(pod.container("ps", name="missing", namespaces=missing))


async def test_shared_memory_belongs_to_the_pod(node):
    one, two = await node.pod(), await node.pod()
    await one.run("touch", "/dev/shm/here", name="a")
    assert (await one.run("ls", "/dev/shm", name="b"))[1] == "here"
    assert (await two.run("ls", "/dev/shm", name="a"))[1] == ""
    assert not Path("/dev/shm/here").exists()


async def test_host_namespaces(node):
    sharing = Namespaces(network=Sharing.NODE, ipc=Sharing.NODE, pid=Sharing.NODE)
    pod = await node.pod(namespaces=sharing)
    links = [
        await pod.run("readlink", f"/proc/self/ns/{name}", name=name) for name in ("net", "ipc", "uts", "pid")
    ]
    assert [link for _, link in links] == [
        str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("net", "ipc", "uts", "pid")
    ]


async def test_sysctls(node):
    pod = await node.pod(sysctls={"kernel.shm_rmid_forced": "1", "net/ipv4/ip_forward": "1"})
    files = ("/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_forward")
    assert (await pod.run("cat", *files))[1] == "1\n1"
    for name in ("kernel.panic", "vm.swappiness", "net../etc", ""):
        with pytest.raises(UnfitRequestError):
            await node.pod(sysctls={name: "1"})
    for name, value, reason in [
        ("net.ipv4.no_such_thing", "1", "no such sysctl for a pod"),
        ("net.ipv4.ip_forward", "many", "does not take this value"),
    ]:
        with pytest.raises(UnfitRequestError, match=reason):
            await node.pod(sysctls={name: value})
    with pytest.raises(HostError, match="shares this namespace"):
        await node.pod(sysctls={"net.ipv4.ip_forward": "1"}, namespaces=Namespaces(network=Sharing.NODE))


async def test_nothing_of_it_is_seen_on_the_node(pod):
    before = Path("/proc/self/mountinfo").read_text()
    await pod.start(pod.container("sleep", "100"))
    assert Path("/proc/self/mountinfo").read_text() == before


async def test_kill_finds_who_ran_away(node):
    """Children that have left session, group and parent end with the container, also where processes are shared."""
    for sharing in (Sharing.CONTAINER, Sharing.POD, Sharing.NODE):
        pod = await node.pod(namespaces=Namespaces(pid=sharing))
        spec = pod.container("sh", "-c", "(setsid sh -c '(setsid sleep 4321 &)' &); sleep 1000")
        await pod.start(spec)
        group = node.host._group(spec)
        await asyncio.sleep(0.3)
        assert len(group.processes()) >= 2
        await pod.warden.kill(spec.id)
        assert (await pod.exit_of(spec)).exit_code == 137
        async with asyncio.timeout(5):
            while group.processes():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("node", ["copy"], indirect=True)
async def test_copies_instead_of_overlays(pod):
    record, output = await pod.run("sh", "-c", "echo hi > /etc/new; cat /etc/new; stat -c %h /bin/sh")
    assert record.exit_code == 0
    assert output.split("\n")[0] == "hi"
    assert int(output.split("\n")[1]) > 10  # hard links stay hard links


@pytest.fixture
def shared_mount(tmp_path):
    """A mount of the node that propagates."""
    where = tmp_path / "shared"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)
    subprocess.run(["mount", "--make-shared", where], check=True)
    (where / "inner").mkdir()
    yield where
    subprocess.run(["umount", "-R", where], check=True)


@pytest.mark.parametrize("propagation", Propagation)
async def test_mount_propagation(pod, shared_mount, propagation):
    volume = MountSpec(str(shared_mount), "/v", propagation=propagation)
    spec = pod.container("sleep", "100", mounts=(volume,), security=Security(privileged=True))
    await pod.start(spec)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared_mount / "inner"], check=True)
    (shared_mount / "inner/from-node").touch()
    code, _ = await pod.exec(spec, "ls", "/v/inner/from-node")
    assert (code == 0) == (propagation is not Propagation.PRIVATE)
    script = "mkdir -p /v/other && mount -t tmpfs tmpfs /v/other && touch /v/other/from-container"
    assert (await pod.exec(spec, "sh", "-c", script)) == (0, "")
    assert (shared_mount / "other/from-container").exists() == (propagation is Propagation.BIDIRECTIONAL)


async def test_a_signal_waits_until_the_program_is_ready_for_it(pod):
    """The kernel drops what the first process of a namespace has no handler for; a stop right after a start is not lost."""
    spec = pod.container(
        "sh", "-c", "sleep 0.4; trap 'echo once; sleep 0.1; exit 7' TERM; while true; do sleep 0.05; done"
    )
    await pod.start(spec)
    await pod.warden.signal(spec.id, signal.SIGTERM)
    record = await pod.exit_of(spec, seconds=5)
    assert record.exit_code == 7
    assert pod.output(spec) == "once"


async def test_a_signal_that_nothing_waits_for_keeps_nobody(pod):
    spec = pod.container("sleep", "1000")
    await pod.start(spec)
    await pod.warden.signal(spec.id, signal.SIGTERM)
    await asyncio.sleep(0.1)
    assert not (await pod.warden.containers())[0].exited
    await pod.warden.kill(spec.id)
    assert (await pod.exit_of(spec, seconds=5)).exit_code == 137


async def test_a_container_that_stops_everything_does_not_stop_its_warden(pod):
    """A process on its way into the container can be stopped by it; nobody waits for that process."""
    spec = pod.container("sh", "-c", "while :; do kill -STOP -1; done")
    await pod.start(spec)
    execs = [asyncio.ensure_future(pod.start_exec(spec, "true")) for _ in range(3)]
    await asyncio.sleep(0.3)
    async with asyncio.timeout(5):
        assert len(await pod.warden.containers()) == 1
        await pod.warden.kill(spec.id)
    assert (await pod.exit_of(spec, seconds=5)).exit_code == 137
    await asyncio.wait(execs, timeout=10)
    for running in execs:
        with contextlib.suppress(HostError):
            await (await running).close()


async def test_the_init_of_a_pod_has_nothing_to_see(node):
    pod = await node.pod(namespaces=Namespaces(pid=Sharing.POD))
    spec = pod.container("sleep", "100", security=Security(add_capabilities=("SYS_PTRACE",)))
    await pod.start(spec)
    code, output = await pod.exec(spec, "ls", "-A", "/proc/1/root/")
    assert (code, output) == (0, "")
    _, status = await pod.exec(spec, "grep", "Cap", "/proc/1/status")
    assert {line.split()[1] for line in status.splitlines()} == {"0" * 16}


async def test_the_init_of_a_pod_tells_nothing_of_the_node(node):
    """Also to a container that may read the memory of others."""
    pod = await node.pod(namespaces=Namespaces(pid=Sharing.POD))
    spec = pod.container("sleep", "100", security=Security(privileged=True))
    await pod.start(spec)
    assert await pod.exec(spec, "sh", "-c", "tr -d '\\0' </proc/1/cmdline; cat /proc/1/comm") == (
        0,
        "cri-jails-initcri-jails-init\n",
    )
    code, output = await pod.exec(
        spec, "sh", "-c", "tr -d '\\0' </proc/1/environ | wc -c; readlink /proc/1/cwd; readlink /proc/1/root"
    )
    assert (code, output) == (0, "0\n/\n/\n")
    assert "cri-jails-init" in (await pod.exec(spec, "ps"))[1]
    assert (await pod.exec(spec, "ls", "/proc/1/fd")) == (0, "")


async def test_a_working_directory_that_leads_outside_is_refused(pod):
    spec = pod.container("sleep", "100", process=ProcessSpec(("sleep", "100"), cwd="/work"))
    await pod.start(spec)
    # The descriptor of a directory that the process had before it came here would do, were it still open.
    await pod.exec(spec, "sh", "-c", "cd /; rm -rf /work; ln -s /proc/self/fd/9 /work")
    with pytest.raises(StartError, match="chdir"):
        await pod.start_exec(spec, "true")


async def test_removal_of_what_is_very_deep(pod):
    deep = "i=0; while [ $i -lt 1500 ]; do mkdir d; cd d; i=$((i+1)); done; touch f"
    spec = pod.container("sh", "-c", f"mkdir /deep; cd /deep; {deep}")
    await pod.start(spec)
    await pod.exit_of(spec)
    await pod.node.host.stop_container(spec)
    await pod.node.host.remove_container(spec)
    trash = Trash(pod.node.directory / "removed")
    await trash.take(Path(spec.directory))
    assert not Path(spec.directory).exists()
    async with asyncio.timeout(20):
        while any((pod.node.directory / "removed").iterdir()):
            await asyncio.sleep(0.05)


async def test_without_an_oom_score_there_is_none(pod):
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    for target in ("/proc/1/oom_score_adj", "/proc/self/oom_score_adj"):
        assert (await pod.exec(spec, "cat", target))[1].strip() == "0"
