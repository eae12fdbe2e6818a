"""The headline: one true sentence about all proxies."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import translation

from proxyhealth.overview.headline import Level, headline
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Status
from tests.support.values import make_proxy, make_status

NOW = datetime.now(UTC)
FRESH = Snapshot(checked_at=NOW, stale_at=NOW + timedelta(days=1))
NEVER = Snapshot()
LATE = Snapshot(
    checked_at=NOW - timedelta(minutes=4, seconds=5), stale_at=NOW - timedelta(seconds=1), committed_at=NOW
)


def fleet(**counts):
    return [
        make_status(make_proxy(f"{status}-{i}"), Status(status))
        for status, count in counts.items()
        for i in range(count)
    ]


def text_of(snapshot, statuses):
    return headline(snapshot, statuses, NOW).text


@pytest.mark.parametrize(
    ("counts", "level", "text"),
    [
        ({"ok": 1234}, Level.OK, "All 1,234 proxies are ok"),
        ({"ok": 1}, Level.OK, "The only proxy is ok"),
        ({}, Level.OK, "There are no workspace proxies"),
        ({"ok": 3, "unhealthy": 1}, Level.DOWN, "1 of 4 proxies is down"),
        ({"ok": 3, "unhealthy": 1, "unreachable": 1}, Level.DOWN, "2 of 5 proxies are down"),
        ({"unreachable": 2}, Level.DOWN, "All 2 proxies are down"),
        ({"unreachable": 1}, Level.DOWN, "The only proxy is down"),
        ({"ok": 1, "unregistered": 1}, Level.OK, "No proxy is down, 1 of 2 is not registered yet"),
        ({"ok": 1, "unregistered": 2}, Level.OK, "No proxy is down, 2 of 3 are not registered yet"),
        ({"unknown": 1}, Level.UNKNOWN, "No proxy is known to be down, but 1 of 1 has no status yet"),
        (
            {"unknown": 2, "ok": 1},
            Level.UNKNOWN,
            "No proxy is known to be down, but 2 of 3 have no status yet",
        ),
    ],
)
def test_headline__fresh_snapshot(counts, level, text):
    found = headline(FRESH, fleet(**counts), NOW)
    assert (found.text, found.level) == (text, level)
    assert {status: count for status, count in found.counts.items() if count} == counts


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"ok": 147, "unhealthy": 1}, "1 of 148 proxies is down, for 3 h 12 min"),
        ({"ok": 146, "unhealthy": 2}, "2 of 148 proxies are down, the first for 3 h 12 min"),
        ({"unhealthy": 2}, "All 2 proxies are down, the first for 3 h 12 min"),
        ({"unhealthy": 1}, "The only proxy is down, for 3 h 12 min"),
    ],
)
def test_headline__since_the_first(counts, text):
    since = NOW - timedelta(hours=3, minutes=12, seconds=50)
    statuses = [
        replace(status, since=NOW - timedelta(days=9) if status.healthy else since)
        for status in fleet(**counts)
    ]
    found = headline(FRESH, statuses, NOW)
    assert (found.text, found.first_since) == (text, since)


def test_headline__since_less_than_a_minute():
    statuses = [replace(status, since=NOW - timedelta(seconds=59)) for status in fleet(unreachable=1)]
    assert text_of(FRESH, statuses) == "The only proxy is down, for less than a minute"


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (LATE, "No round for 4 min: nothing below is current"),
        (replace(LATE, refusal="OOM"), "No round could be stored for 4 min: nothing below is current"),
        (
            replace(LATE, offline="no network"),
            "The prober is offline, the last round was 4 min ago: nothing below is current",
        ),
        (
            replace(LATE, fault="The cache cannot be read."),
            "No current status can be read: those below are from 4 min ago",
        ),
        (NEVER, "No full round has ended yet: not all statuses are known"),
        (replace(NEVER, offline="no network"), "The prober is offline, and no full round has ended yet"),
        (
            replace(NEVER, fault="The cache is gone."),
            "No current status can be read: nothing below is current",
        ),
    ],
)
def test_headline__stale_snapshot(snapshot, text):
    if snapshot.checked_at:  # the age is that of now, not of the time when the tests were collected
        snapshot = replace(snapshot, checked_at=datetime.now(UTC) - timedelta(minutes=4, seconds=5))
    found = headline(snapshot, fleet(ok=1, unreachable=1), NOW)
    assert (found.text, found.level) == (text, Level.UNKNOWN)


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (NEVER, "No round has ended yet: no status is known"),
        (replace(NEVER, fault="The cache cannot be read."), "No status can be read"),
    ],
)
def test_headline__nothing_is_known(snapshot, text):
    assert text_of(snapshot, fleet(unknown=2)) == text


def test_headline__fresh_while_the_cache_refuses_rounds():
    assert text_of(replace(FRESH, refusal="OOM"), fleet(ok=2)) == "All 2 proxies are ok"


def test_headline__no_proxies_and_no_round():
    found = headline(NEVER, [], NOW)
    assert (found.text, found.level) == ("There are no workspace proxies", Level.UNKNOWN)


def test_headline__numbers_of_the_language():
    with translation.override("de"):
        assert "1.234" in text_of(FRESH, fleet(ok=1234))
