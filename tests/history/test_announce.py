"""The signal of changed statuses: each row is announced at least once, in order, and apart from all else."""

from __future__ import annotations

import threading
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.cache import caches
from django.db import connection
from django.utils import timezone

from project.celery import app
from proxyhealth import health, tasks
from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.history import announce
from proxyhealth.history.announce import send_signals
from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.signals import status_changed
from proxyhealth.storage.sender import note_hanging, only_sender, read_hanging
from tests.support.proxies import queued, wait_for
from tests.support.values import NOW, refuse_queries

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]

_tokens = iter(range(1_000, 10**9))


def insert(*changes, proxy=None, **values):
    """Insert a chain of rows, whose signals are due."""
    id = proxy.pk if proxy else uuid4()
    values = {
        "proxy": proxy,
        "proxy_uuid": id,
        "proxy_name": "paris",
        "at": NOW,
        "watched": 0,
        "signal_due_at": timezone.now(),
        **values,
    }
    return Transition.objects.bulk_create(
        Transition(before=before, after=after, token=next(_tokens), **values)
        for before, after in pairwise(changes)
    )


class Receiver:
    """A receiver that records what it hears, and then does as it is told."""

    def __init__(self):
        self.calls = []
        self.act = lambda row: None

    def __call__(self, signal, sender, proxy_status, before, transition, **kwargs):
        assert (signal, sender) == (status_changed, WorkspaceProxy)
        self.calls.append((proxy_status, before, transition))
        self.act(transition)

    @property
    def heard(self):
        return [row.pk for _, _, row in self.calls]


NAME = "tests.history.test_announce.Receiver"


class Other(Receiver):
    pass


def connected(receiver):
    status_changed.connect(receiver, sender=WorkspaceProxy)
    yield receiver
    status_changed.disconnect(receiver, sender=WorkspaceProxy)


@pytest.fixture
def receiver():
    yield from connected(Receiver())


@pytest.fixture
def other():
    yield from connected(Other())


@pytest.fixture
def later(monkeypatch):
    """``later(seconds)`` moves the clock."""
    now = timezone.now

    def move(seconds):
        monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(seconds=seconds))

    return move


def fail(row):
    raise ValueError("the mail server is down")


def states():
    return list(Transition.objects.order_by("pk").values_list("signal_attempts", "signal_due_at"))


def left():
    return list(
        Transition.objects.filter(signal_due_at__isnull=False).order_by("pk").values_list("pk", flat=True)
    )


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


def test_receiver__error_does_not_stop_the_others(receiver, other, caplog):
    rows = insert("ok", "unhealthy", "ok")
    receiver.act = fail
    send_signals()
    assert receiver.heard == other.heard == left() == [row.pk for row in rows]
    assert f"receiver={NAME} transition={rows[0].pk} attempt=1 error=ValueError('the mail" in caplog.text
    assert caplog.text.count("Traceback") == 1, "one per task: thousands of rows may fail at once"


def test_receiver__error_is_tried_again_with_growing_pauses(receiver, later):
    (row,) = insert("ok", "unhealthy")
    receiver.act = fail
    pauses, now = [], 0
    for _ in range(10):
        later(now)
        send_signals()
        row.refresh_from_db()
        pause = (row.signal_due_at - timezone.now()).total_seconds()
        pauses.append(round(pause))
        later(now + pause - 6)
        send_signals()
        now += pause + 1
    assert pauses == [60, 120, 240, 480, 960, 1_920, 3_840, 7_680, 14_400, 14_400]
    assert receiver.heard == [row.pk] * 10
    receiver.act = lambda row: None
    later(now)
    send_signals()
    assert len(receiver.calls) == 11
    assert left() == []


def test_receiver__given_up_after_a_day(receiver, caplog):
    assert sum(announce._PAUSES) == pytest.approx(24 * 3_600, rel=0.02)
    (row,) = insert("ok", "unhealthy", signal_attempts=len(announce._PAUSES))
    (new,) = insert("ok", "unhealthy")
    send_signals()
    assert receiver.heard == [new.pk]
    assert left() == []
    assert f"signal given up after 13 attempts transition={row.pk}" in caplog.text


def test_later_change__does_not_wait_for_one_that_failed(receiver, later):
    paris = WorkspaceProxy.objects.create(name="paris")
    (down,) = insert("ok", "unreachable", proxy=paris)
    receiver.act = fail
    send_signals()
    (up,) = insert("unreachable", "ok", proxy=paris)
    receiver.act = lambda row: None
    send_signals()
    later(61)
    send_signals()
    assert receiver.heard == [down.pk, up.pk, down.pk]


def test_new_changes__before_those_that_failed(receiver, later):
    old = insert("ok", "unreachable", signal_attempts=3)
    new = insert("ok", "unreachable")
    send_signals()
    assert receiver.heard == [new[0].pk, old[0].pk]


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


def test_receiver__that_ends_the_process(receiver):
    """What was sent is marked, and what was not is due at once."""
    rows = insert("ok", "unhealthy", "ok", "unhealthy")

    def end(row):
        if row.pk == rows[1].pk:
            raise SystemExit

    receiver.act = end
    with pytest.raises(SystemExit):
        send_signals()
    assert left() == [rows[1].pk, rows[2].pk]
    receiver.act = lambda row: None
    send_signals()
    assert receiver.heard == [row.pk for row in (rows[0], rows[1], rows[1], rows[2])]


def exceed_limit(row):
    raise SoftTimeLimitExceeded


def test_receiver__over_time_limit_is_skipped_by_next_task(receiver, other, caplog, redis_client):
    """Otherwise each of many rows would take the whole time."""
    rows = [row.pk for row in insert("ok", "unhealthy", "ok")]
    receiver.act = exceed_limit
    assert not send_signals()
    assert receiver.heard == [rows[0]]
    assert f"took too long receiver={NAME}" in caplog.text
    assert send_signals()
    assert receiver.heard == [rows[0]], "it is skipped"
    assert other.heard == rows
    assert left() == rows, "its signals are tried again"
    assert {attempts for attempts, _ in states()} == {1}
    (key,) = redis_client.keys("*:proxyhealth:signals:hanging")
    assert 120_000 < redis_client.pttl(key) <= 180_000, "also the task of the next round knows it"


def test_receiver__that_ignores_time_limit_is_skipped_by_others(receiver, other, caplog):
    """Celery kills its process. A thread says before which receiver it was."""
    (row,) = insert("ok", "unhealthy")

    def hang(row):
        wait_for(lambda: NAME in read_hanging())
        raise SystemExit

    receiver.act = hang
    with pytest.raises(SystemExit):
        send_signals(patience=0.05)
    assert f"signal receiver hangs receiver={NAME}" in caplog.text
    assert send_signals(patience=60)
    assert (receiver.heard, other.heard) == ([row.pk], [row.pk])
    names = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
    wait_for(lambda: "proxyhealth signals" not in names(), what="the thread ends with the task")


def test_hanging__damaged_key_is_replaced(redis_client):
    key = caches["default"].make_key("proxyhealth:signals:hanging")
    redis_client.set(key, "x")
    assert read_hanging() == set()
    note_hanging("a")
    note_hanging("b")
    assert read_hanging() == {"a", "b"}


def test_time_is_over__releases_the_rest(receiver):
    rows = [row.pk for row in insert("ok", "unhealthy", "ok")]
    assert not send_signals(seconds=0)
    assert left() == rows
    assert {attempts for attempts, _ in states()} == {0}
    assert send_signals(seconds=60)
    assert receiver.heard == rows


def test_rows__of_killed_process_are_due_after_a_pause(receiver, later):
    rows = [row.pk for row in insert("ok", "unhealthy", "ok")]
    assert len(announce._claim()) == 2
    send_signals()
    assert receiver.calls == []
    later(61)
    send_signals()
    assert receiver.heard == rows


def test_rows__that_kill_the_process_do_not_keep_others_back(receiver, later):
    """Their attempts are lost together, but later ones are not."""
    rows = [row.pk for row in insert(*["ok", "unhealthy"] * 8)]
    sizes = []
    for pause in (0, 61, 182, 423):
        later(pause)
        sizes.append(len(announce._claim()))
    assert sizes == [15, 10, 5, 1]
    assert len(rows) == 15


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
