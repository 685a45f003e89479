"""A daemon on private directories, with a registry that is a tree of files, and as many containers as wanted."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import grpc

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT))

from cri.rpc import descriptors  # noqa: E402

BUSYBOX = Path("/bin/busybox")
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
PER_POD = 50


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Registry:
    """Serves images that consist of a busybox."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        handler = functools.partial(_Quiet, directory=tree)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.host = f"localhost:{self._server.server_port}"
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            archive.add(BUSYBOX, "bin/busybox")
            for applet in ("sh", "sleep", "true"):
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        self._layer, self._diff_id = gzip.compress(layer.getvalue()), _digest(layer.getvalue())

    def add(self, name: str, labels: dict[str, str]) -> str:
        """Make an image; its reference."""
        config = {
            "architecture": MACHINES[platform.machine()],
            "os": "linux",
            "config": {"Cmd": ["/bin/sleep", "100000"], "Env": ["PATH=/bin"], "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [self._diff_id]},
        }
        blobs = (json.dumps(config).encode(), self._layer)
        kinds = ("config.v1+json", "layer.v1.tar+gzip")
        parts = [
            {
                "mediaType": f"application/vnd.oci.image.{kind}",
                "digest": _digest(blob),
                "size": len(blob),
            }
            for kind, blob in zip(kinds, blobs, strict=True)
        ]
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": parts[0], "layers": parts[1:]}
        self._write(name, "manifests/latest", json.dumps(manifest).encode())
        for blob in blobs:
            self._write(name, f"blobs/{_digest(blob)}", blob)
        return f"{self.host}/{name}:latest"

    def _write(self, name: str, path: str, data: bytes) -> None:
        file = self._tree / "v2" / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()


class Client:
    """Blocking calls with messages of protobuf's own classes, which cost little."""

    def __init__(self, socket: Path) -> None:
        options = [
            ("grpc.max_receive_message_length", 16 << 20),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    def __call__(self, rpc: str, seconds: float = 120, **fields: Any) -> Any:
        """Call an RPC with a request of these fields; the response."""
        service = "ImageService" if "Image" in rpc else "RuntimeService"
        method = descriptors.service(f"runtime.v1.{service}").methods_by_name[rpc]
        request = descriptors.strict_class(method.input_type.full_name)(**fields)
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{rpc}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=descriptors.strict_class(method.output_type.full_name).FromString,
        )
        return call(request, timeout=seconds, wait_for_ready=True)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


class Node:
    """`python -m cri serve`, and what it has been told to run."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="bench-lists-"))
        self.registry = Registry(self.base / "tree")
        self.socket = self.base / "run/cri-jails.sock"
        self.image = self.registry.add("busybox", {})
        self._logs = self.base / "logs"
        self._logs.mkdir()
        self._config = self.base / "config.toml"
        self._config.write_text(
            f'state_dir = "{self.base}/state"\nruntime_dir = "{self.base}/run"\n'
            f'[network]\nbridge = "bl{os.getpid()}"\nsubnets = ["10.213.0.0/16"]\nconf_dir = "{self.base}/net.d"\n'
        )
        self._daemon: subprocess.Popen[bytes] | None = None
        self.client: Client
        self.running = 0
        self._pod = ""

    def start(self, *options: str) -> None:
        """Start the daemon, with options for the interpreter; returns once it answers."""
        with (self.base / "daemon.log").open("ab") as log:
            argv = [sys.executable, *options, "-m", "cri", "serve", "--config", self._config]
            self._daemon = subprocess.Popen(argv, stdout=log, stderr=log, cwd=CHECKOUT)
        self.client = Client(self.socket)
        self.client("Version")

    def end(self) -> None:
        """End the daemon; its pods go on."""
        self.client.close()
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGTERM)
        self._daemon.wait()

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self._daemon is not None
        return self._daemon.pid

    def memory(self) -> int:
        """Bytes of the daemon's own memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def pod(self, **fields: Any) -> str:
        """Run a sandbox; its id."""
        name = uuid.uuid4().hex
        config = {
            "metadata": {"name": name, "uid": name, "namespace": "bench"},
            "hostname": name,
            "log_directory": str(self._logs),
            "linux": {},
            **fields,
        }
        found: str = self.client("RunPodSandbox", config=config).pod_sandbox_id
        return found

    def container(self, pod: str, *, start: bool = True, **fields: Any) -> str:
        """Create a container; its id."""
        name = uuid.uuid4().hex
        config = {"metadata": {"name": name}, "image": {"image": self.image}, "log_path": name, **fields}
        found: str = self.client(
            "CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config={}
        ).container_id
        if start:
            self.client("StartContainer", container_id=found)
        return found

    def grow(self, containers: int, **fields: Any) -> None:
        """Have as many containers running; `fields` are of the configs of new ones."""
        while self.running < containers:
            if self.running % PER_POD == 0:
                self._pod = self.pod()
            self.container(self._pod, **fields)
            self.running += 1

    def close(self) -> None:
        """Remove everything."""
        for sandbox in self.client("ListPodSandbox").items:
            self.client("RemovePodSandbox", pod_sandbox_id=sandbox.id)
        self.end()
        self.registry.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                shutil.rmtree(self.base)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
