"""Mails with many proxies, and with texts of an enemy."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from proxyhealth.notifications import forms, wording
from proxyhealth.report import HealthReport
from tests.notifications.made_up import BASE_URL, RUNBOOK_URL, alarm, begin, end, message

ATTACK = (
    "</td><script>alert(1)</script><img src=//evil.example onerror=x>{{ 1|add:1 }}\r\n\x1b[31m\u202e\u200b&"
)
RIGHT_TO_LEFT = "\u05e4\u05e8\u05d9\u05d6"


class Elements(HTMLParser):
    """The names of the elements, and the names and values of their attributes."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.open = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def hostile():
    report = HealthReport((ATTACK, ATTACK * 200), (ATTACK,) * 50)
    fields = {
        "display_name": ATTACK,
        "reason": ATTACK,
        "before": ATTACK,
        "report": report,
        "labels": {"x": ATTACK},
    }
    return [begin(i, ATTACK, **fields) for i in range(30)]


def test_html__of_hostile_texts_has_only_our_elements(hostile, configure):
    configure(BASE_URL=BASE_URL, RUNBOOK_URL=RUNBOOK_URL)
    ours = Elements(
        forms.html(message(begin(), *(begin(i, f"a{i}") for i in range(2, 30)), alarms=(alarm(),)))
    )
    sent = message(*hostile, begin(99, after=ATTACK), alarms=(alarm(),), channel=ATTACK)
    found = Elements(forms.html(sent))
    assert found.names <= ours.names
    assert found.open == []
    assert {name for name, _ in found.attributes} <= {name for name, _ in ours.attributes}


def test_html__loads_nothing_and_has_only_inline_styles(hostile, configure):
    configure(BASE_URL=BASE_URL, RUNBOOK_URL=RUNBOOK_URL)
    found = Elements(forms.html(message(*hostile, alarms=(alarm(),))))
    assert not found.names & {"img", "link", "style", "script", "iframe", "svg", "form"}
    assert not any("url(" in value for name, value in found.attributes if name == "style")
    links = {value for name, value in found.attributes if name == "href"}
    assert links
    assert all(link.startswith((BASE_URL, RUNBOOK_URL)) for link in links)


@pytest.mark.parametrize("form", [forms.plain, forms.html, forms.short])
def test_mail__of_hostile_texts_is_visible_and_short(hostile, form):
    text = form(message(*hostile, channel=ATTACK))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e]", text)
    assert len(text) < 150_000


@pytest.mark.parametrize("form", [forms.plain, forms.html])
def test_mail__isolates_names_from_right_to_left(form):
    text = form(message(begin(display_name=RIGHT_TO_LEFT)))
    assert f"\u2068{RIGHT_TO_LEFT}\u2069 is unreachable." in text
    assert "\u2068" not in forms.subject(message(begin(display_name=RIGHT_TO_LEFT)))


@pytest.fixture(scope="module")
def storm():
    """2,000 proxies, of which each has a long error."""
    report = HealthReport(("no response within 5 s: " + "x" * 900,))
    regions = ("eu-paris", "us-ohio", "ap-tokyo")
    return [
        begin(i, f"{regions[i % 3]}-{i:04}", reason=("timeout", "connect")[i % 2], report=report)
        for i in range(2_000)
    ]


def test_storm__names_all_proxies_in_a_mail_that_is_shown_whole(storm, configure):
    """Gmail cuts an HTML mail above 102 KB."""
    configure(BASE_URL=BASE_URL, RUNBOOK_URL=RUNBOOK_URL)
    sent = message(*storm, total=2_500)
    for form in (forms.plain(sent), forms.html(sent)):
        assert len(form.encode()) < 100_000
        assert max(map(len, form.splitlines())) < 998  # longer lines need an encoding that is larger
        assert "2,000 of 2,500 proxies became unreachable." in form
        assert {change.proxy_name for change in storm} <= set(re.findall(r"[a-z]+-[a-z]+-\d+", form))
    assert forms.html(sent).count("no response within 5 s") == 20


def test_storm__that_ends_names_all_lengths(storm):
    sent = message(*(end(change.transition, change.proxy_name) for change in storm), total=2_500)
    assert forms.plain(sent).count("(42 min)") == 1_980
    assert len(forms.html(sent).encode()) < 130_000


def test_storm__of_flapping_proxies_names_their_changes():
    changes = [begin(i, f"p{i}", flaps=14, outage_seconds=5.0) for i in range(30)]
    assert "p20 (14 times), p21 (14 times)" in forms.plain(message(*changes))


def test_storm__has_one_place_in_a_chat(storm, configure):
    configure(BASE_URL=BASE_URL, RUNBOOK_URL=RUNBOOK_URL)
    text = forms.short(message(*storm, total=2_500))
    assert len(text) <= 1_900
    assert text.startswith("2,000 of 2,500 proxies became unreachable.\nap-tokyo-0002, ")
    assert re.search(r"ap-tokyo-\d+ and 1,\d+ more\n", text)
    assert "connect (1,000 proxies)" in text
    assert (
        text.endswith(f"Open outages: {BASE_URL}/admin/proxyhealth/outage/?state=open")
        or "Health page: " in text
    )


def test_short__of_one_proxy_says_what_to_do(configure):
    configure(RUNBOOK_URL=RUNBOOK_URL)
    report = HealthReport(("no response within 5 s",))
    assert forms.short(message(begin(report=report))).splitlines() == [
        "paris is unreachable.",
        "unreachable since 2026-11-27 03:00:00 UTC (40 s ago); ok before",
        f"timeout: {wording.reason_sentence('timeout')}",
        "“no response within 5 s”",
        f"{RUNBOOK_URL}#proxyhealthproxyunreachable",
        "In an outage now: 1 of 8 proxies of this channel.",
    ]
