"""The files every container of a pod gets: /etc/hosts, /etc/hostname and /etc/resolv.conf."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cri.api.runtime import v1
from cri.sandbox.spec import MountSpec, SandboxSpec, Sharing

_TARGETS = {"hosts": "/etc/hosts", "hostname": "/etc/hostname", "resolv.conf": "/etc/resolv.conf"}


def write(spec: SandboxSpec, dns: v1.DnsConfig | None, node_hostname: str) -> None:
    """Write the files into the sandbox's directory. Blocks."""
    directory = Path(spec.directory)
    on_host = spec.namespaces.network is Sharing.NODE
    hostname = node_hostname if on_host or not spec.hostname else spec.hostname
    (directory / "hostname").write_text(hostname + "\n")
    (directory / "hosts").write_bytes(_node_file("/etc/hosts") if on_host else _hosts(spec.hostname).encode())
    (directory / "resolv.conf").write_bytes(
        resolv_conf(dns).encode() if dns else _node_file("/etc/resolv.conf")
    )
    for name in _TARGETS:
        (directory / name).chmod(0o644)


def mounts(spec: SandboxSpec) -> Sequence[MountSpec]:
    """The mounts that show the files in a container; a mount of the container's own config takes precedence."""
    return [MountSpec(source=f"{spec.directory}/{name}", target=target) for name, target in _TARGETS.items()]


def resolv_conf(dns: v1.DnsConfig) -> str:
    """A DNSConfig in the words of resolv.conf(5)."""
    lines = []
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "".join(line + "\n" for line in lines)


def _hosts(hostname: str) -> str:
    own = f" {hostname}" if hostname else ""
    return f"127.0.0.1\tlocalhost{own}\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def _node_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""
