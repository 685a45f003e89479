"""Mounts and devices of a request, and the volumes of an image: what becomes of them, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox import mount_specs, places
from cri.sandbox.host import Features
from cri.sandbox.spec import MountSpec, Propagation

FEATURES = Features(recursive_readonly_mounts=True, image_volumes=True, mount_propagation=True)
LAYERS = {"app": ("sha256:1", "sha256:2")}
OWN = Path("/state/c1")


def specs(*messages: v1.Mount, declared=(), pod_files=(), features=FEATURES) -> tuple[MountSpec, ...]:
    config = v1.ContainerConfig(mounts=list(messages))
    asked = mount_specs.asked(config, features, LAYERS)
    return mount_specs.together(asked, pod_files=pod_files, declared=declared, directory=OWN)


def mount(target: str, source: str = "/nowhere", **values) -> v1.Mount:
    return v1.Mount(container_path=target, host_path=source, **values)


def image(target: str = "/i", **values) -> v1.Mount:
    return v1.Mount(
        **{"container_path": target, "image": v1.ImageSpec(image="app"), "readonly": True} | values
    )


@pytest.mark.parametrize(
    "spelt", ["/m", "/m/", "//m", "///m", "/./m", "/x/../m", "/../m", "m", "/m/.", "./m//"]
)
def test_a_place_is_the_same_however_it_is_spelt(spelt) -> None:
    found = specs(mount("/m/deep", "/inner"), mount(spelt, "/outer"))
    assert [(one.source, one.target) for one in found] == [("/outer", "/m"), ("/inner", "/m/deep")]


def test_the_last_mount_of_a_place_counts() -> None:
    found = specs(mount("/a", "/1"), mount("/b", "/2"), mount("/a/", "/3"))
    assert [(one.source, one.target) for one in found] == [("/2", "/b"), ("/3", "/a")]


@pytest.mark.parametrize("spelt", ["/etc/hosts", "/etc//hosts", "/etc/./hosts/", "//etc/x/../hosts"])
def test_a_mount_takes_the_place_of_what_the_pod_and_the_image_have(spelt) -> None:
    own = MountSpec("/pod/hosts", "/etc/hosts")
    assert [one.source for one in specs(mount(spelt), declared=["/etc/hosts"], pod_files=[own])] == [
        "/nowhere"
    ]
    assert specs(pod_files=[own], declared=["/etc/hosts"]) == (own,)


def test_volumes_of_an_image_are_directories_of_the_container() -> None:
    found = specs(mount("/data/x"), mount("/logs/"), declared=["/data", "logs", "/data/", "/data/x/deep"])
    assert [(one.source, one.target, one.readonly) for one in found] == [
        ("/state/c1/volumes/0", "/data", False),
        ("/nowhere", "/logs", False),
        ("/nowhere", "/data/x", False),
        ("/state/c1/volumes/2", "/data/x/deep", False),
    ]
    for one in found:
        assert places.is_image_volume_directory(one.source, str(OWN)) == one.source.startswith("/state")


@pytest.mark.parametrize("path", ["/", "", ".", "/..", "/proc", "/proc/sys/", "/x/../proc"])
def test_volumes_of_an_image_that_cannot_be(path) -> None:
    with pytest.raises(InvalidArgumentError, match="the image declares the volume /"):
        specs(declared=[path])


def test_an_image_does_not_declare_volumes_without_end() -> None:
    assert len(specs(declared=[f"/{number}" for number in range(mount_specs.MAX_VOLUMES)])) == 1000
    with pytest.raises(InvalidArgumentError, match="1001 volumes"):
        specs(declared=[f"/{number}" for number in range(1001)])


@pytest.mark.parametrize("make", [mount, image])
def test_options(make) -> None:
    (found,) = specs(make("/m", mount_options=["noexec", "nosuid", "noexec"], readonly=True))
    assert (found.options, found.readonly) == (("noexec", "nosuid"), True)
    for wrong in ("exec", "bind", "noexec,nodev", "", "NOEXEC"):
        with pytest.raises(InvalidArgumentError, match=f"mount_options has {wrong!r}"):
            specs(make("/m", mount_options=["nodev", wrong]))


def test_an_image_as_a_volume() -> None:
    (found,) = specs(image("/i/", image_sub_path="etc"))
    assert found == MountSpec("", "/i", readonly=True, image_layers=LAYERS["app"], image_path="etc")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"readonly": False}, "readonly is false"),
        ({"host_path": "/x"}, "host_path must be empty"),
        ({"container_path": ""}, "container_path is empty"),
        ({"propagation": v1.MountPropagation.PROPAGATION_BIDIRECTIONAL}, "use PROPAGATION_PRIVATE"),
    ],
)
def test_an_image_that_cannot_be_a_volume(changes, words) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        specs(image(**changes))


def test_a_host_without_image_volumes() -> None:
    with pytest.raises(UnsupportedError, match="no image volumes"):
        specs(image(), features=replace(FEATURES, image_volumes=False))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mount("/m", "relative"), "host_path must be absolute"),
        (mount("/m", image_sub_path="etc"), "image_sub_path is for the mount of an image"),
        (mount("/m", recursive_read_only=True), "needs readonly"),
    ],
)
def test_a_mount_that_cannot_be(wrong, words) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        specs(wrong)


def test_propagation_is_passed_on() -> None:
    (found,) = specs(mount("/m", propagation=v1.MountPropagation.PROPAGATION_HOST_TO_CONTAINER))
    assert found.propagation is Propagation.HOST_TO_CONTAINER


PATHS = st.lists(st.sampled_from(["", ".", "..", "a", "b", "deep", "ü", " "]), max_size=6).map("/".join)


@given(PATHS)
def test_cleaned_paths(path) -> None:
    found = places.cleaned(path)
    assert places.cleaned(found) == found == str(PurePosixPath(found)).replace("//", "/")
    assert ".." not in found.split("/")
    assert places.depth(found) == len(PurePosixPath(found).parts) - 1


@given(st.lists(PATHS, max_size=8))
def test_nothing_is_hidden_by_what_comes_later(paths) -> None:
    seen: list[PurePosixPath] = []
    for path in places.parents_first(paths, lambda path: path):
        here = PurePosixPath(places.cleaned(path))
        assert here not in [parent for one in seen for parent in one.parents]
        seen.append(here)


# -- Devices


@pytest.fixture
def tree(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("device nodes need root")
    for name in ("more/deep", "pts", "empty"):
        (tmp_path / "d" / name).mkdir(parents=True)
    for name in ("zero", "more/null", "more/deep/null", "pts/0", "console"):
        os.mknod(tmp_path / "d" / name, 0o20666, os.makedev(1, 3))
    os.mknod(tmp_path / "d/disk", 0o60660, os.makedev(7, 0))
    (tmp_path / "d/file").touch()
    os.mkfifo(tmp_path / "d/fifo")
    (tmp_path / "d/link").symlink_to("zero")
    (tmp_path / "d/loop").symlink_to("..")
    (tmp_path / "to").symlink_to("d")
    return tmp_path


def device(path, target="/dev/mine", permissions="rwm") -> v1.Device:
    return v1.Device(host_path=str(path), container_path=target, permissions=permissions)


@pytest.mark.parametrize("name", ["d", "d/", "to", "to/./"])
def test_a_directory_stands_for_the_devices_below(tree, name) -> None:
    found = mount_specs.devices([device(f"{tree}/{name}", "//dev/mine/", "wr")], FEATURES)
    assert {one.target: one.source for one in found} == {
        f"/dev/mine/{name}": f"{tree}/d/{name}" for name in ("zero", "disk", "more/null", "more/deep/null")
    }
    assert {one.permissions for one in found} == {"rw"}


def test_a_link_to_a_device_is_followed_when_it_is_named(tree) -> None:
    (found,) = mount_specs.devices([device(tree / "d/link", "")], FEATURES)
    assert (found.source, found.target) == (str(tree / "d/zero"), str(tree / "d/link"))
    assert mount_specs.devices([device(tree / "d/empty")], FEATURES) == ()


def test_the_last_device_of_a_place_counts(tree) -> None:
    found = mount_specs.devices(
        [device(tree / "d"), device(tree / "d/disk", "/dev/mine/zero", "r")], FEATURES
    )
    assert {one.source for one in found if one.target == "/dev/mine/zero"} == {str(tree / "d/disk")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "No such file"),
        ("d/file", "not a character or block device"),
        ("d/fifo", "not a character or block device"),
    ],
)
def test_what_is_no_device(tree, name, words) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        mount_specs.devices([device(tree / name)], FEATURES)


def test_a_directory_of_very_many_files(tree, monkeypatch) -> None:
    monkeypatch.setattr(mount_specs, "MAX_DEVICES", 5)
    with pytest.raises(InvalidArgumentError, match="more than 5 files"):
        mount_specs.devices([device(tree / "d")], FEATURES)


@pytest.mark.parametrize("half", ["r", "w", "rm", "wm", "m"])
def test_permissions_that_a_host_cannot_hold_root_to_are_refused(half) -> None:
    features = replace(FEATURES, device_permissions=False)
    with pytest.raises(UnsupportedError, match=r"device /dev/null: permissions .* ask for rw"):
        mount_specs.devices([device("/dev/null", permissions=half)], features)
    for whole in ("", "rw", "mwr"):
        assert len(mount_specs.devices([device("/dev/null", permissions=whole)], features)) == 1


@pytest.mark.parametrize(
    ("given_", "meant"), [("", "rwm"), ("r", "r"), ("mr", "rm"), ("wr", "rw"), ("mwr", "rwm"), ("rrw", "rw")]
)
def test_permissions(given_, meant) -> None:
    (found,) = mount_specs.devices([device("/dev/null", permissions=given_)], FEATURES)
    assert found.permissions == meant


@pytest.mark.parametrize("wrong", ["x", "rwx", "R", "rw ", "*", "r,w"])
def test_permissions_that_are_none(wrong) -> None:
    with pytest.raises(InvalidArgumentError, match="only r, w and m are known"):
        mount_specs.devices([device("/dev/null", permissions=wrong)], FEATURES)
    with pytest.raises(InvalidArgumentError, match="host_path must be absolute"):
        mount_specs.devices([device("null")], FEATURES)
