"""The page of one proxy in the admin."""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from proxyhealth import health
from proxyhealth.models import Channel, Delivery, Outage, Silence, Transition, Watch, WorkspaceProxy
from proxyhealth.testing import FakeStatus, fake_snapshot
from tests.support.servers import Server, refusing, report, send
from tests.support.values import refuse_queries
from tests.test_admin_history import staff
from tests.test_unreadable_rows import OF_SQLITE, spoil

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/workspaceproxy/"


def detail(row):
    return f"{LIST}{getattr(row, 'pk', row)}/detail/"


def shown(client, row):
    """Return the page of a proxy as HTML."""
    response = client.get(detail(row))
    assert response.status_code == 200
    return response.content.decode()


def text_of(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index("<body") :]).split())


def make(name="paris", **values):
    return WorkspaceProxy.objects.create(name=name, **{"url": f"https://{name}.example.com", **values})


def test_failing_proxy__since_when_why_and_what_to_do(admin_client, settings):
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "RUNBOOK_URL": "https://docs.example.com/runbook"}
    row = make(labels={"region": "eu"})
    since = timezone.now() - timedelta(hours=3)
    with fake_snapshot(paris=FakeStatus("unreachable", "timeout", since=since)):
        page = shown(admin_client, row)
    text = text_of(page)
    assert f"since {since:%Y-%m-%d %H:%M:%S} UTC" in text
    assert "timeout The response was not complete within the time limit. Check the load" in text
    assert "#proxyhealthproxyunreachable" in page
    assert "region: eu" in text
    assert "<title>paris: unreachable | Workspace proxies" in page


def test_healthy_proxy__says_so(admin_client):
    row = make()
    with fake_snapshot(paris="ok"):
        text = text_of(shown(admin_client, row))
    assert "The proxy responds, and its report has no errors." in text
    assert "No errors, and no warnings." in text


def test_unconfirmed_probe__contradicts_the_status(admin_client):
    row = make()
    raw = FakeStatus("unreachable", "dns", errors=["no such host"])
    with fake_snapshot(paris=FakeStatus("ok", raw=raw, warnings=["old"])):
        text = text_of(shown(admin_client, row))
    assert "The last probe found unreachable (dns), not confirmed yet. The name of the host cannot be" in text
    assert "no such host" in text
    assert "old" in text


def test_proxy_without_a_url__says_what_is_missing(admin_client):
    row = make(url="")
    health.force_update()
    page = shown(admin_client, row)
    assert "The proxy has no URL yet" in page
    assert "No report is known." in page
    assert "No probe of the last 24 hours is known." in page
    assert "curl" not in page


def test_proxy_never_probed__is_unknown(admin_client):
    with fake_snapshot():
        text = text_of(shown(admin_client, make()))
    assert "No result of a probe at this URL yet." in text
    assert "No report is known." in text
    assert "No probe of the last 24 hours is known." in text
    assert "24 hours not known 0 s 1 d" in text


def test_deleted_proxy__is_not_shown_as_current(admin_client):
    row = make(deleted=True)
    page = shown(admin_client, row)
    assert "This proxy is deleted, so it is not probed." in page
    assert '<span class="proxyhealth-badge proxyhealth-removed">removed' in page
    assert "Check now" not in page


@pytest.mark.parametrize(("id", "code"), [(uuid4(), 404), ("paris", 302)])
def test_unknown_id__is_not_found(admin_client, id, code):
    assert admin_client.get(detail(id)).status_code == code


@pytest.mark.sqlite
@pytest.mark.parametrize("change", OF_SQLITE[2:])
def test_unreadable_row__is_not_found(admin_client, change):
    row = make()
    spoil(row, change)
    assert admin_client.get(detail(row)).status_code == 404


def test_page__without_time_zones_and_in_german(admin_client, settings):
    settings.USE_TZ, settings.TIME_ZONE, settings.LANGUAGE_CODE = False, "America/Chicago", "de"
    row = make()
    began_at = timezone.now() - timedelta(hours=2)
    names = {"proxy": row, "proxy_uuid": row.pk, "proxy_name": "paris"}
    Outage.objects.create(**names, status="unreachable", began_at=began_at, token=1_234_567)
    Transition.objects.create(
        **names, before="ok", after="unreachable", at=began_at, token=1_234_567, watched=1_234_567
    )
    with fake_snapshot(paris="unreachable"):
        page = shown(admin_client, row)
    assert page.count(f"{began_at:%Y-%m-%d %H:%M:%S} C") == 2
    assert "bisher 2 h" in page


def test_invalid_url__is_unhealthy_without_a_command(admin_client):
    (row,) = WorkspaceProxy.objects.bulk_create([WorkspaceProxy(name="x", url="ftp://user:secret@x/")])
    page = shown(admin_client, row)
    assert "invalid_url" in page
    assert "curl" not in page


def test_stale_snapshot__is_said_first(admin_client):
    row = make()
    with fake_snapshot(paris="ok", stale=True):
        page = shown(admin_client, row)
    assert page.index("proxyhealth-stale") < page.index("proxyhealth-now")
    assert "ok, stale" in page


def test_hostile_report__is_shown_whole_as_text(admin_client):
    row = make()
    errors = [f"<script>{number}</script>\u202e{'x' * 40}" for number in range(50)]
    with fake_snapshot(paris=FakeStatus("unhealthy", errors=errors)):
        page = shown(admin_client, row)
    assert "<script>0" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;") == 50
    assert "<details" in page


def test_page__needs_no_inline_script_or_style(admin_client):
    row = make()
    with fake_snapshot(paris="ok"):
        page = shown(admin_client, row)
    own = page[page.index('id="proxyhealth-live"') :]
    assert not re.search(r'style=|<style|<script(?! src)| on\w+="', own)


def transition(row, hours, before, after, **values):
    moment = timezone.now() - timedelta(hours=hours)
    token = int(moment.timestamp() * 1_000_000)
    names = {"proxy": row, "proxy_uuid": row.pk, "proxy_name": row.name}
    return Transition.objects.create(
        **names, before=before, after=after, at=moment, token=token, watched=token, **values
    )


def test_timeline__newest_first_with_durations_and_reports(admin_client):
    row = make()
    transition(row, 5, "unknown", "ok")
    transition(row, 3, "ok", "unreachable", reason="dns", report={"errors": ["<b>no host</b>"]})
    transition(row, 1, "unreachable", "ok")
    transition(make("oslo"), 2, "unknown", "ok")
    page = shown(admin_client, row)
    table = page[page.index('id="proxy-changes"') :]
    rows = re.findall(r"<tr>.*?</tr>", table[: table.index("</section>")], re.DOTALL)[1:]
    assert [re.findall(r"proxyhealth-(?:ok|unreachable|unknown)", each)[-1] for each in rows] == [
        *("proxyhealth-ok", "proxyhealth-unreachable", "proxyhealth-ok")
    ]
    assert [re.search(r"<bdi>(\d[^<]*)</bdi>", each)[1] for each in rows] == ["1 h so far", "2 h", "2 h"]
    assert "&lt;b&gt;no host&lt;/b&gt;" in rows[1]
    assert f'href="/admin/proxyhealth/transition/?proxy={row.pk}"' in page


def outage(row, **values):
    began_at = timezone.now() - timedelta(hours=2)
    token = int(began_at.timestamp() * 1_000_000)
    names = {"proxy": row, "proxy_uuid": row.pk, "proxy_name": row.name, "status": "unreachable"}
    return Outage.objects.create(**{**names, "began_at": began_at, "token": token, **values})


def test_outages__with_their_notes_and_who_has_them(admin_client):
    row = make()
    one = outage(row, acknowledged_at=timezone.now(), acknowledged_name="<b>ana", note="disk\nfull\u202e")
    page = shown(admin_client, row)
    assert f'href="/admin/proxyhealth/outage/{one.pk}/change/"' in page
    assert "Acknowledged by <bdi>&lt;b&gt;ana</bdi>" in page
    assert "disk\nfull</td>" in page
    assert "Acknowledge…" not in page


def test_open_outage__links_to_its_acknowledgement(admin_client):
    row = make()
    one = outage(row)
    link = f'href="/admin/proxyhealth/outage/{one.pk}/change/">Acknowledge…</a>'
    assert link in shown(admin_client, row)
    assert link not in shown(staff("view_workspaceproxy", "view_outage"), row)


def test_silence__in_force_and_a_link_to_a_new_one(admin_client):
    row = make()
    now = timezone.now()
    Silence.objects.create(proxies="par*", starts=now, ends=now + timedelta(hours=1), reason="<i>move")
    Silence.objects.create(proxies="oslo", starts=now, ends=now + timedelta(hours=1), reason="other")
    page = shown(admin_client, row)
    assert "Silenced until" in page
    assert "<bdi>&lt;i&gt;move</bdi>" in page
    assert "other</bdi>" not in page
    assert 'href="/admin/proxyhealth/silence/add/?proxies=paris"' in page


def test_deliveries__of_the_changes(admin_client):
    row = make()
    change = transition(row, 1, "ok", "unreachable")
    channel = Channel.objects.create(
        name="<ops>", kind="email", target="a@example.com", listens_since=timezone.now()
    )
    Delivery.objects.create(channel=channel, transition=change, created_at=timezone.now(), error="<refused>")
    page = shown(admin_client, row)
    assert "&lt;ops&gt;" in page
    assert "&lt;refused&gt;" in page
    assert "Who was told" not in shown(staff("view_workspaceproxy", "view_transition"), row)


def test_last_probe__phase_by_phase(admin_client):
    with refusing() as port:
        row = make(url=f"http://127.0.0.1:{port}")
        health.force_update()
        page = shown(admin_client, row)
    course = text_of(page[page.index('id="proxyhealth-course"') - 50 :].replace("<section", "<body", 1))
    assert re.search(r"Look up the name \S+ ms Connect ended here 127\.0\.0\.1 \S+ ms", course)
    assert "Connection refused while connecting to 127.0.0.1" in course
    assert "GET /healthz-report HTTP/1.1" not in course  # nothing was sent
    assert "left no trace" not in course


def test_last_probe__of_a_proxy_that_responds(admin_client):
    with Server(send(report())) as server:
        row = make(url=server.url)
        health.force_update()
        page = shown(admin_client, row)
    assert "GET /healthz-report HTTP/1.1" in page
    assert "A valid report was read." in page
    assert "ended here" not in page
    assert 'class="proxyhealth-latency"' in page


def test_redis_down__shows_the_last_copy_as_stale(admin_client, stopped):
    with Server(send(report())) as server:
        row = make(url=server.url)
        health.force_update()
    stopped()
    page = shown(admin_client, row)
    assert "ok, stale" in page
    assert "The recent probes are not available while the cache cannot be read." in page
    assert "proxyhealth-course" not in page


def test_database_down__is_not_available(admin_client):
    row = make()
    health.snapshot()
    with connection.execute_wrapper(refuse_queries):
        assert admin_client.get(detail(row)).status_code == 503


def test_view_only_staff__sees_and_cannot_act():
    row = make()
    outage(row)
    with fake_snapshot(paris="unreachable"):
        page = shown(staff("view_workspaceproxy"), row)
    for word in ("Check now", "Silence</a>", "Acknowledge", ">Edit<", "Outages", "Status changes", "Delete"):
        assert word not in page, word


def test_staff_without_permission__is_refused():
    assert staff("view_outage").get(detail(make())).status_code == 403


@pytest.mark.parametrize("count", [5, 50])
def test_queries__as_many_for_any_number_of_rows(admin_client, django_assert_num_queries, count):
    row = make()
    channel = Channel.objects.create(
        name="ops", kind="email", target="a@example.com", listens_since=timezone.now()
    )
    for hours in range(count, 0, -1):
        change = transition(row, hours, "ok", "unreachable")
        Delivery.objects.create(channel=channel, transition=change, created_at=timezone.now())
        outage(row, token=hours, ended_at=timezone.now())
    Watch.objects.create(pk=1, token=change.token, watched=change.token)
    with fake_snapshot(paris="unreachable"):
        shown(admin_client, row)  # the first one asks SQLite for its features
        with django_assert_num_queries(17):
            shown(admin_client, row)
