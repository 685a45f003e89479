"""THE STEP that a runtime fills in to be put on trial: start an endpoint on private directories."""

from __future__ import annotations

import abc
import socket
from pathlib import Path

from nodekit.processes import CommandError, Daemon, run

REMOVE_SECONDS = 180


class Endpoint(abc.ABC):
    """A CRI endpoint of our own, whose whole state is below one directory.

    BASE must be short: a unix socket's path has about 100 bytes. MIRROR is the base URL of the registry
    that stands for every other one; CRICTL the client that removes the pods at the end.
    """

    name: str

    def __init__(self, base: Path, mirror: str, crictl: Path) -> None:
        self.base = base
        self.mirror = mirror
        self.socket = base / "cri.sock"
        self.log = base / "daemon.log"
        self._crictl = crictl
        self._daemon: Daemon | None = None
        base.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """The endpoint as the kubelet and crictl write it."""
        return f"unix://{self.socket}"

    @abc.abstractmethod
    def spawn(self) -> Daemon:
        """Write the configuration and start the daemon; it need not answer yet."""

    def start(self) -> None:
        """Start the daemon and wait until it answers.

        Raises:
            CommandError: if it does not; shows the end of its log.

        """
        self._daemon = self.spawn()
        self._daemon.wait_until(self._listens)
        self.crictl("version")

    def crictl(self, *arguments: str, seconds: float = 60) -> str:
        """Return what crictl prints when asked about this endpoint."""
        options = ("-r", self.address, "-i", self.address, "-t", "60s")
        return run(self._crictl, *options, *arguments, seconds=seconds)

    def stop(self) -> None:
        """Remove all pods, then end the daemon: it would leave the containers running."""
        if self._daemon is None:
            return
        try:
            self.crictl("rmp", "--all", "--force", seconds=REMOVE_SECONDS)
        except CommandError as error:
            print(f"{self.name}: pods could not be removed: {error}")
        finally:
            self._daemon.stop()
            self._daemon = None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True
