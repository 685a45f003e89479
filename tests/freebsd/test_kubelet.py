"""What a kubelet relies on, with a FreeBSD daemon: the tests of tests/kubelet, on images of this host's own files."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("grpc") is None:
    pytest.skip("grpcio is not installed", allow_module_level=True)

from tests.kubelet import images
from tests.kubelet.conftest import kubelet  # noqa: F401  a fixture
from tests.kubelet.node import Node
from tests.kubelet.test_life import *  # noqa: F403  tests
from tests.kubelet.test_node import *  # noqa: F403
from tests.kubelet.test_upkeep import *  # noqa: F403

from .conftest import make_image, node_state
from .daemon import CRICTL, Daemon

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CRICTL is None, reason="there is no crictl in PATH"),
]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A daemon for all tests; afterwards the host is as it was."""
    before = node_state()
    # A short path: a socket's has 103 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="crik", dir="/var/tmp"))
    with images.serve(directory / "images", make_image) as served:
        daemon = Daemon(directory)
        daemon.start()
        yield Node(
            directory,
            "critest1",
            ["10.218.0.0/16"],
            served,
            daemon.start,
            lambda: daemon.kill(signal.SIGKILL),
            lambda: daemon.process.pid,
        )
        daemon.crictl("rmp", "--force", "--all", check=False)
        daemon.kill(signal.SIGTERM)
    until = time.monotonic() + 75
    while (after := node_state()) != before and time.monotonic() < until:
        time.sleep(0.5)
    assert after == before
    shutil.rmtree(directory)
