"""What fork and exec hand down (docs/inherited.md): wardens that have the wrong value of all of it make processes that have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cri.api.runtime import v1
from cri.sandbox.spec import ProcessSpec
from tests.inherited import freebsd
from tests.inherited.table import rows

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]  # an emulated machine is slow

READER = Path(freebsd.__file__)
NODE_S = {"page table isolation", "address length", "write and execute"}
MOST = ("DATA", "STACK", "NPROC", "NOFILE")
NEVER_WRONG = NODE_S | {
    # What setsid, jail_attach and the plan's own words decide, or who traces.
    *("kernel trace", "controlling terminal", "session", "jail", "routing table", "no new privileges"),
    *("user ids", "group ids", "descriptors", "login name"),
    # What not every kernel has more than one of, or at all.
    *("memory domains", "CPU affinity", "audit user", "logging of fatal signals"),
}


def interpret(script: str, *arguments: object, python: Path = Path(sys.executable)) -> str:
    command = [python, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.fixture
def wrong(monkeypatch, directory):
    """Has the spawner, and so all wardens, start with everything wrong; what that looks like."""
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {READER} {sys.executable} "$@"\n')
    python.chmod(0o755)
    look = "import json, os, sys; sys.path.insert(0, sys.argv[1]); import freebsd; print(json.dumps(freebsd.read(os.getpid())))"
    found = json.loads(interpret(look, READER.parent, python=python))
    with monkeypatch.context() as during:
        during.setattr(sys, "executable", str(python))
        yield found


def most(name: str) -> str:
    """What the kernel makes of no limit, for root."""
    number = freebsd.LIMITS.index(name)
    return interpret(
        f"import resource as r; r.setrlimit({number}, (-1, -1)); print(*r.getrlimit({number}))"
    ).strip()


@pytest.mark.parametrize("no_new_privs", [False, True])
async def test_what_a_process_gets(wrong, machine, no_new_privs) -> None:
    node, table = freebsd.read(os.getpid()), rows("FreeBSD")
    assert set(table) == set(node)
    limits = {f"limit {name}": most(name) for name in MOST}

    pod = await machine.pod()
    context = v1.LinuxContainerSecurityContext(run_as_username="user", no_new_privs=no_new_privs)
    container = await machine.container(pod, linux=v1.LinuxContainerConfig(security_context=context))
    running, warden = machine.pods.running(container)
    beside = await warden.exec(
        running.spec.id, ProcessSpec(("sleep", "1000")), stdin=None, stdout=None, stderr=None
    )
    found = [freebsd.read(pid) for pid in (running.record.pid, beside.pid)]
    await beside.kill()
    await beside.close()

    jail = machine.kernel.jail_find(f"cri-{pod}.c{container}")
    expected = {name: row.value for name, row in table.items() if row.value is not None}
    expected |= (
        limits
        | {name: node[name] for name in NODE_S}
        | {
            "jail": str(jail.jid),
            "user ids": "1000 1000 1000",
            "group ids": "1000 1000 1000",
            "supplementary groups": found[0]["supplementary groups"],
            "routing table": "0",
            "no new privileges": f"{freebsd.FLAGS2['no new privileges'] if no_new_privs else 0:x}",
            "CPU affinity": " ".join(str(number) for number in range(os.cpu_count() or 1)),
            "memory domains": found[0]["memory domains"],
        }
    )
    if node["audit user"] == "-":  # a kernel without
        expected["audit user"] = "-"
    for each in found:
        assert set(each["supplementary groups"].split()) == {"1000", "2000"}
        assert each["memory domains"].rpartition(" ")[2] == node["memory domains"].rpartition(" ")[2]
        assert each == expected
    was_right = {name for name, value in expected.items() if wrong[name] == value}
    assert was_right <= NEVER_WRONG
