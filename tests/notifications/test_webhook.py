"""Webhooks, sent to real servers."""

import json
import socket
import time
from base64 import b64encode
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import trustme

from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.notifications import forms, transport
from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.policy import AddressPolicy
from proxyhealth.probing.transport import Connection
from proxyhealth.testing import fake_snapshot
from tests.notifications.messages import make_change, make_message, webhook
from tests.support.machine import at_most
from tests.support.receivers import WebhookReceiver
from tests.support.servers import (
    Server,
    drip,
    flood,
    hold,
    redirect,
    refusing,
    response,
    send,
    send_and_hold,
    send_and_reset,
    server_context,
    silent,
)

TOKEN = "T00secret/B00secret/x9hushhush"


@pytest.fixture
def impatient(monkeypatch):
    """A message may take less than a second, not ten."""
    monkeypatch.setattr("proxyhealth.notifications.webhook.TIMEOUT", 0.2)


def fail(channel, message=None):
    """Send a message that must fail, and return the error."""
    with pytest.raises(DeliveryFailed) as failed:
        transport.send(channel, message or make_message())
    error = failed.value
    assert "secret" not in str(error)
    assert "hushhush" not in str(error)
    assert channel.secret not in str(error)
    return error


def refusal(data):
    with WebhookReceiver(send(data)) as server:
        return fail(webhook(f"{server.url}/services/{TOKEN}?key=secret-key"))


def test_webhook__server_gets_signed_json():
    message = make_message()
    with WebhookReceiver() as server:
        channel = webhook(f"{server.url}/services/{TOKEN}?key=ä b".replace(" ", "%20"))
        assert transport.send(channel, message).answer == "HTTP 200 OK: “ok”"
    ((line, headers, body),) = server.received
    assert line == f"POST /services/{TOKEN}?key=%C3%A4%20b HTTP/1.1"
    assert headers["host"] == server.netloc
    assert headers["content-type"] == "application/json"
    assert headers["idempotency-key"] == str(message.id)
    assert json.loads(body) == forms.payload(message)
    moment, signature = headers["proxyhealth-signature"].split(",")
    assert abs(time.time() - int(moment.removeprefix("t="))) < 60
    assert signature.startswith("v1=")
    assert "authorization" not in headers


def test_webhook__repeat_has_the_same_id_and_body():
    message = make_message()
    with WebhookReceiver() as server:
        channel = webhook(server.url)
        for _ in range(2):
            transport.send(channel, message)
    first, second = server.received
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_webhook__each_2xx_is_success():
    with WebhookReceiver(send(response(b"", status="204 No Content", length=""))) as server:
        assert transport.send(webhook(server.url), make_message()).answer == "HTTP 204 No Content"


def test_webhook__user_in_the_url_becomes_a_header():
    with WebhookReceiver() as server:
        transport.send(webhook(f"http://bot:p%40ss@{server.netloc}"), make_message())
    assert server.received[0].headers["authorization"] == f"Basic {b64encode(b'bot:p@ss').decode()}"


def test_webhook__large_message_over_tls(configure, tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    configure(CA_BUNDLE=tmp_path / "ca.pem")
    message = make_message(*(make_change(f"proxy-{number}") for number in range(300)))
    with WebhookReceiver(tls=server_context(ca, "127.0.0.1")) as server:
        transport.send(webhook(server.url), message)
    assert len(server.received[0].body) > 100_000
    assert json.loads(server.received[0].body) == forms.payload(message)


def test_webhook__untrusted_certificate_gets_nothing():
    with WebhookReceiver(tls=server_context(trustme.CA(), "127.0.0.1")) as server:
        error = fail(webhook(server.url))
    assert "certificate not accepted" in str(error)
    assert server.received == []


def test_webhook__redirect_is_not_followed():
    with WebhookReceiver() as other:
        error = refusal(redirect(f"{other.url}/secret", "301 Moved Permanently"))
        assert other.received == []
    assert str(error) == (
        "HTTP 301 Moved Permanently to 127.0.0.1; redirects are not followed, correct the URL"
    )
    assert not error.is_final
    for location in ("/elsewhere", "http://[secret"):
        error = refusal(redirect(location))
        assert str(error) == "HTTP 302 Found; redirects are not followed, correct the URL"


def test_webhook__410_is_final():
    error = refusal(response("no such hook", status="410 Gone", content_type="text/plain"))
    assert error.is_final
    assert str(error) == "HTTP 410 Gone: “no such hook”; the receiver wants no more messages"


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        ("429 Too Many Requests", "7", 7),
        ("503 Service Unavailable", "120", 120),
        ("429 Too Many Requests", "9" * 50, 3600),
        ("429 Too Many Requests", "-5", None),
        ("429 Too Many Requests", "soon", None),
        ("429 Too Many Requests", "Fri, 27 Nov 2026 03:13:00 GMT", 60),
        ("429 Too Many Requests", "Fri, 27 Nov 2026 03:11:00 GMT", 0),
        ("429 Too Many Requests", "Fri, 27 Nov 2099 03:11:00 GMT", 3600),
        ("500 Internal Server Error", "7", None),
    ],
)
def test_webhook__retry_after(status, header, seconds):
    date = "Date: Fri, 27 Nov 2026 03:12:00 GMT"
    error = refusal(response(b"", date, f"Retry-After: {header}", status=status))
    assert error.retry_after == seconds
    assert not error.is_final


def test_webhook__retry_after_without_a_date_of_the_server():
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    error = refusal(response(b"", f"Retry-After: {until}", status="503 Service Unavailable"))
    assert 60 < error.retry_after <= 90


def test_webhook__error_names_the_words_of_the_server():
    body = json.dumps({"error": "invalid\u202e payload\n"})
    assert str(refusal(response(body, status="400 Bad Request"))) == "HTTP 400 Bad Request: “invalid payload”"


def test_webhook__echo_of_the_request_shows_no_secret():
    def echo(sock):
        (request,) = server.received
        text = f"{request.line} {request.headers}"
        sock.sendall(response(text, status="500 secret-key", content_type="text/plain"))

    with WebhookReceiver(echo) as server:
        channel = webhook(f"http://bot:secret-pass@{server.netloc}/services/{TOKEN}?key=secret-key")
        error = fail(channel)
    assert "POST /***/***/***/***?key=***" in str(error)
    assert b64encode(b"bot:secret-pass").decode() not in str(error)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (hold, "no answer within 0.2 s"),
        (drip(response("slow"), 0.05), "no answer within 0.2 s"),
        (flood(b"X-Filler: 1\r\n", start=b"HTTP/1.1 200 OK\r\n"), "got more than 100 headers"),
        (send(b""), "closed connection without response"),
        (send(b"HTTP/1.1 200 OK\r\nContent-"), "the connection was closed in the middle of the headers"),
        (send_and_reset(b""), "reset by peer"),
        (send(b"SSH-2.0-OpenSSH\r\n"), "the response is not HTTP"),
    ],
    ids=["hangs", "trickles", "floods", "closes", "ends early", "resets", "no HTTP"],
)
def test_webhook__hostile_server(script, words, impatient):
    with WebhookReceiver(script) as server, at_most(2.5):
        error = fail(webhook(f"{server.url}/{TOKEN}"))
    assert words in str(error)


def test_webhook__success_does_not_wait_for_the_body(monkeypatch):
    monkeypatch.setattr("proxyhealth.probing.bodies._BEGINNING_TIMEOUT", 0.1)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok"
    with WebhookReceiver(send_and_hold(answer)) as server, at_most(2):
        assert transport.send(webhook(server.url), make_message()).answer == "HTTP 200 OK: “ok”"


def connect(port, seconds):
    return Connection("127.0.0.1", port, deadline=Deadline(seconds), policy=AddressPolicy())


def test_post__server_that_reads_nothing():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        at_most(2),
        closing(connect(listener.getsockname()[1], 0.2)) as connection,
        pytest.raises(TimeoutError),
    ):
        connection.post("/", {}, b"x" * 20_000_000)


def test_post__answer_before_the_body_is_read():
    def refuse(sock):
        sock.recv(100)
        send_and_hold(response(b"", "Connection: close", status="413 Content Too Large"))(sock)

    with (
        Server(refuse, read=False) as server,
        closing(connect(server.port, 5)) as connection,
        closing(connection.post("/", {}, b"x" * 1_000_000)) as answer,
    ):
        assert answer.status == 413


def test_webhook__nobody_listens(impatient):
    with refusing() as port:
        assert "Connection refused" in str(fail(webhook(f"http://127.0.0.1:{port}/{TOKEN}")))
    with silent() as port:
        assert "no answer within 0.2 s" in str(fail(webhook(f"http://127.0.0.1:{port}/{TOKEN}")))


def test_webhook__denied_address_gets_nothing(configure):
    configure(ADDRESS_DENY=["127.0.0.0/8"])
    with WebhookReceiver() as server:
        error = fail(webhook(f"http://127.0.0.1:{server.port}/{TOKEN}"))
        assert server.connections == 0
    assert str(error) == "ADDRESS_DENY refuses the address of 127.0.0.1"


def test_webhook__metadata_service_is_denied_by_default():
    assert "ADDRESS_DENY" in str(fail(webhook("http://169.254.169.254/latest/meta-data/")))


def test_webhook__without_secret_is_not_sent():
    with WebhookReceiver() as server:
        with pytest.raises(DeliveryFailed, match="no secret"):
            transport.send(webhook(server.url, secret=" "), make_message())
        assert server.connections == 0


def test_webhook__tests_of_a_project_send_none():
    with WebhookReceiver() as server, fake_snapshot():
        assert "a test sends no webhook" in str(fail(webhook(server.url)))
        assert server.connections == 0


def test_send_test__says_what_the_server_answered():
    with WebhookReceiver() as server:
        answer = transport.send_test(webhook(server.url))
    assert answer.ok
    assert answer.text == "HTTP 200 OK: “ok”"
    assert 0 < answer.seconds < 10
    assert json.loads(server.received[0].body)["event"] == "test"
    with refusing() as port:
        answer = transport.send_test(webhook(f"http://127.0.0.1:{port}"))
    assert not answer.ok
    assert "Connection refused" in answer.text
