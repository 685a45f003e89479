"""Docker's registry as Debian packages it, for tests that want one that is nobody's own."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

USER, PASSWORD = "user", "hunter2"
_HASHED = "$2b$04$45Hs62nYK7lHhS.dvwdpYOf5ytSStY3IfsWXbvGM4LYa7cT0Z4kXC"
"""bcrypt of the password."""
_PROGRAM = shutil.which("docker-registry")

needs_registry = pytest.mark.skipif(
    _PROGRAM is None, reason="needs docker-registry (Debian package of this name)"
)


@contextlib.contextmanager
def serving(folder: Path, *, htpasswd: bool) -> Iterator[str]:
    """The host:port of a running, empty registry, that knows one user or lets anybody in."""
    assert _PROGRAM is not None
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    if htpasswd:
        (folder / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
        config["auth"] = {"htpasswd": {"realm": "x", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([_PROGRAM, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                break
        yield address
    finally:
        process.terminate()
        process.wait(10)
