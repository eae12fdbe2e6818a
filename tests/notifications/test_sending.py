"""Sending: each message is sent until it is accepted, always with the same id and contents, and in order."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.models import Alarm, Channel, Delivery, Silence, Transition
from proxyhealth.notifications import sending
from proxyhealth.notifications.sending import seconds_until_due, send_due
from tests.notifications.story import change, make_channel, make_proxy, reasons, rest_is_over, states
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def test_sent__all_changes_in_one_message(channel, receiver, proxy):
    change(proxy, "unhealthy", "ok")
    change(make_proxy("oslo"), "unreachable", reason="timeout", report={"errors": ["late"]})
    send_due()
    assert receiver.told == [[("paris", "unhealthy"), ("paris", "ok"), ("oslo", "unreachable")]]
    assert states() == ["sent"] * 3
    (delivery,) = Delivery.objects.filter(transition__proxy_name="oslo")
    assert (delivery.attempts, delivery.next_attempt_at, delivery.error) == (1, None, "")
    assert (str(delivery.message), bool(delivery.sent_at)) == (receiver.ids[0], True)
    channel.refresh_from_db()
    assert (channel.sent_count, channel.failed_count, channel.claim, channel.last_error) == (3, 0, None, "")
    assert channel.last_success_at
    assert seconds_until_due() is None


def test_sent__the_channel_rests_after_a_message(channel, receiver, proxy, later):
    change(proxy, "unhealthy")
    send_due()
    change(proxy, "ok")
    assert 25 < send_due() <= 30
    assert len(receiver.bodies) == 1
    later(31)
    assert send_due() is None
    assert receiver.told[1] == [("paris", "ok")]


def test_sent__again_with_the_same_id_before_newer_changes(channel, receiver, proxy, later):
    receiver.answers = [(500, {}), (500, {})]
    change(proxy, "unhealthy")
    assert 4 < send_due() <= 5
    change(proxy, "ok")
    assert 4 < send_due() <= 5  # it waits, and so does the newer one
    later(6)
    send_due()
    later(6)
    send_due()
    assert receiver.told == [[("paris", "unhealthy")]] * 3
    assert len(set(receiver.ids)) == 1
    channel.refresh_from_db()
    assert channel.last_error == ""
    later(31)
    send_due()
    assert receiver.told[3:] == [[("paris", "ok")]]
    assert states() == ["sent", "sent"]
    assert Delivery.objects.order_by("pk").first().attempts == 3


def test_sent__repeat_has_the_same_contents(channel, receiver, proxy, later):
    receiver.answers = [(500, {})]
    change(proxy, "unhealthy", reason="reported")
    send_due()
    change(proxy, "ok")
    change(make_proxy("oslo"), "unhealthy")
    later(6)
    send_due()
    first, second = receiver.bodies
    assert first["changes"] == second["changes"]


def test_sent__pauses_grow_with_the_age(channel, receiver, proxy, later):
    receiver.answers = [(500, {})] * 4
    change(proxy, "unhealthy")
    pauses = []
    for age in (0, 1_000, 2_600, 20 * 3_600):
        later(age)
        send_due()
        pauses.append(round(send_due()))
    assert pauses == [5, 5, 18, 378]


def test_sent__retry_after_is_respected(channel, receiver, proxy):
    receiver.answers = [(429, {"Retry-After": "120"})]
    change(proxy, "unhealthy")
    assert 119 < send_due() <= 120


def test_given_up__after_a_day(channel, receiver, proxy, later):
    receiver.answers = [(500, {})] * 10
    change(proxy, "unhealthy")
    for _ in range(9):
        send_due()
        later(2.7 * 3_600)
    assert states() == ["pending"]
    assert send_due() is None
    assert states() == ["failed"]
    channel.refresh_from_db()
    assert (channel.enabled, channel.failed_count) == (True, 1)
    assert "500" in channel.last_error
    assert "500" in Delivery.objects.get().error
    change(proxy, "ok")
    send_due()
    assert receiver.told[-1] == [("paris", "ok")]


def test_given_up__not_because_the_clock_was_set_forward(channel, receiver, proxy, later):
    receiver.answers = [(500, {})] * 2
    change(proxy, "unhealthy")
    send_due()
    later(48 * 3_600)
    send_due()
    assert states() == ["pending"]


def test_gone__disables_the_channel(channel, receiver, proxy):
    receiver.answers = [(410, {})]
    change(proxy, "unhealthy")
    Silence.objects.create(proxies="oslo", starts=timezone.now(), ends=timezone.now() + timedelta(hours=1))
    change(make_proxy("oslo"), "unhealthy")
    assert send_due() > 0
    channel.refresh_from_db()
    assert not channel.enabled
    assert "410" in channel.last_error
    assert states() == ["failed", "pending"]
    assert send_due() is None
    assert states() == ["failed", "dropped"]


def test_gone__does_not_disable_a_corrected_channel(channel, receiver, proxy, monkeypatch):
    def correct(*args):
        Channel.objects.update(target="https://example.com/")
        raise sending.DeliveryFailed("HTTP 410", is_final=True)

    monkeypatch.setattr(sending.transport, "send", correct)
    change(proxy, "unhealthy")
    send_due()
    channel.refresh_from_db()
    assert channel.enabled


def test_disabled__drops_what_is_pending(channel, receiver, proxy):
    change(proxy, "unhealthy")
    Channel.objects.update(enabled=False)
    assert seconds_until_due() == 0
    assert send_due() is None
    assert receiver.bodies == []
    assert reasons() == {"dropped": {"The channel is disabled."}}


def test_deleted__during_a_send(channel, receiver, proxy, monkeypatch):
    send = sending.transport.send

    def delete(*args):
        Channel.objects.all().delete()
        return send(*args)

    monkeypatch.setattr(sending.transport, "send", delete)
    change(proxy, "unhealthy")
    assert send_due() is None
    assert (len(receiver.bodies), states()) == (1, [])


def test_deleted__proxy_and_transition_of_a_failed_message(channel, receiver, proxy, later):
    receiver.answers = [(500, {})]
    change(proxy, "unhealthy")
    change(make_proxy("oslo"), "unhealthy")
    send_due()
    proxy.delete()
    Transition.objects.filter(proxy_name="oslo").delete()
    later(6)
    send_due()
    assert receiver.told[1] == [("paris", "unhealthy")]
    assert states() == ["sent"]


def test_error__of_our_own_is_a_failed_attempt(channel, proxy, monkeypatch):
    def fail(*args):
        raise ValueError("hunter2")

    monkeypatch.setattr(sending.transport, "send", fail)
    change(proxy, "unhealthy")
    assert 4 < send_due() <= 5
    assert Delivery.objects.get().error == "an unexpected error: ValueError"


def test_error__of_one_channel_does_not_stop_another(channel, receiver, proxy, monkeypatch):
    other = make_channel(receiver, "z")
    next_message = sending.next_message

    def fail(alias, channel):
        if channel != other:
            raise ZeroDivisionError
        return next_message(alias, channel)

    monkeypatch.setattr(sending, "next_message", fail)
    change(proxy, "unhealthy")
    send_due()
    assert receiver.told == [[("paris", "unhealthy")]]


def test_database__is_down(channel):
    with connection.execute_wrapper(refuse_queries), pytest.raises(HistoryUnavailable):
        send_due()


def test_killed__before_the_message_was_sent(channel, receiver, proxy, monkeypatch, later):
    def kill(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sending.transport, "send", kill)
    change(proxy, "unhealthy")
    with pytest.raises(KeyboardInterrupt):
        send_due()
    id = Delivery.objects.get().message
    assert id
    monkeypatch.undo()
    assert send_due() <= 5  # the claim is still there
    assert receiver.bodies == []
    later(31)
    send_due()
    assert receiver.ids == [str(id)]


def test_killed__after_the_message_was_sent(channel, receiver, proxy, monkeypatch, later):
    def kill(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sending, "_succeeded", kill)
    change(proxy, "unhealthy")
    with pytest.raises(KeyboardInterrupt):
        send_due()
    monkeypatch.undo()
    change(proxy, "ok")
    later(31)
    send_due()
    assert receiver.told == [[("paris", "unhealthy")]] * 2
    assert len(set(receiver.ids)) == 1


def test_claim__of_another_process(channel, receiver, proxy):
    until = timezone.now() + timedelta(seconds=20)
    Channel.objects.update(claim=uuid4(), claimed_until=until)
    change(proxy, "unhealthy")
    assert 0 < send_due() <= 5
    assert receiver.bodies == []


def test_claim__lost_while_it_was_composed(channel, receiver, proxy, monkeypatch):
    from proxyhealth.notifications import composing

    plan = composing.plan

    def steal(alias, channel):
        Channel.objects.update(claim=uuid4())
        return plan(alias, channel)

    monkeypatch.setattr(composing, "plan", steal)
    change(proxy, "unhealthy")
    send_due()
    assert receiver.bodies == []
    assert Delivery.objects.get().message is None


def test_claim__lost_before_it_was_sent(channel, receiver, proxy, monkeypatch):
    next_message = sending.next_message

    def steal(*args):
        message = next_message(*args)
        Channel.objects.update(claim=uuid4())
        return message

    monkeypatch.setattr(sending, "next_message", steal)
    change(proxy, "unhealthy")
    send_due()
    assert receiver.bodies == []
    assert Delivery.objects.get().attempts == 0


def test_claim__lost_while_it_failed_counts_no_attempt(channel, receiver, proxy, monkeypatch):
    def steal(*args):
        Channel.objects.update(claim=uuid4())
        raise sending.DeliveryFailed("HTTP 500")

    monkeypatch.setattr(sending.transport, "send", steal)
    change(proxy, "unhealthy")
    send_due()
    assert Delivery.objects.get().attempts == 0


def test_clock__set_back(channel, receiver, proxy, later):
    receiver.answers = [(500, {})]
    change(proxy, "unhealthy")
    send_due()
    Channel.objects.update(claim=uuid4(), claimed_until=timezone.now() + timedelta(seconds=30))
    later(-7_200)
    send_due()
    assert states() == ["sent"]
    change(proxy, "ok")
    later(-7_200)
    send_due()
    assert receiver.told[-1] == [("paris", "ok")]


def test_alarms__begin_and_end(channel, receiver):
    now = timezone.now()
    alarm = Alarm.objects.create(kind="offline", detail="no network", began_at=now, ended_at=now)
    values = {"channel": channel, "alarm": alarm, "created_at": now, "next_attempt_at": now}
    for number in (0, 1):
        Delivery.objects.create(number=number, **values)
    send_due()
    (body,) = receiver.bodies
    assert body["event"] == "prober"
    assert [(each["kind"], bool(each["ended_at"])) for each in body["alarms"]] == [
        ("offline", False),
        ("offline", True),
    ]


def test_many__one_message_and_few_queries(channel, receiver, proxy):
    def count():
        with CaptureQueriesContext(connection) as queries:
            send_due()
        return len(queries)

    change(proxy, "unhealthy")
    few = count()
    rest_is_over()
    for number in range(10):
        change(make_proxy(f"p{number}"), "unhealthy")
    assert count() <= few
    assert len(receiver.told[1]) == 10
