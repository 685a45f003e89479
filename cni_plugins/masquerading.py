"""Masquerading as a part of a plugin: `masquerade` is nothing else, `bridge` and `ptp` have it as `ipMasq`.

Both in one list would translate a pod's addresses twice, and one of them without the other's exceptions: `refuse_two`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv4Network, IPv6Network

from cni_plugins.errors import ConfigurationError
from cni_plugins.nat import Masquerade
from cni_plugins.plugin import Context, Request
from cni_plugins.settings import Settings
from cni_plugins.types import Network, Result

MULTICAST: tuple[Network, ...] = (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8"))
"""What pods send to a group stays their own: a neighbour that hears it must know whom to answer."""


class Masquerading:
    """Translates pods' addresses to the node's, on what leaves for anywhere but their own subnets, groups and exceptions."""

    def __init__(
        self, context: Context, exceptions: Sequence[Network] = (), versions: Collection[int] = (4, 6)
    ) -> None:
        self._context = context
        self._exceptions = tuple(exceptions)
        self._versions = versions

    def add(self, request: Request, result: Result) -> None:
        """Translate the addresses of a result, if there are any. Raises KernelError."""
        wanted = self.wanted(result)
        if wanted is not None:
            self._context.nat().masquerade(request.owner, wanted)

    def delete(self, request: Request) -> None:
        """Stop, and cut the pod's connections: their answers must not reach the next one that has its address."""
        nat = self._context.nat()
        nat.unmasquerade(request.owner)
        wanted = self.wanted(request.previous)
        if wanted is not None:
            nat.kill_states(wanted.addresses)

    def gc(self, requests: Sequence[Request]) -> None:
        """Translate the addresses of all these, and no others."""
        wanted = {request.owner: self.wanted(request.previous) for request in requests}
        self._context.nat().restore_masquerades({owner: one for owner, one in wanted.items() if one})

    def status(self) -> list[str]:
        """Return what keeps translations from taking effect."""
        return self._context.nat().problems()

    def wanted(self, result: Result) -> Masquerade | None:
        """Return what is to be translated for a pod; None if nothing is."""
        ours = [
            ip.address
            for ip in result.ips
            if ip.address.version in self._versions
            and (
                ip.interface is None
                or ip.interface >= len(result.interfaces)
                or result.interfaces[ip.interface].sandbox
            )
        ]
        if not ours:
            return None
        families = {address.version for address in ours}
        exceptions = dict.fromkeys(
            (*(address.network for address in ours), *MULTICAST, *self._exceptions), None
        )
        return Masquerade(
            tuple(address.ip for address in ours), tuple(one for one in exceptions if one.version in families)
        )


def refuse_two(plugins: Sequence[Settings]) -> None:
    """Raise ConfigurationError if more than one plugin of a list masquerades."""
    found = [each for each in plugins if each.type == "masquerade" or each.boolean("ipMasq")]
    if len(found) > 1:
        raise ConfigurationError(
            f"{found[1].where} and {found[0].where} both masquerade; remove one of them, or its ipMasq"
        )
