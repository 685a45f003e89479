"""What a new daemon finds: the records against the wardens that live and the resources that are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

import structlog

from cri.sandbox import checkup, salvage, trash
from cri.sandbox.container import Container
from cri.sandbox.host import HostError, Warden
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.node import Node
from cri.sandbox.pod import PodSandbox
from cri.sandbox.pods import Pods
from cri.sandbox.spec import Sharing

log = structlog.get_logger(__name__)

STRAY_SECONDS = 600.0
"""For how long a directory that no record names is left to whoever may want to look at it."""

SWEEP_SECONDS = 24 * 3600.0
"""Between two looks for such directories."""


async def recover(node: Node, pods: Pods) -> None:
    """Bring records and node together; afterwards every state that a client is shown is true.

    All sandboxes are looked at at the same time, so that the time does not grow with their number. One that cannot be
    mended is logged and stays as it is recorded: it must not keep the others from running.
    """
    began = time.monotonic()
    orphans = await asyncio.to_thread(pods.load)
    sandboxes = list(pods.sandboxes.values())
    removed = await _removed(node)
    results = await asyncio.gather(
        *(_recover(node, pods, sandbox, removed) for sandbox in sandboxes), return_exceptions=True
    )
    for sandbox, result in zip(sandboxes, results, strict=True):
        if isinstance(result, Exception):
            log.error("sandbox not recovered", sandbox=sandbox.id, error=str(result), exc_info=result)
        elif isinstance(result, BaseException):
            raise result
    await _write_down(node, pods)
    for sandbox in pods.sandboxes.values():
        await asyncio.to_thread(checkup.look_at, sandbox)
    log.info("recovered", sandboxes=len(sandboxes), seconds=round(time.monotonic() - began, 3))
    known = [*pods.sandboxes, *pods.strangers], [*pods.containers, *pods.strangers]
    try:
        for stranger in await node.host.unknown_sandboxes(known[0]):
            await node.network.release(stranger)
        for what in await node.host.leftovers(*known):
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
        await node.trash.take(node.container_directory(orphan.id))
        await node.store.follow(delete=[orphan])
    try:
        # But what shows that a container was removed whose record has not gone even now.
        if left := await asyncio.to_thread(node.trash.sweep, set(pods.containers)):
            log.info("what an earlier daemon has removed is deleted", count=left)
    except OSError as error:
        log.warning("what was removed stays", error=str(error))
    await sweep(node, pods)


async def sweep_often(node: Node, pods: Pods) -> None:
    """Look for directories without a record once a day, for ever."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await sweep(node, pods)
        except Exception:
            # Whatever it was, tomorrow it may go well.
            log.exception("directories without a record stay")


async def sweep(node: Node, pods: Pods) -> None:
    """Collect the directories of sandboxes and containers that there are not, and that nobody has touched for a while."""
    for parent, known in (("sandboxes", pods.sandboxes), ("containers", pods.containers)):
        directory = node.state_dir / parent

        def is_known(name: str, known: Collection[str] = known) -> bool:
            return name in known or name in pods.strangers

        try:
            strays = await asyncio.to_thread(trash.strays, directory, is_known, STRAY_SECONDS)
            for stray in strays:
                if is_known(stray.name):  # it has been made meanwhile
                    continue
                log.warning("removing a directory that no record names", directory=str(stray))
                if parent == "sandboxes":
                    await _end_stranger(node, stray.name)
                await node.trash.take(stray)
        except (OSError, HostError) as error:
            log.warning("directories without a record stay", directory=str(directory), error=str(error))


async def _end_stranger(node: Node, sandbox_id: str) -> None:
    """End what may be left of a sandbox of which nothing is known but its directory."""
    spec = salvage.bare_spec(node, sandbox_id)
    await node.network.release(sandbox_id)
    await node.host.stop_sandbox(spec, None)
    await node.host.remove_sandbox(spec)


async def _write_down(node: Node, pods: Pods) -> None:
    """Have the records of what was restored in the database, as it is by now."""
    objects: list[PodSandbox | Container] = [*pods.sandboxes.values(), *pods.containers.values()]
    await node.store.follow(save=[one.record for one in objects if one.restored])


async def _removed(node: Node) -> set[str]:
    """The containers that an earlier daemon has removed, whatever their records say."""
    try:
        return await asyncio.to_thread(node.trash.names)
    except OSError as error:
        log.warning("removed containers may come back, to be removed again", error=str(error))
        return set()


async def _recover(node: Node, pods: Pods, sandbox: PodSandbox, removed: Collection[str]) -> None:
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
        await _take_over(node, pods, sandbox, warden)
        if not await _has_network(node, sandbox, warden):
            log.warning("a sandbox without a network was being stopped", sandbox=sandbox.id)
            await sandbox.stop()
    else:
        await sandbox.lose()
    for container in list(sandbox.containers.values()):
        await _finish(node, pods, container, removed)


async def _has_network(node: Node, sandbox: PodSandbox, warden: Warden) -> bool:
    """Whether nobody has begun to take it back. Where that is not written down any more, the pod itself is looked at."""
    if sandbox.spec.namespaces.network is Sharing.NODE or sandbox.foreign:
        return True
    try:
        return await node.network.is_attached(sandbox.id) or await node.network.rebuild(
            sandbox.spec, warden, sandbox.addresses
        )
    except Exception:
        # What is not known is no reason to end a pod: what it has is spared until it is stopped.
        log.exception("the network of a sandbox could not be looked at; it runs on", sandbox=sandbox.id)
        return True


async def _take_over(node: Node, pods: Pods, sandbox: PodSandbox, warden: Warden) -> None:
    """Believe the warden: it has seen what happened while there was no daemon."""
    known = {state.container_id: state for state in await warden.containers()}
    for lost in known.keys() - sandbox.containers.keys() - pods.strangers:
        directory = node.container_directory(lost)
        container = await asyncio.to_thread(salvage.lost_container, node, directory, pods.sandboxes)
        if container is not None and container.record.sandbox_id == sandbox.id:
            pods.adopt(container)
    for container in sandbox.containers.values():
        state = known.get(container.id)
        unseen = container.state in (ContainerState.CREATED, ContainerState.UNKNOWN)
        if unseen and state is not None and state.started is not None:
            await container.was_started(state.started)
        if container.state is ContainerState.RUNNING:
            if state is None:
                await container.lose("its warden does not know it")
            elif state.exited is not None:
                await container.on_exit(state.exited)
        elif container.state is ContainerState.EXITED and state is not None and state.exited is None:
            log.warning(
                "a container that is recorded as ended still runs; killing it", container=container.id
            )
            await warden.kill(container.id)
    # Only now: an end that is told before its start is known would be lost.
    sandbox.adopt(warden)


async def _finish(node: Node, pods: Pods, container: Container, removed: Collection[str]) -> None:
    """Finish what the earlier daemon had begun with a container."""
    if container.state is ContainerState.CREATING:
        await node.host.remove_container(container.spec)
        await node.trash.take(node.container_directory(container.id))
        await node.store.follow(delete=[container.record])
        pods.drop_container(container)
    elif container.state is ContainerState.REMOVING or container.id in removed:
        await pods.remove_container(container.id)
    elif container.state is ContainerState.EXITED:
        await container.give_back()
