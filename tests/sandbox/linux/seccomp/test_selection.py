"""From what a container asks for to its filter: files of the node that are not what they should be."""

import json
import os

import pytest

from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.linux import filters
from cri.sandbox.linux.run_plan import Filter
from cri.sandbox.linux.seccomp import library, selection
from cri.sandbox.spec import SeccompProfile, Security

pytestmark = pytest.mark.skipif(bool(selection.missing()), reason="there are no filters here")
DENIES = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}


def asking(path, **security) -> Security:
    return Security(seccomp=SeccompProfile(str(path)), **security)


def test_who_is_not_filtered() -> None:
    assert selection.choose(Security()) is None
    assert selection.choose(Security(seccomp=SeccompProfile(), privileged=True)) is None
    assert selection.choose(asking("/nonexistent", privileged=True)) is None


def test_ours_depends_on_capabilities() -> None:
    plain = selection.choose(Security(seccomp=SeccompProfile()))
    assert plain == selection.choose(Security(seccomp=SeccompProfile(), add_capabilities=("CHOWN",)))
    for changes in ({"add_capabilities": ("SYS_ADMIN",)}, {"drop_capabilities": ("ALL",)}):
        assert plain != selection.choose(Security(seccomp=SeccompProfile(), **changes))


def test_a_profile_is_read_through_links(tmp_path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(DENIES))
    (tmp_path / "link").symlink_to("profile.json")
    found = selection.choose(asking(tmp_path / "link"))
    assert found is not None
    assert found == selection.choose(asking(tmp_path / "profile.json", no_new_privileges=True))
    assert filters.recorded(json.loads(json.dumps({"seccomp": filters.record(found)}))) == found


@pytest.mark.parametrize("kind", ["nothing", "fifo", "directory", "large", "device", "loop", "below a file"])
def test_what_is_no_profile_is_named_with_the_remedy(tmp_path, kind) -> None:
    path = tmp_path / "profile.json"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "large":
            path.write_bytes(b" " * (selection.LIMIT + 1))
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "below a file":
            path.write_text("")
            path = path / "x"
    with pytest.raises(
        UnfitRequestError, match=rf"read seccomp profile {path}: .*; put the profile there, on this node"
    ):
        selection.choose(asking(path))


def test_a_torn_one_is_named_with_the_place(tmp_path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(DENIES)[:-5])
    with pytest.raises(UnfitRequestError, match=f"use seccomp profile {path}: it is no JSON"):
        selection.choose(asking(path))
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_NO"}))
    with pytest.raises(
        UnfitRequestError, match=f"profile {path}: defaultAction: 'SCMP_ACT_NO' is none of .*; change"
    ):
        selection.choose(asking(path))


def test_one_that_lets_nothing_start_is_refused(tmp_path) -> None:
    path = tmp_path / "profile.json"
    open_calls = ["execve", "write", "exit_group"]
    strict = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": open_calls, "action": "SCMP_ACT_ALLOW"}],
    }
    path.write_text(json.dumps(strict))
    assert selection.choose(asking(path, no_new_privileges=True)) is not None
    with pytest.raises(
        UnfitRequestError, match=r"forbids prctl, capset, clone, .*allow that, or set no_new_privs"
    ):
        selection.choose(asking(path))
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO"}))
    with pytest.raises(
        UnfitRequestError, match=r"forbids execve, write, exit_group, without .*; allow that$"
    ):
        selection.choose(asking(path, no_new_privileges=True))


def test_without_the_library_the_remedy_is_told(monkeypatch) -> None:
    library._load.cache_clear()
    monkeypatch.setattr(library, "NAME", "libseccomp-of-nobody.so.2")
    try:
        assert "libseccomp-of-nobody.so.2 cannot be loaded" in selection.missing()
        assert library.REMEDY in selection.missing()
        with pytest.raises(
            HostError, match=r"use seccomp profile RuntimeDefault: .* cannot be loaded .*: install"
        ):
            selection.choose(Security(seccomp=SeccompProfile(), add_capabilities=("SYS_TIME", "SYS_BOOT")))
    finally:
        library._load.cache_clear()


def test_without_filters_in_the_kernel_that_is_told(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(selection, "_KERNEL", tmp_path / "none")
    assert "CONFIG_SECCOMP_FILTER" in selection.missing()


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"program": "AAAAAAAAAAA="},
        {"program": "AAAAAAAAAAA=", "flags": 8},
        {"program": "AAAAAAAAAAA=", "flags": "1"},
        {"program": "AAAAAAAAAAA=", "flags": None},
        {"program": "", "flags": 0},
        {"program": "AAAA", "flags": 0},
        {"program": "?", "flags": 0},
        {"program": 7, "flags": 0},
        {"program": ["a"], "flags": 0},
        [1],
        "x",
        7,
    ],
)
def test_a_damaged_plan_starts_nothing(damage) -> None:
    with pytest.raises(HostError, match=r"plan is damaged .*; make the container anew"):
        filters.recorded({"seccomp": damage})


def test_a_plan_without_one_has_none() -> None:
    assert filters.recorded({}) is None
    assert filters.recorded({"seccomp": None}) is None
    assert filters.record(None) is None
    assert filters.recorded({"seccomp": {"program": "AAAAAAAAAAA=", "flags": 7}}) == Filter(bytes(8), 7)
