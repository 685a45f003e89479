"""Limits of a pod's bandwidth, from the annotations that Kubernetes has for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from cni_plugins import Bandwidth
from cri.errors import InvalidArgumentError

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
_LEAST, _MOST = 1_000, 10**15
"""Bits per second; the bounds that Kubernetes has (pkg/util/bandwidth)."""
_BURST = (1 << 31) - 1
"""Bits: as much as tc(8) can say, so that the rate alone decides; what containerd and CRI-O give, too."""

_QUANTITY = re.compile(
    r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][+-]?[0-9]{1,2})|(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?)"
)
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001")}
_SUFFIXES |= {name: Decimal(1000) ** power for power, name in enumerate("kMGTPE", start=1)}
_SUFFIXES |= {f"{name}i": Decimal(1024) ** power for power, name in enumerate("KMGTPE", start=1)}


def of(annotations: Mapping[str, str]) -> Bandwidth | None:
    """The limits of a pod, if it has any. Raises InvalidArgumentError, naming the annotation."""
    ingress, egress = _rate(annotations, INGRESS), _rate(annotations, EGRESS)
    if not ingress and not egress:
        return None
    return Bandwidth(ingress, _BURST if ingress else 0, egress, _BURST if egress else 0)


def _rate(annotations: Mapping[str, str], name: str) -> int:
    text = annotations.get(name, "")
    if not text:
        return 0
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            f"annotation {name}: {text!r} is no quantity of bits per second, such as 10M"
        )
    number, exponent, suffix = match.groups()
    rate = int(Decimal(number + (exponent or "")) * _SUFFIXES[suffix or ""])
    if not _LEAST <= rate <= _MOST:
        raise InvalidArgumentError(f"annotation {name}: {text} bits per second are not from 1k to 1P")
    return rate
