"""Forks wardens. A small process with one thread, which the daemon starts before anything else and never forks itself.

It has imported all that a warden needs, and nothing else: a fork copies page tables, and a warden pays for each page it
touches. It ends when the daemon does; its wardens, in sessions of their own, live on.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

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
from cri.sandbox.warden.spare import Spare, wait
from cri.sandbox.warden.supervisor import Supervisor

_BIG_BLOCK = 1024 * 1024
_QUIET = 0.05
"""Seconds without a request, until the next spare is made."""


def main(control: int, driver: str) -> None:
    """Serve the daemon at the other end of descriptor `control`; `driver` is the module that has the driver."""
    module = importlib.import_module(driver)
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
        _Forks(channel, module.make_driver, getattr(module, "fits_spare", _no_spare)).serve()


def _no_spare(_: SandboxSpec) -> bool:
    return False


class _Forks:
    """The wardens that are asked for, and the one that waits for its sandbox."""

    def __init__(
        self,
        control: socket.socket,
        make_driver: Callable[[], Driver],
        fits_spare: Callable[[SandboxSpec], bool],
    ) -> None:
        self._control = control
        self._make_driver = make_driver
        self._fits_spare = fits_spare
        self._spare: Spare | None = None
        self._wants_spare = fits_spare is not _no_spare

    def serve(self) -> None:
        """Serve the daemon until it has gone."""
        while True:
            spare = self._spare
            watched = [self._control] if spare is None else [self._control, spare.channel]
            # Pods that come in a row are not to wait for a spare that none of them gets.
            ready, _, _ = select.select(
                watched, [], [], _QUIET if spare is None and self._wants_spare else None
            )
            if not ready:
                self._wants_spare = False  # one that ends in vain is not followed by the next
                self._fork_spare()
            elif spare is not None and spare.channel in ready and not spare.hear():
                self._drop_spare()
            if self._control in ready and not self._answer():
                return

    def _answer(self) -> bool:
        try:
            received = protocol.receive(self._control)
        except protocol.ProtocolError as error:
            warn(f"spawner: {error}")
            return True
        except ConnectionError:
            return False
        if received is None:
            return False
        message, descriptors = received
        self._wants_spare = self._fits_spare is not _no_spare
        try:
            if not self._give_to_spare(message, descriptors) and os.fork() == 0:
                self._become(lambda: _supervise(message, descriptors, self._make_driver()))
        except OSError as error:
            warn(f"spawner: cannot fork: {error.strerror}")  # the daemon sees its connection close
        finally:
            protocol.close_all(descriptors)
        return True

    def _give_to_spare(self, message: protocol.Message, descriptors: list[int]) -> bool:
        spare = self._spare
        if spare is None or not spare.is_ready:
            return False
        try:
            if not self._fits_spare(wire.decode(SandboxSpec, message["sandbox"])):
                return False
        except (KeyError, ValueError):  # which a fork will tell
            return False
        given = spare.give(message, descriptors)
        self._drop_spare()
        return given

    def _fork_spare(self) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            warn(f"spawner: no spare: {error.strerror}")
            return
        with theirs:
            try:
                protocol.prepare(ours)
                protocol.prepare(theirs)
                if os.fork() == 0:
                    ours.close()
                    self._become(lambda: _wait(theirs, self._make_driver()))
            except OSError as error:
                ours.close()
                warn(f"spawner: no spare: {error.strerror}")
            else:
                self._spare = Spare(ours)

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _become(self, warden: Callable[[], None]) -> NoReturn:
        """In the fork: be a warden, and end."""
        status = 1
        try:
            self._control.close()
            self._drop_spare()
            os.setsid()
            os.chdir("/")
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            warden()
            status = 0
        except Exception as error:  # noqa: BLE001  # a fork must not return into the spawner's loop
            warn(f"warden: {type(error).__name__}: {error}")
        finally:
            os._exit(status)


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


def _supervise(message: protocol.Message, descriptors: list[int], driver: Driver) -> None:
    """Be the warden of a sandbox."""
    (channel,) = descriptors
    spec = wire.decode(SandboxSpec, message["sandbox"])
    with socket.socket(fileno=os.dup(channel)) as connection:
        os.close(channel)
        Supervisor(spec, driver).run(connection)


def _wait(channel: socket.socket, driver: Driver) -> None:
    """Be the spare, and then the warden of a sandbox, if one comes."""
    driver.go_ahead()
    _warm_up()
    received = wait(channel)
    channel.close()
    if received is not None:
        _supervise(*received, driver)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
