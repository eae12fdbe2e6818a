"""The uptime of any history is that of a naive reading."""

from __future__ import annotations

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxyhealth.history.uptime import uptimes
from tests.history.timeline import DAY, MINUTE, Timeline

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


@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.generate],
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_uptime__of_any_history(db, data):
    with transaction.atomic():
        timeline = data.draw(timelines())
        timeline.store()
        found = uptimes(timeline.snapshot())
        for id in {id for _, id, _ in timeline.changes}:
            assert dict(found[id]) == timeline.naive_uptime(id)
        transaction.set_rollback(True)
