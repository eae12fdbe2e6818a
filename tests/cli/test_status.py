"""``manage.py proxyhealth status``: the text, the JSON, the filters, and the exit status."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone, translation
from rich.cells import cell_len

from proxyhealth import health
from proxyhealth.models import Outage, Silence, WorkspaceProxy
from proxyhealth.tasks import record_history
from tests.cli.conftest import run
from tests.support.api import LIST, signed_in
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def names(result):
    """Return the names in the table."""
    lines = result.lines
    return [line.split()[1] for line in lines[lines.index("") + 2 :]]


def test_status__worst_first_with_reason(fleet):
    result = run("status")
    assert result.status == 1
    assert result.lines[0] == "2 of 4 proxies are down, the first for less than a minute"
    assert names(result) == ["sydney", "paris", "oslo", "rome"]
    assert "report_errors: kaputt" in result.out
    assert "\x1b" not in result.out
    assert all(line == line.rstrip() for line in result.lines)


def test_status__of_chosen_proxies(fleet):
    for args, chosen, status in (
        ("oslo", ["oslo"], 0),
        ("OSLO oslo", ["oslo"], 0),
        ("--label region:EU --status ok", ["oslo", "rome"], 0),
        ("--label region:au", ["sydney"], 1),
        ("--search report_errors", ["paris"], 1),
        ("--status unhealthy --status unreachable", ["sydney", "paris"], 1),
        ("paris rome --status ok", ["rome"], 0),
    ):
        result = run("status", "--json", *args.split())
        names = [each["name"] for each in result.json["regions"]]
        assert (result.status, names) == (status, chosen), args


def test_status__by_id(fleet):
    id = WorkspaceProxy.objects.get(name="oslo").pk
    assert run("status", str(id)).lines[0] == "oslo is ok"


NO_MATCH = "No proxy matches --label and --search. Correct them, or leave them out."
ERRORS = {
    ("pariss",): "No proxy has the name or id “pariss”. Did you mean paris?",
    ("oslo", "x", "y"): "No proxies have the names or ids “x”, “y”.",
    ("\x1b[2Jx",): "No proxy has the name or id “[2Jx”.",
    ("\udcff",): "No proxy has the name or id “”.",
    ("--label", "region:xx"): NO_MATCH,
    ("--search", "xx"): NO_MATCH,
}


def test_status__unknown_names_and_filters_are_errors(fleet):
    for args, message in ERRORS.items():
        assert run("status", *args) == (2, "", message)
        result = run("status", "--json", *args)
        assert (result.status, result.json) == (2, {"message": message, "exit_status": 2})


def test_status__json_has_the_proxies_of_the_api(fleet):
    result = run("status", "--json")
    listed = signed_in("view_workspaceproxy").get(LIST).json()
    by_name = {region["name"]: region for region in listed["regions"]}
    assert result.json["regions"] == [by_name[name] for name in ("sydney", "paris", "oslo", "rome")]
    assert result.json["snapshot"] == listed["snapshot"]
    assert result.json.keys() == {*listed, "headline", "exit_status"}
    assert (result.json["stale"], result.json["exit_status"]) == (False, 1)


def test_status__named_proxy_has_all_details(fleet):
    Silence.objects.create(
        proxies="paris", starts=timezone.now(), ends=timezone.now() + timedelta(hours=1), reason="work"
    )
    record_history()
    outage = Outage.objects.get(proxy_name="paris")
    health.acknowledge(outage, "ada", "power is off")
    result = run("status", "paris")
    for text in (
        "  error: kaputt",
        "Read them: they are its own words.",
        "  note: power is off",
        "region:eu",
    ):
        assert text in result.out
    assert "silenced until" in result.out
    assert "acknowledged by ada" in result.out


def test_status__texts_of_proxies_are_text(fleet):
    fleet["paris"].report = {"errors": ["\x1b[2J\x07[bold]a[/bold] \u202e:smile: \u05d0"], "warnings": []}
    health.force_update()
    result = run("status", "paris", "--force-color")
    assert "error: \x1b[0m\u2068[2J[bold]a[/bold] :smile: \u05d0\u2069" in result.out
    assert "\x1b[2J" not in result.out


def test_status__quiet_if_all_is_fine(fleet):
    assert run("status", "oslo", "--quiet") == (0, "", "")
    assert run("status", "--quiet").lines[0].startswith("2 of 4 proxies are down")


def test_status__before_the_first_round(db):
    WorkspaceProxy.objects.create(name="oslo")
    result = run("status")
    assert result.status == 2
    assert result.lines[0] == "No round has ended yet: no status is known"
    assert "worker" in result.lines[1]


def test_status__stale_rounds_are_wrong(fleet, configure):
    for name in ("paris", "sydney"):
        WorkspaceProxy.objects.filter(name=name).update(deleted=True)
    health.force_update()
    assert run("status").status == 0
    configure(INTERVAL=0.01, STALE_AFTER=0.02)
    health.force_update()
    result = run("status")
    while result.status == 0:
        result = run("status")
    assert result.status == 1
    assert "nothing below is current" in result.out


def test_status__proxy_without_a_status_is_uncertain(fleet):
    WorkspaceProxy.objects.create(name="tokyo", url="http://127.0.0.1:1")
    assert run("status", "oslo", "tokyo").status == 2
    assert run("status", "oslo", "tokyo", "paris").status == 1


def test_status__redis_down(fleet, stopped):
    stopped()
    result = run("status")
    assert result.status == 2
    assert result.lines[0].startswith("No current status can be read")
    assert "paris" in result.out
    assert run("status", "--json").json["exit_status"] == 2


def test_status__database_down(fleet):
    from proxyhealth.testing import reset

    reset()
    with connection.execute_wrapper(refuse_queries):
        result = run("status")
    assert result[:2] == (2, "")
    assert result.err == ("The database cannot be used. Is it running, and migrated? the database is down")


def test_status__invalid_setting(fleet, configure):
    configure(READ_INTERVAL="soon")
    result = run("status")
    assert result.status == 2
    assert result.err.startswith("A setting is not valid. Run manage.py check. ")


def test_status__in_the_language_of_the_project_but_json_in_english(fleet):
    with translation.override("de"):
        result = run("status", "--json", "oslo")
    assert result.json["headline"] == "oslo is ok"


def test_status__colours(fleet, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mok" in run("status", terminal=True).out
    assert "\x1b" not in run("status", "--no-color", terminal=True).out
    assert "\x1b[32mok" in run("status", "--force-color").out
    for name, value in (("NO_COLOR", "1"), ("DJANGO_COLORS", "nocolor"), ("TERM", "dumb")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            assert "\x1b" not in run("status", terminal=True).out


def test_status__fits_the_terminal(fleet, monkeypatch):
    fleet["paris"].report = {"errors": ["日本語の長い文章" * 20], "warnings": []}
    health.force_update()
    for columns in (20, 34, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = run("status", "--no-color", terminal=True).lines
        table = lines[lines.index("") + 1 :]
        assert max(map(cell_len, table)) <= columns
        assert all(any(name[:4] in line for line in table) for name in ("sydney", "paris", "oslo", "rome"))
