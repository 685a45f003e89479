"""What must survive the daemon: records of sandboxes, containers and images, in SQLite, served from memory."""

from cri.state.errors import StateError
from cri.state.lock import StateLock
from cri.state.records import ContainerRecord, ImageRecord, Record, SandboxRecord
from cri.state.rows import Unreadable
from cri.state.store import Store

__all__ = [
    "ContainerRecord",
    "ImageRecord",
    "Record",
    "SandboxRecord",
    "StateError",
    "StateLock",
    "Store",
    "Unreadable",
]
