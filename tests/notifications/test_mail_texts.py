"""The plain text and the HTML of a mail."""

from __future__ import annotations

import re
from html import unescape

import pytest
from django.utils import timezone, translation

from proxyhealth.models import Outage, WorkspaceProxy
from proxyhealth.notifications import forms, wording
from proxyhealth.notifications.messages import Event
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Reason
from tests.notifications.made_up import (
    BASE_URL,
    RUNBOOK_URL,
    ago,
    alarm,
    begin,
    end,
    message,
    reminder,
    test_message,
)

REPORT = HealthReport(("no response within 5 s",), ("certificate expires in 3 days",))


def words(text):
    """Return the text of HTML, or a plain text, with single spaces."""
    text = re.sub(r"<(br|p|td|div|h1)\b[^>]*>", " ", re.sub(r"(?s)<head.*</head>", "", text))
    return " ".join(unescape(re.sub(r"<[^>]+>", "", text)).split())


@pytest.fixture(params=["plain", "html"])
def say(request):
    """``say(message)`` returns the words of the mail, in each of its two forms."""
    return lambda sent: words(getattr(forms, request.param)(sent))


def test_mail__says_what_since_when_why_and_what_before(say):
    text = say(message(begin(display_name="Paris", report=REPORT), bad=1))
    for part in (
        "Paris is unreachable.",
        "unreachable since 2026-11-27 03:00:00 UTC (40 s ago); ok before",
        "timeout: The response was not complete within the time limit.",
        "✕ no response within 5 s",
        "! certificate expires in 3 days",
        "In an outage now: 1 of 8 proxies of this channel.",
        "Sent by proxyhealth to the channel on-call. Times as of 2026-11-27 03:00:40 UTC.",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (reminder(), ["paris is still unreachable.", "unreachable since 2026-11-27 00:00:40 UTC (3 h ago)"]),
        (
            end(),
            ["paris is ok.", "unreachable before; the outage lasted 42 min, from 2026-11-27 02:18:35 UTC"],
        ),
        (begin(before="unknown"), ["its status was not known before"]),
        (
            begin(before="unhealthy", since=ago(hours=2), outage_seconds=7160),
            ["unhealthy before; not usable for 1 h 59 min, since 2026-11-27 01:00:40 UTC"],
        ),
        (
            begin(flaps=14, flap_seconds=28 * 60),
            ["paris is flapping.", "It changed 14 times in 28 min", "follows when it is calm"],
        ),
        (
            begin(after="removed", outage=None, outage_seconds=None),
            ["paris was deleted.", "deleted since 2026"],
        ),
        (begin(after="sleepy", reason="new"), ["paris has changed its status.", "sleepy since 2026", "new"]),
    ],
    ids=["reminder", "end", "first status", "worse", "flapping", "removed", "unknown words"],
)
def test_mail__of_one_change(say, change, parts):
    text = say(message(change))
    for part in parts:
        assert part in text, part


@pytest.mark.parametrize(
    ("kind", "ended", "parts"),
    [
        (
            "no_rounds",
            False,
            [
                "No complete check of the proxies for 4 min: no status can be believed now.",
                "No worker responds.",
            ],
        ),
        ("offline", False, ["The workers have been offline for 4 min", "network"]),
        ("redis", False, ["Redis has been out of reach for 4 min", "Look at the Redis server"]),
        ("no_rounds", True, ["The proxies are checked again, after 4 min.", "2026-11-27 03:00:40 UTC"]),
        ("offline", True, ["The workers are online again, after 4 min."]),
        ("redis", True, ["Redis is within reach again, after 4 min."]),
        ("new kind", False, ["The prober has failed for 4 min", "No worker responds."]),
    ],
)
def test_mail__of_an_alarm(say, kind, ended, parts):
    text = say(message(alarms=(alarm(kind, ended),), event=Event.PROBER))
    for part in parts:
        assert part in text, part
    assert "outage" not in text


def test_mail__of_a_test_names_the_channel(say):
    text = say(test_message())
    assert "This is a test of the channel on-call." in text
    assert "outage" not in text


def test_mail__tells_the_worst_first(say):
    changes = [
        end(1, "ok-1"),
        begin(2, "flap-2", flaps=6),
        reminder(3, "still-3"),
        begin(4, "sick-4", after="unhealthy", reason="report_errors"),
        begin(5, "dead-5"),
    ]
    text = say(message(*changes, alarms=(alarm(),)))
    order = ["No complete check", "dead-5", "sick-4", "still-3", "flap-2", "ok-1"]
    assert sorted(order, key=text.index) == order


def test_mail__counts_proxies_and_says_what_they_share(say):
    labels = {"region": "eu", "tier": "1"}
    changes = [
        begin(i, f"eu-{name}", labels=labels | {"n": name}) for i, name in enumerate(["oslo", "rome", "x"])
    ]
    text = say(message(*changes, begin(9, "us-1", after="unhealthy", reason="report_errors")))
    assert "3 of 8 proxies became unreachable, all in eu-… (region: eu, tier: 1)." in text
    assert "timeout (3 proxies): The response" in text
    assert "us-1 is unhealthy." in text


def test_mail__of_all_proxies_says_so(say):
    text = say(message(*(begin(i, f"eu-{i}") for i in range(8)), bad=8))
    assert "All 8 proxies became unreachable." in text
    assert "No proxy of this channel is usable now." in text


def test_mail__of_a_proxy_that_failed_and_recovered_tells_its_state(say):
    """As after an hour in which the channel was away. The failure is told, but not as the state."""
    changes = [begin(at=ago(hours=1)), end(at=ago(minutes=18), since=ago(hours=1))]
    text = say(message(*changes, bad=0))
    assert "paris is ok." in text
    assert "2026-11-27 02:00:40 UTC: unreachable (timeout)" in text
    assert "is unreachable" not in text
    assert "No proxy of this channel is in an outage now." in text


def test_mail__of_many_changes_and_lines_tells_how_many_are_left_out(say):
    changes = [begin(at=ago(minutes=30 - i), reason=f"r{i}") for i in range(8)]
    report = HealthReport(tuple(f"error {i}" for i in range(4)), tuple(f"warning {i}" for i in range(4)))
    text = say(message(*changes, begin(report=report)))
    assert "… and 3 before 2026-11-27 02:33:40 UTC: unreachable (r3)" in text
    assert "! warning 0 … and 3 more" in text
    assert "r2" not in text


def test_mail__from_a_clock_that_is_behind_has_no_negative_time(say):
    text = say(message(begin(at=ago(seconds=-30), outage_seconds=-30.0)))
    assert "unreachable since 2026-11-27 03:01:10 UTC; ok before" in text


def test_mail__times_and_words_are_those_of_the_settings(say, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    with timezone.override("Asia/Tokyo"), translation.override("de"):
        text = say(message(begin()))
    assert "unreachable since 2026-11-27 04:00:00 CET (40 s ago)" in text
    assert "paris is unreachable." in text


def test_mail__without_use_tz_has_times_with_their_zone(say, settings):
    settings.USE_TZ, settings.TIME_ZONE = False, "UTC"
    naive = ago(seconds=40).replace(tzinfo=None)
    assert "03:00:00 UTC (40 s ago)" in say(message(begin(at=naive, since=naive)))


def test_mail__links_to_outage_proxy_and_runbook(configure):
    configure(BASE_URL=f"{BASE_URL}/", RUNBOOK_URL=RUNBOOK_URL)
    sent = message(begin(outage=None), begin(2, outage=12), alarms=(alarm(),), bad=4)
    for form in (forms.plain(sent), forms.html(sent)):
        assert f"{BASE_URL}/admin/proxyhealth/workspaceproxy/{begin().proxy_id}/detail/" in form
        assert f"{BASE_URL}/admin/proxyhealth/outage/12/change/" in form
        assert form.count("Acknowledge") == 1
        for alert in ("proxyunreachable", "snapshotstale", "manyproxiesfailing"):
            assert f"{RUNBOOK_URL}#proxyhealth{alert}" in form


def test_mail__has_links_that_open(configure, admin_client, sent):
    configure(BASE_URL=BASE_URL)
    paris = WorkspaceProxy.objects.create(name="paris")
    outage = Outage.objects.create(
        proxy=paris,
        proxy_uuid=paris.id,
        proxy_name="paris",
        status="unreachable",
        began_at=ago(hours=1),
        token=1,
    )
    changes = [begin(1, outage=outage.pk), begin(2, proxy_id=paris.id, outage=None)]
    links = set(re.findall(r'href="([^"]+)"', forms.html(message(*changes, alarms=(alarm(),)))))
    assert len(links) == 7
    for link in links:
        assert admin_client.get(unescape(link).removeprefix(BASE_URL)).status_code == 200, link


def test_mail__link_to_a_silence_fills_in_its_proxies(configure, admin_client, sent):
    configure(BASE_URL=BASE_URL)
    html = forms.html(message(begin(1, proxy_name="paris"), begin(2, proxy_name="oslo")))
    (link,) = (unescape(link) for link in re.findall(r'href="([^"]+)"', html) if "/silence/add/" in link)
    form = admin_client.get(link.removeprefix(BASE_URL)).context["adminform"].form
    assert form["proxies"].value().splitlines() == ["oslo", "paris"]
    html = forms.html(message(*(begin(n, proxy_name=f"p{n}") for n in range(21))))
    assert '/silence/add/"' in html


def test_mail__without_addresses_has_no_links():
    sent = message(begin(), alarms=(alarm(),), bad=8)
    assert "href" not in forms.html(sent)
    assert "://" not in forms.plain(sent)


def test_link__of_a_site_below_a_prefix_has_it_once(configure, settings):
    from django.urls import get_script_prefix, set_script_prefix

    from proxyhealth.notifications.links import admin_url

    configure(BASE_URL=f"{BASE_URL}/control")
    before = get_script_prefix()
    for prefix in ("/", "/control/"):
        set_script_prefix(prefix)
        try:
            assert admin_url("workspaceproxy_health").startswith(f"{BASE_URL}/control/admin/")
        finally:
            set_script_prefix(before)


def test_mail__without_urls_of_the_project_has_no_links(configure, settings, caplog):
    configure(BASE_URL=BASE_URL)
    settings.ROOT_URLCONF = "no.such.module"
    assert "paris is unreachable." in forms.plain(message(begin()))
    assert "messages have no links" in caplog.text


ENGINE = "django.template.backends.django.DjangoTemplates"
BROKEN = {"proxyhealth/mail.txt": "{% load no_such %}", "proxyhealth/mail.html": "{{ message.id|no_such }}"}


@pytest.mark.parametrize(
    "templates",
    [
        [],
        [{"BACKEND": ENGINE, "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", BROKEN)]}}],
    ],
    ids=["none", "broken"],
)
def test_mail__is_written_without_templates_of_the_project(say, settings, templates, caplog):
    settings.TEMPLATES = templates
    assert "paris is unreachable." in say(message(begin()))
    assert "that of the app is used instead" in caplog.text


def test_html__is_escaped_whatever_the_project_sets(settings):
    settings.TEMPLATES = [{"BACKEND": ENGINE, "APP_DIRS": True, "OPTIONS": {"autoescape": False}}]
    assert "<b>" not in forms.html(message(begin(display_name="<b>Paris</b>")))


@pytest.mark.parametrize("language", ["ar", "pl"])
def test_mail__is_in_one_language(settings, language):
    """No word of it is by accident in a catalog of Django."""
    changes = [
        begin(1),
        end(2, "oslo"),
        reminder(3, "rome"),
        begin(4, "x", flaps=6),
        begin(5, after="removed"),
    ]
    sent = message(*changes, alarms=(alarm(), alarm(ended=True, number=2)))
    english = forms.plain(sent)
    settings.LANGUAGE_CODE = language
    assert forms.plain(sent) == english


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason])
def test_reason__has_a_sentence(reason):
    sentence = wording.reason_sentence(reason)
    assert sentence.endswith(".")
    assert sentence.count(". ") <= 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (11_100, "3 h 5 min"),
        (90_000, "1 d 1 h"),
        (1e9, "11,574 d 1 h"),
    ],
)
def test_duration__has_two_units(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["eu-a", "eu-b"], "all in eu-…"),
        (["eu-west-1", "eu-west-2"], "all in eu-west-…"),
        (["eu1", "eu2"], "all in eu…"),
        (["europa", "euston"], ""),
        (["EU-a", "eu-b"], "all in EU-…"),
        (["e-a", "e-b"], "all in e-…"),
        (["a", "b"], ""),
        (["eu-a"], ""),
    ],
)
def test_common_part__is_a_whole_part_of_the_names(names, common):
    from proxyhealth.notifications.common import common_part

    assert common_part([(name, {}) for name in names]) == common


def test_names__are_the_same_everywhere(say):
    """The display name, if only its case differs from the name. Otherwise the name, which is unique."""
    names = {"paris": "Paris", "oslo": "Norway", "rome": ""}
    changes = [begin(n, name, display_name=shown) for n, (name, shown) in enumerate(names.items())]
    text = forms.short(message(*changes))
    assert "\noslo, Paris, rome\n" in text
    many = [begin(n, f"p-{n}", display_name=f"P-{n}") for n in range(30)]
    assert "P-29" in say(message(*many))
    assert "p-29" not in say(message(*many))
