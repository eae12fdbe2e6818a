"""The public status page: who sees what of it, and what it costs."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from proxyhealth import health
from proxyhealth.history.records import record_history
from proxyhealth.models import Outage, WorkspaceProxy
from proxyhealth.status_page import contents
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from proxyhealth.testing import FakeStatus, fake_snapshot
from tests.support.values import a_round, make_status, refuse_queries

PATHS = ("/status/", "/status/feed.atom", "/status/badge.svg", "/status/badge/paris.svg")
QUERIES = 5
REPORT = FakeStatus(
    "unreachable", "timeout", errors=["secret error"], warnings=["secret warning"], labels={"team": "secret"}
)


def get(path="/status/", **headers):
    return Client().get(path, headers=headers)


def text(path="/status/"):
    return get(path).content.decode()


def create_outage(proxy, begin, end=None, **values):
    now = datetime.now(UTC)
    return Outage.objects.create(
        proxy=proxy,
        proxy_uuid=proxy.pk,
        proxy_name=proxy.name,
        status="unreachable",
        reason="timeout",
        began_at=now - begin,
        ended_at=None if end is None else now - end,
        token=int((now - begin).timestamp() * 1e6),
        **values,
    )


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "head", "post", "options"])
@pytest.mark.parametrize("path", PATHS)
def test_off__nothing_is_found(paris, path, method):
    with fake_snapshot(paris="ok"):
        response = getattr(Client(enforce_csrf_checks=True), method)(path)
    assert response.status_code == 404
    assert b"Paris" not in response.content


@pytest.mark.parametrize("path", PATHS)
def test_on__only_reads_are_allowed(shown, paris, path):
    with fake_snapshot(paris="ok"):
        for method, expected in (("get", 200), ("head", 200), ("post", 405), ("delete", 405)):
            assert getattr(Client(), method)(path).status_code == expected


@pytest.mark.parametrize("path", PATHS)
def test_response__knows_no_user_and_sets_no_cookie(shown, paris, path):
    client = Client()
    client.force_login(User.objects.create(username="ana"))
    with fake_snapshot(paris="ok"):
        response, anonymous = client.get(path), get(path)
    assert response.status_code == 200
    assert response.content == anonymous.content
    assert "cookie" not in response.headers.get("Vary", "").lower()
    assert not response.cookies
    assert response.headers["Cache-Control"] == "public, max-age=30"


def test_sign_in__that_the_host_requires_does_not_apply(shown, paris, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    with fake_snapshot(paris="ok"):
        assert [get(path).status_code for path in PATHS] == [200] * 4


@pytest.mark.parametrize("path", PATHS)
def test_response__unchanged_is_304(shown, paris, path):
    with fake_snapshot(paris="ok"):
        first = get(path)
        by_etag = get(path, if_none_match=first.headers["ETag"])
        by_time = get(path, if_modified_since=first.headers["Last-Modified"])
    for response in (by_etag, by_time):
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == first.headers["ETag"]
        assert response.headers["Cache-Control"] == "public, max-age=30"


@pytest.mark.parametrize("path", PATHS)
def test_robots__must_not_index_unless_set(shown, paris, path, configure):
    with fake_snapshot(paris="ok"):
        assert get(path).headers["X-Robots-Tag"] == "noindex"
        configure(STATUS_PAGE=True, STATUS_PAGE_INDEX=True)
        assert "X-Robots-Tag" not in get(path).headers


@pytest.mark.parametrize("path", PATHS)
def test_secrets__are_nowhere(shown, paris, path):
    create_outage(paris, timedelta(hours=1), note="secret note", acknowledged_name="secret person")
    with fake_snapshot(paris=REPORT):
        page = text(path)
    assert "secret" not in page
    assert "timeout" not in page


def test_regions__have_name_icon_and_status_word(shown, paris):
    WorkspaceProxy.objects.create(name="oslo", url="https://oslo.example.com", icon="https://x.example/i.png")
    WorkspaceProxy.objects.create(name="later")
    with fake_snapshot(paris="unhealthy", oslo="ok", later="unregistered"):
        page = text()
    assert "<bdi>Paris &lt;b&gt;</bdi>" in page
    assert '<img src="/icons/fr.png"' in page
    assert "x.example" not in page
    assert "later" not in page, "a proxy without a URL is not in use yet"
    assert re.findall(r'"state (\w+)"><span[^>]*></span>(\w+)', page) == [("up", "Up"), ("down", "Down")]
    assert "<title>1 of 2 proxies is down" in page


@pytest.mark.parametrize(
    "icon",
    [
        "//x.example/i",
        "/\\x.example/i",
        "/\t/x.example/i",
        "javascript:x.example",
        "http://x.example/",
        "x.example",
        "/ x.example",
    ],
)
def test_icon__of_another_host_is_not_shown(shown, paris, icon):
    WorkspaceProxy.objects.update(icon=icon)
    with fake_snapshot(paris="ok"):
        assert "x.example" not in text()


def test_stale__says_so_and_what_was_known_last(shown, paris):
    with fake_snapshot(paris="ok", stale=True):
        page = text()
    assert "This page is not current." in page
    assert "Last known: up" in page
    assert 'class="headline unknown"' in page


def test_stale__cause_is_not_shown(shown, paris):
    with fake_snapshot(paris="ok", stale=True, stale_reason="redis://secret@10.0.0.1 failed"):
        assert "secret" not in text()


def test_nothing_known__says_so(shown):
    with fake_snapshot(stale=True, checked_at=datetime(2020, 1, 1, tzinfo=UTC)):
        page = text()
    assert "This page is not current." in page
    assert 'id="regions"' not in page


def test_outages__current_and_recent_ones(shown, paris):
    oslo = WorkspaceProxy.objects.create(name="oslo", url="https://oslo.example.com")
    create_outage(paris, timedelta(minutes=125, seconds=20))
    create_outage(oslo, timedelta(days=3), timedelta(days=3) - timedelta(minutes=12))
    create_outage(oslo, timedelta(days=40), timedelta(days=39))
    with fake_snapshot(paris="unreachable", oslo="ok"):
        page = text()
    current, recent = page.split('id="current"')[1].split('id="recent"')
    assert "for 2 h 5 min" in current
    assert (current.count("<li>"), recent.count("<li>")) == (1, 1)
    assert "<bdi>oslo</bdi>" in recent
    assert "for 12 min" in recent


def test_outages__without_a_row_yet_begin_with_the_status(shown, paris):
    since = datetime.now(UTC) - timedelta(minutes=3)
    with fake_snapshot(paris=FakeStatus("unreachable", since=since)):
        assert "for 3 min" in text()


def test_uptime__is_never_rounded_up_to_100(shown):
    cell = contents.Cell(datetime.now(UTC), datetime.now(UTC), 100_000, 1, 0)
    assert contents._uptime([cell]) == "up 99.99 % of the known time"
    assert contents._uptime([cell._replace(down=0)]) == "up 100.00 % of the known time"
    assert contents._uptime([cell._replace(up=0, down=0)]) == ""


def test_database_down__statuses_are_shown_without_history(shown, paris, caplog):
    with fake_snapshot(paris="ok"), connection.execute_wrapper(refuse_queries):
        response = get()
    page = response.content.decode()
    assert response.status_code == 200
    assert '"state up"' in page
    assert "The history cannot be read at the moment." in page
    assert "the history of the status page cannot be read" in caplog.text


def test_history__that_cannot_be_read_in_part_is_missing(shown, paris):
    """As with a row that another program has written."""
    create_outage(paris, timedelta(hours=1))
    Outage.objects.update(began_at=datetime(1, 1, 1, tzinfo=UTC))
    with fake_snapshot(paris="unreachable"):
        assert '"state down"' in text()


def test_time__of_a_worker_ahead_is_not_in_the_future(shown, paris):
    later = datetime.now(UTC) + timedelta(days=1)
    with fake_snapshot(paris="ok", checked_at=later):
        changed = parsedate_to_datetime(get().headers["Last-Modified"])
    assert changed <= datetime.now(UTC)


def test_queries__do_not_grow_with_the_regions(shown, django_assert_num_queries):
    for count in (5, 50):
        rows = [
            WorkspaceProxy(name=f"p{count}-{place}", url="https://x.example.com") for place in range(count)
        ]
        WorkspaceProxy.objects.bulk_create(rows)
        statuses = [make_status(row.as_proxy()) for row in rows]
        commit(statuses, take_token(), removed=set(health.health_status()), full_round=a_round())
        record_history()
        health.reader.read_anew()
        with django_assert_num_queries(QUERIES):
            assert text().count('"state up"') == count


def test_crowd__costs_one_computation(shown, paris, django_assert_num_queries):
    with fake_snapshot(paris="ok"):
        get()
        with django_assert_num_queries(0):
            assert {get().headers["ETag"] for _ in range(20)} == {get().headers["ETag"]}


def test_change__is_shown_at_once(shown, paris):
    with fake_snapshot(paris="ok"):
        assert '"state up"' in text()
    with fake_snapshot(paris="unhealthy"):
        assert '"state down"' in text()


def test_many_regions__those_that_are_not_up_are_listed(shown, monkeypatch):
    monkeypatch.setattr(contents, "MAX_REGIONS", 2)
    with fake_snapshot(aa="ok", bb="ok", cc="unhealthy"):
        page = text()
    assert "<bdi>cc</bdi>" in page
    assert "1 more region is not listed." in page


def test_page__obeys_a_strict_policy(shown, paris):
    with fake_snapshot(paris="ok"):
        page = text()
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", page)
    assert re.findall(r'(?:src|href)="(?!/)([^"]*)"', page) == []


def test_feed__is_found_by_the_page(shown):
    with fake_snapshot():
        assert '<link rel="alternate" type="application/atom+xml"' in text()


@pytest.mark.parametrize(
    ("language", "direction", "word"), [("de", "ltr", None), ("ar", "rtl", None), ("en", "ltr", "Up")]
)
def test_language__sets_the_direction(shown, paris, settings, language, direction, word):
    settings.LANGUAGE_CODE = language
    with fake_snapshot(paris="ok"):
        page = text()
    assert f'<html lang="{language}" dir="{direction}">' in page


def test_template__of_the_host_extends_ours(shown, paris, settings, tmp_path):
    (tmp_path / "proxyhealth").mkdir()
    override = '{% extends "proxyhealth/status.html" %}{% block header %}<p>Example</p>{% endblock %}'
    (tmp_path / "proxyhealth" / "status.html").write_text(override)
    (engine,) = settings.TEMPLATES
    settings.TEMPLATES = [{**engine, "DIRS": [tmp_path]}]
    with fake_snapshot(paris="ok"):
        page = text()
    assert "<p>Example</p>" in page
    assert "<bdi>Paris" in page
