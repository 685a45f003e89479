"""Container logs as the kubelet handles them: rotation, and what `kubectl logs` makes of the files.

Source: kubernetes v1.36.0, pkg/kubelet/logs/container_log_manager.go.
"""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc

from cri.api.runtime import v1
from tests.kubelet.client import Runtime

COMPRESSED = ".gz"


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a container has printed, put together of its pieces."""

    nanoseconds: int
    """Since the epoch; of its first piece."""
    stream: str
    text: str


def read(path: Path) -> list[Line]:
    """The lines of a log file, compressed or not. Raises ValueError for what is not the CRI's format."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == COMPRESSED else path.read_bytes()
    found: list[Line] = []
    pieces: dict[str, Line] = {}
    for raw in data.decode().splitlines():
        stamp, stream, tag, text = raw.split(" ", 3)
        if stream not in ("stdout", "stderr") or tag not in ("P", "F"):
            raise ValueError(f"{path}: no line of a log: {raw!r}")
        begun = pieces.pop(stream, Line(nanoseconds(stamp), stream, ""))
        line = Line(begun.nanoseconds, stream, begun.text + text)
        if tag == "P":
            pieces[stream] = line
        else:
            found.append(line)
    return found + list(pieces.values())


def read_all(log: Path) -> list[Line]:
    """The lines of a log and of all that were rotated away from it, the oldest first."""
    return [line for path in [*rotated(log), log] for line in read(path)]


def rotated(log: Path) -> list[Path]:
    """The files that were moved away, the oldest first."""
    return sorted(log.parent.glob(f"{log.name}.*"))


def nanoseconds(stamp: str) -> int:
    """A time of RFC 3339 as nanoseconds since the epoch. Raises ValueError if it has no nine digits of them."""
    seconds, _, rest = stamp.partition(".")
    fraction, zone = rest[:9], rest[9:]
    if len(fraction) != 9 or not fraction.isdigit():
        raise ValueError(f"no nanoseconds: {stamp}")
    whole = datetime.fromisoformat(f"{seconds}{zone.replace('Z', '+00:00')}")
    return int(whole.timestamp()) * 1_000_000_000 + int(fraction)


class Rotation:
    """The kubelet's container log manager."""

    def __init__(self, runtime: Runtime, max_size: int = 10 << 20, max_files: int = 5) -> None:
        """A log of `max_size` bytes is rotated; of each container there are `max_files` at most."""
        self._runtime = runtime
        self.max_size = max_size
        self.max_files = max_files

    async def rotate_all(self) -> list[str]:
        """Look at the logs of all running containers once; the ids of those that were rotated."""
        listed = await self._runtime("ListContainers", filter=v1.ContainerFilter())
        return [
            each.id
            for each in listed.containers
            if each.state == v1.ContainerState.CONTAINER_RUNNING and await self._look_at(each.id)
        ]

    async def _look_at(self, container: str) -> bool:
        status = (await self._runtime("ContainerStatus", container_id=container)).status
        log = Path(status.log_path)
        if not log.exists():  # a rotation was cut short
            await self._runtime("ReopenContainerLog", container_id=container)
        if log.stat().st_size < self.max_size:
            return False
        await self._rotate(container, log)
        return True

    async def _rotate(self, container: str, log: Path) -> None:
        kept = rotated(log)
        excess = max(len(kept) - (self.max_files - 2), 0)
        for path in kept[:excess]:
            path.unlink()
        for path in kept[excess:]:
            if path.suffix != COMPRESSED:
                _compress(path)
        # The name has seconds only, and the next one must be another.
        name = log.with_name(f"{log.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        if name.exists() or name.with_name(name.name + COMPRESSED).exists():
            raise FileExistsError(f"{log} was rotated twice in a second")
        log.rename(name)
        try:
            await self._runtime("ReopenContainerLog", container_id=container)
        except grpc.aio.AioRpcError:
            name.rename(log)
            raise


def remove(log: Path) -> None:
    """Remove a log with all that were rotated away from it."""
    for path in [*rotated(log), log]:
        path.unlink(missing_ok=True)


def numbers(lines: Iterable[Line], prefix: str) -> list[int]:
    """N of each line that reads `PREFIX N`."""
    return [int(line.text.removeprefix(prefix)) for line in lines if line.text.startswith(prefix)]


def _compress(path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with path.open("rb") as source, gzip.open(temporary, "wb") as target:
        shutil.copyfileobj(source, target)
    temporary.rename(path.with_name(path.name + COMPRESSED))
    path.unlink()
