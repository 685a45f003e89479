"""Sockets to netfilter that stay open.

To close one waits for a grace period of the kernel's, some ten milliseconds, whenever nf_tables has something to free
(nft_rcv_nl_event in net/netfilter/nf_tables_api.c), and so would every change that removes anything.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from cni_plugins.errors import KernelError
from cni_plugins.netlink.client import Client, UnansweredError

_AnyClient = TypeVar("_AnyClient", bound=Client)


class Standing(Generic[_AnyClient]):
    """A client that is made on first use, lent to one thread at a time, and closed when this object goes."""

    def __init__(self, make: Callable[[], _AnyClient]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._client: _AnyClient | None = None
        self._finalizer: weakref.finalize[[], Standing[_AnyClient]] | None = None

    @contextmanager
    def lent(self) -> Iterator[_AnyClient]:
        """Lend the client. It is replaced after a failure that leaves open what it will hear next."""
        with self._lock:
            if self._client is None:
                self._client = self._make()
                self._finalizer = weakref.finalize(self, self._client.close)
            try:
                yield self._client
            except BaseException as error:
                if isinstance(error, UnansweredError) or not isinstance(error, KernelError):
                    self._drop()
                raise

    def _drop(self) -> None:
        self._client = None
        if self._finalizer is not None:
            self._finalizer()
