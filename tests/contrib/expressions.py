"""The PromQL expressions of the rules and of the dashboard, and the tables of docs/metrics.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CONTRIB = Path(__file__).parents[2] / "proxyhealth" / "contrib"
RULES = CONTRIB / "prometheus" / "rules.yml"
DASHBOARD = CONTRIB / "grafana" / "dashboard.json"
DOCS = Path(__file__).parents[2] / "docs"
METRICS = (DOCS / "metrics.md").read_text()

# The suffixes of the series of a histogram.
PARTS = re.compile(r"_(bucket|sum|count)$")

# Values for Grafana's variables. The dashboard uses `$proxy` with =~, so ".*" selects all proxies.
VARIABLES = {"job": "proxyhealth", "proxy": ".*", "__rate_interval": "5m"}


def expressions(variables: Mapping[str, str] = VARIABLES) -> dict[str, str]:
    """Return all expressions by their place, with Grafana's variables replaced."""
    by_place = {f"rules: {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    for place, expression in _of_dashboard(dashboard()):
        assert place not in by_place, f"duplicate name: {place}"
        by_place[place] = _fill_in(expression, variables)
    return by_place


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def _of_dashboard(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            yield f"dashboard: {panel['id']} {panel['title']} {target['refId']}", target["expr"]
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            yield f"dashboard: ${variable['name']}", _of_variable(variable["query"]["query"])
    for annotation in document["annotations"]["list"]:
        if "expr" in annotation:
            yield f"dashboard: {annotation['name']}", annotation["expr"]


def _of_variable(query: str) -> str:
    """Return the PromQL inside a function of Grafana."""
    match = re.fullmatch(r"(?:label_values\((.*), \w+|query_result\((.*))\)", query)
    assert match, query
    return match[1] or match[2]


def _fill_in(expression: str, variables: Mapping[str, str]) -> str:
    filled = re.sub(r"\$(\w+)", lambda match: variables[match[1]], expression)
    assert "$" not in filled, filled
    return filled


def table_of(heading: str) -> list[str]:
    """Return the first column of the table below a heading of docs/metrics.md."""
    section = METRICS.partition(f"# {heading}\n")[2].partition("\n#")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = {rule["record"] for rule in rules() if "record" in rule}

# The expressions without a result while all proxies are healthy: alerts, and lists of failing proxies.
EMPTY_WHEN_HEALTHY = {
    *(f"rules: {name}" for name in ALERTS),
    "rules: job_proxy:proxyhealth_failing_since:rounds",
    "rules: job_proxy:proxyhealth_failing_since:timestamp_seconds",
    "rules: job_proxy:proxyhealth_silenced:max",
    *(
        f"dashboard: {name}"
        for name in (
            "8 Proxies that are not usable A",
            "8 Proxies that are not usable B",
            "9 Failures by reason A",
            "17 Failures by reason A",
            "Alerts of proxyhealth",
        )
    ),
}
