"""What keeps a container to itself if nothing is asked for, and what privileged changes of it: rows of SECURITY.md."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1

pytestmark = pytest.mark.node

# What the kubelet asks for with procMount: Default (pkg/securitycontext/util.go, DefaultMaskedPaths).
MASKED = [
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


@pytest.fixture(scope="module")
def daemon(module_daemon):
    module_daemon.pull()
    return module_daemon


@pytest.fixture(scope="module")
def plain(daemon):
    """A container as a kubelet asks for it that was asked for nothing."""
    context = v1.LinuxContainerSecurityContext(masked_paths=MASKED, readonly_paths=READONLY)
    linux = v1.LinuxContainerConfig(security_context=context)
    return daemon.container(daemon.pod("plain"), "sleep", "1000", linux=linux)


@pytest.fixture(scope="module")
def privileged(daemon):
    context = v1.LinuxContainerSecurityContext(privileged=True, masked_paths=MASKED, readonly_paths=READONLY)
    pod = daemon.pod("privileged", security_context=v1.LinuxSandboxSecurityContext(privileged=True))
    linux = v1.LinuxContainerConfig(security_context=context)
    return daemon.container(pod, "sleep", "1000", linux=linux)


def sh(daemon, container, script):
    answer = daemon.exec(container, "sh", "-c", script)
    assert answer.exit_code == 0, answer
    return answer.stdout.decode()


def mounts(daemon, container):
    """By where they are: their options, those of the mount and those of the file system."""
    lines = [line.split() for line in sh(daemon, container, "cat /proc/self/mountinfo").splitlines()]
    return {line[4]: set(line[5].split(",")) for line in lines}


def keeps(daemon, container, path):
    """Whether a file cannot be opened to write; nothing is written."""
    return daemon.exec(container, "sh", "-c", f": >> {path}").exit_code != 0


def test_file_systems_of_the_kernel(daemon, plain) -> None:
    found = mounts(daemon, plain)
    cgroups = {place: options for place, options in found.items() if place.startswith("/sys/fs/cgroup/")}
    if not cgroups:  # version 2
        cgroups = {"/sys/fs/cgroup": found["/sys/fs/cgroup"]}
    for place, options in {"/sys": found["/sys"], **cgroups}.items():
        assert {"ro", "nosuid", "nodev", "noexec"} <= options, place
    for place in ("/proc", "/dev/mqueue", "/dev/shm"):
        assert {"rw", "nosuid", "nodev", "noexec"} <= found[place], place
    assert {"nosuid", "noexec"} <= found["/dev/pts"]
    assert "nosuid" in found["/dev"]
    for path in READONLY[:-1]:
        if daemon.exec(plain, "test", "-e", path).exit_code == 0:
            assert "ro" in found[path], path
    assert keeps(daemon, plain, "/proc/sys/kernel/core_pattern")
    assert keeps(daemon, plain, "/proc/sysrq-trigger")
    hidden = "for file in /proc/kcore /proc/keys /proc/timer_list; do [ ! -e $file ] || head -c 1 $file; done"
    assert sh(daemon, plain, f"{hidden}; ls /sys/firmware") == ""
    others = set(found) - {"/", "/proc", "/dev", "/sys"}
    allowed = ("/proc/", "/dev/", "/sys/", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    assert not [place for place in others if not place.startswith(allowed)]


def test_what_privileged_adds(daemon, plain, privileged) -> None:
    show = "grep -E '^Cap(Eff|Bnd)|^NoNewPrivs|^Seccomp:' /proc/self/status"
    own = {
        line.split(":\t")[0]: line.split(":\t")[1]
        for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    }
    found = dict(line.split(":\t") for line in sh(daemon, privileged, show).splitlines())
    assert found == {"CapEff": own["CapEff"], "CapBnd": own["CapBnd"], "NoNewPrivs": "0", "Seccomp": "0"}
    less = dict(line.split(":\t") for line in sh(daemon, plain, show).splitlines())
    assert less == {
        "CapEff": "00000000a80425fb",
        "CapBnd": "00000000a80425fb",
        "NoNewPrivs": "0",
        "Seccomp": "0",
    }

    there = mounts(daemon, privileged)
    assert "rw" in there["/sys"]
    assert not [place for place in there if place in (*MASKED, *READONLY)]
    assert not keeps(daemon, privileged, "/proc/sys/kernel/core_pattern")
    node = {path.name for path in Path("/dev").iterdir() if path.is_char_device() and not path.is_symlink()}
    assert node - {"console"} <= set(sh(daemon, privileged, "ls /dev").split())
    assert sh(daemon, privileged, "mknod /tmp/kmsg c 1 11 && : < /tmp/kmsg && echo opened") == "opened\n"
    kept = daemon.exec(plain, "sh", "-c", "mknod /tmp/kmsg c 1 11 && : < /tmp/kmsg && echo opened")
    assert kept.stdout == b""


def test_what_privileged_keeps(daemon, privileged) -> None:
    pid = daemon.pid(privileged)
    for kind in NAMESPACES:
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink(), kind
    before = Path("/dev/null").stat().st_mode
    script = "chmod 600 /dev/null; ps -o args | grep -v grep | grep -c 'cri serve'; umask; ulimit -c"
    assert sh(daemon, privileged, script).split() == ["0", "0022", "0"]
    assert Path("/dev/null").stat().st_mode == before
    refused = v1.LinuxContainerSecurityContext(privileged=True)
    with pytest.raises(grpc.RpcError, match=r"its sandbox .* is not"):
        daemon.container(
            daemon.pod("humble"), "true", linux=v1.LinuxContainerConfig(security_context=refused)
        )


def test_user_namespaces_are_refused(daemon) -> None:
    """Rather than to run with the node's."""
    mapping = v1.IdMapping(host_id=100000, container_id=0, length=65536)
    wanted = v1.UserNamespace(mode=v1.NamespaceMode.POD, uids=[mapping], gids=[mapping])
    options = v1.NamespaceOption(userns_options=wanted)
    with pytest.raises(grpc.RpcError, match="user namespaces"):
        daemon.pod("mapped", security_context=v1.LinuxSandboxSecurityContext(namespace_options=options))
