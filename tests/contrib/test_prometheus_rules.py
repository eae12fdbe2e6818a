"""The rules for Prometheus, their runbook, and docs/metrics.md, checked with Prometheus' own tools."""

from __future__ import annotations

import re
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import yaml
from django.core.management import call_command

from tests.contrib.expressions import (
    ALERTS,
    DASHBOARD,
    DOCS,
    EMPTY_WHEN_HEALTHY,
    METRICS,
    PARTS,
    RECORDS,
    RULES,
    expressions,
    table_of,
)

TESTS = Path(__file__).with_name("rules_test.yml")
PACKAGE = DOCS.parent / "proxyhealth"
RUNBOOK = (DOCS / "runbook.md").read_text()


@cache
def cases_of_rules():
    """Return the groups of test cases for promtool. The loader in C takes a tenth of the time."""
    return yaml.load(TESTS.read_text(), Loader=yaml.CSafeLoader)["tests"]


def names_in(text):
    """Return the names of series in PromQL. Names of recording rules contain a colon."""
    return set(re.findall(r"[a-z_:]*proxyhealth_\w+(?::\w+)?", text))


def scraped_series_in(text):
    return {PARTS.sub("", name) for name in names_in(text) if ":" not in name}


def all_queries():
    """Return the queries of the rules, of the annotations of alerts, and of the dashboard, as one text."""
    texts = [*expressions().values()]
    for alert in ALERTS.values():
        texts += alert["annotations"].values()
    return "\n".join(texts)


def test_rules__are_valid(promtool):
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", RULES
    )


def test_rules__every_alert_is_tested_firing_and_silent():
    expected = {name: [] for name in ALERTS}
    for group in cases_of_rules():
        for case in group.get("alert_rule_test", ()):
            expected[case["alertname"]].append(bool(case["exp_alerts"]))
    for name, cases in expected.items():
        assert set(cases) == {True, False}, name


def test_rules__every_recorded_value_is_tested():
    checked = {
        name
        for group in cases_of_rules()
        for case in group.get("promql_expr_test", ())
        if case["exp_samples"]
        for name in names_in(case["expr"])
    }
    assert checked >= RECORDS


def test_expressions__usually_empty_ones_are_tested_with_data():
    by_name = expressions({"job": "web", "proxy": ".*", "__rate_interval": "5m"})
    tested = set()
    for group in cases_of_rules():
        for case in group.get("alert_rule_test", ()):
            if case["exp_alerts"]:
                tested.add(f"rules: {case['alertname']}")
        with_data = {
            " ".join(case["expr"].split())
            for case in group.get("promql_expr_test", ())
            if case["exp_samples"]
        }
        # A test of a recorded series is a test of the expression that records it.
        tested |= {f"rules: {name}" for name in RECORDS & with_data}
        tested |= {name for name, expression in by_name.items() if " ".join(expression.split()) in with_data}
    assert by_name.keys() >= EMPTY_WHEN_HEALTHY
    assert tested >= EMPTY_WHEN_HEALTHY


@pytest.mark.parametrize("name", ALERTS)
def test_alert__has_severity_summary_and_runbook_link(name):
    alert = ALERTS[name]
    assert re.fullmatch(r"Proxyhealth[A-Z][A-Za-z]+", name)
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"


def test_runbook__one_section_per_alert():
    parts = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]
    titles = [part.partition("\n")[0] for part in parts]
    assert titles == ["From a message to its section", "Sources", "Is it us?", *ALERTS]
    for section in parts[3:]:
        for heading in ("Meaning", "Impact", "Diagnosis", "Mitigation", "Resolution"):
            assert f"**{heading}.**" in section, section


def test_runbook__quoted_log_lines_exist_in_the_code():
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)  # join string literals that span two lines
    quoted = (
        "round start token=",
        "round end token=",
        "status change proxy=",
        "round skipped: ",
        "round incomplete token=",
        "commit waits for the cache",
        "canary silent url=",
        "probe failed proxy=",
        "snapshot stale: ",
        "rounds cannot be stored: ",
        "The cache cannot be read (",
        "The snapshot in the cache cannot be used: ",
        "it belongs to another deployment, ",
        "reading the snapshot failed",
        "the proxies cannot be read from the database: ",
        "the cache cannot be used: ",
        "the history cannot be used in the database: ",
        "another round has begun while this one ran",
        "no running worker takes tasks from the queue ",
        "the process of the round was killed: ",
        "probes need real threads, ",
        "no thread can be started: ",
        "an error of proxyhealth, or of how it is set up: ",
        "there is no result of it",
        "a channel is served later",
        "message not sent, ",
        "Prober offline",
        "proxies is run by one process: Celery has no result backend for chords",
    )
    runbook = " ".join(RUNBOOK.split())
    for line in quoted:
        assert line in runbook, line
        assert line in source, line
    for line in ("round failed: ", "check failed: ", "shard failed: ", "round failed unexpectedly"):
        assert line in runbook, line
    assert '"%s failed: %s"' in source
    assert '"%s failed unexpectedly"' in source


@pytest.mark.parametrize("name", ["runbook.md", "metrics.md"])
def test_docs__links_to_headings_have_targets(name):
    for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", (DOCS / name).read_text()):
        headings = re.findall(r"^#+ (.+)$", (DOCS / (path or name)).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, (path, anchor)


# docs/metrics.md


def test_metrics__every_series_is_documented_and_used():
    documented = table_of("The series")
    assert len(documented) == len(set(documented)) == 28
    assert scraped_series_in(all_queries()) == set(documented)


def test_metrics__every_recorded_value_is_documented_and_used():
    assert set(table_of("Recording rules")) == RECORDS
    assert {name for name in names_in(all_queries()) if ":" in name} == RECORDS


def test_metrics__configuration_examples_are_valid(promtool, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    examples = [
        text for text in re.findall(r"```yaml\n(.*?)```", METRICS, re.DOTALL) if "inhibit" not in text
    ]
    assert len(examples) == 3
    for example in examples:
        example = example.replace("/etc/prometheus/proxyhealth-token", str(token))
        path = tmp_path / "prometheus.yml"
        path.write_text(example.replace("/etc/prometheus/proxyhealth.yml", str(RULES)))
        promtool("check", "config", path)


def test_metrics__own_rule_is_tested_with_data():
    (example,) = (
        text for text in re.findall(r"```text\n(.*?)```", METRICS, re.DOTALL) if "status_since" in text
    )
    tested = [case["expr"] for group in cases_of_rules() for case in group.get("promql_expr_test", ())]
    assert " ".join(example.split()) in [" ".join(expression.split()) for expression in tested]


def test_metrics__inhibited_alerts_exist():
    (text,) = re.findall(r"```yaml\n([^`]*inhibit_rules.*?)```", METRICS, re.DOTALL)
    document = yaml.safe_load(text)
    matchers = [matcher for route in document["route"]["routes"] for matcher in route["matchers"]]
    for rule in document["inhibit_rules"]:
        matchers += rule["source_matchers"] + rule["target_matchers"]
    for matcher in matchers:
        pattern = re.fullmatch(r'alertname =~? "?([^"]+)"?', matcher)[1]
        for part in re.sub(r"^Proxyhealth\(|\)$", "", pattern).split("|"):
            alert_pattern = "Proxyhealth" + part.removeprefix("Proxyhealth")
            assert any(re.fullmatch(alert_pattern, name) for name in ALERTS), alert_pattern


def printed(name):
    """Return the output of a management command, and its messages."""
    out, err = StringIO(), StringIO()
    call_command(f"proxyhealth_{name}", stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_commands__print_the_files_of_the_package():
    assert printed("dashboard") == (DASHBOARD.read_text(), "")
    text, message = printed("rules")
    assert text == RULES.read_text()
    assert "Set PROXYHEALTH['RUNBOOK_URL']" in message


@pytest.mark.parametrize("name", ["rules", "dashboard"])
def test_commands__add_the_namespace_to_every_series(configure, name):
    configure(METRICS_NAMESPACE="coderd")
    before, after = (RULES if name == "rules" else DASHBOARD).read_text(), printed(name)[0]
    assert (
        after.count("coderd_proxyhealth_") == after.count("proxyhealth_") == before.count("proxyhealth_") > 9
    )
    assert after.replace("coderd_", "") == before


# The second one has all special characters of YAML that the setting accepts.
@pytest.mark.parametrize("url", ["https://wiki.example.com/runbook", "http://[::1]:80/a:?b='%20&c=[*,!|>-:"])
def test_rules__runbook_url_makes_links_absolute(promtool, tmp_path, configure, url):
    configure(RUNBOOK_URL=url, METRICS_NAMESPACE="coderd")
    text, message = printed("rules")
    (tmp_path / "rules.yml").write_text(text)
    promtool("check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.yml")
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(rules) == len(ALERTS)
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"{url}#{rule['alert'].lower()}"
    assert message == ""
