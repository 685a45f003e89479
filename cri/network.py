"""The pods' network: CNI in this process, over what the operator or the default has configured."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog

from cni_plugins import (
    CNI,
    Attachment,
    ClosedError,
    ConfDirectory,
    ConfigurationError,
    ExternalPluginError,
    Found,
    Ledger,
    NetworkError,
    NetworkList,
    PortMapping,
    RuntimeConfig,
    loopback,
)
from cri import config_values, default_network, pod_bandwidth
from cri.config import NetworkConfig
from cri.errors import InvalidArgumentError
from cri.pod_cidr import PodCidr
from cri.sandbox.host import Condition, Host, HostError, NetworkStack, Warden
from cri.sandbox.spec import PodAddresses, Resolver, SandboxSpec

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

INTERFACE = "eth0"
RECONCILE_SECONDS = 60.0
"""Between two looks whether the node still has what the pods need of it."""
STATUS_SECONDS = 2.0
"""What a client waits for the plugins to say how they are; they may be others' and hang."""
HELD_UP_SECONDS = 0.5
"""How much later than that this process looks at the clock if it has not been held up itself."""
LOOK_SECONDS = 5.0
"""Between two cheap looks whether bridges and tables are there; what is not is put back at once."""
LOST_SECONDS = 1.0
"""How long what such a look has found is told to those who ask."""
THREADS = 64
"""For calls of plugins: their own, so that one that hangs keeps nothing else from being done."""
_MOST_WORDS = 5  # things that are lost, in a message


class CniNetwork:
    """The network of all pods; implements `cri.sandbox.node.PodNetwork`.

    Attachments and addresses are in a ledger of their own (`network.db`), written down before anything is made and
    struck out after it is gone, so that a crash in between is found.
    """

    def __init__(
        self,
        host: Host,
        config: NetworkConfig,
        state_dir: Path,
        *,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """`make_room` gives something up when the disk is full, and tells whether it did; any thread may call it."""
        self._host = host
        self._config = config
        self._state_dir = state_dir
        self._make_room = make_room
        self._directory = ConfDirectory(config.conf_dir)
        self._found: Found | None = None
        self._default: NetworkList
        self._ledger: Ledger
        self._pod_cidr: PodCidr
        self._cni: CNI
        self._watch: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[tuple[list[str], list[str]]] | None = None
        self._lost: tuple[float, list[str]] = (0.0, [])
        """Until when that counts, and what was lost."""
        self._well_until = 0.0
        self._broken = asyncio.Event()
        self._gone: set[str] = set()
        """Sandboxes that this daemon has detached, so that nothing of theirs need be looked for."""
        self._spared: dict[str, tuple[str, ...]] = {}
        """Sandboxes whose attachments are lost and could not be written down anew, with their addresses."""
        self._threads = ThreadPoolExecutor(THREADS, "network")

    async def open(self) -> None:
        """Open the ledger, whatever has become of it. Raises NetworkError for a default network that cannot be."""
        path = self._state_dir / "network.db"
        self._ledger = await asyncio.to_thread(Ledger, path, self._host.boot_id(), make_room=self._make_room)
        self._pod_cidr = PodCidr(self._state_dir / "pod-cidr", self._ledger)
        kept = await asyncio.to_thread(self._pod_cidr.read)
        try:
            self._default = default_network.render(self._config, kept or self._config.subnets)
        except ConfigurationError as error:
            if not kept:
                raise
            log.warning("the kept pod CIDR is passed over", pod_cidr=kept, error=str(error))
            self._default = default_network.render(self._config, self._config.subnets)
        self._cni = CNI(self._ledger, binaries=[Path(one) for one in self._config.external_plugins])

    async def condition(self) -> Condition:
        """Whether pods can have a network, and if not, why. What plugins say and the node has is as of a second ago at most."""
        try:
            network = await asyncio.to_thread(self._network)
        except NetworkError as error:
            return Condition(ok=False, reason="NetworkConfigInvalid", message=str(error))
        if time.monotonic() < self._well_until:
            return Condition(ok=True)
        began = time.monotonic()
        found = await self._ready(network)
        if found.ok:
            self._well_until = began + LOST_SECONDS
        return found

    async def _ready(self, network: NetworkList) -> Condition:
        # One question at a time, however many clients want to know: a plugin that hangs must not eat up the threads.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._in_thread(self._ask, network))
        try:
            problems, lost = await _told(self._asking)
        except TimeoutError:
            message = f"the plugins of network {network.name} have not said within {STATUS_SECONDS:g} s how they are"
            return Condition(ok=False, reason="NetworkPluginSilent", message=message)
        if lost:
            self._broken.set()
        if problems:
            return Condition(ok=False, reason="NetworkPluginNotReady", message="; ".join(problems))
        if problem := self._ledger.problem:
            return Condition(ok=False, reason="NetworkStateNotWritable", message=problem)
        if lost:
            words = "; ".join(lost[:_MOST_WORDS])
            more = f"; and {len(lost) - _MOST_WORDS} more" if len(lost) > _MOST_WORDS else ""
            message = f"{words}{more}; somebody has changed that by hand, and it is being put right"
            return Condition(ok=False, reason="NetworkBroken", message=message)
        return Condition(ok=True)

    @property
    def ledger_problem(self) -> str:
        """Why what pods have of the network cannot be written down, with the remedy; empty if it can."""
        return self._ledger.problem

    async def attach(self, spec: SandboxSpec, warden: Warden) -> PodAddresses:
        """Give the pod loopback, eth0, addresses, routes and its host ports.

        Raises NetworkError, InvalidArgumentError for an annotation that cannot be.
        """
        runtime = _runtime_config(spec)
        stack = self._host.network_stack(spec, warden)
        return await self._in_thread(self._attach, _attachment(spec, runtime, stack.name), stack)

    async def detach(self, sandbox_id: str) -> None:
        """Take the pod's interfaces, addresses and host ports back; succeeds on what is gone.

        The pod is off the network when this returns; what only takes time is finished in the background.
        """
        networks = await asyncio.to_thread(self._networks)
        await self._in_thread(self._detach, sandbox_id, networks)
        self._gone.add(sandbox_id)
        self._spared.pop(sandbox_id, None)

    async def is_attached(self, sandbox_id: str) -> bool:
        """Whether the pod has a network, and nothing of it has been taken back.

        Not if that is lost or cannot be read: see `rebuild`.
        """
        return await asyncio.to_thread(self._cni.is_attached, sandbox_id)

    async def far_ends(self, sandbox_ids: Collection[str]) -> dict[str, dict[str, str]]:
        """The interfaces of pods, in the order in which they were made, by the names of their other ends on the node.

        As their attachments are written down; what others' plugins have made is left out, unless they have told of both ends.
        """
        return await asyncio.to_thread(self._far_ends, sandbox_ids)

    async def rebuild(self, spec: SandboxSpec, warden: Warden, addresses: Sequence[str] = ()) -> bool:
        """Write the network of a pod down that `is_attached` does not know; False if it has none, or was losing it.

        For a sandbox that is READY by its record and whose warden lives, as the ledger may be lost. What the pod has is
        asked of its own network stack; `reconcile` puts back what else there should be. Until this has succeeded the pod
        keeps its interfaces, and `addresses`, those of its record, are given to nobody else. Raises NetworkError, HostError.
        """
        self._spared[spec.id] = tuple(addresses)
        stack = self._host.network_stack(spec, warden)
        attachment = _attachment(spec, _runtime_config(spec), stack.name)
        rebuilt = await self._in_thread(self._rebuild, attachment, stack)
        self._spared.pop(spec.id, None)
        self._broken.set()  # for its claims, if a reconciliation does not follow anyway
        return rebuilt

    async def release(self, sandbox_id: str) -> None:
        """Take the network back of a sandbox that no record names. Raises HostError."""
        try:
            networks = await asyncio.to_thread(self._networks)
            await self._in_thread(self._detach, sandbox_id, networks)
        except NetworkError as error:
            raise HostError("take back the network of", f"sandbox {sandbox_id}", str(error)) from error

    async def reconcile(self, sandboxes: Callable[[], Collection[str]], *, shared: bool = True) -> None:
        """Take back what belongs to no sandbox, and put back what the sandboxes' attachments lack on the node.

        What a crash left, what somebody has flushed. A failure is logged, and tried again the next time. `shared` asks
        plugins of others, too, which may take their time.
        """
        try:
            networks = [await asyncio.to_thread(self._network)]
        except NetworkError as error:
            log.warning("no network for new pods", error=str(error))
            networks = []
        there = set(sandboxes())
        self._gone &= there
        self._spared = {name: addresses for name, addresses in self._spared.items() if name in there}
        try:
            for failure in await self._in_thread(self._gc, sandboxes, networks, shared=shared):
                log.warning("the pods' network is not in line", error=str(failure))
        except NetworkError as error:
            log.warning("the pods' network was not looked at", error=str(error))
        self._lost = (0.0, [])

    def watch(self, sandboxes: Callable[[], Collection[str]]) -> None:
        """Reconcile again and again from now on."""
        self._watch = asyncio.create_task(self._reconcile_often(sandboxes), name="network reconciliation")

    async def set_pod_cidr(self, pod_cidr: str) -> None:
        """Give pods made from now on addresses of these prefixes (comma-separated).

        Not if the operator has configured a network. Pods that are there keep theirs. Raises InvalidArgumentError.
        """
        try:
            subnets = config_values.families(pod_cidr)
            default = default_network.render(self._config, subnets)
        except ValueError as error:
            raise InvalidArgumentError(f"pod_cidr {pod_cidr!r}: {error}") from None
        if default == self._default:
            return
        await asyncio.to_thread(self._pod_cidr.write, subnets)
        self._default = default
        self._well_until = 0.0
        log.info("new pods get addresses of the kubelet's pod CIDR", pod_cidr=pod_cidr)

    async def prepare(self, config: NetworkConfig) -> Callable[[], None]:
        """Look whether pods can have the network of another configuration; what is returned makes it count for pods to come.

        Pods that are there keep theirs, and a pod CIDR of the kubelet's goes on taking the place of `subnets`. Which
        directories have plugins of others stays as it is. Raises ConfigurationError.
        """
        kept = await asyncio.to_thread(self._pod_cidr.read)
        default = default_network.render(config, kept or config.subnets)

        def take_over() -> None:
            if config.conf_dir != self._directory.path:
                self._directory = ConfDirectory(config.conf_dir)
            self._config, self._default, self._found = config, default, None
            self._well_until = 0.0
            self._broken.set()  # so that what nobody uses any more goes soon

        return take_over

    async def close(self) -> None:
        """Finish what is under way; remove the bridges that no pod hangs on. Pods keep their network."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await asyncio.to_thread(partial(self._threads.shutdown, cancel_futures=True))
        for failure in await asyncio.to_thread(self._cni.close):
            log.warning("something of the pods' network stays", error=str(failure))
        await asyncio.to_thread(self._ledger.close)

    async def _reconcile_often(self, sandboxes: Callable[[], Collection[str]]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + RECONCILE_SECONDS
        while True:
            try:
                async with asyncio.timeout(max(0.0, min(LOOK_SECONDS, due - loop.time()))):
                    await self._broken.wait()
            except TimeoutError:
                pass
            try:
                broken = self._broken.is_set() or bool(await self._in_thread(self._look))
                if broken or loop.time() >= due:
                    self._broken.clear()
                    await self.reconcile(sandboxes, shared=False)
                    due = loop.time() + RECONCILE_SECONDS
                    await asyncio.sleep(min(LOST_SECONDS, RECONCILE_SECONDS))  # some things cannot be mended
            except Exception:
                # Whatever it was: the next time may go well, and there must be a next time.
                log.exception("reconciliation failed")
                due = loop.time() + RECONCILE_SECONDS

    async def _in_thread(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        try:
            called = loop.run_in_executor(self._threads, partial(function, *arguments, **named))
        except RuntimeError as error:  # the daemon ends
            raise ClosedError("the network has ended with the daemon; ask the next one") from error
        return await called

    def _attach(self, attachment: Attachment, stack: NetworkStack) -> PodAddresses:
        try:
            loopback.up(stack)
            result = self._cni.add(self._network(), attachment, stack)
        finally:  # not where it is waited for: whoever waits may be cancelled, and this goes on
            stack.close()
        resolver = Resolver(result.dns.nameservers, result.dns.search, result.dns.options)
        return PodAddresses(tuple(str(ip.address.ip) for ip in result.ips), resolver)

    def _rebuild(self, attachment: Attachment, stack: NetworkStack) -> bool:
        try:
            return self._cni.rebuild(self._networks(), attachment, stack)
        finally:  # as above
            stack.close()

    def _detach(self, sandbox_id: str, networks: Sequence[NetworkList]) -> None:
        if self._cni.delete_all(sandbox_id, otherwise=networks) or sandbox_id in self._gone:
            return
        # Nobody has written it down: there was nothing, or the ledger is lost.
        for network in networks:
            try:
                self._cni.delete(network, Attachment(sandbox_id, INTERFACE))
            except (ConfigurationError, ExternalPluginError) as error:
                log.warning("nothing was detached by this network", network=network.name, error=str(error))

    def _gc(
        self, sandboxes: Callable[[], Collection[str]], networks: Sequence[NetworkList], *, shared: bool
    ) -> list[NetworkError]:
        if not self._spared:
            return self._cni.gc(sandboxes, networks, shared=shared)
        return self._cni.gc(sandboxes, networks, shared=shared, spared=dict(self._spared))

    def _ask(self, network: NetworkList) -> tuple[list[str], list[str]]:
        """What keeps ADD from working, and what is lost."""
        self._ledger.retry()
        return self._cni.status(network), self._look()

    def _look(self) -> list[str]:
        """What the node lacks of what pods need, as of a second ago at most."""
        until, lost = self._lost
        if time.monotonic() < until:
            return lost
        try:
            lost = self._cni.lost()
        except NetworkError as error:
            lost = [str(error)]
        self._lost = time.monotonic() + LOST_SECONDS, lost
        return lost

    def _networks(self) -> list[NetworkList]:
        """The networks that a pod may be attached to of which nobody knows, the likeliest first."""
        try:
            return list({id(one): one for one in (self._network(), self._default)}.values())
        except ConfigurationError as error:
            log.warning("no network for new pods", error=str(error))
            return [self._default]

    def _far_ends(self, sandbox_ids: Collection[str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for sandbox_id in sandbox_ids:
            ends = found[sandbox_id] = {}
            for entry in self._ledger.entries(container=sandbox_id):
                if entry.whole:
                    ends |= _pairs((entry.result or {}).get("interfaces", ()))
        return found

    def _network(self) -> NetworkList:
        """The network that new pods get. Raises ConfigurationError if the operator's configuration is none."""
        found = self._directory.look()
        if found is not self._found:
            self._found = found
            for problem in found.problems:
                log.warning("not a network configuration", problem=problem)
            name, source = (
                (found.network.name, found.network.source)
                if found.network
                else (self._default.name, "default")
            )
            log.info("network of new pods", network=name, source=source)
        if found.network is None and found.problems:
            raise ConfigurationError("; ".join(found.problems))
        return found.network or self._default


def _attachment(spec: SandboxSpec, runtime: RuntimeConfig, netns: str) -> Attachment:
    args = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": spec.namespace,
        "K8S_POD_NAME": spec.name,
        "K8S_POD_INFRA_CONTAINER_ID": spec.id,
        "K8S_POD_UID": spec.uid,
    }
    return Attachment(spec.id, INTERFACE, netns, runtime, args)


def _pairs(interfaces: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The pods' ends in a result, by the ends on the node, which a result has right before them."""
    return {
        str(near["name"]): str(far["name"])
        for near, far in itertools.pairwise(interfaces)
        if far.get("sandbox") and not near.get("sandbox")
    }


async def _told(asking: asyncio.Task[T]) -> T:
    """What is told within STATUS_SECONDS, in which this process runs. Raises TimeoutError if nothing is.

    A process that did not run (its node was starved, stopped or paused) knows nothing of what others did meanwhile.
    """
    while True:
        began = time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.shield(asking), STATUS_SECONDS)
        except TimeoutError:
            if time.monotonic() - began < STATUS_SECONDS + HELD_UP_SECONDS:
                raise


def _runtime_config(spec: SandboxSpec) -> RuntimeConfig:
    return RuntimeConfig(
        port_mappings=tuple(
            PortMapping(
                port.host_port,
                port.container_port,
                port.protocol,
                ip_address(port.host_ip) if port.host_ip else None,
            )
            for port in spec.port_mappings
        ),
        bandwidth=pod_bandwidth.of(spec.annotations),
    )
