"""``manage.py proxyhealth check``: by the workers, and in this process."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import recheck
from proxyhealth.storage.client import open_cache
from tests.cli.conftest import Terminal, run
from tests.support.proxies import queued

pytestmark = pytest.mark.django_db


@pytest.fixture
def eager(monkeypatch):
    """The workers do each task at once, in this process."""
    from project.celery import app

    monkeypatch.setitem(app.conf, "task_always_eager", True)


def test_check_local__says_what_changed(fleet):
    fleet["paris"].report = {"errors": [], "warnings": []}
    result = run("check", "--local")
    assert result.status == 1  # sydney
    assert result.lines[:2] == ["Checked. Changed:", "  paris: unhealthy → ok"]
    assert run("check", "--local", "oslo").lines[0] == "Checked. Nothing has changed."


def test_check_local__only_the_chosen_proxies(fleet):
    before = {name: server.requests for name, server in fleet.items()}
    assert run("check", "--local", "--label", "region:eu", "--status", "ok").status == 0
    after = {name: server.requests for name, server in fleet.items()}
    assert {name: after[name] - count for name, count in before.items()} == {"oslo": 1, "paris": 0, "rome": 1}


def test_check_local__reports_the_same_proxies_after_a_change(fleet):
    fleet["paris"].report = {"errors": [], "warnings": []}
    result = run("check", "--local", "--status", "unhealthy", "--json")
    assert [each["name"] for each in result.json["regions"]] == ["paris"]
    (change,) = result.json["changes"]
    assert (change["name"], change["before"], change["after"]) == ("paris", "unhealthy", "ok")
    assert (result.json["state"], result.json["exit_status"]) == ("done", 0)


def test_check_local__proxy_that_is_deleted_meanwhile(fleet, monkeypatch):
    def delete(*args, **options):
        WorkspaceProxy.objects.filter(name="oslo").update(deleted=True)
        return run_check(*args, **options)

    run_check = recheck.run_check
    monkeypatch.setattr(recheck, "run_check", delete)
    result = run("check", "--local", "oslo", "rome")
    assert result.status == 0
    assert result.lines[:2] == ["Checked. Changed:", "  oslo: ok → deleted"]


def test_check__nothing_chosen(fleet):
    assert run("check", "--status", "unregistered")[::2] == (2, "No proxy has this status now.")


def test_check__by_workers(fleet, eager):
    fleet["paris"].report = {"errors": [], "warnings": []}
    assert run("check", "paris").lines[:2] == ["Checked. Changed:", "  paris: unhealthy → ok"]
    fleet["oslo"].report = {"errors": ["full"], "warnings": []}
    result = run("check", "--json")
    assert result.status == 1
    assert [change["name"] for change in result.json["changes"]] == ["oslo"]


def test_check__without_a_worker(fleet):
    result = run("check", "paris", "--wait", "0.1")
    assert result[:2] == (2, "")
    assert result.err == "The check has not ended within 0.1 s. The check waits for a worker."


def test_check__without_waiting(fleet, redis_client):
    assert run("check", "paris", "--wait", "0") == (
        0,
        "The workers are asked to check. The statuses change after that.\n",
        "",
    )
    assert "proxyhealth.tasks.check_proxies" in [header["task"] for header in queued(redis_client)]
    assert run("check", "paris", "--wait", "0", "--json").json == {"state": "requested", "exit_status": 0}


@pytest.mark.parametrize("args", [["--local"], []])
def test_check__redis_down(fleet, stopped, args):
    stopped()
    result = run("check", *args)
    assert result[:2] == (2, "")
    assert result.err.startswith(("The check failed: the cache cannot be used", "Redis cannot be used."))


def test_check_local__ctrl_c_leaves_no_lease(fleet, monkeypatch):
    """The interrupt arrives while the round probes."""
    from proxyhealth.probing import pool

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool._Prober, "next_statuses", interrupt)
    assert run("check", "--local") == (130, "", "")
    with open_cache() as cache:
        assert cache.client.get(cache.key("lease")) is None
    monkeypatch.undo()
    assert run("check", "--local").status == 1


def test_check_local__shows_a_bar_on_a_terminal(fleet, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out, err = StringIO(), Terminal()
    WorkspaceProxy.objects.filter(name__in=["paris", "sydney"]).update(deleted=True)
    call_command("proxyhealth", "check", "--local", stdout=out, stderr=err)
    assert "Probing" in err.getvalue()
    assert err.getvalue().endswith("\x1b[2K")  # removed
    assert "\x1b" not in out.getvalue()


def test_check__narrow_terminal_wraps_the_progress(fleet, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    err = Terminal()
    with pytest.raises(CommandError, match="has not ended within"):
        call_command("proxyhealth", "check", "paris", "--wait", "0.3", stdout=StringIO(), stderr=err)
    words = err.getvalue().split()
    assert {"The", "check", "waits", "for", "a", "worker."} <= {*words}
