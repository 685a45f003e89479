"""Plans: what a launcher is to do, written down as bytes (docs/launch.md; the layout is told in plan.h).

Standard library only.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cri.sandbox.launcher.operations import (
    BINARY,
    MAX_DESCRIPTORS,
    MAX_PLAN,
    SHAPES,
    Operation,
)

Text = bytes | None
"""None is C's null pointer: the end of a list."""

_MAX_INSTRUCTIONS = 0xFFFF
"""Of a seccomp program: its length has 16 bits."""
_FEW, _SHORT = 4, 128
"""Of what is remembered: as many texts, of as many bytes."""
_MAGIC = 0x4C495243
_HEADER = struct.Struct("=4I")
_STEP = struct.Struct("=4I")
_LENGTH = struct.Struct("=Q")


class PlanError(ValueError):
    """What is no plan."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a launcher does."""

    operation: Operation
    integers: tuple[int, ...] = ()
    texts: tuple[Text, ...] = ()
    subject: str = ""
    """What it is about, for whoever has to be told that it failed. The launcher does not get it."""
    encoded: bytes = field(default=b"", compare=False, repr=False)
    """What it is in every plan, if that is known: see `ready`."""


def ready(step: Step) -> Step:
    """The same step, for plan after plan."""
    return replace(step, encoded=_encode_step(step.operation, step.integers, step.texts))


def encode(steps: Sequence[Step], descriptors: int = 0) -> bytes:
    """The plan; `descriptors` come with it. Raises PlanError."""
    if not 0 <= descriptors <= MAX_DESCRIPTORS:
        raise PlanError(f"{descriptors} descriptors: a plan takes {MAX_DESCRIPTORS}")
    parts = [step.encoded or _encoded(step.operation, step.integers, step.texts) for step in steps]
    size = _HEADER.size + sum(map(len, parts))
    if size > MAX_PLAN:
        raise PlanError(f"a plan of {size} bytes: {MAX_PLAN} are the most")
    return b"".join((_HEADER.pack(_MAGIC, size, len(steps), descriptors), *parts))


def decode(data: bytes, descriptors: int) -> list[Step]:
    """What `encode` was given. Raises PlanError for all that a launcher refuses, and for nothing else."""
    if not _HEADER.size <= len(data) <= MAX_PLAN:
        raise PlanError(f"a plan of {len(data)} bytes")
    magic, size, count, given = _HEADER.unpack_from(data)
    if (magic, size, given) != (_MAGIC, len(data), descriptors):
        raise PlanError("the header is another plan's")
    steps = []
    at = _HEADER.size
    for _ in range(count):
        step, at = _decode_step(data, at)
        steps.append(step)
    if at != len(data):
        raise PlanError("there is something behind the last step")
    return steps


def _encoded(operation: Operation, integers: tuple[int, ...], texts: tuple[Text, ...]) -> bytes:
    if len(texts) > _FEW or any(text and len(text) > _SHORT for text in texts):
        return _encode_step(operation, integers, texts)
    return _remembered(operation, integers, texts)


@functools.lru_cache(maxsize=256)
def _remembered(operation: Operation, integers: tuple[int, ...], texts: tuple[Text, ...]) -> bytes:
    """Most steps are the same in the next plan."""
    return _encode_step(operation, integers, texts)


def _encode_step(operation: Operation, integers: tuple[int, ...], texts: tuple[Text, ...]) -> bytes:
    _check_shape(operation, len(integers), len(texts))
    _check_arguments(operation, integers, texts)
    size = _STEP.size + 8 * (len(integers) + len(texts) + 1)
    slots = []
    written = []
    for text in texts:
        if text is None:
            slots.append(0)
            continue
        if b"\0" in text and operation not in BINARY:
            raise PlanError(f"{operation.name}: there is a NUL byte inside {text!r}")
        slots.append(size + _LENGTH.size)
        written.append(_LENGTH.pack(len(text)) + text + bytes(8 - len(text) % 8))
        size += len(written[-1])
    if size > MAX_PLAN:
        raise PlanError(f"{operation.name} of {size} bytes: {MAX_PLAN} are the most")
    try:
        numbers = struct.pack(f"={len(integers)}q", *integers)
    except struct.error as error:
        raise PlanError(f"{operation.name} with {integers}: {error}") from None
    return b"".join(
        (
            _STEP.pack(operation, size, len(integers), len(texts)),
            numbers,
            struct.pack(f"={len(slots) + 1}Q", *slots, 0),
            *written,
        )
    )


def _decode_step(data: bytes, at: int) -> tuple[Step, int]:
    if len(data) - at < _STEP.size:
        raise PlanError("a step that is cut off")
    number, size, integer_count, text_count = _STEP.unpack_from(data, at)
    end = at + size
    if number not in SHAPES:
        raise PlanError(f"there is no operation {number}")
    operation = Operation(number)
    _check_shape(operation, integer_count, text_count)
    place = at + _STEP.size + 8 * (integer_count + text_count + 1)
    if size % 8 or end > len(data) or place > end:
        raise PlanError(f"{operation.name} of {size} bytes")
    integers = struct.unpack_from(f"={integer_count}q", data, at + _STEP.size)
    *slots, last = struct.unpack_from(f"={text_count + 1}Q", data, at + _STEP.size + 8 * integer_count)
    texts: list[Text] = []
    for slot in slots:
        if slot == 0:
            texts.append(None)
            continue
        text, place = _decode_text(data, at + slot, place, end)
        texts.append(text)
    if place != end or last != 0:
        raise PlanError(f"{operation.name} does not end where it says")
    step = Step(operation, integers, tuple(texts))
    _check_arguments(operation, integers, step.texts)
    return step, end


def _decode_text(data: bytes, slot: int, place: int, end: int) -> tuple[bytes, int]:
    if slot != place + _LENGTH.size or end - place < 2 * _LENGTH.size:
        raise PlanError("a text that is not where it should be")
    (length,) = _LENGTH.unpack_from(data, place)
    if length >= end - slot:
        raise PlanError("a text that goes on behind its step")
    following = slot + length + 8 - length % 8
    if any(data[slot + length : following]):
        raise PlanError("a text that does not end")
    return data[slot : slot + length], following


def _check_shape(operation: Operation, integers: int, texts: int) -> None:
    exactly, least, most = SHAPES[operation]
    if integers != exactly or not least <= texts <= most:
        raise PlanError(f"{operation.name} with {integers} integers and {texts} texts")


def _check_arguments(operation: Operation, integers: tuple[int, ...], texts: tuple[Text, ...]) -> None:
    """As plan.h does: what C would trip over."""
    if operation is Operation.EXECUTE:
        argv, environment = integers
        fits = (
            0 < argv < environment < len(texts)
            and texts[argv] is not None
            and texts[argv - 1] is texts[environment - 1] is texts[-1] is None
        )
    elif operation is Operation.GROUPS:
        fits = 4 * integers[0] == len(texts[0] or b"")
    elif operation is Operation.SECCOMP:
        fits = 8 * integers[1] == len(texts[0] or b"") and integers[1] <= _MAX_INSTRUCTIONS
    else:
        fits = True
    if not fits or (operation is not Operation.EXECUTE and None in texts):
        raise PlanError(f"{operation.name} with arguments that do not fit")
