"""The deliveries of new transitions: which channel has to be told of which change."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from proxyhealth.history import outages
from proxyhealth.models import Channel, Delivery, Transition
from proxyhealth.notifications import deliveries
from tests.notifications.story import change, make_channel, make_proxy

pytestmark = pytest.mark.django_db


def made():
    rows = Delivery.objects.order_by("pk")
    return list(rows.values_list("channel__name", "transition__proxy_name", "transition__after"))


def test_made__begin_change_and_end_of_an_outage(channel, proxy):
    rows = change(proxy, "unreachable", "unhealthy", "ok")
    assert made() == [("ops", "paris", status) for status in ("unreachable", "unhealthy", "ok")]
    assert set(Delivery.objects.values_list("state", "number", "attempts")) == {("pending", 0, 0)}
    assert [each.transition for each in Delivery.objects.order_by("pk")] == rows
    assert Delivery.objects.values("outage").distinct().count() == 1


@pytest.mark.parametrize("status", ["ok", "unregistered"])
def test_made__not_for_the_first_status(channel, status):
    proxy = make_proxy("oslo")
    Transition.objects.all().delete()
    change(proxy, status)
    assert made() == []


def test_made__for_a_new_proxy_that_is_broken(channel):
    proxy = make_proxy("oslo")
    Transition.objects.all().delete()
    change(proxy, "unreachable")
    assert made() == [("ops", "oslo", "unreachable")]


def test_made__only_for_statuses_of_the_channel(receiver, proxy):
    make_channel(receiver, statuses=["unreachable"])
    change(proxy, "unhealthy", "ok", "unreachable", "unhealthy", "ok", "unregistered")
    assert [after for *_, after in made()] == ["unreachable", "unhealthy", "ok"]


def test_made__end_by_removal(channel, proxy):
    change(proxy, "unhealthy", "removed")
    assert [after for *_, after in made()] == ["unhealthy", "removed"]


def test_made__only_for_proxies_of_the_channel(receiver):
    make_channel(receiver, "by name", proxies="eu-*")
    make_channel(receiver, "by label", proxies="region:eu")
    make_channel(receiver, "all")
    change(make_proxy("eu-paris"), "unhealthy")
    change(make_proxy("lyon", labels={"region": "eu"}), "unhealthy")
    change(make_proxy("tokyo"), "unhealthy")
    assert sorted(made()) == [
        ("all", "eu-paris", "unhealthy"),
        ("all", "lyon", "unhealthy"),
        ("all", "tokyo", "unhealthy"),
        ("by label", "lyon", "unhealthy"),
        ("by name", "eu-paris", "unhealthy"),
    ]


def test_made__end_though_the_channel_chooses_other_proxies_now(channel, proxy):
    change(proxy, "unhealthy")
    Channel.objects.update(proxies="eu-*", statuses=[])
    change(proxy, "ok", "unhealthy")
    assert [after for *_, after in made()] == ["unhealthy", "ok"]


def test_made__not_for_a_disabled_channel(receiver, proxy):
    make_channel(receiver, enabled=False)
    change(proxy, "unhealthy")
    assert made() == []


def test_made__not_of_what_was_before_the_channel(channel, proxy):
    Channel.objects.update(listens_since=timezone.now() - timedelta(seconds=10))
    change(proxy, "unhealthy", ago=20)
    change(proxy, "ok")
    assert made() == []


def test_made__once_if_the_rows_are_recorded_again(channel, proxy):
    rows = change(proxy, "unhealthy")
    deliveries.make("default", rows, outages.record("default", rows))
    assert len(made()) == 1


def test_made__queries_do_not_grow(channel):
    many = [make_proxy(f"p{number}") for number in range(20)]
    now = timezone.now()
    rows = Transition.objects.bulk_create(
        Transition(
            proxy=each,
            proxy_uuid=each.pk,
            proxy_name=each.name,
            before="ok",
            after="unhealthy",
            at=now,
            token=10**17,
            watched=0,
        )
        for each in many
    )
    found = outages.record("default", rows)
    with CaptureQueriesContext(connection) as queries:
        assert deliveries.make("default", rows, found) == 20
    assert len(queries) <= 5
