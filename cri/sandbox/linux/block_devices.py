"""What block devices are called (sysfs(5))."""

from __future__ import annotations

import functools
import os


@functools.lru_cache(maxsize=1024)
def device_name(numbers: str) -> str:
    """The name of a device, as below /dev, by its `major:minor`; these again, if it has none."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{numbers}"))  # noqa: PTH115, PTH119
    except OSError:
        return numbers
