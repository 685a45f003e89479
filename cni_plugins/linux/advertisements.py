"""Router advertisements on Linux: what hangs on the pods' side of an interface is nobody's router.

Whoever sends one becomes the default router of all that hear it and listen, so a pod could have the node's IPv6 traffic
led to itself (CVE-2020-10749), and on the same bridge that of its neighbours. The kernel listens by default, on every
interface that is up, so it is told before one is.

Source: Documentation/networking/ip-sysctl.rst, `accept_ra`, `autoconf` and `accept_redirects`.
"""

from __future__ import annotations

from cni_plugins.linux import sysctl
from cni_plugins.rtnetlink import Routes
from cni_plugins.types import SocketSource

_NODE = {"accept_ra": "0", "autoconf": "0", "accept_redirects": "0"}
_LISTENS, _LISTENS_THOUGH_IT_FORWARDS = "1", "2"


def ignored_by_node(host: SocketSource, *names: str) -> None:
    """Have interfaces of the node take no router advertisements and no redirects; one that is gone is passed over.

    Raises KernelError.
    """
    sysctl.settle(host, {_parameter(name, key): value for name in names for key, value in _NODE.items()})


def ignored_by_pod(stack: SocketSource, name: str) -> None:
    """Have a pod's interface take none, unless somebody has asked for it in that very stack. Raises KernelError."""
    sysctl.settle(stack, {_parameter(name, "accept_ra"): "0"}, instead_of=_LISTENS)


def keep_advertised_routes(host: SocketSource) -> None:
    """Let interfaces that lead the node to its router by an advertisement go on listening when it forwards.

    Else the kernel takes those routes away. No others: what listens only as long as the node is no router has its reason.
    Raises KernelError.
    """
    with Routes.of(host) as routes:
        advertised = routes.advertised_ways()
        names = [link.name for link in routes.links() if link.index in advertised]
    wanted = {_parameter(name, "accept_ra"): _LISTENS_THOUGH_IT_FORWARDS for name in names}
    sysctl.settle(host, wanted, instead_of=_LISTENS)


def _parameter(name: str, key: str) -> str:
    return f"net/ipv6/conf/{name}/{key}"
