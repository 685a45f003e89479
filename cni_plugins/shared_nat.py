"""One network's translations, shared by all configurations that it has had.

A network's name stays while its configuration changes, and so do the kernel's objects, which are called after it. A plugin
of one configuration knows only what that one is for; when it restores, the others' must not vanish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from cni_plugins.nat import HostPort, Inspectable, Masquerade, Nat
from cni_plugins.steps import all_of
from cni_plugins.types import Address

_Wanted = TypeVar("_Wanted")


class SharedNat:
    """`Nat` over a system's own, which gathers what several plugins restore and hands it on as one."""

    def __init__(self, nat: Nat) -> None:
        self._nat = nat
        self._gathering = threading.Lock()
        self._owners: Collection[str] = ()
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

    @contextmanager
    def of(self, owners: Collection[str]) -> Iterator[None]:
        """While this is open, what is restored for others than these owners does not count."""
        self._owners = owners
        try:
            yield
        finally:
            self._owners = ()

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
        self._ports |= self._ours(wanted)

    def restore_masquerades(self, wanted: Mapping[str, Masquerade]) -> None:
        """Gather masquerading; see `gathered`."""
        self._masquerades |= self._ours(wanted)

    def kill_states(self, addresses: Sequence[Address]) -> None:
        """See `nat.Nat`."""
        self._nat.kill_states(addresses)

    def missing(self, owner: str) -> list[str]:
        """See `nat.Inspectable`; nothing, where that is not known."""
        return self._nat.missing(owner) if isinstance(self._nat, Inspectable) else []

    def problems(self) -> list[str]:
        """See `nat.Nat`."""
        return self._nat.problems()

    def _ours(self, wanted: Mapping[str, _Wanted]) -> dict[str, _Wanted]:
        # A plugin may add a word of its own after the owner's name, which has no blank.
        return {key: value for key, value in wanted.items() if key.split(" ", 1)[0] in self._owners}
