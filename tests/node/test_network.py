"""The pods' network as clients of the daemon see it, and what is left of it when the daemon is killed."""

from __future__ import annotations

import ipaddress
import json
import random
import secrets
import signal
import socket
import sqlite3
import subprocess
import threading
import time

import grpc
import pytest

from cri.api.runtime import v1
from tests.node.conftest import free_subnets

pytestmark = [pytest.mark.node, pytest.mark.timeout(120)]

KILLS = 12

SERVE = ("sh", "-c", "mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 8080 -h /www")


def network_ready(daemon) -> v1.RuntimeCondition:
    status = daemon.client("Status", v1.StatusRequest()).status
    return next(one for one in status.conditions if one.type == "NetworkReady")


def sandbox_status(daemon, pod: str) -> v1.PodSandboxStatus:
    return daemon.client("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod)).status


SYSCTLS = {
    "net.ipv4.conf.eth0.rp_filter": "2",
    "net/ipv6/conf/eth0/hop_limit": "77",
    "net.ipv4.neigh.eth0.retrans_time_ms": "2000",
    "net.ipv4.ip_default_ttl": "99",
}


def test_sysctls_of_the_pod_s_interface_are_set_before_its_containers(daemon):
    daemon.pull()
    pod = daemon.pod("tuned", sysctls=SYSCTLS)
    container = daemon.container(pod, "sleep", "1000")
    for name, value in SYSCTLS.items():
        path = name if "/" in name else name.replace(".", "/")
        assert daemon.exec(container, "cat", f"/proc/sys/{path}").stdout.decode().strip() == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("net.ipv4.conf.eth7.rp_filter", "1", 'the pod has no interface "eth7"'),
        ("net.ipv4.conf.eth0/100.rp_filter", "1", 'the pod has no interface "eth0.100"'),
        ("net.ipv4.conf.eth0.no_such_thing", "1", "no such sysctl"),
        ("net.ipv4.conf.eth0.rp_filter", "x", "does not take this value"),
        ("net.ipv4.conf.interfacewithname.rp_filter", "1", "more than 15 bytes"),
        ("net.ipv4.no_such_thing", "1", "no such sysctl"),
        ("kernel.panic", "1", "not namespaced"),
    ],
)
def test_a_sysctl_that_cannot_be_is_refused_and_leaves_nothing(module_daemon, name, value, words):
    with pytest.raises(grpc.RpcError) as caught:
        module_daemon.pod("tuned", sysctls={name: value})
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert name in caught.value.details()
    assert words in caught.value.details()
    assert not module_daemon.client("ListPodSandbox", v1.ListPodSandboxRequest()).items
    names = subprocess.run(("ip", "-o", "link"), check=True, capture_output=True, text=True).stdout
    assert f"master {module_daemon.network} " not in names


def get(address: str, port: int, patience: float = 5.0) -> bytes:
    """An HTTP answer, as soon as somebody answers."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection((address, port), timeout=1) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.makefile("rb").read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_pod_has_both_families_and_its_name(daemon):
    daemon.pull()
    pod = daemon.pod("web")
    network = sandbox_status(daemon, pod).network
    assert ipaddress.ip_address(network.ip) in ipaddress.ip_network(daemon.subnets[0])
    (second,) = network.additional_ips
    assert ipaddress.ip_address(second.ip) in ipaddress.ip_network(daemon.subnets[1])
    assert network_ready(daemon).status
    container = daemon.container(pod, "sleep", "1000")
    hosts = daemon.exec(container, "cat", "/etc/hosts").stdout.decode()
    assert f"{network.ip}\tweb" in hosts
    assert f"{second.ip}\tweb" in hosts
    gateway = str(ipaddress.ip_network(daemon.subnets[1])[1])
    assert daemon.exec(container, "ping", "-c", "1", "-W", "2", gateway).exit_code == 0


def test_a_host_port_leads_to_the_pod_until_it_is_stopped(daemon):
    daemon.pull()
    pod = daemon.pod("web", [v1.PortMapping(host_port=28080, container_port=8080)])
    daemon.container(pod, *SERVE)
    assert b"hello" in get("127.0.0.1", 28080)
    assert b"hello" in get(sandbox_status(daemon, pod).network.ip, 8080)
    with pytest.raises(grpc.RpcError, match="28080") as caught:
        daemon.pod("rival", [v1.PortMapping(host_port=28080, container_port=80)])
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert pod in caught.value.details()
    daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    with pytest.raises(OSError):
        get("127.0.0.1", 28080, patience=0)
    rival = daemon.pod("rival", [v1.PortMapping(host_port=28080, container_port=8080)])
    daemon.container(rival, *SERVE)
    assert b"hello" in get("127.0.0.1", 28080)


def test_host_ports_survive_the_daemon_and_somebody_s_flush(daemon):
    daemon.pull()
    pod = daemon.pod("web", [v1.PortMapping(host_port=28081, container_port=8080)])
    daemon.container(pod, *SERVE)
    daemon.end(signal.SIGKILL)
    assert b"hello" in get("127.0.0.1", 28081)
    for table in ("masquerade", "hostports"):
        name = daemon.network
        subprocess.run(["nft", "delete", "table", "inet", f"cni-{name}-{table}"], check=True)
    with pytest.raises(OSError):
        get("127.0.0.1", 28081, patience=0)
    daemon.start()
    assert b"hello" in get("127.0.0.1", 28081)


def test_the_operator_s_configuration_counts_as_soon_as_it_is_there(daemon):
    directory = daemon.base / "net.d"
    directory.mkdir()
    subnet, _ = free_subnets()
    plugins = [
        {
            "type": "bridge",
            "bridge": daemon.network,
            "isDefaultGateway": True,
            "ipam": {"type": "host-local", "subnet": subnet},
        }
    ]
    (directory / "50-mine.conflist").write_text(
        json.dumps({"name": "mine", "cniVersion": "1.0.0", "plugins": [*plugins, {"type": "calico"}]})
    )
    found = network_ready(daemon)
    assert not found.status
    assert "'calico' is not installed" in found.message
    (directory / "50-mine.conflist").write_text(
        json.dumps({"name": "mine", "cniVersion": "1.0.0", "plugins": plugins})
    )
    assert network_ready(daemon).status
    assert sandbox_status(daemon, daemon.pod("p")).network.ip == str(ipaddress.ip_network(subnet)[2])


def test_the_pod_cidr_is_for_the_pods_to_come(daemon):
    old = daemon.pod("old")
    before = sandbox_status(daemon, old).network.ip
    cidr = free_subnets()[0].partition("/")[0]
    config = v1.RuntimeConfig(network_config=v1.NetworkConfig(pod_cidr=f"{cidr}/24"))
    daemon.client("UpdateRuntimeConfig", v1.UpdateRuntimeConfigRequest(runtime_config=config))
    assert sandbox_status(daemon, daemon.pod("new")).network.ip == str(ipaddress.ip_address(cidr) + 2)
    daemon.end(signal.SIGKILL)
    daemon.start()
    assert sandbox_status(daemon, old).network.ip == before
    assert sandbox_status(daemon, daemon.pod("newer")).network.ip == str(ipaddress.ip_address(cidr) + 3)
    wrong = v1.RuntimeConfig(network_config=v1.NetworkConfig(pod_cidr=cidr))
    with pytest.raises(grpc.RpcError, match="pod_cidr") as caught:
        daemon.client("UpdateRuntimeConfig", v1.UpdateRuntimeConfigRequest(runtime_config=wrong))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def owners(daemon) -> dict[str, set[str]]:
    """Who owns what the node has of the network: sandbox ids, as each kind of thing tells them."""
    database = sqlite3.connect(f"file:{daemon.base}/state/network.db?mode=ro", uri=True)
    found = {
        "attachments": {owner for (owner,) in database.execute("SELECT container FROM attachments")},
        "claims": {
            owner.partition("/")[0]
            for (owner,) in database.execute("SELECT owner FROM claims WHERE pool <> 'gateways'")
        },
    }
    database.close()
    ruleset = subprocess.run(
        ["nft", "-j", "list", "ruleset"], check=True, capture_output=True, text=True
    ).stdout
    elements = [
        element
        for one in json.loads(ruleset)["nftables"]
        if "map" in one and daemon.network in one["map"]["table"]
        for element in one["map"].get("elem", [])
    ]
    comments = {json.dumps(element) for element in elements}
    found["rules"] = {
        word.partition("/")[0] for text in comments for word in text.split('"') if "/eth0" in word
    }
    return found


def host_ends(daemon) -> int:
    links = json.loads(
        subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout
    )
    return sum(link.get("master") == daemon.network for link in links)


@pytest.mark.timeout(600)
def test_a_daemon_killed_at_any_moment_leaves_nothing_without_an_owner(daemon):
    moments = random.Random(secrets.randbits(32))
    cut_short = 0
    for number in range(KILLS):
        stop = threading.Event()
        failed: list[grpc.StatusCode] = []

        def live(
            worker: int, number: int = number, stop: threading.Event = stop, failed: list = failed
        ) -> None:
            turn = 0
            try:
                while not stop.is_set():
                    port = v1.PortMapping(host_port=29000 + worker, container_port=80)
                    pod = daemon.pod(f"p-{number}-{worker}-{turn}", [port])
                    daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
                    turn += 1
            except grpc.RpcError as error:
                failed.append(error.code())

        workers = [threading.Thread(target=live, args=(worker,)) for worker in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(0.05 + moments.random() * 0.2)
        daemon.process.kill()
        daemon.process.wait()
        stop.set()
        for worker in workers:
            worker.join()
        daemon.client.close()
        cut_short += bool(failed)
        daemon.start()
        items = daemon.client("ListPodSandbox", v1.ListPodSandboxRequest()).items
        ready = {item.id for item in items if item.state == v1.PodSandboxState.SANDBOX_READY}
        for kind, names in owners(daemon).items():
            assert names == ready, (kind, names, ready)
        assert host_ends(daemon) == len(ready)
        daemon.remove_all()
    assert cut_short > KILLS * 0.8
    assert owners(daemon) == {"attachments": set(), "claims": set(), "rules": set()}
