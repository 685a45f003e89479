"""Which snapshotter a FreeBSD node gets; on the kernel in memory, whose root filesystem is UFS."""

import errno

import pytest

from cri.sandbox.fake.freebsd import FakeFreeBSD
from cri.sandbox.freebsd import libzfs
from cri.sandbox.freebsd.snapshots import make_snapshotter
from cri.sandbox.freebsd.zfs import ANNOTATION_QUOTA, quota
from cri.sandbox.host import HostError
from cri.sandbox.spec import ContainerSpec, ProcessSpec


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    def refuse():
        raise FileNotFoundError(errno.ENOENT, "no such library", "libzfs_core.so.2")

    monkeypatch.setattr(libzfs, "load", refuse)
    return FakeFreeBSD()


def test_a_state_directory_without_zfs_below_it_gets_copies(tmp_path, kernel):
    assert make_snapshotter(tmp_path, "auto", kernel).kind == "copy"
    assert make_snapshotter(tmp_path, "copy", kernel).kind == "copy"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zfs", "lies on ufs; move it to a ZFS dataset, or choose copy"),
        ("zfs:tank/nodes", "libzfs_core"),
        ("overlay", "choose auto, copy or zfs"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path, kernel, kind, message):
    with pytest.raises(HostError, match=message):
        make_snapshotter(tmp_path, kind, kernel)


def container(**annotations: str) -> ContainerSpec:
    return ContainerSpec("c", "s", "/nowhere", (), ProcessSpec(argv=("sh",)), annotations=annotations)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1048576", 1 << 20),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("3MiB", 3 << 20),
        ("2TB", 2 << 40),
    ],
)
def test_quotas(text, size):
    assert quota(container(**{ANNOTATION_QUOTA: text})) == size
    assert quota(container()) is None


@pytest.mark.parametrize("text", ["", "0", "-1", "4 M", "1X", "iB", "99999999P", "1.5G", "1\n", "\u0661"])
def test_what_is_no_quota(text):
    with pytest.raises(HostError, match=ANNOTATION_QUOTA):
        quota(container(**{ANNOTATION_QUOTA: text}))
