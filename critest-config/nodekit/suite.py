"""critest itself: run it, and tell what came out."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

from nodekit import places
from nodekit.endpoint import Endpoint
from nodekit.processes import CommandError

_NANOSECOND = 1e-9
_WEBSOCKETS = ("-websocket-exec", "-websocket-attach", "-websocket-portforward")
_FAILED_STATES = {"failed", "panicked", "timedout", "interrupted", "aborted"}


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Specs that are not run: those whose full text matches PATTERN, SPECS in number."""

    pattern: str
    specs: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which specs run: those that match FOCUS (all, if empty) but none of SKIP; regular expressions."""

    focus: str = ""
    skip: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    websockets: bool = False
    """Streams go over WebSockets instead of SPDY."""

    @classmethod
    def read(cls, focus: str, skip: str) -> Selection:
        """Return what skip.toml selects; a FOCUS selects among the specs of later issues, too."""
        later = tomllib.loads((places.CONFIG / "skip.toml").read_text())["later"]
        left_out = () if focus else tuple(LeftOut(**each) for each in later)
        patterns = [each.pattern for each in left_out]
        return cls(focus, tuple(filter(None, [*patterns, skip])), left_out)

    def again(self) -> Selection:
        """Return what is to run a second time, over WebSockets: the specs on streams, unless others were asked for."""
        return dataclasses.replace(self, focus=self.focus or "Streaming", websockets=True)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The result of one spec. MESSAGE says why it failed, or why it skipped itself."""

    group: str
    text: str
    state: str
    seconds: float
    message: str

    @property
    def failed(self) -> bool:
        """Whether it ran and did not pass."""
        return self.state in _FAILED_STATES

    @property
    def ran(self) -> bool:
        """Whether it was selected."""
        return self.state != "skipped" or bool(self.message)

    @property
    def skipped_itself(self) -> bool:
        """Whether it was selected, and then found that the runtime lacks what it tests."""
        return self.state == "skipped" and bool(self.message)


def run_critest(
    critest: Path, endpoint: Endpoint, selection: Selection, reports: Path, scratch: Path
) -> list[Spec]:
    """Run the selected specs one after another and return their results; logs and JUnit go to REPORTS.

    Raises:
        CommandError: if critest ends without a report; its log says why.

    """
    suffix = "-websocket" if selection.websockets else ""
    log, report = reports / f"critest{suffix}.log", reports / f"report{suffix}.json"
    temporary = scratch / f"tmp{suffix}"
    temporary.mkdir()
    options = [f"-runtime-endpoint={endpoint.address}", f"-image-endpoint={endpoint.address}"]
    options += [f"-ginkgo.json-report={report}", "-ginkgo.no-color", "-ginkgo.v"]
    options.append(
        f"-ginkgo.junit-report={reports / f'junit{suffix}.xml'}"
    )  # -report-dir is accepted, but does nothing
    options += [f"-ginkgo.skip={pattern}" for pattern in selection.skip]
    options += _WEBSOCKETS if selection.websockets else ()
    if selection.focus:
        options.append(f"-ginkgo.focus={selection.focus}")
    # Serial is the default; -parallel=1 would be refused.
    critest_process = subprocess.Popen(
        [critest, *options],
        cwd=scratch,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with critest_process, log.open("w") as output:
        try:
            for line in critest_process.stdout or ():
                output.write(line)
                if line.startswith(("• [", "S [")):  # a spec has ended
                    mark = "F" if "FAIL" in line or "PANIC" in line else line[0].replace("•", ".")
                    print(mark, end="", flush=True)
        except BaseException:  # an interrupt, too: its specs must not go on while we clean up
            critest_process.kill()
            raise
    print()
    if not report.exists():
        raise CommandError(f"critest ended with {critest_process.returncode} and without a report; see {log}")
    specs = _read_report(report)
    if not selection.websockets:
        return specs
    return [dataclasses.replace(spec, group=f"{spec.group}, WebSocket") for spec in specs if spec.ran]


def _read_report(report: Path) -> list[Spec]:
    specs = []
    for suite in json.loads(report.read_text()):
        for entry in suite["SpecReports"]:
            failed = entry["State"] in _FAILED_STATES
            if entry["LeafNodeType"] != "It" and not failed:
                continue
            containers = entry["ContainerHierarchyTexts"] or [entry["LeafNodeType"]]
            group = containers[0].removeprefix("[k8s.io] ").removesuffix(" [Conformance]")
            text = " ".join([*containers[1:], entry["LeafNodeText"]])
            message = entry.get("Failure", {}).get("Message", "")
            specs.append(Spec(group, text, entry["State"], entry["RunTime"] * _NANOSECOND, message))
    return specs


def print_results(specs: list[Spec]) -> bool:
    """Print a table per group, then what did not pass and why; return whether every selected spec passed."""
    groups = defaultdict(list)
    for spec in specs:
        groups[spec.group].append(spec)
    print(f"{'Group':<32}{'passed':>8}{'failed':>8}{'skipped':>9}{'left out':>10}{'seconds':>9}")
    for group, members in [*sorted(groups.items()), ("all", specs)]:
        print(
            f"{group:<32}"
            f"{sum(spec.state == 'passed' for spec in members):>8}"
            f"{sum(spec.failed for spec in members):>8}"
            f"{sum(spec.skipped_itself for spec in members):>9}"
            f"{sum(spec.state == 'skipped' and not spec.message for spec in members):>10}"
            f"{sum(spec.seconds for spec in members):>9.1f}"
        )
    for spec in specs:
        if spec.failed:
            print(f"FAILED  {spec.group}: {spec.text}\n        {_summary(spec.message)}")
    for (group, message), count in Counter((s.group, s.message) for s in specs if s.skipped_itself).items():
        print(f"SKIPPED {count} of {group}: {_summary(message)}")
    return any(spec.state == "passed" for spec in specs) and not any(
        spec.failed or spec.skipped_itself for spec in specs
    )


def print_left_out(specs: list[Spec], selection: Selection) -> bool:
    """Print what skip.toml leaves out and why; return whether each of its patterns does so to as many as it says."""
    right = True
    for each in selection.left_out:
        count = sum(bool(re.search(each.pattern, f"[k8s.io] {spec.group} {spec.text}")) for spec in specs)
        print(f"left out {count} of {each.pattern!r}: {each.reason}")
        if count != each.specs:
            print(f"FAILED  skip.toml says {each.specs}: look at what this release of critest has")
            right = False
    return right


def _summary(message: str) -> str:
    """Return what gomega says in the first lines, without the dump of the error's insides."""
    said = message.split("\n    {", 1)[0].splitlines()
    return " ".join(line.strip() for line in said if line.strip() and not line.strip().startswith("<*"))[:300]
