"""What a pod finds in /etc."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.api.runtime import v1
from cri.sandbox import pod_files
from cri.sandbox.spec import Namespaces, PodAddresses, Resolver, SandboxSpec, Sharing

GIVEN = PodAddresses(("10.0.0.2", "fd00::2"), Resolver(("10.96.0.10",), ("cluster.local",)))


@pytest.fixture
def node(monkeypatch):
    files = {"/etc/resolv.conf": b"nameserver 127.0.0.53\nsearch lan\n", "/etc/hosts": b"192.0.2.1 node\n"}
    monkeypatch.setattr(pod_files, "_node_file", lambda path: files.get(path, b""))
    return files


def spec(directory: Path, network: Sharing = Sharing.POD) -> SandboxSpec:
    return SandboxSpec("s", "p", "n", str(directory), "/run/x", "web-0", Namespaces(network=network))


def read(directory: Path) -> tuple[str, ...]:
    return tuple((directory / name).read_text() for name in ("hostname", "hosts", "resolv.conf"))


def test_the_pod_s_name_stands_for_its_addresses_once_it_has_them(tmp_path, node) -> None:
    pod_files.write(spec(tmp_path), None, "node")
    assert "127.0.0.1\tweb-0" in (tmp_path / "hosts").read_text()
    pod_files.write_addresses(spec(tmp_path), None, GIVEN)
    hostname, hosts, _ = read(tmp_path)
    assert hostname == "web-0\n"
    assert "10.0.0.2\tweb-0\nfd00::2\tweb-0\n" in hosts
    assert "127.0.0.1\tweb-0" not in hosts
    assert "127.0.0.1\tlocalhost\n" in hosts


def test_with_the_node_s_network_it_has_the_node_s_files(tmp_path, node) -> None:
    pod_files.write(spec(tmp_path, Sharing.NODE), None, "node")
    assert read(tmp_path) == ("node\n", "192.0.2.1 node\n", "nameserver 127.0.0.53\nsearch lan\n")


def test_the_configuration_comes_before_the_network_and_the_network_before_the_node(tmp_path, node) -> None:
    dns = v1.DnsConfig(servers=["192.0.2.53"], searches=["a.example"], options=["ndots:5"])
    pod_files.write(spec(tmp_path), dns, "node")
    pod_files.write_addresses(spec(tmp_path), dns, GIVEN)
    assert read(tmp_path)[2] == "search a.example\nnameserver 192.0.2.53\noptions ndots:5\n"
    pod_files.write_addresses(spec(tmp_path), v1.DnsConfig(), GIVEN)
    assert read(tmp_path)[2] == "search cluster.local\nnameserver 10.96.0.10\n"
    node["/etc/resolv.conf"] = b"# by hand\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0\n"
    pod_files.write_addresses(spec(tmp_path), None, PodAddresses(("10.0.0.2",)))
    assert read(tmp_path)[2] == "# by hand\nnameserver 192.0.2.1\noptions edns0\n"


def test_the_servers_behind_systemd_resolved_are_taken(tmp_path, node) -> None:
    node["/run/systemd/resolve/resolv.conf"] = b"nameserver 192.0.2.7\n"
    pod_files.write(spec(tmp_path), None, "node")
    pod_files.write_addresses(spec(tmp_path), None, PodAddresses(("10.0.0.2",)))
    assert read(tmp_path)[2] == "nameserver 192.0.2.7\n"


def test_no_more_is_written_than_a_resolver_reads() -> None:
    searches = tuple(f"{'x' * 98}{n:02}" for n in range(40))
    text = pod_files.resolv_conf(Resolver(("1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"), searches))
    search, *servers = text.splitlines()
    assert servers == ["nameserver 1.1.1.1", "nameserver 2.2.2.2", "nameserver 3.3.3.3"]
    assert len(search.removeprefix("search ")) <= pod_files.MAX_SEARCH_CHARACTERS
    assert len(search.split()) - 1 == 20
    many = pod_files.resolv_conf(Resolver((), tuple(f"s{n}" for n in range(40))))
    assert len(many.split()) - 1 == pod_files.MAX_SEARCHES


def test_what_a_network_says_adds_no_line_to_a_resolver() -> None:
    told = Resolver(
        ("192.0.2.1", "192.0.2.2\nnameserver 192.0.2.3", ""), ("a b", "example.org"), ("ndots:2", "x\ty")
    )
    assert pod_files.resolv_conf(told) == "search example.org\nnameserver 192.0.2.1\noptions ndots:2\n"
