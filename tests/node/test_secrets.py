"""Secrets that pass through the daemon: where they are, and that they are nowhere else."""

from __future__ import annotations

import base64
import http.server
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api.runtime import v1
from tests.node.conftest import Daemon, running_daemon
from tests.node.test_monitoring import free_port

pytestmark = pytest.mark.node

USER = "robot"
PASSWORD = "Eiszapfen-in-der-Traufe"
VALUE = "Kohlmeise-am-Fenster"


@pytest.fixture
def guarded(registry: str) -> Iterator[str]:
    """The address of the same registry behind a password."""
    basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Guard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] != basic:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="test"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            request = urllib.request.Request(f"http://{registry}{self.path}", method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    status, kind, body = answer.status, answer.headers["Content-Type"], answer.read()
            except urllib.error.HTTPError as error:
                status, kind, body = error.code, "text/plain", b""
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guard) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def files_with(node: Daemon, what: str) -> set[str]:
    """Where it stands in what the daemon has written, ids left out; not below what the containers have mounted."""
    found = set()
    for base, directories, files in os.walk(node.base):
        directories[:] = [name for name in directories if name != "rootfs"]
        for path in (Path(base, name) for name in files):
            if path.is_file() and what.encode() in path.read_bytes():
                found.add(re.sub(r"[0-9a-f]{64}", "ID", str(path.relative_to(node.base))))
    return found


def processes_with(node: Daemon, what: str) -> list[str]:
    """Which of the daemon's processes, its wardens among them, have it among arguments or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if str(node.base).encode() in arguments and what.encode() in arguments + environment:
            found.append(arguments.decode(errors="replace"))
    return found


def test_where_secrets_are(registry: str, guarded: str) -> None:
    port = free_port()
    wrapper = ["env", "CRI_JAILS_LOG_LEVEL=debug", f"CRI_JAILS_METRICS_ADDRESS=127.0.0.1:{port}"]
    with running_daemon(registry, f"crie{os.getpid()}", wrapper) as node:
        node.image = f"{guarded}/busybox:latest"
        image = v1.ImageSpec(image=node.image)
        with pytest.raises(Exception, match=r"UNAUTHENTICATED|PERMISSION_DENIED"):
            node.client("PullImage", v1.PullImageRequest(image=image))
        auth = v1.AuthConfig(username=USER, password=PASSWORD)
        node.client("PullImage", v1.PullImageRequest(image=image, auth=auth))
        pod = node.pod("secrets")
        envs = [v1.KeyValue(key="PASSWORD", value=VALUE.encode())]
        container = node.container(pod, "sleep", "1000", envs=envs)
        assert VALUE in node.exec(container, "env").stdout.decode()
        url = node.client("Exec", v1.ExecRequest(container_id=container, cmd=["true"], stdout=True)).url
        token = url.rpartition("/")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        assert "cri_jails_pods" in page
        assert pod[:12] not in page
        assert container[:12] not in page
        told = page + str(node.status(container, verbose=True))
        assert '"PASSWORD"' in told  # the name, without the value
        assert node.events("request")  # what it logs at this level
        kept = {"state/containers/ID/record.json", "state/containers/ID/spec.json"}
        for secret, where in ((PASSWORD, set()), (token, set()), (VALUE, kept)):
            assert secret not in told
            assert processes_with(node, secret) == []
            assert {
                path for path in files_with(node, secret) if not path.startswith("state/state.db")
            } == where
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        for secret in (PASSWORD, basic, token):
            assert files_with(node, secret) == set()
        node.remove_all()
        assert not files_with(node, VALUE) & kept
