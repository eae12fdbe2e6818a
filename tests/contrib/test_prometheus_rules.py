"""The rules for Prometheus and the dashboard for Grafana, by Prometheus' own tools."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import yaml

from tests.contrib.expressions import (
    DASHBOARD,
    EMPTY_WHEN_HEALTHY,
    METRICS,
    PARTS,
    RULES,
    dashboard,
    expressions,
    rules,
    table_of,
)
from tests.support.demo import copy_checkout, environment, free_ports
from tests.support.proxies import wait_for

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "contrib" / "rules_test.yml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = {rule["record"] for rule in rules() if "record" in rule}


def names_in(text):
    """The names of metrics in PromQL: with a colon those of recording rules, else what is scraped."""
    return set(re.findall(r"[a-z_:]*proxyhealth_\w+(?::\w+)?", text))


def series_in(text):
    return {PARTS.sub("", name) for name in names_in(text) if ":" not in name}


def used():
    """All that the rules and the dashboard ask for; the annotations of alerts ask, too."""
    texts = [*expressions().values()]
    for alert in ALERTS.values():
        texts += alert["annotations"].values()
    return "\n".join(texts)


# The rules


def test_rules__are_valid(promtool):
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", RULES
    )


def test_rules__fire_and_end_as_their_tests_say(promtool):
    assert "SUCCESS" in promtool("test", "rules", TESTS)


def test_rules__every_alert_is_tested_both_ways():
    expected = {name: [] for name in ALERTS}
    for group in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in group.get("alert_rule_test", ()):
            expected[case["alertname"]].append(bool(case["exp_alerts"]))
    for name, cases in expected.items():
        assert set(cases) == {True, False}, name


def test_rules__every_recorded_value_is_tested():
    checked = {
        name
        for group in yaml.safe_load(TESTS.read_text())["tests"]
        for case in group.get("promql_expr_test", ())
        if case["exp_samples"]
        for name in names_in(case["expr"])
    }
    assert checked >= RECORDS


def test_expressions__that_are_empty_when_all_is_well_are_tested_with_data():
    found = expressions({"job": "web", "proxy": ".*", "__rate_interval": "5m"})
    proven = set()
    for group in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in group.get("alert_rule_test", ()):
            if case["exp_alerts"]:
                proven.add(f"rules: {case['alertname']}")
        with_data = {
            " ".join(case["expr"].split())
            for case in group.get("promql_expr_test", ())
            if case["exp_samples"]
        }
        # What a rule records is what its expression says.
        proven |= {f"rules: {name}" for name in RECORDS & with_data}
        proven |= {name for name, expression in found.items() if " ".join(expression.split()) in with_data}
    assert found.keys() >= EMPTY_WHEN_HEALTHY
    assert proven >= EMPTY_WHEN_HEALTHY


@pytest.mark.parametrize("name", ALERTS)
def test_alert__says_what_is_wrong_and_what_to_do(name):
    alert = ALERTS[name]
    assert re.fullmatch(r"Proxyhealth[A-Z][A-Za-z]+", name)
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"


def test_runbook__has_a_section_for_each_alert_and_no_other():
    sections = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(ALERTS)
    for section in sections:
        for words in ("Meaning", "Impact", "Diagnosis", "Mitigation", "Resolution"):
            assert f"**{words}.**" in section, section


def test_runbook__quotes_lines_that_are_in_the_code():
    source = "\n".join(path.read_text() for path in (ROOT / "proxyhealth").rglob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)  # what is one text in two lines
    quoted = (
        "round start token=",
        "round end token=",
        "status change proxy=",
        "round skipped: ",
        "round incomplete token=",
        "round waits for the cache",
        "canary silent url=",
        "probe failed proxy=",
        "snapshot stale: ",
        "The cache cannot be read (",
        "reading the snapshot failed",
        "the proxies cannot be read from the database: ",
        "the cache cannot be used: ",
        "another round has begun while this one ran",
        "no thread can be started: ",
        "an error of proxyhealth, or of how it is set up: ",
        "there is no result of it",
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


def test_runbook__links_lead_somewhere():
    for text in (RUNBOOK, METRICS):
        own = ROOT / "docs" / ("runbook.md" if text is RUNBOOK else "metrics.md")
        for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            target = (
                (ROOT / "docs" / path) if path else ROOT / "docs" / ("runbook.md" if own else "metrics.md")
            )
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, (path, anchor)


# What is scraped, what is recorded, and what is asked for


def test_metrics__every_series_is_documented_and_used():
    documented = table_of("The series")
    assert len(documented) == len(set(documented)) == 19
    assert series_in(used()) == set(documented)


def test_metrics__every_recorded_value_is_documented_and_used():
    assert set(table_of("Recording rules")) == RECORDS
    assert {name for name in names_in(used()) if ":" in name} == RECORDS


def test_metrics__the_examples_of_configuration_are_valid(promtool, tmp_path):
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


def test_metrics__the_inhibited_alerts_exist():
    (text,) = re.findall(r"```yaml\n([^`]*inhibit_rules.*?)```", METRICS, re.DOTALL)
    document = yaml.safe_load(text)
    matchers = [matcher for route in document["route"]["routes"] for matcher in route["matchers"]]
    for rule in document["inhibit_rules"]:
        matchers += rule["source_matchers"] + rule["target_matchers"]
    for matcher in matchers:
        pattern = re.fullmatch(r'alertname =~? "?([^"]+)"?', matcher)[1]
        for part in re.sub(r"^Proxyhealth\(|\)$", "", pattern).split("|"):
            wanted = "Proxyhealth" + part.removeprefix("Proxyhealth")
            assert any(re.fullmatch(wanted, name) for name in ALERTS), wanted


def run_command_of_the_document(beginning, folder):
    """Run the line of the document that begins so, on copies of the rules and of the dashboard."""
    (line,) = re.findall(rf"^\$ ({re.escape(beginning)}.*)$", METRICS, re.MULTILINE)
    shutil.copy(RULES, folder)
    shutil.copy(DASHBOARD, folder)
    line = line.replace("/etc/prometheus/proxyhealth.yml", "rules.yml")
    subprocess.run(["sh", "-c", line], cwd=folder, check=True, timeout=30)
    return (folder / "rules.yml").read_text(), (folder / "dashboard.json").read_text()


def test_metrics__the_command_for_a_namespace_changes_every_name(promtool, tmp_path):
    found = run_command_of_the_document("sed -i 's/proxyhealth_/", tmp_path)
    promtool("check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.yml")
    for before, after in zip((RULES.read_text(), DASHBOARD.read_text()), found, strict=True):
        assert "coderd_proxyhealth_snapshot_up" in after
        assert (
            after.count("coderd_proxyhealth_") == after.count("proxyhealth_") == before.count("proxyhealth_")
        )
        assert after.replace("coderd_", "") == before


def test_metrics__the_command_for_the_runbook_makes_every_url_absolute(tmp_path):
    run_command_of_the_document("sed -i 's#docs/runbook.md#", tmp_path)
    document = yaml.safe_load((tmp_path / "rules.yml").read_text())
    for rule in (rule for group in document["groups"] for rule in group["rules"] if "alert" in rule):
        url = f"https://wiki.example.com/proxyhealth/runbook#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == url


# The dashboard


def test_dashboard__every_expression_is_valid(promtool, tmp_path):
    found = [text for name, text in expressions().items() if name.startswith("dashboard: ")]
    generated = [{"record": f"expression:{number}", "expr": text} for number, text in enumerate(found)]
    path = tmp_path / "generated.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": generated}]}))
    assert f"{len(found)} rules found" in promtool("check", "rules", path)


def test_dashboard__can_be_imported_anywhere():
    document = dashboard()
    assert document["uid"] == "proxyhealth"
    assert "id" not in document
    assert document["schemaVersion"] == 39, "that of Grafana 10.3; newer ones bring it up to theirs"
    kinds = {variable["name"]: variable["type"] for variable in document["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "job": "query", "proxy": "query"}
    # Nothing that is asked for names a data source of somebody's own.
    sources = set(re.findall(r'"type": "prometheus",\s+"uid": "([^"]+)"', DASHBOARD.read_text()))
    assert sources == {"${datasource}"}


def test_dashboard__every_panel_explains_itself():
    panels = dashboard()["panels"]
    assert [panel["title"].partition(":")[0] for panel in panels if panel["type"] == "row"] == [
        "The fleet",
        "One proxy",
        "The prober",
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert len(panel["description"]) > 20, panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"], panel["title"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_dashboard__panels_do_not_overlap():
    taken = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboard__a_link_of_a_proxy_chooses_it():
    document = dashboard()
    names = {variable["name"] for variable in document["templating"]["list"]}
    (panel,) = (panel for panel in document["panels"] if panel.get("title") == "Proxies that are not usable")
    (link,) = (
        link
        for override in panel["fieldConfig"]["overrides"]
        for value in override["properties"]
        if value["id"] == "links"
        for link in value["value"]
    )
    assert link["url"].startswith(f"/d/{document['uid']}?")
    assert set(re.findall(r"\$\{(\w+):queryparam\}|var-(\w+)=", link["url"])) == {
        ("datasource", ""),
        ("job", ""),
        ("", "proxy"),
    }
    assert names == {"datasource", "job", "proxy"}
    columns = panel["transformations"][-1]["options"]["renameByName"]
    assert re.findall(r"__data\.fields\.(\w+)", link["url"]) == [columns["proxy_id"]]


def test_dashboard__asks_for_one_job_everywhere():
    for name, expression in expressions({"job": "the-job", "proxy": ".*", "__rate_interval": "5m"}).items():
        if name.startswith("dashboard: ") and name != "dashboard: $job":
            assert 'job="the-job"' in expression, name


# Prometheus beside the demo


def test_configuration_of_the_demo__is_valid(promtool):
    assert "SUCCESS" in promtool("check", "config", ROOT / "project" / "prometheus.yml")


TOKEN = "a\"b'c:#{}"


@contextmanager
def make_prometheus(folder, port, own_port):
    """``make prometheus``, which ends by Ctrl-C."""
    log = folder / "prometheus.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["make", "prometheus"],
            cwd=folder,
            env=environment(PORT=port, PROMETHEUS_PORT=own_port, PROXYHEALTH_METRICS_TOKEN=TOKEN),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def test_make_prometheus__has_the_rules_and_ends_by_ctrl_c(installed, tmp_path):
    folder = copy_checkout(tmp_path)
    port = free_ports()
    own_port = port + 1
    with make_prometheus(folder, port, own_port) as (process, log), requests.Session() as session:
        session.trust_env = False

        def ask(path):
            assert process.poll() is None, log.read_text()
            try:
                answer = session.get(f"http://127.0.0.1:{own_port}/api/v1/{path}", timeout=5)
            except (requests.ConnectionError, requests.Timeout):
                return None
            return answer.json()["data"] if answer.ok else None

        groups = wait_for(lambda: ask("rules"), 30, "Prometheus answers")["groups"]
        assert {rule["name"] for group in groups for rule in group["rules"]} == ALERTS.keys() | RECORDS

        def target():
            return next(
                (found["scrapeUrl"] for found in (ask("targets") or {}).get("activeTargets", ())), None
            )

        assert wait_for(target, 30, "the target") == f"http://127.0.0.1:{port}/metrics"
        (scraped,) = yaml.safe_load(ask("status/config")["yaml"])["scrape_configs"]
        assert scraped["authorization"] == {"type": "Bearer", "credentials": "<secret>"}
        # Nobody is there to be scraped, and still each expression can be asked for.
        for name, expression in expressions().items():
            answer = session.get(
                f"http://127.0.0.1:{own_port}/api/v1/query", params={"query": expression}, timeout=20
            )
            assert answer.ok, (name, answer.text)
        assert session.get(f"http://127.0.0.1:{own_port}/", timeout=5).ok, "the page that it names"
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
    said = log.read_text()
    assert said.startswith(f"make prometheus: http://127.0.0.1:{own_port}/, ")
    assert (folder / "var" / "prometheus").is_dir()
    config = folder / "var" / "prometheus.yml"
    (scraped,) = yaml.safe_load(config.read_text())["scrape_configs"]
    assert scraped["authorization"]["credentials"] == TOKEN
    assert config.stat().st_mode & 0o077 == 0, "others can read the token"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{own_port}/", timeout=5)


def in_vain(**values):
    """What `make prometheus` says when it cannot."""
    done = subprocess.run(
        [".venv/bin/python", "-m", "project.prometheus"],
        cwd=values.pop("cwd"),
        env={**environment(), **{name: str(value) for name, value in values.items()}},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stdout == ""
    return done.stderr


def test_make_prometheus__without_prometheus_is_one_clear_line(tmp_path):
    folder = copy_checkout(tmp_path)
    (tmp_path / "empty").mkdir()
    assert in_vain(cwd=folder, PATH=tmp_path / "empty") == (
        "make prometheus: Prometheus is not installed (Debian: apt-get install prometheus)\n"
    )


def test_make_prometheus__a_bad_or_taken_port_is_one_clear_line(installed, tmp_path, serve):
    folder = copy_checkout(tmp_path)
    assert in_vain(cwd=folder, PORT="http") == (
        "make prometheus: PORT must be a number from 1 to 65535, not 'http'\n"
    )
    taken = int(serve().url.rpartition(":")[2])
    assert in_vain(cwd=folder, PROMETHEUS_PORT=taken) == (
        f"make prometheus: port {taken} cannot be used (Address already in use); "
        f"choose another one with PROMETHEUS_PORT={taken + 1} make prometheus\n"
    )
