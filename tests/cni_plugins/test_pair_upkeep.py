"""What becomes of attachments: DEL, CHECK, GC, and failures on the way, of bridge and ptp alike."""

import errno
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address

import pytest

from cni_plugins import AttachmentBrokenError, KernelError, NotAttachedError
from cni_plugins.rtnetlink import Routes
from cni_plugins.types import Result

pytestmark = pytest.mark.node


def names(stack):
    with Routes.of(stack) as routes:
        return {link.name for link in routes.links()}


@pytest.fixture(params=["bridge", "ptp"])
def kind(request):
    return request.param


@pytest.fixture
def make(make_context, make_plugin, host, bridge_name, ipam, kind):
    """Make a plugin of either kind."""

    def make(*, context=None, **settings):
        settings = {"bridge": bridge_name, "isGateway": True, "ipam": ipam, **settings}
        return make_plugin(context or make_context(host), kind, **settings)

    return make


@pytest.fixture
def attach(make_request):
    """Add a pod; return the request of its later calls."""

    def run(plugin, stack, name="pod", **more):
        request = make_request(stack, name, **more)
        return replace(request, previous=plugin.add(request))

    return run


@pytest.fixture
def base(kind, bridge_name):
    """What the host has without pods, once there has been one."""
    return {"lo", bridge_name} if kind == "bridge" else {"lo"}


def host_end(request):
    return request.previous.interfaces[-2].name


def address_of(request):
    return request.previous.ips[0].address.ip


# -- DEL


def test_delete_succeeds_on_what_is_gone(make, attach, pod, host, base):
    plugin = make()
    attached = attach(plugin, pod)
    for request in (attached, attached, replace(attached, stack=None, previous=Result())):
        plugin.delete(request)
    assert names(pod) == {"lo"}
    assert names(host) == base
    with pytest.raises(NotAttachedError, match="pod/eth0"):
        plugin.check(attached)
    attach(plugin, pod)


def test_delete_of_what_was_never_made(make, make_request, pod, host):
    make(ipMasq=True).delete(make_request(pod))
    assert names(host) == {"lo"}


def test_a_deleted_pod_is_off_at_once_and_its_remains_go_later(
    make, make_context, attach, make_namespace, host, base, ping
):
    context = make_context(host, collect=True)
    plugin, pod, other = make(context=context), make_namespace(), make_namespace()
    attached, neighbour = attach(plugin, pod), attach(plugin, other, "other")
    assert ping(other, address_of(attached))
    plugin.delete(attached)
    assert not ping(other, address_of(attached), patience=0.3)
    assert "eth0" in names(pod)
    third = attach(plugin, make_namespace(), "third")
    context.later.run()
    assert names(host) == base | {host_end(neighbour), host_end(third)}
    assert names(pod) == {"lo"}


def test_what_is_left_for_later_does_not_hit_who_comes_next(make, make_context, attach, make_namespace, host):
    context = make_context(host, collect=True)
    plugin = make(context=context)
    plugin.delete(attach(plugin, make_namespace()))
    again = attach(plugin, make_namespace())
    context.later.run()
    plugin.check(again)


def test_a_dead_pod_takes_its_pair_along(make, make_context, attach, host, pod, base):
    plugin = make(context=make_context(host, collect=True))
    dying = type(pod)()
    attached = attach(plugin, dying)
    dying.close()
    deadline = time.monotonic() + 5
    while host_end(attached) in names(host) and time.monotonic() < deadline:
        time.sleep(0.01)
    plugin.delete(replace(attached, stack=None))
    assert names(host) == base
    dying = type(pod)()
    attached = attach(plugin, dying)
    plugin.delete(attached)
    dying.close()
    plugin._context.later.run()  # whether the kernel was quicker or not
    assert names(host) == base


@pytest.mark.parametrize("kind", ["bridge"])
def test_an_unused_bridge_can_be_removed(make, attach, pod, host, kind):
    plugin = make()
    attached = attach(plugin, pod)
    assert not plugin.remove_unused()
    plugin.delete(attached)
    assert plugin.remove_unused()
    assert plugin.remove_unused()
    assert names(host) == {"lo"}
    host.command("ip", "link", "add", plugin._bridge, "type", "bridge")
    assert not plugin.remove_unused(), "somebody else has made it"


# -- CHECK


def test_check_names_everything_that_is_wrong(make, attach, pod, host, kind, bridge_name):
    plugin = make(mtu=1400)
    attached = attach(plugin, pod)
    plugin.check(attached)
    pod.command("ip", "address", "flush", "dev", "eth0", "scope", "global")
    with Routes.of(pod) as routes:
        routes.link_set("eth0", mac="02:00:00:00:00:01", mtu=1300, up=False)
    with Routes.of(host) as routes:
        if kind == "bridge":
            routes.link_set(host_end(attached), master=0)
    host.command("ip", "address", "flush", "dev", bridge_name if kind == "bridge" else host_end(attached))
    with pytest.raises(AttachmentBrokenError) as caught:
        plugin.check(attached)
    prefixes = ("16", "64") if kind == "bridge" else ("32", "128")
    for fault in (
        "eth0 is down",
        "the MAC 02:00:00:00:00:01, not ",
        "the MTU 1300, not 1400",
        f"eth0 lacks address 10.88.0.2/{prefixes[0]}",
        f"eth0 lacks address fd00:88::2/{prefixes[1]}",
        "eth0 lacks the route to 0.0.0.0/0 via 10.88.0.1",
        "eth0 lacks the route to ::/0 via fd00:88::1",
        f"lacks address 10.88.0.1/{prefixes[0]}",
        f"lacks address fd00:88::1/{prefixes[1]}",
        f"{host_end(attached)} is not in bridge {bridge_name}" if kind == "bridge" else "lacks address",
    ):
        assert fault in str(caught.value)


def test_check_asks_ipam_too(make, attach, pod):
    plugin = make()
    attached = attach(plugin, pod)
    plugin._ipam.delete(attached)
    with pytest.raises(NotAttachedError, match="no lease"):
        plugin.check(attached)


def test_check_without_a_stack_or_a_result(make, attach, pod):
    plugin = make()
    attached = attach(plugin, pod)
    with pytest.raises(NotAttachedError, match="eth0 in the pod"):
        plugin.check(replace(attached, stack=None))


# -- GC


def test_gc_deletes_what_nobody_owns(make, make_context, attach, make_namespace, host, base):
    context = make_context(host, collect=True)
    plugin = make(context=context, ipMasq=True)
    kept, lost, dead = (attach(plugin, make_namespace(), name) for name in ("kept", "lost", "dead"))
    plugin.delete(dead)  # and the process dies before it comes to the rest
    other = attach(
        make(
            context=make_context(host, "other"),
            ipam={"type": "static", "addresses": [{"address": "10.99.0.2/24"}]},
        ),
        make_namespace(),
    )
    plugin.gc([kept])
    assert names(host) == base | {host_end(kept), host_end(other)}
    assert set(context.nat().masquerades) == {kept.owner}
    plugin.check(kept)
    assert {address_of(attach(plugin, make_namespace(), "new")), address_of(lost)} & {
        address_of(kept)
    } == set()
    plugin.gc([])
    assert names(host) == base | {host_end(other)}


def test_gc_puts_back_what_somebody_removed(make, attach, make_namespace, host, kind, bridge_name, ping):
    plugin = make(isolated=True)
    one, two = make_namespace(), make_namespace()
    attached = [attach(plugin, one, "one"), attach(plugin, two, "two")]
    with Routes.of(host) as routes:
        if kind == "bridge":
            routes.link_del(bridge_name)
        else:
            for each in attached:
                routes.link_set(host_end(each), up=False)
    assert not ping(one, ip_address("10.88.0.1"), patience=0.3)
    plugin.gc(attached)
    for each in attached:
        plugin.check(each)
        for ip in each.previous.ips:
            assert ping(host, ip.address.ip)
            assert ping(each.stack, ip.gateway)
    if kind == "bridge":
        assert not ping(one, address_of(attached[1]), patience=0.3), "still isolated"
    host.command("ip", "address", "flush", "dev", bridge_name if kind == "bridge" else host_end(attached[0]))
    plugin.gc(attached)
    for each in attached:
        plugin.check(each)


def test_gc_neither_deletes_nor_restores_the_pods_of_another_configuration(make, attach, pod, host):
    attached = attach(make(), pod)
    with Routes.of(host) as routes:
        routes.link_set(host_end(attached), up=False)
    make(mtu=1400, isolated=True).gc([replace(attached, ours=False)])
    with Routes.of(host) as routes:
        link = routes.find(host_end(attached))
    assert link is not None
    assert (link.up, link.mtu) == (False, 1500)


def test_gc_of_what_is_right_changes_nothing(make, attach, make_namespace, host):
    def look():  # not at what the kernel does by itself, in its own time
        return (
            host.command("ip", "-oneline", "address", "show", "scope", "global"),
            host.command("ip", "route", "show", "table", "all", "type", "unicast"),
            host.command("ip", "-6", "route", "show", "proto", "static"),
        )

    plugin = make()
    attached = [attach(plugin, make_namespace(), name) for name in ("one", "two")]
    before = look()
    plugin.gc(attached)
    assert look() == before


def test_gc_does_what_it_can_and_says_what_it_cannot(
    make, make_context, attach, make_namespace, host, base, monkeypatch
):
    context = make_context(host)
    plugin = make(context=context, ipMasq=True)
    lost = attach(plugin, make_namespace(), "lost")

    def fail(wanted):
        raise KernelError(errno.EIO, "imagine", "a table")

    monkeypatch.setattr(context.nat(), "restore_masquerades", fail)
    with pytest.raises(KernelError, match="imagine"):
        plugin.gc([])
    assert names(host) == base
    assert not plugin._ipam._leases().held(lost.owner)


# -- failures


class Saboteur:
    """A stack that spoils the nth step of all: making a socket, or a request on one.

    "refuse" turns a request into one that the kernel itself refuses; "break" fails the send, as a signal or a lack
    of memory does, for it and what travels with it.
    """

    def __init__(self, stack, counter, mode):
        self.stack, self.counter, self.mode = stack, counter, mode

    @property
    def move_target(self):
        return self.stack.move_target

    def socket(self, family, kind, protocol):
        if self.counter.spoil("socket"):
            raise OSError(errno.EMFILE, "too many files")
        return SpoiledSocket(self.stack.socket(family, kind, protocol), self.counter, self.mode)


class SpoiledSocket:
    def __init__(self, sock, counter, mode):
        self.sock, self.counter, self.mode = sock, counter, mode

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def __enter__(self):
        return self.sock

    def __exit__(self, *_):
        self.sock.close()

    def send(self, datagram):
        data, offset = bytearray(datagram), 0
        while offset < len(data):
            length, kind = struct.unpack_from("=IH", data, offset)
            if self.counter.spoil(kind):
                if self.mode == "break":
                    raise OSError(errno.ENOBUFS, "no buffer space")
                struct.pack_into("=H", data, offset + 4, 0x7FF0)
            offset += length
        return self.sock.send(bytes(data))


class Counter:
    def __init__(self, nth):
        self.nth, self.seen = nth, []

    def spoil(self, kind):
        self.seen.append(kind)
        return len(self.seen) == self.nth


@pytest.mark.parametrize("mode", ["refuse", "break"])
def test_a_failure_of_any_step_leaves_nothing(
    make, make_context, make_request, host, pod, kind, bridge_name, ipam, mode, make_plugin
):
    context = make_context(host)
    settings = {
        "bridge": bridge_name,
        "isGateway": True,
        "isolated": True,
        "ipMasq": True,
        "mtu": 1400,
        "ipam": ipam,
    }
    for nth in range(1, 200):
        counter = Counter(nth)
        spoiled = make_context(Saboteur(host, counter, mode), ledger=context.ledger, nat=context.nat())
        plugin = make_plugin(spoiled, kind, **settings)
        try:
            plugin.add(make_request(Saboteur(pod, counter, mode)))
        except KernelError as error:
            failure = error
        else:
            break
        assert failure.errno in {errno.EOPNOTSUPP, errno.ENOBUFS, errno.EMFILE}
        assert not hasattr(failure, "__notes__")
        assert names(host) <= {"lo", bridge_name}, f"after step {nth} of {counter.seen}"
        assert names(pod) == {"lo"}
        assert not plugin._ipam._leases().held("pod/eth0")
        assert context.nat().masquerades == {}
        if kind == "bridge" and nth % 2:  # with the bridge there, and without
            make_plugin(context, kind, **settings).remove_unused()
    assert nth >= 20, f"every step was spoiled once: {counter.seen}"
    assert names(pod) == {"lo", "eth0"}


def test_a_failing_translation_takes_all_back(make, make_context, make_request, host, pod, base, monkeypatch):
    context = make_context(host)

    def fail(owner, wanted):
        raise KernelError(errno.EIO, "imagine", "a table")

    monkeypatch.setattr(context.nat(), "masquerade", fail)
    plugin = make(context=context, ipMasq=True)
    with pytest.raises(KernelError, match="imagine"):
        plugin.add(make_request(pod))
    assert names(host) == base
    assert names(pod) == {"lo"}


def test_an_undo_that_fails_too_is_told_with_the_first_error(
    make_context, make_plugin, make_request, kind, bridge_name, pod, host, ipam
):
    class Dead:
        move_target = pod.move_target

        def socket(self, family, kind, protocol):
            host_alive.clear()
            raise OSError(errno.EBADF, "the pod is dead")

    class Dying:
        def socket(self, family, kind, protocol):
            if not host_alive.is_set():
                raise OSError(errno.EMFILE, "too many files")
            return host.socket(family, kind, protocol)

    host_alive = threading.Event()
    host_alive.set()
    context = make_context(Dying())
    plugin = make_plugin(context, kind, bridge=bridge_name, ipam=ipam)
    with pytest.raises(KernelError) as caught:
        plugin.add(make_request(Dead()))
    assert caught.value.errno == errno.EBADF
    assert "undo failed" in caught.value.__notes__[0]
    host_alive.set()
    assert any(plugin._names.has(name) for name in names(host))
    plugin.gc([])
    assert not any(plugin._names.has(name) for name in names(host))


def test_fifty_at_once_leave_nothing(make, make_context, make_request, make_namespace, host, base, talk):
    context = make_context(host, collect=True)
    plugin = make(context=context)
    requests = [make_request(make_namespace(), f"sandbox-{number}") for number in range(50)]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(plugin.add, requests))
        assert len({ip.address for result in found for ip in result.ips}) == 100
        attached = [
            replace(request, previous=result) for request, result in zip(requests, found, strict=True)
        ]
        list(threads.map(plugin.check, attached))
        assert talk(requests[0].stack, requests[-1].stack, address_of(attached[-1])) == b"hello"
        list(threads.map(plugin.delete, attached))
    context.later.run()
    assert names(host) == base
    assert all(names(request.stack) == {"lo"} for request in requests)
