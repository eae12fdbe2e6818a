"""The metrics of deliveries: what is pending, overdue, sent and given up, as the database has it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from proxyhealth import health
from proxyhealth.models import Alarm, Channel, Delivery
from proxyhealth.notifications import backlog
from tests.metrics.scraping import samples, scrape
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


@pytest.fixture
def channel(redis_client):
    health.force_update()
    return Channel.objects.create(name='o"ps', listens_since=timezone.now(), sent_count=7, failed_count=2)


def pend(channel, seconds, **values):
    """Make a delivery that has been due for so many seconds."""
    now = timezone.now()
    alarm = Alarm.objects.create(kind=f"{Alarm.objects.count()}", began_at=now)
    due_at = now - timedelta(seconds=seconds)
    Delivery.objects.create(channel=channel, alarm=alarm, created_at=now, next_attempt_at=due_at, **values)


def value(name, **labels):
    labels = tuple(sorted({"channel": 'o"ps', **labels}.items()))
    return samples(scrape())[f"proxyhealth_deliveries_{name}", *labels]


def test_deliveries__counted_by_outcome(channel):
    assert value("total", outcome="sent") == 7
    assert value("total", outcome="failed") == 2


def test_deliveries__pending_and_overdue(channel):
    assert (value("pending"), value("overdue_seconds")) == (0, 0)
    pend(channel, -3_600)
    assert (value("pending"), value("overdue_seconds")) == (1, 0)
    pend(channel, 90)
    assert (value("pending"), value("overdue_seconds")) == (2, pytest.approx(90, abs=60))


def test_deliveries__overdue_since_the_message_was_made(channel):
    pend(channel, -30, message_at=timezone.now() - timedelta(seconds=7_200), attempts=40)
    assert value("overdue_seconds") == pytest.approx(7_200, abs=60)


def test_deliveries__one_query(channel):
    for seconds in range(3):
        pend(channel, seconds)
    with CaptureQueriesContext(connection) as queries:
        backlog.read()
    assert len(queries) == 1


@pytest.mark.django_db(transaction=True)
def test_deliveries__database_that_is_down_hides_nothing(channel, monkeypatch):
    def fail(alias):
        with connection.execute_wrapper(refuse_queries):
            return query(alias)

    query = backlog._query
    monkeypatch.setattr(backlog, "_query", fail)
    text = scrape()
    assert "proxyhealth_snapshot_up 1.0" in text
    assert "proxyhealth_deliveries_pending{" not in text


@pytest.mark.django_db(transaction=True)
def test_deliveries__database_that_hangs_does_not_hold_the_scrape(channel, monkeypatch):
    import threading

    gate = threading.Event()
    monkeypatch.setattr(backlog, "_query", lambda alias: gate.wait(20) and [])
    monkeypatch.setattr(backlog, "_TIMEOUT", 0.05)
    assert "proxyhealth_snapshot_up 1.0" in scrape()
    assert "proxyhealth_snapshot_up 1.0" in scrape()
    gate.set()
