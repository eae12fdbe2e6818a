"""The reasons for which pending deliveries are not sent yet, as the pages show them."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from proxyhealth.display import clock
from proxyhealth.models import Channel, Delivery, Silence
from proxyhealth.notifications import waiting
from proxyhealth.notifications.sending import send_due
from tests.notifications.story import change, make_channel, make_proxy, rest_is_over

pytestmark = pytest.mark.django_db


def said():
    """Return the reasons of all pending deliveries, in order."""
    rows = list(Delivery.objects.select_related("channel", "transition").order_by("pk"))
    found = waiting.reasons("default", rows)
    assert found.keys() == {row.pk for row in rows if row.state == Delivery.State.PENDING}
    return [found[pk] for pk in sorted(found)]


def in_future(seconds):
    return timezone.now() + timedelta(seconds=seconds)


def test_reason__delay(receiver, proxy):
    make_channel(receiver, delay=60)
    (row,) = change(proxy, "unreachable")
    end = clock(row.at + timedelta(seconds=60))
    assert said() == [f"The delay of the channel ends at {end}."]


def test_reason__silence(channel, proxy):
    """Its real end, although the channel is looked at before."""
    until = in_future(7_200)
    Silence.objects.create(proxies="paris", starts=in_future(-60), ends=until, reason="work")
    change(proxy, "unreachable")
    send_due()
    assert said() == [f"The proxy is silenced until {clock(until)}."]


def test_reason__flapping(channel, proxy):
    change(proxy, *["unreachable", "ok"] * 4, ago=60)
    send_due()
    rest_is_over()
    (row,) = change(proxy, "unreachable")
    calm = clock(row.at + timedelta(minutes=10))
    assert said() == [f"The proxy is flapping. It is told when it is calm, not before {calm}."]


def test_reason__next_attempt(channel, receiver, proxy):
    receiver.answers = [(500, {})]
    change(proxy, "unreachable")
    send_due()
    change(make_proxy("oslo"), "unreachable")
    at = clock(Delivery.objects.get(attempts=1).next_attempt_at)
    assert said() == [
        f"The last attempt failed. The next attempt is at {at}.",
        f"An earlier message must be sent first. Its next attempt is at {at}.",
    ]


def test_reason__attempt_is_due(channel, receiver, proxy, later):
    receiver.answers = [(500, {})]
    change(proxy, "unreachable")
    send_due()
    change(make_proxy("oslo"), "unreachable")
    later(60)
    assert said() == [
        "The next attempt is due. A worker makes it with its next round at the latest.",
        "An earlier message must be sent first.",
    ]


def test_reason__rest_of_the_channel(channel, proxy, configure):
    configure(GROUP_INTERVAL=30)
    change(proxy, "unreachable")
    send_due()
    change(make_proxy("oslo"), "unreachable")
    channel.refresh_from_db()
    assert said() == [f"The channel rests after its last message until {clock(channel.rests_until)}."]


def test_reason__claimed(channel, proxy):
    change(proxy, "unreachable")
    Channel.objects.update(claim=uuid4(), claimed_until=in_future(20))
    assert said() == ["The channel is being told something now."]
    Delivery.objects.update(message=uuid4(), message_at=timezone.now())
    assert said() == ["It is being sent now."]
    Channel.objects.update(claimed_until=in_future(-1))  # by a process that was killed
    assert said() == ["The next attempt is due. A worker makes it with its next round at the latest."]


def test_reason__due(channel, proxy):
    change(proxy, "unreachable")
    assert said() == ["It is due. A worker sends it with its next round at the latest."]


def test_reason__not_needed(receiver, proxy, later):
    make_channel(receiver, delay=60)
    change(proxy, "unreachable", "ok")
    later(61)
    assert said() == ["It is not needed any more."] * 2


def test_reason__disabled_channel(channel, proxy):
    change(proxy, "unreachable")
    Channel.objects.update(enabled=False)
    assert said() == ["The channel is disabled. Nothing is sent."]


def test_reasons__fixed_number_of_queries(channel, proxy, django_assert_max_num_queries):
    change(proxy, "unreachable")
    for number in range(5):
        change(make_proxy(f"other-{number}"), "unreachable")
    rows = list(Delivery.objects.select_related("channel", "transition"))[-1:]
    with django_assert_max_num_queries(8):
        waiting.reasons("default", rows)
