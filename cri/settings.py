"""The table of settings: what there is to configure, how it is read, and what it is if nobody says."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baustelle.bounds import Bounds
from cri import config_values as kind

ENV_PREFIX = "CRI_JAILS_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting."""

    key: str
    """Its place in the file, dotted."""
    read: kind.Reader
    default: Any
    help: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENV_PREFIX + self.key.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.key.replace(".", "-").replace("_", "-")


_FREEBSD = sys.platform.startswith("freebsd")

SETTINGS: Sequence[Setting] = (
    Setting(
        "state_dir",
        kind.path,
        "/var/db/cri-jails" if _FREEBSD else "/var/lib/cri-jails",
        "what survives a reboot",
    ),
    Setting("runtime_dir", kind.path, "/var/run/cri-jails", "sockets and wardens; emptied by a reboot"),
    Setting("socket", kind.path, None, "the endpoint's unix socket (default: cri-jails.sock in runtime_dir)"),
    Setting("socket_group", kind.text, "", "group that may connect, by name or number"),
    Setting(
        "metrics_address",
        kind.address,
        "",
        "HOST:PORT to serve Prometheus metrics and the node's health on; empty: off",
    ),
    Setting("host", kind.choice("auto", "linux", "freebsd"), "auto", "the operating system's driver"),
    Setting(
        "snapshotter",
        kind.choice("auto", "overlay", "copy", "zfs"),
        "auto",
        "how layers become root filesystems",
    ),
    Setting("runtime_handlers", kind.texts, (), "names of RuntimeClass handlers to accept"),
    Setting(
        "log.level",
        kind.choice("debug", "info", "warning", "error"),
        "info",
        "the least level that is logged",
    ),
    Setting("log.format", kind.choice("console", "json"), "console", "for people or for machines"),
    Setting(
        "tracing.endpoint",
        kind.collector,
        "",
        "http://HOST:PORT of an OpenTelemetry collector that takes OTLP by gRPC; empty: no traces",
    ),
    Setting(
        "tracing.sampling_ratio",
        kind.ratio,
        1.0,
        "part of the calls that are traced, of those whose caller does not trace itself",
    ),
    Setting(
        "streaming.address",
        kind.listener,
        "127.0.0.1:0",
        "HOST:PORT of the HTTP server for exec, attach and port-forward; port 0: a free one",
    ),
    Setting(
        "streaming.cert_file",
        kind.file,
        None,
        "its certificates for TLS (PEM), read anew when they change; empty: no TLS",
    ),
    Setting("streaming.key_file", kind.file, None, "the certificate's private key (PEM)"),
    Setting("streaming.idle_timeout", kind.seconds, 4 * 3600.0, "seconds without a byte that end a session"),
    Setting("image.max_parallel_downloads", kind.whole(1, 64), 4, "layers of one image at a time"),
    Setting("image.idle_timeout", kind.seconds, 60.0, "seconds without a byte that end a download"),
    Setting(
        "image.hosts_dir",
        kind.file,
        None,
        "directory of HOST/hosts.toml, containerd's way to configure registries; empty: none",
    ),
    Setting(
        "image.credentials_file",
        kind.file,
        None,
        "Docker's config.json, with credentials for pulls that bring none, and for mirrors; empty: none",
    ),
    Setting(
        "image.pinned",
        kind.image_names,
        (),
        "images that nobody removes to make room: repositories, names with tag or digest, or names with asterisks",
    ),
    Setting(
        "image.max_entries",
        kind.whole(1, 10**9),
        Bounds().max_entries,
        "files, directories and links of one image, all layers together; more are refused",
    ),
    Setting(
        "image.max_unpacked_bytes",
        kind.whole(1, 2**62),
        Bounds().max_unpacked_bytes,
        "bytes of one image, unpacked; more are refused",
    ),
    Setting(
        "image.max_expansion_ratio",
        kind.whole(1, 10**9),
        Bounds().max_expansion_ratio,
        "how many times its compressed bytes a layer may become, once it is larger than 256 MiB",
    ),
    Setting(
        "image.max_zstd_window",
        kind.whole(1, 2**31),
        Bounds().max_zstd_window,
        "bytes of memory that a layer in zstd may ask for",
    ),
    Setting(
        "stats.interval",
        kind.seconds,
        10.0,
        "seconds between two samples of what each container and pod uses",
    ),
    Setting(
        "network.conf_dir",
        kind.path,
        "/usr/local/etc/cri-jails/net.d" if _FREEBSD else "/etc/cri-jails/net.d",
        "CNI network configurations; the settings below are for when there are none",
    ),
    Setting(
        "network.external_plugins",
        kind.directories,
        (),
        "directories with CNI plugins of others; empty: none is run",
    ),
    Setting("network.bridge", kind.interface, "cri0", "the pods' bridge interface, and the network's name"),
    Setting(
        "network.subnets",
        kind.families,
        ("10.88.0.0/16",),
        "addresses for pods, a prefix per address family; a kubelet's podCIDR takes their place",
    ),
    Setting("network.mtu", kind.whole(0, 65535), 0, "bytes; 0: the kernel's default"),
    Setting("network.masquerade", kind.flag, True, "pods leave the cluster under the node's address"),
    Setting("network.cluster", kind.subnets, (), "prefixes that pods reach under their own address, too"),
    Setting(
        "freebsd.allow",
        kind.texts,
        (
            "allow.chflags",
            "allow.mlock",
            "allow.raw_sockets",
            "allow.read_msgbuf",
            "allow.reserved_ports",
            "allow.set_hostname",
            "allow.socket_af",
            "allow.unprivileged_proc_debug",
        ),
        "jail parameters that annotations org.freebsd.jail.* may give",
    ),
    Setting(
        "freebsd.devfs_ruleset", kind.whole(6, 65535), 3185, "number of the devfs ruleset for containers"
    ),
)

REGISTRY_SETTINGS: Mapping[str, kind.Reader] = {
    "mirrors": kind.texts,
    "ca_file": kind.path,
    "skip_verify": kind.flag,
    "proxy": kind.proxy,
}
"""The keys of a table `[registries."NAME"]`."""

SECRET = frozenset({"proxy"})
"""Those of which the part before an @ is shown to nobody."""

REGISTRIES = Setting(
    "registries",
    kind.text,
    None,
    'how registries are reached, as TOML: {"NAME" = {mirrors = ["URL"]}}; NAME "*" is every other',
)
"""All of them, where there is no file to have tables in."""
