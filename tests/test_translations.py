"""The German catalogue is whole, and the pages of operators have no English sentence left in it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from django.apps import apps
from django.contrib import admin
from django.core import mail
from django.core.exceptions import ValidationError
from django.utils import translation

from proxyhealth.models import Alarm, Channel, Gap, Outage, Silence, Transition, WorkspaceProxy
from proxyhealth.models.names import NAMES
from proxyhealth.notifications import forms
from proxyhealth.notifications.transport import send_test
from proxyhealth.testing import FakeStatus, fake_snapshot
from proxyhealth.validators import parse_proxy_url, validate_proxy_url
from tests.notifications.made_up import alarm, begin, end, message, reminder
from tests.support import catalogue

APP = "/admin/proxyhealth/"
PROXIES = f"{APP}workspaceproxy/"
NOW = datetime.now(UTC)

# Words of English sentences that no German one has. Statuses, reasons and names of settings stay English.
ENGLISH = re.compile(
    r"\b(a|the|is|are|were|of|and|with|this|that|not|no|yet|to|for|from|by|it|its|has|have|been|since|each|"
    r"every|never|all|until|you|be|at|on)\b",
    re.IGNORECASE,
)
TECHNICAL = re.compile(
    r"no_rounds|on-call|database table is locked.*|a…@example\.com|\w+/(Port of Spain|Isle of Man)"
)

_ATTRIBUTES = r'\b(?:title|aria-label|placeholder|type="submit" value|data-(?:lost|changed))="([^"]*)"'


@pytest.fixture
def german(settings):
    settings.LANGUAGE_CODE = "de"
    with translation.override("de"):
        yield


@pytest.fixture
def rows(django_user_model):
    """One row of each kind, so that no list is empty."""
    paris = WorkspaceProxy.objects.create(
        name="paris", url="https://paris.example.com", labels={"region": "eu"}
    )
    WorkspaceProxy.objects.create(name="weg", deleted=True)
    values = {"proxy": paris, "proxy_uuid": paris.pk, "proxy_name": "paris", "token": 1}
    change = Transition.objects.create(**values, before="ok", after="unreachable", at=NOW, watched=1)
    outage = Outage.objects.create(**values, status="unreachable", reason="connect", began_at=NOW)
    channel = Channel.objects.create(
        name="Rufbereitschaft", kind="email", target="a@example.com", listens_since=NOW
    )
    channel.deliveries.create(transition=change, outage=outage, created_at=NOW, state="sent", sent_at=NOW)
    Silence.objects.create(proxies="paris", reason="Wartung", starts=NOW, ends=NOW + timedelta(hours=1))
    Alarm.objects.create(kind="offline", began_at=NOW)
    Gap.objects.create(start=NOW, end=NOW, why="no_rounds", token=1, microseconds=1)
    return {"proxy": paris, "outage": outage, "channel": channel, "change": change}


def visible_texts(html):
    """Return the texts that a page shows, also those of attributes for people, each on its own."""
    html = re.sub(r"<(script|style|svg|symbol)\b.*?</\1>", "", html, flags=re.DOTALL)
    shown = re.findall(_ATTRIBUTES, html)
    texts = [*shown, *re.split(r"<[^>]*>", html)]
    return [unescape(" ".join(text.split())) for text in texts if text.strip()]


def english(html):
    """Return the English texts of a page: those with a word of English sentences."""
    return [text for text in visible_texts(html) if len(ENGLISH.findall(TECHNICAL.sub("", text))) > 0]


PAGES = [
    "/admin/",
    APP,
    PROXIES,
    f"{PROXIES}?deleted=all",
    f"{PROXIES}health/",
    f"{PROXIES}prober/",
    f"{PROXIES}add/",
    f"{PROXIES}{{proxy.pk}}/change/",
    f"{PROXIES}{{proxy.pk}}/detail/",
    *(f"{APP}{name}/" for name in ("channel", "silence", "outage", "delivery", "transition", "gap", "alarm")),
    f"{APP}channel/add/",
    f"{APP}channel/add/?kind=webhook",
    f"{APP}channel/{{channel.pk}}/change/",
    f"{APP}silence/add/",
    f"{APP}outage/{{outage.pk}}/change/",
    f"{APP}transition/{{change.pk}}/change/",
]


@pytest.mark.django_db
@pytest.mark.parametrize("path", PAGES)
def test_pages__have_no_english_sentence_in_german(admin_client, rows, german, path):
    with fake_snapshot(paris=FakeStatus("unreachable", "connect", errors=["kaputt"], since=NOW)):
        response = admin_client.get(path.format(**rows))
    assert response.status_code == 200
    assert english(response.content.decode()) == []


@pytest.mark.django_db
def test_mail__is_in_the_language_of_the_settings(german, rows):
    with translation.override("en"):  # that of the person who sends a test
        send_test(rows["channel"])
    (sent,) = mail.outbox
    assert "Kanal Rufbereitschaft" in sent.subject
    assert "Dies ist ein Test des Kanals Rufbereitschaft." in sent.body
    assert english(sent.alternatives[0][0]) == []


def test_mail__has_no_english_sentence_in_german(german):
    changes = [
        begin(1),
        end(2, "oslo"),
        reminder(3, "rome"),
        begin(4, "x", flaps=6),
        begin(5, after="removed"),
    ]
    everything = message(*changes, alarms=(alarm(), alarm(ended=True, number=2)))
    html = re.sub(r'<div dir="auto".*?</div>|<p dir="auto".*?</p>', "", forms.html(everything))  # reports
    assert english(html) == []
    assert english(forms.subject(everything)) == []


def test_fault__german_in_a_form_and_english_in_a_report():
    with translation.override("de"):
        with pytest.raises(ValueError, match=r"^it has no host$"):
            parse_proxy_url("https://")
        with pytest.raises(ValidationError) as caught:
            validate_proxy_url("https://")
        assert caught.value.messages == ["Diese URL ist nicht verwendbar: sie hat keinen Host."]


def test_catalogue__is_up_to_date_and_whole():
    """After a change of a text, run ``make messages``, and translate what it reports."""
    written, found = catalogue.read(), catalogue.extract()
    assert {message.id for message in written} == {message.id for message in found} | {""}
    assert list(catalogue.faults(written)) == []


def texts_of(messages):
    """Return the texts and their translations, without the header. Both formats read plurals otherwise."""
    pairs = ((m.id, m.string) for m in messages if m.id)
    return [tuple(x if isinstance(x, str) else tuple(x) for x in pair) for pair in pairs]


def test_catalogue__is_compiled():
    written, compiled = catalogue.read(), catalogue.read(catalogue.MO)
    assert texts_of(compiled) == texts_of(written)


def test_catalogue__faults_are_found():
    broken = catalogue.Catalog(locale="de")
    broken.add("%(count)s proxies.", "%(number)s Proxys.")
    broken.add(("one", "more"), ("eins", ""))
    broken.add("fuzzy", "unscharf", flags=["fuzzy"])
    broken.add("It ends.", "Es endet")
    broken.add("<b>fine</b>", "<b>gut</b>")
    kinds = [fault.partition(":")[0] for fault in catalogue.faults(broken)]
    assert kinds == [
        "other placeholders or tags",
        "not translated",
        "not translated",
        "another beginning or end",
    ]


def test_names__of_all_fields_that_pages_show():
    """A field of a model whose derived name is not translatable is English on every page."""
    with translation.override(None):
        for model in apps.get_app_config("proxyhealth").get_models():
            if not admin.site.is_registered(model):
                continue
            model_admin = admin.site.get_model_admin(model)
            shown = [name for _, options in model_admin.fieldsets or () for name in options["fields"]]
            filters = [entry[0] for entry in model_admin.list_filter if isinstance(entry, tuple)]
            for name in {*model_admin.list_display, *filters, *(model_admin.fields or ()), *shown}:
                field = next((field for field in model._meta.fields if field.name == name), None)
                if field is not None and field._verbose_name is None:
                    assert str(field.verbose_name) in NAMES, (model, name)
