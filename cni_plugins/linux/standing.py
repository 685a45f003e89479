"""Sockets to netfilter that stay open.

To close one waits for a grace period of the kernel's, some ten milliseconds, whenever nf_tables has something to free
(nft_rcv_nl_event in net/netfilter/nf_tables_api.c), and so would every change that removes anything.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from cni_plugins.errors import KernelError
from cni_plugins.netlink.client import Client, UnansweredError

_AnyClient = TypeVar("_AnyClient", bound=Client)


class Standing(Generic[_AnyClient]):
    """Clients that are made when needed, each lent to one thread at a time, and closed when this object goes."""

    def __init__(self, make: Callable[[], _AnyClient]) -> None:
        self._make = make
        self._idle: list[_AnyClient] = []
        weakref.finalize(self, _close, self._idle)

    @contextmanager
    def lent(self) -> Iterator[_AnyClient]:
        """Lend a client, which nobody else has to wait for. One whose next answer is unsure after a failure is closed."""
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._make()
        try:
            yield client
        except BaseException as error:
            if isinstance(error, UnansweredError) or not isinstance(error, KernelError):
                client.close()
            else:
                self._idle.append(client)
            raise
        self._idle.append(client)


def _close(clients: list[_AnyClient]) -> None:
    for client in clients:
        client.close()
