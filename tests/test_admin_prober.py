"""The page of the prober itself."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import caches
from django.db import connection
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from proxyhealth import health
from proxyhealth.models import Channel, WorkspaceProxy
from proxyhealth.overview import prober
from proxyhealth.readiness import parts
from proxyhealth.storage import presence, rounds_log
from proxyhealth.storage.lease import take_token

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/proxyhealth/workspaceproxy/prober/"
CHANGELIST = "/admin/proxyhealth/workspaceproxy/"
HOSTILE = "<script>alert(1)</script>\u202e\x00"


@pytest.fixture(autouse=True)
def generous_limit(monkeypatch):
    monkeypatch.setattr(parts, "LIMIT", 10)


def text_of(client):
    prober.forget()
    response = client.get(PAGE)
    assert response.status_code == 200
    return response.content.decode()


def test_page__workers_and_rounds(admin_client, redis_client, serve, sent):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    health.force_update()
    values = {
        "name": "celery@a",
        "host": "a.example.com",
        "pid": 4321,
        "pool": "prefork",
        "takes": ["celery"],
    }
    busy = {"processes": [4322, 4323], "concurrency": 2, "active": 1, "tasks": [["shop.report", 65.0]]}
    presence.note_worker("a", {**values, **busy, "missing": ["checks"]})
    text = text_of(admin_client)
    for shown in ("celery@a", "a.example.com", "4321", "4322 4323", "prefork", "1 of 2 busy", "shop.report"):
        assert shown in text
    assert "1 min 5 s" in text
    assert 'not <bdi dir="ltr">checks</bdi>' in text
    assert "complete" in text
    assert text.count("<rect ") == 1


def test_page__killed_worker_until_it_has_a_successor(admin_client, redis_client):
    presence.note_worker("old", {"name": "celery@a", "pid": 1111})
    key = caches["default"].make_key("proxyhealth:presence")
    stamp, _, rest = redis_client.hget(key, "worker:old").partition(b" ")
    redis_client.hset(key, "worker:old", b"%d %s" % (int(stamp) - 60_000_000, rest))
    text = text_of(admin_client)
    assert "no sign for more than 9 s" in text
    assert "1111" in text
    presence.note_worker("new", {"name": "celery@a", "pid": 2222})
    text = text_of(admin_client)
    assert "2222" in text
    assert "1111" not in text


def test_page__whatever_redis_holds_is_text(admin_client, redis_client):
    values = {"name": HOSTILE, "host": HOSTILE, "pool": HOSTILE, "takes": [HOSTILE], "version": HOSTILE}
    presence.note_worker("a", {**values, "missing": [HOSTILE], "tasks": [[HOSTILE, "x"], [HOSTILE, 1]]})
    presence.note_beat("b", {"host": HOSTILE, "error": HOSTILE})
    rounds_log.add(HOSTILE, take_token(), error=HOSTILE, host=HOSTILE)
    text = text_of(admin_client)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "\u202e" not in text


def test_page__needs_the_permission(redis_client):
    user = User.objects.create_user("staff", is_staff=True)
    client = Client()
    client.force_login(user)
    assert client.get(PAGE).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename="view_workspaceproxy"))
    assert client.get(PAGE).status_code == 200
    assert Client().get(PAGE).status_code == 302


def test_page__queries_are_the_same_for_any_fleet(admin_client, redis_client, sent):
    def count():
        prober.forget()
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(PAGE)
        return len(queries)

    count()
    few = count()
    now = timezone.now()
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i}") for i in range(50))
    Channel.objects.bulk_create(
        Channel(name=f"c{i}", listens_since=now, last_failure_at=now) for i in range(50)
    )
    for number in range(50):
        presence.note_worker(str(number), {"name": f"celery@{number}"})
    assert count() == few


def test_page__strict_csp(admin_client, redis_client):
    text = text_of(admin_client)
    content = text[text.index('id="content"') :]
    for forbidden in (" style=", " onclick=", "<style"):
        assert forbidden not in content


def test_banner__leads_here_and_names_the_culprit(admin_client, redis_client, configure, sent):
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    text = admin_client.get(CHANGELIST).content.decode()
    assert f'href="{PAGE}"' in text
    assert "No round has ended yet. No Celery worker runs. The last one, celery@a, was stopped at" in text
    assert "Are the Celery worker" not in text


def test_banner__without_the_page(redis_client):
    """A template of the host may show the banner to users who are no staff."""
    request = RequestFactory().get("/")
    request.user = User.objects.create_user("customer")
    context = {"snapshot": health.snapshot()}
    assert "Is it us?" not in render_to_string("proxyhealth/stale.html", context, request=request)
    assert "Is it us?" not in render_to_string("proxyhealth/stale.html", context)
