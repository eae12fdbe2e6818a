"""The uptime of proxies, in virtual time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync

from proxyhealth import health
from proxyhealth.history.uptime import NOTHING, WINDOWS, Uptime, total, uptime_of, uptimes
from proxyhealth.models import Transition, Watch, WorkspaceProxy
from proxyhealth.snapshot import Snapshot
from proxyhealth.testing import fake_snapshot
from tests.history.timeline import DAY, HOUR, MINUTE, SECOND, Timeline, to_time

pytestmark = pytest.mark.django_db


def measure(timeline, id, **values):
    """Store the timeline, and return the uptime of a proxy, which agrees with the naive one."""
    timeline.store()
    found = uptimes(timeline.snapshot(**values), [id])[id]
    if not values:
        assert dict(found) == timeline.naive_uptime(id)
    return found


def test_uptime__of_a_proxy_that_was_never_down():
    timeline = Timeline()
    found = measure(timeline, timeline.proxy((95 * DAY, "ok")))
    assert found == {name: Uptime(days * 86_400, days * 86_400) for name, days in WINDOWS.items()}


def test_uptime__of_a_proxy_that_was_never_up():
    timeline = Timeline()
    found = measure(timeline, timeline.proxy((95 * DAY, "unreachable"), (2 * HOUR, "unhealthy")))
    assert found == {name: Uptime(0, days * 86_400) for name, days in WINDOWS.items()}
    assert found["24h"].ratio == 0


def test_uptime__adds_outages_up_in_each_window():
    timeline = Timeline()
    outages = [(80 * DAY, 3 * HOUR), (20 * DAY, HOUR), (3 * DAY, 10 * MINUTE), (5 * HOUR, SECOND)]
    changes = [
        (at - part, status) for at, length in outages for part, status in ((0, "unhealthy"), (length, "ok"))
    ]
    found = measure(timeline, timeline.proxy((95 * DAY, "ok"), *changes))
    down = {name: round(known - up, 6) for name, (up, known) in found.items()}
    assert down == {"24h": 1, "7d": 601, "30d": 4_201, "90d": 15_001}


def test_uptime__of_a_new_proxy_begins_with_its_first_status():
    timeline = Timeline()
    found = measure(timeline, timeline.proxy((2 * HOUR, "ok"), (HOUR, "unreachable")))
    assert set(found.values()) == {Uptime(3_600, 7_200)}


@pytest.mark.parametrize(("at", "up"), [(DAY + 1, 0), (DAY, 0), (DAY - 1, 1e-6), (DAY - 2, 2e-6)])
def test_window__begins_at_its_microsecond(at, up):
    timeline = Timeline()
    found = measure(timeline, timeline.proxy((95 * DAY, "ok"), (at, "unreachable")))
    assert found["24h"] == Uptime(up, 86_400)


@pytest.mark.parametrize("at", [0, 1])
def test_window__ends_at_its_microsecond(at):
    timeline = Timeline()
    found = measure(timeline, timeline.proxy((95 * DAY, "unreachable"), (at, "ok")))
    assert found["24h"] == Uptime(at / SECOND, 86_400)


def test_windows__before_the_history_know_less():
    timeline = Timeline(begin=3 * DAY)
    found = measure(timeline, timeline.proxy((3 * DAY, "ok"), (2 * DAY, "unreachable"), (DAY, "ok")))
    assert found["7d"] == found["90d"] == Uptime(2 * 86_400, 3 * 86_400)


@pytest.mark.parametrize(
    ("gaps", "known"),
    [
        ([(DAY + HOUR, DAY - HOUR)], 23),
        ([(DAY + 2 * HOUR, DAY + HOUR)], 24),
        ([(DAY, DAY - HOUR), (DAY - HOUR, DAY - 2 * HOUR), (3 * HOUR, HOUR)], 20),
        ([(2 * DAY, HOUR)], 1),
    ],
)
def test_gaps__are_neither_up_nor_down(gaps, known):
    timeline = Timeline(gaps=gaps)
    up, down = timeline.proxy((95 * DAY, "ok")), timeline.proxy((95 * DAY, "unreachable"))
    assert measure(timeline, up)["24h"] == Uptime(known * 3_600, known * 3_600)
    assert uptimes(timeline.snapshot())[down]["24h"] == Uptime(0, known * 3_600)


def test_gap__transition_at_its_end():
    timeline = Timeline(gaps=[(10 * HOUR, 8 * HOUR)])
    found = measure(timeline, timeline.proxy((95 * DAY, "ok"), (8 * HOUR, "unreachable")))
    assert found["24h"] == Uptime(14 * 3_600, 22 * 3_600)


def test_gap__transitions_of_checks_within():
    timeline = Timeline(gaps=[(10 * HOUR, 5 * HOUR)])
    changes = (9 * HOUR, "unreachable"), (8 * HOUR, "ok"), (7 * HOUR, "unreachable"), (6 * HOUR, "ok")
    found = measure(timeline, timeline.proxy((95 * DAY, "ok"), *changes))
    assert found["24h"] == Uptime(19 * 3_600, 19 * 3_600)


@pytest.mark.parametrize(("age", "known"), [(MINUTE, 0), (3 * MINUTE, 0), (HOUR, 57 * 60), (DAY, 86_220)])
def test_open_gap__begins_when_the_snapshot_is_stale(age, known):
    timeline = Timeline(round=age)
    found = measure(timeline, timeline.proxy((95 * DAY, "ok")))
    assert found["24h"] == Uptime(86_400 - known, 86_400 - known)


def test_open_gap__longer_than_the_window_leaves_nothing_known():
    timeline = Timeline(round=30 * HOUR)
    id = timeline.proxy((95 * DAY, "ok"))
    assert measure(timeline, id)["24h"].ratio is None
    assert uptime_of(id, timeline.snapshot())["24h"] is None
    assert uptime_of(id, timeline.snapshot())["7d"] == 1


@pytest.mark.parametrize("fault", ["offline", "fault"])
def test_open_gap__begins_with_the_last_round_if_nobody_can_probe(fault):
    timeline = Timeline(round=2 * MINUTE)
    found = measure(timeline, timeline.proxy((95 * DAY, "ok")), **{fault: "no network"})
    assert found["24h"] == Uptime(86_280, 86_280)


def test_unregistered__is_not_an_outage():
    timeline = Timeline()
    changes = (
        (95 * DAY, "unregistered"),
        (6 * HOUR, "ok"),
        (5 * HOUR, "unregistered"),
        (2 * HOUR, "unreachable"),
    )
    found = measure(timeline, timeline.proxy(*changes, (HOUR, "ok")))
    assert found["24h"] == Uptime(2 * 3_600, 3 * 3_600)


def test_status_of_a_newer_version__is_not_known():
    timeline = Timeline()
    found = measure(timeline, timeline.proxy((95 * DAY, "ok"), (2 * HOUR, "haunted")))
    assert found["24h"] == Uptime(22 * 3_600, 22 * 3_600)


def test_removed__keeps_the_time_before():
    timeline = Timeline()
    id = timeline.proxy((95 * DAY, "ok"), (20 * HOUR, "unreachable"), (10 * HOUR, "removed"))
    assert measure(timeline, id)["24h"] == Uptime(4 * 3_600, 14 * 3_600)
    WorkspaceProxy.objects.filter(pk=id).update(deleted=True)
    assert uptimes(timeline.snapshot())[id]["24h"] == Uptime(4 * 3_600, 14 * 3_600)
    WorkspaceProxy.objects.all().delete()
    assert uptimes(timeline.snapshot(), [id])[id]["24h"] == Uptime(4 * 3_600, 14 * 3_600)


def test_removed__and_added_again():
    timeline = Timeline()
    id = timeline.proxy((95 * DAY, "ok"), (20 * HOUR, "removed"), (2 * HOUR, "unreachable"), (HOUR, "ok"))
    assert measure(timeline, id)["24h"] == Uptime(5 * 3_600, 6 * 3_600)


def test_name__of_another_proxy_does_not_matter():
    timeline = Timeline()
    old = timeline.proxy((95 * DAY, "ok"), (12 * HOUR, "removed"), name="paris")
    new = timeline.proxy((12 * HOUR, "unreachable"), name="oslo")
    timeline.store()
    WorkspaceProxy.objects.filter(pk=old).update(deleted=True)
    WorkspaceProxy.objects.filter(pk=new).update(name="paris")
    found = uptimes(timeline.snapshot())
    assert found[old]["24h"] == Uptime(43_200, 43_200)
    assert found[new]["24h"] == Uptime(0, 43_200)


@pytest.mark.parametrize("days", [10, 92])
def test_pruned__windows_know_only_what_is_kept(configure, days):
    configure(HISTORY_DAYS=days)
    timeline = Timeline()
    changed = timeline.proxy((95 * DAY, "ok"), (93 * DAY, "unreachable"), (9 * DAY, "ok"))
    unchanged = timeline.proxy((95 * DAY, "ok"), (93 * DAY, "unreachable"), (9 * DAY, "unhealthy"))
    timeline.store()
    before = uptimes(timeline.snapshot())
    Transition.objects.filter(at__lt=to_time(timeline.now - days * DAY)).delete()
    assert uptimes(timeline.snapshot()) == before
    known = min(days, 90) * 86_400
    assert before[changed]["90d"] == Uptime(9 * 86_400, known)
    assert before[unchanged]["90d"] == Uptime(0, known)


def test_history__not_begun():
    id = uuid4()
    assert uptimes(Snapshot(), [id]) == {id: NOTHING}
    assert uptimes(Snapshot()) == {}
    assert uptime_of(id, Snapshot()) == dict.fromkeys(WINDOWS)


def test_uptimes__of_all_and_of_some():
    timeline = Timeline()
    ids = [timeline.proxy((95 * DAY, "ok"), (number * HOUR, "unreachable")) for number in range(4)]
    without_history = timeline.proxy()
    timeline.store()
    snapshot = timeline.snapshot()
    found = uptimes(snapshot)
    assert found == {id: timeline.naive_uptime(id) for id in (*ids, without_history)}
    assert uptimes(snapshot, ids[:2]) == {id: found[id] for id in ids[:2]}
    assert uptimes(snapshot, []) == {}
    assert total(found.values())["24h"] == Uptime((4 * 24 - 6) * 3_600, 4 * 86_400)
    assert total([]) == NOTHING


def test_queries__are_few(django_assert_num_queries):
    timeline = Timeline(gaps=[(3 * HOUR, 2 * HOUR)])
    for number in range(20):
        timeline.proxy((95 * DAY, "ok"), (number * 10 * DAY, "unreachable"))
    timeline.store()
    with django_assert_num_queries(4):
        uptimes(timeline.snapshot())


def test_drain__behind_the_snapshot_moves_no_window():
    """The snapshot has rounds that the history does not have yet."""
    timeline = Timeline(round=2 * MINUTE)
    id = timeline.proxy((95 * DAY, "ok"), (DAY, "unreachable"))
    timeline.store()
    newer = timeline.snapshot(watched=timeline.watched(0), age=0.0)
    assert uptimes(newer)[id]["24h"] == Uptime(0, 86_400)
    Watch.objects.update(token=Watch.objects.get().token - HOUR, watched=timeline.watched(0) - HOUR)
    assert uptimes(newer)[id]["24h"] == Uptime(0, 86_400 - 57 * 60)


def test_copy_of_the_process__behind_the_history_moves_no_window():
    timeline = Timeline()
    id = timeline.proxy((95 * DAY, "ok"), (DAY, "unreachable"))
    timeline.store()
    older = timeline.snapshot(watched=timeline.watched(2 * MINUTE), age=120.0)
    assert uptimes(older)[id]["24h"] == Uptime(0, 86_400)


@pytest.mark.parametrize(
    "change", [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)]
)
def test_daylight_saving__changes_no_duration(settings, change):
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    now = int(change.timestamp()) * SECOND + 2 * HOUR
    timeline = Timeline(now, gaps=[(3 * HOUR, HOUR)])
    changes = (DAY - HOUR, "unreachable"), (4 * HOUR, "ok"), (90 * MINUTE, "unreachable"), (30 * MINUTE, "ok")
    found = measure(timeline, timeline.proxy((95 * DAY, "ok"), *changes))
    assert found["24h"] == Uptime(2.5 * 3_600, 22 * 3_600)


def test_health__uptime_of_one_of_all_and_of_each():
    timeline = Timeline()
    up = timeline.proxy((95 * DAY, "ok"))
    down = timeline.proxy((95 * DAY, "unreachable"))
    timeline.now = time.time_ns() // 1000  # without a snapshot, the clock of this machine counts
    timeline.store()
    row = WorkspaceProxy.objects.get(pk=up)
    assert health.uptime(up) == health.uptime(row) == async_to_sync(health.auptime)(row)
    assert health.uptime(up)["24h"].ratio == 1
    assert health.uptimes().keys() == async_to_sync(health.auptimes)().keys() == {up, down}
    assert health.uptime()["24h"].ratio == 0.5
    with fake_snapshot(paris="ok"):
        assert health.uptime(down)["24h"].ratio == 0, "fakes have no history of their own"
