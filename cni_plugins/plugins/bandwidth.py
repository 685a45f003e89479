"""CNI's bandwidth plugin: limits on what a pod receives (ingress) and sends (egress).

    {"type": "bandwidth", "capabilities": {"bandwidth": true},
     "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000}

Rates are bits per second, bursts bits; 0 is no limit. The capability `bandwidth` has the same keys, and comes instead of
all of the configuration's. It comes after the plugin that attaches the pod, by a pair whose host end is in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import ClassVar

from cni_plugins import traffic
from cni_plugins.errors import AttachmentBrokenError, ConfigurationError, NetworkError, NotAttachedError
from cni_plugins.plugin import Context, Plugin, Request
from cni_plugins.runtime_config import Bandwidth
from cni_plugins.settings import Settings
from cni_plugins.traffic import Limit, Traffic
from cni_plugins.types import Interface, Result

_PREFIX = "bw"
_NETWORK_DIGITS, _OWNER_DIGITS = 4, 9
_MOST_BURST = 8 * 0xFFFFFFFF + 7


@dataclass(frozen=True, slots=True)
class _Limits:
    """The limits of one pod, as its host end has them: what the pod receives departs there."""

    departures: Limit | None
    arrivals: Limit | None


class BandwidthPlugin(Plugin):
    """Token buckets on the pod's host end, where the system has them; elsewhere `status` says so."""

    type: ClassVar[str] = "bandwidth"
    translates = False

    def __init__(self, settings: Settings, context: Context) -> None:
        self._where = settings.where
        self._context = context
        self._traffic = traffic.for_this_system(context.host)
        for key in ("shapedSubnets", "unshapedSubnets"):
            if settings.texts(key):
                raise ConfigurationError(
                    f"{self._where}: {key}: limits are for all that a pod sends and receives; remove it"
                )
        self._configured = self._limits(
            Bandwidth(
                settings.integer("ingressRate"),
                settings.integer("ingressBurst", most=_MOST_BURST),
                settings.integer("egressRate"),
                settings.integer("egressBurst", most=_MOST_BURST),
            ),
            "",
        )

    def add(self, request: Request) -> Result:
        """Limit the pod, or undo all of it. Raises ConfigurationError, NotAttachedError, KernelError."""
        limits = self._limits_of(request)
        if limits == _Limits(None, None):
            return request.previous
        if self._traffic is None:
            raise ConfigurationError(f"{self._where}: {request.owner}: {traffic.WHY_NOT}")
        host_end, ifb = self._host_end(request), self._ifb(request)
        try:
            device = self._limit(self._traffic, host_end, limits, ifb)
        except BaseException as error:
            try:
                self._traffic.unlimit(host_end)
                self._remove(self._traffic, ifb)
            except NetworkError as second:
                error.add_note(f"and the undo failed: {second}")
            raise
        if device is None:
            return request.previous
        return replace(request.previous, interfaces=(*request.previous.interfaces, device))

    def delete(self, request: Request) -> None:
        """Have the pod's ifb removed. The other limits go with the host end."""
        ifb = self._ifb(request)
        if self._traffic is not None and (removal := self._traffic.removal(ifb)):
            self._context.later(f"deleting ifb {ifb} of {request.owner}", removal)

    def check(self, request: Request) -> None:
        """Compare the limits."""
        limits = self._limits_of(request)
        if self._traffic is None or limits == _Limits(None, None):
            return
        faults = self._traffic.faults(
            self._host_end(request),
            departures=limits.departures,
            arrivals=limits.arrivals,
            ifb=self._ifb(request),
        )
        if faults:
            raise AttachmentBrokenError(
                f"{self._where}: {request.owner}: {'; '.join(faults)}; delete and add it again"
            )

    def gc(self, requests: Sequence[Request]) -> None:
        """Delete the ifbs of this network that belong to nobody; limit those pods anew that have a host end."""
        if self._traffic is None:
            return
        limited = {
            self._ifb(request): (request, self._limits_of(request)) for request in requests if request.ours
        }
        # Whether the pod of another configuration has an ifb is for that one to know.
        wanted = {self._ifb(request) for request in requests if not request.ours} | {
            name for name, (_, limits) in limited.items() if limits.arrivals is not None
        }
        for name in self._traffic.ifbs():
            if name.startswith(self._prefix) and name not in wanted:
                self._remove(self._traffic, name)
        for name, (request, limits) in limited.items():
            if limits != _Limits(None, None):
                try:
                    self._limit(self._traffic, self._host_end(request), limits, name)
                except NotAttachedError:  # whose plugin it is will tell
                    self._remove(self._traffic, name)

    def status(self) -> list[str]:
        """Tell that the system has no limits."""
        return [] if self._traffic is not None else [f"{self._where}: {traffic.WHY_NOT}"]

    @property
    def _prefix(self) -> str:
        """What the names of this network's ifbs begin with, so that no other network takes them for strays."""
        return _PREFIX + _digits(self._context.network, _NETWORK_DIGITS)

    def _ifb(self, request: Request) -> str:
        return self._prefix + _digits(request.owner, _OWNER_DIGITS)

    @staticmethod
    def _limit(system: Traffic, host_end: str, limits: _Limits, ifb: str) -> Interface | None:
        device = system.limit(host_end, departures=limits.departures, arrivals=limits.arrivals, ifb=ifb)
        return Interface(device.name, device.mac, mtu=device.mtu) if device else None

    @staticmethod
    def _remove(system: Traffic, ifb: str) -> None:
        if removal := system.removal(ifb):
            removal()

    def _limits_of(self, request: Request) -> _Limits:
        if request.runtime.bandwidth is None:
            return self._configured
        return self._limits(request.runtime.bandwidth, f" of {request.owner}")

    def _limits(self, given: Bandwidth, whose: str) -> _Limits:
        return _Limits(
            departures=self._limit_of("ingress", given.ingress_rate, given.ingress_burst, whose),
            arrivals=self._limit_of("egress", given.egress_rate, given.egress_burst, whose),
        )

    def _limit_of(self, direction: str, rate: int, burst: int, whose: str) -> Limit | None:
        if not rate and not burst:
            return None
        if not rate or not burst:
            given, missing = ("Rate", "Burst") if rate else ("Burst", "Rate")
            raise ConfigurationError(
                f"{self._where}: {direction}{given}{whose} takes {direction}{missing} beside it; give both, or none"
            )
        try:
            return Limit(rate, burst)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._where}: {direction}{whose}: {error}") from error

    def _host_end(self, request: Request) -> str:
        """Return the host's end of the pod's pair: the one interface of the result that is a veth of the host."""
        named = [one.name for one in request.previous.interfaces if not one.sandbox]
        links = [link for name in named if (link := self._context.links.find(name)) is not None]
        ends = [link.name for link in links if link.kind == "veth"]
        if len(ends) != 1:
            raise NotAttachedError(
                f"{self._where}: {request.owner} has no pair whose host end could be limited, of {named}; put the "
                "plugin after the one that attaches pods by such a pair, as bridge and ptp do"
            )
        return ends[0]


def _digits(word: str, count: int) -> str:
    return sha256(word.encode(errors="surrogateescape")).hexdigest()[:count]
