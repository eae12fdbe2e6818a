"""Receivers that fail, hang, or end their process: they are called again, and keep no other back."""

from __future__ import annotations

import threading

import pytest
from django.core.cache import caches
from django.utils import timezone

from proxyhealth.history import announce
from proxyhealth.history.announce import send_signals
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage.sender import note_hanging, read_hanging
from tests.history.receivers import NAME, exceed_limit, fail, insert, left, states
from tests.support.proxies import wait_for

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]


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


def test_receiver__that_ends_the_process(receiver):
    """Mark the sent ones. The others are due at once."""
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
