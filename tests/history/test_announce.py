"""The signal of changed statuses: each row is announced at least once, in order, and apart from all else."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from project.celery import app
from proxyhealth import health, tasks
from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.history import announce
from proxyhealth.history.announce import send_signals
from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.signals import status_changed
from proxyhealth.storage.sender import only_sender
from tests.history.receivers import exceed_limit, insert, left, states
from tests.support.proxies import queued, wait_for
from tests.support.values import NOW, refuse_queries

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]


def test_signal__has_the_status_that_began(receiver):
    paris = WorkspaceProxy.objects.create(name="paris", url="https://Paris.example.com:8443/")
    report = {"errors": ["refused"], "warnings": ["slow"]}
    (row,) = insert("ok", "unreachable", proxy=paris, reason="connect", report=report)
    assert send_signals()
    ((status, before, transition),) = receiver.calls
    assert (before, transition) == ("ok", row)
    assert (status.status, status.reason, status.proxy) == ("unreachable", "connect", paris.as_proxy())
    assert (status.report.errors, status.report.warnings) == (("refused",), ("slow",))
    assert (status.since, status.checked_at, status.raw) == (NOW, NOW, None)
    assert status.proxy_host == "paris.example.com:8443"
    assert left() == []


@pytest.mark.parametrize("use_tz", [True, False])
def test_signal__time_has_a_zone(receiver, settings, use_tz):
    settings.USE_TZ = use_tz
    insert("ok", "unhealthy", at=NOW if use_tz else timezone.make_naive(NOW))
    send_signals()
    assert receiver.calls[0][0].since == NOW
    assert left() == []


def test_signal__of_a_removed_proxy_has_no_status(receiver):
    insert("ok", "removed")
    send_signals()
    assert receiver.calls[0][:2] == (None, "ok")


def test_signal__of_a_row_that_is_gone_has_its_name(receiver):
    insert("ok", "a status of a newer version", report="nonsense")
    send_signals()
    status = receiver.calls[0][0]
    assert (status.status, status.proxy.name, status.proxy_host) == ("unknown", "paris", "")


def test_signals__in_order_of_the_rows(receiver):
    rows = [*insert("ok", "unhealthy", "ok", "unreachable"), *insert("ok", "removed")]
    Transition.objects.filter(pk=rows[0].pk).update(signal_due_at=timezone.now() - timedelta(seconds=5))
    send_signals()
    assert receiver.heard == [row.pk for row in rows]


def test_signals__not_sent_twice_or_early(receiver):
    insert("ok", "unhealthy", signal_due_at=None)
    insert("ok", "unhealthy", signal_due_at=timezone.now() + timedelta(seconds=30))
    send_signals()
    assert receiver.calls == []
    insert("ok", "unhealthy")
    send_signals()
    send_signals()
    assert len(receiver.calls) == 1


def test_signals__clock_of_the_recording_worker_is_ahead(receiver):
    insert("ok", "unhealthy", signal_due_at=timezone.now() + timedelta(seconds=3))
    send_signals()
    assert len(receiver.calls) == 1, "it does not wait for the next round"


def test_signals__without_receivers_cost_nothing(django_assert_num_queries):
    insert("ok", "unhealthy")
    with django_assert_num_queries(0):
        send_signals()


def test_signals__of_many_rows_need_few_queries(receiver, django_assert_max_num_queries):
    proxies = [WorkspaceProxy(name=f"p{i}") for i in range(250)]
    values = {"at": NOW, "watched": 0, "token": 1, "signal_due_at": timezone.now()}
    Transition.objects.bulk_create(
        Transition(proxy_uuid=p.pk, proxy_name=p.name, before="ok", after="unreachable", **values)
        for p in proxies
    )
    with django_assert_max_num_queries(3 * 5 + 5):
        send_signals()
    assert len(receiver.calls) == 250
    assert left() == []


def test_receiver__coroutine_function(receiver):
    heard = []

    async def hear(transition, **kwargs):
        heard.append(transition.pk)

    status_changed.connect(hear)
    (row,) = insert("ok", "unhealthy")
    send_signals()
    status_changed.disconnect(hear)
    assert heard == receiver.heard == [row.pk]


def test_receiver__that_saves_the_transition(receiver):
    insert("ok", "unhealthy")
    receiver.act = lambda row: row.save()
    send_signals()
    assert left() == []


def test_claim__not_of_rows_that_another_process_claims(receiver):
    insert("ok", "unhealthy")

    def claim_first(execute, sql, params, many, context):
        if sql.startswith("UPDATE"):  # the first of two at once
            execute(sql, params, many, context)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(claim_first):
        assert announce._claim() == []
    assert [attempts for attempts, _ in states()] == [1]


def test_senders__one_at_a_time(receiver, redis_client):
    insert("ok", "unhealthy")
    with only_sender() as held:
        assert held
        send_signals()
        (key,) = redis_client.keys("*:proxyhealth:signals")
        assert 0 < redis_client.pttl(key) <= 60_000
    redis_client.set(key, "another process", px=30_000)
    send_signals()
    assert receiver.calls == []
    assert redis_client.get(key) == b"another process"
    for damage in (lambda: redis_client.set(key, "x", px=10**9), lambda: redis_client.sadd(key, "x")):
        redis_client.delete(key)
        damage()
        with only_sender() as held:
            assert held
    send_signals()
    assert len(receiver.calls) == 1
    assert not redis_client.exists(key)


def test_senders__change_during_the_last_signal_is_not_left(receiver):
    """The process of the change sends nothing, because this one does."""
    (row,) = insert("ok", "unhealthy")

    def insert_another(heard):
        if heard.pk == row.pk:
            insert("ok", "unhealthy")
            send_signals()

    receiver.act = insert_another
    send_signals()
    assert len(receiver.calls) == 2


def test_redis_down__signals_wait(receiver, settings, caplog):
    insert("ok", "unhealthy")
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    send_signals()
    assert receiver.calls == []
    assert "no signals are sent until the cache is back" in caplog.text


def test_database_down__is_a_clear_error(receiver):
    with connection.execute_wrapper(refuse_queries), pytest.raises(HistoryUnavailable, match="database is"):
        send_signals()


def test_record_history__requests_the_task(receiver, redis_client):
    insert("ok", "unhealthy")
    tasks.record_history.run()
    (task,) = wait_for(lambda: queued(redis_client))
    assert task["task"] == tasks.send_signals.name
    send_signals()
    tasks.record_history.run()
    health.request_check([]).result(30)
    assert len(queued(redis_client)) == 1


def test_eager_mode__signals_come_with_the_round(receiver, serve, monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    health.force_update()
    ((status, before, transition),) = receiver.calls
    assert (status.status, before, transition.proxy_id) == ("ok", "unknown", paris.pk)


def test_task__sends_another_if_signals_are_left(receiver, redis_client):
    insert("ok", "unhealthy")
    receiver.act = exceed_limit
    tasks.send_signals.run()
    (task,) = wait_for(lambda: queued(redis_client))
    assert task["task"] == tasks.send_signals.name
    tasks.send_signals.run()
    health.request_check([]).result(30)
    assert len(queued(redis_client)) == 1


def test_task__in_eager_mode_leaves_nothing(receiver, monkeypatch):
    monkeypatch.setattr(tasks, "_SIGNALS_TIME", 0)
    insert("ok", "unhealthy", "ok")
    assert tasks.send_signals.apply().successful()
    assert len(receiver.calls) == 2


@pytest.mark.sqlite  # PostgreSQL chooses by its statistics
def test_due__is_found_by_index():
    """The index has only rows that are due, so that the others cost nothing."""
    plan = announce._due().order_by("signal_attempts", "pk").explain()
    assert "USING INDEX proxyhealth_transition_signal" in plan
