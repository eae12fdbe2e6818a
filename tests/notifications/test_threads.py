"""The headers by which mail clients make one conversation of an outage, read by Python's email parser."""

from __future__ import annotations

from email import message_from_bytes, policy
from uuid import UUID

import pytest
from django.core.mail import EmailMultiAlternatives

from proxyhealth.notifications import forms
from tests.notifications.made_up import BASE_URL, alarm, begin, end, message, reminder, test_message


def received(sent):
    """Return the mail as a client reads it."""
    mail = EmailMultiAlternatives(
        forms.subject(sent),
        forms.plain(sent),
        "a@example.com",
        ["b@example.com"],
        headers=forms.headers(sent),
    )
    mail.attach_alternative(forms.html(sent), "text/html")
    return message_from_bytes(mail.message().as_bytes(), policy=policy.default)


@pytest.fixture(autouse=True)
def _address(configure):
    configure(BASE_URL=BASE_URL)


def test_thread__begin_reminder_and_end_refer_to_one_message():
    sent = [message(change, id=UUID(int=i)) for i, change in enumerate([begin(), reminder(), end()])]
    mails = list(map(received, sent))
    assert {mail["References"] for mail in mails} == {"<outage-1@control.example.com>"}
    assert {mail["In-Reply-To"] for mail in mails} == {"<outage-1@control.example.com>"}
    assert [mail["Message-ID"] for mail in mails] == [f"<{each.id}@control.example.com>" for each in sent]


def test_thread__of_another_outage_is_another():
    assert received(message(begin(2)))["References"] != received(message(begin(1)))["References"]


def test_thread__of_a_test_message_is_its_own():
    mail = received(test_message())
    assert mail["References"] is None
    assert mail["Message-ID"]


def test_thread__of_a_repeat_has_the_same_id():
    assert received(message(begin()))["Message-ID"] == received(message(begin()))["Message-ID"]


def test_thread__of_a_change_without_an_outage_is_that_of_the_proxy():
    change = begin(outage=None, after="unregistered")
    assert received(message(change))["References"] == f"<proxy-{change.proxy_id.hex}@control.example.com>"


def test_thread__of_an_alarm_is_one_from_begin_to_end():
    mails = [received(message(alarms=(alarm(ended=ended),))) for ended in (False, True)]
    assert {mail["References"] for mail in mails} == {"<alarm-1@control.example.com>"}


def test_thread__of_many_outages_refers_to_all_within_bounds():
    references = received(message(*(begin(i, f"p{i}") for i in range(1, 61))))["References"].split()
    assert references == [f"<outage-{i}@control.example.com>" for i in range(1, 41)]
    few = received(message(begin(1), begin(2, "oslo"), reminder(1)))["References"].split()
    assert few == ["<outage-1@control.example.com>", "<outage-2@control.example.com>"]


def test_mail__tells_machines_not_to_reply():
    mail = received(message(begin()))
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["X-Proxyhealth-Event"] == "digest"


@pytest.mark.parametrize(
    ("base_url", "sender", "domain"),
    [
        ("https://Control.example.com:8443/a/", "x@mail.example.org", "control.example.com"),
        ("", "Ops <ops@mail.example.org>", "mail.example.org"),
        ("https://127.0.0.1:8000", "ops@mail.example.org", "mail.example.org"),
        ("https://[::1]:8000", "ops@mail.example.org", "mail.example.org"),
        ("https://b\u00fccher.example", "", "xn--bcher-kva.example"),
        (f"https://{'a' * 60}.eu.example.com", "", "eu.example.com"),
        (f"https://{'a' * 60}", "nonsense", "proxyhealth.invalid"),
        ("", "root@localhost", "localhost"),
    ],
)
def test_message_id__has_the_domain_of_the_site_or_sender(base_url, sender, domain, configure, settings):
    configure(BASE_URL=base_url)
    settings.DEFAULT_FROM_EMAIL = sender
    long = message(begin(outage=2**63 - 1), begin(2, outage=None))
    mail = received(long)
    assert mail["Message-ID"] == f"<{long.id}@{domain}>"
    assert mail["References"].split() == [
        f"<outage-{2**63 - 1}@{domain}>",
        f"<proxy-{UUID(int=2).hex}@{domain}>",
    ]
