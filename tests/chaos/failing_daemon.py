"""A daemon on an unreliable kernel: python -m tests.chaos.failing_daemon CONFIG ONE_IN SEED."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cri import cli
from cri.sandbox.warden import spawning
from tests.chaos.injection import DAEMON, Failing, system


def with_failing_wardens(start: Callable[[spawning.Spawner], None]) -> Callable[[spawning.Spawner], None]:
    """The spawner is a process of its own; it gets the name of another driver for its wardens."""

    def start_failing(spawner: spawning.Spawner) -> None:
        spawner._driver = "tests.chaos.failing_driver"
        start(spawner)

    return start_failing


def main(config: Path, one_in: int, seed: int) -> int:
    """Serve until told to stop."""
    Failing(one_in, seed).patch(DAEMON[system()])
    spawning.Spawner.start = with_failing_wardens(spawning.Spawner.start)
    return cli.main(["serve", "--config", str(config)])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
