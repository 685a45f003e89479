"""Records, and databases that an earlier daemon has left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cri.state import ContainerRecord, SandboxRecord, Store

KILLED = """
import asyncio, os, sqlite3, sys
from pathlib import Path
from cri.state import ContainerRecord, ImageRecord, SandboxRecord, Store

async def main():
    store = await Store.open(Path(sys.argv[1]))
    for n in range(int(sys.argv[2])):
        pod = SandboxRecord(id=f"s{n}", name="n", namespace="default", uid="u", state="READY", spec='{"x": "' + "y" * 700 + '"}')
        await store.save(pod, ContainerRecord(id=f"c{n}", sandbox_id=f"s{n}", name="n", state="RUNNING", config=b"z" * 900))
        if n % 10 == 0:
            await store.save(ImageRecord(id=f"sha256:{n}", tags=[f"t:{n}"]))
        if n == int(sys.argv[2]) // 2:
            other = sqlite3.connect(sys.argv[1])
            other.execute("PRAGMA wal_checkpoint")
            other.close()
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def sandbox(id_: str = "s1", **values) -> SandboxRecord:
    return SandboxRecord(
        **{"id": id_, "name": "n", "namespace": "default", "uid": "u", "state": "READY"} | values
    )


def container(id_: str = "c1", **values) -> ContainerRecord:
    return ContainerRecord(**{"id": id_, "sandbox_id": "s1", "name": "n", "state": "CREATED"} | values)


@pytest.fixture(scope="session")
def killed_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a daemon that was killed: 60 pods and containers, half of them in the log only."""
    directory = tmp_path_factory.mktemp("killed")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(directory / "state.db"), "60"], check=False)
    assert killed.returncode == -9
    assert {path.name for path in directory.iterdir()} == {"state.db", "state.db-wal", "state.db-shm"}
    return directory


@pytest.fixture
def left(killed_state: Path, tmp_path: Path) -> Path:
    """A copy of it; the path of its database."""
    shutil.copytree(killed_state, tmp_path / "state")
    return tmp_path / "state" / "state.db"


@pytest.fixture
async def closed(left: Path) -> Path:
    """The same of a daemon that has closed its database in order."""
    store = await Store.open(left)
    await store.close()
    return left


def replace_by(kind: str) -> Callable[[Path], None]:
    """What puts something else in a file's place."""

    def replace(path: Path) -> None:
        content = path.read_bytes() if path.is_file() else b""
        path.unlink(missing_ok=True)
        match kind:
            case "gone":
                pass
            case "empty":
                path.write_bytes(b"")
            case "cut":
                path.write_bytes(content[: len(content) // 2])
            case "random":
                path.write_bytes(os.urandom(max(len(content), 100)))
            case "directory":
                path.mkdir()
                (path / "file").write_text("x")
            case "fifo":
                os.mkfifo(path)
            case "dangling":
                path.symlink_to(path.parent / "nowhere" / "file")

    return replace


KINDS = ("gone", "empty", "cut", "random", "directory", "fifo", "dangling")
