"""The pods' network: addresses that are recorded before they are used, and interfaces from `cni_plugins`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import structlog

from cni_plugins import Allocator, Bridge, BridgeConfig, NetworkError, loopback
from cni_plugins.types import Network
from cri.sandbox.host import Condition, Host, HostError, NetworkStack, Warden
from cri.sandbox.spec import SandboxSpec
from cri.state import LeaseRecord, Store

log = structlog.get_logger(__name__)


class BridgeNetwork:
    """One bridge for all pods; implements `cri.sandbox.node.PodNetwork`.

    Leases are records: an address is on disk before an interface has it, and is free again only after the interface
    is gone. They are keyed by sandbox, so a crash between the two is found at the next start.
    """

    def __init__(self, host: Host, store: Store, *, bridge: str, subnet: Network, mtu: int) -> None:
        self._host = host
        self._store = store
        self._name = bridge
        self._bridge = Bridge(BridgeConfig(name=bridge, subnets=(subnet,), mtu=mtu))
        self._allocator = Allocator(subnet)
        self._deletions: set[asyncio.Task[None]] = set()
        self._condition = Condition(
            ok=False, reason="NetworkNotStarted", message="the bridge is not made yet"
        )

    async def open(self) -> None:
        """Take the leases over and make the bridge; what fails becomes the condition, pods may come later."""
        for lease in self._store.leases.values():
            if lease.network == self._name:
                try:
                    self._allocator.restore(lease.owner, ip_address(lease.address))
                except NetworkError as error:
                    # Of a subnet that was configured before: its pod keeps it until it ends.
                    log.warning("an address is not of this subnet", sandbox=lease.owner, error=str(error))
        await self._ensure()

    async def condition(self) -> Condition:
        """Whether pods can have a network, and if not, why; a bridge that is missing is made if that is possible now."""
        if not self._condition.ok or not await asyncio.to_thread(self._bridge.exists):
            await self._ensure()
        return self._condition

    async def _ensure(self) -> None:
        try:
            await asyncio.to_thread(self._bridge.ensure)
        except NetworkError as error:
            message = f"bridge {self._name}: {error}"
            if message != self._condition.message:
                log.warning("no pod network", error=message)
            self._condition = Condition(ok=False, reason="BridgeMissing", message=message)
        else:
            self._condition = Condition(ok=True)

    async def attach(self, spec: SandboxSpec, warden: Warden) -> Sequence[str]:
        """Give the pod loopback, eth0, an address and a route."""
        address = self._allocator.reserve(spec.id)
        try:
            lease = LeaseRecord(address=str(address.ip), network=self._name, owner=spec.id)
            await self._store.save(lease)
        except BaseException:
            self._allocator.release(spec.id)
            raise
        stack = self._host.network_stack(spec, warden)
        try:
            await asyncio.to_thread(self._attach, spec, stack, address)
        except BaseException:
            await self.detach(spec.id)
            raise
        finally:
            stack.close()
        return [str(address.ip)]

    async def detach(self, sandbox_id: str) -> None:
        """Take the pod's interface and address back; succeeds on what is gone.

        The pod is off the network when this returns. Its interface goes with its namespace, or is deleted in the
        background: Linux makes a deleter wait for tens of milliseconds, which no pod's end needs to. On FreeBSD it is
        deleted now: a dying jail would keep it, and the kernel is not safe against the two ending at once.
        """
        leases = [lease for lease in self._store.leases.values() if lease.owner == sandbox_id]
        if not leases:
            return
        first = self._host.features.delete_interfaces_first
        await asyncio.to_thread(self._bridge.delete if first else self._bridge.disconnect, sandbox_id)
        await self._store.delete(*leases)
        self._allocator.release(sandbox_id)
        if not first:
            deletion = asyncio.create_task(self._delete(sandbox_id))
            self._deletions.add(deletion)
            deletion.add_done_callback(self._deletions.discard)

    async def release(self, sandbox_id: str) -> None:
        """Take the interface back of a sandbox that no record names. Raises HostError."""
        try:
            await asyncio.to_thread(self._bridge.delete, sandbox_id)
        except NetworkError as error:
            raise HostError("take back the interface of", f"sandbox {sandbox_id}", str(error)) from error

    async def reconcile(self, sandboxes: Sequence[str]) -> None:
        """Take back what belongs to no sandbox: leases, and interfaces that a crash left half deleted.

        An interface that is still on the bridge goes with its pod; if no pod of ours has it, it is another daemon's.
        """
        for owner in {lease.owner for lease in self._store.leases.values()} - set(sandboxes):
            log.warning("releasing the address of a sandbox that is gone", sandbox=owner)
            await self.detach(owner)
        for name in await asyncio.to_thread(self._bridge.strays):
            log.warning("removing an interface that no sandbox owns", interface=name)
            await asyncio.to_thread(self._bridge.delete_interface, name)

    async def close(self) -> None:
        """Finish deletions; remove the bridge if no pod hangs on it."""
        await asyncio.gather(*self._deletions)
        try:
            await asyncio.to_thread(self._bridge.remove)
        except NetworkError as error:
            log.warning("the bridge stays", bridge=self._name, error=str(error))

    async def _delete(self, sandbox_id: str) -> None:
        try:
            await asyncio.to_thread(self._bridge.delete, sandbox_id)
        except NetworkError as error:
            log.warning("an interface stays until the next start", sandbox=sandbox_id, error=str(error))

    def _attach(self, spec: SandboxSpec, stack: NetworkStack, address: IPv4Interface | IPv6Interface) -> None:
        loopback.up(stack)
        if not self._bridge.exists():  # somebody has deleted it, or it could not be made before
            self._bridge.ensure()
        self._bridge.add(spec.id, stack, addresses=[address])
