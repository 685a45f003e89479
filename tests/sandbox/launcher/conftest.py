"""A launcher, and what it is told to do."""

import os
import select

import pytest

from cri.sandbox.launcher import _build
from cri.sandbox.launcher.client import Kind, Launcher, receive


class Launch:
    """What became of a plan: what was sent, by step; the newcomer's pid; the step that failed, and why."""

    def __init__(self, report):
        self.sent, self.pid, self.failed, self.error = {}, 0, None, 0
        with report:
            report.settimeout(10)
            while (received := receive(report)) is not None:
                record, descriptor = received
                if record.kind is Kind.SENT:
                    self.sent[record.step] = descriptor
                elif record.kind is Kind.BORN:
                    self.pid = record.pid
                else:
                    self.failed, self.error = record.step, record.error


class Starter:
    """Plans to their end."""

    def __init__(self, program):
        self.launcher = Launcher(program)

    def launch(self, steps, descriptors=()):
        return Launch(self.launcher.launch(steps, descriptors))

    def output(self, steps_for):
        """What a program prints; `steps_for` gets a pipe's end, and returns steps and descriptors."""
        ours, theirs = os.pipe()
        try:
            launch = self.launch(*steps_for(theirs))
        finally:
            os.close(theirs)
        with os.fdopen(ours, "rb") as stream:
            assert select.select([stream], [], [], 10)[0]
            text = stream.read().decode()
        return launch, text


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("launcher") / "launcher"
    _build.compile_launcher(path)
    return path


@pytest.fixture
def starter(program):
    started = Starter(program)
    yield started
    started.launcher.close()
    os.waitpid(started.launcher.pid, 0)
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
