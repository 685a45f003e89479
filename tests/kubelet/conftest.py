"""A kubelet in Python, and a real daemon for it. tests/freebsd/test_kubelet.py has the same tests with a FreeBSD daemon."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kubelet import images
from tests.kubelet.actions import BackOff
from tests.kubelet.images import Images
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.node import Node
from tests.node.conftest import forwarding_as_before, running_daemon  # noqa: F401  a fixture

BACK_OFF = 0.4
"""Seconds that a container which ends again and again waits first; the kubelet's is 10."""
_numbers = itertools.count()


@pytest.fixture(scope="session")
def shell_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Images for Linux."""
    with images.serve(tmp_path_factory.mktemp("images"), images.fill_with_busybox) as served:
        yield served


@pytest.fixture(scope="module")
def node(shell_images: Images) -> Iterator[Node]:
    """A daemon for all tests of a module; afterwards it and all its pods are gone without a trace."""
    if sys.platform != "linux":
        pytest.skip("Linux only: tests/freebsd/test_kubelet.py is the same")
    with running_daemon("", f"crik{os.getpid()}") as daemon:
        yield Node(
            daemon.base,
            daemon.network,
            daemon.subnets,
            shell_images,
            daemon.start,
            lambda: daemon.end(signal.SIGKILL),
            lambda: daemon.process.pid,
        )


@pytest.fixture
async def kubelet(node: Node) -> AsyncIterator[Kubelet]:
    """A kubelet; in the end its pods are deleted, and nothing of them may be left."""
    number = next(_numbers)
    kubelet = Kubelet(
        node.socket, node.base / f"node{number}", f"/kubelet{os.getpid()}-{number}", BackOff(BACK_OFF, 5.0)
    )
    yield kubelet
    await kubelet.close()
    assert kubelet.cgroups.left() == []
    assert node.left(kubelet.manager.made) == []
    assert list(kubelet.places.logs.glob("*")) == [], "the runtime has made logs of removed pods"
