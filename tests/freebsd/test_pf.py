"""pf(4) of this host, its pods and a jail outside: what `PfNat` does to packets, and what it leaves. By root.

The main ruleset is a test's own while it runs; what was loaded before is loaded again.
"""

import contextlib
import errno
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

if not sys.platform.startswith("freebsd"):
    pytest.skip("FreeBSD only: pf(4)", allow_module_level=True)

from cni_plugins import KernelError
from cni_plugins.freebsd import nat, pf
from cni_plugins.freebsd.nat import PfNat
from cni_plugins.nat import HostPort, Masquerade
from cni_plugins.types import OwnStack

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]  # an emulated machine is slow

HOST = OwnStack()
LINES = 'nat-anchor "cni-rdr/*"\nrdr-anchor "cni-rdr/*"\n'
PASS = LINES + "pass all\n"
FOREIGN = "cni-rdr/kube-svc-0123"
VERSIONS = pytest.mark.parametrize("version", [4, 6])
KINDS = pytest.mark.parametrize("protocol", ["tcp", "udp"])

POD_NETWORKS = {4: ip_network("10.189.0.0/24"), 6: ip_network("fd00:189::/64")}
GATEWAY = {4: "10.189.0.1", 6: "fd00:189::1"}
NODE = {4: "192.0.2.1", 6: "2001:db8:2::1"}
ALIAS = {4: "192.0.2.9", 6: "2001:db8:2::9"}
OUTSIDE = {4: "192.0.2.2", 6: "2001:db8:2::2"}
OUTSIDE_NETWORKS = (ip_network("192.0.2.0/24"), ip_network("2001:db8:2::/64"))
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILY_OF_ROUTE = {4: "-inet", 6: "-inet6"}


def run(*command, text=None):
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, input=text)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@dataclass
class Lab:
    bridge: str
    outer: str
    one: object
    two: object
    outside: object


@pytest.fixture(scope="module")
def lab(new_jail):
    """The host as the router between a bridge with two pods and a jail outside."""
    with contextlib.ExitStack() as cleanup:
        for name in ("net.inet.ip.forwarding", "net.inet6.ip6.forwarding"):
            cleanup.callback(run, "sysctl", f"{name}={run('sysctl', '-n', name).strip()}")
            run("sysctl", f"{name}=1")
        jails = []
        for _ in range(3):
            jails.append(new_jail())
            cleanup.callback(jails[-1].close)
        one, two, outside = jails

        def make(kind):
            name = run("ifconfig", kind, "create").strip()
            cleanup.callback(run, "ifconfig", name, "destroy")  # before the jails, which would send it home
            return name

        bridge = make("bridge")
        run("ifconfig", bridge, "inet", f"{GATEWAY[4]}/24", "up")
        run("ifconfig", bridge, "inet6", "no_dad")
        run("ifconfig", bridge, "inet6", f"{GATEWAY[6]}/64")
        for number, pod in enumerate((one, two), start=5):
            pair = make("epair")
            run("ifconfig", bridge, "addm", pair)
            run("ifconfig", pair, "up")
            addresses = {4: f"10.189.0.{number}/24", 6: f"fd00:189::{number}/64"}
            pod.connect(pair[:-1] + "b", addresses)
            for version, gateway in GATEWAY.items():
                pod.run("route", "add", FAMILY_OF_ROUTE[version], "default", gateway)
        outer = make("epair")
        run("ifconfig", outer, "inet", f"{NODE[4]}/24", "up")
        run("ifconfig", outer, "inet", f"{ALIAS[4]}/32", "alias")
        run("ifconfig", outer, "inet6", "no_dad")
        run("ifconfig", outer, "inet6", f"{NODE[6]}/64")
        run("ifconfig", outer, "inet6", f"{ALIAS[6]}/128", "alias")
        outside.connect(outer[:-1] + "b", {4: f"{OUTSIDE[4]}/24", 6: f"{OUTSIDE[6]}/64"})
        for version, pods in POD_NETWORKS.items():
            outside.run("route", "add", FAMILY_OF_ROUTE[version], str(pods), NODE[version])
        yield Lab(bridge, outer, one, two, outside)


@pytest.fixture
def load(lab, load_pf_conf):
    return load_pf_conf


def everything():
    """Every anchor below ours with its rules, as pfctl tells them."""
    names = [line.strip() for line in run("pfctl", "-a", "cni-rdr", "-sA").splitlines()]
    return {name: run("pfctl", "-a", name, "-sn") for name in names if name}


@pytest.fixture
def translations(load):
    """The network's NAT on a host with the two lines, and somebody else's anchor; nothing of ours may stay."""
    load(PASS)
    run(
        "pfctl",
        "-a",
        FOREIGN,
        "-f",
        "-",
        text="rdr pass inet proto tcp to 203.0.113.7 port 80 -> 203.0.113.8\n",
    )
    main, foreign = run("pfctl", "-sn") + run("pfctl", "-sr"), everything()
    made = PfNat(HOST, "test0")
    yield made
    made.restore_ports({})
    made.restore_masquerades({})
    assert everything() == foreign
    assert run("pfctl", "-sn") + run("pfctl", "-sr") == main
    run("pfctl", "-a", FOREIGN, "-Fn")
    assert everything() == {}


def family(version):
    return socket.AF_INET6 if version == 6 else socket.AF_INET


@dataclass
class Heard:
    """What the server saw of the client, and the client of the server."""

    client: str
    answered: bool


def talk(client, to, server, port, protocol="tcp", *, patience=10):
    """Ask from one stack, and answer in another one at a port; None if the question never came."""
    version = ip_address(to[0]).version
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    anywhere = "::" if version == 6 else "0.0.0.0"
    with (
        server.socket(family(version), kind, 0) as listener,
        client.socket(family(version), kind, 0) as asking,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((anywhere, port))
        listener.settimeout(patience)
        asking.settimeout(patience)
        try:
            if protocol == "udp":
                asking.connect(to)  # so that only its answers count
                asking.send(b"question")
                _, peer = listener.recvfrom(64)
                listener.sendto(b"answer", peer)
                answered = asking.recv(64) == b"answer"
                return Heard(peer[0], answered)
            listener.listen()
            asking.connect(to)
            asking.send(b"question")
            accepted, peer = listener.accept()
            with accepted:
                accepted.settimeout(patience)
                assert accepted.recv(64) == b"question"
                accepted.send(b"answer")
                return Heard(peer[0], asking.recv(64) == b"answer")
        except (TimeoutError, ConnectionRefusedError):
            return None


def masquerade_of(pod, *exceptions):
    exceptions = (*POD_NETWORKS.values(), *exceptions)
    return Masquerade(tuple(each.ip for each in pod.addresses.values()), exceptions)


def host_port(pod, version, protocol="tcp", **fields):
    return HostPort(protocol, 8080, pod.addresses[version], 80, **fields)


@VERSIONS
@KINDS
def test_a_pod_is_seen_outside_as_the_node(translations, lab, version, protocol):
    to = OUTSIDE[version], 7000
    assert talk(lab.one, to, lab.outside, 7000, protocol) == Heard(str(lab.one.addresses[version].ip), True)
    translations.masquerade("one", masquerade_of(lab.one))
    assert talk(lab.one, to, lab.outside, 7000, protocol) == Heard(NODE[version], True)
    assert talk(lab.two, to, lab.outside, 7000, protocol) == Heard(str(lab.two.addresses[version].ip), True)
    translations.unmasquerade("one")
    assert talk(lab.one, to, lab.outside, 7000, protocol) == Heard(str(lab.one.addresses[version].ip), True)


@VERSIONS
def test_exceptions_see_the_pod_s_address(translations, lab, version):
    translations.masquerade("one", masquerade_of(lab.one, *OUTSIDE_NETWORKS))
    own = Heard(str(lab.one.addresses[version].ip), True)
    assert talk(lab.one, (OUTSIDE[version], 7000), lab.outside, 7000) == own
    assert talk(lab.one, (str(lab.two.addresses[version].ip), 7000), lab.two, 7000) == own
    assert talk(lab.one, (GATEWAY[version], 7000), HOST, 7000) == own
    translations.masquerade("one", masquerade_of(lab.one))
    assert talk(lab.one, (OUTSIDE[version], 7000), lab.outside, 7000) == Heard(NODE[version], True)
    assert talk(lab.one, (GATEWAY[version], 7000), HOST, 7000) == own


@VERSIONS
@KINDS
def test_a_host_port_from_outside(translations, lab, version, protocol):
    to = NODE[version], 8080
    translations.publish("one", [host_port(lab.one, version, protocol)])
    assert talk(lab.outside, to, lab.one, 80, protocol) == Heard(OUTSIDE[version], True)
    assert talk(lab.outside, (ALIAS[version], 8080), lab.one, 80, protocol) == Heard(OUTSIDE[version], True)
    translations.publish("one", [host_port(lab.two, version, protocol, masquerade_all=True)])
    assert talk(lab.outside, to, lab.two, 80, protocol) == Heard(GATEWAY[version], True)
    translations.withdraw("one")
    assert talk(lab.outside, to, lab.two, 80, protocol, patience=2) is None


@VERSIONS
def test_a_host_port_of_one_address(translations, lab, version):
    only = ip_address(ALIAS[version])
    translations.publish("one", [host_port(lab.one, version, host_ip=only)])
    assert talk(lab.outside, (ALIAS[version], 8080), lab.one, 80) == Heard(OUTSIDE[version], True)
    assert talk(lab.outside, (NODE[version], 8080), lab.one, 80, patience=2) is None


@VERSIONS
@KINDS
@pytest.mark.parametrize("to", [NODE, GATEWAY], ids=["node", "gateway"])
def test_pods_go_through_host_ports_to_their_neighbours_and_to_themselves(
    translations, lab, version, protocol, to
):
    for name, pod in (("one", lab.one), ("two", lab.two)):
        translations.masquerade(name, masquerade_of(pod))
    translations.publish("one", [host_port(lab.one, version, protocol)])
    for client in (lab.two, lab.one):
        assert talk(client, (to[version], 8080), lab.one, 80, protocol) == Heard(GATEWAY[version], True)


@KINDS
@pytest.mark.parametrize(
    ("version", "to"), [(4, NODE), (4, GATEWAY), (4, LOOPBACK), (6, NODE), (6, GATEWAY)], ids=str
)
def test_the_host_goes_through_host_ports(translations, lab, version, protocol, to):
    translations.publish("one", [host_port(lab.one, version, protocol)])
    heard = talk(HOST, (to[version], 8080), lab.one, 80, protocol)
    assert heard is not None
    assert heard.answered
    assert heard.client in (to[version], GATEWAY[version])


@pytest.mark.parametrize("main", [LINES, PASS], ids=["stateless", "stateful"])
def test_states_of_a_pod_that_goes_are_forgotten(translations, load, lab, main):
    load(main)
    translations.masquerade("one", masquerade_of(lab.one))
    translations.publish("one", [host_port(lab.one, 4), host_port(lab.one, 6)])
    translations.publish("two", [replace(host_port(lab.two, 4), host_port=8081)])
    for version in (4, 6):
        assert talk(lab.one, (OUTSIDE[version], 7000), lab.outside, 7000)
        assert talk(lab.outside, (NODE[version], 8080), lab.one, 80)
        assert talk(lab.two, (NODE[version], 8080), lab.one, 80)
    assert talk(lab.outside, (NODE[4], 8081), lab.two, 80)
    mine = re.compile(r"10\.189\.0\.5\b|fd00:189::5\b")
    assert len(mine.findall(run("pfctl", "-ss"))) >= 8
    translations.kill_states([each.ip for each in lab.one.addresses.values()])
    left = run("pfctl", "-ss")
    assert not mine.search(left)
    assert "10.189.0.6" in left
    load(PASS)


@VERSIONS
def test_a_client_that_never_stops_sending_gets_to_a_new_pod(translations, lab, version):
    with (
        lab.outside.socket(family(version), socket.SOCK_DGRAM) as asking,
        lab.one.socket(family(version), socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(("::" if version == 6 else "0.0.0.0", 80))
        listener.settimeout(10)
        asking.sendto(b"too early", (NODE[version], 8080))
        translations.publish("one", [host_port(lab.one, version, "udp")])
        asking.sendto(b"question", (NODE[version], 8080))
        assert listener.recv(64) == b"question"


def test_a_host_port_is_open_where_all_else_is_blocked(translations, load, lab):
    load(f"{LINES}block in on {lab.outer}\npass out\n")
    assert talk(lab.outside, (NODE[4], 7000), HOST, 7000, patience=2) is None
    translations.publish("one", [host_port(lab.one, 4)])
    assert talk(lab.outside, (NODE[4], 8080), lab.one, 80) == Heard(OUTSIDE[4], True)
    load(PASS)


def test_what_keeps_it_from_working_is_said(load, lab):
    made = PfNat(HOST, "test0")
    load(LINES)
    assert made.problems() == []
    load('nat-anchor "/cni-rdr/*"\nrdr-anchor "cni-rdr/*"\nanchor "cni-rdr/*"\n')
    assert made.problems() == []
    for line in LINES.splitlines():
        others = 'nat-anchor "other/*"\nnat-anchor "cni-rdr"\nrdr-anchor "cni-rdr"\n'
        load(others + LINES.replace(f"{line}\n", "") + "pass all\n")
        (problem,) = made.problems()
        assert f"`{line}`" in problem
    load("pass all\n")
    assert [line for problem in made.problems() for line in LINES.splitlines() if f"`{line}`" in problem] == (
        LINES.splitlines()
    )
    load(LINES)
    run("pfctl", "-d")
    (problem,) = made.problems()
    assert "pf is not enabled" in problem


def test_what_keeps_the_host_from_its_ports_keeps_no_pods_away(translations, load, lab):
    load(f"set skip on lo\n{PASS}")
    run("sysctl", "net.pf.filter_local=0")
    translations.publish("one", [host_port(lab.one, 4)])
    assert translations.problems() == []
    with pf.Pf() as opened:
        local, skipped = nat.host_problems(opened)
        assert "net.pf.filter_local=1" in local
        assert "`set skip` for lo0" in skipped
        run("sysctl", "net.pf.filter_local=1")
        load(PASS)
        assert nat.host_problems(opened) == []


def test_without_the_device_there_is_nothing_to_undo(monkeypatch, lab):
    monkeypatch.setattr(pf, "DEVICE", "/dev/pf-is-not-loaded")
    made = PfNat(HOST, "test0")
    made.withdraw("one")
    made.unmasquerade("one")
    made.restore_ports({})
    made.kill_states([ip_address("10.189.0.5")])
    (problem,) = made.problems()
    assert "kldload pf" in problem
    with pytest.raises(KernelError, match="kldload pf"):
        made.publish("one", [host_port(lab.one, 4)])


def test_fifty_owners_at_once_leave_nothing(translations, lab):
    before = everything()

    def live(number):
        owner = f"pod{number}/eth0"
        translations.publish(
            owner, [HostPort("tcp", 9000 + number, ip_interface(f"10.189.0.{number + 100}/24"), 80)]
        )
        translations.masquerade(owner, Masquerade((ip_address(f"10.189.0.{number + 100}"),)))
        translations.kill_states([ip_address(f"10.189.0.{number + 100}")])
        translations.withdraw(owner)
        translations.unmasquerade(owner)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(50)))
    assert everything() == before


def test_pfctl_at_the_same_time_is_only_a_delay(translations, lab):
    stop = threading.Event()

    def interfere():
        text = "".join(
            f"rdr pass inet proto tcp to 203.0.113.7 port {n} -> 203.0.113.8\n" for n in range(1, 40)
        )
        while not stop.is_set():
            # It may lose the race itself, as it does not try again.
            subprocess.run(
                ["pfctl", "-a", "cni-rdr/kube-svc-busy", "-f", "-"],
                input=text.encode(),
                check=False,
                capture_output=True,
            )

    busy = threading.Thread(target=interfere)
    busy.start()
    try:
        for _ in range(30):
            translations.publish("one", [host_port(lab.one, 4), host_port(lab.one, 6)])
    finally:
        stop.set()
        busy.join()
        run("pfctl", "-a", "cni-rdr/kube-svc-busy", "-Fn")
        run("pfctl", "-a", "cni-rdr/kube-svc-busy", "-f", "-", text="")
    assert len(everything()) == 2


def test_what_was_flushed_is_put_back_and_strays_are_removed(translations, lab):
    ports = {
        "one": [host_port(lab.one, 4), host_port(lab.one, 6)],
        "two": [replace(host_port(lab.two, 4), host_port=81)],
    }
    masquerades = {name: masquerade_of(pod) for name, pod in (("one", lab.one), ("two", lab.two))}
    translations.restore_ports(ports)
    translations.restore_masquerades(masquerades)
    before = everything()
    assert len(before) == 5
    assert translations.missing("one") == []
    for anchor in before:
        if anchor != FOREIGN:
            run("pfctl", "-a", anchor, "-Fn")
    assert {word.removeprefix("anchor ") for word in translations.missing("one")} < before.keys()
    assert len(translations.missing("one")) == 2
    translations.publish("stray", ports["one"])
    translations.masquerade("stray", masquerades["one"])
    others = PfNat(HOST, "test")
    others.publish("one", [replace(host_port(lab.two, 4), host_port=82)])
    translations.restore_ports(ports)
    translations.restore_masquerades(masquerades)
    others.restore_masquerades({})
    assert translations.missing("one") == []
    assert len(everything()) == 6
    others.withdraw("one")
    assert everything() == before


class Failing:
    """The kernel's interface, of which one call fails without being made."""

    def __init__(self, lib, fail_at):
        self._lib, self._fail_at, self.count = lib, fail_at, 0

    def __getattr__(self, name):
        found = getattr(self._lib, name)
        if not name.startswith("cni_pf_"):
            return found

        def call(*arguments):
            self.count += 1
            if self.count == self._fail_at:
                pf.ffi.errno = errno.ENOMEM
                return -1
            return found(*arguments)

        return call


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("what", ["publish", "masquerade"])
def test_a_failure_at_every_call_leaves_things_as_they_were(monkeypatch, translations, lab, what, was_there):
    ports = [host_port(lab.one, 4), host_port(lab.one, 6), host_port(lab.one, 4, "udp")]

    def change(pod):
        if what == "publish":
            translations.publish(
                "one", [replace(each, pod=pod.addresses[each.pod.version]) for each in ports]
            )
        else:
            translations.masquerade("one", masquerade_of(pod))

    if was_there:
        change(lab.two)
    before = everything()
    real = pf.lib
    for fail_at in range(1, 100):
        failing = Failing(real, fail_at)
        monkeypatch.setattr(pf, "lib", failing)
        try:
            change(lab.one)
        except KernelError:
            assert everything() == before
        else:
            break
        finally:
            monkeypatch.setattr(pf, "lib", real)
    assert fail_at > 10
    assert everything() != before


def test_killed_at_any_moment_and_restored(translations, lab):
    before = everything()
    ports = [host_port(lab.one, 4), host_port(lab.one, 6)]
    seen = set()
    for _ in range(12):
        child = os.fork()
        if not child:
            try:
                for number in range(1000):
                    translations.publish(f"pod{number}", ports)
                    translations.masquerade(f"pod{number}", masquerade_of(lab.one))
                    translations.withdraw(f"pod{number}")
                    translations.unmasquerade(f"pod{number}")
            finally:
                os._exit(1)
        time.sleep(0.02 + secrets.randbelow(200) / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.add(len(everything()))
        translations.restore_ports({})
        translations.restore_masquerades({})
        assert everything() == before
    assert len(seen) > 1, "never killed in between"


def test_names_of_anchors_have_room(translations, lab):
    long = PfNat(HOST, "a network's name / of more than 64 characters, " * 3)
    long.publish("o" * 200, [host_port(lab.one, 4)])
    (name,) = set(everything()) - {FOREIGN}
    assert len(name.removeprefix("cni-rdr/")) < 64
    assert nat.TAG in everything()[name]
    long.restore_ports({})
