"""Every PromQL expression that the app ships: of its rules, and of its dashboard for Grafana.

And the series that ``docs/metrics.md`` has.
"""

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
METRICS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

# What a histogram has besides its name.
PARTS = re.compile(r"_(bucket|sum|count)$")

# What Grafana would put in; `$proxy` is within =~, so that every proxy may stand for the chosen one.
VARIABLES = {"job": "proxyhealth", "proxy": ".*", "__rate_interval": "5m"}


def expressions(variables: Mapping[str, str] = VARIABLES) -> dict[str, str]:
    """Where an expression stands -> the expression, with Grafana's variables replaced."""
    found = {f"rules: {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    for name, expression in _of_dashboard(dashboard()):
        assert name not in found, f"two of the name {name}"
        found[name] = _fill_in(expression, variables)
    return found


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
    """What Prometheus is asked for: functions of Grafana are around it."""
    match = re.fullmatch(r"(?:label_values\((.*), \w+|query_result\((.*))\)", query)
    assert match, query
    return match[1] or match[2]


def _fill_in(expression: str, variables: Mapping[str, str]) -> str:
    filled = re.sub(r"\$(\w+)", lambda match: variables[match[1]], expression)
    assert "$" not in filled, filled
    return filled


def table_of(heading: str) -> list[str]:
    """The first words in code of the lines of the table below a heading of the document."""
    section = METRICS.partition(f"# {heading}\n")[2].partition("\n#")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


# What says nothing as long as all is well: alerts, and what tells of proxies that fail.
EMPTY_WHEN_HEALTHY = {
    *(f"rules: {rule['alert']}" for rule in rules() if "alert" in rule),
    "rules: job_proxy:proxyhealth_failing_since:timestamp_seconds",
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
