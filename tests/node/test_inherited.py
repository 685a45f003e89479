"""What fork and exec hand down (docs/inherited.md): a daemon that was started with the wrong value of all of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cri.api.runtime import v1
from cri.sandbox.linux import stated
from tests.inherited.table import compile_program, printed, readings, rows
from tests.inherited.table import stated as expected_of
from tests.node.conftest import running_daemon

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

DEFAULT_CAPABILITIES = 0xA80425FB
"""What container engines agree on: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP."""
KERNEL_S = {
    "security label",
    "time slice",
    "no memory both writable and executable",
    "speculation of stores",
    "speculation of indirect branches",
    "flush of the L1 cache",
    "vector length",
    "streaming vector length",
    "fault injection",
    "CPU affinity",
    *("time namespace", "user namespace"),
}
"""The node's: those of whom this test runs beside the daemon."""
LAUNCHED_IN = {f"{kind} namespace" for kind in ("ipc", "net", "uts")}
LOOKED_AT = {
    "session keyring",
    "session keyring's id",
    "cgroups",
    *(f"{kind} namespace" for kind in ("mnt", "pid", "cgroup")),
}
"""By code of its own."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("programs")
    return compile_program(directory, "linux.c"), compile_program(directory, "spoil_linux.c")


@pytest.fixture(scope="module")
def node(programs):
    return printed(programs[0])


@pytest.fixture(scope="module")
def spoiled(registry, programs):
    with running_daemon(registry, f"cris{os.getpid()}", [programs[1]]) as daemon:
        daemon.pull()
        yield daemon


class Case:
    """A container, and what is asked of it."""

    def __init__(self, daemon, reader, name, pid_mode, **context):
        self.daemon = daemon
        options = v1.NamespaceOption(pid=pid_mode)
        self.pod = daemon.pod(
            name, security_context=v1.LinuxSandboxSecurityContext(namespace_options=options)
        )
        self.fields = {
            "mounts": [v1.Mount(container_path="/reader", host_path=str(reader), readonly=True)],
            "linux": v1.LinuxContainerConfig(
                security_context=v1.LinuxContainerSecurityContext(namespace_options=options, **context)
            ),
        }

    def first(self, **more):
        """What its first process reads."""
        container = self.daemon.container(self.pod, "/reader", name="first", **self.fields, **more)
        self.daemon.wait(container, v1.ContainerState.CONTAINER_EXITED)
        lines = self.daemon.log_of(container).read_text().splitlines()
        return container, readings("\n".join(line.split(" ", 3)[3].rstrip("\r") for line in lines))

    def second(self):
        """What an exec reads, and the process that it was beside."""
        container = self.daemon.container(self.pod, "sleep", "1000", name="second", **self.fields)
        answer = self.daemon.exec(container, "/reader")
        assert answer.exit_code == 0, answer
        return container, readings(answer.stdout.decode())


def namespaces(pid):
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    return {f"{kind} namespace": str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds}


def check(found, node, **asked):
    """Whether it is what the page says; `asked` is what the page cannot know."""
    keyring = found["session keyring"]
    assert keyring == "keyring;0;0;3f0b0000;_ses, 0 keys", keyring
    assert found["session keyring's id"] != node["session keyring's id"]
    assert found["mnt namespace"] != node["mnt namespace"]
    # A namespace's root, or an exec's group in it: what lies above is out of sight.
    assert all(re.fullmatch(r".*:/(exec-\d+)?", line) for line in found["cgroups"].split()), found["cgroups"]
    assert found["cgroup namespace"] != node["cgroup namespace"]
    expected = expected_of("Linux", node, may_raise=stated.may_raise())
    expected |= {name: node[name] for name in KERNEL_S}
    expected |= asked
    unknown = set(rows("Linux")) - set(expected) - LOOKED_AT - LAUNCHED_IN
    assert not unknown, f"how are these checked? {unknown}"
    assert {name: found[name] for name in expected} == expected


def asked(uid=0, groups="0", capabilities=DEFAULT_CAPABILITIES, **more):
    bits = f"{capabilities:016x}"
    return {
        "user ids": " ".join([str(uid)] * 4),
        "group ids": " ".join([str(uid)] * 4),
        "supplementary groups": groups,
        "permitted capabilities": bits if uid == 0 else "0" * 16,
        "effective capabilities": bits if uid == 0 else "0" * 16,
        "bounding set": bits,
        "no_new_privs": "0",
        "seccomp": "0",
        "working directory": "/",
        "OOM score adjustment": "0",
    } | more


@pytest.mark.parametrize("mode", ["POD", "CONTAINER", "NODE"])
def test_root(spoiled, programs, node, mode):
    case = Case(spoiled, programs[0], f"root-{mode.lower()}", v1.NamespaceMode[mode])
    container, found = case.first()
    check(found, node, **asked())
    container, found = case.second()
    check(found, node, **asked())
    beside = namespaces(spoiled.pid(container))
    assert {name: found[name] for name in beside} == beside
    groups = Path(f"/proc/{spoiled.pid(container)}/cgroup").read_text().splitlines()
    used = [line for line in groups if not line.startswith("0::") or len(groups) == 1]
    assert all(container in line for line in used), groups
    assert (found["pid namespace"] == node["pid namespace"]) == (mode == "NODE")
    for name in LAUNCHED_IN:
        assert found[name] != node[name]


def test_a_user_with_more_asked_for(spoiled, programs, node):
    case = Case(
        spoiled,
        programs[0],
        "user",
        v1.NamespaceMode.CONTAINER,
        run_as_username="user",
        no_new_privs=True,
        capabilities=v1.Capability(drop_capabilities=["ALL"], add_capabilities=["CHOWN", "NET_BIND_SERVICE"]),
        seccomp=v1.SecurityProfile(profile_type=v1.SecurityProfileProfileType(1)),
    )
    case.fields["working_dir"] = "/tmp"
    case.fields["linux"].resources = v1.LinuxContainerResources(oom_score_adj=321)
    more = {"no_new_privs": "1", "working directory": "/tmp", "OOM score adjustment": "321"}
    expected = asked(1000, "1000 2000", 1 << 0 | 1 << 10, **more)
    for read in (case.first, case.second):
        _, found = read()
        check(found, node, **expected)


def test_a_terminal(spoiled, programs, node):
    case = Case(spoiled, programs[0], "terminal", v1.NamespaceMode.CONTAINER)
    _, found = case.first(tty=True)
    check(found, node, **asked(), **{"controlling terminal": "one"})


def test_the_daemon_was_spoiled_indeed(spoiled, node):
    """Or the others prove nothing."""
    pid = spoiled.process.pid
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    assert status["Umask"].strip() == "0022"  # which it sets itself
    assert status["Cpus_allowed_list"].strip() == "0"
    assert int(status["SigIgn"], 16) & 0x800  # SIGUSR2
    assert Path(f"/proc/{pid}/personality").read_text().strip() == "00040000"
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    assert Path(f"/proc/{pid}/timerslack_ns").read_text().strip() == "1000000"
