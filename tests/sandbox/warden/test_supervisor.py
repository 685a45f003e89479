"""Children whose end is told whatever else goes wrong."""

import errno
import json
import os
from pathlib import Path

import pytest

from cri.sandbox.host import HostError
from cri.sandbox.spec import ContainerSpec, Credentials, ProcessSpec, SandboxSpec
from cri.sandbox.warden import execs as execs_module
from cri.sandbox.warden.container import SupervisedContainer
from cri.sandbox.warden.driver import Plan
from cri.sandbox.warden.execs import Execs, SupervisedExec
from cri.sandbox.warden.launch import Report
from cri.sandbox.warden.server import Server
from cri.sandbox.warden.supervisor import Supervisor


class Driver:
    """A kernel for processes that run no program."""

    def __init__(self):
        self.killed = []
        self.busy = 0

    def end(self, plan):
        return None

    def kill(self, plan, first):
        return True

    def oom_killed(self, plan, number):
        return False

    def end_exec(self, plan, name):
        self.busy -= 1
        return self.busy < 0

    def kill_exec(self, plan, pid, name):
        self.killed.append(name)


@pytest.fixture
def plan(tmp_path):
    spec = ContainerSpec(
        "c", "pod", str(tmp_path), (), ProcessSpec(("true",)), log_path=str(tmp_path / "log")
    )
    return Plan(spec, {})


def test_the_end_of_a_container_is_told_though_its_output_is_not(plan, tmp_path, monkeypatch):
    supervisor = Supervisor(SandboxSpec("pod", "pod", "ns", str(tmp_path), str(tmp_path)), Driver())
    container = SupervisedContainer(plan, Driver(), supervisor._loop)
    container.born(4321)
    container.reported(Report(Credentials(0, 0), "/"))
    container.running()

    def drain():
        raise ZeroDivisionError

    monkeypatch.setattr(container.outputs, "drain", drain)
    with pytest.raises(ZeroDivisionError):
        supervisor._ended(container, 3 << 8)
    assert json.loads(Path(tmp_path, "exit.json").read_text())["exit_code"] == 3
    container.close()


def test_an_exec_whose_terminal_cannot_be_passed_on_is_killed(loop, plan):
    driver = Driver()
    execs = Execs(driver, loop, Server(loop, {}, lambda *_: None, lambda _: None))
    container = SupervisedContainer(plan, driver, loop)
    answers = []

    def answer(result=None, *, error=None, descriptors=()):
        if descriptors:
            raise OSError(errno.EMFILE, "Too many open files")
        answers.append(error)

    master, terminal = os.openpty()
    report = Report(Credentials(0, 0), "/", master)
    execs._started(SupervisedExec("exec-1", container, None, answer, driver, 4321, report))
    os.close(terminal)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(master)
    assert driver.killed == ["exec-1"]
    (error,) = answers
    assert isinstance(error, HostError)
    assert str(error) == "exec in container c: its terminal cannot be passed on: Too many open files"
    container.close()


def test_an_exec_that_is_killed_on_its_way_ends_when_it_is_there(loop, plan):
    driver = Driver()
    container = SupervisedContainer(plan, driver, loop)
    process = SupervisedExec("exec-1", container, None, None, driver)
    process.born(4321)
    assert driver.killed == []
    early = SupervisedExec("exec-2", container, None, None, driver)
    early.kill()
    early.born(4322)
    assert driver.killed == ["exec-2", "exec-2"]
    container.close()


@pytest.mark.parametrize(("busy", "left"), [(0, -1), (2, -1), (9, 5)])
def test_what_an_exec_has_had_is_given_back_again_and_again(loop, plan, monkeypatch, busy, left):
    monkeypatch.setattr(execs_module, "_PAUSES", (0.001, 0.001, 0.001))
    driver = Driver()
    driver.busy = busy
    execs = Execs(driver, loop, Server(loop, {}, lambda *_: None, lambda _: None))
    container = SupervisedContainer(plan, driver, loop)
    process = SupervisedExec("exec-1", container, None, None, driver)
    execs._execs["exec-1"] = process
    execs._forget(process)
    for _ in range(4):
        loop.later(0.005, lambda: None)
        loop.turn()
    assert driver.busy == left
    container.close()
