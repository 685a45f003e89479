"""Masquerading with exceptions: what leaves the cluster has the node's address, and what stays keeps the pod's.

    {"type": "masquerade", "nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8"], "ipv6": false}

The pod's own subnets and multicast are exceptions always. `ipv4` and `ipv6`, both true unless told otherwise, are the
families that are translated. Not together with `ipMasq` of another plugin in the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import ClassVar

from cni_plugins.errors import ConfigurationError
from cni_plugins.masquerading import Masquerading
from cni_plugins.plugin import Context, Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import Network, Result


class MasqueradePlugin(Plugin):
    """Source translation over the network's address translation."""

    type: ClassVar[str] = "masquerade"

    def __init__(self, settings: Settings, context: Context) -> None:
        self._where = settings.where
        versions = [
            version for version, key in ((4, "ipv4"), (6, "ipv6")) if settings.boolean(key, default=True)
        ]
        self._masquerading = Masquerading(context, _exceptions(settings), versions)

    def add(self, request: Request) -> Result:
        """Translate the pod's addresses. Raises ConfigurationError if nobody has given it any, KernelError."""
        if not request.previous.ips:
            raise ConfigurationError(
                f"{self._where}: the pod has no address yet; put it after the plugin that gives it one"
            )
        self._masquerading.add(request, request.previous)
        return request.previous

    def delete(self, request: Request) -> None:
        """Stop translating, and cut the pod's connections."""
        self._masquerading.delete(request)

    def gc(self, requests: Sequence[Request]) -> None:
        """Translate the addresses of all these, and no others."""
        self._masquerading.gc(requests)

    def status(self) -> list[str]:
        """Return what keeps translations from taking effect."""
        return self._masquerading.status()


def _exceptions(settings: Settings) -> list[Network]:
    key = "nonMasqueradeCIDRs"
    try:
        return [ip_network(text, strict=False) for text in settings.texts(key)]
    except ValueError as error:
        raise settings.wrong(key, f"a list of subnets such as 10.0.0.0/8 ({error})") from error
