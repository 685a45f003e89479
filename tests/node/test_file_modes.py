"""SECURITY.md's table of files: all that a daemon makes is in it, with its owner and mode, whatever the umask is."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from cri.api.runtime import v1
from tests.node.conftest import REPOSITORY, Daemon, running_daemon

pytestmark = pytest.mark.node

ROW = re.compile(r"^\| `((?:STATE|RUN|LOGS)[^`]*)` \| `(\d{4})` \| .* \| `(.*)` \|$", re.MULTILINE)
HERE = "tests/node/test_file_modes.py::test_every_path"
PLACES = {
    "ID": "[0-9a-f]{64}",
    "POD": "[0-9a-f]{16}",
    "LAYER": "sha256-[0-9a-f]{64}",
    "LOG": "[0-9a-f]{12}-[a-z]+",
}
GROUP = 12  # anything but root's


def table() -> list[tuple[str, re.Pattern[str], int, str]]:
    """Path as it is written, paths that it means, mode, and test of every row."""
    rows = ROW.findall((REPOSITORY / "SECURITY.md").read_text().split("\n## Files\n")[1].split("\n## ")[0])
    place = re.compile("|".join(PLACES))
    top = {"STATE": "state", "RUN": "run", "LOGS": "logs"}
    found = []
    for path, mode, test in rows:
        first, mark, rest = path.partition("/")
        pattern = place.sub(lambda match: PLACES[match[0]], re.escape(rest))
        found.append((path, re.compile(top[first] + mark + pattern), int(mode, 8), test))
    return found


def paths(node: Daemon) -> dict[str, os.stat_result]:
    """All that there is by its path, which ends in / if it is a directory; not what an image or container has."""
    found = {}
    for name in ("state", "run", "logs"):
        found[f"{name}/"] = (node.base / name).lstat()
        for base, directories, files in os.walk(node.base / name):
            for entry in directories + files:
                path = Path(base, entry)
                told = path.lstat()
                end = "/" if stat.S_ISDIR(told.st_mode) else ""
                found[f"{path.relative_to(node.base)}{end}"] = told
            directories[:] = [one for one in directories if one not in ("fs", "upper", "work", "rootfs")]
    return found


@pytest.mark.parametrize("umask", ["000", "077"])
def test_every_path(registry: str, umask: str) -> None:
    wrapper = ["sh", "-c", f'umask {umask}; CRI_JAILS_SOCKET_GROUP={GROUP} exec "$@"', "sh"]
    with running_daemon(registry, f"crig{os.getpid()}", wrapper) as node:
        half = node.subnets[0].replace(".0.0/16", ".128.0/17")  # another than it is configured with
        cidr = v1.NetworkConfig(pod_cidr=f"{half},{node.subnets[1]}")
        runtime = v1.RuntimeConfig(network_config=cidr)
        node.client("UpdateRuntimeConfig", v1.UpdateRuntimeConfigRequest(runtime_config=runtime))
        node.pull()
        pod = node.pod("modes")
        node.container(pod, "sleep", "1000", name="runs")
        node.container(pod, "sleep", "1000", name="created", start=False)
        ended = node.container(pod, "true", name="ended")
        node.wait(ended, v1.ContainerState.CONTAINER_EXITED)
        rows, met = table(), set()
        for path, told in paths(node).items():
            fitting = [(row, mode) for row, pattern, mode, _ in rows if pattern.fullmatch(path)]
            assert len(fitting) == 1, f"{path} is in {len(fitting)} rows: {stat.filemode(told.st_mode)}"
            ((row, mode),) = fitting
            assert f"{stat.S_IMODE(told.st_mode):04o}" == f"{mode:04o}", path
            group = GROUP if path == "run/cri-jails.sock" else 0
            assert (told.st_uid, told.st_gid) == (0, group), path
            met.add(row)
        assert {row for row, _, _, test in rows if test == HERE} - met == set()
