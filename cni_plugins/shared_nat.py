"""One network's translations, shared by all configurations that it has had.

A network's name stays while its configuration changes, and so do the kernel's objects, which are called after it. A plugin
of one configuration restores only what that one is for (`Request.ours`), and the others' must not vanish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from cni_plugins.nat import HostPort, Masquerade, Nat
from cni_plugins.steps import all_of
from cni_plugins.types import Address


class SharedNat:
    """`Nat` over a system's own, which gathers what several plugins restore and hands it on as one."""

    def __init__(self, nat: Nat) -> None:
        self._nat = nat
        self._gathering = threading.Lock()
        self._ports: dict[str, Sequence[HostPort]] = {}
        self._masquerades: dict[str, Masquerade] = {}

    @contextmanager
    def gathered(self) -> Iterator[Callable[[], None]]:
        """While this is open, restoring only gathers; at its end the kernel is made to be like all of it.

        Unless the function that it gives was called: not all is known then.
        """
        incomplete: list[bool] = []
        with self._gathering:
            self._ports, self._masquerades = {}, {}
            yield lambda: incomplete.append(True)
            if not incomplete:
                all_of(
                    [
                        partial(self._nat.restore_ports, self._ports),
                        partial(self._nat.restore_masquerades, self._masquerades),
                    ]
                )

    def publish(self, owner: str, ports: Sequence[HostPort]) -> None:
        """See `nat.Nat`."""
        self._nat.publish(owner, ports)

    def withdraw(self, owner: str) -> None:
        """See `nat.Nat`."""
        self._nat.withdraw(owner)

    def masquerade(self, owner: str, wanted: Masquerade) -> None:
        """See `nat.Nat`."""
        self._nat.masquerade(owner, wanted)

    def unmasquerade(self, owner: str) -> None:
        """See `nat.Nat`."""
        self._nat.unmasquerade(owner)

    def restore_ports(self, wanted: Mapping[str, Sequence[HostPort]]) -> None:
        """Gather host ports; see `gathered`."""
        self._ports |= wanted

    def restore_masquerades(self, wanted: Mapping[str, Masquerade]) -> None:
        """Gather masquerading; see `gathered`."""
        self._masquerades |= wanted

    def kill_states(self, addresses: Sequence[Address]) -> None:
        """See `nat.Nat`."""
        self._nat.kill_states(addresses)

    def missing(self, owner: str) -> list[str]:
        """See `nat.Nat`."""
        return self._nat.missing(owner)

    def lost(self) -> list[str]:
        """See `nat.Nat`."""
        return self._nat.lost()

    def problems(self) -> list[str]:
        """See `nat.Nat`."""
        return self._nat.problems()
