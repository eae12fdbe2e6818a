"""The wizard and the form of a channel in the admin, and what nobody sees again."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from proxyhealth.durations import duration_text, parse_duration
from proxyhealth.models import Channel, Delivery, WorkspaceProxy
from tests.support.channels import BAD, HIDDEN, LIST, address, form, insert, make, post, staff, text_of
from tests.support.receivers import WebhookReceiver
from tests.support.servers import response, send
from tests.support.values import NOW

pytestmark = pytest.mark.django_db

ADD = f"{LIST}add/"


@pytest.fixture
def receiver():
    with WebhookReceiver() as receiver:
        yield receiver


# The wizard


def test_wizard__asks_for_the_kind_first(admin_client):
    for query in ("", "?kind=pigeon"):
        text = text_of(admin_client, ADD + query)
        for kind in ("email", "webhook"):
            assert f'href="?kind={kind}"' in text
        assert 'name="target"' not in text


def test_wizard__list_without_channels_leads_to_it(admin_client):
    text = text_of(admin_client, LIST)
    assert "Nobody is told when a proxy fails." in text
    assert f'href="{ADD}">Add the first channel' in text
    make()
    assert "Nobody is told" not in text_of(admin_client, LIST)


def test_wizard__fields_fit_the_kind(admin_client):
    for kind, has_secret in (("email", False), ("webhook", True), ("apprise", False)):
        text = text_of(admin_client, f"{ADD}?kind={kind}")
        assert 'name="target"' in text
        assert ('name="secret"' in text) == has_secret
        assert 'name="enabled"' not in text
        assert text.count("checked") == len(BAD)
        assert 'value="Save and send a test"' in text
        assert not re.search(r"<script>|<style|<[^>]+\s(?:style|on\w+)=", text), "a strict policy permits it"


def test_wizard__saves_and_sends_a_test(admin_client, receiver):
    before = timezone.now()
    secret = "chosen by the receiver"
    data = form(name="On call", target=f"{receiver.url}/hook", secret=secret, _test="1")
    text = post(admin_client, f"{ADD}?kind=webhook", data)
    channel = Channel.objects.get()
    assert "The test was sent in 0." in text
    assert len(receiver.received) == 1
    assert (channel.kind, channel.enabled, channel.statuses) == ("webhook", True, BAD)
    assert before <= channel.listens_since <= timezone.now()
    assert channel.last_success_at >= before
    assert address(channel) in text


def test_wizard__failed_test_says_so_and_keeps_the_channel(admin_client):
    with WebhookReceiver(send(response(status="500 Oh no"))) as receiver:
        text = post(
            admin_client, f"{ADD}?kind=webhook", form(target=receiver.url, secret="s" * 20, _test="1")
        )
    assert "The test failed after 0." in text
    assert "500" in text
    channel = Channel.objects.get()
    assert channel.last_failure_at
    assert "500" in channel.last_error


def test_wizard__names_are_free(admin_client):
    make("Email", kind="email", target="a@example.com")
    assert 'value="Email 2"' in text_of(admin_client, f"{ADD}?kind=email")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("email", {"target": "nobody"}, "is not an email address"),
        ("email", {"target": ""}, "This field is required."),
        ("webhook", {"target": "ftp://example.com"}, "must begin with http:// or https://"),
        ("webhook", {"target": "http://127.0.0.1", "secret": "short"}, "at least 16 characters"),
        ("email", {"statuses": []}, "Choose at least one status."),
        ("email", {"delay": "5"}, "Enter a number with a unit"),
        ("email", {"remind_every": "5 s"}, "The shortest duration is 1 min."),
        ("email", {"delay": "8 d"}, "The longest duration is 7 d."),
        ("email", {"name": "a\u202eb"}, "The text contains an invisible character"),
    ],
)
def test_wizard__explains_what_is_wrong(admin_client, kind, values, message):
    response = admin_client.post(f"{ADD}?kind={kind}", form(**{"target": "ops@example.com", **values}))
    assert message in response.content.decode()
    assert not Channel.objects.exists()


# Secrets


def test_secret__is_shown_once(admin_client):
    text = post(admin_client, f"{ADD}?kind=webhook", form(target="http://127.0.0.1:9"))
    channel = Channel.objects.get()
    assert len(channel.secret) >= 40
    assert text.count(channel.secret) == 1
    for path in (LIST, address(channel), "/admin/", f"{LIST}{channel.pk}/history/"):
        assert channel.secret not in text_of(admin_client, path)


def test_secret__is_shown_before_the_test_is_sent(admin_client, receiver):
    """A receiver that verifies signatures does not know a secret that was made just now."""
    text = post(admin_client, f"{ADD}?kind=webhook", form(target=receiver.url, _test="1"))
    channel = Channel.objects.get()
    assert channel.secret in text
    assert receiver.received == []
    assert channel.last_success_at is None
    test = f"{LIST}{channel.pk}/test/"
    assert f'<form method="post" action="{test}">' in text
    assert f'href="{address(channel)}">Send the test later' in text
    assert "The test was sent in 0." in post(admin_client, test, {})
    post(admin_client, address(channel), form(channel, new_secret="on", _test="1"))
    assert len(receiver.received) == 1


def test_secret__new_one_replaces_it(admin_client):
    channel = make()
    text = post(admin_client, address(channel), form(channel, new_secret="on"))
    secret = Channel.objects.get().secret
    assert secret != HIDDEN
    assert secret in text
    post(admin_client, address(channel), form(channel, secret="chosen by the receiver"))
    assert Channel.objects.get().secret == "chosen by the receiver"
    both = form(channel, new_secret="on", secret="chosen by the receiver")
    assert "but not both" in post(admin_client, address(channel), both)


@pytest.mark.parametrize("kind", ["webhook", "email", "apprise"])
def test_target__is_never_shown_again(admin_client, kind):
    target = {"email": f"x{HIDDEN}@example.com", "apprise": f"slack://{HIDDEN}/{HIDDEN}"}
    channel = make(kind=kind, **({"target": target[kind]} if kind in target else {}))
    for client in (admin_client, staff("view_channel", "view_delivery")):
        text = text_of(client, address(channel))
        assert HIDDEN not in text
        assert "…" in text
    assert HIDDEN not in text_of(admin_client, LIST)
    invalid = admin_client.post(address(channel), form(channel, delay="soon"))
    assert HIDDEN not in invalid.content.decode()


def test_log__has_neither_target_nor_secret(admin_client):
    channel = make()
    new = form(channel, target=f"http://127.0.0.1:9/{HIDDEN}2", secret=f"{HIDDEN}{HIDDEN}")
    post(admin_client, address(channel), {**new, "_test": "1"})
    assert Channel.objects.get().target.endswith("2")
    entries = LogEntry.objects.values_list("object_repr", "change_message")
    assert len(entries) == 2
    assert HIDDEN not in str(list(entries))
    assert "A test failed." in str(list(entries))


def test_view_only__form_has_no_fields(admin_client):
    text = text_of(staff("view_channel"), address(make()))
    for name in ("target", "secret", "new_secret", "_test", "_save"):
        assert f'name="{name}"' not in text
    assert "Send a test" not in text
    assert "unreachable, unhealthy" in text


# Saving


def test_save__empty_target_and_secret_are_kept(admin_client):
    channel = make(listens_since=NOW)
    post(admin_client, address(channel), form(channel, delay="1 h 30 min", remind_every="4h", name="Night"))
    saved = Channel.objects.get()
    assert (saved.target, saved.secret, saved.name) == (channel.target, HIDDEN, "Night")
    assert (saved.delay, saved.remind_every) == (5_400, 14_400)
    assert saved.listens_since == NOW
    text = text_of(admin_client, address(channel))
    assert 'value="1 h 30 min"' in text
    assert 'value="4 h"' in text


def test_enabled_again__is_told_what_happens_from_then_on(admin_client):
    channel = make(enabled=False)
    before = timezone.now()
    post(admin_client, address(channel), form(channel, **{"enabled": "on", "initial-enabled": "False"}))
    saved = Channel.objects.get()
    assert saved.enabled
    assert saved.listens_since >= before


def test_save__keeps_what_others_wrote_meanwhile(admin_client):
    """The other side has answered 410 while the form was open: saving it does not enable the channel."""
    channel = make()
    opened = form(channel, delay="5 min")
    Channel.objects.update(enabled=False, last_error="410 Gone", last_failure_at=NOW)
    post(admin_client, address(channel), opened)
    saved = Channel.objects.get()
    assert (saved.delay, saved.enabled, saved.last_error) == (300, False, "410 Gone")


def test_save__new_target_is_tried_at_once(admin_client, sent):
    channel = make()
    later = timezone.now() + timedelta(hours=1)
    tried = insert(channel, attempts=3, next_attempt_at=later)
    new = insert(channel, next_attempt_at=later)
    post(admin_client, address(channel), form(channel, target="http://127.0.0.1:9/"))
    assert Delivery.objects.get(pk=tried.pk).next_attempt_at <= timezone.now()
    assert Delivery.objects.get(pk=new.pk).next_attempt_at == later


def test_save__warns_if_no_proxy_matches(admin_client):
    for name in ("eu-paris", "eu-oslo", "us-lima"):
        WorkspaceProxy.objects.create(name=name, labels={"region": name[:2]})
    channel = make()
    assert "No proxy matches" in post(admin_client, address(channel), form(channel, proxies="asia-*"))
    assert "No proxy matches" not in post(admin_client, address(channel), form(channel, proxies="region:EU"))
    assert "2 of 3 proxies: <bdi>eu-oslo</bdi>, <bdi>eu-paris</bdi>" in text_of(
        admin_client, address(channel)
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("5 min", 300),
        ("2h", 7_200),
        ("1,5 hours", 5_400),
        ("1 h 30 min", 5_400),
        ("1 d 2 s", 86_402),
        ("90 Seconds", 90),
        ("5", None),
        ("-5 min", None),
        ("5 months", None),
        ("٥ min", None),
        ("min", None),
    ],
)
def test_duration__as_people_write_it(text, seconds):
    if seconds is None:
        with pytest.raises(ValueError, match=re.escape(text)):
            parse_duration(text)
    else:
        assert parse_duration(text) == seconds
        assert parse_duration(duration_text(seconds)) == seconds
