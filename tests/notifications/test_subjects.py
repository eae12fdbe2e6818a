"""The subjects of messages."""

from __future__ import annotations

import re

import pytest

from proxyhealth.notifications import forms
from tests.notifications.made_up import alarm, begin, end, message, reminder, test_message

HOSTILE = "Pa\u202eris\r\nBcc: all@example.com\x00\u200b [x] " + "long" * 60


@pytest.mark.parametrize(
    ("sent", "subject"),
    [
        (message(begin(display_name="Paris")), "[unreachable: timeout] proxy Paris"),
        (message(begin(reason="")), "[unreachable] proxy paris"),
        (message(reminder()), "[still unreachable after 3 h] proxy paris"),
        (message(end()), "[ok after 42 min] proxy paris"),
        (message(end(after="removed")), "[deleted after 42 min] proxy paris"),
        (message(begin(flaps=14)), "[flapping] proxy paris"),
        (
            message(begin(before="ok", after="unregistered", outage_seconds=None)),
            "[unregistered] proxy paris",
        ),
        (message(begin(1, "oslo"), end(2, "rome")), "[1 of 8 unreachable, 1 ok] proxies oslo, rome"),
        (message(begin(1, "a"), begin(2, "b"), total=0), "[2 unreachable] proxies a, b"),
        (
            message(*(begin(i, f"eu-{i}") for i in range(1, 5)), begin(5, "eu-x", after="unhealthy")),
            "[4 of 8 unreachable, 1 unhealthy] 5 proxies, all in eu-…",
        ),
        (message(*(begin(i, name) for i, name in enumerate("abcd"))), "[4 of 8 unreachable] 4 proxies"),
        (message(alarms=(alarm(),)), "[no rounds for 4 min] prober of the proxies"),
        (message(alarms=(alarm("redis", ended=True),)), "[Redis again after 4 min] prober of the proxies"),
        (
            message(begin(), alarms=(alarm("offline"),)),
            "[prober offline for 4 min, unreachable: timeout] proxy paris",
        ),
        (test_message(), "[test] proxyhealth, channel on-call"),
    ],
)
def test_subject__says_what_happened_to_which_proxies(sent, subject):
    assert forms.subject(sent) == subject


def test_subject__is_the_same_outside_the_brackets():
    """Mail clients that compare subjects ignore what is in brackets."""
    changes = [begin(), reminder(), end(), begin(flaps=6)]
    subjects = [forms.subject(message(change)) for change in changes]
    assert {re.sub(r"\[[^]]*\]", "", subject) for subject in subjects} == {" proxy paris"}


@pytest.mark.parametrize("count", [1, 3, 20])
def test_subject__of_hostile_texts_is_one_visible_line(count):
    changes = [begin(i, display_name=f"{i}{HOSTILE}", reason="r\nBcc: x[" * 9) for i in range(count)]
    subject = forms.subject(message(*changes, channel=HOSTILE))
    assert len(subject) <= 100
    assert subject.isprintable()
    assert subject.startswith("[")
    assert subject.index("]") < 62


def test_subject__of_a_test_with_a_hostile_channel_is_one_line():
    subject = forms.subject(message(event=test_message().event, channel=HOSTILE))
    assert len(subject) <= 100
    assert subject.isprintable()
