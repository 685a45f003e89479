"""The records: one flat row per object, with what the kernel cannot tell us again after a restart.

A record is a value. To change one, make another with `replace` and give it to `Store.apply`; nobody assigns to the
attributes of a record that the store holds. Times are nanoseconds since the epoch, 0 where the thing has not happened
yet, as in the CRI. The models hold only plain types, so that any SQLModel on pydantic 1.10 or 2 can read them.
"""

from __future__ import annotations

import functools
from types import UnionType
from typing import Any, ClassVar, Self, cast, get_args, get_origin, get_type_hints

from sqlalchemy import JSON, Column, Table, inspect
from sqlalchemy.orm import configure_mappers
from sqlmodel import Field, SQLModel


def _json(*, optional: bool = False) -> Any:
    """A column that holds a JSON value."""
    return Column(JSON(none_as_null=True), nullable=optional)


class Record(SQLModel):
    """What all records share."""

    kind: ClassVar[str]
    """What messages call such an object."""

    @property
    def key(self) -> str:
        """The primary key."""
        raise NotImplementedError

    def values(self) -> dict[str, Any]:
        """The fields by name; lists and dicts are copies."""
        state = self.__dict__
        return {
            name: value.copy() if isinstance(value := state[name], list | dict) else value
            for name in columns(type(self))
        }

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, their text made `sound`. Raises TypeError for a field that there is not."""
        if unknown := changes.keys() - columns(type(self)).keys():
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return self.made(self.values() | {name: sound(value) for name, value in changes.items()})

    def checked(self) -> Self:
        """A copy whose values are of the types of their columns: models of tables take anything when they are made.

        Raises TypeError that names the field, KeyError for a field that was never given.
        """
        values = self.values()
        for name, (kinds, expected) in columns(type(self)).items():
            value = values[name]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise TypeError(f"{name}: must be {expected}, not {type(value).__name__}")
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                raise TypeError(f"{name}: must be an integer of 64 bits, not {value:.3e}")
        return self.made(values)

    @classmethod
    def made(cls, values: dict[str, Any]) -> Self:
        """A record of values that are known to be of the types of their columns, all of them."""
        # As the ORM makes the instances it loads: a tenth of the time that SQLModel's __init__ takes.
        made: Self = inspect(cls).class_manager.new_instance()
        made.__dict__.update(values)
        return made


def sound(value: Any) -> Any:
    """A value whose text is UTF-8: what is not (the bytes of a path in an error, as lone surrogates) is escaped.

    Neither a database nor a client can have it, and what has happened must be written down whatever it is about.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [sound(one) for one in value]
    return value


def table(kind: type[Record]) -> Table:
    """The table that holds such records."""
    return cast("Table", kind.__table__)  # type: ignore[attr-defined]  # set by SQLModel on table models


@functools.cache
def columns(kind: type[Record]) -> dict[str, tuple[tuple[type, ...], str]]:
    """The columns of a record, with the Python types that its annotation allows, also as text."""
    hints = get_type_hints(kind)
    found = {}
    for name in inspect(kind).columns.keys():  # noqa: SIM118 - no dict
        hint = hints[name]
        kinds = [
            get_origin(one) or one for one in (get_args(hint) if isinstance(hint, UnionType) else (hint,))
        ]
        found[name] = tuple(kinds), " or ".join(one.__name__ for one in kinds)
    return found


class SandboxRecord(Record, table=True):
    """A pod sandbox."""

    __tablename__ = "sandboxes"
    kind = "pod sandbox"

    id: str = Field(primary_key=True)
    name: str
    namespace: str
    uid: str
    attempt: int = 0
    state: str
    """A state of `cri.sandbox.pod`."""
    runtime_handler: str = ""
    config: bytes = b""
    """The PodSandboxConfig as the kubelet sent it, encoded."""
    created_at: int = 0
    addresses: list[str] = Field(default_factory=list, sa_column=_json())
    """IP addresses, the primary one first."""
    spec: str = "{}"
    """JSON of `cri.sandbox.spec.SandboxSpec`."""

    @property
    def key(self) -> str:
        """The sandbox id."""
        return self.id


class ContainerRecord(Record, table=True):
    """A container."""

    __tablename__ = "containers"
    kind = "container"

    id: str = Field(primary_key=True)
    sandbox_id: str
    name: str
    attempt: int = 0
    state: str
    """A state of `cri.sandbox.container`."""
    config: bytes = b""
    """The ContainerConfig as the kubelet sent it, encoded."""
    image_id: str = ""
    """Digest of the image config."""
    image_ref: str = ""
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    pid: int = 0
    exit_code: int = 0
    signal: int = 0
    """The signal that ended the first process, or 0."""
    reason: str = ""
    """Completed, Error, OOMKilled, StartError."""
    message: str = ""
    credentials: dict[str, Any] | None = Field(default=None, sa_column=_json(optional=True))
    """JSON of `cri.sandbox.spec.Credentials`, once the first process has been started."""
    stop_signal: str = ""
    log_path: str = ""
    spec: str = "{}"
    """JSON of `cri.sandbox.spec.ContainerSpec`."""

    @property
    def key(self) -> str:
        """The container id."""
        return self.id


class ImageRecord(Record, table=True):
    """An image whose layers are unpacked."""

    __tablename__ = "images"
    kind = "image"

    id: str = Field(primary_key=True)
    """Digest of the image config."""
    manifest: str = ""
    """Digest of the manifest of this platform."""
    tags: list[str] = Field(default_factory=list, sa_column=_json())
    """References by tag, in full."""
    digests: list[str] = Field(default_factory=list, sa_column=_json())
    """References by digest, in full."""
    size: int = 0
    """Bytes."""
    chains: list[str] = Field(default_factory=list, sa_column=_json())
    """Chain ids of the unpacked layers, lowest first."""
    config: str = "{}"
    """JSON of the image config."""
    user: str = ""
    """`User` of the image config."""
    pinned: bool = False
    """The kubelet's garbage collection leaves it alone."""
    pulled_at: int = 0

    @property
    def key(self) -> str:
        """The digest of the image config."""
        return self.id


RECORDS: tuple[type[Record], ...] = (SandboxRecord, ContainerRecord, ImageRecord)
"""Every kind of record there is."""

configure_mappers()  # else the first record that `made` makes has no attributes
