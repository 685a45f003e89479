"""CNI's bridge plugin: every pod has one interface whose other end is in a bridge on the host.

An attachment is found again by its name alone: the host's interface is called after a hash of the bridge and
the attachment, so nothing need be remembered to delete it, and what nobody owns can be told from what is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_interface, ip_network

from cni_plugins.errors import (
    AttachmentBrokenError,
    ConfigurationError,
    ForeignInterfaceError,
    NetworkError,
    NotAttachedError,
)
from cni_plugins.links import Links, Pair, for_this_system
from cni_plugins.rtnetlink import Link
from cni_plugins.types import (
    Address,
    Interface,
    InterfaceAddress,
    IPConfig,
    Network,
    NetworkStack,
    OwnStack,
    Result,
    Route,
    SocketSource,
    default_gateway,
)

INTERFACE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ is 16 with the final zero
_HASH_DIGITS = 11
_LEAST_MTU = {4: 68, 6: 1280}  # RFC 791, RFC 8200


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """A bridge, its subnets (one per address family at most) and how pods hang on it.

    `gateways` are the bridge's own addresses, by default the first usable one of each subnet. `mtu` is in
    bytes. `isolate` keeps pods from each other; they reach the gateway only. Host interfaces are called
    `interface_prefix` and 11 hex digits. Raises ConfigurationError.
    """

    name: str
    subnets: tuple[Network, ...]
    gateways: tuple[Address, ...] = ()
    mtu: int = 1500
    isolate: bool = False
    interface_prefix: str = "pod"

    def __post_init__(self) -> None:
        for name in (self.name, self.interface_prefix + "0" * _HASH_DIGITS):
            if not INTERFACE_NAME.fullmatch(name):
                raise ConfigurationError(
                    f"bridge {self.name}: {name!r} is no interface name of at most 15 characters"
                )
        if not self.subnets or len({subnet.version for subnet in self.subnets}) != len(self.subnets):
            raise ConfigurationError(f"bridge {self.name}: give one subnet per address family, at least one")
        least = max(_LEAST_MTU[subnet.version] for subnet in self.subnets)
        if not least <= self.mtu <= 65535:
            raise ConfigurationError(f"bridge {self.name}: mtu {self.mtu} is not from {least} to 65535 bytes")
        for gateway in self.gateways:
            if not any(gateway in subnet for subnet in self.subnets):
                raise ConfigurationError(f"bridge {self.name}: gateway {gateway} is in none of its subnets")
        for subnet in self.subnets:
            self.gateway(subnet)

    def gateway(self, subnet: Network) -> Address:
        """Return the bridge's own address in one of its subnets."""
        return next((gateway for gateway in self.gateways if gateway in subnet), None) or default_gateway(
            subnet
        )

    def gateway_for(self, address: InterfaceAddress) -> Address:
        """Return the gateway of a pod's address; ConfigurationError if it is in no subnet of the bridge."""
        for subnet in self.subnets:
            if address.network == subnet:
                if address.ip == self.gateway(subnet):
                    break
                return self.gateway(subnet)
        subnets = ", ".join(map(str, self.subnets))
        raise ConfigurationError(
            f"bridge {self.name}: {address} is no pod's address in {subnets}; take one from this bridge's allocator"
        )


class Bridge:
    """A bridge on the host and the pods on it.

    `host` is the stack that the bridge is in, by default the caller's own. Every call blocks for as long as
    the kernel needs (adding takes two or three milliseconds, deleting waits for a grace period of the kernel's, tens
    of milliseconds, which calls made at the same time share), so an asyncio program makes it in a thread. Several threads may call at once: every call
    opens sockets of its own, and the object never changes. Every method may raise KernelError.
    """

    def __init__(self, config: BridgeConfig, host: SocketSource | None = None) -> None:
        self.config = config
        self._links: Links = for_this_system(host if host is not None else OwnStack())

    def exists(self) -> bool:
        """Say whether the bridge is there."""
        return self._links.find(self.config.name) is not None

    def ensure(self) -> None:
        """Make the bridge if need be, give it the gateways' addresses, bring it up. May be repeated.

        Other addresses that it has are left alone. Raises ForeignInterfaceError if its name is taken by
        something that is no bridge.
        """
        name = self.config.name
        link = self._links.find(name)
        if link is None:
            self._links.make_bridge(name, _mac("bridge", name), self.config.mtu)
            link = self._links.find(name)
        if link is None or not self._links.is_bridge(link):
            raise ForeignInterfaceError(
                f"interface {name} is no bridge; rename or remove it, or configure another name for the pods' bridge"
            )
        gateways = [_with_prefix(self.config.gateway(subnet), subnet) for subnet in self.config.subnets]
        self._links.prepare_bridge(name, self.config.mtu, gateways)

    def add(
        self,
        attachment: str,
        stack: NetworkStack,
        ifname: str = "eth0",
        *,
        addresses: Sequence[InterfaceAddress],
    ) -> Result:
        """Give a pod an interface with addresses on the bridge, and default routes to its gateways.

        All or nothing: whatever fails, what was made before is undone. Raises ConfigurationError for an address
        or name that cannot work, AttachmentExistsError if the attachment or an interface of that name is there,
        NotAttachedError without the bridge.
        """
        if not INTERFACE_NAME.fullmatch(ifname):
            raise ConfigurationError(f"{ifname!r} is no interface name of at most 15 characters")
        gateways = [self.config.gateway_for(address) for address in addresses]
        pair = self._pair(attachment, ifname)
        self._links.make_pair(pair, stack)
        try:
            self._links.configure_pod_end(ifname, stack, addresses, gateways)
        except BaseException as error:
            self._undo(pair, error)
            raise
        pod = 2
        return Result(
            interfaces=(
                Interface(self.config.name, _mac("bridge", self.config.name)),
                Interface(pair.host_name, pair.host_mac),
                Interface(pair.pod_name, pair.pod_mac, sandbox=attachment),
            ),
            ips=tuple(IPConfig(*both, interface=pod) for both in zip(addresses, gateways, strict=True)),
            routes=tuple(Route(_default_route(gateway), gateway) for gateway in gateways),
        )

    def delete(self, attachment: str) -> None:
        """Remove an attachment: both ends, addresses and routes. Succeeds if it, or the whole pod, is gone."""
        self._links.delete(self.host_interface(attachment))

    def disconnect(self, attachment: str) -> None:
        """Take an attachment off the network at once; succeeds if it is gone.

        Unlike `delete` this takes well under a millisecond. The interfaces are still there, dead, until the
        pod's network stack ends (Linux then deletes them by itself) or `delete` is called; one of both must
        follow. The pod's addresses may be given away as soon as this returns.
        """
        self._links.disconnect(self.host_interface(attachment))

    def check(
        self,
        attachment: str,
        stack: NetworkStack,
        ifname: str = "eth0",
        *,
        addresses: Sequence[InterfaceAddress] = (),
    ) -> None:
        """Compare an attachment with what `add` makes; `addresses` are those that it must have at least.

        Raises NotAttachedError if the host's or the pod's end is gone, AttachmentBrokenError with all that is
        wrong.
        """
        pair = self._pair(attachment, ifname)
        host = self._links.find(pair.host_name)
        pod = self._links.pod_state(ifname, stack)
        if host is None or pod is None:
            missing = f"{pair.host_name} on the host" if host is None else f"{ifname} in the pod"
            raise NotAttachedError(
                f"attachment {attachment}: no interface {missing}; delete and add it again"
            )
        link, present, gateways = pod
        faults = [
            *self._faults(pair.host_name, pair.host_mac, host),
            *self._faults(ifname, link=link, mac=pair.pod_mac),
        ]
        bridge = self._links.find(self.config.name)
        if bridge is None or host.master != bridge.index:
            faults.append(f"{pair.host_name} is not in bridge {self.config.name}")
        faults += [f"{ifname} lacks address {address}" for address in addresses if address not in present]
        wanted = {self.config.gateway_for(address) for address in addresses}
        faults += [
            f"{ifname} lacks the default route via {gateway}" for gateway in wanted.difference(gateways)
        ]
        if faults:
            raise AttachmentBrokenError(
                f"attachment {attachment}: {'; '.join(faults)}; delete and add it again"
            )

    def attachments(self) -> set[str]:
        """Return the host interfaces of all attachments, also of those whose owner is forgotten.

        Compare with `host_interface` of what should be there, and hand the rest to `delete_interface`.
        """
        bridge = self._links.find(self.config.name)
        # What is in no bridge was disconnected. (It may be another bridge's if both have one prefix: give each
        # its own.)
        masters = {0, bridge.index} if bridge else {0}
        ours = re.compile(re.escape(self.config.interface_prefix) + f"[0-9a-f]{{{_HASH_DIGITS}}}")
        return {
            link.name for link in self._links.all() if link.master in masters and ours.fullmatch(link.name)
        }

    def strays(self) -> set[str]:
        """Return the host interfaces that were disconnected and not deleted: what a crash in between leaves."""
        ours = re.compile(re.escape(self.config.interface_prefix) + f"[0-9a-f]{{{_HASH_DIGITS}}}")
        return {link.name for link in self._links.all() if not link.master and ours.fullmatch(link.name)}

    def delete_interface(self, name: str) -> None:
        """Remove an attachment by its host interface, as `attachments` returns it; succeeds if it is gone."""
        self._links.delete(name)

    def host_interface(self, attachment: str) -> str:
        """Return the name of an attachment's interface on the host."""
        return self.config.interface_prefix + _digest(self.config.name, attachment).hex()[:_HASH_DIGITS]

    def remove(self) -> bool:
        """Delete the bridge unless it has members; return whether it is gone.

        Raises ForeignInterfaceError if its name is taken by something that is no bridge.
        """
        link = self._links.find(self.config.name)
        if link is None:
            return True
        if not self._links.is_bridge(link):
            raise ForeignInterfaceError(f"interface {self.config.name} is no bridge; it is left alone")
        if any(member.master == link.index for member in self._links.all()):
            return False
        self._links.delete(self.config.name)
        return True

    def _pair(self, attachment: str, ifname: str) -> Pair:
        return Pair(
            bridge=self.config.name,
            host_name=self.host_interface(attachment),
            host_mac=_mac("host", self.config.name, attachment),
            pod_name=ifname,
            pod_mac=_mac("pod", self.config.name, attachment),
            mtu=self.config.mtu,
            isolated=self.config.isolate,
        )

    def _undo(self, pair: Pair, error: BaseException) -> None:
        """Delete a pair because of an error, which stays the one that the caller hears of."""
        try:
            self._links.delete(pair.host_name)
        except NetworkError as second:
            error.add_note(f"and the undo failed: {second}")

    def _faults(self, name: str, mac: str, link: Link) -> list[str]:
        faults = []
        if not link.up:
            faults.append(f"{name} is down")
        if link.mac != mac:
            faults.append(f"{name} has the MAC {link.mac}, not {mac}")
        if link.mtu != self.config.mtu:
            faults.append(f"{name} has the MTU {link.mtu}, not {self.config.mtu}")
        return faults


def _digest(*words: str) -> bytes:
    return sha256("\0".join(words).encode(errors="surrogateescape")).digest()


def _mac(*words: str) -> str:
    """Return a MAC that depends on nothing but the words: 46 bits of hash, locally administered, unicast.

    Left to itself the kernel takes random ones (Linux), so a neighbour's cache is wrong after a restart, or
    ones that collide (FreeBSD before 15 and after, PR 184149).
    """
    first, *rest = _digest(*words)[:6]
    return bytes([first & 0xFC | 0x02, *rest]).hex(":")


def _with_prefix(address: Address, subnet: Network) -> InterfaceAddress:
    return ip_interface((address, subnet.prefixlen))


def _default_route(gateway: Address) -> Network:
    return ip_network("::/0" if gateway.version == 6 else "0.0.0.0/0")
