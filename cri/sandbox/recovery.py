"""What a new daemon finds: the records against the wardens that live and the resources that are there."""

from __future__ import annotations

import asyncio
import time

import structlog

from baustelle.removal import remove_tree
from cri.sandbox.container import Container
from cri.sandbox.host import HostError, Warden
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.node import Node
from cri.sandbox.pod import PodSandbox
from cri.sandbox.pods import Pods
from cri.sandbox.spec import Sharing

log = structlog.get_logger(__name__)


async def recover(node: Node, pods: Pods) -> None:
    """Bring records and node together; afterwards every state that a client is shown is true.

    All sandboxes are looked at at the same time, so that the time does not grow with their number. One that cannot be
    mended is logged and stays as it is recorded: it must not keep the others from running.
    """
    began = time.monotonic()
    orphans = pods.load()
    sandboxes = list(pods.sandboxes.values())
    results = await asyncio.gather(
        *(_recover(node, pods, sandbox) for sandbox in sandboxes), return_exceptions=True
    )
    for sandbox, result in zip(sandboxes, results, strict=True):
        if isinstance(result, Exception):
            log.error("sandbox not recovered", sandbox=sandbox.id, error=str(result), exc_info=result)
        elif isinstance(result, BaseException):
            raise result
    log.info("recovered", sandboxes=len(sandboxes), seconds=round(time.monotonic() - began, 3))
    try:
        for stranger in await node.host.unknown_sandboxes(list(pods.sandboxes)):
            await node.network.release(stranger)
        for what in await node.host.leftovers(list(pods.sandboxes), list(pods.containers)):
            log.warning("removed what no record names", what=what)
    except HostError as error:
        log.warning("leftovers stay", error=str(error))
    # Last: until the leftovers have ended, a process of theirs may still want to write down its end.
    for orphan in orphans:
        log.error(
            "a container's sandbox is gone; its record goes too",
            container=orphan.id,
            sandbox=orphan.sandbox_id,
        )
        await asyncio.to_thread(remove_tree, node.container_directory(orphan.id))
        await node.store.delete(orphan)


async def _recover(node: Node, pods: Pods, sandbox: PodSandbox) -> None:
    warden = await node.host.find_warden(sandbox.spec)
    if sandbox.state is SandboxState.CREATING:
        sandbox.warden = warden
        try:
            await sandbox.undo_creation()
        except Exception:
            await sandbox.give_up()
            raise
        pods.drop_sandbox(sandbox)
        return
    if sandbox.state is not SandboxState.READY:
        # Stopped, or on its way out: a warden that is left over ends now.
        sandbox.warden = warden
        await sandbox.stop()
        if sandbox.state is SandboxState.REMOVING:
            await pods.remove_sandbox(sandbox.id)
    elif warden is not None:
        await _take_over(sandbox, warden)
        if sandbox.spec.namespaces.network is not Sharing.NODE and not await node.network.is_attached(
            sandbox.id
        ):
            log.warning("a sandbox without a network was being stopped", sandbox=sandbox.id)
            await sandbox.stop()
    else:
        await sandbox.lose()
    for container in list(sandbox.containers.values()):
        await _finish(node, pods, container)


async def _take_over(sandbox: PodSandbox, warden: Warden) -> None:
    """Believe the warden: it has seen what happened while there was no daemon."""
    known = {state.container_id: state for state in await warden.containers()}
    for container in sandbox.containers.values():
        state = known.get(container.id)
        if container.state is ContainerState.CREATED and state is not None and state.started is not None:
            await container.was_started(state.started)
        if container.state is ContainerState.RUNNING:
            if state is None:
                await container.lose()
            elif state.exited is not None:
                await container.on_exit(state.exited)
        elif container.state is ContainerState.EXITED and state is not None and state.exited is None:
            log.warning(
                "a container that is recorded as ended still runs; killing it", container=container.id
            )
            await warden.kill(container.id)
    # Only now: an end that is told before its start is known would be lost.
    sandbox.adopt(warden)


async def _finish(node: Node, pods: Pods, container: Container) -> None:
    """Finish what the earlier daemon had begun with a container."""
    if container.state is ContainerState.CREATING:
        await node.host.remove_container(container.spec)
        await asyncio.to_thread(remove_tree, node.container_directory(container.id))
        await node.store.delete(container.record)
        pods.drop_container(container)
    elif container.state is ContainerState.REMOVING:
        await pods.remove_container(container.id)
