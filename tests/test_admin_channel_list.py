"""The list of the channels in the admin, the test message, the deliveries of a channel, and its end."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from proxyhealth.admin import channels
from proxyhealth.models import Channel, Delivery, Transition
from tests.support.channels import HIDDEN, LIST, address, form, insert, make, post, staff, text_of
from tests.support.receivers import WebhookReceiver
from tests.support.values import NOW

pytestmark = pytest.mark.django_db


@pytest.fixture
def receiver():
    with WebhookReceiver() as receiver:
        yield receiver


AGO = timezone.now() - timedelta(hours=3, minutes=5)


STATES = [
    ({}, ">never used<"),
    ({"last_success_at": AGO, "last_failure_at": NOW}, "works, last message <time"),
    (
        {"last_failure_at": AGO, "last_success_at": NOW, "last_error": "<no>"},
        "</time>: <bdi>&lt;no&gt;</bdi>",
    ),
    (
        {"last_success_at": AGO, "last_error": "not accepted for <b>: 550"},
        "</time>, <bdi>not accepted for &lt;b&gt;: 550</bdi>",
    ),
    ({"enabled": False}, ">disabled<"),
    ({"enabled": False, "last_failure_at": AGO, "last_error": "410 Gone"}, ">disabled: <bdi>410 Gone</bdi>"),
]


def test_state__in_words(admin_client):
    for i, (values, _) in enumerate(STATES):
        make(str(i), **values)
    text = admin_client.get(LIST).content.decode()
    cells = re.findall(r'<td class="field-state">(.*?)</td>', text)
    for cell, (_, words) in zip(cells, STATES, strict=True):
        assert words in cell
    assert "3\xa0hours ago" in cells[1]


def test_state__fails_since_the_oldest_delivery_that_was_tried(admin_client):
    channel = make(last_failure_at=AGO)
    insert(channel, attempts=2, created_at=NOW)
    insert(channel)
    assert 'failing since <time dir="ltr" datetime="2026-11-22T08:00:00+00:00"' in text_of(admin_client, LIST)


def test_list__counts_pending_with_a_fixed_number_of_queries(admin_client, django_assert_num_queries):
    """Session, user, count, and rows."""
    for count in (1, 5):
        for i in range(count):
            channel = make(f"c{count}-{i}")
            insert(channel)
            insert(channel, state="sent", next_attempt_at=None)
        with django_assert_num_queries(4):
            text = text_of(admin_client, LIST)
        assert '<td class="field-pending">1</td>' in text


# The test message


def test_test__says_what_the_other_side_answered(admin_client, receiver):
    channel = make(target=f"{receiver.url}/{HIDDEN}")
    text = post(admin_client, f"{LIST}{channel.pk}/test/", {})
    assert "The test was sent in 0." in text
    assert "200" in text
    assert HIDDEN not in text


def test_test__needs_a_post_with_the_permission(admin_client, receiver):
    channel = make(target=receiver.url)
    path = f"{LIST}{channel.pk}/test/"
    assert admin_client.get(path).status_code == 405
    assert staff("view_channel", "add_channel").post(path).status_code == 403
    assert admin_client.post(f"{LIST}999/test/").status_code == 404
    assert Client(enforce_csrf_checks=True).post(path).status_code in (302, 403)
    assert receiver.received == []


@pytest.mark.django_db(transaction=True)
def test_test__holds_no_transaction(admin_client, receiver, monkeypatch, settings):
    """A receiver may take ten seconds. Meanwhile, nothing in the database is locked."""
    from django.db import connection

    open_blocks = []
    send = channels.transport.send_test

    def watched(channel):
        open_blocks.append(connection.in_atomic_block)
        return send(channel)

    monkeypatch.setattr(channels.transport, "send_test", watched)
    post(admin_client, f"{LIST}add/?kind=webhook", form(target=receiver.url, secret="s" * 20, _test="1"))
    post(admin_client, f"{LIST}{Channel.objects.get().pk}/test/", {})
    assert open_blocks == [False, False]


# Deliveries and deleting


def test_form__shows_the_last_deliveries(admin_client, django_assert_num_queries):
    channel, other = make(), make("other")
    for i in range(25):
        insert(channel, attempts=i, error=f"error {i}")
    insert(other, error="of another")
    text = text_of(admin_client, address(channel))
    assert "error 24" in text
    assert "error 5<" in text
    assert "error 4<" not in text
    assert "of another" not in text
    assert f"/admin/proxyhealth/delivery/?channel={channel.pk}" in text


def test_delete__does_not_list_the_deliveries(admin_client, monkeypatch, django_assert_max_num_queries):
    monkeypatch.setattr(channels, "MAX_ROWS", 20)
    monkeypatch.setattr(channels, "_BATCH", 10)
    channel, other = make(), make("other")
    insert(other)
    for _ in range(30):
        insert(channel)
    path = f"{LIST}{channel.pk}/delete/"
    text = text_of(admin_client, path)
    assert "more than 20" in text
    assert "paris" not in text
    with django_assert_max_num_queries(26):
        post(admin_client, path, {"post": "yes"})
    assert Channel.objects.get() == other
    assert Delivery.objects.get().channel == other
    assert Transition.objects.count() == 31
    action = {"action": "delete_selected", "_selected_action": [other.pk], "post": "yes"}
    post(admin_client, LIST, action)
    assert not Channel.objects.exists()


def test_delete__needs_the_permission(admin_client):
    channel = make()
    client = staff("view_channel", "change_channel")
    assert client.post(f"{LIST}{channel.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Channel.objects.exists()
