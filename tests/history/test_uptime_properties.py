"""The uptime of any history is that of a naive reading."""

from __future__ import annotations

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxyhealth.history.uptime import uptimes
from tests.history.timeline import DAY, MINUTE, Timeline

pytestmark = pytest.mark.django_db

# Near the edges of the windows, and anywhere.
edges = st.sampled_from([0, DAY, 7 * DAY, 30 * DAY, 90 * DAY])
times = st.builds(lambda edge, part: abs(edge + part), edges, st.integers(-3, 3)) | st.integers(0, 100 * DAY)
statuses = st.sampled_from(["ok", "unhealthy", "unreachable", "unregistered", "removed"])


@st.composite
def timelines(draw):
    ages = st.just(0) | st.integers(0, 10 * MINUTE) | st.integers(0, 40 * DAY)
    timeline = Timeline(begin=draw(st.sampled_from([2, 100])) * DAY + 5, round=draw(ages))
    latest = timeline.round
    marks = sorted(
        draw(st.sets(times.filter(lambda at: latest <= at < timeline.begin), max_size=8)), reverse=True
    )
    timeline.gaps = list(zip(marks[::2], marks[1::2], strict=False))
    for changes in draw(st.lists(st.dictionaries(times, statuses, max_size=12), min_size=1, max_size=3)):
        usable = [
            (at, changes[at]) for at in sorted(changes, reverse=True) if timeline.end <= at < timeline.begin
        ]
        timeline.proxy(*((at, status) for at, status in usable))
    return timeline


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_uptime__of_any_history(db, data):
    with transaction.atomic():
        timeline = data.draw(timelines())
        timeline.store()
        found = uptimes(timeline.snapshot())
        for id in {id for _, id, _ in timeline.changes}:
            assert dict(found[id]) == pytest.approx(timeline.naive_uptime(id))
        transaction.set_rollback(True)
