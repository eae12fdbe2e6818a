"""The strips of proxies, in virtual time."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from proxyhealth.history.strips import strips
from proxyhealth.models import Transition
from proxyhealth.snapshot import Snapshot
from tests.history.timeline import DAY, HOUR, MINUTE, SECOND, Timeline, to_time

pytestmark = pytest.mark.django_db


def cells(timeline, id, window="24h", **values):
    if not Transition.objects.exists():
        timeline.store()
    return strips(timeline.snapshot(**values), [id], window)[id]


def test_24h__cells_of_half_an_hour_until_now():
    timeline = Timeline()
    found = cells(
        timeline, timeline.proxy((95 * DAY, "ok"), (90 * MINUTE, "unreachable"), (80 * MINUTE, "ok"))
    )
    assert len(found) == 48
    assert found[-1].end == to_time(timeline.now)
    assert {cell.end - cell.start for cell in found} == {timedelta(minutes=30)}
    assert [cell[2:] for cell in found[-4:]] == [(1800, 0, 0), (1200, 600, 0), (1800, 0, 0), (1800, 0, 0)]


def test_90d__cells_of_local_days():
    timeline = Timeline()  # on 2026-11-27; Berlin has changed its clocks on 2026-10-25
    with timezone.override(ZoneInfo("Europe/Berlin")):
        found = cells(timeline, timeline.proxy((95 * DAY, "ok")), "90d")
        starts = [timezone.localtime(cell.start) for cell in found]
    assert len(found) == 90
    assert {(start.hour, start.minute, start.second) for start in starts} == {(0, 0, 0)}
    (long,) = [start for start, cell in zip(starts, found, strict=True) if cell.up == 25 * 3600]
    assert f"{long:%Y-%m-%d}" == "2026-10-25"
    assert found[-1].end == to_time(timeline.now)


def test_gap__is_neither_up_nor_down():
    timeline = Timeline(gaps=[(2 * HOUR, HOUR)])
    found = cells(timeline, timeline.proxy((95 * DAY, "unhealthy")))
    assert [cell[2:] for cell in found[-5:]] == [
        (0, 1800, 0),
        *[(0, 0, 1800)] * 2,
        *[(0, 1800, 0)] * 2,
    ]


def test_stale_snapshot__is_unknown_from_when_it_is_stale():
    timeline = Timeline(round=HOUR)
    found = cells(timeline, timeline.proxy((95 * DAY, "ok")))
    assert [cell[2:] for cell in found[-3:]] == [(1800, 0, 0), (180, 0, 1620), (0, 0, 1800)]


def test_offline__is_unknown_since_the_last_round():
    timeline = Timeline(round=MINUTE)
    found = cells(timeline, timeline.proxy((95 * DAY, "unreachable")), offline="no network")
    assert found[-1][2:] == (0, 1740, 60)


@pytest.mark.parametrize("window", ["24h", "90d"])
def test_before_the_first_status__is_unknown(window):
    timeline = Timeline()
    found = cells(timeline, timeline.proxy((10 * MINUTE, "ok")), window)
    assert sum(cell.up for cell in found) == 600
    assert sum(cell.down for cell in found) == 0


def test_unregistered__is_unknown():
    timeline = Timeline()
    id = timeline.proxy((95 * DAY, "ok"), (40 * MINUTE, "unregistered"), (20 * MINUTE, "unreachable"))
    assert [cell[2:] for cell in cells(timeline, id)[-2:]] == [(1200, 0, 600), (0, 1200, 600)]


@pytest.mark.parametrize("window", ["24h", "90d"])
def test_nothing_is_known__without_a_history(window):
    id = uuid4()
    found = strips(Snapshot(), [id], window)[id]
    assert {cell.unknown == (cell.end - cell.start).total_seconds() for cell in found} == {True}


def test_nothing_is_known__of_another_proxy():
    timeline = Timeline()
    timeline.proxy((95 * DAY, "ok"))
    assert {cell.up + cell.down for cell in cells(timeline, uuid4())} == {0}


def test_deleted_history__is_unknown(settings):
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "HISTORY_DAYS": 2}
    timeline = Timeline()
    found = cells(timeline, timeline.proxy((95 * DAY, "ok")), "90d")
    assert sum(cell.up for cell in found) == 2 * 86_400


def test_rows_that_do_not_fit__never_exceed_a_cell():
    timeline = Timeline()
    id = timeline.proxy((95 * DAY, "ok"), (HOUR, "unreachable"), (30 * MINUTE, "ok"))
    timeline.store()
    Transition.objects.filter(after="unreachable").update(watched=timeline.watched(0) - SECOND)
    for cell in cells(timeline, id):
        assert min(cell[2:]) >= 0
        assert cell.up + cell.down + cell.unknown == (cell.end - cell.start).total_seconds()


@pytest.mark.parametrize("count", [5, 50])
def test_queries__as_many_for_any_number_of_proxies(count, django_assert_num_queries):
    timeline = Timeline()
    ids = [
        *(timeline.proxy((95 * DAY, "ok")) for _ in range(count)),
        *(timeline.proxy((95 * DAY, "ok"), (HOUR, "unhealthy")) for _ in range(count)),
    ]
    timeline.store()
    with django_assert_num_queries(4):  # two of them are those of the clock
        strips(timeline.snapshot(), ids, "90d")
