"""Emails, sent to a real SMTP server by Django's backend."""

import time

import django
import pytest
import trustme
from django.core import mail as django_mail
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend as SMTPBackend

from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.models import Delivery
from proxyhealth.notifications import forms, limits, mail, transport
from proxyhealth.notifications.sending import send_due
from tests.notifications.messages import mailing, make_change, make_message
from tests.notifications.story import change, make_channel, states
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.receivers import MailServer
from tests.support.servers import Server, drip, hold, refusing, send, send_and_hold, server_context

SMTP = "django.core.mail.backends.smtp.EmailBackend"


@pytest.fixture
def use_backend(settings):
    """``use_backend(port=…)`` makes the host send mails so."""

    def use(backend=SMTP, **options):
        if django.VERSION >= (6, 1):
            if backend == SMTP:
                options = {"host": "127.0.0.1", **options}
            settings.MAILERS = {"default": {"BACKEND": backend, "OPTIONS": options}}
            return
        settings.EMAIL_BACKEND = backend
        names = {"username": "EMAIL_HOST_USER", "password": "EMAIL_HOST_PASSWORD"}
        for name, value in {"host": "127.0.0.1", **options}.items():
            setattr(settings, names.get(name, f"EMAIL_{name.upper()}"), value)

    settings.DEFAULT_FROM_EMAIL = "proxies@example.com"
    return use


def deliver(use_backend, channel=None, message=None, **replies):
    with MailServer(**replies) as server:
        use_backend(port=server.port)
        return server, transport.send(channel or mailing(), message or make_message())


def test_mail__has_text_and_html(use_backend):
    message = make_message()
    server, answer = deliver(
        use_backend, mailing("ops@example.com\nbob@example.com, ops@example.com"), message
    )
    assert answer == ("250 OK", "")
    (mail,) = server.mails
    assert mail["From"] == "proxies@example.com"
    assert mail["To"] == "ops@example.com, bob@example.com"
    assert server.envelopes[0].rcpt_tos == ["ops@example.com", "bob@example.com"]
    assert mail["Subject"] == forms.subject(message)
    assert mail["Message-ID"] == forms.headers(message)["Message-ID"]
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail.get_content_type() == "multipart/alternative"
    plain, html = mail.iter_parts()
    assert plain.get_content().split() == forms.plain(message).split()
    assert html.get_content().split() == forms.html(message).split()


def test_mail__answer_is_that_of_the_server(use_backend):
    _, answer = deliver(use_backend, DATA="250 2.0.0 Ok: queued as 4XyZ")
    assert answer == ("250 2.0.0 Ok: queued as 4XyZ", "")


def test_mail__name_with_a_line_break_adds_no_header(use_backend):
    message = make_message(make_change("paris\r\nBcc: eve@example.com\r\n\r\nbody"))
    server, _ = deliver(use_backend, message=message)
    assert server.mails[0]["Bcc"] is None
    assert server.envelopes[0].rcpt_tos == ["ops@example.com"]


def test_mail__begin_and_end_are_one_conversation(use_backend, proxy, receiver, later):
    """From the history to the mailbox. A repeat has the same Message-ID, so a mailbox shows it once."""
    make_channel(receiver, kind="email", target="ops@example.com")
    replies = iter(["451 Try later"])
    with MailServer(RCPT=lambda _: next(replies, "250 OK")) as server:
        use_backend(port=server.port)
        change(proxy, "unreachable")
        send_due()
        assert server.mails == []
        message = Delivery.objects.get().message
        later(60)
        send_due()
        change(proxy, "ok")
        later(60)
        send_due()
    begin, end = server.mails
    assert str(message) in begin["Message-ID"] != end["Message-ID"]
    assert begin["References"] == end["References"]
    assert states() == ["sent", "sent"]


@pytest.mark.parametrize(
    "target", ["ops@example.com\r\nRCPT TO:<eve@example.com>", "", "ops", "ops@\x00example.com"]
)
def test_mail__invalid_target_is_not_sent(target, use_backend):
    with pytest.raises(DeliveryFailed, match="correct the target of the channel"):
        transport.send(mailing(target), make_message())


def test_mail__some_recipients_refused(use_backend, caplog):
    """The others have the mail, so it is not sent again, and the receipt names who has not."""
    replies = {"bob@example.com": "550 5.1.1 No such user", "amy@example.com": "452 4.2.2 Mailbox full"}
    channel = mailing("ops@example.com,bob@example.com,amy@example.com")
    server, answer = deliver(use_backend, channel, RCPT=lambda address: replies.get(address, "250 OK"))
    assert len(server.mails) == 1
    assert answer.answer == "250 OK"
    assert answer.refused == (
        "bob@example.com: 550 (permanent) 5.1.1 No such user, "
        "amy@example.com: 452 (temporary) 4.2.2 Mailbox full"
    )
    assert f"message={server.mails[0]['Message-ID']} error=bob@example.com: 550" in caplog.text


def test_mail__refused_recipient_is_on_the_delivery(use_backend, proxy, receiver, later):
    """Until a message is accepted for all. Nobody is told twice."""
    channel = make_channel(receiver, kind="email", target="ops@example.com\nbob@example.com")
    replies = {"bob@example.com": "550 5.1.1 No such user"}
    with MailServer(RCPT=lambda address: replies.get(address, "250 OK")) as server:
        use_backend(port=server.port)
        change(proxy, "unreachable")
        send_due()
        later(60)
        assert send_due() is None
        assert len(server.mails) == 1
        error = "not accepted for bob@example.com: 550 (permanent) 5.1.1 No such user"
        delivery = Delivery.objects.get()
        assert (delivery.state, delivery.error) == ("sent", error)
        channel.refresh_from_db()
        assert channel.last_error == error
        replies.clear()
        change(proxy, "ok")
        send_due()
    channel.refresh_from_db()
    assert channel.last_error == ""


@pytest.mark.parametrize(
    ("command", "reply", "error"),
    [
        (
            "RCPT",
            "550 5.1.1 No such user",
            "refused all recipients: ops@example.com: 550 (permanent) 5.1.1 No such user",
        ),
        ("RCPT", "451 Try later", "refused all recipients: ops@example.com: 451 (temporary) Try later"),
        (
            "MAIL",
            "553 Not yours",
            "refused the sender: 553 (permanent) Not yours; set DEFAULT_FROM_EMAIL to one that it accepts",
        ),
        ("DATA", "554 Looks like spam", "refused the mail: 554 (permanent) Looks like spam"),
        ("DATA", "452 Disk full", "refused the mail: 452 (temporary) Disk full"),
    ],
)
def test_mail__server_refuses(command, reply, error, use_backend):
    with pytest.raises(DeliveryFailed) as failed:
        deliver(use_backend, **{command: reply})
    assert str(failed.value).startswith("the mail server 127.0.0.1:")
    assert str(failed.value).endswith(f" {error}")
    assert not failed.value.is_final, "a server that is misconfigured for an hour must not end a channel"


def test_mail__password_is_in_no_error(use_backend):
    greeting = b"220 test\r\n250-test\r\n250 AUTH PLAIN\r\n535 Wrong: hunter2\r\n221 Bye\r\n"
    with Server(send_and_hold(greeting), read=False) as server:
        use_backend(port=server.port, username="me", password="hunter2")
        with pytest.raises(DeliveryFailed) as failed:
            transport.send(mailing(), make_message())
    assert str(failed.value) == (
        f"the mail server 127.0.0.1:{server.port} refused the login: "
        "535 (permanent) Wrong: ***; correct EMAIL_HOST_USER and EMAIL_HOST_PASSWORD"
    )


def test_mail__server_without_starttls(use_backend):
    with MailServer() as server:
        use_backend(port=server.port, use_tls=True)
        with pytest.raises(DeliveryFailed, match="lacks what the email settings need: STARTTLS"):
            transport.send(mailing(), make_message())


def test_mail__untrusted_certificate(use_backend):
    with Server(hold, tls=server_context(trustme.CA(), "127.0.0.1"), read=False) as server:
        use_backend(port=server.port, use_ssl=True)
        with pytest.raises(DeliveryFailed, match=r"TLS with the mail server .* failed: unable to get"):
            transport.send(mailing(), make_message())


def test_mail__many_recipients_refused(use_backend):
    channel = mailing("\n".join(f"{number}@example.com" for number in range(20)))
    with pytest.raises(DeliveryFailed) as failed:
        deliver(use_backend, channel, RCPT="550 " + "No " * 200)
    assert str(failed.value).endswith("…, and 17 more")
    assert len(str(failed.value)) <= 500


def test_mail__nobody_listens(use_backend):
    with refusing() as port:
        use_backend(port=port)
        with pytest.raises(DeliveryFailed) as failed:
            transport.send(mailing(), make_message())
    assert str(failed.value) == (
        f"no connection to the mail server 127.0.0.1:{port}: Connection refused; "
        "correct EMAIL_HOST and EMAIL_PORT, or start it"
    )


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (hold, "no answer from the mail server 127.0.0.1:{port} within 0.2 s"),
        (drip(b"220 " + b"x" * 1_000, 0.05), "no answer within 0.4 s"),
        (send(b""), "the mail server 127.0.0.1:{port} closed the connection"),
        (
            send(b"HTTP/1.1 400 Bad Request\r\n"),
            "the mail server 127.0.0.1:{port} refused the mail: its answer is not SMTP",
        ),
    ],
    ids=["hangs", "trickles", "closes", "no SMTP"],
)
def test_mail__hostile_server(script, error, use_backend, monkeypatch):
    monkeypatch.setattr(mail, "_STEP_TIMEOUT", 0.2)
    monkeypatch.setattr(limits, "TIMEOUT", 0.4)
    with Server(script, read=False) as server, at_most(2.5):
        use_backend(port=server.port)
        with pytest.raises(DeliveryFailed) as failed:
            transport.send(mailing(), make_message())
    assert error.format(port=server.port) in str(failed.value)


def test_mail__hang_after_acceptance_is_no_failure(use_backend, monkeypatch):
    """A server that accepts a mail, and then does not answer QUIT, has the mail."""
    monkeypatch.setattr(mail, "_QUIT_TIMEOUT", 0.1)
    replies = b"220 test\r\n250 test\r\n250 OK\r\n250 OK\r\n354 Go\r\n250 Queued\r\n"
    with Server(send_and_hold(replies), read=False) as server, at_most(3):
        use_backend(port=server.port)
        assert transport.send(mailing(), make_message()).answer == "250 Queued"


class Hanging(BaseEmailBackend):
    """A backend that waits until ``released``, and knows no time limit."""

    released = False
    calls = 0

    def send_messages(self, messages):
        Hanging.calls += 1
        while not Hanging.released:
            time.sleep(0.01)
        return len(messages)


class Failing(BaseEmailBackend):
    def send_messages(self, messages):
        raise RuntimeError("API key https://me:hunter2@api.example.com refused")


class Silent(BaseEmailBackend):
    def send_messages(self, messages):
        return 0


def test_mail__backend_that_hangs_keeps_one_thread(use_backend, monkeypatch):
    monkeypatch.setattr(limits, "TIMEOUT", 0.2)
    monkeypatch.setattr(Hanging, "released", False)
    monkeypatch.setattr(Hanging, "calls", 0)
    use_backend(f"{__name__}.Hanging")
    channel = mailing()
    channel.pk = 7
    with pytest.raises(DeliveryFailed, match=r"no answer within 0\.2 s"):
        transport.send(channel, make_message())
    with pytest.raises(DeliveryFailed, match="the last attempt of this process still waits"):
        transport.send(channel, make_message())
    assert Hanging.calls == 1
    Hanging.released = True
    assert wait_for(lambda: transport.send_test(channel).ok)


def test_mail__backend_that_fails(use_backend):
    use_backend(f"{__name__}.Failing")
    with pytest.raises(DeliveryFailed) as failed:
        transport.send(mailing(), make_message())
    assert "Failing failed: RuntimeError: API key https://***@api.example.com refused" in str(failed.value)


def test_mail__backend_that_sends_nothing(use_backend):
    use_backend(f"{__name__}.Silent")
    with pytest.raises(DeliveryFailed, match="Silent has not sent the mail"):
        transport.send(mailing(), make_message())


def test_mail__backend_without_smtp(use_backend):
    use_backend("django.core.mail.backends.locmem.EmailBackend")
    django_mail.outbox = []
    assert transport.send(mailing(), make_message()).answer == (
        "accepted by django.core.mail.backends.locmem.EmailBackend"
    )
    assert len(django_mail.outbox) == 1


class Kept(SMTPBackend):
    """A backend that keeps its connection, and has a time limit of its own kind."""

    kept = None

    def __init__(self, **options):
        super().__init__(**options)
        self.connection = Kept.kept
        self.timeout = self.timeout if Kept.kept is None else (3, 10)

    def close(self):
        Kept.kept = self.connection


def test_mail__backend_that_keeps_its_connection(use_backend):
    with MailServer() as server:
        use_backend(f"{__name__}.Kept", host="127.0.0.1", port=server.port)
        for _ in range(3):
            assert transport.send(mailing(), make_message()).answer == "250 OK"
        assert "sendmail" not in vars(Kept.kept)
        Kept.kept.close()
    assert len(server.mails) == 3


def test_mail__own_shorter_time_limit_stays(use_backend):
    use_backend(port=25, timeout=3)
    assert mail._backend().timeout == 3
    use_backend(port=25, timeout=60)
    assert mail._backend().timeout == mail._STEP_TIMEOUT


def test_check_email__backend_for_development(use_backend):
    use_backend(port=25)
    assert mail.check_email() == []
    use_backend("django.core.mail.backends.console.EmailBackend")
    (warning,) = mail.check_email()
    assert warning.id == "proxyhealth.W008"
    assert "console" in warning.msg
