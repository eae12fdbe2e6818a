"""The day of history that a new demo has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from project.fleet import FLEET
from project.history import MARK, make_up_history, make_up_probes
from project.run import _prepare_fleet
from project.startup import DEMO_MODE, WITH_HISTORY
from proxyhealth.models import Gap, Outage, Transition, Watch
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.statuses import Status
from proxyhealth.storage.probes import read_probes

pytestmark = pytest.mark.django_db

END = datetime(2026, 3, 29, 12, 34, 56, 789012, tzinfo=UTC)
MEMBERS = {member.name: member for member in FLEET}
SECOND = 1_000_000


@pytest.fixture
def demo_mode(monkeypatch):
    monkeypatch.setenv(DEMO_MODE, WITH_HISTORY)
    _prepare_fleet(8000)


@pytest.fixture
def history(demo_mode):
    """The made-up transitions of each proxy, the oldest first."""
    assert make_up_history(END)
    rows = list(Transition.objects.order_by("pk"))
    return {name: [row for row in rows if row.proxy_name == name] for name in MEMBERS}


def test_made_up_history__rows_of_a_proxy_form_a_chain(history):
    for name, rows in history.items():
        assert rows[0].before == Status.UNKNOWN
        assert rows[0].at == END - timedelta(days=1)
        for earlier, later in pairwise(rows):
            assert later.before == earlier.after != later.after, name
            assert later.token > earlier.token
            assert later.watched > earlier.watched
        assert rows[-1].at < END


def test_made_up_history__ends_as_the_fleet_is(history):
    """The first round finds the same statuses, so it writes no transition."""
    for name, member in MEMBERS.items():
        assert (history[name][-1].after, history[name][-1].reason) == (member.status, member.reason)
    last = {row.proxy_name: row for row in Transition.objects.last_of_each()}
    assert last == {name: rows[-1] for name, rows in history.items()}


def test_made_up_history__has_the_outages_of_its_rows(history):
    """Otherwise the first mail of the demo would say that nothing else is in an outage."""
    failing = {name for name, member in MEMBERS.items() if member.status in BAD_STATUSES}
    assert failing
    assert set(Outage.objects.open().values_list("proxy_name", flat=True)) == failing
    rows = [row for rows in history.values() for row in rows]
    begins = {row.token for row in rows if row.after in BAD_STATUSES and row.before not in BAD_STATUSES}
    assert {outage.token for outage in Outage.objects.all()} == begins


def test_made_up_history__times_fit_the_gap(history):
    gap, watch = Gap.objects.get(), Watch.objects.get(pk=1)
    assert gap.microseconds == (gap.end - gap.start) / timedelta(microseconds=1)
    assert gap.token == gap.end.timestamp() * SECOND
    assert watch.token == END.timestamp() * SECOND
    assert watch.watched == 24 * 3600 * SECOND - gap.microseconds
    rows = Transition.objects.all()
    for row in rows:
        assert row.token == round(row.at.timestamp() * SECOND)
        missed = gap.microseconds if row.at >= gap.end else 0
        assert row.watched == (row.at - END) / timedelta(microseconds=1) + 24 * 3600 * SECOND - missed
        assert not gap.start <= row.at < gap.end
    assert any(row.at == gap.end for row in rows), "a change was found after the gap"


def test_made_up_history__is_marked_and_sends_no_signal(history):
    for row in Transition.objects.all():
        assert row.report["warnings"] == [MARK]
        assert row.signal_due_at is None
        assert ("errors" in row.report) == (row.after in (Status.UNHEALTHY, Status.UNREACHABLE))


def test_made_up_history__has_flapping_and_a_long_outage(history):
    assert len(history["sao-paulo"]) > 10
    assert END - history["dublin"][-1].at > timedelta(hours=12)


def test_made_up_history__never_twice_or_beside_a_real_one(demo_mode):
    Watch.objects.create(pk=1, token=1, watched=0)
    assert not make_up_history(END)
    Watch.objects.all().delete()
    assert make_up_history(END)
    assert not make_up_history(END + timedelta(days=1))
    assert Gap.objects.count() == 1


def test_made_up_history__never_outside_of_the_demo(monkeypatch):
    for mode in ("", "1"):  # "1" has a Redis that may not be empty
        monkeypatch.setenv(DEMO_MODE, mode)
        with pytest.raises(RuntimeError, match="only for the demo"):
            make_up_history(END)
    assert not Transition.objects.exists()


def test_made_up_probes__agree_with_the_history(demo_mode, redis_client):
    end = datetime.now(UTC)
    assert make_up_history(end)
    make_up_probes(end)
    gap = Gap.objects.get()
    for id, probes in read_probes(Transition.objects.values_list("proxy_uuid", flat=True)).items():
        rows = list(Transition.objects.filter(proxy_uuid=id).order_by("pk"))
        assert 690 < len(probes) < 720 + 40, "one every two minutes"
        for probe in probes:
            assert not gap.start < probe.at < gap.end - timedelta(seconds=1)
            # Probes have whole seconds.
            begun = [row for row in rows if row.at <= probe.at + timedelta(seconds=1)]
            assert (probe.status, probe.reason) == (begun[-1].after, begun[-1].reason)
            assert (probe.latency is None) == (probe.status in (Status.UNREACHABLE, Status.UNREGISTERED))


@pytest.mark.parametrize("model", ["transition", "gap"])
def test_made_up_history__lists_say_so_in_the_demo(admin_client, monkeypatch, model):
    notice = "The first day of this demo is made up"
    for mode in ("", "1", WITH_HISTORY):
        monkeypatch.setenv(DEMO_MODE, mode)
        text = admin_client.get(f"/admin/proxyhealth/{model}/").content.decode()
        assert (notice in text) == (mode == WITH_HISTORY)
        assert notice not in admin_client.get("/admin/proxyhealth/workspaceproxy/").content.decode()
