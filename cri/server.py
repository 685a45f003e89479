"""The daemon: puts the node together, and owns the order in which it starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import structlog

from cni_plugins import NetworkError
from cri import config as configuration
from cri import registries, tracing
from cri.config import Config, StreamingConfig, TracingConfig
from cri.errors import CRIError
from cri.events import Events
from cri.garbage import Sparing
from cri.health import NodeHealth
from cri.image_service import ImageService
from cri.images import ImageStore
from cri.metrics import Metrics
from cri.monitoring.conditions import Conditions
from cri.monitoring.dump import Dumper
from cri.monitoring.figures import Figures
from cri.monitoring.lag import LagSampler
from cri.network import CniNetwork
from cri.pinned import Pinned
from cri.reload import OnHangup, Reloader
from cri.reserves import DescriptorReserve, DiskReserve, raise_limit
from cri.rpc import RpcServer, RpcTableError
from cri.runtime_service import RuntimeService
from cri.sandbox.host import Host, HostError
from cri.sandbox.node import Node
from cri.sandbox.pods import Pods
from cri.sandbox.recovery import recover, sweep_often
from cri.sandbox.trash import Trash
from cri.sandbox.warden.spawning import Spawner
from cri.sockets import SocketError, put_aside, refuse_live
from cri.state import StateError, StateLock, Store
from cri.stats import Stats
from cri.statuses import Statuses
from cri.streaming import StreamingRequests
from cri.streaming.server import StreamingServer
from cri.streaming.tls import CertificateError, CertificateFiles
from registratur import Client, ContentStore, HostsConfig, Platform, RegistryError

log = structlog.get_logger(__name__)

SHUTDOWN_GRACE = 5.0
"""Seconds that calls under way may take when the daemon is told to end."""

LOAD_SECONDS = 30.0
"""Between two attempts to look at the images, until one goes well."""
SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread that computes lets the loop in: a call waits for that several times (the default is 5 ms)."""

DESCRIPTORS_PAUSE = 0.05
"""Seconds until descriptors that were lent to a removal are taken back: whoever wanted it has the answer by then."""

THREADS = 32
"""For what the kernel or a disk takes its time over; what a volume can hang has threads of its own (`cri.threads`)."""


def run(config: Config, read: Callable[[], Config]) -> int:
    """Run the daemon until SIGTERM or SIGINT; the exit status. Containers go on without it.

    `read` gives the configuration anew, for a reload.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        # What began with 077 would make roots that no user of a container can enter. State is guarded by its directory.
        os.umask(0o022)
        asyncio.run(serve(config, read))
    except (
        CRIError,
        StateError,
        SocketError,
        HostError,
        RpcTableError,
        RegistryError,
        NetworkError,
        CertificateError,
        OSError,
    ) as error:
        log.critical("cannot start", error=str(error))
        return 1
    return 0


async def serve(config: Config, read: Callable[[], Config]) -> None:
    """Start, serve until told to stop, end in the reverse order.

    The order has reasons: nothing is touched before the lock is held; the spawner is forked before any thread exists, and
    before this process may open more files than what it starts should; the reserves are there before they could be needed;
    the node is brought in line with its records before anybody can ask; the socket appears last and goes first.

    Only what an operator must decide keeps it from starting: another daemon, a configuration that cannot be, a directory
    or a socket that cannot be made. What fails besides is logged with its remedy and shown by Status, and all else runs.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    on_hangup = OnHangup()
    given = config
    async with contextlib.AsyncExitStack() as end:
        dumper = Dumper()
        dumper.install()
        end.callback(dumper.remove)
        # The state holds configs, and so secrets; the socket in the runtime directory is for a group to reach.
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # As the kernel tells the paths of jails and mounts.
        config = replace(config, state_dir=config.state_dir.resolve())
        config.runtime_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        end.enter_context(StateLock.acquire(config.state_dir))
        # Wardens that the records do not name will be ended: they must not be another daemon's.
        end.enter_context(StateLock.acquire(config.runtime_dir))
        if config.socket.parent == config.runtime_dir and (aside := put_aside(config.socket)) is not None:
            log.error("something else was in the socket's place", moved_to=str(aside))
        refuse_live(config.socket)
        loop.set_default_executor(ThreadPoolExecutor(THREADS, "cri-jails"))
        lost: asyncio.Queue[str] = asyncio.Queue()
        host = make_host(config)
        await host.open(lost.put_nowait)
        end.push_async_callback(host.close)
        raise_limit()
        descriptors = DescriptorReserve(later=partial(loop.call_later, DESCRIPTORS_PAUSE))
        end.callback(descriptors.close)
        reserve = DiskReserve(config.state_dir / "reserve")
        await asyncio.to_thread(reserve.take)
        end.callback(reserve.close)
        metrics = Metrics()
        if config.tracing.endpoint:
            _trace(config.tracing, metrics, end)
        store = await Store.open(
            config.state_dir / "state.db",
            make_room=reserve.give_up,
            took=metrics.state_write_seconds.observe,
        )
        end.push_async_callback(store.close)
        health = NodeHealth(host.condition, store, reserve, (config.state_dir, config.runtime_dir))
        client = await end.enter_async_context(
            Client(await asyncio.to_thread(registry_hosts, config), idle_timeout=config.image.idle_timeout)
        )
        images = ImageStore(
            store,
            await asyncio.to_thread(ContentStore, config.state_dir / "content"),
            host.snapshots,
            client,
            platforms=platforms(host),
            max_parallel=config.image.max_parallel_downloads,
            bounds=config.image.bounds(),
            pinned=Pinned(config.image.pinned),
            metrics=metrics,
        )
        network = CniNetwork(host, config.network, config.state_dir, make_room=reserve.give_up)
        await network.open()
        end.push_async_callback(network.close)
        events = Events()
        node = Node(
            host=host,
            store=store,
            network=network,
            images=images,
            state_dir=config.state_dir,
            runtime_dir=config.runtime_dir,
            trash=await asyncio.to_thread(
                Trash, config.state_dir / "removed", metrics.collected.labels("directories").inc
            ),
            runtime_handlers=config.runtime_handlers,
            spare_descriptors=descriptors.lent,
            demand_descriptors=descriptors.demand,
            witness=events,
            undo_failed=lambda _: metrics.undo_failures.inc(),
        )
        pods = Pods(node)
        events.watch(pods.sandboxes)
        await _recover(node, pods, health)
        end.push_async_callback(pods.disconnect)
        _keep(end, _report_lost(lost, pods, metrics))
        _keep(end, sweep_often(node, pods))
        try:
            await network.reconcile(lambda: list(pods.sandboxes))
        except Exception:
            log.exception("the pods' network was not looked at; that is tried again every minute")
        network.watch(lambda: list(pods.sandboxes))
        if not await _load_images(images, health):
            _keep(end, _load_images_later(images, health))
        end.push_async_callback(images.settle)
        _keep(end, health.watch())
        spared = Sparing()
        end.callback(spared.end)
        spared.begin()
        if (endpoint := config.metrics_endpoint()) is not None:
            conditions = Conditions(
                {"RuntimeReady": health.condition, "NetworkReady": network.condition}, store.answers
            )
            figures = Figures(metrics, pods=pods, images=images, store=store, conditions=conditions)
            await _monitor(endpoint, end, metrics=metrics, conditions=conditions, figures=figures)
        shown: dict[str, str] = {}

        def show(in_force: Config) -> None:
            shown["toml"] = configuration.dump(in_force)

        show(config)
        await _serve_rpc(
            config,
            end,
            host=host,
            pods=pods,
            images=images,
            network=network,
            health=health,
            events=events,
            metrics=metrics,
            shown=shown,
        )
        end.callback(events.end)
        reloader = Reloader(
            given, read=read, hosts=registry_hosts, registries=client, network=network, changed=show
        )
        _keep(end, on_hangup.serve(reloader))
        end.push_async_callback(images.abandon)  # first of all: calls that wait for a pull end with it
        log.info("serving", socket=str(config.socket), host=host.name, sandboxes=len(pods.sandboxes))
        await stop.wait()
        log.info("stopping; containers go on")


async def _serve_rpc(
    config: Config,
    end: contextlib.AsyncExitStack,
    *,
    host: Host,
    pods: Pods,
    images: ImageStore,
    network: CniNetwork,
    health: NodeHealth,
    events: Events,
    metrics: Metrics,
    shown: dict[str, str],
) -> None:
    streaming = streaming_server(config.streaming)
    await streaming.start()
    end.push_async_callback(streaming.stop)
    stats = Stats(
        host,
        pods,
        images,
        config.state_dir / "snapshots",
        config.stats.interval,
        network.far_ends,
        metrics.stats_pass_seconds.observe,
    )
    _keep(end, stats.watch())
    runtime_service = RuntimeService(
        host=host,
        pods=pods,
        events=events,
        statuses=Statuses(images),
        network=network,
        stats=stats,
        streaming=StreamingRequests(pods, streaming, metrics, config.streaming.idle_timeout),
        runtime_handlers=config.runtime_handlers,
        config=shown,
        pulls=images.under_way.shown,
        condition=health.condition,
    )
    rpc = RpcServer(runtime_service, ImageService(images, stats, config.runtime_handlers), metrics)
    await rpc.start(config.socket, config.socket_group)
    end.push_async_callback(rpc.stop, SHUTDOWN_GRACE)


def streaming_server(config: StreamingConfig) -> StreamingServer:
    """The server for exec, attach and port-forward, as it is configured. Raises CertificateError."""
    if (config.cert_file is None) != (config.key_file is None):
        missing = "key_file" if config.key_file is None else "cert_file"
        raise CertificateError(f"streaming.{missing} is not set; TLS takes a cert_file and its key_file")
    tls = (
        None
        if config.cert_file is None or config.key_file is None
        else CertificateFiles(config.cert_file, config.key_file)
    )
    return StreamingServer(*config.endpoint(), tls=tls, patience=config.idle_timeout)


def make_host(config: Config) -> Host:
    """The driver for this operating system. Raises HostError where there is none."""
    name = config.host if config.host != "auto" else sys.platform.rstrip("0123456789")
    if name == "linux":
        from cri.sandbox.linux.host import LinuxHost  # noqa: PLC0415 - its kernel binding exists on Linux only

        return LinuxHost(config.state_dir, config.runtime_dir, config.snapshotter)
    if name == "freebsd":
        return _freebsd_host(config)
    raise HostError("start", f"host {name}", "there is no driver for it; there are linux and freebsd")


def _freebsd_host(config: Config) -> Host:
    try:
        from cri.sandbox.freebsd import kernel  # noqa: PLC0415 - compiled on FreeBSD only
    except ImportError as error:
        raise HostError(
            "start",
            "host freebsd",
            f"its kernel binding is not compiled ({error}); install with pip on FreeBSD",
        ) from error
    from cri.sandbox.freebsd.host import FreeBSDHost  # noqa: PLC0415
    from cri.sandbox.freebsd.jails import Policy  # noqa: PLC0415

    return FreeBSDHost(
        config.state_dir,
        config.runtime_dir,
        config.snapshotter,
        calls=kernel,
        spawner=Spawner("cri.sandbox.freebsd.driver"),
        policy=Policy(frozenset(config.freebsd.allow), config.freebsd.devfs_ruleset),
    )


def platforms(host: Host) -> list[Platform]:
    """What images may be built for, best first."""
    return [Platform.current(system) for system in host.image_systems or (host.name,)]


def registry_hosts(config: Config) -> HostsConfig:
    """The operator's registries, in the words of the client; what is wrong with files about them is logged. Blocks."""
    hosts, problems = registries.hosts(config)
    for problem in problems:
        log.warning(
            "a part of the configuration of registries cannot be used",
            problem=problem,
            remedy="mend it, and reload the configuration",
        )
    return hosts


async def _recover(node: Node, pods: Pods, health: NodeHealth) -> None:
    """Recover; if that is cut short, serve what there is, and say so."""
    try:
        await recover(node, pods)
    except Exception as error:
        message = (
            f"records and pods could not be brought in line ({error}); the daemon's log says more. Restart it"
        )
        log.exception(
            "recovery was cut short; what the daemon shows may not be all", remedy="restart the daemon"
        )
        health.fault("recovery", message)


async def _load_images(images: ImageStore, health: NodeHealth) -> bool:
    """Look at the images on disk; whether that went well."""
    try:
        await images.load()
    except Exception as error:
        log.exception("the images were not looked at; that is tried again", seconds=LOAD_SECONDS)
        health.fault(
            "images", f"the images cannot be looked at ({error}); see the daemon's log, and the disk"
        )
        return False
    health.fault("images", "")
    return True


async def _load_images_later(images: ImageStore, health: NodeHealth) -> None:
    while True:
        await asyncio.sleep(LOAD_SECONDS)
        if await _load_images(images, health):
            return


async def _monitor(
    endpoint: tuple[str, int],
    end: contextlib.AsyncExitStack,
    *,
    metrics: Metrics,
    conditions: Conditions,
    figures: Figures,
) -> None:
    """Serve metrics and health. Pods are not to suffer for it if that cannot be."""
    from cri.monitoring.server import MonitoringServer  # noqa: PLC0415 - it brings an HTTP server along

    pages = MonitoringServer(metrics.registry, conditions, figures.take)
    try:
        await pages.start(*endpoint)
    except OSError as error:
        log.error(
            "no metrics are served, and no health",
            address=":".join(map(str, endpoint)),
            reason=str(error),
            remedy="choose another metrics address, and restart the daemon",
        )
        return
    end.push_async_callback(pages.stop)
    sampler = LagSampler(metrics.loop_lag.observe)
    sampler.start()
    end.callback(sampler.stop)


def _trace(config: TracingConfig, metrics: Metrics, end: contextlib.AsyncExitStack) -> None:
    """Have calls traced. Pods are not to suffer for it if that cannot be."""
    try:
        from cri.tracing.otlp import OtlpTracer  # noqa: PLC0415 - OpenTelemetry is optional, and large
    except ImportError as error:
        log.error(
            "no traces are collected: OpenTelemetry is not installed",
            reason=str(error),
            remedy='pip install "cri-jails[tracing]", or leave tracing.endpoint empty',
        )
        return
    tracer = OtlpTracer(
        config.endpoint,
        config.sampling_ratio,
        lambda outcome, number: metrics.spans.labels(outcome).inc(number),
    )
    tracing.use(tracer)
    end.push_async_callback(tracer.close)
    end.callback(tracing.use, None)


def _keep(end: contextlib.AsyncExitStack, work: Coroutine[object, object, object]) -> None:
    """Have something done in the background until the daemon ends."""
    task = asyncio.create_task(work)
    end.callback(task.cancel)


async def _report_lost(lost: asyncio.Queue[str], pods: Pods, metrics: Metrics) -> None:
    """Hand the deaths of wardens on; those that come before recovery is done wait in the queue."""
    while True:
        pods.lost(await lost.get())
        metrics.warden_deaths.inc()
