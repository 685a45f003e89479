"""The plan that ARCHITECTURE.md shows step by step is the one that is written."""

import re
import sys
from pathlib import Path

import pytest

from cri.sandbox.launcher.operations import Operation
from cri.sandbox.spec import Credentials

PAGE = Path(__file__).parents[3] / "ARCHITECTURE.md"


def shown():
    """Operations with who does them."""
    chapter = PAGE.read_text().split("\n## The way into a container\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in chapter.splitlines() if line.startswith("| `")]
    return [
        (name, who.strip())
        for steps, who, _ in rows
        for name, times in re.findall(r"`([A-Z_]+)`(?: \u00d7 (\d+))?", steps)
        for _ in range(int(times or 1))
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: needs its binding")
def test_the_page_shows_the_plan():
    from cri.sandbox.linux import run_plan

    run = run_plan.Run(
        argv=["true"],
        candidates=["/usr/bin/true", "/bin/true"],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        credentials=Credentials(1000, 1000, (1000,)),
        drop=1,
        capabilities=0,
        no_new_privileges=True,
        mounts=5,
        processes=run_plan.Processes.SHARED,
        pids=6,
        cgroup_namespace=7,
        cgroups=("/memory/tasks", "/pids/tasks"),
        oom_score=0,
        seccomp=run_plan.Filter(bytes(8)),
    )
    steps, _ = run_plan.plan(run)
    names = [step.operation.name for step in steps]
    born = names.index(Operation.FORK.name) + 1
    assert shown() == [(name, "porter" if number < born else "newcomer") for number, name in enumerate(names)]
