"""The dashboard and the alerts under deploy/, against what a daemon's page says, by a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cri.api.runtime import v1
from tests.node.conftest import REPOSITORY, running_daemon
from tests.node.test_monitoring import free_port

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's prometheus"),
]

ALERTS = REPOSITORY / "deploy/prometheus/alerts.yml"
DASHBOARD = json.loads((REPOSITORY / "deploy/grafana/dashboard.json").read_text())
CASES = REPOSITORY / "tests/deploy/alerts_test.yml"

TARGETS = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


class Prometheus:
    """A server that scrapes one daemon."""

    def __init__(self, directory: Path, target: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = directory / "prometheus.yml"
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
                    "rule_files": [str(ALERTS)],
                    "scrape_configs": [{"job_name": "cri-jails", "static_configs": [{"targets": [target]}]}],
                }
            )
        )
        self.log = directory / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.ask("query", query=expression)["result"]

    def wait_for(self, expression: str, patience: float = 60.0) -> list[dict[str, Any]]:
        """What an expression gives, once it gives anything: on a busy machine a scrape is late now and then."""
        deadline = time.monotonic() + patience
        while True:
            try:
                if found := self.query(expression):
                    return found
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{expression}: {self.log.read_text()}"
            time.sleep(0.2)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def prometheus(registry: str, tmp_path_factory) -> Iterator[Prometheus]:
    target = f"127.0.0.1:{free_port()}"
    variable = f"CRI_JAILS_METRICS_ADDRESS={target}"
    with running_daemon(registry, f"crip{os.getpid()}", ["env", variable]) as daemon:
        server = Prometheus(tmp_path_factory.mktemp("prometheus"), target)
        try:
            server.wait_for('up{job="cri-jails"} == 1')
            daemon.pull()
            pod = daemon.pod("scraped")
            container = daemon.container(pod, "sleep", "1000")
            daemon.exec(container, "true")
            with pytest.raises(Exception, match="NOT_FOUND"):
                daemon.status("f" * 64)
            daemon.client("Status", v1.StatusRequest())
            daemon.client("ListContainers", v1.ListContainersRequest())
            scrapes = server.query("sum(count_over_time(up[1h]))")[0]["value"][1]
            server.wait_for(f"sum(count_over_time(up[1h])) > {scrapes} + 2")
            yield server
        finally:
            server.end()


def for_all_nodes(expression: str) -> str:
    """An expression as Grafana would send it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".+")


@pytest.mark.parametrize(("expression", "legend"), TARGETS)
def test_every_panel_shows_something(prometheus, expression, legend) -> None:
    # What hides idle calls is left out: which of them are under way is a matter of the moment.
    found = prometheus.wait_for(re.sub(r" >=? 0$", "", for_all_nodes(expression)))
    for label in re.findall(r"\{\{(\w+)\}\}", legend):
        assert all(series["metric"].get(label) for series in found), f"{label} in {found[0]['metric']}"
    prometheus.query(for_all_nodes(expression))


def selectors(expression: str) -> list[str]:
    """The metrics that an expression is about, with what it wants of their labels."""
    return re.findall(r"\b(?:cri_jails_\w+|process_\w+|up)\b(?:\{[^}]*\})?", expression)


def test_every_alert_is_about_what_there_is(prometheus) -> None:
    (group,) = prometheus.ask("rules")["groups"]
    assert group["rules"]
    for rule in group["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        assert rule["state"] != "firing", rule
        assert selectors(rule["query"])
        for selector in selectors(rule["query"]):
            assert prometheus.wait_for(selector)
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_metric_of_ours_is_on_the_dashboard(prometheus) -> None:
    names = {name for name in prometheus.ask("label/__name__/values") if name.startswith("cri_jails_")}
    shown = " ".join(expression for expression, *_ in (target.values for target in TARGETS))
    families = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in names}
    assert {name for name in families if name not in shown} == {
        "cri_jails_collections",
        "cri_jails_collected_bytes",
    }


def test_the_alerts_fire_when_they_should_and_not_else(tmp_path) -> None:
    subprocess.run(["promtool", "check", "rules", ALERTS], check=True)
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.read_text().replace("RULES", str(ALERTS)))
    done = subprocess.run(["promtool", "test", "rules", cases], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # No alert is left out of the cases.
    for alert in re.findall(r"- alert: (\w+)", ALERTS.read_text()):
        assert f'alertname="{alert}"' in CASES.read_text()


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken)), "panels lie over each other"
    assert max(x for x, _ in taken) < 24
    for panel in DASHBOARD["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        assert "$instance" in "".join(
            target["expr"] for target in panel.get("targets", [{"expr": "$instance"}])
        )
