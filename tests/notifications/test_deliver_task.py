"""The task that delivers: when it is requested, and that nobody waits for a channel that hangs."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from proxyhealth import tasks
from proxyhealth.models import Channel, Delivery, Silence
from proxyhealth.notifications import sending
from proxyhealth.rounds import dispatch
from proxyhealth.rounds.dispatch import request_delivery
from proxyhealth.storage.pending import claim_delivery
from tests.notifications.story import Receiver, change, make_channel, make_proxy, states
from tests.support.machine import at_most
from tests.support.proxies import queued, wait_for

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]


@pytest.fixture
def requested(redis_client):
    """Return for each requested run of the task the seconds until then."""

    def read():
        dispatch.hand_over(10)
        headers = [each for each in queued(redis_client) if each["task"] == "proxyhealth.tasks.deliver"]
        redis_client.delete("celery")
        return [_seconds(each["eta"]) for each in headers]

    return read


def _seconds(eta):
    moment = timezone.datetime.fromisoformat(eta) if eta else None
    return round((moment - timezone.now()).total_seconds()) if moment else 0


# Requests


def test_requested__if_something_is_due(channel, proxy, requested):
    tasks.record_history()
    assert requested() == []
    change(proxy, "unhealthy")
    tasks.record_history()
    assert requested() == [0]


def test_requested__for_the_time_at_which_something_is_due(receiver, proxy, requested):
    make_channel(receiver, delay=20)
    change(proxy, "unhealthy")
    tasks.record_history()
    assert requested() == [pytest.approx(20, abs=3)]
    tasks.record_history()
    assert requested() == [], "one countdown is enough"


def test_requested__by_a_round_if_it_is_due_later(receiver, proxy, requested):
    make_channel(receiver, delay=200)
    change(proxy, "unhealthy")
    tasks.record_history()
    assert requested() == []


def test_requested__each_round_while_a_reminder_may_be_due(receiver, proxy, requested):
    make_channel(receiver, remind_every=600)
    change(proxy, "unhealthy")
    sending.send_due()
    tasks.record_history()
    assert requested() == [0]


def test_requested__again_after_the_rest(channel, receiver, proxy, requested):
    change(proxy, "unhealthy")
    sending.send_due()
    change(proxy, "ok")
    tasks.deliver()
    assert requested() == [pytest.approx(30, abs=3)]
    assert len(receiver.bodies) == 1


def test_requested__not_if_nothing_is_left(channel, receiver, proxy, requested):
    change(proxy, "unhealthy")
    sending.send_due()
    tasks.deliver()
    assert requested() == []


def test_requested__earlier_than_a_later_one(requested):
    request_delivery(50)
    request_delivery(10)
    request_delivery(30)
    assert requested() == [pytest.approx(10, abs=3)], "it requests the next one"


def test_claim__is_over_when_its_task_runs(redis_client):
    assert claim_delivery(1.5)
    assert claim_delivery(30), "the task of the first claim runs before, and may request the next one"
    assert not claim_delivery(31)


def test_claim__from_before_the_clock_was_set_back(redis_client):
    assert claim_delivery(7_200)
    assert claim_delivery(30)


def test_requested__when_a_silence_is_deleted(
    channel, receiver, proxy, requested, django_capture_on_commit_callbacks
):
    now = timezone.now()
    silence = Silence.objects.create(
        proxies="paris", starts=now, ends=now + timedelta(hours=1), reason="work"
    )
    change(proxy, "unhealthy")
    sending.send_due()
    assert receiver.bodies == []
    with django_capture_on_commit_callbacks(execute=True):
        silence.delete()
    assert requested() == [0]
    sending.send_due()
    assert receiver.told == [[("paris", "unhealthy")]]


# Threads


def join_threads():
    for thread in threading.enumerate():
        if thread.name == "proxyhealth channel":
            thread.join(20)


@pytest.mark.postgresql  # connections to SQLite in memory do not wait for each other
@pytest.mark.django_db(transaction=True)
def test_thread__channel_that_hangs_holds_neither_task_nor_others(receiver, monkeypatch):
    monkeypatch.setattr(tasks, "_DELIVERY_TIME", 0.3)
    with Receiver() as hanging:
        hanging.gate.clear()
        make_channel(hanging, "a")
        make_channel(receiver, "b")
        change(make_proxy(), "unhealthy")
        for _ in range(2):
            with at_most(5):
                tasks.deliver()
            wait_for(lambda: receiver.bodies and hanging.bodies)
        assert len(hanging.bodies) == len(receiver.bodies) == 1
        hanging.gate.set()
        join_threads()
    assert states() == ["sent", "sent"]
    assert not Channel.objects.filter(claim__isnull=False).exists()


@pytest.mark.django_db(transaction=True)
def test_thread__closes_its_connection(channel, receiver, monkeypatch):
    closed = []
    monkeypatch.setattr(
        type(connections), "close_all", lambda self: closed.append(threading.current_thread())
    )
    change(make_proxy(), "unhealthy")
    assert sending.send_due(20) is None
    assert [thread.name for thread in closed] == ["proxyhealth channel"]
    assert states() == ["sent"]


@pytest.mark.django_db(transaction=True)
def test_thread__cannot_be_started(channel, receiver, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    change(make_proxy(), "unhealthy")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert sending.send_due(0.1) == 0
    monkeypatch.undo()
    assert not Channel.objects.filter(claim__isnull=False).exists()
    assert sending.send_due() is None
    assert Delivery.objects.get().state == "sent"
