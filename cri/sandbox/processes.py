"""What a container runs, and as whom: from its config, its image and its pod."""

from __future__ import annotations

import os

from baustelle.bundle import ImageDefaults, command
from cri.api.runtime import v1
from cri.errors import InvalidArgumentError
from cri.sandbox.spec import ContainerSpec, GroupsPolicy, ProcessSpec, SandboxSpec, UserSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_POLICY = {
    v1.SupplementalGroupsPolicy.Merge: GroupsPolicy.MERGE,
    v1.SupplementalGroupsPolicy.Strict: GroupsPolicy.STRICT,
}


def process(
    config: v1.ContainerConfig,
    context: v1.LinuxContainerSecurityContext,
    image: ImageDefaults,
    sandbox: SandboxSpec,
) -> ProcessSpec:
    """The container's first process. Raises InvalidArgumentError, ImageConfigError."""
    argv = command(image, config.command, config.args)
    environment = {"PATH": DEFAULT_PATH}
    if sandbox.hostname:
        environment["HOSTNAME"] = sandbox.hostname
    if config.tty:
        environment["TERM"] = "xterm"
    for entry in image.env:
        key, _, value = entry.partition("=")
        environment[key] = value
    for pair in config.envs:
        environment[pair.key] = os.fsdecode(pair.value)
    for index, text in enumerate(argv):
        if "\0" in text:
            raise InvalidArgumentError(f"argument {index} has a NUL byte: no process can take it")
    for key, value in environment.items():
        if "\0" in key or "\0" in value:
            # Without the value, which may be a secret.
            raise InvalidArgumentError(
                f"the environment variable {key!r} has a NUL byte: no process can take it"
            )
    return ProcessSpec(
        argv=tuple(argv),
        env=tuple(f"{key}={value}" for key, value in environment.items()),
        cwd=config.working_dir or image.working_dir or "/",
        user=_user(context, image),
        tty=config.tty,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
    )


def _user(context: v1.LinuxContainerSecurityContext, image: ImageDefaults) -> UserSpec:
    user = image.user
    if context.run_as_user is not None and context.run_as_username:
        raise InvalidArgumentError(
            f"security_context has both run_as_user {context.run_as_user.value} and run_as_username "
            f"{context.run_as_username!r}: set one of them"
        )
    if context.run_as_user is not None:
        user = str(context.run_as_user.value)
    elif context.run_as_username:
        user = context.run_as_username
    elif context.run_as_group is not None:
        raise InvalidArgumentError(
            "security_context.run_as_group is set without run_as_user or run_as_username"
        )
    return UserSpec(
        user=user,
        group=None if context.run_as_group is None else context.run_as_group.value,
        supplemental_groups=tuple(context.supplemental_groups),
        groups_policy=_POLICY[context.supplemental_groups_policy],
    )


def exec_process(container: ContainerSpec, argv: list[str], *, tty: bool = False) -> ProcessSpec:
    """A process beside the container's own: its user, environment and directory, another command."""
    if not argv or not argv[0]:
        raise InvalidArgumentError(f"exec in container {container.id}: cmd is empty")
    own = container.process
    return ProcessSpec(argv=tuple(argv), env=own.env, cwd=own.cwd, user=own.user, tty=tty)
