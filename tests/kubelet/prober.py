"""Exec probes: kubernetes v1.36.0, pkg/kubelet/prober, pkg/probe/exec."""

from __future__ import annotations

import collections
import enum

import grpc

from tests.kubelet.client import Runtime
from tests.kubelet.specs import Probe


class Result(enum.Enum):
    """What a probe has shown."""

    SUCCESS = "success"
    FAILURE = "failure"
    TIMED_OUT = "failure, as the command took too long"


class Prober:
    """Runs probes, and counts failures that follow one another."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._failed: collections.Counter[str] = collections.Counter()

    async def probe(self, container: str, probe: Probe) -> Result:
        """Once. Raises AioRpcError for anything but a command that has ended, or was ended for taking too long."""
        try:
            # The kubelet trusts the runtime with the time limit, and gives the call none.
            answer = await self._runtime(
                "ExecSync",
                seconds=None,
                container_id=container,
                cmd=list(probe.command),
                timeout=probe.timeout_seconds,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return Result.TIMED_OUT
        return Result.SUCCESS if answer.exit_code == 0 else Result.FAILURE

    async def is_alive(self, container: str, probe: Probe) -> bool:
        """Probe for liveness; False once as many in a row have failed as the pod allows."""
        if await self.probe(container, probe) is Result.SUCCESS:
            del self._failed[container]
            return True
        self._failed[container] += 1
        if self._failed[container] < probe.failure_threshold:
            return True
        del self._failed[container]
        return False
