"""Containers with filters, for real: what the kernel says of them, and what their programs are told."""

import asyncio
import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cri.sandbox.host import HostError, StartError, UnfitRequestError
from cri.sandbox.linux import capabilities
from cri.sandbox.linux.host import LinuxHost
from cri.sandbox.linux.seccomp import selection
from cri.sandbox.spec import MountSpec, Namespaces, ProcessSpec, SeccompProfile, Security, Sharing, UserSpec
from cri.sandbox.warden.container import PLAN_FILE, read_plan, write_plan

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(bool(selection.missing()), reason="there are no filters here"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="has the numbers of x86_64"),
]
STATUS = ("grep", "-E", "^(Seccomp|NoNewPrivs|CapEff):", "/proc/self/status")
SLEEP = ("sleep", "1000")
DEFAULT = SeccompProfile()
NO_MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXFULL}],
}
MOUNT, UNSHARE, KEYCTL, CLONE3, IO_URING, SOCKET, NEWEST = 165, 272, 250, 435, 425, 41, 999
NEW_USER = 0x10000000
NEEDED_BY_BUSYBOX = """
    arch_prctl brk close dup dup2 fcntl fstat newfstatat getgid getpid getppid getrandom getuid ioctl mmap mprotect munmap
    open openat prlimit64 readlink readlinkat rseq rt_sigaction rt_sigprocmask set_robust_list set_tid_address setgid setuid
    uname writev exit geteuid getegid prctl
"""


@pytest.fixture(scope="module")
def call(tmp_path_factory) -> MountSpec:
    """The program `call`, as a volume."""
    directory = tmp_path_factory.mktemp("call")
    source = Path(__file__).with_name("call.c")
    subprocess.run(["cc", "-static", "-O1", "-o", directory / "call", source], check=True)
    return MountSpec(str(directory), "/calls", readonly=True)


@pytest.fixture
def profile(tmp_path):
    def write(data) -> SeccompProfile:
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(data))
        return SeccompProfile(str(path))

    return write


def filtered(text: str) -> tuple[int, int, int]:
    found = {name: int(value, 16) for name, value in (line.split() for line in text.split("\n") if line)}
    return found["Seccomp:"], found["NoNewPrivs:"], found["CapEff:"]


async def said(pod, spec) -> str:
    async with asyncio.timeout(10):
        while not Path(spec.log_path).exists() or not pod.output(spec):
            await asyncio.sleep(0.01)
    return pod.output(spec)


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("user", ["0", "1000"])
@pytest.mark.parametrize("pids", [Sharing.CONTAINER, Sharing.POD, Sharing.NODE])
async def test_every_process_of_a_container_is_filtered(node, no_new_privileges, user, pids):
    """And has none of the capability that it took to install the filter."""
    pod = await node.pod(namespaces=Namespaces(pid=pids))
    script = f"grep -E '{STATUS[2]}' {STATUS[3]}; exec sleep 1000"
    spec = pod.container(
        process=ProcessSpec(("sh", "-c", script), user=UserSpec(user)),
        security=Security(seccomp=DEFAULT, no_new_privileges=no_new_privileges),
    )
    started = await pod.start(spec)
    kept, _ = capabilities.possible(capabilities.wanted(spec.security))
    expected = 2, int(no_new_privileges), kept if user == "0" else 0
    assert filtered(await said(pod, spec)) == expected
    for terminal in (False, True):
        # One with a terminal says it there.
        to = ("sh", "-c", f"{script.partition(';')[0]} > /tmp/said")
        code, _ = await pod.exec(spec, *to, tty=terminal)
        assert code == 0
        _, text = await pod.exec(spec, "cat", "/tmp/said")
        assert filtered(text) == expected
    assert "Seccomp:\t2\n" in Path(f"/proc/{started.pid}/status").read_text()


@pytest.mark.parametrize(
    "security",
    [Security(), Security(privileged=True), Security(privileged=True, seccomp=DEFAULT)],
    ids=["unconfined", "privileged", "privileged that asks for one"],
)
async def test_who_is_not_filtered(node, security):
    pod = await node.pod(privileged=True)
    spec = pod.container(*SLEEP, security=security)
    await pod.start(spec)
    _, text = await pod.exec(spec, *STATUS)
    assert filtered(text)[:2] == (0, 0)


async def test_what_ours_denies(pod, call):
    async def answers(name: str, **security) -> list[int]:
        spec = pod.container(*SLEEP, name=name, security=Security(**security), mounts=(call,))
        await pod.start(spec)
        found = []
        for words in (
            (UNSHARE, NEW_USER),
            (UNSHARE, 0x200),
            (SOCKET, 40, 1),
            (SOCKET, 38, 5),
            (SOCKET, 2, 1),
            (IO_URING, 1, 0),
            (KEYCTL, 0, 0xFFFFFFFD),
            (CLONE3, 0, 0),
            (MOUNT, 0, 0),
            (NEWEST,),
            (0x40000000 | 39,),
        ):
            code, text = await pod.exec(spec, "/calls/call", *map(str, words))
            assert code == 0, text
            found.append(int(text))
        return found

    perm, none, inval, fault = errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EFAULT
    assert await answers("a", seccomp=DEFAULT) == [perm, 0, perm, perm, 0, perm, perm, none, perm, none, none]
    unconfined = await answers("b")
    assert unconfined[0] == 0
    assert unconfined[5] == fault
    assert unconfined[7] == inval
    admin = await answers("c", seccomp=DEFAULT, add_capabilities=("SYS_ADMIN",))
    assert admin[0] == 0
    assert admin[5:8] == [perm, perm, inval]
    assert admin[8] == fault


async def test_a_profile_of_the_node_is_that_of_the_day_the_container_was_made(pod, profile):
    wanted = profile(NO_MKDIR)
    spec = pod.container(*SLEEP, security=Security(seccomp=wanted, no_new_privileges=True))
    await pod.node.host.create_container(spec)
    Path(wanted.path).unlink()
    await pod.warden.start(spec)
    code, text = await pod.exec(spec, "mkdir", "/tmp/a")
    assert code == 1
    assert os.strerror(errno.EXFULL) in text
    assert (await pod.exec(spec, "touch", "/tmp/b"))[0] == 0
    with pytest.raises(UnfitRequestError, match=f"read seccomp profile {wanted.path}: No such file"):
        await pod.start(pod.container(*SLEEP, name="d", security=spec.security))


async def test_one_that_kills(pod, profile):
    kills = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    record, _ = await pod.run("mkdir", "/tmp/a", security=Security(seccomp=profile(kills)))
    assert (record.exit_code, record.signal) == (128 + 31, 31)


@pytest.mark.parametrize("no_new_privileges", [True, False])
async def test_the_least_that_lets_a_program_start(pod, profile, no_new_privileges):
    least = ["execve", "write", "exit_group"]
    if not no_new_privileges:
        least += ["prctl", "capset", "clone", "setsid", "ppoll"]
    strict = {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": [*least, *NEEDED_BY_BUSYBOX.split()], "action": "SCMP_ACT_ALLOW"}],
    }
    security = Security(seccomp=profile(strict), no_new_privileges=no_new_privileges)
    record, text = await pod.run("echo", "here", security=security)
    assert (record.exit_code, text) == (0, "here")
    spec = pod.container(*SLEEP, name="lost", security=security)
    with pytest.raises(StartError, match=r'"/no/such": .*no such file'):
        await pod.start(replace(spec, process=ProcessSpec(("/no/such",))))


async def test_one_that_lets_nothing_start_is_refused_and_leaves_nothing(pod, profile):
    wanted = profile(
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["setsid"], "action": "SCMP_ACT_KILL"}]}
    )
    spec = pod.container(*SLEEP, security=Security(seccomp=wanted))
    with pytest.raises(UnfitRequestError, match="forbids setsid"):
        await pod.node.host.create_container(spec)
    assert list(Path(spec.directory).iterdir()) == []
    await pod.start(replace(spec, security=Security(seccomp=wanted, no_new_privileges=True)))


async def test_a_daemon_is_not_held_up_by_what_is_no_file(pod, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    spec = pod.container(*SLEEP, security=Security(seccomp=SeccompProfile(str(tmp_path / "fifo"))))
    async with asyncio.timeout(5):
        with pytest.raises(UnfitRequestError, match="it is no regular file"):
            await pod.node.host.create_container(spec)


async def test_another_daemon_s_wardens_keep_the_filter(node, pod):
    """A container that was made by one daemon, and is started and looked at through another."""
    spec = pod.container(*SLEEP, security=Security(seccomp=DEFAULT))
    await node.host.create_container(spec)
    await pod.warden.disconnect()
    other = LinuxHost(node.directory / "state", node.directory / "run", "overlay")
    await other.open(node.lost.append)
    try:
        pod.warden = await other.find_warden(pod.spec)
        await pod.warden.start(spec)
        _, text = await pod.exec(spec, *STATUS)
        assert filtered(text)[0] == 2
    finally:
        await other.close()


async def test_a_warden_of_an_older_release_reads_the_plan(pod, profile):
    """It does not know the field: RuntimeDefault was no filter there, a profile of the node was refused."""
    ours = pod.container(*SLEEP, security=Security(seccomp=DEFAULT))
    own = pod.container(*SLEEP, name="d", security=Security(seccomp=profile(NO_MKDIR)))
    for spec in (ours, own):
        await pod.node.host.create_container(spec)
    assert '"seccomp": {"path"' not in Path(ours.directory, PLAN_FILE).read_text()
    assert read_plan(ours.directory).spec == replace(ours, security=Security())
    assert read_plan(own.directory).spec == own


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        ("AAAA", HostError, "use the seccomp filter: the container's plan is damaged"),
        ("AAAAAAAAAAA=", StartError, "install seccomp filter: Invalid argument"),
    ],
    ids=["no program", "no program for the kernel"],
)
async def test_a_damaged_filter_starts_nothing(pod, program, error, words):
    spec = pod.container(*SLEEP, security=Security(seccomp=DEFAULT))
    await pod.node.host.create_container(spec)
    plan = read_plan(spec.directory)
    plan.host["seccomp"]["program"] = program
    write_plan(plan)
    with pytest.raises(error, match=words):
        await pod.warden.start(spec)


async def test_a_node_without_the_library_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "missing", lambda: "there is no library: install it")
    host = LinuxHost(tmp_path / "state", tmp_path / "run", "copy")
    assert (host.features.seccomp, host.features.seccomp_missing) == (
        False,
        "there is no library: install it",
    )
    monkeypatch.setattr(host._hierarchies, "missing_controllers", list)
    condition = await host.condition()
    assert condition.ok
    assert condition.reason == "SeccompMissing"
    assert condition.message.endswith("refused: there is no library: install it")
