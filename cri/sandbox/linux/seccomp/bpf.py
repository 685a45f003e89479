"""Programs of seccomp(2): what one says to a call, and what is put before one that was made elsewhere.

Classic BPF on `struct seccomp_data`, by include/uapi/linux/bpf_common.h and seccomp.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence

SIZE = 8
"""Bytes of an instruction: code, jump if true, jump if false, operand (struct sock_filter)."""
MAX_INSTRUCTIONS = 4096
"""Of the kernel (BPF_MAXINSNS)."""

_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=iIQ6Q")
_LOAD, _JUMP_ALWAYS, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_EQUAL, _JUMP_SET = (
    0x20,
    0x05,
    0x15,
    0x25,
    0x35,
    0x45,
)
_AND, _RETURN = 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000


def run(program: bytes, architecture: int, number: int, arguments: Sequence[int] = ()) -> int:
    """What a program answers to a call: SECCOMP_RET_* with its data. Raises ValueError for what it cannot follow."""
    padded = [argument & (1 << 64) - 1 for argument in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    signed = number - (1 << 32) if number >= 1 << 31 else number
    data = _DATA.pack(signed, architecture, 0, *padded)
    at = accumulator = 0
    while at * SIZE < len(program):
        code, if_true, if_false, operand = _INSTRUCTION.unpack_from(program, at * SIZE)
        at += 1
        if code == _RETURN:
            return int(operand)
        if code == _LOAD:
            accumulator = int.from_bytes(data[operand : operand + 4], sys.byteorder)
        elif code == _AND:
            accumulator &= operand
        elif code == _JUMP_ALWAYS:
            at += operand
        elif code in _TESTS:
            at += if_true if _TESTS[code](accumulator, operand) else if_false
        else:
            raise ValueError(
                f"instruction {at - 1} has the code {code:#x}, which no filter of libseccomp has"
            )
    raise ValueError("the program does not end")


_TESTS = {
    _JUMP_EQUAL: lambda left, right: left == right,
    _JUMP_GREATER: lambda left, right: left > right,
    _JUMP_GREATER_EQUAL: lambda left, right: left >= right,
    _JUMP_SET: lambda left, right: left & right != 0,
}


def answer_above(architecture: int, number: int, answer: int, *, x32: bool = False) -> bytes:
    """To be put before a program: calls of an architecture above a number get this answer.

    With `x32`, calls of the other numbering of the same architecture are left to the program.
    """
    others = [(_JUMP_GREATER_EQUAL, 2, 0, _X32)] if x32 else []
    parts = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 0, 3 + len(others), architecture),
        (_LOAD, 0, 0, _NUMBER),
        *others,
        (_JUMP_GREATER, 0, 1, number),
        (_RETURN, 0, 0, answer),
    ]
    return b"".join(_INSTRUCTION.pack(*part) for part in parts)


def answer_to(architecture: int, number: int, argument: int, answer: int) -> bytes:
    """To be put before a program: calls of this number with this first argument (of 32 bits) get this answer."""
    low = _ARGUMENTS if sys.byteorder == "little" else _ARGUMENTS + 4
    parts = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 3, number),
        (_LOAD, 0, 0, low),
        (_JUMP_EQUAL, 0, 1, argument),
        (_RETURN, 0, 0, answer),
    ]
    return b"".join(_INSTRUCTION.pack(*part) for part in parts)
