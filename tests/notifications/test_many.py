"""Many deliveries, many workers, and databases without time zones."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from django.db import connection, connections

from proxyhealth.models import Channel, Delivery
from proxyhealth.notifications import backlog, composing
from proxyhealth.notifications.sending import send_due
from tests.notifications.story import change, make_channel, make_proxy, rest_is_over, states


@pytest.mark.django_db
def test_many__the_next_message_has_the_rest(channel, receiver, monkeypatch):
    monkeypatch.setattr(composing, "_LARGEST", 2)
    names = [f"p{number}" for number in range(3)]
    for name in names:
        change(make_proxy(name), "unhealthy")
    send_due()
    assert states() == ["sent", "sent", "pending"]
    rest_is_over()
    send_due()
    assert receiver.told == [[("p0", "unhealthy"), ("p1", "unhealthy")], [("p2", "unhealthy")]]


@pytest.mark.django_db
@pytest.mark.sqlite
def test_many__old_deliveries_are_not_read(receiver):
    """SQLite ignores an index whose condition has a parameter, and then reads all that was ever sent."""
    channel = make_channel(receiver, remind_every=60)
    change(make_proxy(), "unhealthy")
    send_due()
    plans = {}

    def explain(execute, sql, params, many, context):
        if sql.startswith(("SELECT", "UPDATE")) and '"proxyhealth_delivery"' in sql:
            rows = connection.connection.cursor().execute(
                f"EXPLAIN QUERY PLAN {sql % _marks(params)}", params
            )
            plans[sql] = " ".join(row[-1] for row in rows)
        return execute(sql, params, many, context)

    change(make_proxy("oslo"), "unhealthy")
    rest_is_over()
    with connection.execute_wrapper(explain):
        send_due()
        backlog.read()
    assert len(plans) > 8
    for sql, plan in plans.items():
        assert "SCAN proxyhealth_delivery" not in plan, sql
        # All deliveries of a channel.
        assert "proxyhealth_delivery_channel_id" not in plan, sql
    assert channel.deliveries.count() == 2


def _marks(params):
    return ("?",) * len(params)


@pytest.mark.django_db
def test_time_zones__database_without_them(receiver, settings, later):
    settings.USE_TZ = False
    channel = make_channel(receiver, delay=60, remind_every=600)
    proxy = make_proxy()
    change(proxy, "unhealthy")
    assert 59 < send_due() <= 60
    later(61)
    send_due()
    later(601)
    send_due()
    change(proxy, "ok")
    receiver.answers = [(500, {})]
    rest_is_over()
    assert 4 < send_due() <= 5
    later(6)
    send_due()
    (*_, last) = receiver.bodies
    assert last["changes"][0]["outage_seconds"] == pytest.approx(662, abs=60)
    assert last["made_at"].endswith("Z")
    assert set(states()) == {"sent"}
    assert backlog.read()[0].overdue == 0
    assert channel.deliveries.count() == 3


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_workers__send_each_message_once(receiver, configure):
    configure(GROUP_INTERVAL=0)
    channels = [make_channel(receiver, f"channel {number}") for number in range(3)]
    proxies = [make_proxy(f"p{number}") for number in range(3)]

    def work():
        try:
            while send_due(5) is not None:
                pass
        finally:
            connections.close_all()

    for proxy in proxies:
        change(proxy, "unhealthy")
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert set(states()) == {"sent"}
    counts = Counter(
        (body["channel"], each["transition"]) for body in receiver.bodies for each in body["changes"]
    )
    assert set(counts.values()) == {1}
    assert len(counts) == Delivery.objects.count() == len(channels) * len(proxies)
    assert not Channel.objects.filter(claim__isnull=False).exists()
