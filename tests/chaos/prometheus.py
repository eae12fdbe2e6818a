"""A Prometheus with the shipped rules. It scrapes a deployment each second; tests use its HTTP API."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import yaml

from tests.chaos.processes import START_TIMEOUT, ProcessGroup
from tests.contrib.expressions import RULES
from tests.support.demo import environment
from tests.support.ports import free_port
from tests.support.programs import find_program

JOB = "proxyhealth"
STEP = 1  # seconds between two scrapes, and between two evaluations
FOR = 3  # seconds that an alert waits, in place of minutes
# The seconds that a failure must last after the rounds that confirm it.
MINUTE, SHORT_MINUTE = " + 60\n", f" + {FOR}\n"


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float


class Prometheus:
    """A Prometheus with data and a port of its own, and one job with ``targets`` (host and port)."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self.port = free_port()
        self.folder = folder / "prometheus"
        self.folder.mkdir()
        (self.folder / "rules.yml").write_text(shortened(RULES.read_text()))
        config = {
            "global": {"scrape_interval": f"{STEP}s", "evaluation_interval": f"{STEP}s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
        }
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = (
            f"exec {find_program('prometheus', 'prometheus')} --config.file={self.folder}/prometheus.yml "
            f"--storage.tsdb.path={self.folder}/data "
            f"--web.listen-address=127.0.0.1:{self.port} --log.level=warn"
        )
        self.process = ProcessGroup("prometheus", command, environment(), self.folder / "prometheus.log")
        self.targets = list(targets)
        self._session = requests.Session()
        self._session.trust_env = False

    def start(self) -> None:
        """Start it, and wait until each target has been scraped."""
        self.process.start()
        self.wait_until(self._is_ready, START_TIMEOUT, "Prometheus is ready")
        self.wait_until(
            lambda: {target["health"] for target in self.active_targets()} == {"up"},
            START_TIMEOUT,
            "its targets are up",
        )

    def close(self) -> None:
        self._session.close()

    def _is_ready(self) -> bool:
        assert not self.process.exited, self.process.log_text()
        try:
            return self._session.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).ok
        except (requests.ConnectionError, requests.Timeout):
            return False

    # Queries

    def get(self, path: str, **params: str) -> Any:
        """Return the data of an answer of the API. An error or a warning fails the test."""
        answer = self._session.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=params, timeout=10)
        assert answer.ok, f"{path} {params}: {answer.status_code} {answer.text}"
        body = answer.json()
        assert body["status"] == "success", body
        assert not body.get("warnings"), body
        return body["data"]

    def query(self, expression: str) -> list[Sample]:
        """Return the current value of an expression."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector", (expression, data["resultType"])
        return [Sample(series["metric"], float(series["value"][1])) for series in data["result"]]

    def history(
        self, selector: str, span: str = "5m"
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return the labels and the stored samples (Unix time, value) of each series."""
        data = self.get("query", query=f"{selector}[{span}]")
        return [
            (series["metric"], [(float(at), float(value)) for at, value in series["values"]])
            for series in data["result"]
        ]

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """Return the pending and firing alerts with these labels."""
        alerts = self.get("alerts")["alerts"]
        return [alert for alert in alerts if labels.items() <= alert["labels"].items()]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def active_targets(self) -> list[dict[str, Any]]:
        targets: list[dict[str, Any]] = self.get("targets")["activeTargets"]
        return targets

    def check(self) -> None:
        """Check that no rule ever failed, and that the log has no warning."""
        text = self._session.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).text
        failures = re.findall(r"^prometheus_rule_evaluation_failures_total\{.*\} (\S+)$", text, re.MULTILINE)
        assert failures, "Prometheus no longer counts failures"
        assert {float(count) for count in failures} == {0}, self.evidence()
        assert "level=" not in self.process.log_text(), self.process.log_text()

    def wait_until(self, condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> None:
        """Poll until ``condition()`` is true. The failure shows ``what`` and ``evidence()``."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                text = what if isinstance(what, str) else what()
                pytest.fail(f"not within {seconds} s: {text}{self.evidence()}")
            time.sleep(0.1)

    def evidence(self) -> str:
        """Return the state of targets, alerts and rules, for the message of a failure."""
        try:
            lines = [
                f"target {target['scrapeUrl']} {target['health']} after {target['lastScrapeDuration']:.3f} s"
                f" {target['lastError']}"
                for target in self.active_targets()
            ]
            lines += [f"alert {alert['state']} {alert['labels']}" for alert in self.alerts()]
            lines += [
                f"rule {rule['name']} {rule['health']} {rule.get('lastError', '')}"
                for rule in self.rules()
                if rule["health"] != "ok"
            ]
        except (requests.RequestException, AssertionError) as error:
            lines = [f"no answer: {error}"]
        return "".join(f"\n{line}" for line in [*lines, self.process.log_text()])


def shortened(text: str) -> str:
    """Return the rules with seconds in place of minutes, and nothing else changed."""
    short = re.sub(r"^( +for:) \d+m$", rf"\1 {FOR}s", text, flags=re.MULTILINE)
    short = re.sub(r"^( +interval:) \d+m$", rf"\1 {STEP}s", short, flags=re.MULTILINE)
    short = short.replace(MINUTE, SHORT_MINUTE)
    before, after = yaml.safe_load(text), yaml.safe_load(short)
    expected = deepcopy(before)
    waits = 0
    for group in expected["groups"]:
        if "interval" in group:
            group["interval"] = f"{STEP}s"
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = f"{FOR}s"
                waits += 1
            if rule.get("record") == "job_proxy:proxyhealth_failing:confirmed":
                assert rule["expr"].count(MINUTE) == 1
                rule["expr"] = rule["expr"].replace(MINUTE, SHORT_MINUTE)
    assert after == expected
    assert waits
    return short
