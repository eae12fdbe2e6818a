"""The list of the deliveries in the admin."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from proxyhealth.admin import deliveries
from proxyhealth.models import Alarm, Channel, Delivery, Transition
from proxyhealth.notifications import sending
from proxyhealth.task_names import TaskName
from tests.support.receivers import WebhookReceiver
from tests.support.values import NOW

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/delivery/"


@pytest.fixture
def requested(monkeypatch):
    """The tasks that the admin hands to the broker."""
    names = []
    monkeypatch.setattr(deliveries.dispatch, "request_task", names.append)
    return names


def make(name="ops", **values):
    values = {"kind": "email", "target": "SECRET@a", **values}
    return Channel.objects.create(name=name, listens_since=NOW, **values)


def insert(channel, name="paris", hours=0.0, **values):
    if "alarm" not in values:
        values["transition"] = Transition.objects.create(
            proxy_uuid=uuid4(), proxy_name=name, before="ok", after="unreachable", token=1, at=NOW, watched=0
        )
    created = timezone.now() - timedelta(hours=hours)
    return Delivery.objects.create(channel=channel, **{"created_at": created, **values})


def listed(client, query=""):
    response = client.get(LIST + query)
    assert response.status_code == 200, response
    return [row.transition.proxy_name for row in response.context["cl"].result_list]


def try_again(client, *rows):
    data = {"action": "try_again", "_selected_action": [row.pk for row in rows]}
    response = client.post(LIST, data, follow=True)
    return response.content.decode()


def test_list__shows_what_was_told_to_whom(admin_client):
    channel = make()
    insert(channel, error="<refused>", attempts=3, number=2)
    alarm = Alarm.objects.create(kind="offline", began_at=NOW)
    insert(channel, alarm=alarm, number=1, state="sent", sent_at=NOW)
    text = admin_client.get(LIST).content.decode()
    for part in ("<bdi>paris</bdi>", "reminder 2", "&lt;refused&gt;", "end of prober offline", ">sent<"):
        assert part in text
    assert f'href="/admin/proxyhealth/channel/{channel.pk}/change/"' in text
    assert "SECRET" not in text
    assert "SECRET" not in admin_client.get(f"{LIST}{Delivery.objects.first().pk}/change/").content.decode()


def test_filter__by_channel_state_and_time(admin_client):
    ops, other = make(), make("other")
    insert(ops, "old", hours=30, state="failed")
    insert(other, "sent", hours=3, state="sent")
    insert(ops, "new")
    assert listed(admin_client) == ["new", "sent", "old"]
    assert listed(admin_client, f"?channel={ops.pk}") == ["new", "old"]
    assert listed(admin_client, "?state=failed") == ["old"]
    assert listed(admin_client, "?hours=24") == ["new", "sent"]
    assert listed(admin_client, f"?hours=24&channel={ops.pk}&state=pending") == ["new"]
    assert admin_client.get(f"{LIST}?channel=nonsense")["Location"] == f"{LIST}?e=1"
    Delivery.objects.update(created_at=NOW - timedelta(days=400))
    assert listed(admin_client, "?hours=1") == []


def test_list__fixed_number_of_queries(admin_client, django_assert_num_queries):
    """Session, user, channels of the filter, count, and rows; and the begin of the filter by time."""
    for count in (1, 20):
        for i in range(count):
            insert(make(f"c{count}-{i}"))
        with django_assert_num_queries(6):
            assert listed(admin_client, "?hours=1")


def test_try_again__makes_failed_messages_pending(admin_client, requested):
    channel = make()
    message = uuid4()
    chosen = insert(channel, state="failed", message=message)
    same_message = insert(channel, state="failed", message=message)
    other = insert(channel, state="failed", message=uuid4())
    sent = insert(channel, state="sent", message=uuid4())
    assert "2 deliveries are sent again now." in try_again(admin_client, chosen, sent)
    states = {row.pk: (row.state, row.next_attempt_at is None) for row in Delivery.objects.all()}
    assert states[chosen.pk] == states[same_message.pk] == ("pending", False)
    assert states[other.pk] == ("failed", True)
    assert states[sent.pk] == ("sent", True)
    assert set(Delivery.objects.filter(state="pending").values_list("message", flat=True)) == {message}
    assert requested == [TaskName.DELIVER]


def test_try_again__sends_the_same_message(admin_client, requested):
    """It was given up after a day. Its ID stays, so a receiver that has it can ignore it."""
    message, long_ago = uuid4(), timezone.now() - timedelta(days=2)
    with WebhookReceiver() as receiver:
        channel = make(kind="webhook", target=receiver.url, secret="x" * 16)
        row = insert(channel, state="failed", attempts=50, message=message, message_at=long_ago)
        try_again(admin_client, row)
        sending.send_due()
    assert [request.headers["idempotency-key"] for request in receiver.received] == [str(message)]
    row.refresh_from_db()
    assert (row.state, row.attempts) == ("sent", 51)


def test_try_again__nothing_that_was_sent_or_whose_channel_is_disabled(admin_client, requested):
    rows = insert(make(), state="sent"), insert(make("off", enabled=False), state="failed")
    assert "Nothing is sent again" in try_again(admin_client, *rows)
    assert requested == []
    assert not Delivery.objects.filter(state="pending").exists()


def test_try_again__needs_the_permission_to_change_channels(requested):
    row = insert(make(), state="failed")
    for permissions, expected in (
        (["view_delivery"], "failed"),
        (["view_delivery", "change_channel"], "pending"),
    ):
        user = User.objects.create_user(f"u{len(permissions)}", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client()
        client.force_login(user)
        try_again(client, row)
        assert Delivery.objects.get().state == expected


def test_list__nobody_changes_it(admin_client):
    row = insert(make())
    assert admin_client.get(f"{LIST}add/").status_code == 403
    assert admin_client.post(f"{LIST}{row.pk}/change/", {"state": "sent"}).status_code == 403
    assert admin_client.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Delivery.objects.get().state == "pending"
