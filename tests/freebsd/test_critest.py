"""critest, where there is one built for FreeBSD: its specs of streams, over SPDY and over WebSockets.

It listens on port 12001 of the loopback interface, for port-forward.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from .daemon import CRICTL, Daemon, build

CRITEST = shutil.which("critest")

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (CRITEST and CRICTL), reason="there are no critest and crictl in PATH"),
    pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="grpcio is not installed"),
]

TOP = "#!/bin/sh\nexec sleep 3600\n"
"""What critest keeps containers running with; top(1) itself ends at once where its output is no terminal."""

TOOLS = {
    "top": TOP,
    "seq": "#!/bin/sh\nn=$1; while [ $n -le $2 ]; do echo $n; n=$((n + 1)); done\n",
    "sync": "#!/bin/sh\n",
}
"""What critest calls and the host's rescue files do not have."""

WEB_SERVER = r"""
for each in 1 2 3; do
    while :; do printf 'HTTP/1.0 200 OK\r\n\r\nhello\n' | nc -lN 80 >/dev/null; done &
done
wait
"""
"""More than one listener (nc sets SO_REUSEPORT): one that has a client does not listen until it starts anew, and
client-go gives up all of a port-forward when one connection is refused."""


@pytest.fixture
def image(registry: str, directory: Path) -> str:
    """An image for both of the roles that critest has: one with commands of its own, and a web server."""
    for name, text in TOOLS.items():
        (directory / "context" / name).write_text(text)
        (directory / "context" / name).chmod(0o755)
    command = json.dumps(["sh", "-c", WEB_SERVER])
    copies = "".join(f"COPY {name} /bin/\n" for name in TOOLS)
    build(directory, "critest", f"FROM localhost/rescue:latest\n{copies}CMD {command}\n")
    return f"{registry}/critest:latest"


@pytest.mark.parametrize(
    ("focus", "specs", "options"),
    [
        pytest.param("Streaming", 4, [], id="spdy"),
        pytest.param(
            "Streaming", 4, ["-websocket-exec", "-websocket-attach", "-websocket-portforward"], id="websocket"
        ),
        pytest.param("metrics operations", 2, [], id="metrics"),
    ],
)
def test_specs(daemon: Daemon, image: str, focus: str, specs: int, options: list[str]):
    images, report = daemon.base / "images.json", daemon.base / "report.json"
    images.write_text(
        json.dumps({"defaultTestContainerImage": image, "webServerTestImage": image})
    )  # YAML, too
    endpoint = f"unix://{daemon.socket}"
    done = subprocess.run(
        [
            *(CRITEST, f"-runtime-endpoint={endpoint}", f"-image-endpoint={endpoint}"),
            *(f"-test-images-file={images}", f"-ginkgo.json-report={report}", "-ginkgo.no-color"),
            *(f"-ginkgo.focus={focus}", *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{(daemon.base / 'daemon.log').read_text()[-3000:]}"
    reports = [spec for suite in json.loads(report.read_text()) for spec in suite["SpecReports"]]
    states = [one["State"] for one in reports if one["LeafNodeType"] == "It" and one["State"] != "skipped"]
    assert states == ["passed"] * specs
