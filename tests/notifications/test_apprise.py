"""Messages by Apprise, to real servers that speak the protocols of ntfy and Mattermost."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
from django.core.exceptions import ValidationError

from proxyhealth.admin.channel_forms import AppriseForm
from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.notifications import apprise_channel, forms, limits, transport
from proxyhealth.notifications.messages import Event
from tests.notifications.messages import apprise, make_change, make_message
from tests.support.machine import at_most
from tests.support.receivers import WebhookReceiver
from tests.support.servers import drip, hold, redirect, refusing, response, send

TOKEN = "3ccdd113474722377935511fc85d3dd4"


def fail(target, message=None):
    with pytest.raises(DeliveryFailed) as failed:
        transport.send(apprise(target), message or make_message())
    assert TOKEN not in str(failed.value)
    return str(failed.value)


def test_apprise__service_gets_title_and_text():
    message = make_message()
    with WebhookReceiver() as server:
        answer = transport.send(apprise(f"mmost://{server.netloc}/{TOKEN}"), message)
    assert answer == ("accepted by Mattermost", "")
    ((line, _, body),) = server.received
    assert line.startswith(f"POST /hooks/{TOKEN} ")
    text = json.loads(body)["text"]
    assert forms.subject(message) in text
    assert forms.short(message).splitlines()[0] in text


def test_apprise__secrets_are_neither_in_logs_nor_in_errors(caplog):
    """Its own logs have the URL, and those of urllib3 the path, at the level DEBUG."""
    with caplog.at_level(0), WebhookReceiver(send(response("no", status="500 Oh no"))) as server:
        error = fail(f"mmost://me:{TOKEN}@{server.netloc}/{TOKEN}?image=no")
        assert len(server.received) == 1
    assert error.startswith("Mattermost has not accepted the message: ")
    assert "error=500" in error
    assert TOKEN not in caplog.text
    with caplog.at_level(0):
        logging.getLogger("apprise").warning("of the host")
    assert "of the host" in caplog.text


def test_apprise__invalid_token_is_not_in_the_error():
    assert fail("slack://not-hunter2/x/y").startswith("Apprise cannot read this URL")
    assert "hunter2" not in fail("slack://not-hunter2/x/y")
    assert "Apprise cannot read this URL" in fail(f"nosuchservice://{TOKEN}")


def test_validate_service__reads_the_url_only(monkeypatch):
    apprise_channel.validate_service("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")
    apprise_channel.validate_service("syslog://localhost")  # validate_target() reports it
    for target in ("slack://not-hunter2/x/y", "nosuchservice://hunter2", "ntfy://169.254.169.254/topic"):
        with pytest.raises(ValidationError) as refused:
            apprise_channel.validate_service(target)
        assert refused.value.messages[0].startswith("This target cannot be used: ")
        assert "hunter2" not in refused.value.messages[0]
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ValidationError, match="Apprise is not installed"):
        apprise_channel.validate_service("ntfy://topic")


@pytest.mark.django_db
def test_apprise_form__error_is_at_the_target():
    data = {"name": "Chat", "target": "slack://not-hunter2/x/y", "statuses": ["unreachable"]}
    (error,) = AppriseForm(data).errors["target"]
    assert error.startswith("This target cannot be used: Apprise cannot read this URL")
    assert not AppriseForm({**data, "target": "ntfy://topic"}).errors


def test_apprise__url_cannot_hide_a_failure():
    with WebhookReceiver(send(response("", status="503 Busy"))) as server:
        fail(f"mmost://{server.netloc}/{TOKEN}?optional=yes&retry=3&wait=0.1")
        assert len(server.received) == 1


def test_apprise__redirect_is_not_followed():
    with WebhookReceiver() as other, WebhookReceiver(send(redirect(other.url))) as server:
        fail(f"mmost://{server.netloc}/{TOKEN}?redirect=yes")
        assert other.connections == 0


@pytest.mark.parametrize("script", [hold, drip(response("slow"), 0.02)], ids=["hangs", "trickles"])
def test_apprise__slow_service_is_left(script, monkeypatch):
    monkeypatch.setattr(limits, "TIMEOUT", 0.2)
    with WebhookReceiver(script) as server, at_most(2):
        assert "no answer within 0.2 s" in fail(f"mmost://{server.netloc}/{TOKEN}?rto=60")


def test_apprise__nobody_listens():
    with refusing() as port:
        assert "Mattermost has not accepted the message" in fail(f"mmost://127.0.0.1:{port}/{TOKEN}")


@pytest.mark.parametrize("target", ["syslog://localhost", "jsons://example.com", "slack://a/b/c?template=/x"])
def test_apprise__refused_url_is_not_sent(target):
    assert "the Apprise URL cannot be used" in fail(target)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "169.254.43518", "[fd00:ec2::254]"]
)
def test_apprise__denied_address_gets_nothing(host):
    error = fail(f"ntfy://{host}/topic")
    assert error.startswith("ADDRESS_DENY refuses the address "), error


def test_apprise__report_wakes_up_nobody():
    message = make_message(make_change(display_name="@everyone <!channel>"))
    with WebhookReceiver() as server:
        transport.send(apprise(f"mmost://{server.netloc}/{TOKEN}"), message)
    text = json.loads(server.received[0].body)["text"]
    assert "everyone" in text
    assert "@everyone" not in text
    assert "<!channel" not in text


def test_apprise__not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    answer = transport.send_test(apprise(f"mmost://127.0.0.1/{TOKEN}"))
    assert not answer.ok
    assert "pip install 'proxyhealth[apprise]'" in answer.text


@pytest.mark.parametrize(
    ("pause", "length", "limit"), [(5.5, 160, 80), (1.0, 160, 400), (0, 160, 400), (5.5, 32_768, 32_668)]
)
def test_apprise__long_text_fits_into_the_time(pause, length, limit):
    service = SimpleNamespace(request_rate_per_sec=pause, body_maxlen=length)
    text = "\n".join(f"line {number}" for number in range(10_000))
    shortened = apprise_channel._shortened(text, service)
    assert limit - 20 < len(shortened) <= limit + 1
    assert shortened.endswith("\n…")
    assert apprise_channel._shortened("short", service) == "short"


@pytest.mark.parametrize(
    ("message", "type"),
    [
        (make_message(event=Event.TEST), "info"),
        (make_message(make_change(), make_change(after="ok")), "failure"),
        (make_message(make_change(after="ok")), "success"),
    ],
)
def test_apprise__type_of_the_message(message, type):
    assert apprise_channel._type_of(message) == type
