"""The dashboard for Grafana."""

from __future__ import annotations

import re

import yaml

from tests.contrib.expressions import DASHBOARD, dashboard, expressions


def test_dashboard__every_expression_is_valid(promtool, tmp_path):
    queries = [text for name, text in expressions().items() if name.startswith("dashboard: ")]
    generated = [{"record": f"expression:{number}", "expr": text} for number, text in enumerate(queries)]
    path = tmp_path / "generated.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": generated}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)


def test_dashboard__can_be_imported_anywhere():
    document = dashboard()
    assert document["uid"] == "proxyhealth"
    assert "id" not in document
    assert document["schemaVersion"] == 39, "the schema of Grafana 10.3; newer versions migrate it"
    kinds = {variable["name"]: variable["type"] for variable in document["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "job": "query", "proxy": "query"}
    # No query names the data source of a particular Grafana.
    sources = set(re.findall(r'"type": "prometheus",\s+"uid": "([^"]+)"', DASHBOARD.read_text()))
    assert sources == {"${datasource}"}


def test_dashboard__every_panel_has_a_description():
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
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboard__link_of_a_proxy_selects_it():
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


def test_dashboard__every_query_selects_the_job():
    for name, expression in expressions({"job": "the-job", "proxy": ".*", "__rate_interval": "5m"}).items():
        if name.startswith("dashboard: ") and name != "dashboard: $job":
            assert 'job="the-job"' in expression, name
