"""Texts, times, and numbers on the pages of the admin."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from django.utils import timezone

from proxyhealth import display, health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import reader
from proxyhealth.storage.client import open_cache
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import take_token
from tests.storage.documents import changed_json
from tests.support.values import a_round, make_status

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/workspaceproxy/"
HEALTH = f"{LIST}health/"
MOMENT = datetime(2026, 7, 1, 22, 30, 5, tzinfo=UTC)
HIDDEN = "\u202e\u2066\u200b\u200e\u061c\ufeff\u3164\U000e0041\x9b\u2028"


def insert(**values):
    """Return a row that skipped validation."""
    (row,) = WorkspaceProxy.objects.bulk_create([WorkspaceProxy(**values)])
    return row


def store(row, **values):
    values = {"status": Status.OK} | values
    commit([make_status(row.as_proxy(), **values)], take_token(), full_round=a_round())


def page(client, path=HEALTH, **data):
    response = client.get(path, data)
    assert response.status_code == 200
    return response.content.decode()


def assert_visible(text):
    assert not set(HIDDEN) & set(text)


def test_invisible_characters__on_no_page_of_the_admin(admin_client):
    url = f"https://x{HIDDEN}.example"
    row = insert(name=f"par{HIDDEN}is", display_name=f"Pa{HIDDEN}ris", url=url, version=HIDDEN)
    health.force_update()
    count_round("failure", f"the database {HIDDEN} is gone")
    of_row = f"{LIST}{row.pk}/"
    for path in (LIST, HEALTH, f"{HEALTH}?status={HIDDEN}", f"{of_row}delete/", f"{of_row}history/"):
        assert_visible(page(admin_client, path))
    confirm = {"action": "delete_selected", "_selected_action": [row.pk]}
    assert_visible(admin_client.post(LIST, confirm).content.decode())
    change = page(admin_client, f"{LIST}{row.pk}/change/")
    for element in ("title", "h1", "h2"):
        assert_visible("".join(re.findall(rf"<{element}\b.*?</{element}>", change, re.DOTALL)))
    saved = admin_client.post(f"{LIST}{row.pk}/change/", {"name": "paris", "url": ""}, follow=True)
    assert_visible(saved.content.decode())
    WorkspaceProxy.objects.update(display_name=f"Pa{HIDDEN}ris")
    deleted = admin_client.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}, follow=True)
    assert "“Pa ris”" in deleted.content.decode()
    assert_visible(deleted.content.decode())
    assert_visible(page(admin_client, "/admin/"))  # the recent actions
    assert_visible(page(admin_client, f"{LIST}{row.pk}/history/"))


@pytest.mark.parametrize(
    ("name", "display_name"), [("paris", HIDDEN), ("paris", " "), (f"paris{HIDDEN}", "")]
)
def test_invisible_display_name__is_shown_as_the_name(admin_client, name, display_name):
    row = insert(name=name, display_name=display_name)
    assert str(row) == display.name_of(row.as_proxy()) == "paris"
    assert "<bdi>paris</bdi></a>" in page(admin_client)


def test_invisible_name__is_shown_as_the_id(admin_client):
    row = insert(name=HIDDEN)
    assert str(row) == str(row.pk)
    for path in (LIST, HEALTH):
        assert f"<bdi>{row.pk}</bdi></a>" in page(admin_client, path)


def test_form__refuses_invisible_characters(admin_client):
    form = {"name": "paris", "display_name": "Pa\u202eris", "version": "v2\u200b"}
    text = admin_client.post(f"{LIST}add/", form).content.decode()
    for code, place in (("202E", 3), ("200B", 3)):
        assert f"The text contains an invisible character (U+{code}) at position {place}." in text
    assert not WorkspaceProxy.objects.exists()


@pytest.mark.sqlite  # PostgreSQL stores no text that is too long
def test_rows__are_read_without_invisible_characters_and_cut():
    row = insert(
        name="n" * 100_000,
        display_name=f"Paris{HIDDEN}" + "é" * 100_000,
        icon="/" + "i" * 100_000,
        url="https://" + "u" * 100_000,
        wildcard_hostname="*." + "w" * 100_000,
        version="\u202ev2\n" + "v" * 100_000,
    )
    (proxy,) = WorkspaceProxy.objects.as_proxies()
    assert proxy == row.as_proxy()
    assert proxy.display_name == "Paris " + "é" * 121 + "…"
    assert proxy.version == "v2 " + "v" * 60 + "…"
    assert proxy.icon == ""
    assert len(str(proxy.to_json())) < 3_000
    assert len(str(row)) <= 128
    health.force_update()
    (status,) = health.statuses_of(WorkspaceProxy.objects.active())
    assert (status.reason, status.proxy) == (Reason.INVALID_URL, proxy)


def test_texts__are_isolated_from_each_other(admin_client):
    row = insert(name="paris", display_name="שלום", url="https://paris.example.com")
    store(row, status=Status.UNHEALTHY, report=HealthReport(("שגיאה 7",), ("تحذير",)))
    text = page(admin_client)
    assert "<bdi>שלום</bdi></a>" in text
    assert "<small><bdi>paris</bdi></small>" in text
    assert '<small><bdi dir="ltr">https://paris.example.com</bdi></small>' in text
    assert '<li class="proxyhealth-error" dir="auto">שגיאה 7</li>' in text
    assert '<li class="proxyhealth-warning" dir="auto">تحذير</li>' in text
    assert '<bdi dir="ltr">https://paris.example.com</bdi>' in page(admin_client, LIST)


def test_long_report__is_folded_after_its_first_text(admin_client):
    row = insert(name="paris", url="https://paris.example.com")
    for errors, folds in ((["a"] * 3, False), (["a"] * 4, True), (["x" * 301], True), (["x" * 300], False)):
        store(row, status=Status.UNHEALTHY, report=HealthReport(tuple(errors)))
        text = page(admin_client)
        assert (f'<details id="report-{row.pk}">' in text) == folds
        assert text.count(f'dir="auto">{errors[0]}</') == len(errors)
        if folds:
            summary = re.search(r"<summary>(.*?)</summary>", text, re.DOTALL)[1]
            assert (
                f'<span class="proxyhealth-line proxyhealth-error" dir="auto">{errors[0]}</span>' in summary
            )


def test_worst_reports__make_a_small_document_and_page(admin_client, redis_client):
    """At 1,000 proxies with the worst reports, 33 MB and 77 MB before."""
    rows = WorkspaceProxy.objects.bulk_create(
        WorkspaceProxy(name=f"p{i:04}", url=f"https://p{i}.example.com") for i in range(200)
    )
    report = HealthReport.sanitized(["'" * 1000] * 64, ["😀" * 1000] * 64)
    values = {"status": Status.UNHEALTHY, "reason": Reason.REPORT_ERRORS, "report": report}
    commit([make_status(row.as_proxy(), **values) for row in rows], take_token(), full_round=a_round())
    (document,) = redis_client.keys("*snapshot")
    assert redis_client.strlen(document) < 200 * 5_000
    assert len(page(admin_client).encode()) < 200 * 6_500
    assert len(admin_client.get("/api/v2/workspaceproxies").content) < 200 * 5_000


@pytest.mark.parametrize(
    ("language", "latency", "duration"),
    [("en", "1,254 ms", "1,234.50 s"), ("de", "1.254 ms", "1.234,50 s"), ("fa", "1254 ms", "1234.50 s")],
)
def test_numbers__are_those_of_the_language(admin_client, settings, language, latency, duration):
    settings.LANGUAGE_CODE = language
    row = insert(name="paris", url="https://paris.example.com")
    commit([make_status(row.as_proxy(), latency=1.2541)], take_token(), full_round=a_round(1234.5))
    for path in (LIST, HEALTH):
        text = page(admin_client, path)
        assert f'<bdi class="proxyhealth-number" dir="ltr">{latency}</bdi>' in text
    assert f'<bdi class="proxyhealth-number" dir="ltr">{duration}</bdi>' in text
    assert ('dir="rtl"' in text) == (language == "fa")


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize(
    ("zone", "shown", "attribute"),
    [
        ("UTC", "2026-07-01 22:30:05 UTC", "2026-07-01T22:30:05+00:00"),
        ("Europe/Berlin", "2026-07-02 00:30:05 CEST", "2026-07-02T00:30:05+02:00"),
        ("America/Sao_Paulo", "2026-07-01 19:30:05 UTC-03", "2026-07-01T19:30:05-03:00"),
        ("Asia/Kathmandu", "2026-07-02 04:15:05 UTC+0545", "2026-07-02T04:15:05+05:45"),
    ],
)
def test_times__are_in_the_current_time_zone_and_name_it(
    admin_client, settings, configure, use_tz, zone, shown, attribute
):
    settings.USE_TZ, settings.TIME_ZONE = use_tz, zone
    configure(STALE_AFTER=0.001)
    row = insert(name="paris", url="https://paris.example.com")
    status = replace(make_status(row.as_proxy()), checked_at=MOMENT)
    commit([status], take_token(), full_round=replace(a_round(), checked_at=MOMENT))
    tag = f'<time dir="ltr" datetime="{attribute}" data-ago>{shown}</time>'
    assert page(admin_client, LIST).count(tag) == 2  # the banner, and the row
    text = page(admin_client)
    assert text.count(tag) == 3  # also the last full round
    assert f"No round has ended since the one of {shown}." in text
    assert "the one of 2026-07-01 22:30:05 UTC." in health.snapshot().stale_reason
    assert tag in page(admin_client, "/")


def test_times__are_in_the_time_zone_of_the_user(admin_client):
    with timezone.override("Asia/Tokyo"):
        assert display.clock(MOMENT) == "2026-07-02 07:30:05 JST"
    for moment in (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, tzinfo=UTC)):
        for zone in ("Asia/Tokyo", "America/Chicago"):
            with timezone.override(zone):
                assert display.clock(moment)


def test_pages__of_a_round_without_a_duration(admin_client):
    """A document may hold null there, although no round writes that."""
    store(insert(name="paris"))
    with open_cache() as cache:
        document = changed_json(lambda whole: whole.update(duration=None))(
            cache.client.get(cache.key("snapshot"))
        )
        cache.client.set(cache.key("snapshot"), document)
    reader.forget()
    facts = re.search(r"Last full round: .*", page(admin_client))
    assert facts
    assert facts[0].endswith("</time>.")
    assert re.search(r"Last round: .*</time>\.</p>", page(admin_client, "/"))
