"""The files every container of a pod gets: /etc/hosts, /etc/hostname and /etc/resolv.conf."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from cri.api.runtime import v1
from cri.sandbox.spec import MountSpec, PodAddresses, Resolver, SandboxSpec, Sharing

log = structlog.get_logger(__name__)

MAX_SERVERS = 3
MAX_SEARCHES = 32
MAX_SEARCH_CHARACTERS = 2048
"""What resolvers read at most, and what the kubelet keeps to (kubernetes pkg/apis/core/validation)."""

RESOLV_CONF = "resolv.conf"
_TARGETS = {"hosts": "/etc/hosts", "hostname": "/etc/hostname", RESOLV_CONF: "/etc/resolv.conf"}
NAMES = tuple(_TARGETS)
"""In the sandbox's directory."""
_NODE_RESOLVERS = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")
"""The first of them that is there is the node's; systemd-resolved keeps the real servers in a file of its own."""


def write(spec: SandboxSpec, dns: v1.DnsConfig | None, node_hostname: str) -> None:
    """Write the files into the sandbox's directory, as far as they are known before it has a network. Blocks."""
    directory = Path(spec.directory)
    on_host = spec.namespaces.network is Sharing.NODE
    hostname = node_hostname if on_host or not spec.hostname else spec.hostname
    (directory / "hostname").write_text(hostname + "\n")
    (directory / "hosts").write_bytes(
        _node_file("/etc/hosts") if on_host else hosts_file(spec.hostname).encode()
    )
    told = _resolver(dns)
    if on_host and told == Resolver():
        (directory / "resolv.conf").write_bytes(_node_file("/etc/resolv.conf"))
    else:
        (directory / "resolv.conf").write_text(resolv_conf(told))
    for name in _TARGETS:
        (directory / name).chmod(0o644)


def write_addresses(spec: SandboxSpec, dns: v1.DnsConfig | None, given: PodAddresses) -> None:
    """Write what is known once the pod has a network of its own: its addresses, and whom it asks for names. Blocks.

    That is whom the pod's configuration names, else whom the network's does, else whom the node asks.
    """
    directory = Path(spec.directory)
    (directory / "hosts").write_text(hosts_file(spec.hostname, given.addresses))
    told = _resolver(dns)
    if told == Resolver():
        told = given.resolver
    text = resolv_conf(told) if told != Resolver() else for_pods(_node_resolv_conf())
    (directory / "resolv.conf").write_text(text, errors="surrogateescape")


def mounts(spec: SandboxSpec) -> Sequence[MountSpec]:
    """The mounts that show the files in a container; a mount of the container's own config takes precedence."""
    return [MountSpec(source=f"{spec.directory}/{name}", target=target) for name, target in _TARGETS.items()]


def hosts_file(hostname: str, addresses: Iterable[str] = ()) -> str:
    """The lines of hosts(5), where the pod's name stands for its addresses."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    if hostname:
        lines += [f"{address}\t{hostname}" for address in addresses or ("127.0.0.1",)]
    return "".join(f"{line}\n" for line in lines)


def resolv_conf(told: Resolver) -> str:
    """A resolver in the words of resolv.conf(5), without what no resolver reads; what is left out is logged."""
    told = _fit(told)
    searches = _bounded(told.searches)
    lines = [f"search {' '.join(searches)}"] if searches else []
    lines += [f"nameserver {server}" for server in told.servers[:MAX_SERVERS]]
    if told.options:
        lines.append("options " + " ".join(told.options))
    omitted = (*told.searches[len(searches) :], *told.servers[MAX_SERVERS:])
    if omitted:
        log.warning("resolv.conf has no room for all", omitted=omitted)
    return "".join(f"{line}\n" for line in lines)


def for_pods(node_resolv_conf: str) -> str:
    """The node's resolv.conf(5) without servers on a loopback address: there a pod finds only itself."""
    kept: list[str] = []
    omitted: list[str] = []
    for line in node_resolv_conf.splitlines():
        words = line.split()
        (omitted if words[:1] == ["nameserver"] and _is_loopback(words[1:]) else kept).append(line)
    if omitted and not any(line.startswith("nameserver") for line in kept):
        log.warning("the node's name server cannot be reached from pods: give them one", omitted=omitted)
    return "".join(f"{line}\n" for line in kept)


def _resolver(dns: v1.DnsConfig | None) -> Resolver:
    return Resolver(tuple(dns.servers), tuple(dns.searches), tuple(dns.options)) if dns else Resolver()


def _fit(told: Resolver) -> Resolver:
    """A resolver without what no line can hold: a network's plugin may have said anything. What is left out is logged."""
    unfit = [word for word in (*told.servers, *told.searches, *told.options) if not _is_word(word)]
    if not unfit:
        return told
    log.warning("a resolver names what is no word", omitted=unfit)
    return Resolver(
        tuple(filter(_is_word, told.servers)),
        tuple(filter(_is_word, told.searches)),
        tuple(filter(_is_word, told.options)),
    )


def _is_word(text: str) -> bool:
    return text.isprintable() and len(text.split()) == 1 and text == text.strip()


def _bounded(searches: Sequence[str]) -> Sequence[str]:
    kept, length = [], -1
    for search in searches[:MAX_SEARCHES]:
        length += 1 + len(search)
        if length > MAX_SEARCH_CHARACTERS:
            break
        kept.append(search)
    return kept


def _is_loopback(words: Sequence[str]) -> bool:
    try:
        return ipaddress.ip_address(words[0].partition("%")[0]).is_loopback
    except (IndexError, ValueError):
        return False


def _node_resolv_conf() -> str:
    for path in _NODE_RESOLVERS:
        if found := _node_file(path):
            return found.decode(errors="surrogateescape")
    return ""


def _node_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""
