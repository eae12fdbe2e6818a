"""The decision on pending deliveries: delay, silences, flapping and reminders."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from proxyhealth.models import Channel, Delivery, Outage, Silence
from proxyhealth.notifications import planning
from proxyhealth.notifications.sending import may_remind, send_due
from tests.notifications.story import change, make_channel, make_proxy, reasons, rest_is_over, states

pytestmark = pytest.mark.django_db


def silence(seconds, begin=0.0, proxies="paris"):
    now = timezone.now()
    return Silence.objects.create(
        proxies=proxies,
        starts=now + timedelta(seconds=begin),
        ends=now + timedelta(seconds=seconds),
        reason="maintenance",
    )


def send():
    rest_is_over()
    return send_due()


# Delay


def test_delay__outage_is_told_after_it(receiver, proxy, later):
    make_channel(receiver, delay=60)
    change(proxy, "unreachable")
    assert 59 < send() <= 60
    change(proxy, "unhealthy")
    assert send() > 0
    assert receiver.bodies == []
    later(61)
    send()
    assert receiver.told == [[("paris", "unreachable"), ("paris", "unhealthy")]]


def test_delay__shorter_outage_is_not_told(receiver, proxy, later):
    make_channel(receiver, delay=60)
    change(proxy, "unreachable", "ok", every=59)
    later(120)
    assert send() is None
    assert receiver.bodies == []
    assert reasons() == {"dropped": {planning.TOO_SHORT}}


def test_delay__longer_outage_is_told_although_it_ended(receiver, proxy):
    make_channel(receiver, delay=60)
    change(proxy, "unreachable", "ok", ago=100, every=61)
    send()
    assert receiver.told == [[("paris", "unreachable"), ("paris", "ok")]]
    assert receiver.bodies[0]["changes"][1]["outage_seconds"] == 61


def test_delay__end_of_what_was_told_is_told(receiver, proxy, later):
    make_channel(receiver, delay=60)
    change(proxy, "unreachable", ago=61)
    send()
    change(proxy, "ok")
    send()
    assert receiver.told == [[("paris", "unreachable")], [("paris", "ok")]]


def test_delay__no_other_outage_waits_for_it(receiver, proxy):
    make_channel(receiver, delay=60)
    change(proxy, "unreachable")
    change(make_proxy("oslo"), "unreachable", ago=61)
    send()
    assert receiver.told == [[("oslo", "unreachable")]]


# Silences


def test_silence__what_is_still_broken_is_told_after_it(channel, receiver, proxy, later):
    silence(300)
    change(proxy, "unreachable")
    assert 59 < send() <= 60
    assert receiver.bodies == []
    later(301)
    send()
    assert receiver.told == [[("paris", "unreachable")]]


def test_silence__outage_within_it_is_not_told(channel, receiver, proxy, later):
    silence(300, begin=-10)
    change(proxy, "unreachable", "ok")
    later(301)
    assert send() is None
    assert receiver.bodies == []
    assert reasons() == {"dropped": {planning.SILENCED}}


def test_silence__end_of_what_was_told_before_it(channel, receiver, proxy, later):
    change(proxy, "unreachable")
    send()
    silence(300)
    change(proxy, "ok")
    send()
    assert len(receiver.bodies) == 1
    later(301)
    send()
    assert receiver.told[1:] == [[("paris", "ok")]]


def test_silence__outage_that_began_before_it_is_told_after_it(channel, receiver, proxy, later):
    change(proxy, "unreachable", ago=60)
    silence(300, begin=-30)
    change(proxy, "ok")
    send()
    assert receiver.bodies == []
    later(301)
    send()
    assert receiver.told == [[("paris", "unreachable"), ("paris", "ok")]]


def test_silence__deleted(channel, receiver, proxy, later):
    maintenance = silence(3_000)
    change(proxy, "unreachable")
    send()
    maintenance.delete()
    later(60)
    send()
    assert receiver.told == [[("paris", "unreachable")]]


def test_silence__of_other_proxies(channel, receiver, proxy):
    silence(300, proxies="region:eu")
    change(proxy, "unreachable")
    change(make_proxy("oslo", labels={"region": "eu"}), "unreachable")
    send()
    assert receiver.told == [[("paris", "unreachable")]]


# Flapping


def test_flapping__is_told_once(channel, receiver, proxy, later):
    for _ in range(3):
        change(proxy, "unreachable")
        send()
        later(30)
        change(proxy, "ok")
        send()
        later(30)
    assert receiver.told == [[("paris", status)] for status in ("unreachable", "ok") * 3]
    flaps = [each["flaps"] for body in receiver.bodies for each in body["changes"]]
    assert flaps == [0] * 5 + [6]
    for _ in range(3):
        change(proxy, "unreachable", "ok", "unreachable")
        assert send() > 0
        later(30)
    assert len(receiver.bodies) == 6
    later(550)
    assert send() > 0
    later(30)
    send()
    assert receiver.told[6:] == [[("paris", "unreachable")]]
    assert receiver.bodies[6]["changes"][0]["flaps"] == 0
    assert planning.FLAPPING in reasons()["dropped"]


def test_flapping__while_the_channel_was_away(channel, receiver, proxy):
    change(proxy, *("unreachable", "ok") * 5, ago=7_200, every=60)
    change(proxy, "unhealthy", ago=60)
    send()
    (changes,) = [body["changes"] for body in receiver.bodies]
    assert [(each["after"], each["flaps"]) for each in changes] == [("unhealthy", 10)]


def test_flapping__change_after_a_calm_is_told_at_once(channel, receiver, proxy, later):
    change(proxy, *("unreachable", "ok") * 3)
    send()
    later(1_900)
    change(proxy, "unreachable")
    send()
    assert receiver.told == [[("paris", "ok")], [("paris", "unreachable")]]
    assert [body["changes"][0]["flaps"] for body in receiver.bodies] == [6, 0]


# Reminders


@pytest.fixture
def reminding(receiver):
    return make_channel(receiver, remind_every=600)


def numbers(receiver):
    return [(body["event"], [each["reminder"] for each in body["changes"]]) for body in receiver.bodies]


def test_reminder__until_the_outage_ends(reminding, receiver, proxy, later):
    change(proxy, "unreachable")
    send()
    for _ in range(3):
        assert may_remind()
        send()
        later(601)
        send()
    assert numbers(receiver) == [
        ("status_changed", [0]),
        *(("reminder", [number]) for number in (1, 2, 3)),
    ]
    assert receiver.bodies[3]["changes"][0]["outage_seconds"] == pytest.approx(1_803, abs=60)
    change(proxy, "ok")
    send()
    later(601)
    send()
    assert numbers(receiver)[4:] == [("status_changed", [0])]
    assert not may_remind()


def test_reminder__not_if_it_is_acknowledged(reminding, receiver, proxy, later):
    change(proxy, "unreachable")
    send()
    Outage.objects.update(acknowledged_at=timezone.now())
    later(601)
    send()
    assert len(receiver.bodies) == 1
    assert not may_remind()


def test_reminder__not_in_a_silence(reminding, receiver, proxy, later):
    change(proxy, "unreachable")
    send()
    silence(2_000)
    later(1_000)
    send()
    assert len(receiver.bodies) == 1
    later(1_001)
    send()
    assert numbers(receiver)[1:] == [("reminder", [1])]


def test_reminder__not_of_what_was_not_told(reminding, receiver, proxy, later):
    Channel.objects.update(delay=3_600)
    change(proxy, "unreachable")
    send()
    later(1_000)
    send()
    assert (receiver.bodies, states()) == ([], ["pending"])


def test_reminder__that_failed_is_not_sent_after_the_end(reminding, receiver, proxy, later):
    change(proxy, "unreachable")
    send()
    silence(10_000)
    later(700)
    send()
    assert Delivery.objects.filter(number=1, state="pending").exists()
    change(proxy, "ok")
    send()
    assert planning.OVER in reasons()["dropped"]
