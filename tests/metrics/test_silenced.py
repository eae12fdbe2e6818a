"""The series of the silenced proxies, and scrapes while the database is down or does not respond."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.utils import timezone

from proxyhealth import health
from proxyhealth.metrics.collector import SnapshotCollector
from proxyhealth.models import Silence, WorkspaceProxy
from proxyhealth.notifications import silences
from proxyhealth.notifications.silences import Silences
from tests.metrics.scraping import samples, scrape
from tests.support.machine import at_most
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


@pytest.fixture
def proxies():
    """Three proxies in the snapshot, by name."""
    for name, region in (("paris", "eu"), ("oslo", "eu"), ("sydney", "au")):
        WorkspaceProxy.objects.create(name=name, labels={"region": region})
    health.force_update()
    return {status.proxy.name: str(id) for id, status in health.health_status().items()}


def silence(proxies: str = "region:eu", minutes: float = -1) -> Silence:
    starts = timezone.now() + timedelta(minutes=minutes)
    return Silence.objects.create(
        proxies=proxies, starts=starts, ends=starts + timedelta(hours=1), reason="work"
    )


def silenced() -> set[object]:
    """Return the ids of the silenced proxies in a scrape."""
    found = {key[1][1]: value for key, value in samples(scrape()).items() if key[0] == "proxyhealth_silenced"}
    assert set(found.values()) <= {1}
    return set(found)


def test_silenced__only_silenced_proxies_have_a_series(proxies):
    assert silenced() == set()
    row = silence()
    silence("sydney", minutes=10)
    assert silenced() == {proxies["paris"], proxies["oslo"]}
    assert {str(id) for id in health.silenced()} == silenced(), "one code path"
    assert async_to_sync(health.asilenced)() == health.silenced()
    row.ends = timezone.now()
    row.save()
    assert silenced() == set()


def test_silenced__label_or_name_changes(proxies):
    silence("region:eu\nlima")
    WorkspaceProxy.objects.filter(name="oslo").update(labels={"region": "us"})
    WorkspaceProxy.objects.filter(name="sydney").update(name="lima")
    health.force_update()
    assert silenced() == {proxies["paris"], proxies["sydney"]}


def test_silenced__same_gauge_while_nothing_changes(proxies, configure):
    silence()
    collector = SnapshotCollector()

    def gauge():
        return next(metric for metric in collector.collect() if metric.name == "proxyhealth_silenced")

    configure(READ_INTERVAL=60)  # so that the statuses are the same object
    first = gauge()
    silences._copy.value.expire()
    assert gauge() is first, "silences that are equal"
    silence("sydney")
    silences._copy.value.expire()
    assert len(gauge().samples) == 3


def test_silenced__database_down(proxies, caplog):
    silence()
    before = silenced()
    with connection.execute_wrapper(refuse_queries):
        assert silenced() == before, "the silences that were read last"
        silences.forget()
        assert silenced() == set(), "the alerts of a process that knows no silences fire"
        assert health.silenced() == {}
    assert "the silences cannot be read" in caplog.text
    silences.forget()
    assert silenced() == before


@pytest.mark.django_db(transaction=True)
def test_silenced__database_that_does_not_respond(proxies, monkeypatch):
    silence()
    before = silenced()
    gate, calls = threading.Event(), []

    def hang(alias: str | None = None) -> Silences:
        calls.append(alias)
        gate.wait(30)
        return Silences()

    monkeypatch.setattr(silences, "_TIMEOUT", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(Silences, "read", hang)
        with at_most(1):
            assert silenced() == silenced() == before
        assert len(calls) == 1, "one thread waits for the database"
        gate.set()
        silences._in_time.value._running.result(5)
    assert silenced() == before


@pytest.mark.django_db(transaction=True)
def test_scrape__without_a_thread_to_read_the_database(proxies, monkeypatch, caplog):
    silence()
    before = silenced()
    silences._copy.value.expire()

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert silenced() == before, "the silences that were read last"
    assert "no thread can start" in caplog.text
    silences.forget()
    assert silenced() == before
