"""Rounds that end late, or not at all: behind a backlog of ticks, with slow proxies, with a hung database."""

import threading
import time

import pytest
from celery.contrib.testing.worker import start_worker
from django.db import connection

from project.celery import app
from proxyhealth import health, tasks
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner, steps
from proxyhealth.storage import reader
from proxyhealth.storage.lease import RoundRequest, begin_round, lease_seconds, take_token
from tests.metrics.scraping import samples, scrape
from tests.support.machine import at_most
from tests.support.proxies import wait_for

pytestmark = pytest.mark.django_db


def test_no_worker__one_of_the_waiting_ticks_runs(redis_client, monkeypatch):
    # The worker is a thread, which does not see the database of the test.
    monkeypatch.setattr(steps, "read_proxies", list)
    for number in range(1, 6):
        tasks.check_all.apply_async(kwargs={"gap": 30})
        assert samples(scrape())["proxyhealth_tasks_waiting",] == number
    tasks.first_round.apply_async((take_token(),))  # the worker of a test does not request it
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="WARNING"):
        wait_for(lambda: "first_round" in reader.read_activity().tasks, 10, "the last task has run")
    assert reader.read_anew().outcomes == {"success": 1, "skipped": 4}


def test_long_round__ticks_are_skipped_and_counted(serve):
    """A round that takes longer than an interval."""
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)

    def tick():
        wait_for(lambda: server.requests)
        for _ in range(3):
            tasks.check_all(gap=0.001)
        server.gate.set()

    ticks = threading.Thread(target=tick)
    ticks.start()
    runner.run_round()
    ticks.join(30)
    assert samples(scrape())["proxyhealth_skipped_ticks_total",] == 3
    assert [status.status for status in reader.read().statuses.values()] == ["ok"]


def test_hung_database__another_round_begins_in_time(configure, monkeypatch):
    """After ``READ_TIMEOUT`` and a lease. The hung round then changes nothing."""
    configure(INTERVAL=2)
    monkeypatch.setattr(steps, "READ_TIMEOUT", 0.3)
    WorkspaceProxy.objects.create(name="paris")
    reading, other = threading.Event(), []

    def hang(execute, sql, *args):
        if "workspaceproxy" in sql:
            reading.set()
            thread.join(30)
        return execute(sql, *args)

    def begin_another():
        reading.wait(30)
        assert begin_round().outcome == "running"
        with at_most(steps.READ_TIMEOUT + lease_seconds() + 0.2):
            other.append(begin_round(wait=30).outcome)

    thread = threading.Thread(target=begin_another)
    thread.start()
    with connection.execute_wrapper(hang), pytest.raises(RoundFailed, match="another round has begun"):
        runner.run_round(RoundRequest(min_gap=1))
    assert other == ["begun"]
    assert reader.read().number == 0


def test_full_process__takes_a_timeout_per_concurrency(serve, configure):
    """As long is a process busy with silent proxies, and as long does ``force_update()`` take."""
    configure(TIMEOUT=0.4, CONCURRENCY=2)
    silent = serve()
    silent.gate.clear()
    for name in "abcd":
        WorkspaceProxy.objects.create(name=name, url=silent.url)
    begin = time.monotonic()
    with at_most(2 * 0.4 + 0.5):
        health.force_update()
    assert time.monotonic() - begin > 2 * 0.4
