"""Any message has all forms, whatever its texts and numbers are."""

from __future__ import annotations

import json
from datetime import timedelta
from email import message_from_bytes, policy

from django.core.mail import EmailMultiAlternatives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from proxyhealth.notifications import forms
from proxyhealth.notifications.messages import Event
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Reason, Status
from tests.notifications.made_up import NOW, alarm, begin, message

texts = some.text(some.characters(), max_size=60) | some.sampled_from(["paris", "%(who)s", "{{ x }}"])
statuses = some.sampled_from([*Status, "removed"]) | texts
times = some.timedeltas(timedelta(days=-400), timedelta(days=400)).map(lambda length: NOW - length)
changes = some.builds(
    begin,
    some.integers(1, 4),
    texts,
    display_name=texts,
    before=statuses,
    after=statuses,
    at=times,
    since=some.none() | times,
    outage_seconds=some.none() | some.floats(-1e6, 1e9),
    outage=some.none() | some.integers(1, 2**63 - 1),
    reason=some.sampled_from(list(Reason)) | texts,
    report=some.builds(HealthReport, *[some.lists(texts, max_size=7).map(tuple)] * 2),
    number=some.integers(0, 2),
    flaps=some.sampled_from([0, 0, 6]),
    labels=some.dictionaries(texts, texts, max_size=2),
)
alarms = some.builds(alarm, some.sampled_from(["no_rounds", "offline", "redis"]) | texts, some.booleans())
messages = some.builds(
    lambda found, alarms, **values: message(*found, alarms=tuple(alarms), **values),
    some.lists(changes, max_size=4),
    some.lists(alarms, max_size=2),
    event=some.sampled_from(list(Event)),
    channel=texts,
    bad=some.integers(0, 9),
    total=some.integers(0, 9),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages)
def test_any_message__has_all_forms(sent):
    subject = forms.subject(sent)
    assert len(subject) <= 100
    assert "\n" not in subject
    headers = forms.headers(sent)
    mail = EmailMultiAlternatives(subject, forms.plain(sent), to=["a@example.com"], headers=headers)
    mail.attach_alternative(forms.html(sent), "text/html")
    received = message_from_bytes(mail.message().as_bytes(), policy=policy.default)
    # Folding may add a space and, in some versions of Python, remove one between two encoded words.
    assert "".join(received["Subject"].split()) == "".join(subject.split())
    assert str(sent.id) in received["Message-ID"]
    assert received.get_body(["html"]).get_content().count("</html>") == 1
    assert len(forms.short(sent)) <= 1_900
    assert json.loads(json.dumps(forms.payload(sent), ensure_ascii=False).encode()) == forms.payload(sent)
