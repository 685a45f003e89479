"""The parts of the Linux driver that need no root."""

import signal
import struct
import subprocess
import sys
import time

import pytest

from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.linux import capabilities, sysctls
from cri.sandbox.linux.cgroup_hierarchies import Hierarchies
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.device_access import ALWAYS, Rule, program
from cri.sandbox.linux.driver import _ready_for
from cri.sandbox.linux.snapshots import make_snapshotter
from cri.sandbox.spec import Namespaces, Security, Sharing

V1 = """
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
""".strip()
V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


def test_hierarchies():
    hybrid = Hierarchies.detect(V1)
    assert hybrid.v2 is None
    assert hybrid.missing_controllers() == ["pids"]
    assert hybrid.group("/a/b", "/own").directories == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/a/b",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/a/b",
        "memory": "/sys/fs/cgroup/memory/a/b",
        "freezer": "/sys/fs/cgroup/freezer/own",
        "name=systemd": "/sys/fs/cgroup/systemd/own",
        "unified": "/sys/fs/cgroup/unified/own",
    }
    beside = Hierarchies.detect(f"{V2}\n{V1.splitlines()[-2]}")
    assert beside.group("/a", "/own").directories == {
        "": "/sys/fs/cgroup/a",
        "name=systemd": "/sys/fs/cgroup/systemd/own",
    }
    assert Hierarchies.detect(V2).group("/a").directories == {"": "/sys/fs/cgroup/a"}
    for path, own in (("/a/../../b", None), ("/a", "/b/..")):
        with pytest.raises(HostError, match=r"must not contain \.\."):
            hybrid.group(path, own)


def test_oom_kills_of_version_2(tmp_path):
    (tmp_path / "memory.events").write_text("oom 2\noom_kill 1\n")
    assert Group(2, {"": str(tmp_path)}).oom_kills() == 1


def test_missing_groups_are_empty(tmp_path):
    group = Group(1, {"memory": str(tmp_path / "gone")})
    assert group.processes() == set()
    assert group.kill()
    assert group.oom_kills() == 0
    assert group.join_files() == []
    group.remove()


def test_capability_sets():
    assert capabilities.wanted(Security()) == 0xA80425FB
    assert capabilities.wanted(Security(privileged=True)) == (1 << 41) - 1
    assert capabilities.wanted(Security(drop_capabilities=("ALL",), add_capabilities=("KILL",))) == 1 << 5
    every = (1 << 41) - 1
    assert (
        capabilities.wanted(Security(add_capabilities=("ALL",), drop_capabilities=("CAP_CHOWN",)))
        == every - 1
    )
    assert (
        capabilities.wanted(Security(add_capabilities=("KILL",), drop_capabilities=("KILL",))) & 1 << 5 == 0
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_names_of_sysctls(name, path):
    assert sysctls.path_of(name) == path


@pytest.mark.parametrize(
    ("name", "interface"),
    [
        ("net.ipv4.conf.eth0.rp_filter", "eth0"),
        ("net/ipv6/conf/eth0/accept_ra", "eth0"),
        ("net.ipv4.conf.eth0/100.rp_filter", "eth0.100"),
        ("net/ipv4/conf/eth0.100/rp_filter", "eth0.100"),
        ("net.ipv4.neigh.eth0.gc_stale_time", "eth0"),
        ("net.ipv6.neigh.eth0.proxy_qlen", "eth0"),
        ("net.mpls.conf.eth0.input", "eth0"),
        ("net.ipv4.conf.all.rp_filter", ""),
        ("net.ipv4.conf.default.rp_filter", ""),
        ("net.ipv4.conf.lo.rp_filter", ""),
        ("net.ipv4.neigh.default.gc_thresh1", ""),
        ("net.ipv4.ip_forward", ""),
        ("net.netfilter.nf_conntrack_max", ""),
        ("kernel.shmmax", ""),
    ],
)
def test_sysctls_of_interfaces(name, interface):
    assert sysctls.interface_of(name) == interface
    assert (name in sysctls.of_interfaces({name: "1"})) is bool(interface)


@pytest.mark.parametrize(
    ("asked", "namespaces", "reason"),
    [
        ({"kernel.panic": "1"}, Namespaces(), "not namespaced"),
        ({"net.ipv4.conf.eth0.rp_filter": "1"}, Namespaces(network=Sharing.NODE), "shares this namespace"),
        ({"fs.mqueue.msg_max": "1"}, Namespaces(ipc=Sharing.NODE), "shares this namespace"),
        ({"net.ipv4.conf.interfacewithname.rp_filter": "1"}, Namespaces(), "more than 15 bytes"),
        ({"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}, Namespaces(), "the same, is"),
        ({"net.ipv4.ip_forward\0": "1"}, Namespaces(), "not the name"),
    ],
)
def test_sysctls_that_no_pod_may_have_are_the_request_s_fault(asked, namespaces, reason):
    with pytest.raises(UnfitRequestError, match=reason):
        sysctls.check(asked, namespaces)
    with pytest.raises(UnfitRequestError, match=reason):
        sysctls.write(asked, namespaces)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "net/../kernel/panic", "/net", "net..x", "net/.", "net.//.x"]
)
def test_names_that_are_no_sysctls(name):
    with pytest.raises(HostError, match="not the name of a sysctl"):
        sysctls.path_of(name)


def test_choosing_a_snapshotter(tmp_path):
    assert make_snapshotter(tmp_path, "copy").kind == "copy"
    assert make_snapshotter(tmp_path, "overlay").kind == "overlay"
    assert make_snapshotter(tmp_path, "auto").kind in ("copy", "overlay")
    with pytest.raises(HostError, match="choose auto"):
        make_snapshotter(tmp_path, "zfs")


def wait_until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("preparation", "ready"),
    [
        ("pass", False),
        ("signal.signal(signal.SIGTERM, lambda *_: None)", True),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])", True),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); wait = True", True),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", False),
    ],
    ids=["nothing", "a handler", "blocked", "sigwait", "ignored"],
)
def test_whether_a_process_is_ready_for_a_signal(preparation, ready):
    program = f"import signal, sys; wait = False; {preparation}; print(flush=True)\n"
    program += "signal.sigwait([signal.SIGTERM]) if wait else sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        wait_until(lambda: _ready_for(process.pid, signal.SIGTERM) is ready)
        process.stdin.close()
        process.kill()


def test_rules_in_the_words_of_version_1():
    assert str(Rule("c", 1, 3)) == "c 1:3 rwm"
    assert str(Rule("b", 8, None, "r")) == "b 8:* r"
    assert [str(rule) for rule in ALWAYS][:2] == ["c *:* m", "b *:* m"]


@pytest.mark.parametrize("number", [0, 1, 300])
def test_every_jump_of_a_program_stays_inside(number):
    code = program(
        [
            Rule("b" if at % 2 else "c", at % 3 or None, at % 5 or None, "rwm"[: at % 3 + 1])
            for at in range(number)
        ]
    )
    assert len(code) % 8 == 0
    steps = [struct.unpack("=BBhi", code[at : at + 8]) for at in range(0, len(code), 8)]
    for at, (operation, _, offset, _) in enumerate(steps):
        if operation in (0x55, 0x45):
            assert at < at + 1 + offset < len(steps)
            assert steps[at + offset][0] == 0x95  # behind the end of its own rule
    assert [step[0] for step in steps[-2:]] == [0xB7, 0x95]
