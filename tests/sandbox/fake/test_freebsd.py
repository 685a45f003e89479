"""The FreeBSD kernel in memory has the rules of the real one: each was tried on 15.1."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cri.sandbox.fake.freebsd import FakeFreeBSD, InjectedError
from cri.sandbox.freebsd.calls import (
    DISABLE,
    INHERIT,
    MNT_IGNORE,
    MNT_RDONLY,
    NEW,
    DevfsRule,
    JailValue,
    Mount,
)


@pytest.fixture
def kernel(tmp_path_factory: pytest.TempPathFactory) -> FakeFreeBSD:
    return FakeFreeBSD(scratch=tmp_path_factory.mktemp("scratch"))


@contextmanager
def refused(number: int, text: str = "") -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, caught.value
    assert text in (caught.value.strerror or "")


def make(kernel: FakeFreeBSD, name: str = "", **parameters: JailValue) -> int:
    given = {key.replace("__", "."): value for key, value in parameters.items()}
    return kernel.jail_create({"name": name, "path": "/", "persist": True} | given)


class TestNames:
    def test_jids_count_up_and_come_back_only_after_the_last(self, kernel: FakeFreeBSD) -> None:
        first = make(kernel, "a")
        kernel.jail_remove(first)
        assert (first, make(kernel, "a"), make(kernel, "b")) == (1, 2, 3)

    def test_a_last_component_of_digits_is_a_jid(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod")
        assert make(kernel, "pod.12345") == 12345
        assert make(kernel, "77") == 77
        with refused(errno.EEXIST, "jail 77 already exists"):
            make(kernel, "pod.77")

    def test_a_number_in_another_form_is_no_name(self, kernel: FakeFreeBSD) -> None:
        with refused(errno.EINVAL, "name cannot be numeric"):
            make(kernel, "012")

    def test_without_a_name_it_is_the_jid(self, kernel: FakeFreeBSD) -> None:
        jid = make(kernel)
        assert kernel.jail_find(str(jid)) is not None

    def test_a_child_needs_a_living_parent(self, kernel: FakeFreeBSD) -> None:
        with refused(errno.ENOENT, 'jail "pod" not found'):
            make(kernel, "pod.a")
        release = hold_after_making(kernel, "pod")
        kernel.jail_remove(kernel.jail("pod").jid)
        with refused(errno.ENOENT, 'jail "pod" is dying'):
            make(kernel, "pod.a")
        release()

    def test_the_name_of_a_living_jail_is_taken(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "a")
        with refused(errno.EEXIST, 'jail "a" already exists'):
            make(kernel, "a")

    def test_the_name_of_a_dying_jail_is_free_and_the_living_one_is_found(self, kernel: FakeFreeBSD) -> None:
        release = hold_after_making(kernel, "a")
        old = kernel.jail("a").jid
        kernel.jail_remove(old)
        assert kernel.jail_find("a") is None
        found = kernel.jail_find("a", dying=True)
        assert found is not None
        assert (found.jid, found.dying) == (old, True)
        new = make(kernel, "a")
        assert [(jail.jid, jail.dying) for jail in kernel.jails(dying=True)] == [(old, True), (new, False)]
        assert kernel.jail_find("a", dying=True) == kernel.jail("a").as_seen()
        release()
        assert [jail.jid for jail in kernel.jails(dying=True)] == [new]

    def test_a_dying_jail_makes_room_for_who_wants_its_jid(self, kernel: FakeFreeBSD) -> None:
        release = hold_after_making(kernel, "a", jid=5)
        kernel.jail_remove(5)
        assert make(kernel, "b", jid=5) == 5
        assert {(jail.jid, jail.name) for jail in kernel.jails(dying=True)} == {(5, "b"), (999_999, "a")}
        release()

    def test_a_name_too_long(self, kernel: FakeFreeBSD) -> None:
        with refused(errno.ENAMETOOLONG):
            make(kernel, "a" * 256)
        make(kernel, "a" * 200)
        with refused(errno.ENAMETOOLONG):
            make(kernel, "a" * 200 + "." + "b" * 55)
        make(kernel, "a" * 200 + "." + "b" * 54)


class TestParameters:
    def test_what_nobody_knows(self, kernel: FakeFreeBSD) -> None:
        with refused(errno.EINVAL, "unknown parameter: bogus"):
            make(kernel, "a", bogus=1)
        assert kernel.clean()

    def test_linux_has_parameters_only_with_its_module(self, kernel: FakeFreeBSD) -> None:
        assert kernel.has_parameter("linux.osrelease")
        make(kernel, "a", linux=NEW, linux__osrelease="5.15.0")
        kernel.modules.remove("linux_common")
        assert not kernel.has_parameter("linux")
        with refused(errno.EINVAL, "unknown parameter: linux"):
            make(kernel, "b", linux=NEW)

    def test_14_has_no_meta(self, kernel: FakeFreeBSD) -> None:
        kernel.missing = {"meta", "env"}
        assert not kernel.has_parameter("meta")
        with refused(errno.EINVAL, "unknown parameter: meta"):
            make(kernel, "a", meta="x")

    def test_meta_is_bounded(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "a", meta="x" * 4095)
        with refused(errno.EFBIG):
            make(kernel, "b", meta="x" * 4096)

    def test_it_must_persist(self, kernel: FakeFreeBSD) -> None:
        with refused(errno.EINVAL, "new jail must persist or attach"):
            kernel.jail_create({"name": "a", "path": "/"})

    def test_the_path_must_be_a_directory(self, kernel: FakeFreeBSD, tmp_path: Path) -> None:
        with refused(errno.ENOENT):
            make(kernel, "a", path=str(tmp_path / "none"))
        (tmp_path / "file").touch()
        with refused(errno.ENOTDIR):
            make(kernel, "a", path=str(tmp_path / "file"))
        (tmp_path / "link").symlink_to(tmp_path)
        make(kernel, "a", path=str(tmp_path / "link"))
        assert kernel.jail("a").path == str(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value", "number"),
        [
            ("host", DISABLE, errno.EINVAL),
            ("vnet", DISABLE, errno.EINVAL),
            ("ip4", 7, errno.EINVAL),
            ("vnet", True, errno.EINVAL),
            ("children.max", "5", errno.EINVAL),
            ("enforce_statfs", 3, errno.EINVAL),
            ("devfs_ruleset", 70000, errno.EINVAL),
            ("securelevel", -2, errno.EPERM),
            ("osreldate", 0, errno.EINVAL),
            ("host.hostname", "h" * 256, errno.ENAMETOOLONG),
            ("linux.osrelease", "5.15", errno.EINVAL),
            ("parent", 1, errno.EINVAL),
        ],
    )
    def test_values_that_are_refused(
        self, kernel: FakeFreeBSD, name: str, value: JailValue, number: int
    ) -> None:
        before = kernel.state()
        with refused(number):
            kernel.jail_create({"name": "a", "path": "/", "persist": True, name: value})
        assert kernel.state() == before

    def test_a_number_for_a_flag_is_a_mistake_that_the_real_kernel_would_hide(
        self, kernel: FakeFreeBSD
    ) -> None:
        with pytest.raises(TypeError, match=r"allow\.mlock is given by presence"):
            make(kernel, "a", allow__mlock=0)

    def test_no_address_families_beside_vnet_even_inherited(self, kernel: FakeFreeBSD) -> None:
        for vnet in (NEW, INHERIT):
            with refused(errno.EINVAL, "vnet jails cannot have IP address restrictions"):
                make(kernel, "a", vnet=vnet, ip4=INHERIT)

    def test_without_vnet_and_address_families_there_is_no_network(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod", vnet=NEW)
        make(kernel, "pod.mute")
        make(kernel, "pod.speaking", ip4=INHERIT, ip6=INHERIT)
        assert kernel.jail("pod.mute").parameters["ip4"] == DISABLE
        assert kernel.jail("pod.speaking").parameters["ip6"] == INHERIT
        pod = kernel.jail("pod")
        assert kernel.jail("pod.speaking").vnet == pod.vnet == pod.jid

    @pytest.mark.parametrize("name", ["vnet", "ip4", "path", "osrelease"])
    def test_what_is_for_creation_only(self, kernel: FakeFreeBSD, name: str) -> None:
        jid = make(kernel, "a")
        with refused(errno.EINVAL, f"{name} cannot be changed after creation"):
            kernel.jail_update(jid, {name: "/" if name in ("path", "osrelease") else INHERIT})


class TestHierarchy:
    def test_a_new_jail_has_fewer_children_than_its_parent(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod", children__max=5)
        make(kernel, "pod.four", children__max=4)
        with refused(errno.EPERM):
            make(kernel, "pod.five", children__max=5)

    def test_the_host_may_make_more_than_a_parent_may(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod", children__max=0)
        make(kernel, "pod.a")

    def test_the_callers_count_is_bounding(
        self, kernel: FakeFreeBSD, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kernel._jails.host, "children_max", 2)
        release = hold_after_making(kernel, "a")
        kernel.jail_remove(kernel.jail("a").jid)
        make(kernel, "b")
        with refused(errno.EPERM, "prison limit exceeded"):  # the dying one counts
            make(kernel, "b.c")
        release()
        make(kernel, "b.c")

    def test_a_new_jail_has_nothing_that_its_parent_has_not(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod", allow__raw_sockets=True, allow__set_hostname=False)
        make(kernel, "pod.ping", allow__raw_sockets=True)
        with refused(errno.EPERM):
            make(kernel, "pod.mount", allow__mount=True)
        assert "allow.set_hostname" not in kernel.jail("pod.ping").allowed
        assert "allow.reserved_ports" in kernel.jail("pod.ping").allowed

    def test_debugging_is_the_exception(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod", allow__unprivileged_proc_debug=False)
        make(kernel, "pod.a", allow__unprivileged_proc_debug=True)

    def test_mounts_of_a_kind_are_allowed_when_the_kind_is_there(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod", allow__mount=True, allow__mount__tmpfs=True)
        make(kernel, "pod.a", allow__mount__tmpfs=True)
        with refused(errno.EPERM):
            make(kernel, "pod.b", allow__mount__nullfs=True)
        kernel.modules.remove("nullfs")
        with refused(errno.EINVAL, "unknown parameter"):
            make(kernel, "c", allow__mount__nullfs=True)

    def test_an_update_is_measured_by_the_host(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "pod")
        jid = make(kernel, "pod.a")
        kernel.jail_update(jid, {"children.max": 5, "allow.raw_sockets": True})
        assert kernel.jail("pod.a").children_max == 5
        assert "allow.raw_sockets" in kernel.jail("pod.a").allowed

    def test_what_is_taken_from_a_parent_is_taken_from_its_children(self, kernel: FakeFreeBSD) -> None:
        jid = make(kernel, "pod", children__max=9, allow__mlock=True, enforce_statfs=1)
        make(kernel, "pod.a", children__max=8, allow__mlock=True, enforce_statfs=1)
        make(kernel, "pod.a.b", children__max=7, allow__mlock=True, enforce_statfs=1)
        kernel.jail_update(jid, {"children.max": 3, "allow.mlock": False, "enforce_statfs": 2})
        assert [kernel.jail(name).children_max for name in ("pod", "pod.a", "pod.a.b")] == [3, 2, 1]
        assert "allow.mlock" not in kernel.jail("pod.a.b").allowed
        assert kernel.jail("pod.a").parameters["enforce_statfs"] == 2

    def test_system_v_objects_come_from_the_parent(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "without")
        for how in (NEW, INHERIT):
            with refused(errno.EPERM):
                make(kernel, "without.a", sysvshm=how)
        pod = make(kernel, "pod", sysvshm=NEW)
        make(kernel, "pod.a", sysvshm=INHERIT)
        make(kernel, "pod.b")
        assert kernel.jail("pod.a").sysv == {"sysvshm": pod}
        assert kernel.jail("pod.b").sysv == {}

    def test_an_update_does_not_move_a_jail(self, kernel: FakeFreeBSD) -> None:
        jid = make(kernel, "a")
        with refused(errno.EINVAL, "cannot change jail's parent"):
            kernel.jail_update(jid, {"name": "b.a"})

    def test_an_update_of_what_is_gone(self, kernel: FakeFreeBSD) -> None:
        release = hold_after_making(kernel, "a")
        jid = kernel.jail("a").jid
        kernel.jail_remove(jid)
        with refused(errno.ENOENT, f"jail {jid} not found"):
            kernel.jail_update(jid, {"securelevel": 1})
        release()


class TestRemoval:
    def test_it_kills_the_children_too(self, kernel: FakeFreeBSD) -> None:
        pod, child = make(kernel, "pod"), make(kernel, "pod.a")
        kernel.spawn("pod.a", cpu_microseconds=7, resident=4096)
        (process,) = kernel.processes([child])
        assert (process.jid, process.cpu_microseconds, process.resident) == (child, 7, 4096)
        assert kernel.processes([pod]) == []
        kernel.jail_remove(pod)
        assert kernel.clean()

    def test_what_is_gone(self, kernel: FakeFreeBSD) -> None:
        with refused(errno.EINVAL):
            kernel.jail_remove(7)

    def test_what_is_dying_is_let_be(self, kernel: FakeFreeBSD) -> None:
        release = hold_after_making(kernel, "a")
        jid = kernel.jail("a").jid
        kernel.jail_remove(jid)
        kernel.jail_remove(jid)
        release()
        release()
        assert kernel.clean()

    def test_a_dying_child_keeps_its_parent_dying(self, kernel: FakeFreeBSD) -> None:
        pod = make(kernel, "pod")
        release = hold_after_making(kernel, "pod.a")
        kernel.jail_remove(pod)
        assert kernel.jails() == []
        assert [jail.name for jail in kernel.jails(dying=True)] == ["pod", "pod.a"]
        release()
        assert kernel.clean()

    def test_a_process_stuck_in_the_kernel_keeps_its_jail_dying(self, kernel: FakeFreeBSD) -> None:
        jid = make(kernel, "a")
        pid = kernel.spawn("a", stuck=True)
        kernel.jail_remove(jid)
        assert not kernel.clean()
        kernel.end(pid)
        assert kernel.clean()

    def test_a_lingering_jail_is_seen_dying_for_some_looks(self, kernel: FakeFreeBSD) -> None:
        kernel.linger = 3
        kernel.jail_remove(make(kernel, "a"))
        assert [kernel.jail_find("a", dying=True) is not None for _ in range(4)] == [True, True, False, False]
        assert kernel.clean()


class TestMounts:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        for name in ("a", "b", "c", "b/x"):
            (tmp_path / name).mkdir()
        for name in ("f", "g"):
            (tmp_path / name).touch()
        return tmp_path

    def bind(self, kernel: FakeFreeBSD, source: Path, target: Path, flags: int = 0) -> Mount:
        kernel.mount("nullfs", str(target), {"from": str(source)}, flags)
        return kernel.mounts()[-1]

    def test_a_mount_is_listed_last_with_links_resolved(self, kernel: FakeFreeBSD, files: Path) -> None:
        (files / "link").symlink_to("b")
        mount = self.bind(kernel, files / "a", files / "link", MNT_RDONLY | MNT_IGNORE)
        assert (mount.kind, mount.source, mount.target) == ("nullfs", str(files / "a"), str(files / "b"))
        assert mount.flags == MNT_RDONLY | MNT_IGNORE
        (files / "a" / "y").touch()
        assert kernel.mount_of(str(files / "link" / "y")) == mount
        assert kernel.mount_of(str(files)).target == "/"

    def test_flags_may_be_options(self, kernel: FakeFreeBSD, files: Path) -> None:
        kernel.mount("tmpfs", str(files / "a"), {"ro": None, "size": "4096"})
        assert kernel.mounts()[-1].flags == MNT_RDONLY

    @pytest.mark.parametrize(("source", "target"), [("none", "b"), ("a", "none")])
    def test_both_ends_exist(self, kernel: FakeFreeBSD, files: Path, source: str, target: str) -> None:
        with refused(errno.ENOENT):
            self.bind(kernel, files / source, files / target)

    @pytest.mark.parametrize(
        ("source", "target"), [("a", "f"), ("f", "a"), ("fifo", "a"), ("fifo", "f"), ("f", "fifo")]
    )
    def test_like_on_like(self, kernel: FakeFreeBSD, files: Path, source: str, target: str) -> None:
        os.mkfifo(files / "fifo")
        with refused(errno.EINVAL):
            self.bind(kernel, files / source, files / target)

    def test_a_file_with_two_names_cannot_be_covered(self, kernel: FakeFreeBSD, files: Path) -> None:
        os.link(files / "g", files / "h")
        with refused(errno.EINVAL):
            self.bind(kernel, files / "f", files / "g")

    def test_files_do_not_stack(self, kernel: FakeFreeBSD, files: Path) -> None:
        self.bind(kernel, files / "f", files / "g")
        with refused(errno.EBUSY):
            self.bind(kernel, files / "f", files / "g")

    def test_only_nullfs_covers_files(self, kernel: FakeFreeBSD, files: Path) -> None:
        with refused(errno.ENOTDIR):
            kernel.mount("tmpfs", str(files / "f"), {})

    def test_the_same_twice_is_a_deadlock_but_oneself_is_not(self, kernel: FakeFreeBSD, files: Path) -> None:
        self.bind(kernel, files / "a", files / "b")
        with refused(errno.EDEADLK):
            self.bind(kernel, files / "a", files / "b")
        self.bind(kernel, files / "c", files / "b")
        for _ in range(3):
            self.bind(kernel, files / "a", files / "a")

    def test_a_kind_that_is_not_there(self, kernel: FakeFreeBSD, files: Path) -> None:
        kernel.modules.remove("tmpfs")
        for kind in ("tmpfs", "nosuchfs"):
            with refused(errno.EINVAL, "Invalid fstype"):
                kernel.mount(kind, str(files / "a"), {})

    @pytest.mark.parametrize(
        ("kind", "options", "text"),
        [
            ("tmpfs", {"bogus": "1"}, "mount option <bogus> is unknown"),
            ("devfs", {"ruleset": "70000"}, "invalid ruleset"),
            ("devfs", {"ruleset": "x"}, "invalid ruleset"),
        ],
    )
    def test_options_are_looked_at(
        self, kernel: FakeFreeBSD, files: Path, kind: str, options: dict[str, str | None], text: str
    ) -> None:
        with refused(errno.EINVAL, text):
            kernel.mount(kind, str(files / "a"), options)

    def test_unmounting_is_by_fsid_and_once(self, kernel: FakeFreeBSD, files: Path) -> None:
        lower, upper = (
            self.bind(kernel, files / "a", files / "b"),
            self.bind(kernel, files / "c", files / "b"),
        )
        with refused(errno.EBUSY):  # the other one is on it
            kernel.unmount(lower)
        kernel.unmount(upper)
        kernel.unmount(lower)
        with refused(errno.ENOENT):
            kernel.unmount(lower)
        assert kernel.clean()

    def test_busy_below_another_mount(self, kernel: FakeFreeBSD, files: Path) -> None:
        (files / "a" / "x").mkdir()
        outer, inner = (
            self.bind(kernel, files / "a", files / "b"),
            self.bind(kernel, files / "c", files / "b" / "x"),
        )
        with refused(errno.EBUSY):
            kernel.unmount(outer)
        kernel.unmount(outer, force=True)
        assert kernel.mounts()[-1] == inner  # an orphan
        kernel.unmount(inner)

    def test_busy_as_the_source_of_another_even_by_force(self, kernel: FakeFreeBSD, files: Path) -> None:
        lower, upper = (
            self.bind(kernel, files / "b", files / "a"),
            self.bind(kernel, files / "a", files / "c"),
        )
        for force in (False, True):
            with refused(errno.EBUSY):
                kernel.unmount(lower, force=force)
        kernel.unmount(upper)
        kernel.unmount(lower)

    def test_busy_under_the_root_of_a_jail_even_a_dying_one(self, kernel: FakeFreeBSD, files: Path) -> None:
        mount = self.bind(kernel, files / "b", files / "a")
        jid = make(kernel, "j", path=str(files / "a"))
        release = kernel.hold("j")
        with refused(errno.EBUSY):
            kernel.unmount(mount)
        kernel.jail_remove(jid)
        with refused(errno.EBUSY):
            kernel.unmount(mount)
        release()
        kernel.unmount(mount)

    def test_the_root_of_a_jail_is_what_is_mounted_there(self, kernel: FakeFreeBSD, files: Path) -> None:
        self.bind(kernel, files / "b", files / "a")
        make(kernel, "j", path=str(files / "a" / "x"))
        with refused(errno.EBUSY):
            kernel.unmount(kernel.mounts()[-1])
        self.bind(kernel, files / "c", files / "b")
        with refused(errno.ENOENT):
            make(kernel, "k", path=str(files / "b" / "x"))

    def test_busy_as_long_as_a_test_says(self, kernel: FakeFreeBSD, files: Path) -> None:
        mount = self.bind(kernel, files / "b", files / "a")
        kernel.keep_busy(str(files / "a"), 2)
        for _ in range(2):
            with refused(errno.EBUSY):
                kernel.unmount(mount)
        kernel.unmount(mount)
        mount = self.bind(kernel, files / "b", files / "a")
        kernel.keep_busy(str(files / "a"), 2)
        kernel.unmount(mount, force=True)

    def test_a_nullfs_shows_another_file(self, kernel: FakeFreeBSD, files: Path) -> None:
        (files / "a" / "inside").mkdir()
        (files / "link").symlink_to("c/inside")
        self.bind(kernel, files / "a", files / "b")
        self.bind(kernel, files / "b", files / "c")
        assert kernel.shown(str(files / "b")) == kernel.shown(str(files / "c")) == str(files / "a")
        assert kernel.shown(str(files / "link")) == str(files / "a" / "inside")
        assert kernel.shown(str(files / "f")) == str(files / "f")
        with refused(errno.ENOENT):  # what it hides
            kernel.shown(str(files / "b" / "x"))
        with refused(errno.ENOTDIR):
            kernel.shown(str(files / "f" / "x"))
        (files / "loop").symlink_to("loop")
        with refused(errno.ELOOP):
            kernel.shown(str(files / "loop"))

    def test_a_nullfs_shows_nothing_that_is_mounted_below_its_source(
        self, kernel: FakeFreeBSD, files: Path
    ) -> None:
        kernel.mount("tmpfs", str(files / "b" / "x"), {})
        self.bind(kernel, files / "b", files / "c")
        assert (
            kernel.shown(str(files / "c" / "x"))
            == str(files / "b" / "x")
            != kernel.shown(str(files / "b" / "x"))
        )

    def test_code_that_walks_sees_what_is_mounted(self, kernel: FakeFreeBSD, files: Path) -> None:
        seen = kernel.files
        (files / "a" / "data").write_text("data")
        mount = self.bind(kernel, files / "a", files / "b")
        assert seen.listdir(str(files / "b")) == ["data"]
        fd = seen.open(files, os.O_RDONLY | os.O_DIRECTORY)
        below = seen.open(b"b", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        assert seen.fstat(below).st_dev != seen.fstat(fd).st_dev
        assert seen.fstat(below).st_ino == (files / "a").stat().st_ino
        with refused(errno.EXDEV):
            seen.rename("data", "gone", src_dir_fd=below, dst_dir_fd=fd)
        with refused(errno.EBUSY):
            seen.rmdir("b", dir_fd=fd)
        seen.unlink("data", dir_fd=below)
        assert not (files / "a" / "data").exists()
        seen.close(below)
        seen.close(fd)
        kernel.unmount(mount)
        assert seen.listdir(str(files / "b")) == ["x"]

    def test_what_devfs_and_read_only_mounts_refuse(self, kernel: FakeFreeBSD, files: Path) -> None:
        seen = kernel.files
        kernel.mount("devfs", str(files / "a"), {})
        with refused(errno.EOPNOTSUPP):
            seen.mkdir(files / "a" / "new")
        with refused(errno.EOPNOTSUPP):
            seen.open(files / "a" / "new", os.O_CREAT | os.O_WRONLY)
        seen.path_class()(files, "a", "log").symlink_to("/elsewhere")
        assert seen.readlink(str(files / "a" / "log")) == "/elsewhere"
        self.bind(kernel, files / "c", files / "b", MNT_RDONLY)
        for make in (
            seen.mkdir,
            lambda path: seen.symlink("x", path),
            lambda path: seen.open(path, os.O_CREAT),
        ):
            with refused(errno.EROFS):
                make(files / "b" / "new")

    def test_devfs_has_directories_that_nobody_makes(self, kernel: FakeFreeBSD, files: Path) -> None:
        kernel.mount("devfs", str(files / "a"), {"ruleset": "9"})
        kernel.mount("fdescfs", str(files / "a" / "fd"), {})
        assert [mount.kind for mount in kernel.mounts()[-2:]] == ["devfs", "fdescfs"]
        with refused(errno.ENOENT):
            kernel.mount("tmpfs", str(files / "a" / "nosuch"), {})

    def test_devfs_rules_apply_to_one_devfs(self, kernel: FakeFreeBSD, files: Path) -> None:
        with refused(errno.ENOTTY):
            kernel.devfs_apply(str(files), [DevfsRule(hide=True)])
        kernel.mount("devfs", str(files / "a"), {})
        before = kernel.state()
        kernel.devfs_apply(str(files / "a"), [DevfsRule("null", hide=False)])
        assert kernel.state()["devfs"] == {str(files / "a"): [(DevfsRule("null", hide=False),)]}
        kernel.unmount(kernel.mounts()[-1])
        kernel.mount("devfs", str(files / "a"), {})
        assert kernel.state()["devfs"] == before["devfs"] == {}


class TestLimits:
    def test_rules_outlive_their_jail_and_need_none(self, kernel: FakeFreeBSD) -> None:
        kernel.rctl_add("jail:a:maxproc:deny=5")
        kernel.rctl_add("jail:a.b:memoryuse:sigkill=4096")
        assert kernel.rctl_rules("jail:a:") == ["jail:a:maxproc:deny=5"]
        assert len(kernel.rctl_rules("jail:")) == 2
        assert not kernel.clean()
        kernel.rctl_remove("jail:a.b")
        kernel.rctl_remove("jail:a.b")
        kernel.rctl_remove("jail:a::deny")
        assert kernel.clean()

    def test_a_denial_takes_the_place_of_another(self, kernel: FakeFreeBSD) -> None:
        for limit in ("deny=5", "deny=6", "log=1", "log=2"):
            kernel.rctl_add(f"jail:a:maxproc:{limit}")
        assert kernel.rctl_rules("") == [f"jail:a:maxproc:{limit}" for limit in ("deny=6", "log=1", "log=2")]

    def test_per_whom(self, kernel: FakeFreeBSD) -> None:
        kernel.rctl_add("jail:a:maxproc:deny=5/jail")
        kernel.rctl_add("jail:a:openfiles:deny=5/process")
        assert kernel.rctl_rules("") == ["jail:a:maxproc:deny=5", "jail:a:openfiles:deny=5/process"]

    @pytest.mark.parametrize(
        ("rule", "number"),
        [
            ("jail:a:maxproc:deny", errno.EINVAL),
            ("jail:a:maxproc:deny=", errno.EINVAL),
            ("jail:a:maxproc:deny=1g", errno.EINVAL),
            ("jail::maxproc:deny=1", errno.EINVAL),
            (":a:maxproc:deny=1", errno.EINVAL),
            ("prison:a:maxproc:deny=1", errno.EINVAL),
            ("jail:a:memory:deny=1", errno.EINVAL),
            ("jail:a:maxproc:forbid=1", errno.EINVAL),
            ("jail:a:maxproc:deny=1/pod", errno.EINVAL),
            ("jail:a:maxproc:deny=-1", errno.ERANGE),
            ("jail:a:maxproc:deny=9223372036854775808", errno.ERANGE),
            ("jail:a:pcpu:deny=9223372036854775", errno.ERANGE),
            ("jail:a:cputime:deny=1", errno.EOPNOTSUPP),
            ("jail:a:maxproc:throttle=1", errno.EOPNOTSUPP),
            ("jail:a:swapuse:deny=1/process", errno.EOPNOTSUPP),
            (f"jail:{'a' * 256}:maxproc:deny=1", errno.ENAMETOOLONG),
        ],
    )
    def test_rules_that_are_refused(self, kernel: FakeFreeBSD, rule: str, number: int) -> None:
        with refused(number):
            kernel.rctl_add(rule)
        assert kernel.clean()

    def test_memory_can_be_denied_though_the_man_page_says_no(self, kernel: FakeFreeBSD) -> None:
        kernel.rctl_add("jail:a:memoryuse:deny=1")
        kernel.rctl_add("jail:a:readbps:throttle=1")

    def test_usage_is_zero_for_whoever_is_not_there(self, kernel: FakeFreeBSD) -> None:
        kernel.use("a", memoryuse=4096, cputime=2)
        assert kernel.rctl_usage("jail:a:")["memoryuse"] == 4096
        assert set(kernel.rctl_usage("jail:nobody:").values()) == {0}
        with refused(errno.EINVAL):
            kernel.rctl_usage("jail:")

    def test_without_racct_there_is_nothing(self, kernel: FakeFreeBSD) -> None:
        assert kernel.sysctl("kern.racct.enable") == b"\1\0\0\0"
        kernel.racct = False
        assert kernel.sysctl("kern.racct.enable") == b"\0\0\0\0"
        for call in (kernel.rctl_add, kernel.rctl_remove, kernel.rctl_rules, kernel.rctl_usage):
            with refused(errno.ENOSYS):
                call("jail:a:maxproc:deny=1")

    def test_cpus(self, kernel: FakeFreeBSD) -> None:
        pod, child = make(kernel, "pod"), make(kernel, "pod.a")
        with refused(errno.EDEADLK):
            kernel.jail_cpus(pod, [])
        with refused(errno.EINVAL):  # even if another is there
            kernel.jail_cpus(pod, [0, 4])
        with refused(errno.ESRCH):
            kernel.jail_cpus(99, [0])
        kernel.jail_cpus(child, {1, 2})
        with refused(errno.EDEADLK):
            kernel.jail_cpus(pod, {3})
        kernel.jail_cpus(pod, {2, 3})
        assert kernel.jail("pod.a").cpus == {2}
        with refused(errno.EINVAL):
            kernel.jail_cpus(child, {1})


class TestMachine:
    def test_a_call_fails_where_it_is_told_to_and_does_nothing(self, kernel: FakeFreeBSD) -> None:
        make(kernel, "a")
        before = kernel.state()
        kernel.count_from_here(1, fail_with=errno.ENOMEM)
        kernel.jails()
        with pytest.raises(InjectedError, match="injected at call 1") as caught:
            make(kernel, "b")
        assert caught.value.errno == errno.ENOMEM
        assert kernel.state() == before
        make(kernel, "b")
        assert kernel.calls == ["jails", "jail_create b", "jail_create b"]

    def test_the_state_tells_one_jail_from_the_next_of_its_name(self, kernel: FakeFreeBSD) -> None:
        jid = make(kernel, "a")
        before = kernel.state()
        kernel.jail_remove(jid)
        make(kernel, "a")
        assert kernel.state() != before

    def test_modules_and_variables(self, kernel: FakeFreeBSD) -> None:
        assert kernel.has_module("nullfs")
        assert not kernel.has_module("zfs")
        with refused(errno.ENOENT):
            kernel.sysctl("no.such")

    def test_rulesets(self, kernel: FakeFreeBSD) -> None:
        kernel.devfs_ruleset(7, [DevfsRule(hide=True)])
        kernel.devfs_ruleset(7, [DevfsRule("null", hide=False)])
        assert kernel.rulesets == {7: (DevfsRule("null", hide=False),)}
        with refused(errno.EIO):
            kernel.devfs_ruleset(0, [])

    def test_others_act_between_calls(self, kernel: FakeFreeBSD) -> None:
        jid = make(kernel, "a")
        kernel.on_call = lambda call: call.startswith("jail_update") and kernel._jails.remove(jid)
        with refused(errno.ENOENT):
            kernel.jail_update(jid, {"securelevel": 1})

    def test_threads(self, kernel: FakeFreeBSD) -> None:
        def work(number: int) -> None:
            for turn in range(20):
                kernel.jail_remove(make(kernel, f"t{number}x{turn}"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kernel.clean()
        assert len(kernel.calls) == 160


def hold_after_making(kernel: FakeFreeBSD, name: str, **parameters: JailValue) -> object:
    make(kernel, name, **parameters)
    return kernel.hold(name)


class JailsMachine(RuleBasedStateMachine):
    """Whatever is done to jails, in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = FakeFreeBSD()
        self.releases: list[object] = []

    @rule(name=st.from_regex(r"[ab](\.[ab]){0,2}", fullmatch=True), room=st.integers(0, 3))
    def create(self, name: str, room: int) -> None:
        try:
            make(self.kernel, name, children__max=room)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOENT, errno.EPERM):
                raise

    @precondition(lambda self: self.kernel._jails.all)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        jail = data.draw(st.sampled_from(self.kernel.jails(dying=True) or [None]))
        if jail is not None:
            self.kernel.jail_remove(jail.jid)
            assert all(other.dying for other in self.kernel.jails(dying=True) if other.jid == jail.jid)

    @rule(data=st.data(), stuck=st.booleans())
    def use(self, data: st.DataObject, *, stuck: bool) -> None:
        if jails := self.kernel.jails():
            name = data.draw(st.sampled_from(jails)).name
            self.kernel.spawn(name, stuck=stuck)
            self.releases.append(self.kernel.hold(name))

    @precondition(lambda self: self.releases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.releases) - 1))
        self.releases.pop(index)()  # type: ignore[operator]

    @rule()
    def end_the_stuck(self) -> None:
        for pid, process in list(self.kernel._jails.processes.items()):
            if process.jail.dying:
                self.kernel.end(pid)

    @rule(jid=st.integers(1, 5))
    def take_a_jid(self, jid: int) -> None:
        with suppress(FileExistsError):
            make(self.kernel, f"n{jid}", jid=jid)

    @invariant()
    def the_living_have_living_parents_and_names_of_their_own(self) -> None:
        every = self.kernel.jails(dying=True)
        living = [jail.name for jail in every if not jail.dying]
        assert len(set(living)) == len(living)
        assert all("." not in name or name.rpartition(".")[0] in living for name in living)
        assert len({jail.jid for jail in every}) == len(every)

    @invariant()
    def nothing_is_below_or_in_what_is_gone(self) -> None:
        table = self.kernel._jails
        assert all(jail.parent is table.host or jail.parent in table.all for jail in table.all)
        assert all(process.jail in table.all for process in table.processes.values())
        assert all(process.stuck or not process.jail.dying for process in table.processes.values())

    @invariant()
    def dying_jails_are_held_by_something(self) -> None:
        table = self.kernel._jails
        for jail in table.all:
            held = jail.holds or any(child.parent is jail for child in table.all)
            assert not jail.dying or held or any(one.jail is jail for one in table.processes.values())

    def teardown(self) -> None:
        for release in self.releases:
            release()  # type: ignore[operator]
        for jail in self.kernel.jails():
            if self.kernel.jail_find(jail.name) is not None:
                self.kernel.jail_remove(jail.jid)
        for pid in list(self.kernel._jails.processes):
            self.kernel.end(pid)
        assert self.kernel.clean()


TestAnyOrder = JailsMachine.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
