"""THE SEAM: limits on what an interface of the host lets pass. Linux alone has it (`linux/traffic.py`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cni_plugins.errors import ConfigurationError
from cni_plugins.rtnetlink import Link
from cni_plugins.types import SocketSource

WHY_NOT = (
    "nothing limits the bandwidth of pods on this system: dummynet(4) takes only packets that a rule of pf(4) or "
    "ipfw(4) hands to it, and the rulesets are the operator's. Remove the plugin bandwidth from the configuration, "
    "and limit with dnpipe in pf.conf(5)"
)
_MOST_BYTES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate in bits per second, and how many bits may come at once. Raises ConfigurationError."""

    rate: int
    burst: int

    def __post_init__(self) -> None:
        if self.rate < 8 or not 0 < self.burst // 8 <= _MOST_BYTES:
            raise ConfigurationError(
                f"a limit of {self.rate} bits per second with bursts of {self.burst} bits cannot be kept; "
                "give a rate of at least 8, and a burst from 8 bits to 4 GiB"
            )


class Traffic(Protocol):
    """The limits in a host's network stack. Every method blocks and raises KernelError."""

    def limit(self, name: str, *, departures: Limit | None, arrivals: Limit | None, ifb: str) -> Link | None:
        """Limit what leaves an interface and what arrives at it; a second time, change the limits.

        What arrives goes by way of a device called `ifb`, which is made and returned. Raises NotAttachedError without
        the interface, ConfigurationError if something else is called `ifb`.
        """

    def unlimit(self, name: str) -> None:
        """Take an interface's limits away, but for the ifb; succeeds if it has none, or is gone."""

    def removal(self, ifb: str) -> Callable[[], object] | None:
        """Return what deletes an ifb, and may take its time; None if it is gone.

        It concerns this device alone, though another may have its name by then. What arrives at an interface that leads
        to a deleted one is dropped.
        """

    def faults(self, name: str, *, departures: Limit | None, arrivals: Limit | None, ifb: str) -> list[str]:
        """Return in what an interface differs from what `limit` makes of it."""

    def ifbs(self) -> list[str]:
        """Return the names of all devices that `limit` may have made."""


def for_this_system(host: SocketSource) -> Traffic | None:
    """Return the limits of a host's stack, None on a system that has none: see `WHY_NOT`."""
    if sys.platform == "linux":
        from cni_plugins.linux.traffic import LinuxTraffic  # noqa: PLC0415 - loaded on its own system only

        return LinuxTraffic(host)
    return None
