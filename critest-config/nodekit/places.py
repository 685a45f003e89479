"""Where things are: the checkout, the cache, and what a run leaves to be read."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = Path(__file__).resolve().parent.parent
CHECKOUT = CONFIG.parent


def cache() -> Path:
    """Return the directory for what is downloaded and built once: $CRITEST_CACHE or .cache in the checkout."""
    return Path(os.environ.get("CRITEST_CACHE") or CHECKOUT / ".cache").resolve()


def results(name: str) -> Path:
    """Return a new, empty directory for the logs and reports of the run NAME, below .work in the checkout."""
    directory = CHECKOUT / ".work" / name
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    return directory
