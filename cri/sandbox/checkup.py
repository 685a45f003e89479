"""Looks at the small files of sandboxes and containers when a daemon starts: what is damaged is said, and written anew.

A copy of a record is worth something only as long as it can be read when the record cannot.
"""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import structlog

from cri.sandbox import pod_files, record_files
from cri.sandbox.container import Container
from cri.sandbox.durable import remove_any
from cri.sandbox.host import HostError
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.spec import PodAddresses, Sharing
from cri.sandbox.warden.container import read_plan

log = structlog.get_logger(__name__)


def look_at(sandbox: PodSandbox) -> None:
    """Look at the files of a sandbox and its containers. Blocks. Raises nothing for one that cannot be mended."""
    try:
        _look_at_copy(sandbox, Path(sandbox.spec.directory))
        if sandbox.state is SandboxState.READY and not sandbox.foreign:
            _look_at_pod_files(sandbox)
    except OSError as error:
        log.error("a sandbox's files cannot be mended", sandbox=sandbox.id, error=str(error))
    for container in list(sandbox.containers.values()):
        try:
            _look_at_copy(container, Path(container.spec.directory))
            if container.state is ContainerState.CREATED:
                read_plan(container.spec.directory)
        except OSError as error:
            log.error("a container's files cannot be mended", container=container.id, error=str(error))
        except HostError as error:
            log.error("a container will not start: make it anew", container=container.id, error=str(error))


def _look_at_copy(one: PodSandbox | Container, directory: Path) -> None:
    if one.foreign or not directory.is_dir():
        return
    try:
        record_files.read(type(one.record), directory)
    except FileNotFoundError:
        log.info("a record gets the copy that it lacks", directory=str(directory))
    except (OSError, ValueError) as error:
        log.error(
            "the copy of a record is damaged; it is made anew", directory=str(directory), error=str(error)
        )
    else:
        return
    record_files.write(directory, one.record)


def _look_at_pod_files(sandbox: PodSandbox) -> None:
    directory = Path(sandbox.spec.directory)
    if not directory.is_dir() or not (
        damaged := [name for name in pod_files.NAMES if _is_damaged(directory / name)]
    ):
        return
    log.error("files of a pod are lost; new containers get new ones", sandbox=sandbox.id, files=damaged)
    for name in damaged:
        remove_any(directory / name)
    pod_files.write(sandbox.spec, sandbox.config.dns_config, socket.gethostname())
    if sandbox.spec.namespaces.network is not Sharing.NODE:
        given = PodAddresses(tuple(sandbox.addresses))
        pod_files.write_addresses(sandbox.spec, sandbox.config.dns_config, given)


def _is_damaged(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    return not stat.S_ISREG(found.st_mode) or (not found.st_size and path.name != pod_files.RESOLV_CONF)
