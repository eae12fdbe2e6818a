"""Check now, without a browser: the redirect with a message, and the progress as JSON."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner
from proxyhealth.rounds.recheck import run_pending_check
from proxyhealth.storage import reader

pytestmark = pytest.mark.django_db

HEALTH = "/admin/proxyhealth/workspaceproxy/health/"
CHECK = f"{HEALTH}check/"
JSON = {"Accept": "application/json"}


@pytest.fixture
def admin(admin_client):
    return admin_client


@pytest.fixture
def proxies():
    return [WorkspaceProxy.objects.create(name=name, url="http://127.0.0.1:1") for name in ("oslo", "paris")]


def staff(*permissions, **options):
    user = User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(**options)
    client.force_login(user)
    return client


def messages_of(response):
    return [(message.level_tag, str(message)) for message in response.context["messages"]]


def test_check__all_without_a_script(admin, sent):
    runner.run_round()
    response = admin.post(CHECK, {"all": "1"}, follow=True)
    assert response.redirect_chain == [(HEALTH, 302)]
    assert messages_of(response) == [("info", "A check of all proxies is requested.")]
    assert sent == [None]


def test_check__chosen_without_a_script(admin, proxies, sent):
    runner.run_round()
    response = admin.post(CHECK, {"proxy": [proxy.pk for proxy in proxies]}, follow=True)
    assert messages_of(response) == [("info", "A check of 2 proxies is requested.")]
    assert sent == [{str(proxy.pk) for proxy in proxies}]


def test_check__claims_no_success_without_rounds(admin, sent):
    """No worker may be running."""
    ((level, text),) = messages_of(admin.post(CHECK, {"all": "1"}, follow=True))
    assert level == "warning"
    assert text.endswith("No round has ended yet. Are the Celery worker and beat running?")


def test_check__nothing_chosen(admin, sent):
    ((level, text),) = messages_of(admin.post(CHECK, follow=True))
    assert (level, text) == ("warning", "Nothing was requested: choose at least one proxy.")
    assert admin.post(CHECK, headers=JSON).status_code == 400
    assert sent == []


@pytest.mark.parametrize(
    ("next", "expected"),
    [(f"{HEALTH}?status=unhealthy", f"{HEALTH}?status=unhealthy"), ("https://evil.example/", HEALTH)],
)
def test_check__returns_to_the_page(admin, sent, next, expected):
    assert admin.post(CHECK, {"all": "1", "next": next})["Location"] == expected


def test_check__progress_as_json(admin, proxies):
    runner.run_round()
    answer = admin.post(CHECK, {"proxy": proxies[0].pk}, headers=JSON)
    assert answer.status_code == 202
    assert answer.json()["text"] == "A check of 1 proxy is requested."
    url = answer.json()["progress"]
    first = admin.get(url)
    assert first.json() == {"state": "queued", "text": "The check waits for a worker.", "changes": []}
    assert "no-store" in first["Cache-Control"]
    WorkspaceProxy.objects.filter(pk=proxies[0].pk).update(url="")
    run_pending_check()
    last = admin.get(url).json()
    assert last["state"] == "done"
    assert last["changes"] == [
        {"id": str(proxies[0].pk), "name": "oslo", "before": "unreachable", "after": "unregistered"}
    ]
    name = "\u2068oslo\u2069"
    assert last["text"] == f"Checked. 1 proxy has changed: {name} is not registered (was unreachable)."


def test_check__two_tabs_have_their_own_progress(admin, proxies):
    first, second = (admin.post(CHECK, {"proxy": each.pk}, headers=JSON).json() for each in proxies)
    assert first["progress"] != second["progress"]
    run_pending_check()
    assert [admin.get(each["progress"]).json()["state"] for each in (first, second)] == ["done"] * 2


def test_check__costs_a_fixed_number_of_queries(admin, proxies, django_assert_max_num_queries):
    url = admin.post(CHECK, {"all": "1"}, headers=JSON).json()["progress"]
    with django_assert_max_num_queries(2):  # the session and the user
        admin.get(url)
    runner.run_round()
    with django_assert_max_num_queries(3):  # and what changed
        assert admin.get(url).json()["state"] == "done"


@pytest.mark.parametrize(
    "form", [{"proxy": "paris"}, {"proxy": "00000000-0000-0000-0000-000000000000"}, {"proxy": ["x"] * 501}]
)
def test_check__bad_ids(admin, sent, form):
    assert admin.post(CHECK, form, headers=JSON).status_code == 400
    assert admin.post(CHECK, form).status_code == 400
    assert sent == []


def test_check__broker_down_is_not_sent(admin, monkeypatch):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    answer = admin.post(CHECK, {"all": "1"}, headers=JSON)
    assert (answer.status_code, answer.json()["state"]) == (503, "not sent")
    assert answer.json()["text"].startswith("The check could not be requested")


def test_check__cache_down_is_not_known(admin, sent, stopped):
    url = admin.post(CHECK, {"all": "1"}, headers=JSON).json()["progress"]
    stopped()
    answer = admin.post(CHECK, {"all": "1"}, headers=JSON)
    assert (answer.status_code, answer.json()["state"]) == (202, "unknown")
    assert "progress" not in answer.json()
    answer = admin.get(url)
    assert (answer.status_code, answer.json()["state"]) == (503, "unknown")


def test_check__expired_request(admin):
    answer = admin.get(f"{CHECK}00000000-0000-0000-0000-000000000000/")
    assert (answer.status_code, answer.json()["state"]) == (404, "expired")


def test_check__requires_the_permission_to_change(admin, proxies, sent):
    url = admin.post(CHECK, {"all": "1"}, headers=JSON).json()["progress"]
    client = staff("view_workspaceproxy")
    sent.clear()
    assert client.post(CHECK, {"all": "1"}, headers=JSON).status_code == 403
    assert client.get(url).status_code == 403
    assert Client().get(url)["Location"].startswith("/admin/login/")
    assert sent == []


def test_check__requires_the_csrf_token(sent):
    client = staff("change_workspaceproxy", enforce_csrf_checks=True)
    assert client.post(CHECK, {"all": "1"}, headers=JSON).status_code == 403
    assert sent == []


def test_check__methods(admin, sent):
    assert admin.get(CHECK).status_code == 405
    assert admin.post(f"{CHECK}00000000-0000-0000-0000-000000000000/").status_code == 405
    assert sent == []


def test_snapshot__token_grows_with_each_result(proxies, redis_client):
    """By this, a page knows which of two answers is older, also after Redis was emptied."""
    runner.run_round()
    first = health.snapshot()
    redis_client.flushall()
    runner.run_round()
    second = reader.read_anew()
    assert second.number == first.number == 1
    assert second.token > first.token
