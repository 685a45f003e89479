"""What is lost on a node comes back: the ledger with pods attached, bridges, tables; and nothing stays of a former name."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from cni_plugins import (
    CNI,
    Attachment,
    ClaimedError,
    Ledger,
    NetworkList,
    PortMapping,
    RuntimeConfig,
)
from cni_plugins.results import to_json

pytestmark = pytest.mark.node

V4, V6 = "10.45.0.0/16", "fd45::/64"
RANGES = [[{"subnet": V4}], [{"subnet": V6}]]
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


def network(name: str = "pods", bridge: str = "br-lost", kind: str = "bridge", **values) -> NetworkList:
    first = {"type": kind, "ipam": {"type": "host-local", "ranges": RANGES, "routes": ROUTES}}
    if kind == "bridge":
        first |= {"bridge": bridge, "isGateway": True, "hairpinMode": True}
    plugins = [
        first | values,
        {"type": "masquerade", "nonMasqueradeCIDRs": [V4, V6]},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    return NetworkList.from_json({"name": name, "cniVersion": "1.0.0", "plugins": plugins})


def attachment(name: str, *ports: int) -> Attachment:
    mappings = tuple(PortMapping(port, 80) for port in ports)
    return Attachment(name, "eth0", f"/run/netns/{name}", RuntimeConfig(port_mappings=mappings))


def nft(host) -> list:
    """The rules and elements of all tables, without what changes by itself."""
    told = host.run(
        lambda: subprocess.run(["nft", "-j", "list", "ruleset"], check=True, capture_output=True, text=True)
    ).stdout

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key != "handle"}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return sorted(
        (plain(one) for one in json.loads(told)["nftables"] if "metainfo" not in one), key=json.dumps
    )


def tables(host) -> set[str]:
    return {one["table"]["name"] for one in nft(host) if "table" in one}


def links(host) -> set[str]:
    return {one["ifname"] for one in json.loads(host.command("ip", "-j", "link"))}


class Node:
    def __init__(self, host, path: Path) -> None:
        self.host, self.path = host, path
        self.ledger = self.cni = None
        host.command("ip", "link", "set", "lo", "up")
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.path, "boot")
        self.cni = CNI(self.ledger, self.host)

    def kill(self) -> None:
        """Nobody takes leave; the ledger's file is as it is."""
        self.cni.settle()
        self.ledger.close()

    def lose_the_ledger(self) -> None:
        self.kill()
        for part in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + part).unlink(missing_ok=True)
        self.start()
        assert self.ledger.rebuilt

    def close(self) -> None:
        assert self.cni.close() == []
        self.ledger.close()


@pytest.fixture
def node(host, tmp_path):
    made = Node(host, tmp_path / "network.db")
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_attachments_are_rebuilt_from_what_pods_have(node, make_namespace, kind, talk) -> None:
    wanted, pods = network(kind=kind), {name: make_namespace() for name in ("a", "b", "c")}
    results = {
        name: node.cni.add(wanted, attachment(name, 8000 + number), stack)
        for number, (name, stack) in enumerate(pods.items())
    }
    before, links_before = nft(node.host), links(node.host)
    node.lose_the_ledger()
    for number, (name, stack) in enumerate(pods.items()):
        assert not node.cni.is_attached(name)
        assert node.cni.rebuild([wanted], attachment(name, 8000 + number), stack)
        assert node.cni.is_attached(name)
        assert node.cni.rebuild([wanted], attachment(name, 8000 + number), stack), (
            "a second time nothing happens"
        )
    node.host.command("nft", "flush", "ruleset")
    assert node.cni.gc(lambda: list(pods), [wanted]) == []
    assert nft(node.host) == before
    assert links(node.host) == links_before
    for name, result in results.items():
        (entry,) = node.ledger.entries(container=name)
        told = to_json(result)
        assert [entry.result[part] for part in ("ips", "interfaces")] == [told["ips"], told["interfaces"]]
        node.cni.check(wanted, attachment(name), pods[name])
    fresh = make_namespace()
    taken = {str(ip.address.ip) for result in results.values() for ip in result.ips}
    given = node.cni.add(wanted, attachment("d"), fresh)
    assert not taken & {str(ip.address.ip) for ip in given.ips}
    with pytest.raises(ClaimedError, match="8001"):
        node.cni.add(wanted, attachment("e", 8001), make_namespace())
    if kind == "bridge":
        assert talk(fresh, pods["a"], results["a"].ips[0].address.ip) == b"hello"
    for name in (*pods, "d"):
        assert node.cni.delete_all(name)
    node.cni.settle()
    assert tables(node.host) == set()
    assert links(node.host) <= {"lo", "br-lost"}
    assert node.ledger.claims("addresses of network pods") == []
    assert node.ledger.claims("host-ports") == []


def test_one_that_was_being_taken_off_is_not_rebuilt(node, make_namespace) -> None:
    wanted, stack = network(), make_namespace()
    node.cni.add(wanted, attachment("a"), stack)
    name = next(one for one in links(node.host) if one.startswith("pod"))
    node.lose_the_ledger()
    node.host.command("ip", "link", "set", name, "down", "nomaster")  # as DEL begins
    assert not node.cni.rebuild([wanted], attachment("a"), stack)
    assert not node.cni.rebuild([wanted], attachment("b"), make_namespace()), "nothing was ever made"
    assert node.ledger.entries() == []


def test_one_that_is_written_down_as_leaving_is_not_rebuilt(node, make_namespace) -> None:
    wanted, stack = network(), make_namespace()
    node.cni.add(wanted, attachment("a"), stack)
    node.ledger.leave("pods", "a/eth0")
    assert not node.cni.is_attached("a")
    assert not node.cni.rebuild([wanted], attachment("a"), stack)


def test_what_another_configuration_has_made_is_taken_over_as_it_is_found(node, make_namespace) -> None:
    stack = make_namespace()
    result = node.cni.add(network(bridge="br-former"), attachment("a", 8000), stack)
    node.lose_the_ledger()
    wanted = network(bridge="br-lost")
    assert node.cni.rebuild([wanted, network(bridge="br-former")], attachment("a", 8000), stack)
    (entry,) = node.ledger.entries()
    assert entry.configuration["plugins"][0]["bridge"] == "br-former", "the one that knows its host end"
    node.lose_the_ledger()
    assert node.cni.rebuild([wanted], attachment("a", 8000), stack)
    assert node.cni.gc(lambda: ["a"], [wanted]) == []
    held = {value for value, _ in node.ledger.claims("addresses of network pods")}
    assert held == {str(ip.address.ip) for ip in result.ips}
    assert node.cni.delete_all("a")


def test_a_spared_pod_keeps_its_interfaces_and_its_addresses(node, make_namespace) -> None:
    wanted, stack = network(), make_namespace()
    result = node.cni.add(wanted, attachment("a"), stack)
    addresses = [str(ip.address.ip) for ip in result.ips]
    before = nft(node.host)
    node.lose_the_ledger()
    assert node.cni.gc(lambda: ["a"], [wanted], spared={"a": [*addresses, "torn"]}) == []
    assert any(one.startswith("pod") for one in links(node.host))
    assert nft(node.host) == before
    other = node.cni.add(wanted, attachment("b"), make_namespace())
    assert not {str(ip.address.ip) for ip in other.ips} & set(addresses)
    assert node.cni.rebuild([wanted], attachment("a"), stack)
    assert node.cni.gc(lambda: ["a", "b"], [wanted]) == []
    assert node.cni.lost() == []
    for name in ("a", "b"):
        node.cni.delete_all(name)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("result", "{"),
        ("result", '{"ips": 7}'),
        ("result", '{"ips": [{"address": "torn"}]}'),
        ("attachment", "[]"),
        ("attachment", '{"containerId": "a"}'),
        ("configuration", "{"),
        ("configuration", '{"name": "pods"}'),
        ("configuration", '{"name": 7, "plugins": {}}'),
    ],
)
@pytest.mark.parametrize("mended", [False, True])
def test_a_row_that_cannot_be_read(node, make_namespace, column, value, mended) -> None:
    wanted, pods = network(), {name: make_namespace() for name in ("a", "b")}
    for number, (name, stack) in enumerate(pods.items()):
        node.cni.add(wanted, attachment(name, 8000 + number), stack)
    before = nft(node.host)
    node.kill()
    database = sqlite3.connect(node.path)
    database.execute(f"UPDATE attachments SET {column} = ? WHERE container = 'a'", (value,))
    database.commit()
    database.close()
    node.start()
    assert not node.cni.is_attached("a")
    assert node.cni.is_attached("b")
    (failure,) = node.cni.gc(lambda: ["a", "b"], [wanted])
    assert nft(node.host) == before, failure
    assert len(node.ledger.entries()) == 2
    if mended:
        assert node.cni.rebuild([wanted], attachment("a", 8000), pods["a"])
        node.host.command("nft", "flush", "ruleset")
        assert node.cni.gc(lambda: ["a", "b"], [wanted]) == []
        assert nft(node.host) == before
    assert node.cni.delete_all("a", otherwise=[wanted])
    node.cni.settle()
    assert len([one for one in links(node.host) if one.startswith("pod")]) == 1
    assert {owner for _, owner in node.ledger.claims("addresses of network pods")} == {"b/eth0"}
    node.cni.delete_all("b")
    node.cni.settle()
    assert node.cni.gc(list, [wanted]) == []
    assert tables(node.host) == set()


def test_what_a_later_release_has_written_is_left_to_it(node, make_namespace) -> None:
    wanted, stack = network(), make_namespace()
    node.cni.add(wanted, attachment("a"), stack)
    node.kill()
    database = sqlite3.connect(node.path)
    (told,) = database.execute("SELECT configuration FROM attachments").fetchone()
    later = json.dumps({**json.loads(told), "cniVersion": "9.0.0"})
    database.execute("UPDATE attachments SET configuration = ?", (later,))
    database.commit()
    database.close()
    node.start()
    assert node.cni.is_attached("a")
    assert node.cni.rebuild([wanted], attachment("a"), stack)
    assert len(node.cni.gc(lambda: ["a"], [wanted])) == 1
    assert node.ledger.entries()[0].configuration["cniVersion"] == "9.0.0"
    assert any(one.startswith("pod") for one in links(node.host))
    assert node.cni.delete_all("a", otherwise=[wanted])


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        ("ip link del br-lost", "bridge br-lost is not there"),
        ("ip link set br-lost down", "bridge br-lost is down"),
        ("ip addr del 10.45.0.1/16 dev br-lost", "bridge br-lost lacks address 10.45.0.1/16"),
        ("sysctl -qw net.ipv4.ip_forward=0", "the node does not forward IPv4"),
        ("nft delete table inet cni-pods-masquerade", "nftables table cni-pods-masquerade is not there"),
        ("nft delete table inet cni-pods-hostports", "nftables table cni-pods-hostports is not there"),
        ("nft flush ruleset", "nftables table cni-pods-masquerade is not there"),
    ],
)
def test_what_somebody_removes_is_missed_and_put_back(node, make_namespace, harm, expected) -> None:
    assert node.cni.lost() == [], "a node without pods lacks nothing"
    wanted, stack = network(), make_namespace()
    node.cni.gc(list, [wanted])
    assert node.cni.lost() == []
    node.cni.add(wanted, attachment("a", 8000), stack)
    assert node.cni.lost() == []
    before = nft(node.host)
    node.host.command(*harm.split())
    assert expected in node.cni.lost()
    assert node.cni.gc(lambda: ["a"], [wanted]) == []
    assert node.cni.lost() == []
    assert nft(node.host) == before
    node.cni.delete_all("a")
    assert node.cni.lost() == []


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_nothing_stays_of_a_network_that_has_another_name_by_now(
    node, make_namespace, host, *, restarted, lost
) -> None:
    host.command("nft", "add", "table", "inet", "cni-somebody-else-s-masquerade")
    former, wanted, stack = network("former"), network("pods", "br-new"), make_namespace()
    node.cni.gc(list, [former])
    node.cni.add(former, attachment("a", 8000), stack)
    if restarted:
        node.kill()
        node.start()
    if lost:  # the pod is gone when the daemon is back
        assert node.cni.gc(list, [wanted]) == []
    else:
        assert node.cni.gc(lambda: ["a"], [wanted]) == []
        assert "cni-former-masquerade" in tables(host)
        node.cni.delete_all("a")
        assert node.cni.gc(list, [wanted]) == []
    node.cni.settle()
    assert tables(host) == {"cni-somebody-else-s-masquerade"}
    assert "br-lost" not in links(host)
    assert node.ledger.notes("made with ") == {}
    host.command("nft", "delete", "table", "inet", "cni-somebody-else-s-masquerade")


def test_del_goes_on_when_nothing_can_be_written(node, make_namespace, monkeypatch) -> None:
    wanted, stack = network(), make_namespace()
    node.cni.gc(list, [wanted])
    node.cni.add(wanted, attachment("a", 8000), stack)
    from cni_plugins import ledger_file

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file.LedgerFile, "_commit", refuse)
        assert node.cni.delete_all("a")
        node.cni.settle()
        assert not any(one.startswith("pod") for one in links(node.host))
        assert tables(node.host) == set()
        assert "No space left" in node.ledger.problem
        with pytest.raises(Exception, match="No space left"):
            node.cni.add(wanted, attachment("b"), make_namespace())
        assert not any(one.startswith("pod") for one in links(node.host))
    node.ledger.retry()
    node.kill()
    node.start()
    assert node.ledger.entries() == []
    assert node.ledger.claims("addresses of network pods") == []
