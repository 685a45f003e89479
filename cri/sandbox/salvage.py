"""The objects of a node out of its records, and out of what is left where a record is lost or cannot be understood.

A record that is damaged is restored from the copy in its object's directory. If there is no copy that can be read (the record is
of a newer release, say), its object becomes *foreign*: it is shown as far as it is known, goes on running, can be stopped and
removed, and its record stays as it is. No object costs another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import betterproto2
import structlog

from cri.api.runtime import v1
from cri.rpc import messages
from cri.sandbox import record_files, small_files, wire
from cri.sandbox.container import Container
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.node import Node
from cri.sandbox.pod import PodSandbox
from cri.sandbox.spec import ContainerSpec, ProcessSpec, SandboxSpec
from cri.sandbox.warden.container import PLAN_FILE
from cri.state import ContainerRecord, Record, SandboxRecord

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=betterproto2.Message)


@dataclass(slots=True)
class Found:
    """All that there is."""

    sandboxes: list[PodSandbox] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    orphans: list[ContainerRecord] = field(default_factory=list)
    """Containers whose sandbox is gone."""
    strangers: set[str] = field(default_factory=set)
    """Ids of what has no object, as too little is known of it, and is left alone."""


def everything(node: Node) -> Found:
    """All sandboxes and containers of a node. Blocks. Raises nothing for a single one of them."""
    found = Found()
    sandboxes: dict[str, PodSandbox] = {}
    for key, values, why in _rows(node, SandboxRecord):
        if not _is_name(key):
            log.error("a record of nothing is left alone", kind=SandboxRecord.kind, key=key)
            continue
        sandboxes[key] = _sandbox(node, key, values, why)
    for directory in _directories(node.state_dir / "sandboxes"):
        if directory.name not in sandboxes and (sandbox := _lost_sandbox(node, directory)):
            sandboxes[sandbox.id] = sandbox
    found.sandboxes = list(sandboxes.values())
    known: set[str] = set()
    for key, values, why in _rows(node, ContainerRecord):
        known.add(key)
        _add_container(node, found, sandboxes, key, values, why)
    if node.store.new or node.store.rebuilt:
        for directory in _directories(node.state_dir / "containers"):
            if (
                directory.name not in known
                and (lost := lost_container(node, directory, sandboxes)) is not None
            ):
                found.containers.append(lost)
    return found


def lost_container(node: Node, directory: Path, sandboxes: Mapping[str, PodSandbox]) -> Container | None:
    """The container of a directory that no record names; None if its copy does not tell enough. Blocks."""
    try:
        record = _copy(ContainerRecord, directory)
        owner = sandboxes[record.sandbox_id]
        # If it was not made to its end, its start will fail.
        container = Container.load(node, record.replace(state=ContainerState.CREATED.value), owner)
    except (OSError, ValueError, KeyError) as error:
        log.warning("a container's directory has no record", directory=str(directory), reason=str(error))
        return None
    log.error("the record of a container was lost; it is restored from its directory", container=container.id)
    container.restored = True
    return container


def _rows(node: Node, kind: type[R]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Every row of a kind with its values, and why it cannot be read, if so."""
    table: Mapping[str, Record] = node.store.sandboxes if kind is SandboxRecord else node.store.containers
    for key, record in table.items():
        yield key, record.values(), ""
    for (of, key), unreadable in node.store.unreadable.items():
        if of is kind:
            yield key, unreadable.values, unreadable.reason


def _sandbox(node: Node, key: str, values: Mapping[str, Any], why: str) -> PodSandbox:
    if not why:
        try:
            return PodSandbox.load(node, node.store.sandboxes[key])
        except ValueError as error:
            why = str(error)
    try:
        record = _copy(SandboxRecord, node.sandbox_directory(key))
        state = values.get("state")
        if isinstance(state, str) and state in set(SandboxState):
            record = record.replace(state=state)
        restored = PodSandbox.load(node, record)
    except (OSError, ValueError) as error:
        log.error("the record of a sandbox cannot be understood; it runs on", sandbox=key, reason=why)
        log.info("nor can the copy of it", sandbox=key, reason=str(error))
        return _foreign_sandbox(node, key, values, why)
    log.error(
        "the record of a sandbox is damaged; it is restored from its directory", sandbox=key, reason=why
    )
    restored.restored = True
    return restored


def _lost_sandbox(node: Node, directory: Path) -> PodSandbox | None:
    try:
        sandbox = PodSandbox.load(node, _copy(SandboxRecord, directory))
    except (OSError, ValueError) as error:
        log.warning("a sandbox's directory has no record", directory=str(directory), reason=str(error))
        return None
    log.error("the record of a sandbox was lost; it is restored from its directory", sandbox=sandbox.id)
    sandbox.restored = True
    return sandbox


def _add_container(
    node: Node,
    found: Found,
    sandboxes: Mapping[str, PodSandbox],
    key: str,
    values: Mapping[str, Any],
    why: str,
) -> None:
    if not _is_name(key):
        log.error("a record of nothing is left alone", kind=ContainerRecord.kind, key=key)
        return
    owner = sandboxes.get(str(values.get("sandbox_id")))
    if not why:
        record = node.store.containers[key]
        try:
            if owner is not None:
                found.containers.append(Container.load(node, record, owner))
            else:
                wire.loads(ContainerSpec, record.spec)
                found.orphans.append(record)
        except ValueError as error:
            why = str(error)
        else:
            return
    try:
        copy = _copy(ContainerRecord, node.container_directory(key))
        owner = sandboxes[copy.sandbox_id]
        container = Container.load(node, _restored(copy, values), owner)
    except (OSError, ValueError, KeyError) as error:
        log.info("nor can the copy of it be used", container=key, reason=str(error))
    else:
        log.error("the record of a container is damaged; it is restored from its directory", container=key)
        container.restored = True
        found.containers.append(container)
        return
    if owner is None:
        log.error("too little is known of a container; it is left alone", container=key, reason=why)
        found.strangers.add(key)
        return
    log.error("the record of a container cannot be understood; it runs on", container=key, reason=why)
    found.containers.append(_foreign_container(node, key, values, owner, why))


def _restored(copy: ContainerRecord, values: Mapping[str, Any]) -> ContainerRecord:
    """The copy, with what the record still says of the life since."""
    state = values.get("state")
    known = {
        name: values[name]
        for name in ("started_at", "finished_at", "pid", "exit_code", "signal")
        if type(values.get(name)) is int
    }
    known |= {name: values[name] for name in ("reason", "message") if isinstance(values.get(name), str)}
    credentials = values.get("credentials")
    if isinstance(state, str) and state in set(ContainerState):
        if isinstance(credentials, dict):
            known["credentials"] = credentials
        return copy.replace(state=state, **known)
    return copy.replace(state=ContainerState.CREATED.value)


def _foreign_sandbox(node: Node, key: str, values: Mapping[str, Any], why: str) -> PodSandbox:
    name, namespace, uid = (_text(values, field) for field in ("name", "namespace", "uid"))
    state = values.get("state")
    addresses = values.get("addresses")
    record = SandboxRecord(
        id=key,
        name=name or key,
        namespace=namespace,
        uid=uid or key,
        attempt=_number(values, "attempt"),
        # Whether it is, its warden tells.
        state=state if isinstance(state, str) and state in set(SandboxState) else SandboxState.READY.value,
        runtime_handler=_text(values, "runtime_handler"),
        config=b"",
        created_at=_number(values, "created_at"),
        addresses=[one for one in addresses if isinstance(one, str)] if isinstance(addresses, list) else [],
        spec="{}",
    )
    spec = wire.replace(bare_spec(node, key), name=record.name, namespace=namespace, uid=record.uid)
    config = _config(v1.PodSandboxConfig, values)
    if config.metadata is None:
        config.metadata = v1.PodSandboxMetadata(
            name=record.name, namespace=namespace, uid=record.uid, attempt=record.attempt
        )
    return PodSandbox(node, record, spec, config, foreign=f"its record cannot be understood ({why})")


def bare_spec(node: Node, sandbox_id: str) -> SandboxSpec:
    """As much of a spec as it takes to end and to remove a sandbox."""
    return SandboxSpec(
        id=sandbox_id,
        name="",
        namespace="",
        directory=str(node.sandbox_directory(sandbox_id)),
        runtime_directory=str(node.warden_directory(sandbox_id)),
    )


def _foreign_container(
    node: Node, key: str, values: Mapping[str, Any], owner: PodSandbox, why: str
) -> Container:
    directory = node.container_directory(key)
    state = values.get("state")
    ended = state in (ContainerState.EXITED.value, ContainerState.REMOVING.value)
    record = ContainerRecord(
        id=key,
        sandbox_id=owner.id,
        name=_text(values, "name") or key,
        attempt=_number(values, "attempt"),
        state=(ContainerState.EXITED if ended else ContainerState.UNKNOWN).value,
        image_id=_text(values, "image_id"),
        image_ref=_text(values, "image_ref"),
        created_at=_number(values, "created_at"),
        started_at=_number(values, "started_at"),
        finished_at=_number(values, "finished_at"),
        exit_code=_number(values, "exit_code"),
        reason=_text(values, "reason"),
        message=_text(values, "message") or f"its record cannot be understood: {why}",
        log_path=_text(values, "log_path"),
    )
    spec = ContainerSpec(
        id=key,
        sandbox_id=owner.id,
        directory=str(directory),
        layers=tuple(_layers(directory)),
        process=ProcessSpec(()),
        log_path=record.log_path,
        limits_parent=owner.spec.limits_parent,
    )
    config = _config(v1.ContainerConfig, values)
    if config.metadata is None:
        config.metadata = v1.ContainerMetadata(name=record.name, attempt=record.attempt)
    return Container(node, record, spec, config, owner, foreign=f"its record cannot be understood ({why})")


def _layers(directory: Path) -> list[str]:
    """The layers that a container stands on, as its warden was told; none if that cannot be read."""
    try:
        layers = json.loads(small_files.read(directory / PLAN_FILE))["spec"]["layers"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.info("a container's plan cannot be read", directory=str(directory), reason=str(error))
        return []
    return [one for one in layers if isinstance(one, str)] if isinstance(layers, list) else []


def _copy(kind: type[R], directory: Path) -> R:
    record = record_files.read(kind, directory)
    if record.key != directory.name:
        raise ValueError(f"it is a copy of {record.key}'s")
    return record


def _config(kind: type[M], values: Mapping[str, Any]) -> M:
    data = values.get("config")
    try:
        return messages.parsed(kind, data) if isinstance(data, bytes) else kind()
    except ValueError as error:
        log.info("a config cannot be read", reason=str(error))
        return kind()


def _directories(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []
    except OSError as error:
        log.error("a directory cannot be read", directory=str(parent), error=str(error))
        return []


def _is_name(key: object) -> bool:
    """Whether it can be part of a path without leading elsewhere."""
    return isinstance(key, str) and key not in ("", ".", "..") and "/" not in key and "\0" not in key


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _number(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int else 0
