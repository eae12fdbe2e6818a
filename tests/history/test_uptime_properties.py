"""The uptime and the strips of any history are those of a naive reading."""

from __future__ import annotations

from datetime import UTC, timedelta
from datetime import timezone as fixed_zone
from zoneinfo import ZoneInfo

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxyhealth.history.strips import strips
from proxyhealth.history.uptime import uptimes
from tests.history.timeline import DAY, MINUTE, Timeline, to_time

pytestmark = pytest.mark.django_db

# Near the edges of the windows, or anywhere.
edges = st.sampled_from([0, DAY, 7 * DAY, 30 * DAY, 90 * DAY])
times = st.builds(lambda edge, part: edge + part, edges, st.integers(-3, 3)) | st.integers(0, 100 * DAY)
changes = st.tuples(times, st.sampled_from(["ok", "unhealthy", "unreachable", "unregistered", "removed"]))


@st.composite
def timelines(draw):
    timeline = Timeline(
        begin=draw(st.sampled_from([2, 100])) * DAY + 5,
        round=draw(st.sampled_from([0, 1, MINUTE, 10 * MINUTE]) | st.integers(0, 2 * DAY)),
    )

    def within(at, end):
        return min(max(at, end), timeline.begin - 1)

    marks = {within(at, timeline.round) for at in draw(st.lists(times, max_size=8))}
    _, *others = sorted(marks | {timeline.round})
    timeline.gaps = list(zip(others[1::2], others[::2], strict=False))[::-1]
    for proxy in draw(st.lists(st.lists(changes, max_size=10), min_size=1, max_size=3)):
        statuses = {within(at, timeline.end): status for at, status in proxy}
        timeline.proxy(*sorted(statuses.items(), reverse=True))
    return timeline


def _examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@_examples(20)
@given(st.data())
def test_uptime__of_any_history(db, data):
    with transaction.atomic():
        timeline = data.draw(timelines())
        timeline.store()
        found = uptimes(timeline.snapshot())
        for id in {id for _, id, _ in timeline.changes}:
            assert dict(found[id]) == timeline.naive_uptime(id)
        transaction.set_rollback(True)


def _zone_in_which_it_is_midnight(time):
    time = time.astimezone(UTC)
    return fixed_zone(time.replace(hour=12, minute=0, second=0, microsecond=0) - time - timedelta(hours=12))


@_examples(8)
@given(st.data(), st.sampled_from(["24h", "90d"]))
def test_strips__of_any_history(db, data, window):
    with transaction.atomic():
        timeline = data.draw(timelines())
        timeline.store()
        midnight = _zone_in_which_it_is_midnight(to_time(timeline.now))
        zone = data.draw(st.sampled_from([midnight, ZoneInfo("Europe/Berlin"), ZoneInfo("America/Havana")]))
        ids = {id for _, id, _ in timeline.changes}
        with timezone.override(zone):
            found = strips(timeline.snapshot(), ids, window)
        for id in ids:
            for cell in found[id]:
                up, known = timeline.naive_seconds(id, timeline.ago(cell.start), timeline.ago(cell.end))
                assert (cell.up, cell.down) == pytest.approx((up, known - up), abs=2e-6)
                assert sum(cell[2:]) == pytest.approx((cell.end - cell.start).total_seconds(), abs=2e-6)
            if window == "24h" or zone is midnight:
                sums = sum(cell.up for cell in found[id]), sum(cell.down for cell in found[id])
                up, known = uptimes(timeline.snapshot())[id][window]
                assert sums == pytest.approx((up, known - up), abs=1e-3)
        transaction.set_rollback(True)
