"""critest's images: built by baustelle once per content, pushed to a registry whose storage is kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from nodekit import places
from nodekit.processes import run
from nodekit.registry import Registry

RECIPES = places.CONFIG / "images"
LIFECYCLE = "docker.io/cri-jails/lifecycle:latest"
BY_DIGEST = "gcr.io/k8s-staging-cri-tools/test-image-digest:latest"
"""What critest pulls by its digest alone."""
PAUSE = "registry.k8s.io/pause:3.9"


def registry_storage() -> Path:
    """Return the storage of a registry that holds every image, building and pushing them where they are new."""
    kept = places.cache() / "images" / _content_hash()
    with _locked(kept.with_suffix(".lock")):
        if not kept.is_dir():
            print("building critest's images", flush=True)
            with tempfile.TemporaryDirectory(prefix="critest-images-") as scratch:
                storage = _build_and_push(Path(scratch))
                shutil.move(storage, kept)
    return kept


def _build_and_push(scratch: Path) -> Path:
    contexts, layout, storage = scratch / "contexts", scratch / "layout", scratch / "storage"
    run(sys.executable, RECIPES / "collect", contexts)
    images = tomllib.loads((RECIPES / "images.toml").read_text())["image"]
    for image in images:
        context = contexts / image["containerfile"]
        options = [option for name in image["names"] for option in ("-t", name)]
        options += [f"--arg={key}={value}" for key, value in image.get("args", {}).items()]
        baustelle = (sys.executable, "-m", "baustelle", "build", "-f", context / "Containerfile", *options)
        run(*baustelle, "--layout", layout, context, cwd=places.CHECKOUT)
    registry = Registry(storage, scratch)
    try:
        for name in (name for image in images for name in image["names"]):
            path = name.split("/", 1)[1]  # all registries are mirrored by this one, under the same paths
            to = f"docker://{registry.host}:{registry.port}/{path}"
            quiet = ("--quiet", "--insecure-policy", "--dest-tls-verify=false")
            run("skopeo", "copy", *quiet, f"oci:{layout}:{name}", to)
    finally:
        registry.stop()
    return storage


def _content_hash() -> str:
    """Return a name for all that decides what the images become: recipes, builder and architecture."""
    digest = hashlib.sha256(platform.machine().encode())
    builder = (places.CHECKOUT / "baustelle").rglob("*.py")
    for path in sorted([*builder, *(path for path in RECIPES.rglob("*") if path.is_file())]):
        digest.update(str(path.relative_to(places.CHECKOUT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold PATH's lock, so that of two runs at once one builds and the other waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
