"""The binding on a real FreeBSD kernel, as root: every call, and its errors in the kernel's words."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cri.sandbox.freebsd import kernel
from cri.sandbox.freebsd.calls import (
    INHERIT,
    MNT_IGNORE,
    MNT_NOEXEC,
    MNT_NOSUID,
    MNT_RDONLY,
    NEW,
    Calls,
    DevfsRule,
    Mount,
)

from . import observer

pytestmark = pytest.mark.node

calls: Calls = kernel

RULESET = 4711
HIDDEN = DevfsRule(hide=True)
NULL = DevfsRule("null", hide=False, mode=0o640)

needs_15 = pytest.mark.skipif(
    os.uname().release < "15", reason="FreeBSD only from 15 on has jail descriptors and meta"
)
needs_racct = pytest.mark.skipif(
    kernel.sysctl("kern.racct.enable")[0] == 0,
    reason="FreeBSD only counts with kern.racct.enable=1 in /boot/loader.conf",
)


def names_in(directory: str | Path) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def eventually(condition: Callable[[], object], patience: float = 20.0) -> None:
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, "it has not come to pass"
        time.sleep(0.02)


def attach(jid: int) -> None:
    """Move this process into a jail, which takes that it has no directory open."""
    observer.call("jail_attach", jid)


def close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, 4096)


def in_child(body: Callable[[], Any]) -> Any:
    """What `body` returns in a forked child, as JSON; what it raises there is raised here, as OSError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            close_all_but(writer)
            try:
                result = {"result": body()}
            except OSError as error:
                result = {"error": [error.errno, error.strerror, str(error.filename)]}
            except BaseException as error:
                result = {"failure": repr(error)}
            os.write(writer, json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = json.loads(stream.read() or b'{"failure": "it died"}')
    os.waitpid(pid, 0)
    if "error" in told:
        raise OSError(*told["error"])
    assert "failure" not in told, told["failure"]
    return told["result"]


def in_jail(jid: int, body: Callable[[], Any]) -> Any:
    def attached() -> Any:
        attach(jid)
        return body()

    return in_child(attached)


@contextlib.contextmanager
def process(body: Callable[[], Any]) -> Iterator[int]:
    """A child that runs `body`, and then sleeps; it is ready when this yields."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            close_all_but(writer)
            body()
            os.write(writer, b"ready")
            os.close(writer)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 5) == b"ready"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


numbers = itertools.count(1)


def is_gone(name: str) -> bool:
    kernel.devfs_refresh()
    return calls.jail_find(name, dying=True) is None


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[str, int]]]:
    """Makes jails, below `tmp_path` unless told otherwise, and removes them."""
    made: list[str] = []

    def make(parent: str = "", **parameters: Any) -> tuple[str, int]:
        name = f"{parent}{'.' if parent else ''}t{os.getpid()}x{next(numbers)}"
        defaults = {"name": name, "path": str(tmp_path), "persist": True}
        jid = calls.jail_create(
            defaults | {key.replace("__", "."): value for key, value in parameters.items()}
        )
        made.append(name)
        return name, jid

    yield make
    for name in reversed(made):
        if found := calls.jail_find(name):
            calls.jail_remove(found.jid)
    for name in made:
        eventually(lambda name=name: is_gone(name))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Mount]]:
    """Mounts, and takes away what is left below `tmp_path`."""

    def mounted(kind: str, target: Path, options: dict[str, str | None], flags: int = 0) -> Mount:
        calls.mount(kind, str(target), options, flags)
        (found,) = [mount for mount in calls.mounts() if mount.target == str(target)]
        return found

    yield mounted
    for mount in reversed(calls.mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            calls.unmount(mount, force=True)


class TestJails:
    def test_life(self, make, tmp_path):
        name, jid = make(host__hostname="first")
        found = calls.jail_find(name)
        assert (found.jid, found.name, found.path, found.dying) == (jid, name, str(tmp_path), False)
        assert found in calls.jails()
        assert in_jail(jid, socket.gethostname) == "first"
        calls.jail_update(jid, {"host.hostname": "second"})
        assert in_jail(jid, socket.gethostname) == "second"
        calls.jail_remove(jid)
        eventually(lambda: calls.jail_find(name, dying=True) is None)
        assert jid not in [jail.jid for jail in calls.jails()]

    def test_nobody(self):
        assert calls.jail_find("nobody") is None

    def test_a_name_twice(self, make):
        name, _ = make()
        with pytest.raises(FileExistsError, match=f'jail "{name}" already exists') as caught:
            calls.jail_create({"name": name, "path": "/", "persist": True})
        assert caught.value.filename == f"jail {name}"

    def test_an_unknown_parameter(self):
        with pytest.raises(OSError, match=r"unknown parameter: allow\.nonsense") as caught:
            calls.jail_create({"name": "nonsense", "path": "/", "persist": True, "allow.nonsense": True})
        assert caught.value.errno == errno.EINVAL
        assert calls.jail_find("nonsense") is None

    def test_no_path(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            calls.jail_create({"name": "lost", "path": str(tmp_path / "none"), "persist": True})

    def test_gone(self, make):
        _, jid = make()
        calls.jail_remove(jid)
        with pytest.raises(FileNotFoundError, match=f"jail {jid} not found"):
            calls.jail_update(jid, {"persist": True})
        with pytest.raises(OSError) as caught:
            calls.jail_remove(999_998)
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "jail 999998")

    def test_children(self, make):
        parent, parent_jid = make(vnet=NEW)
        child, jid = make(parent=parent, ip4=INHERIT, ip6=INHERIT)
        assert [jail.name for jail in calls.jails() if jail.name.startswith(parent)] == [parent, child]
        calls.jail_remove(parent_jid)
        assert calls.jail_find(child) is None
        with pytest.raises(FileNotFoundError, match='"nobody" not found'):
            make(parent="nobody")
        assert jid not in [jail.jid for jail in calls.jails()]

    def test_as_many_children_as_their_maker_may_make(self, make):
        """children.max bounds what is made from inside of a jail, and not what others make in there."""
        parent, jid = make(children__max=1)
        make(parent=parent)
        make(parent=parent)
        parameters = {"name": "one", "path": "/", "persist": True}
        with pytest.raises(PermissionError, match="prison limit exceeded"):
            in_jail(jid, lambda: kernel.jail_create(parameters))

    def test_a_child_has_no_more_than_its_parent(self, make):
        parent, _ = make(allow__raw_sockets=False)
        with pytest.raises(PermissionError):
            make(parent=parent, allow__raw_sockets=True)

    def test_booleans(self, make):
        def raw() -> bool:
            with contextlib.suppress(PermissionError):
                socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
                return True
            return False

        _, without = make(allow__raw_sockets=False, ip4=INHERIT)
        _, having = make(allow__raw_sockets=True, ip4=INHERIT)
        assert not in_jail(without, raw)
        assert in_jail(having, raw)
        calls.jail_update(having, {"allow.raw_sockets": False})
        assert not in_jail(having, raw)

    def test_vnet(self, make):
        _, jid = make(vnet=NEW)
        assert [name for _, name in in_jail(jid, socket.if_nameindex)] == ["lo0"]

    def test_dying(self, make):
        name, jid = make(ip4=INHERIT)
        ours, theirs = socket.socketpair()

        def hand_out_a_socket() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                socket.send_fds(theirs, [b"it"], [made.fileno()])

        pid = os.fork()
        if pid == 0:
            try:
                close_all_but(theirs.fileno())
                attach(jid)
                hand_out_a_socket()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        _, (held,), *_ = socket.recv_fds(ours, 2, 2)  # two: for an odd count Python makes too little room
        ours.close()
        theirs.close()
        calls.jail_remove(jid)
        time.sleep(1)
        assert calls.jail_find(name) is None
        dying = calls.jail_find(name, dying=True)
        assert dying is not None
        assert dying.dying
        assert name not in [jail.name for jail in calls.jails()]
        assert dying in calls.jails(dying=True)
        os.close(held)
        eventually(lambda: calls.jail_find(name, dying=True) is None)

    def test_parameters_of_this_kernel(self):
        names = ("vnet", "host", "host.hostname", "children.max", "allow.raw_sockets", "allow.mount.nullfs")
        assert [calls.has_parameter(name) for name in (*names, "nonsense", "vnet.nonsense")] == [
            *(True for _ in names),
            False,
            False,
        ]
        assert calls.has_parameter("meta") == (os.uname().release >= "15")

    @pytest.mark.parametrize(
        ("name", "value"), [("host.hostname", "a\0b"), ("children.max", 1 << 40), ("host.hostid", -1)]
    )
    def test_values(self, make, name, value):
        if name == "host.hostid":
            make(host__hostid=1 << 33)
        else:
            with pytest.raises(OSError) as caught:
                make(**{name.replace(".", "__"): value})
            assert caught.value.errno == errno.EINVAL

    @needs_15
    def test_meta(self, make):
        name, jid = make(meta="pod=default/web\nuid=ü\n")
        assert kernel.jail_meta(jid) == "pod=default/web\nuid=ü\n"
        calls.jail_update(jid, {"meta": "x" * 4095})
        assert kernel.jail_meta(jid) == "x" * 4095
        _, plain = make()
        assert kernel.jail_meta(plain) == ""
        with pytest.raises(FileNotFoundError):
            kernel.jail_meta(999_998)
        assert calls.jail_find(name).jid == jid


class TestAttach:
    def test_moves_into_the_root(self, make, tmp_path):
        (tmp_path / "inside").touch()
        _, jid = make()
        assert "inside" in in_jail(jid, lambda: names_in("/"))
        assert in_jail(jid, os.getcwd) == "/"

    def test_terminals_belong_to_their_jail(self, make, mounted, tmp_path):
        (tmp_path / "dev").mkdir()
        mounted("devfs", tmp_path / "dev", {"from": "devfs"})
        name, jid = make()
        _, other = make()

        def open_terminal() -> None:
            attach(jid)
            _, slave = os.openpty()
            os.login_tty(slave)
            assert os.tcgetpgrp(0) == os.getpid()

        def terminals() -> list[str]:
            return names_in("/dev/pts") if Path("/dev/pts").exists() else []

        before = terminals()
        with process(open_terminal):
            (number,) = in_jail(jid, terminals)
            assert set(terminals()) - set(before) == {number}
            assert in_jail(other, terminals) == []
        calls.jail_remove(jid)
        eventually(lambda: is_gone(name))  # though both directories still have it: devfs_refresh


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


class TestWarden:
    def test_reaper(self):
        def reap() -> dict[str, Any]:
            kernel.become_reaper()
            kernel.become_reaper()
            told: dict[str, Any] = {"nobody": kernel.reaper_pids(), "kill nobody": kernel.reaper_kill(9)}
            child = _sleeping_child_with_orphan()
            told["all"] = len(kernel.reaper_pids())
            told["other subtree"] = kernel.reaper_kill(9, subtree=os.getpid())
            told["killed"] = kernel.reaper_kill(signal.SIGKILL, subtree=child)
            statuses = [os.waitpid(-1, 0)[1] for _ in range(2)]
            told["statuses"] = statuses
            told["left"] = kernel.reaper_pids()
            return told

        assert in_child(reap) == {
            "nobody": [],
            "kill nobody": False,
            "all": 2,
            "other subtree": False,
            "killed": True,
            "statuses": [9, 9],
            "left": [],
        }

    def test_many_descendants(self):
        def reap() -> list[int]:
            kernel.become_reaper()
            pids = []
            for _ in range(66):
                pid = os.fork()
                if pid == 0:
                    signal.pause()
                pids.append(pid)
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(0.5)  # a zombie now
            found = kernel.reaper_pids()
            kernel.reaper_kill(signal.SIGKILL)
            for _ in pids:
                os.wait()
            return [len(found), pids[0] in found, set(found) == set(pids[1:])]

        assert in_child(reap) == [65, False, True]

    def test_a_jailed_orphan_is_reaped_too(self, make):
        _, jid = make()

        def reap() -> bool:
            kernel.become_reaper()
            pid = os.fork()
            if pid == 0:
                attach(jid)
                orphan = os.fork()
                if orphan == 0:
                    while True:
                        signal.pause()
                os._exit(0)
            os.waitpid(pid, 0)
            (orphan,) = kernel.reaper_pids()
            kernel.reaper_kill(signal.SIGKILL)
            return os.waitpid(-1, 0) == (orphan, signal.SIGKILL)

        assert in_child(reap)

    def test_title(self):
        with process(lambda: kernel.set_title("pod 100% of web")) as pid:
            shown = subprocess.run(
                ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True
            ).stdout
        assert shown.strip().startswith("pod 100% of web")


def _sleeping_child_with_orphan() -> int:
    """A child, and its child that has left for another session."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            os.setsid()
            os.write(writer, b"x")
        while True:
            signal.pause()
    os.read(reader, 1)
    return pid


class TestMounts:
    def test_tmpfs(self, mounted, tmp_path):
        target = tmp_path / "t"
        target.mkdir()
        mount = mounted("tmpfs", target, {"from": "tmpfs", "size": "65536", "mode": "0750"}, MNT_NOSUID)
        assert (mount.kind, mount.source, mount.flags & MNT_NOSUID) == ("tmpfs", "tmpfs", MNT_NOSUID)
        assert target.stat().st_mode & 0o7777 == 0o750
        with pytest.raises(OSError) as caught:
            (target / "big").write_bytes(bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert calls.mount_of(str(target / "big")) == mount
        assert calls.mounts()[-1] == mount
        calls.unmount(mount)
        assert mount.fsid not in [one.fsid for one in calls.mounts()]
        with pytest.raises(FileNotFoundError) as caught:
            calls.unmount(mount)
        assert caught.value.filename == str(target)

    def test_nullfs(self, mounted, tmp_path):
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        target.mkdir()
        (source / "file").write_text("there")
        flags = MNT_RDONLY | MNT_NOEXEC | MNT_IGNORE
        mount = mounted("nullfs", target, {"from": str(source)}, flags)
        assert mount.flags & flags == flags
        assert (target / "file").read_text() == "there"
        with pytest.raises(OSError) as caught:
            (target / "file").write_text("here")
        assert caught.value.errno == errno.EROFS
        assert calls.mount_of(str(source)) != mount

    def test_nullfs_of_a_file(self, mounted, tmp_path):
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_text("source")
        target.write_text("target")
        mount = mounted("nullfs", target, {"from": str(source)})
        assert target.read_text() == "source"
        calls.unmount(mount)
        assert target.read_text() == "target"

    def test_in_use(self, mounted, tmp_path):
        target = tmp_path / "t"
        target.mkdir()
        mount = mounted("tmpfs", target, {"from": "tmpfs"})
        with (target / "open").open("w"):
            with pytest.raises(OSError) as caught:
                calls.unmount(mount)
            assert caught.value.errno == errno.EBUSY
            calls.unmount(mount, force=True)

    def test_two_in_one_place(self, mounted, tmp_path):
        target = tmp_path / "t"
        target.mkdir()
        below = mounted("tmpfs", target, {"from": "tmpfs"})
        (target / "below").touch()
        calls.mount("tmpfs", str(target), {"from": "tmpfs"})
        with contextlib.suppress(
            OSError
        ):  # the lower one may be refused as busy, but is never taken for the upper
            calls.unmount(below)
        assert not (target / "below").exists()

    def test_errors(self, tmp_path):
        with pytest.raises(OSError, match="Invalid fstype") as caught:
            calls.mount("nonsensefs", str(tmp_path), {"from": "x"})
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(tmp_path))
        with pytest.raises(FileNotFoundError):
            calls.mount("tmpfs", str(tmp_path / "none"), {"from": "tmpfs"})
        with pytest.raises(OSError, match="nonsense") as caught:
            calls.mount("tmpfs", str(tmp_path), {"from": "tmpfs", "nonsense": None})
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(FileNotFoundError):
            calls.mount_of(str(tmp_path / "none"))


class TestDevfs:
    @pytest.fixture
    def dev(self, tmp_path) -> Iterator[Path]:
        yield tmp_path
        calls.devfs_ruleset(RULESET, ())

    def test_ruleset(self, mounted, dev):
        calls.devfs_ruleset(RULESET, [HIDDEN, NULL])
        (dev / "one").mkdir()
        mounted("devfs", dev / "one", {"from": "devfs", "ruleset": str(RULESET)})
        assert names_in(dev / "one") == ["null"]
        assert (dev / "one/null").stat().st_mode & 0o7777 == 0o640
        calls.devfs_ruleset(RULESET, [HIDDEN, NULL, DevfsRule("zero", hide=False)])
        (dev / "two").mkdir()
        mounted("devfs", dev / "two", {"from": "devfs", "ruleset": str(RULESET)})
        assert names_in(dev / "two") == ["null", "zero"]
        assert names_in(dev / "one") == ["null"]

    def test_apply(self, mounted, dev):
        (dev / "dev").mkdir()
        mounted("devfs", dev / "dev", {"from": "devfs"})
        assert "zero" in names_in(dev / "dev")
        calls.devfs_apply(str(dev / "dev"), [HIDDEN, DevfsRule("nu*", hide=False)])
        assert names_in(dev / "dev") == ["null"]
        assert Path("/dev/zero").exists()

    def test_is_given_to_a_jail(self, make, mounted, dev):
        calls.devfs_ruleset(RULESET, [HIDDEN, NULL])
        make(devfs_ruleset=RULESET)

    def test_errors(self, dev):
        with pytest.raises(OSError) as caught:
            calls.devfs_apply(str(dev), [HIDDEN])
        assert (caught.value.errno, caught.value.filename) == (errno.ENOTTY, str(dev))
        for number in (0, 65536):
            with pytest.raises(OSError, match="from 1 to 65535"):
                calls.devfs_ruleset(number, [])
        with pytest.raises(OSError) as caught:
            calls.devfs_ruleset(RULESET, [DevfsRule("x" * 200)])
        assert caught.value.errno == errno.ENAMETOOLONG


@needs_racct
class TestLimits:
    def test_rules(self, make):
        name, jid = make()
        assert calls.rctl_rules(f"jail:{name}") == []
        calls.rctl_add(f"jail:{name}:maxproc:deny=1")
        calls.rctl_add(f"jail:{name}:memoryuse:sigkill=1000000000")
        assert sorted(calls.rctl_rules(f"jail:{name}")) == [
            f"jail:{name}:maxproc:deny=1",
            f"jail:{name}:memoryuse:sigkill=1000000000",
        ]
        with pytest.raises(BlockingIOError):
            in_jail(jid, os.fork)
        calls.rctl_remove(f"jail:{name}:maxproc")
        assert calls.rctl_rules(f"jail:{name}") == [f"jail:{name}:memoryuse:sigkill=1000000000"]
        calls.rctl_remove(f"jail:{name}")
        calls.rctl_remove(f"jail:{name}")
        assert calls.rctl_rules(f"jail:{name}") == []

    def test_many_rules(self, make):
        name, _ = make()
        for amount in range(1, 300):
            calls.rctl_add(f"jail:{name}:maxproc:log={amount}")
        assert len(calls.rctl_rules(f"jail:{name}")) == 299
        calls.rctl_remove(f"jail:{name}")

    def test_usage(self, make):
        parent, _ = make()
        name, jid = make(parent=parent)
        with process(lambda: attach(jid)):
            for subject in (name, parent):
                usage = calls.rctl_usage(f"jail:{subject}:")
                assert usage["maxproc"] == 1
                assert usage["vmemoryuse"] > 1_000_000
        with pytest.raises(ProcessLookupError) as caught:
            calls.rctl_usage("jail:nobody:")
        assert caught.value.filename == "jail:nobody:"

    def test_errors(self):
        with pytest.raises(OSError) as caught:
            calls.rctl_add("jail:x:nonsense:deny=1")
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "rule jail:x:nonsense:deny=1")


def test_without_racct():
    if kernel.sysctl("kern.racct.enable")[0]:
        pytest.skip("FreeBSD only with kern.racct.enable=0")
    for call in (calls.rctl_add, calls.rctl_remove, calls.rctl_rules, calls.rctl_usage):
        with pytest.raises(OSError) as caught:
            call("jail:x:maxproc:deny=1")
        assert caught.value.errno == errno.ENOSYS


class TestProcesses:
    def test_of_jails(self, make):
        parent, outer = make()
        _, inner = make(parent=parent)

        def busy() -> None:
            attach(inner)
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass

        with process(lambda: attach(outer)) as idle, process(busy) as worker:
            assert [one.pid for one in calls.processes([outer])] == [idle]
            found = {one.pid: one for one in calls.processes([inner, outer])}
            assert {pid: one.jid for pid, one in found.items()} == {idle: outer, worker: inner}
            assert 150_000 < found[worker].cpu_microseconds < 5_000_000
            assert found[idle].resident > 1_000_000
            assert calls.processes([]) == []
        assert calls.processes([inner, outer]) == []

    def test_time_of_dead_children(self, make):
        _, jid = make()

        def body() -> None:
            attach(jid)
            if (pid := os.fork()) == 0:
                until = time.process_time() + 0.3
                while time.process_time() < until:
                    pass
                os._exit(0)
            os.waitpid(pid, 0)

        with process(body):
            (one,) = calls.processes([jid])
            assert one.cpu_microseconds > 250_000

    def test_zombies_do_not_count(self, make):
        _, jid = make()

        def body() -> None:
            attach(jid)
            if os.fork() == 0:
                os._exit(0)
            time.sleep(0.3)

        with process(body) as pid:
            assert [one.pid for one in calls.processes([jid])] == [pid]

    def test_many(self, make):
        _, jid = make()

        def body() -> None:
            attach(jid)
            for _ in range(69):
                if os.fork() == 0:
                    while True:
                        signal.pause()

        with process(body):
            assert len(calls.processes([jid])) == 70
            calls.jail_remove(jid)


class TestNode:
    def test_sysctl(self):
        assert calls.sysctl("kern.ostype") == b"FreeBSD\0"
        assert len(calls.sysctl("kern.proc.proc")) > 1088
        with pytest.raises(FileNotFoundError) as caught:
            calls.sysctl("kern.nonsense")
        assert caught.value.filename == "kern.nonsense"

    def test_modules(self, mounted, tmp_path):
        (tmp_path / "t").mkdir()
        mounted("nullfs", tmp_path / "t", {"from": "/dev"})
        assert [calls.has_module(name) for name in ("nullfs", "kernel", "nonsense")] == [True, True, False]

    def test_cpus(self, make):
        _, jid = make()
        calls.jail_cpus(jid, [0])
        shown = subprocess.run(
            ["cpuset", "-g", "-j", str(jid)], capture_output=True, text=True, check=True
        ).stdout
        assert shown.splitlines()[0].endswith("mask: 0")
        for cpus in ([1023], [5000], [-1], []):
            with pytest.raises(OSError) as caught:
                calls.jail_cpus(jid, cpus)
            assert caught.value.errno in (errno.EINVAL, errno.EDEADLK)
        with pytest.raises(ProcessLookupError):
            calls.jail_cpus(999_998, [0])
