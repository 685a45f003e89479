"""Forks wardens. A small process with one thread, which the daemon starts before anything else and never forks itself.

It has imported all that a warden needs, and nothing else: a fork copies page tables, and a warden pays for each page it
touches. It ends when the daemon does; its wardens, in sessions of their own, live on.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable

from cri.sandbox import wire
from cri.sandbox.spec import (
    ContainerSpec,
    Credentials,
    DeviceSpec,
    ExitRecord,
    MountSpec,
    ProcessSpec,
    SandboxSpec,
    Started,
    TerminalSize,
    UserSpec,
)
from cri.sandbox.warden import protocol
from cri.sandbox.warden.driver import Driver
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.supervisor import Supervisor

_BIG_BLOCK = 1024 * 1024


def main(control: int, driver: str) -> None:
    """Serve the daemon at the other end of descriptor `control`; `driver` is the module that has the driver."""
    module = importlib.import_module(driver)
    make_driver = module.make_driver
    if (prepare := getattr(module, "prepare", None)) is not None:
        prepare()
    _warm_up()
    _keep_memory()
    # Wardens outlive the daemon: what reads its output must not wait for them. (stderr stays, for their warnings.)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    # The daemon's terminal sends its signals to the whole group; the daemon decides, and tells by closing the connection.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # wardens leave no zombies: nobody asks for their status
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=control) as channel:
        while True:
            try:
                received = protocol.receive(channel)
            except protocol.ProtocolError as error:
                warn(f"spawner: {error}")
                continue
            except ConnectionError:
                return
            if received is None:
                return
            message, descriptors = received
            try:
                if os.fork() == 0:
                    _supervise(message, channel, descriptors, make_driver)
            except OSError as error:
                warn(f"spawner: cannot fork: {error.strerror}")  # the daemon sees its connection close
            finally:
                protocol.close_all(descriptors)


def _warm_up() -> None:
    """Have the codec look at every class once, here, instead of in each warden at its first container."""
    process = ProcessSpec((), terminal_size=TerminalSize(0, 0))
    container = ContainerSpec(
        "", "", "", (), process, mounts=(MountSpec("", ""),), devices=(DeviceSpec("", ""),)
    )
    sandbox = SandboxSpec("", "", "", "", "", user=UserSpec())
    for value in (sandbox, container, Started(0, 0, Credentials(0, 0)), ExitRecord("", 0, 0)):
        wire.decode(type(value), json.loads(json.dumps(wire.encode(value))))


def _keep_memory() -> None:
    """Have the C library keep what a warden frees between two reads of output, instead of the page faults of getting it anew.

    Linux's gives a heap's top back whenever that is over 128 KiB, until it has seen a bigger block come and go: mallopt(3),
    M_MMAP_THRESHOLD. That makes logs three times as fast, and touches no page.
    """
    bytes(_BIG_BLOCK)


def _supervise(
    message: protocol.Message,
    control: socket.socket,
    descriptors: list[int],
    make_driver: Callable[[], Driver],
) -> None:
    """Be a warden, and end."""
    status = 1
    try:
        control.close()
        (channel,) = descriptors
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        spec = wire.decode(SandboxSpec, message["sandbox"])
        with socket.socket(fileno=os.dup(channel)) as connection:
            os.close(channel)
            Supervisor(spec, make_driver()).run(connection)
        status = 0
    except Exception as error:  # noqa: BLE001  # a fork must not return into the spawner's loop
        warn(f"warden: {type(error).__name__}: {error}")
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
