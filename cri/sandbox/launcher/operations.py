"""What a step of a plan can be; the same table as in plan.h, where the arguments of each are told. Standard library only."""

from __future__ import annotations

import enum

FIRST_DESCRIPTOR = 64
"""The number that the first descriptor of a plan has in the new process: the report. The others follow."""
MAX_DESCRIPTORS = 32
"""That come with a plan."""
MAX_PLAN = 64 << 20
"""Bytes."""


class Operation(enum.IntEnum):
    """What a step does."""

    # on every system
    FORK = 1
    SEND = 2
    CLOSE = 3
    WRITE = 4
    RESOURCE_LIMIT = 5
    PRIORITY = 6
    UMASK = 7
    SIGNALS = 8
    SESSION = 9
    STREAMS = 10
    TERMINAL = 11
    CONTROLLING_TERMINAL = 12
    WORKING_DIRECTORY = 13
    GROUPS = 14
    IDS = 15
    NO_NEW_PRIVILEGES = 16
    DEATH_SIGNAL = 17
    EXECUTE = 18
    # Linux: the process
    ENTER = 32
    LEAVE = 33
    JOIN_KEYRING = 34
    SCHEDULER = 35
    AFFINITY = 36
    IO_PRIORITY = 37
    MEMORY_POLICY = 38
    PERSONALITY = 39
    CONTROL = 40
    BOUNDING = 41
    CAPABILITIES = 42
    SECCOMP = 43
    REAP = 44
    BORN_IN = 48
    # Linux: the tree
    OPEN = 64
    OPEN_IN = 65
    CLONE = 66
    CLONE_OF = 67
    FILESYSTEM = 68
    ATTRIBUTES = 69
    MOUNT = 70
    UNMOUNT = 71
    ATTACH = 73
    DIRECTORY = 74
    NODE = 75
    LINK = 76
    MASK = 77
    RESTRICT = 78
    MAKE_DIRECTORY = 79
    WORK_IN = 80
    PIVOT = 81
    COPY = 82
    OWN_DEVICE = 83
    # FreeBSD
    UNTRACEABLE = 96
    ROUTING_TABLE = 97
    JAIL = 98
    PROCESS_CONTROL = 99
    LOGIN_NAME = 100
    LOGIN_CLASS = 101
    REALTIME_PRIORITY = 102
    SOCKET = 103
    SYSCTL = 104
    AUDIT = 105


class Tolerate(enum.IntEnum):
    """Which failures of a step are right."""

    NOTHING = 0
    NOT_YET = 1
    """ENOENT, ENODEV, ENOSPC: a group that is not made yet, or has no CPUs yet."""
    ALL = 2


class Attach(enum.IntFlag):
    """How a mount gets to its place: ATTACH_* in plan.h."""

    DIRECTORY = 1
    MAKE = 2
    IF_FOUND = 4
    UNLESS_MOUNTED = 8
    VISIBLE = 16
    KEEP = 32
    SAME_DEVICE = 64
    LIKE = 128


SHAPES: dict[Operation, tuple[int, int, int]] = {
    Operation.FORK: (0, 0, 0),
    Operation.SEND: (1, 0, 0),
    Operation.CLOSE: (1, 0, 0),
    Operation.WRITE: (1, 2, 2),
    Operation.RESOURCE_LIMIT: (3, 0, 0),
    Operation.PRIORITY: (1, 0, 0),
    Operation.UMASK: (1, 0, 0),
    Operation.SIGNALS: (0, 0, 0),
    Operation.SESSION: (0, 0, 0),
    Operation.STREAMS: (4, 0, 0),
    Operation.TERMINAL: (5, 0, 0),
    Operation.CONTROLLING_TERMINAL: (0, 0, 0),
    Operation.WORKING_DIRECTORY: (1, 1, 1),
    Operation.GROUPS: (1, 1, 1),
    Operation.IDS: (2, 0, 0),
    Operation.NO_NEW_PRIVILEGES: (0, 0, 0),
    Operation.DEATH_SIGNAL: (1, 0, 0),
    Operation.EXECUTE: (2, 4, MAX_PLAN),
    Operation.ENTER: (2, 0, 0),
    Operation.LEAVE: (1, 0, 0),
    Operation.JOIN_KEYRING: (1, 0, 0),
    Operation.SCHEDULER: (2, 0, 0),
    Operation.AFFINITY: (0, 1, 1),
    Operation.IO_PRIORITY: (1, 0, 0),
    Operation.MEMORY_POLICY: (0, 0, 0),
    Operation.PERSONALITY: (1, 0, 0),
    Operation.CONTROL: (6, 0, 0),
    Operation.BOUNDING: (1, 0, 0),
    Operation.CAPABILITIES: (3, 0, 0),
    Operation.SECCOMP: (2, 1, 1),
    Operation.REAP: (0, 1, 1),
    Operation.BORN_IN: (1, 0, 0),
    Operation.OPEN: (2, 1, 1),
    Operation.OPEN_IN: (3, 1, 1),
    Operation.CLONE: (2, 1, 1),
    Operation.CLONE_OF: (3, 0, 0),
    Operation.FILESYSTEM: (2, 1, MAX_PLAN),
    Operation.ATTRIBUTES: (4, 0, 0),
    Operation.MOUNT: (2, 4, 4),
    Operation.UNMOUNT: (1, 1, 1),
    Operation.ATTACH: (3, 1, 1),
    Operation.DIRECTORY: (2, 1, 1),
    Operation.NODE: (5, 1, 1),
    Operation.LINK: (1, 2, 2),
    Operation.MASK: (3, 1, 1),
    Operation.RESTRICT: (2, 1, 1),
    Operation.MAKE_DIRECTORY: (1, 1, 1),
    Operation.WORK_IN: (0, 1, 1),
    Operation.PIVOT: (1, 0, 0),
    Operation.COPY: (3, 1, 1),
    Operation.OWN_DEVICE: (4, 0, 0),
    Operation.UNTRACEABLE: (0, 0, 0),
    Operation.ROUTING_TABLE: (1, 0, 0),
    Operation.JAIL: (1, 0, 0),
    Operation.PROCESS_CONTROL: (3, 0, 0),
    Operation.LOGIN_NAME: (0, 1, 1),
    Operation.LOGIN_CLASS: (0, 1, 1),
    Operation.REALTIME_PRIORITY: (2, 0, 0),
    Operation.SOCKET: (4, 0, 0),
    Operation.SYSCTL: (1, 1, 2),
    Operation.AUDIT: (0, 0, 0),
}
"""How many integers a step has, and how many texts at least and at most."""

BINARY = frozenset({Operation.GROUPS, Operation.AFFINITY, Operation.SECCOMP, Operation.SYSCTL})
"""Whose texts may hold a NUL. All others are C's."""
