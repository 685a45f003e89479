"""What the kernel alone takes for the way into a container: the same plans, from C, with everything decided and encoded before."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from client import Client
from nodekit import places

sys.path.insert(0, str(places.CHECKOUT))

from cri.sandbox.launcher.client import Kind, Launcher, receive
from cri.sandbox.launcher.plan import ready
from cri.sandbox.linux import kernel, ways
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.spec import ProcessSpec
from cri.sandbox.warden.container import read_plan
from cri.sandbox.warden.driver import Target
from cri.sandbox.warden.launch import Report, Stdio
from cri.sandbox.warden.launching import Stage, Way

_PAUSE = 0.002


class Floor:
    """Starts containers that the endpoint has only created, by a launcher of its own."""

    def __init__(self, client: Client, state: Path) -> None:
        """`state` is the endpoint's directory, below which each container has its plan."""
        self._client = client
        self._state = state
        kernel.become_subreaper()
        self._launcher = Launcher()
        self.durations: dict[str, list[float]] = {"StartContainer": [], "ExecSync": []}

    def run(self, pod: str, config: dict[str, Any], pod_config: dict[str, Any], *, measured: bool) -> None:
        """Create a container, start and exec in it, and remove it."""

        def call(rpc: str, **fields: Any) -> Any:
            return self._client.call(rpc, self._client.request(rpc, **fields))

        container = call(
            "CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config=pod_config
        ).container_id
        (directory,) = self._state.glob(f"*/containers/{container}")
        plan = read_plan(str(directory))
        reports: list[Report] = []
        pod_side = ways.Surroundings("floor", "/dev/shm")
        start, first = self._go(ways.start(plan, Stdio(), pod_side, reports.append))
        target, process = Target(plan, first, reports[0]), ProcessSpec(("/bin/true",))
        group = Group.noted(plan.host["cgroup"])
        way = ways.exec_(
            target, process, Stdio(), group, hostname="floor", oom_score=0, reported=reports.append
        )
        exec_, true = self._go(way)
        begin = time.perf_counter()
        os.waitpid(true, 0)
        exec_ += time.perf_counter() - begin
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        self._reap()
        call("RemoveContainer", container_id=container)
        if measured:
            self.durations["StartContainer"].append(start)
            self.durations["ExecSync"].append(exec_)

    def close(self) -> None:
        """End the launcher."""
        self._launcher.close()
        os.waitpid(self._launcher.pid, 0)

    def _go(self, way: Way) -> tuple[float, int]:
        """Seconds from sending each plan to the end of its report, and the process that came of it."""
        seconds, pid = 0.0, 0
        try:
            stage = next(way)
            while True:
                assert isinstance(stage, Stage)
                steps = [step if step.encoded else ready(step) for step in stage.steps]
                sent = []
                begin = time.perf_counter()
                report = self._launcher.launch(steps, stage.descriptors)
                with report:
                    while (received := receive(report)) is not None:
                        record, descriptor = received
                        if record.kind is Kind.SENT:
                            sent.append(descriptor)
                        elif record.kind is Kind.BORN:
                            pid = record.pid
                        else:
                            raise OSError(record.error, stage.steps[record.step].subject)
                seconds += time.perf_counter() - begin
                stage = way.send(sent)
        except StopIteration:
            return seconds, pid

    def _reap(self) -> None:
        """The porters: they end by themselves."""
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    return
            except ChildProcessError:
                return
            time.sleep(_PAUSE)
