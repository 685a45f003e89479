"""Devices of real containers: nodes of their own, and which of them can be used."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.linux import device_access, kernel
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.device_access import ALWAYS, Rule
from cri.sandbox.spec import DeviceSpec, MountSpec, Security

pytestmark = pytest.mark.node


def need_rules(host) -> None:
    group = host._hierarchies.group(f"cri-jails-test-{os.getpid()}")
    group.create()
    try:
        if not device_access.restrict(group, ALWAYS):
            pytest.skip("this node has no control of devices by cgroup")
    finally:
        group.remove()


@pytest.fixture(params=["by cgroup", "by mounts"])
def ruled(request, monkeypatch, node) -> bool:
    """Both ways of keeping a container from devices; the second is for nodes that do not have the first."""
    if request.param == "by mounts":
        monkeypatch.setattr(device_access, "restrict", lambda group, rules: False)
    else:
        need_rules(node.host)
    return request.param == "by cgroup"


@pytest.fixture
def nodes(tmp_path) -> Path:
    """A directory of devices, and of what is none."""
    (tmp_path / "more").mkdir()
    (tmp_path / "pts").mkdir()
    for name, mode, number in (
        ("full", 0o20640, (1, 7)),
        ("more/null", 0o20666, (1, 3)),
        ("pts/0", 0o20666, (1, 3)),
        ("mem", 0o20600, (1, 1)),
    ):
        os.mknod(tmp_path / name, mode, os.makedev(*number))
        (tmp_path / name).chmod(stat.S_IMODE(mode))
    os.chown(tmp_path / "full", 0, 6)
    return tmp_path


SHOW = "stat -c '%a %u %g %t:%T'"


async def test_the_nodes_are_its_own(pod, nodes, ruled):
    names = ("null", "zero", "full", "random", "urandom", "tty")
    before = [Path(f"/dev/{name}").stat() for name in names]
    given = (nodes / "full").stat()
    device = DeviceSpec(str(nodes / "full"), "/dev/mine/full")
    everywhere = DeviceSpec(str(nodes / "full"), "/opt/full")
    script = f"""
        cd /dev; {SHOW} {" ".join(names)} mine/full /opt/full; echo x > null; echo x > tty; echo x > mine/full
        chmod 600 {" ".join(names)} mine/full /opt/full; touch null mine/full; rm mine/full && echo gone
    """
    _, output = await pod.run("sh", "-c", script, devices=(device, everywhere))
    lines = output.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["666"] * 6
    assert lines[6:8] == ["640 0 6 1:7"] * 2
    assert ("gone" in lines) == ruled
    assert "mine/full: No space left on device" in output.replace("write error", "mine/full")
    after = [Path(f"/dev/{name}").stat() for name in names]
    assert [(one.st_mode, one.st_mtime) for one in after] == [(one.st_mode, one.st_mtime) for one in before]
    assert (nodes / "full").stat().st_mode == given.st_mode


async def test_whatever_the_umask_is(pod, node):
    old = os.umask(0o077)
    try:
        _, output = await (await node.pod()).run(
            "sh",
            "-c",
            "stat -c %a /dev /dev/null /dev/tty /dev/pts /dev/shm",
            security=Security(privileged=True),
        )
    finally:
        os.umask(old)
    assert output.split() == ["755", "666", "666", "755", "1777"]


async def test_what_it_was_not_given_opens_nothing(pod, nodes, ruled):
    volume = MountSpec(str(nodes), "/v")
    script = "mknod /tmp/mem c 1 1; for f in /tmp/mem /v/mem; do head -c 1 $f && echo opened; done; head -c 2 /v/full | wc -c"
    _, output = await pod.run("sh", "-c", script, mounts=(volume,))
    assert "opened" not in output
    assert output.count("ermi") == (2 if ruled else 3)  # "Operation not permitted", "Permission denied"
    if ruled:
        assert "2" in output.splitlines()  # the two streams may come in any order


async def test_exec_is_restricted_too(pod, ruled):
    spec = pod.container("sleep", "100")
    await pod.start(spec)
    code, output = await pod.exec(spec, "sh", "-c", "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem")
    assert (code, "mem" in output) == (1, True)
    assert await pod.exec(spec, "sh", "-c", "echo x > /dev/null") == (0, "")


async def test_a_privileged_one_has_them_all_anew(pod):
    script = "chmod 600 /dev/full; stat -c %a /dev/null /dev/tty; readlink /dev/ptmx; ls /dev"
    before = Path("/dev/full").stat().st_mode
    _, output = await pod.run("sh", "-c", script, security=Security(privileged=True))
    assert output.split()[:3] == ["666", "666", "pts/ptmx"]
    there = {path.name for path in Path("/dev").iterdir() if path.is_char_device() and not path.is_symlink()}
    assert there - {"console"} <= set(output.split())
    assert Path("/dev/full").stat().st_mode == before


async def test_permissions(pod, nodes):
    need_rules(pod.node.host)
    os.mknod(nodes / "kmsg", 0o20666, os.makedev(1, 11))
    device = DeviceSpec(str(nodes / "kmsg"), "/dev/kmsg", "r")
    script = "dd if=/dev/kmsg of=/tmp/x count=1 bs=8192 && echo read; echo x > /dev/kmsg || echo kept"
    security = Security(add_capabilities=("SYSLOG",))
    _, output = await pod.run("sh", "-c", script, devices=(device,), security=security)
    assert "read" in output.splitlines()
    assert "kept" in output.splitlines()


async def test_what_cannot_be_enforced_is_refused(pod, nodes, ruled):
    wrong = [DeviceSpec("/dev/null", "/dev/ro", "r"), DeviceSpec(str(nodes / "full"), "/dev/ro", "wm")]
    wrong += [] if ruled else [DeviceSpec(str(nodes / "mem"), "/dev/ro", "rm")]
    for number, device in enumerate(wrong):
        with pytest.raises(UnfitRequestError, match="cannot be enforced"):
            await pod.start(pod.container("true", name=f"c{number}", devices=(device,)))


async def test_null_and_its_like_through_a_volume(pod, nodes, ruled):
    mounts = (
        MountSpec("/dev/null", "/etc/passwd"),
        MountSpec("/dev/null", "/etc/group", readonly=True),
        MountSpec("/dev/urandom", "/jail/dev/urandom"),
        MountSpec("/dev/zero", "/zero", options=("nodev",)),
    )
    before = Path("/dev/null").stat().st_mode
    script = "wc -c < /etc/passwd; head -c 3 /jail/dev/urandom | wc -c; echo x > /etc/group && chmod 600 /etc/passwd; head -c 1 /zero"
    _, output = await pod.run("sh", "-c", script, mounts=mounts)
    lines = output.splitlines()
    assert lines[:2] == ["0", "3"]
    assert "/zero: Permission denied" in output
    assert Path("/dev/null").stat().st_mode == before
    for target in ("/dev", "/dev/"):
        whole = MountSpec("/dev", target)
        script = "echo x > /dev/null && head -c 2 /dev/zero | wc -c; head -c 1 /dev/mem && echo opened"
        _, output = await pod.run("sh", "-c", script, name=f"dev{len(target)}", mounts=(whole,))
        assert output.splitlines()[0] == "2"
        assert "opened" not in output
    assert subprocess.run(["grep", "-c", " /dev/null ", "/proc/self/mountinfo"], check=False).returncode == 1


# -- BPF


@pytest.fixture
def unified():
    """A group of cgroups, version 2, also where that has no controllers."""
    mounted = [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    ]
    if os.geteuid() != 0 or not mounted:
        pytest.skip("needs root and cgroup2")
    group = Path(mounted[0], f"cri-jails-test-{os.getpid()}")
    group.mkdir()
    yield group
    group.rmdir()


def test_the_program_decides_as_the_rules_say(unified, tmp_path):
    rules = [*ALWAYS, Rule("c", 1, 11, "r"), Rule("b", 7, None)]
    if not device_access.restrict(Group(2, {"": str(unified)}), rules):
        pytest.skip("this machine loads no BPF programs")
    os.mknod(tmp_path / "kmsg", 0o20666, os.makedev(1, 11))
    os.mknod(tmp_path / "loop", 0o60666, os.makedev(7, 3))
    tries = f"""
        echo $$ > {unified}/cgroup.procs
        cd {tmp_path}; echo x > /dev/null && echo null; mknod mem c 1 1 && echo made; head -c 1 mem || echo mem
        dd if=kmsg of=/dev/null bs=8192 count=1 && echo read; echo x > kmsg || echo kept
        (: < loop) && echo loop; (: < /dev/kmsg) && (: <> /dev/kmsg) || echo both
    """
    done = subprocess.run(["sh", "-c", tries], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["null", "made", "mem", "read", "kept", "loop", "both"], done.stderr


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_a_kernel_that_takes_no_program(unified, monkeypatch, number):
    def refuse(cgroup: int, instructions: bytes) -> None:
        raise OSError(number, os.strerror(number), "BPF")

    monkeypatch.setattr(kernel, "restrict_devices", refuse)
    assert not device_access.restrict(Group(2, {"": str(unified)}), ALWAYS)


def test_a_group_that_is_gone_is_an_error(unified):
    with pytest.raises(HostError, match="restrict devices of"):
        device_access.restrict(Group(2, {"": f"{unified}/gone"}), ALWAYS)
