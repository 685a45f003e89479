"""Which profiles a pod or container asks for, in the new fields and in the old ones, and whether this node has such."""

from __future__ import annotations

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox.host import Features
from cri.sandbox.spec import SeccompProfile

_LOCALHOST = v1.SecurityProfileProfileType.Localhost
_OLD_LOCALHOST = "localhost/"
_OLD_DEFAULTS = ("runtime/default", "docker/default")


def seccomp(context: v1.LinuxContainerSecurityContext, features: Features) -> SeccompProfile | None:
    """What a container asks for; None: unconfined, as what says nothing is. Raises InvalidArgumentError, UnsupportedError.

    Privileged containers are, too, whatever they ask for.
    """
    wanted = _wanted(context.seccomp, context.seccomp_profile_path)
    if wanted is None:
        return None
    if not features.seccomp and not features.seccomp_missing:
        _refuse_path(wanted)
        return None
    if context.privileged:
        return None
    if features.seccomp_missing:
        raise UnsupportedError(
            f"seccomp profile {wanted.path or 'RuntimeDefault'}: {features.seccomp_missing}; or use Unconfined"
        )
    return wanted


def check_seccomp_of_sandbox(profile: v1.SecurityProfile | None, features: Features) -> None:
    """A sandbox has no process that it could apply to; it must make sense all the same.

    Raises InvalidArgumentError; UnsupportedError for a profile of the node, where no container could have one.
    """
    wanted = _wanted(profile, "")
    if wanted is not None and not features.seccomp and not features.seccomp_missing:
        _refuse_path(wanted)


def check_apparmor(profile: v1.SecurityProfile | None) -> None:
    """Refuse profiles of the node. Raises UnsupportedError; InvalidArgumentError for one that says two things."""
    if profile is None:
        return
    _check_reference("apparmor", profile)
    if profile.profile_type == _LOCALHOST:
        raise _no_profiles("apparmor", profile.localhost_ref)


def _wanted(profile: v1.SecurityProfile | None, old: str) -> SeccompProfile | None:
    if profile is not None:
        _check_reference("seccomp", profile)
        if profile.profile_type == _LOCALHOST:
            if not profile.localhost_ref:
                raise InvalidArgumentError(
                    "seccomp.localhost_ref is empty: profile_type Localhost needs a path"
                )
            return SeccompProfile(profile.localhost_ref)
        unconfined = profile.profile_type == v1.SecurityProfileProfileType.Unconfined
        return None if unconfined else SeccompProfile()
    if old.startswith(_OLD_LOCALHOST):
        return SeccompProfile(old.removeprefix(_OLD_LOCALHOST))
    return SeccompProfile() if old in _OLD_DEFAULTS else None


def _check_reference(name: str, profile: v1.SecurityProfile) -> None:
    if profile.localhost_ref and profile.profile_type != _LOCALHOST:
        raise InvalidArgumentError(
            f"{name} profile {profile.localhost_ref}: localhost_ref goes with profile_type Localhost only"
        )


def _refuse_path(wanted: SeccompProfile) -> None:
    if wanted.path:
        raise _no_profiles("seccomp", wanted.path)


def _no_profiles(name: str, reference: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} profile {reference}: localhost profiles are not supported; use RuntimeDefault or Unconfined"
    )
