"""``manage.py proxyhealth history`` and ``outages``."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from proxyhealth import health
from proxyhealth.models import Gap, Outage, WorkspaceProxy
from proxyhealth.storage.lease import take_token
from proxyhealth.tasks import record_history
from tests.cli.conftest import run
from tests.support.api import LIST, signed_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def recorded(fleet):
    record_history()
    return fleet


def outage_of(name):
    return Outage.objects.get(proxy_name=name)


def test_history__transitions_uptime_and_gaps(recorded):
    now = timezone.now()
    Gap.objects.create(
        start=now - timedelta(minutes=90),
        end=now,
        why="no_rounds",
        token=take_token(),
        microseconds=5_400_000_000,
    )
    Gap.objects.create(start=now, end=now, why="offline", token=1, microseconds=0)  # before its time
    result = run("history", "paris")
    assert result.status == 0
    assert result.lines[0] == "paris: unhealthy"
    assert result.lines[1].startswith("Uptime: 24h 0.000 %, 7d 0.000 %")
    assert "unknown  unhealthy" in result.out
    assert "report_errors: kaputt" in result.out
    assert "1 h 30 min  no rounds" in result.out
    assert "offline" not in result.out


def test_history__json_is_that_of_the_api_with_gaps(recorded):
    api = signed_in("view_workspaceproxy").get(f"{LIST}/paris/history").json()
    found = run("history", "PARIS", "--json").json
    id = str(WorkspaceProxy.objects.get(name="paris").pk)
    assert found.items() >= {"id": id, "name": "paris", "gaps": [], "exit_status": 0}.items()
    assert found["transitions"] == api["transitions"]
    assert api.keys() < found.keys()


def test_history__of_a_deleted_proxy(recorded):
    paris = WorkspaceProxy.objects.get(name="paris")
    paris.deleted = True
    paris.save()
    health.force_update()
    record_history()
    for name in ("Paris", str(paris.pk)):
        assert run("history", name).lines[0] == "paris: deleted"


def test_history__limit(recorded):
    recorded["paris"].report = {"errors": [], "warnings": []}
    health.force_update()
    record_history()
    result = run("history", "paris", "--limit", "1")
    assert "There are earlier changes: use --limit." in result.out
    assert len(run("history", "paris", "--limit", "1", "--json").json["transitions"]) == 1


def test_history__without_changes(db):
    WorkspaceProxy.objects.create(name="oslo")
    result = run("history", "oslo")
    assert (result.status, result.lines[-1]) == (0, "No change of its status has been recorded yet.")
    assert run("history", "osla")[::2] == (2, "No proxy has the name or id “osla”. Did you mean oslo?")


def test_outages__list_and_exit_status(recorded):
    result = run("outages", "--open")
    assert result.status == 1
    assert [line.split()[1] for line in result.lines[1:]] == ["sydney", "paris"]
    Outage.objects.update(ended_at=timezone.now())
    assert run("outages", "--open") == (0, "There are no such outages.\n", "")
    assert run("outages").status == 0


def test_outages__json_is_that_of_the_api(recorded):
    api = signed_in("view_workspaceproxy").get(f"{LIST}/outages").json()
    assert run("outages", "--json").json == {**api, "exit_status": 1}


def test_outages__acknowledge(recorded, admin_user):
    id = str(outage_of("paris").pk)
    assert run("outages", "--acknowledge", id, "--by", "admin", "--note", "power") == (
        0,
        f"Outage {id} is acknowledged.\n",
        "",
    )
    row = outage_of("paris")
    assert (row.acknowledged_by, row.acknowledged_name, row.note) == (admin_user, "admin", "power")
    assert "admin: power" in run("outages").out
    assert run("outages", "--unacknowledge", id, "--json").json == {"outages": [int(id)], "exit_status": 0}
    assert outage_of("paris").acknowledged_at is None


def test_outages__acknowledge_all_or_none(recorded):
    first, second = outage_of("paris"), outage_of("sydney")
    Outage.objects.filter(pk=second.pk).update(ended_at=timezone.now())
    result = run("outages", "--acknowledge", str(first.pk), "--acknowledge", str(second.pk))
    assert result[:2] == (2, "")
    assert result.err.startswith(f"Outage {second.pk} has ended. Nothing was changed.")
    assert outage_of("paris").acknowledged_at is None
    assert run("outages", "--acknowledge", "9999").err.startswith("There is no outage 9999.")


def test_outages__nonsense_is_refused(recorded):
    for args, message in (
        (["--by", "nobody"], "There is no user “nobody”. Give the name of a user."),
        (["--note", "x" * 2_001], "The note is not valid. "),
        (["--note", "a\x00b"], "The note is not valid. "),
        (["--note", "\udcff"], "An argument is not valid text. Write it in UTF-8."),
    ):
        result = run("outages", "--acknowledge", str(outage_of("paris").pk), *args)
        assert result.status == 2
        assert result.err.startswith(message)
        assert outage_of("paris").acknowledged_at is None


def test_outages__note_without_an_outage(recorded):
    assert run("outages", "--note", "x")[::2] == (2, "--note and --by belong to --acknowledge ID.")
