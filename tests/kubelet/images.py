"""A registry with two images: `shell`, which pods run, and `unused`, which nobody runs."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BUSYBOX = Path("/bin/busybox")
UNUSED_SIZE = 3 << 20
USER = 1000
"""`user` in the image."""


@dataclass(frozen=True, slots=True)
class Images:
    """References."""

    shell: str
    unused: str


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(base: Path, fill: Callable[[Path], None]) -> Iterator[Images]:
    """Build both below `base` and serve them; `fill` puts a shell and its friends into a directory."""
    (base / "shell/root").mkdir(parents=True)
    (base / "unused/root").mkdir(parents=True)
    fill(base / "shell/root")
    (base / "unused/root/data").write_bytes(os.urandom(UNUSED_SIZE))
    for name in ("shell", "unused"):
        containerfile = base / name / "Containerfile"
        containerfile.write_text('FROM scratch\nCOPY root/ /\nENV PATH=/bin\nCMD ["sleep", "3600"]\n')
        subprocess.run(
            [
                *(sys.executable, "-m", "baustelle", "build", "-f", containerfile),
                *("-t", f"localhost/{name}:latest", "--layout", base / "layout", "--tree", base / "tree"),
                base / name,
            ],
            check=True,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
        )
    handler = functools.partial(_Quiet, directory=base / "tree")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        host = f"localhost:{server.server_port}"
        try:
            yield Images(f"{host}/shell:latest", f"{host}/unused:latest")
        finally:
            server.shutdown()
            thread.join()


def fill_with_busybox(root: Path) -> None:
    """What a shell needs on Linux."""
    (root / "bin").mkdir()
    shutil.copy(BUSYBOX, root / "bin/busybox")
    names = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in names:
        if name != "busybox":
            (root / "bin" / name).hardlink_to(root / "bin/busybox")
    for name, mode in (("tmp", 0o1777), ("etc", 0o755), ("proc", 0o555), ("dev", 0o755), ("var", 0o755)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    (root / "etc/passwd").write_text(f"root:x:0:0:root:/:/bin/sh\nuser:x:{USER}:{USER}::/:/bin/sh\n")
    (root / "etc/group").write_text(f"root:x:0:\nuser:x:{USER}:\n")
