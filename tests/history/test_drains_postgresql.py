"""The task that writes the history, on PostgreSQL: several writers at once, and a database that fails."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from django.core.cache import caches
from django.db import OperationalError, connection, connections

from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.history.records import record_history
from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.storage import outbox
from tests.support.transitions import to_token
from tests.support.values import NOW

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db(transaction=True)]

FIRST = to_token(NOW)
JUDGEMENT = {"reason": "timeout", "errors": ["kaputt"], "warnings": []}


@pytest.fixture
def push(redis_client):
    """``push(*entries)`` appends to the outbox, as a commit does."""
    key = caches["default"].make_key("proxyhealth:outbox")

    def append(*entries):
        redis_client.rpush(key, *entries)

    append.length = lambda: redis_client.llen(key)
    return append


@pytest.fixture
def fleet():
    rows = [WorkspaceProxy(name=f"proxy-{index}") for index in range(20)]
    return WorkspaceProxy.objects.bulk_create(rows)


def changes_of(fleet, count):
    """Return the entries of changes of random proxies, in the order of their tokens."""
    chance = random.Random(7)
    statuses, entries = {}, []
    for number in range(count):
        proxy = chance.choice(fleet)
        before = statuses.get(proxy.pk, "unknown")
        after = "unreachable" if before == "ok" else "ok"
        statuses[proxy.pk] = after
        token = FIRST + number
        change = (str(proxy.pk), proxy.name, before, after, token, token, number, JUDGEMENT)
        entries.append(outbox.change_entry(*change))
    return entries


def assert_complete(entries, push):
    """Each entry is one row, the rows of a proxy fit together, and the outbox is empty."""
    rows = list(Transition.objects.order_by("pk"))
    assert sorted(row.token for row in rows) == [FIRST + number for number in range(len(entries))]
    last = {}
    for row in rows:
        assert row.before == last.get(row.proxy_uuid, "unknown")
        last[row.proxy_uuid] = row.after
    assert push.length() == 0


def drain():
    try:
        record_history()
    finally:
        connections.close_all()


def test_drains_at_once__write_each_change_once(push, fleet):
    entries = changes_of(fleet, 600)
    push(*entries[:100])
    with ThreadPoolExecutor(3) as pool:
        drains = [pool.submit(drain) for _ in range(3)]
        for begin in range(100, 600, 50):
            push(*entries[begin : begin + 50])
            drains.append(pool.submit(drain))
        for each in drains:
            each.result(30)
    assert_complete(entries, push)


@contextmanager
def before_insert(action, times=1):
    """Call ``action`` before the first ``times`` inserts of transitions."""
    calls = []

    def wrap(execute, sql, params, many, context):
        if sql.startswith("INSERT") and Transition._meta.db_table in sql and len(calls) < times:
            calls.append(sql)
            action()
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrap):
        yield calls


def in_thread(action):
    """Run ``action`` with a connection of its own."""

    def run():
        try:
            action()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)


def test_drain__proxy_row_is_deleted_meanwhile(push, fleet):
    entries = changes_of(fleet, 60)
    push(*entries)
    gone = fleet[3].pk
    rows = WorkspaceProxy.objects.filter(pk=gone)
    with before_insert(lambda: in_thread(lambda: rows._raw_delete("default"))) as calls:
        record_history()
    assert calls
    assert_complete(entries, push)
    of_gone = Transition.objects.filter(proxy_uuid=gone)
    assert {row.proxy_id for row in of_gone} == {None}
    assert Transition.objects.filter(proxy=None).count() == of_gone.count() > 0


def terminate(pid):
    """Close the connection of a process of the server, as a failover or an operator does."""
    parameters = connection.get_connection_params()
    with psycopg.connect(
        host=parameters["host"], port=parameters["port"], user=parameters["user"], dbname="postgres"
    ) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [pid])


def backend():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def test_drain__connection_is_killed(push, fleet):
    entries = changes_of(fleet, 60)
    push(*entries)
    pid = backend()
    with before_insert(lambda: terminate(pid)), pytest.raises(HistoryUnavailable):
        record_history()
    assert push.length() == len(entries)
    record_history()
    assert_complete(entries, push)


def test_drain__database_restarts(push, fleet, django_db_modify_db_settings):
    server = django_db_modify_db_settings
    entries = changes_of(fleet, 60)
    push(*entries[:30])
    record_history()
    push(*entries[30:])
    with before_insert(server.stop), pytest.raises(HistoryUnavailable):
        record_history()
    with pytest.raises(HistoryUnavailable):
        record_history()
    assert push.length() == 30
    server.start()
    record_history()
    assert_complete(entries, push)


@pytest.mark.parametrize("error", [psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected])
def test_drain__conflict_of_transactions(push, fleet, error):
    entries = changes_of(fleet, 60)
    push(*entries)

    def fail():
        raise OperationalError("could not serialize access") from error()

    with before_insert(fail), pytest.raises(HistoryUnavailable):
        record_history()
    assert push.length() == len(entries)
    record_history()
    assert_complete(entries, push)
