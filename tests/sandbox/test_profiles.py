"""Which profile a request asks for."""

from __future__ import annotations

import warnings

import pytest

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox import profiles
from cri.sandbox.host import Features
from cri.sandbox.spec import SeccompProfile

KIND = v1.SecurityProfileProfileType
LINUX = Features(recursive_readonly_mounts=True, seccomp=True)
WITHOUT = Features(recursive_readonly_mounts=True, seccomp_missing="there is no library: install it")
FREEBSD = Features(recursive_readonly_mounts=True)


def context(
    kind: v1.SecurityProfileProfileType | None = None, ref: str = "", old: str = "", *, privileged=False
):
    made = v1.LinuxContainerSecurityContext(privileged=privileged)
    if kind is not None:
        made.seccomp = v1.SecurityProfile(profile_type=kind, localhost_ref=ref)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.seccomp_profile_path = old
    return made


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (context(), None),
        (context(KIND.Unconfined), None),
        (context(KIND.RuntimeDefault), SeccompProfile()),
        (context(KIND.Localhost, "/p.json"), SeccompProfile("/p.json")),
        (context(old="unconfined"), None),
        (context(old="runtime/default"), SeccompProfile()),
        (context(old="docker/default"), SeccompProfile()),
        (context(old="localhost//var/p.json"), SeccompProfile("/var/p.json")),
        (context(KIND.Unconfined, old="runtime/default"), None),
        (context(KIND.RuntimeDefault, old="localhost//p"), SeccompProfile()),
        (context(KIND.RuntimeDefault, privileged=True), None),
        (context(KIND.Localhost, "/p.json", privileged=True), None),
    ],
)
def test_a_container_asks_for_a_profile(asked, found) -> None:
    assert profiles.seccomp(asked, LINUX) == found


@pytest.mark.parametrize("features", [LINUX, WITHOUT, FREEBSD])
def test_one_that_says_two_things_is_refused(features) -> None:
    with pytest.raises(InvalidArgumentError, match="seccomp profile mine: localhost_ref goes with"):
        profiles.seccomp(context(KIND.RuntimeDefault, "mine"), features)
    with pytest.raises(InvalidArgumentError, match="localhost_ref is empty"):
        profiles.seccomp(context(KIND.Localhost), features)
    with pytest.raises(InvalidArgumentError, match="seccomp profile mine: localhost_ref goes with"):
        profiles.check_seccomp_of_sandbox(v1.SecurityProfile(KIND.Unconfined, "mine"), features)
    with pytest.raises(InvalidArgumentError, match="apparmor profile mine: localhost_ref goes with"):
        profiles.check_apparmor(v1.SecurityProfile(KIND.RuntimeDefault, "mine"))


def test_without_the_library_a_profile_is_refused_and_its_absence_is_not() -> None:
    assert profiles.seccomp(context(), WITHOUT) is None
    assert profiles.seccomp(context(KIND.Unconfined), WITHOUT) is None
    assert profiles.seccomp(context(KIND.RuntimeDefault, privileged=True), WITHOUT) is None
    with pytest.raises(
        UnsupportedError, match="profile RuntimeDefault: there is no library: install it; or use"
    ):
        profiles.seccomp(context(KIND.RuntimeDefault), WITHOUT)
    with pytest.raises(UnsupportedError, match="profile /p: there is no library"):
        profiles.seccomp(context(old="localhost//p"), WITHOUT)


def test_where_jails_confine_a_default_is_that() -> None:
    assert profiles.seccomp(context(KIND.RuntimeDefault), FREEBSD) is None
    for asked in (
        context(KIND.Localhost, "/p"),
        context(KIND.Localhost, "/p", privileged=True),
        context(old="localhost//p"),
    ):
        with pytest.raises(
            UnsupportedError, match="seccomp profile /p: localhost profiles are not supported"
        ):
            profiles.seccomp(asked, FREEBSD)


def test_a_sandbox_is_not_filtered() -> None:
    localhost = v1.SecurityProfile(KIND.Localhost, "/p")
    for features in (LINUX, WITHOUT, FREEBSD):
        profiles.check_seccomp_of_sandbox(None, features)
        profiles.check_seccomp_of_sandbox(v1.SecurityProfile(KIND.RuntimeDefault), features)
    for features in (LINUX, WITHOUT):
        profiles.check_seccomp_of_sandbox(localhost, features)
    with pytest.raises(UnsupportedError, match="seccomp profile /p: localhost"):
        profiles.check_seccomp_of_sandbox(localhost, FREEBSD)


def test_profiles_of_apparmor_are_refused() -> None:
    profiles.check_apparmor(None)
    profiles.check_apparmor(v1.SecurityProfile(KIND.RuntimeDefault))
    with pytest.raises(UnsupportedError, match="apparmor profile mine: localhost profiles are not supported"):
        profiles.check_apparmor(v1.SecurityProfile(KIND.Localhost, "mine"))
