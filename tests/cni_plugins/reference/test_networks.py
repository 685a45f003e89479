"""The same network through Debian's containernetworking-plugins 1.1.1 and through ours.

What they return, and what the kernel then shows of the pods and the host, is compared leaf by leaf. What differs on purpose
stands in `MEANT`, with the reason; nothing else may differ, and what a case says will differ, does.
"""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.node

MEANT = {
    "mac": (
        r"(result \w+\.interfaces\.\d+|\w+ \w+: \w+\.links\.[\w-]+)\.mac",
        "the reference takes random MACs, so that neighbours' caches are wrong after a restart; ours are made of the name",
    ),
    "host end": (
        r"result \w+\.interfaces\.\d+\.name",
        "the reference takes random names; ours are made of the attachment's, so that it is found without being remembered",
    ),
    "protocol": (
        r"\w+ \w+: \w+\.routes\..*\.protocol",
        "the reference leaves it at `boot`, which a routing daemon may take for its own to replace; `static` is left alone",
    ),
    "routed address": (
        r"\w+ \w+: pod\d\.(links\.eth0\.addresses\..*|routes\.fd00::[23] on eth0)",
        "the reference gives a routed pod its subnet and removes the route of that; ours gives it no subnet to begin with",
    ),
    "routed source": (
        r"\w+ \w+: pod\d\.routes\..*\.prefsrc",
        "the routes that the reference replaces need a source; ours have the interface's, as all others have",
    ),
    "routed scope": (
        r"\w+ \w+: host\.routes\..* on end-of-\w+\.scope",
        "the reference says that pods are on the host itself, ours that they are on the link",
    ),
    "DNS": (
        r"result \w+\.dns\.\w+",
        "bridge 1.1.1 drops what IPAM says of DNS; its ptp and later releases do not, nor do we",
    ),
    "loopback": (
        r"deleted \w+: pod\d\.links\.lo\..*",
        "the reference takes lo down with one attachment, though another one may need it; it ends with the pod",
    ),
}


@dataclass
class Case:
    """A network and the pods that are attached to it."""

    plugins: list
    runtime: dict = field(default_factory=dict)
    args: str = ""
    pods: int = 2
    version: str = "1.0.0"
    meant: set = field(default_factory=set)
    """What of MEANT differs here, all of it."""

    @property
    def network(self):
        ifname = "lo" if self.plugins[0]["type"] == "loopback" else "eth0"
        return {"name": "net", "cniVersion": self.version, "plugins": self.plugins, "ifname": ifname}


def bridge(**settings):
    return {"type": "bridge", "bridge": "br7", "capabilities": {"ips": True, "mac": True}, **settings}


def ptp(**settings):
    return {"type": "ptp", "capabilities": {"ips": True}, **settings}


V4 = {"type": "host-local", "subnet": "10.1.0.0/24"}
DUAL = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "10.7.0.0/16", "gw": "10.1.0.1"}, {"dst": "::/0"}]
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
MACS = {"mac", "host end"}
ROUTING = MACS | {"protocol"}
ROUTED = ROUTING | {"routed address", "routed source", "routed scope"}

CASES = {
    "bridge without addresses": Case([bridge()], meant=MACS),
    "bridge with addresses, no gateway": Case([bridge(ipam=DUAL)], meant=MACS),
    "gateway": Case([bridge(isGateway=True, ipam=V4)], meant=MACS),
    "default gateway, both families": Case([bridge(isDefaultGateway=True, ipam=DUAL)], meant=ROUTING),
    "IPv6 only": Case([bridge(isDefaultGateway=True, ipam={**V4, "subnet": "fd00::/64"})], meant=ROUTING),
    "routes": Case([bridge(isGateway=True, ipam={**DUAL, "routes": ROUTES})], meant=ROUTING),
    "routes without gateway": Case([bridge(ipam={**DUAL, "routes": ROUTES})], meant=ROUTING),
    "a gateway of one's own": Case(
        [bridge(isDefaultGateway=True, ipam={**V4, "gateway": "10.1.0.254"})], meant=ROUTING
    ),
    "two subnets of a family": Case(
        [
            bridge(
                ipam={
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]],
                },
            )
        ],
        pods=1,
        meant=MACS,
    ),
    "MTU and hairpin": Case([bridge(isGateway=True, mtu=1400, hairpinMode=True, ipam=V4)], meant=MACS),
    "promiscuous": Case([bridge(isGateway=True, promiscMode=True, ipam=V4)], meant=MACS),
    "DNS of the configuration": Case(
        [bridge(isGateway=True, dns={"nameservers": ["10.1.0.1"], "search": ["x"]}, ipam=V4)], meant=MACS
    ),
    "DNS of a file": Case([bridge(ipam={**V4, "resolvConf": "RESOLV"})], meant=MACS | {"DNS"}),
    "requested address": Case(
        [bridge(isGateway=True, ipam=DUAL)], {"ips": ["10.1.0.77", "fd00::77/64"]}, pods=1, meant=MACS
    ),
    "requested address of the environment": Case(
        [bridge(isGateway=True, ipam=V4)], args="IP=10.1.0.78;IgnoreUnknown=1", pods=1, meant=MACS
    ),
    "requested MAC": Case(
        [bridge(isGateway=True, ipam=V4)], {"mac": "02:00:00:00:00:05"}, pods=1, meant=MACS
    ),
    "static addresses": Case(
        [
            bridge(
                isDefaultGateway=True,
                ipam={
                    "type": "static",
                    "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
                    "routes": ROUTES[1:2],
                },
            )
        ],
        pods=1,
        meant=ROUTING,
    ),
    "host ports": Case([bridge(isDefaultGateway=True, ipam=DUAL), PORTMAP], PORTS, pods=1, meant=ROUTING),
    "host ports that nobody wants": Case([bridge(isGateway=True, ipam=V4), PORTMAP], meant=MACS),
    "masquerading": Case([bridge(isGateway=True, ipMasq=True, ipam=DUAL)], meant=MACS),
    "sysctls": Case(
        [
            bridge(isGateway=True, ipam=V4),
            {"type": "tuning", "sysctl": {"net.ipv4.conf.all.log_martians": "1"}},
        ],
        meant=MACS,
    ),
    "properties of the interface": Case(
        [
            bridge(isGateway=True, ipam=V4),
            {"type": "tuning", "mac": "02:00:00:00:00:06", "mtu": 1300, "promisc": True},
        ],
        pods=1,
        meant=MACS,
    ),
    "routed": Case([ptp(ipam=V4)], meant=ROUTED),
    "routed, both families": Case([ptp(ipam={**DUAL, "routes": ROUTES}, mtu=1400)], meant=ROUTED),
    "routed and masqueraded": Case(
        [ptp(ipMasq=True, ipam={**V4, "routes": ROUTES[:1]}), PORTMAP], PORTS, pods=1, meant=ROUTED
    ),
    "routed with DNS of a file": Case([ptp(ipam={**V4, "resolvConf": "RESOLV"})], pods=1, meant=ROUTED),
    "loopback": Case([{"type": "loopback"}], meant={"loopback"}),
    "version 0.3.1": Case(
        [bridge(isDefaultGateway=True, ipam=DUAL), PORTMAP], version="0.3.1", meant=ROUTING
    ),
    "version 0.4.0": Case([ptp(ipam=V4)], version="0.4.0", meant=ROUTED),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_same_network(reference, ours, make_namespace, with_resolv_conf, case):
    found = [_life(side, case, with_resolv_conf(case.network), make_namespace) for side in (reference, ours)]
    differences, seen = [], set()
    for path, pair in _differences("", *found):
        meant = [name for name, (pattern, _) in MEANT.items() if re.fullmatch(pattern, path)]
        seen.update(meant)
        differences += [] if meant else [f"{path}: {pair[0]!r} there, {pair[1]!r} here"]
    assert not differences, "\n".join(differences)
    assert seen == case.meant


REFUSALS = {
    "no room for the second pod": ([bridge(ipam={**V4, "subnet": "10.1.0.0/30"})], {}),
    "an address that the first pod has": ([bridge(ipam=V4)], {"runtime": {"ips": ["10.1.0.5"]}}),
    "the same pod again": ([bridge(ipam=V4)], {"again": True}),
    "no IPAM where there must be addresses": ([ptp()], {}),
    "an unknown IPAM": ([bridge(ipam={"type": "unheard-of"})], {}),
    "an IPAM without addresses": ([bridge(ipam={"type": "static"})], {}),
    "ports before addresses": ([PORTMAP, bridge(ipam=V4)], {}),
    "ports with marks of two kinds": (
        [bridge(ipam=V4), {**PORTMAP, "externalSetMarkChain": "X", "markMasqBit": 3}],
        {},
    ),
    "hairpin and promiscuous mode": ([bridge(hairpinMode=True, promiscMode=True, ipam=V4)], {}),
    "a bridge's name that is too long": ([bridge(bridge="a-name-of-sixteen", ipam=V4)], {}),
    "an interface that is no bridge": ([bridge(bridge="lo", ipam=V4)], {}),
    "an MTU that cannot be": ([bridge(mtu=70000, ipam=V4)], {}),
    "a MAC of many": ([bridge(ipam=V4)], {"runtime": {"mac": "01:00:00:00:00:01"}}),
    "a sysctl that is not the pod's": (
        [bridge(ipam=V4), {"type": "tuning", "sysctl": {"kernel.hostname": "x"}}],
        {},
    ),
    "a sysctl that is not there": (
        [bridge(ipam=V4), {"type": "tuning", "sysctl": {"net.ipv4.nothing": "1"}}],
        {},
    ),
    "a route through nowhere": (
        [bridge(isGateway=True, ipam={**V4, "routes": [{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]})],
        {},
    ),
}


@pytest.mark.parametrize(("plugins", "arguments"), REFUSALS.values(), ids=REFUSALS)
def test_the_same_refusals(reference, ours, make_namespace, plugins, arguments):
    """Of two pods at most the first is attached; what it has and the second would need is refused in both."""
    for side in (reference, ours):
        with pytest.raises(side.error):
            _attach_two(side, plugins, arguments, make_namespace)


ONLY_OURS = {
    "a port leads to one pod; with the reference the first one wins until it is deleted": (
        [bridge(isGateway=True, ipam=V4), PORTMAP],
        {"runtime": PORTS},
    ),
    "a routed pod has no neighbours to route through; with the reference the packets are lost": (
        [ptp(ipam={**V4, "routes": [{"dst": "10.7.0.0/16", "gw": "10.1.0.9"}]})],
        {},
    ),
    "a mapping that leads nowhere is no success": (
        [bridge(isGateway=True, ipam=V4), PORTMAP],
        {"runtime": {"portMappings": [{**PORTS["portMappings"][0], "hostIP": "2001:db8::1"}]}},
    ),
}


@pytest.mark.parametrize(("plugins", "arguments"), ONLY_OURS.values(), ids=ONLY_OURS)
def test_what_only_we_refuse(reference, ours, make_namespace, plugins, arguments):
    _attach_two(reference, plugins, arguments, make_namespace)
    with pytest.raises(ours.error):
        _attach_two(ours, plugins, arguments, make_namespace)


def test_a_gateway_in_two_subnets_of_a_family_which_the_reference_refuses(reference, ours, make_namespace):
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]
    plugins = [bridge(isGateway=True, ipam={"type": "host-local", "ranges": ranges})]
    with pytest.raises(reference.error, match="already has an IP address"):
        _attach_two(reference, plugins, {}, make_namespace)
    _attach_two(ours, plugins, {}, make_namespace)


def _attach_two(side, plugins, arguments, make_namespace):
    """Attach two pods, or one twice."""
    network, runtime = Case(plugins).network, arguments.get("runtime", {})
    pods = {"first": make_namespace(), "second": make_namespace()}
    for name in ("first", "first" if arguments.get("again") else "second"):
        side.add(network, name, pods[name], runtime=runtime)


def _life(side, case, network, make_namespace):
    """Attach pods and detach them, twice; return all that is to be seen on the way."""
    pods = {f"pod{number}": make_namespace() for number in range(case.pods)}
    told, results = {}, {}
    for name, pod in pods.items():
        results[name] = side.add(network, name, pod, runtime=case.runtime, args=case.args)
        told |= _seen(f"added {name}", side, pods, results)
    for name, pod in pods.items():
        told[f"result {name}"] = json.loads(json.dumps(results[name]).replace(side.path_of(pod), name))
    for name, pod in pods.items():
        for _ in range(2):
            side.delete(network, name, pod, results[name], runtime=case.runtime, args=case.args)
        told |= _seen(f"deleted {name}", side, pods, results)
    return told


def _seen(when, side, pods, results):
    """What the kernel shows of the host and the pods, with the same names for the host's ends."""
    names = {
        interface["name"]: f"end-of-{name}"
        for name, result in results.items()
        for interface in result.get("interfaces", ())
        if not interface.get("sandbox") and interface["name"] != "br7"
    }
    stacks = {"host": side.host, **pods}
    return {f"{when}: {name}": _state(stack, names) for name, stack in stacks.items()}


def _state(stack, names):
    def ip(*words):
        command = ["ip", "-j", "-d", *words]
        text = stack.run(lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for name, known in names.items():
            text = text.replace(name, known)
        return json.loads(text or "[]")

    def sysctl(name):
        return stack.run(lambda: Path("/proc/sys/net", name).read_text().strip())

    return {
        "links": {link["ifname"]: _link(link) for link in ip("addr")},
        "routes": {
            f"{route['dst']} on {route['dev']}": {
                key: value for key, value in route.items() if key != "flags"
            }
            for version in ("-4", "-6")
            for route in ip(version, "route")
            if not route["dst"].startswith("fe80:")
        },
        "forwarding": [sysctl("ipv4/ip_forward"), sysctl("ipv6/conf/all/forwarding")],
        "martians": sysctl("ipv4/conf/all/log_martians"),
    }


def _link(link):
    port = link.get("linkinfo", {}).get("info_slave_data", {})
    return {
        "mac": link["address"],
        "mtu": link["mtu"],
        "kind": link.get("linkinfo", {}).get("info_kind"),
        "flags": {flag: flag in link["flags"] for flag in ("UP", "PROMISC", "ALLMULTI")},
        "master": link.get("master"),
        "port": {key: port.get(key) for key in ("hairpin", "isolated")},
        "addresses": {
            f"{one['local']}/{one['prefixlen']}": {
                key: one.get(key) for key in ("scope", "broadcast", "label")
            }
            for one in link["addr_info"]
            if not one["local"].startswith("fe80:")
        },
    }


def _differences(path, there, here):
    """Yield the path of every leaf that differs, with both values."""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            yield from _differences(f"{path}.{key}" if path else f"{key}", there.get(key), here.get(key))
    elif there != here:
        yield path, (there, here)
