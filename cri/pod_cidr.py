"""What the kubelet has said last about the pods' addresses: it does not say it again to a new daemon.

It is kept twice, in the network's ledger and in a file, as either may be lost, and pods must not get addresses of another
node then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import structlog

from cni_plugins import Ledger
from cri import config_values

log = structlog.get_logger(__name__)

_NOTE = "podCIDR"
_MOST_BYTES = 1024


class PodCidr:
    """The prefixes that pods get addresses of. Every method blocks."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self._path = path
        self._ledger = ledger

    def read(self) -> tuple[str, ...]:
        """The prefixes that were kept; empty if there are none, or none that can be read. Never raises."""
        places = {"the ledger": self._ledger.noted(_NOTE) or "", str(self._path): self._text()}
        for where, text in places.items():
            if text:
                try:
                    found = config_values.families(text)
                except ValueError as error:
                    log.warning("the kept pod CIDR is passed over", where=where, error=str(error))
                    continue
                if {*places.values()} != {text}:  # one of them was lost
                    self.write(found)
                return found
        return ()

    def write(self, subnets: Sequence[str]) -> None:
        """Keep prefixes. What cannot be written is logged: they count for this daemon all the same."""
        text = ",".join(subnets)
        self._ledger.note(_NOTE, text)
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self._path)
        except OSError as error:
            log.warning("the pod CIDR is not kept", path=str(self._path), error=str(error))

    def _text(self) -> str:
        """What the file has; empty if it is none of ours."""
        try:
            # So that neither a FIFO nor a link can hold us or lead us elsewhere.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        except OSError as error:
            log.warning("the pod CIDR cannot be read", path=str(self._path), error=str(error))
            return ""
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return os.read(descriptor, _MOST_BYTES).decode(errors="replace").strip()
            log.warning("the pod CIDR is in no regular file", path=str(self._path))
        except OSError as error:
            log.warning("the pod CIDR cannot be read", path=str(self._path), error=str(error))
        finally:
            os.close(descriptor)
        return ""
