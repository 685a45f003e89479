"""The pods' network: CNI in this process, over what the operator or the default has configured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from cni_plugins import (
    CNI,
    Attachment,
    ClosedError,
    ConfDirectory,
    ConfigurationError,
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
THREADS = 64
"""For calls of plugins: their own, so that one that hangs keeps nothing else from being done."""
_POD_CIDR = "podCIDR"
"""Under this name the ledger keeps what the kubelet has said last: it does not say it again to a new daemon."""


class CniNetwork:
    """The network of all pods; implements `cri.sandbox.node.PodNetwork`.

    Attachments and addresses are in a ledger of their own (`network.db`), written down before anything is made and
    struck out after it is gone, so that a crash in between is found.
    """

    def __init__(self, host: Host, config: NetworkConfig, state_dir: Path) -> None:
        self._host = host
        self._config = config
        self._path = state_dir / "network.db"
        self._directory = ConfDirectory(config.conf_dir)
        self._found: Found | None = None
        self._default: NetworkList
        self._ledger: Ledger
        self._cni: CNI
        self._watch: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[list[str]] | None = None
        self._threads = ThreadPoolExecutor(THREADS, "network")

    async def open(self) -> None:
        """Open the ledger. Raises NetworkError, also for a default network that cannot be."""
        self._ledger = await asyncio.to_thread(Ledger, self._path, self._host.boot_id())
        kept = await asyncio.to_thread(self._ledger.noted, _POD_CIDR)
        self._default = default_network.render(
            self._config, kept.split(",") if kept else self._config.subnets
        )
        self._cni = CNI(self._ledger, binaries=[Path(one) for one in self._config.external_plugins])

    async def condition(self) -> Condition:
        """Whether pods can have a network, and if not, why."""
        try:
            network = await asyncio.to_thread(self._network)
        except NetworkError as error:
            return Condition(ok=False, reason="NetworkConfigInvalid", message=str(error))
        # One question at a time, however many clients want to know: a plugin that hangs must not eat up the threads.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._in_thread(self._cni.status, network))
        try:
            problems = await asyncio.wait_for(asyncio.shield(self._asking), STATUS_SECONDS)
        except TimeoutError:
            message = f"the plugins of network {network.name} have not said within {STATUS_SECONDS:g} s how they are"
            return Condition(ok=False, reason="NetworkPluginSilent", message=message)
        if problems:
            return Condition(ok=False, reason="NetworkPluginNotReady", message="; ".join(problems))
        return Condition(ok=True)

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
        await self._in_thread(self._cni.delete_all, sandbox_id)

    async def is_attached(self, sandbox_id: str) -> bool:
        """Whether the pod has a network, and nothing of it has been taken back."""
        return await asyncio.to_thread(self._cni.is_attached, sandbox_id)

    async def release(self, sandbox_id: str) -> None:
        """Take the network back of a sandbox that no record names. Raises HostError."""

        def release() -> None:
            self._cni.delete_all(sandbox_id)
            self._cni.delete(self._network(), Attachment(sandbox_id, INTERFACE))

        try:
            await self._in_thread(release)
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
        try:
            for failure in await self._in_thread(self._cni.gc, sandboxes, networks, shared=shared):
                log.warning("the pods' network is not in line", error=str(failure))
        except NetworkError as error:
            log.warning("the pods' network was not looked at", error=str(error))

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
        await asyncio.to_thread(self._ledger.note, _POD_CIDR, ",".join(subnets))
        self._default = default
        log.info("new pods get addresses of the kubelet's pod CIDR", pod_cidr=pod_cidr)

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
        while True:
            await asyncio.sleep(RECONCILE_SECONDS)
            try:
                await self.reconcile(sandboxes, shared=False)
            except Exception:
                # Whatever it was: the next time may go well, and there must be a next time.
                log.exception("reconciliation failed")

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
