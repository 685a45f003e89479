"""The resolver: chroot semantics, and no way out."""
# ruff: noqa: PTH208, PTH211, PTH116 - the calls under test

import contextlib
import errno
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baustelle.paths import MAX_LINKS, make_mount_target, open_beneath, remove_mount_target, resolve_beneath

READ = os.O_RDONLY


@pytest.fixture
def root_fd(root):
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(root_fd, path):
    with os.fdopen(open_beneath(root_fd, path, READ), "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    "path",
    [
        "etc/passwd",
        "/etc/passwd",
        "//etc/./passwd",
        "../../etc/passwd",
        "etc/../etc/passwd",
        "abs/passwd",
        "up",
    ],
)
def test_every_spelling_stays_inside(root, root_fd, path):
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("inside")
    (root / "abs").symlink_to("/etc")
    (root / "up").symlink_to("../../../../etc/passwd")
    assert read(root_fd, path) == b"inside"
    assert resolve_beneath(root, path) == root / "etc/passwd"


@pytest.mark.parametrize("link", ["/outside/secret", "../outside/secret", "/proc/self/root/etc/passwd"])
def test_a_link_to_the_outside_leads_nowhere(root, root_fd, link):
    (root / "link").symlink_to(link)
    with pytest.raises(FileNotFoundError, match="link"):
        open_beneath(root_fd, "link", READ)


def test_the_absolute_path_of_the_outside_is_taken_inside(root, root_fd, tmp_path):
    (root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(FileNotFoundError):
        open_beneath(root_fd, "link/secret", READ)
    with pytest.raises(FileNotFoundError):
        resolve_beneath(root, "link/secret")


def test_nofollow_refuses_the_last_link_only(root, root_fd):
    (root / "d").mkdir()
    (root / "d/file").write_text("x")
    (root / "dir").symlink_to("d")
    (root / "d/link").symlink_to("file")
    os.close(open_beneath(root_fd, "dir/file", READ | os.O_NOFOLLOW))
    with pytest.raises(OSError) as caught:
        open_beneath(root_fd, "dir/link", READ | os.O_NOFOLLOW)
    assert caught.value.errno in {errno.ELOOP, errno.EMLINK}
    assert caught.value.filename == "dir/link"


def test_creating_through_a_dangling_link_creates_inside(root, root_fd):
    (root / "link").symlink_to("/new")
    os.close(open_beneath(root_fd, "link", os.O_WRONLY | os.O_CREAT, 0o600))
    assert (root / "new").is_file()


def test_loops_end(root, root_fd):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    for path in ("a", "a/x", "b/../c"):
        with pytest.raises(OSError) as caught:
            open_beneath(root_fd, path, READ)
        assert caught.value.errno == errno.ELOOP


def test_the_limit_counts_links(root, root_fd):
    (root / "end").write_text("x")
    (root / "0").symlink_to("end")
    for number in range(1, MAX_LINKS + 1):
        (root / str(number)).symlink_to(str(number - 1))
    assert read(root_fd, str(MAX_LINKS - 1)) == b"x"
    with pytest.raises(OSError) as caught:
        open_beneath(root_fd, str(MAX_LINKS), READ)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    ("path", "number"),
    [("", errno.ENOENT), ("a\0b", errno.EINVAL), ("file/x", errno.ENOTDIR), ("file/", errno.ENOTDIR)],
)
def test_errors_are_those_of_open(root, root_fd, path, number):
    (root / "file").write_text("")
    with pytest.raises(OSError) as caught:
        open_beneath(root_fd, path, READ)
    assert caught.value.errno == number


def test_no_descriptor_is_left_open(root, root_fd):
    (root / "d").mkdir()
    (root / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    for path in ("d/../d/x", "loop/x", "d", "/", "..", "nowhere/x"):
        with contextlib.suppress(OSError):
            os.close(open_beneath(root_fd, path, READ))
    assert len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")) == before


def test_mount_targets_are_made_and_removed(root, root_fd):
    old = os.umask(0o077)
    try:
        created = make_mount_target(root_fd, "/a/b/c/", directory=True)
        created += make_mount_target(root_fd, "a/b/file", directory=False)
    finally:
        os.umask(old)
    assert created == ["a", "a/b", "a/b/c", "a/b/file"]
    assert (root / "a/b/c").is_dir()
    assert (root / "a/b").stat().st_mode & 0o7777 == 0o755
    assert (root / "a/b/file").stat().st_mode & 0o7777 == 0o644
    assert make_mount_target(root_fd, "a/b/c", directory=True) == []
    remove_mount_target(root_fd, created)
    remove_mount_target(root_fd, created)
    assert os.listdir(root) == []


def test_what_is_in_use_stays(root, root_fd):
    created = make_mount_target(root_fd, "a/b", directory=True)
    (root / "a/other").write_text("")
    remove_mount_target(root_fd, created)
    assert os.listdir(root / "a") == ["other"]


def test_mount_targets_follow_links_inside(root, root_fd):
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "etc").symlink_to("../../outside")
    assert make_mount_target(root_fd, "var/run/secrets", directory=True) == ["run", "run/secrets"]
    assert make_mount_target(root_fd, "etc/hosts", directory=False) == ["outside", "outside/hosts"]


def test_the_other_kind_is_refused_and_nothing_left(root, root_fd):
    (root / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        make_mount_target(root_fd, "file", directory=True)
    with pytest.raises(IsADirectoryError):
        make_mount_target(root_fd, "/", directory=False)
    with pytest.raises(OSError):
        make_mount_target(root_fd, "new/../file/x", directory=True)
    assert os.listdir(root) == ["file"]


def test_the_module_imports_the_standard_library_only():
    code = "import baustelle.paths, sys; print([m for m in ('zstandard', 'aiohttp', 'registratur') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# A forest of links that lead everywhere

NAMES = st.sampled_from(["a", "b", "c", "..", ".", ""])
PATHS = st.builds(
    lambda start, parts, end: start + "/".join(parts) + end,
    st.sampled_from(["", "/", "../", "//"]),
    st.lists(NAMES, min_size=1, max_size=5),
    st.sampled_from(["", "/", "/."]),
)
PLACES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
FORESTS = st.dictionaries(
    PLACES,
    st.one_of(st.just(("dir", "")), st.just(("file", "")), PATHS.map(lambda path: ("link", path))),
    max_size=10,
)


@contextlib.contextmanager
def planted(forest):
    """Make a forest in a directory that lies beside a secret, five levels down from the top."""
    top = Path(tempfile.mkdtemp())
    root = top / "a/b/root"
    root.mkdir(parents=True)
    try:
        for place in sorted(forest):
            kind, target = forest[place]
            with contextlib.suppress(OSError):
                if kind == "dir":
                    (root / place).mkdir()
                elif not _leaves(root, place):
                    if kind == "file":
                        (root / place).touch(exist_ok=False)
                    else:
                        os.symlink(target, root / place)
        yield root
    finally:
        shutil.rmtree(top)


def _leaves(root, place):
    return not Path(os.path.realpath((root / place).parent)).is_relative_to(root)


def identify(fd):
    info = os.fstat(fd)
    os.close(fd)
    return info.st_dev, info.st_ino


@settings(max_examples=100, deadline=None)
@given(FORESTS, st.lists(PATHS, min_size=1, max_size=5))
def test_whatever_opens_lies_inside(forest, paths):
    with planted(forest) as root:
        root_fd = os.open(root, os.O_RDONLY)
        inside = {(info.st_dev, info.st_ino) for info in map(os.lstat, [root, *root.rglob("*")])}
        try:
            for path in paths:
                try:
                    fd = open_beneath(root_fd, path, READ)
                except OSError:
                    continue
                found = identify(fd)
                assert found in inside
                info = os.stat(resolve_beneath(root, path), follow_symlinks=False)
                assert (info.st_dev, info.st_ino) == found
        finally:
            os.close(root_fd)


def in_chroot(root, paths):
    """What open(2) says about each path in a real chroot: an errno, or device and inode."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chroot(root)
            os.chdir("/")
            answers = []
            for path in paths:
                try:
                    answers.append(identify(os.open(path, READ)))
                except OSError as error:
                    answers.append(error.errno)
            os.write(send, pickle.dumps(answers))
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        answers = pickle.loads(stream.read())
    os.waitpid(child, 0)
    return answers


@pytest.mark.node
@settings(max_examples=60, deadline=None)
@given(FORESTS, st.lists(PATHS, min_size=1, max_size=8))
def test_the_answers_are_those_of_a_real_chroot(forest, paths):
    with planted(forest) as root:
        root_fd = os.open(root, os.O_RDONLY)
        try:
            for path, expected in zip(paths, in_chroot(root, paths), strict=True):
                try:
                    answer = identify(open_beneath(root_fd, path, READ))
                except OSError as error:
                    answer = error.errno
                assert answer == expected, path
        finally:
            os.close(root_fd)
