"""This checkout's own daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nodekit import places
from nodekit.endpoint import Endpoint
from nodekit.processes import Daemon

_CONFIG = """\
state_dir = "{base}/state"
runtime_dir = "{base}/run"
socket = "{socket}"

[registries."*"]
mirrors = ["{mirror}"]

[network]
bridge = "crijails0"
subnets = ["10.214.0.0/16"]
"""


class CriJails(Endpoint):
    """`python -m cri serve` of the checkout, with the interpreter that runs this."""

    name = "cri-jails"

    def spawn(self) -> Daemon:
        """Start the daemon with every registry mirrored and pods on its built-in bridge network."""
        config = self.base / "cri-jails.toml"
        config.write_text(_CONFIG.format(base=self.base, socket=self.socket, mirror=self.mirror))
        argv: list[str | Path] = [sys.executable, "-m", "cri", "serve", "--config", config]
        return Daemon(self.name, argv, self.log, cwd=places.CHECKOUT, env=self._environment())

    @staticmethod
    def _environment() -> dict[str, str]:
        # Settings come from the file alone: the daemon would take, or refuse, any CRI_JAILS_ variable.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CRI_JAILS_")}
        path = [str(places.CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return kept | {"PYTHONPATH": os.pathsep.join(path)}
