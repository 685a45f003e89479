"""Images made to do harm, and a registry for them: files that are written as the images are made."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import tarfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from registratur import Platform

MIB = 1 << 20

_CONFIG = "application/vnd.oci.image.config.v1+json"


def member(name: str, data: bytes = b"", *, size: int | None = None, **fields: object) -> bytes:
    """An entry of a tar archive, which may tell another `size` than its data has."""
    info = tarfile.TarInfo(name)
    info.mode = 0o755
    info.size = len(data) if size is None else size
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    deflate = zlib.compressobj(6, wbits=31)
    for piece in pieces:
        yield deflate.compress(piece)
    yield deflate.flush()


def repeated(plain: int, window_log: int) -> bytes:
    """A zstd frame of so many zero bytes, each 128 KiB of which are four bytes, that asks for a window."""
    block = 128 * 1024
    blocks = [(block << 3 | 2).to_bytes(3, "little") + b"\0"] * (plain // block)
    blocks.append((plain % block << 3 | 2 | 1).to_bytes(3, "little") + b"\0")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([window_log - 10 << 3]) + b"".join(blocks)


class Hostile:
    """A tree of files that is a registry."""

    def __init__(self, base: Path) -> None:
        self.tree = base / "tree"
        self.address = ""

    def image(self, name: str, *layers: tuple[Iterable[bytes], str], **more: object) -> None:
        """Make `name:latest` of layers, each its compressed pieces and its diff id; `more` is for the config."""
        descriptors, diff_ids = [], []
        for pieces, digest in layers:
            descriptors.append(self._blob(name, pieces, "application/vnd.oci.image.layer.v1.tar"))
            diff_ids.append(digest)
        own = Platform.current()
        config = {
            "os": own.os,
            "architecture": own.architecture,
            "variant": own.variant,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Cmd": ["x"], **more},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._blob(name, [json.dumps(config).encode()], _CONFIG),
            "layers": descriptors,
        }
        self.manifest(name, json.dumps(manifest).encode())

    def manifest(self, name: str, data: bytes) -> None:
        """Serve a document as `name:latest`, and under its digest."""
        folder = self.tree / "v2" / name / "manifests"
        folder.mkdir(parents=True, exist_ok=True)
        for reference in ("latest", f"sha256:{hashlib.sha256(data).hexdigest()}"):
            (folder / reference).write_bytes(data)

    def _blob(self, name: str, pieces: Iterable[bytes], media_type: str) -> dict[str, object]:
        folder = self.tree / "v2" / name / "blobs"
        folder.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with (folder / "new").open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        named = f"sha256:{digest.hexdigest()}"
        (folder / "new").rename(folder / named)
        return {"mediaType": media_type, "digest": named, "size": size}


def diff_id(pieces: Iterable[bytes]) -> str:
    """The digest of plain pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(files: Hostile) -> Iterator[Hostile]:
    """Serve the files on a port of their own."""
    handler = functools.partial(_Quiet, directory=files.tree)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        files.address = f"localhost:{server.server_port}"
        try:
            yield files
        finally:
            server.shutdown()
            thread.join()
