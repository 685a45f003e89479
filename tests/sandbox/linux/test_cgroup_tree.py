"""Groups of both shapes, and trees of them, as plain directories."""

import errno
import os
from pathlib import Path

import pytest

from baustelle.removal import remove_tree
from cri.sandbox.host import HostError
from cri.sandbox.linux import cgroup_tree
from cri.sandbox.linux.cgroups import INNER, UNIFIED, Group
from cri.sandbox.spec import Resources

V1 = ("pids", "memory", "cpu", "cpuset", "name=systemd", UNIFIED)


@pytest.fixture
def outer(tmp_path):
    """A container's group that has all its directories; cpu and cpuset are mounted together."""
    places = {name: str(tmp_path / ("cpu" if name == "cpuset" else name) / "pod/id") for name in V1}
    for path in places.values():
        Path(path, INNER).mkdir(parents=True, exist_ok=True)
    return Group(1, places)


def test_a_plan_keeps_what_wardens_of_the_last_release_know(outer):
    note = outer.inner.note()
    assert note["version"] == 1
    assert set(note["directories"]) == set(V1) - {UNIFIED}
    assert all(path.endswith(f"/id/{INNER}") for path in note["directories"].values())
    again = Group.noted(note)
    assert again.directories == outer.inner.directories
    assert again.join_files() == outer.inner.join_files()
    assert again.late_join_files() == []


def test_version_2(tmp_path):
    group = Group(2, {"": str(tmp_path / "id"), "name=systemd": str(tmp_path / "systemd/id")})
    again = Group.noted(group.inner.note())
    assert again.directories == group.inner.directories
    assert again.unified == str(tmp_path / "id" / INNER)
    assert again.join_files() == [f"{again.unified}/cgroup.procs", f"{tmp_path}/systemd/id/{INNER}/tasks"]
    assert again.join_files(born=True) == [f"{tmp_path}/systemd/id/{INNER}/tasks"]
    assert group.unified == str(tmp_path / "id")
    Path(again.unified).mkdir(parents=True)
    assert again.for_exec("exec-1").unified == f"{again.unified}/exec-1"


def test_all_groups_are_joined_whether_they_are_there_or_not(outer):
    inner = outer.inner
    files = inner.join_files()
    directories = list(dict.fromkeys(inner.directories.values()))
    assert files == [f"{path}/{'cgroup.procs' if path == inner.unified else 'tasks'}" for path in directories]
    Path(inner.directories["memory"]).rmdir()
    assert inner.join_files() == files
    assert inner.join_files(born=True) == [path for path in files if not path.endswith("cgroup.procs")]


def test_a_plan_of_the_last_release(outer):
    """Groups that are there are joined, and late ones wherever they are made by then."""
    directories = {name: outer.directories[name] for name in ("pids", "memory")} | {
        "cpuset": "/late",
        "cpu": "/none",
    }
    group = Group.noted({"version": 1, "directories": directories})
    assert group.join_files() == [f"{directories[name]}/tasks" for name in ("pids", "memory")]
    assert group.late_join_files() == ["/late/tasks"]
    assert group.unified is None


def test_an_exec_is_kept_track_of_inside(outer):
    inner = outer.inner
    joined = inner.for_exec("exec-1")
    assert joined.directories == inner.directories | {"pids": f"{inner.directories['pids']}/exec-1"}
    assert joined.late_join_files() == []
    assert inner.for_exec("exec-1").directories == joined.directories
    del inner.directories["pids"]
    assert inner.for_exec("exec-1").directories["memory"].endswith("/exec-1")
    for name in ("memory", "cpu", "cpuset", "name=systemd"):
        del inner.directories[name]
    assert inner.for_exec("exec-1") is inner  # only where there is a hierarchy for it


def test_which_shape_a_group_has(outer):
    assert outer.has_inner
    for path in outer.inner.directories.values():
        if Path(path).exists():
            Path(path).rmdir()
    assert not outer.has_inner
    with pytest.raises(HostError):
        outer.apply(Resources(pids_limit=3))


def nest(top: Path, depth: int) -> None:
    at = os.open(top, os.O_RDONLY)
    for number in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        file = os.open("memory.oom_control", os.O_WRONLY | os.O_CREAT, dir_fd=at)
        os.write(file, f"under_oom 0\noom_kill {number % 2}\n".encode())
        os.close(file)
    os.close(at)


def test_a_tree_of_any_depth(tmp_path):
    top = tmp_path / "top"
    for name in ("a", "b/c", "b/e"):
        (top / name).mkdir(parents=True)
    nest(top / "a", 3000)
    groups = [os.fstat(group).st_ino for group in cgroup_tree.walk(str(top))]
    assert len(groups) == len(set(groups)) == 3005
    assert groups[-1] == top.stat().st_ino
    assert groups.index((top / "b/c").stat().st_ino) < groups.index((top / "b").stat().st_ino)
    assert cgroup_tree.total(str(top), "memory.oom_control", "oom_kill") == 1500
    assert list(cgroup_tree.processes(str(top))) == []
    assert len(cgroup_tree.paths(str(top / "b"))) == 2
    assert list(cgroup_tree.walk(str(tmp_path / "none"))) == []
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    walk = cgroup_tree.walk(str(top))
    next(walk)
    walk.close()
    remove_tree(top)  # pytest could not
    assert len(list(Path("/proc/self/fd").iterdir())) == open_now


def test_a_tree_that_changes_while_it_is_removed(tmp_path, monkeypatch):
    top = tmp_path / "top"
    for name in ("a/b", "c", "d"):
        (top / name).mkdir(parents=True)
    below = cgroup_tree._below

    def removed_by_others(group):
        found = below(group)
        for name in found:
            if name in ("c", "b"):
                os.rmdir(name, dir_fd=group)
        return found

    monkeypatch.setattr(cgroup_tree, "_below", removed_by_others)
    cgroup_tree.remove(str(top))
    assert not top.exists()
    cgroup_tree.remove(str(top))


def test_what_cannot_be_removed_is_told(tmp_path):
    (tmp_path / "top/a").mkdir(parents=True)
    (tmp_path / "top/a/file").touch()
    with pytest.raises(HostError, match=r"remove cgroup .*/top.*a: Directory not empty") as caught:
        cgroup_tree.remove(str(tmp_path / "top"))
    assert caught.value.errno == errno.ENOTEMPTY
