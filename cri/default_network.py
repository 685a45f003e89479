"""The network that pods have where the operator has configured none: a bridge with NAT, in the words of CNI."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Sequence
from typing import Any

from cni_plugins import ConfigurationError, NetworkList
from cni_plugins.types import CNI_VERSION
from cri.config import NetworkConfig

_LEAST_ADDRESSES = 4
"""The network's, the gateway's, a pod's, and for IPv4 that of broadcasts."""
_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def render(config: NetworkConfig, subnets: Sequence[str]) -> NetworkList:
    """Return the network for a prefix per address family. Raises ConfigurationError for one without room for a pod."""
    networks = [ipaddress.ip_network(subnet) for subnet in subnets]
    for network in networks:
        if network.num_addresses < _LEAST_ADDRESSES:
            raise ConfigurationError(
                f"subnet {network} has no room for a gateway and a pod; take a shorter prefix"
            )
    plugins: list[dict[str, Any]] = [
        {
            "type": "bridge",
            "bridge": config.bridge,
            "isGateway": True,
            "hairpinMode": True,  # a pod that calls its own host port; Linux needs it where bridges pass netfilter
            "mtu": config.mtu,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}] for subnet in subnets],
                "routes": [{"dst": _ANYWHERE[network.version]} for network in networks],
            },
        }
    ]
    if config.masquerade:
        plugins.append({"type": "masquerade", "nonMasqueradeCIDRs": [*subnets, *config.cluster]})
    plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    if sys.platform == "linux":  # pf and dummynet limit by rules of the operator's own
        plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    return NetworkList.from_json(
        {"name": config.bridge, "cniVersion": CNI_VERSION, "plugins": plugins}, "the network of [network]"
    )
