"""Debian's docker-registry on the loopback interface."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

from nodekit.processes import CommandError, Daemon


class Registry:
    """A registry that serves STORAGE; the mirror of every registry that image names mention."""

    def __init__(self, storage: Path, scratch: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.host, self.port = probe.getsockname()
        config = scratch / "registry.json"  # YAML, of which JSON is a part
        config.write_text(
            json.dumps(
                {
                    "version": 0.1,
                    "log": {"level": "warn", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": str(storage)}},
                    "http": {"addr": f"{self.host}:{self.port}", "secret": "unused"},
                }
            )
        )
        self._daemon = Daemon(
            "docker-registry", ["docker-registry", "serve", config], scratch / "registry.log"
        )
        self._daemon.wait_until(self._answers)

    @property
    def url(self) -> str:
        """The base URL, as a mirror setting wants it."""
        return f"http://{self.host}:{self.port}"

    def digest(self, image: str) -> str:
        """Return the digest of an image that is stored here, by its reference.

        Raises:
            CommandError: if it is not.

        """
        path, _, tag = image.partition("/")[2].rpartition(":")
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
            connection.request("HEAD", f"/v2/{path}/manifests/{tag}", headers=accept)
            found = connection.getresponse().headers["Docker-Content-Digest"]
        finally:
            connection.close()
        if found is None:
            raise CommandError(f"the registry has no {image}")
        return str(found)

    def stop(self) -> None:
        """End the registry."""
        self._daemon.stop()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except ConnectionError:
            return False
        finally:
            connection.close()
