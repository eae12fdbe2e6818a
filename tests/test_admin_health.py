"""The rows, the links, and the ETag of the health page."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from proxyhealth.history.outages import acknowledge
from proxyhealth.models import Outage, Silence, WorkspaceProxy
from proxyhealth.testing import FakeStatus, fake_snapshot

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/workspaceproxy/"
HEALTH = f"{LIST}health/"


@pytest.fixture
def oslo():
    return WorkspaceProxy.objects.create(
        name="oslo", display_name="Oslo", url="https://oslo.example.com", labels={"region": "eu"}
    )


def text_of(client, query=""):
    response = client.get(HEALTH + query)
    assert response.status_code == 200
    return response.content.decode()


def names(client, query):
    return [row.id for row in client.get(HEALTH + query).context["rows"]]


def open_outage(proxy, **values):
    return Outage.objects.create(
        proxy=proxy,
        proxy_uuid=proxy.pk,
        proxy_name=proxy.name,
        status="unreachable",
        began_at=datetime.now(UTC),
        token=1,
        **values,
    )


def ago(**time):
    return datetime.now(UTC) - timedelta(**time)


# The headline and the rows


def test_title__is_the_headline(admin_client, oslo):
    with fake_snapshot(oslo=FakeStatus("unreachable", since=ago(hours=3, minutes=12, seconds=5))):
        text = text_of(admin_client)
    sentence = "The only proxy is down, for 3 h 12 min"
    assert f"<title>{sentence} |" in text
    assert re.search(rf"<h1[^>]*>{sentence}</h1>", text)


def test_headline__counts_all_proxies_whatever_is_shown(admin_client, oslo):
    WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com")
    with fake_snapshot(oslo="unreachable", paris="ok"):
        response = admin_client.get(f"{HEALTH}?q=paris")
    assert response.context["title"].startswith("1 of 2 proxies is down")
    assert response.context["total"] == 1


def test_row__shows_all_that_is_known(admin_client, oslo, configure):
    configure(RUNBOOK_URL="https://example.com/runbook")
    fake = FakeStatus(
        "unhealthy",
        "tls",
        errors=["expired"],
        latency=0.0123,
        since=ago(days=2, hours=1, minutes=1),
        tls_expires_at=ago(days=3, minutes=1),
    )
    with fake_snapshot(oslo=fake):
        text = text_of(admin_client)
    row = re.search(
        rf'<tr id="proxy-{oslo.pk}" data-proxy="oslo" data-status="unhealthy".*?</tr>', text, re.S
    )[0]
    assert f'href="{LIST}{oslo.pk}/detail/"><bdi>Oslo</bdi></a>' in row
    assert '<bdi dir="ltr">https://oslo.example.com</bdi>' in row
    assert "for 2 d 1 h" in row
    assert "Renew or correct the certificate that the message names." in row
    assert 'href="https://example.com/runbook#proxyhealthproxyunhealthy">Runbook: tls</a>' in row
    assert "12 ms" in row
    assert "Certificate expired 3 d ago" in row
    assert 'class="proxyhealth-strip"' in row
    assert 'href="/admin/proxyhealth/silence/add/?proxies=oslo"' in row
    assert f'<button type="submit" id="check-{oslo.pk}"' in row


@pytest.mark.parametrize(
    ("left", "text", "kind"),
    [
        (timedelta(days=13, minutes=1), "Certificate expires in 13 d", "warning"),
        (timedelta(days=40, minutes=1), "Certificate expires in 40 d", "fine"),
    ],
)
def test_row__certificate(admin_client, oslo, left, text, kind):
    with fake_snapshot(oslo=FakeStatus("ok", tls_expires_at=datetime.now(UTC) + left)):
        found = re.search(
            r'<small class="proxyhealth-certificate proxyhealth-(\w+)">(.*?)</small>', text_of(admin_client)
        )
    assert found.groups() == (kind, text)


def test_row__latency_of_the_last_hours(admin_client, paris):
    text = text_of(admin_client)
    assert "no probe is known" in text or "probes failed" in text
    assert text.count('class="proxyhealth-sparkline"') == 1


def test_row__redis_down_leaves_only_the_curve_out(admin_client, paris, stopped):
    admin_client.get(HEALTH)
    stopped()
    text = text_of(admin_client)
    assert "kaputt" in text
    assert 'class="proxyhealth-sparkline"' not in text
    assert 'class="proxyhealth-strip"' in text


def test_row__report_of_a_hostile_proxy_is_folded_text(admin_client, oslo):
    errors = [f"<script>alert({i})</script> \u202e" + "x" * 1000 for i in range(50)]
    with fake_snapshot(
        oslo=FakeStatus("unhealthy", errors=errors, warnings=["<img src=x onerror=alert(1)>"])
    ):
        text = text_of(admin_client)
    assert f'<details id="report-{oslo.pk}">' in text
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(0)&lt;/script&gt;" in text


def test_page__has_nothing_inline(admin_client, oslo):
    """A strict Content-Security-Policy refuses styles and scripts in the page."""
    with fake_snapshot(oslo="unreachable"):
        text = text_of(admin_client)
    assert re.findall(r"<[^>]*\s(?:style|on[a-z]+)=", text) == []
    assert re.findall(r'<script(?! src=)(?![^>]*type="application/json")', text) == []
    assert "<style" not in text


def test_page__each_control_has_an_id_of_its_own(admin_client, oslo):
    open_outage(oslo)
    with fake_snapshot(oslo=FakeStatus("unhealthy", errors=["x" * 500])):
        live = text_of(admin_client, "?label=region:eu&q=o").partition('id="proxyhealth-live"')[2]
    live = live.partition("</main>")[0]
    controls = re.findall(r"<(?:a|button|summary|select|details|input(?! type=.hidden))\b[^>]*>", live)
    ids = re.findall(r'\bid="([^"]+)"', live)
    assert len(ids) == len(set(ids))
    assert [tag for tag in controls if ' id="' not in tag and not tag.startswith("<summary")] == []


# The address


def test_links__keep_all_parameters(admin_client, oslo):
    for i in range(60):
        WorkspaceProxy.objects.create(
            name=f"p{i:02}", url=f"https://p{i}.example.com", labels={"region": "eu"}
        )
    query = "?label=region%3Aeu&q=example&silenced=no&acknowledged=no&sort=-name&window=90d"
    with fake_snapshot():
        text = text_of(admin_client, query)
    links = re.findall(r'<a id="proxyhealth-([a-z0-9-]+)"[^>]* href="(\?[^"]*)"', text)
    links = {name: url.replace("&amp;", "&") for name, url in links}
    for name in ("count-all", "count-ok", "next", "sort-name", "sort-since", "window-1", "chosen-1"):
        kept = [part for part in query[1:].split("&") if part in links[name]]
        missing = {"window-1": 1, "sort-name": 1, "sort-since": 1, "chosen-1": 1}.get(name, 0)
        assert len(kept) == 6 - missing, (name, links[name])
    assert links["next"] == f"{query}&page=2"
    assert "sort=name" in links["sort-name"] or "sort=" not in links["sort-name"]


def test_filters__by_silence_and_acknowledgement(admin_client, oslo):
    rome, lima = (
        WorkspaceProxy.objects.create(name=name, url="https://x.example.com") for name in ("rome", "lima")
    )
    acknowledge(open_outage(rome), "ana")
    Silence.objects.create(proxies="lima", starts=ago(hours=1), ends=ago(hours=-1), reason="work")
    with fake_snapshot(oslo="unreachable", rome="unreachable", lima="ok"):
        assert names(admin_client, "?silenced=yes") == [lima.pk]
        assert names(admin_client, "?acknowledged=yes") == [rome.pk]
        assert names(admin_client, "?acknowledged=no&silenced=no") == [oslo.pk]
        assert names(admin_client, "") == [oslo.pk, rome.pk, lima.pk], "first what nobody takes care of"


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        (
            "",
            (
                "This page shows 50 of 52 matches. Only proxies of this page can be chosen; "
                "“Check all now” checks all 52 proxies."
            ),
        ),
        ("?q=p1", "“Check all now” checks all 52 proxies, not only the 10 matches."),
    ],
)
def test_hint__more_proxies_than_the_page_shows(admin_client, query, hint):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i:02}") for i in range(52))
    with fake_snapshot():
        assert hint in text_of(admin_client, query)


def test_hint__not_if_all_are_shown(admin_client, oslo):
    with fake_snapshot(oslo="ok"):
        assert "proxyhealth-hint" not in text_of(admin_client)


# Permissions


def test_permissions__viewer_sees_and_cannot_act(oslo):
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_workspaceproxy"))
    client = Client()
    client.force_login(user)
    with fake_snapshot(oslo="unreachable"):
        text = text_of(client)
    assert "Oslo" in text
    for control in ("checkbox", "Check now", "proxyhealth-actions", "silence/add", "outage"):
        assert control not in text.partition('id="proxyhealth-live"')[2].partition("</main>")[0], control


# Queries, and the ETag


def test_queries__fixed_number(admin_client):
    counts = []
    with fake_snapshot():
        for count in (5, 45):
            for i in range(count):
                open_outage(WorkspaceProxy.objects.create(name=f"p{count}-{i}", url="nonsense"))
            with CaptureQueriesContext(connection) as queries:
                text_of(admin_client)
            counts.append(len(queries))
    assert counts[0] == counts[1]


def revalidate(client, response, query=""):
    return client.get(HEALTH + query, headers={"if-none-match": response["ETag"]})


def test_etag__unchanged_page_is_304_without_a_body(admin_client, paris):
    first = admin_client.get(HEALTH)
    for _ in range(2):  # once more, because the minute may end between two requests
        response = revalidate(admin_client, first)
        if response.status_code == 304:
            break
        first = response
    assert response.status_code == 304
    assert response.content == b""
    assert response["ETag"] == first["ETag"]


@pytest.mark.parametrize(
    "change", ["row", "outage", "acknowledgement", "silence", "query", "round", "language"]
)
def test_etag__changes_with_what_the_page_shows(admin_client, paris, settings, change):
    outage = open_outage(WorkspaceProxy.objects.create(name="rome", url="https://rome.example.com"))
    first, query = admin_client.get(HEALTH), ""
    match change:
        case "row":
            WorkspaceProxy.objects.create(name="new")
        case "outage":
            open_outage(paris)
        case "acknowledgement":
            acknowledge(outage, "ana")
        case "silence":
            Silence.objects.create(proxies="*", starts=ago(hours=1), ends=ago(hours=-1), reason="work")
        case "query":
            query = "?sort=name"
        case "round":
            from proxyhealth.health import force_update

            force_update()
        case "language":
            settings.LANGUAGE_CODE = "de"
    response = revalidate(admin_client, first, query)
    assert response.status_code == 200
    assert response["ETag"] != first["ETag"]


def test_etag__other_user(admin_client, paris):
    first = admin_client.get(HEALTH)
    client = Client()
    client.force_login(User.objects.create_superuser("other"))
    assert revalidate(client, first).status_code == 200


def test_etag__a_message_is_never_left_out(admin_client, oslo, sent):
    with fake_snapshot(oslo="ok"):
        first = admin_client.get(HEALTH)
        admin_client.post(f"{HEALTH}check/", {"all": "1"})
        response = revalidate(admin_client, first)
    assert response.status_code == 200
    assert list(map(str, response.context["messages"]))


def test_template__project_extends_a_block(admin_client, oslo, settings, tmp_path):
    folder = tmp_path / "admin/proxyhealth/workspaceproxy"
    folder.mkdir(parents=True)
    name = "admin/proxyhealth/workspaceproxy/health.html"
    (folder / "health.html").write_text(
        f'{{% extends "{name}" %}}{{% block facts %}}<p>Call 123.</p>{{{{ block.super }}}}{{% endblock %}}'
    )
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    with fake_snapshot(oslo="ok"):
        text = text_of(admin_client)
    assert "<p>Call 123.</p>" in text
    assert "Last full round:" in text
