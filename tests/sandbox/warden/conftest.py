import os
import time

import pytest

from cri.sandbox.warden.loop import Loop


class Pipes:
    """Pipes that are closed after the test, as far as nobody has."""

    def __init__(self):
        self._made = []

    def __call__(self):
        ends = os.pipe()
        for end in ends:
            found = os.fstat(end)
            self._made.append((end, found.st_dev, found.st_ino))
        return ends

    def close(self):
        for end, device, inode in self._made:
            try:
                found = os.fstat(end)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (device, inode):
                os.close(end)


@pytest.fixture
def pipes():
    made = Pipes()
    yield made
    made.close()


@pytest.fixture
def loop():
    return TestLoop()


class TestLoop(Loop):
    """A warden's loop, turned by the test."""

    __test__ = False

    def run(self, until, seconds=10.0):
        """Turn until something is so."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, "it did not come to pass"
            self.later(0.01, lambda: None)
            self.turn()

    def idle(self, seconds=0.05):
        """Turn for a while."""
        end = time.monotonic() + seconds
        self.run(lambda: time.monotonic() >= end, seconds + 5)
