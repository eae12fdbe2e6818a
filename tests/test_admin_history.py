"""The lists of status changes and gaps in the admin."""

from __future__ import annotations

import time
from datetime import timedelta
from types import ModuleType
from uuid import uuid4

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import path as django_path

from project import urls
from proxyhealth.admin import history
from proxyhealth.models import Gap, Outage, Transition, WorkspaceProxy
from tests.support.values import NOW

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/transition/"
GAPS = "/admin/proxyhealth/gap/"
HOUR = 3_600 * 1_000_000
PAGES = (LIST, GAPS)


def now():
    return time.time_ns() // 1_000


def insert(name="paris", before="ok", after="unreachable", proxy=None, age=0.0, **values):
    """Insert a row; ``age`` is in hours."""
    return Transition.objects.create(
        proxy=proxy,
        proxy_uuid=proxy.pk if proxy else uuid4(),
        proxy_name=name,
        before=before,
        after=after,
        token=now() - int(age * HOUR),
        **{"at": NOW, "watched": 0, **values},
    )


def insert_gap(**values):
    values = {"start": NOW, "end": NOW + timedelta(minutes=5), "why": "no_rounds", **values}
    length = values["end"] - values["start"]
    return Gap.objects.create(token=now(), microseconds=length // timedelta(microseconds=1), **values)


def page(client, path=LIST):
    response = client.get(path)
    assert response.status_code == 200
    return response.content.decode()


def listed(client, query):
    response = client.get(LIST + query)
    assert response.status_code == 200, response
    return [row.proxy_name for row in response.context["cl"].result_list]


def staff(*permissions):
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def test_list__shows_time_proxy_change_and_reason(admin_client):
    paris = WorkspaceProxy.objects.create(name="paris")
    row = insert(proxy=paris, reason="timeout")
    text = page(admin_client)
    assert f'<a href="{LIST}{row.pk}/change/"><time dir="ltr" datetime="2026-11-22T08:00:00+00:00"' in text
    assert f'<a href="/admin/proxyhealth/workspaceproxy/{paris.pk}/detail/"><bdi>paris</bdi></a>' in text
    assert '<span class="proxyhealth-badge proxyhealth-ok">ok</span> → <span class="prox' in text
    assert '<span class="proxyhealth-badge proxyhealth-unreachable">unreachable</span>' in text
    assert '<td class="field-reason">timeout</td>' in text


def test_list__newest_first(admin_client):
    insert("old", age=2)
    insert("new")
    insert("older", age=3)
    assert listed(admin_client, "") == ["new", "old", "older"]


@pytest.mark.parametrize(("address", "queries"), [(LIST, 5), (GAPS, 4)])
def test_list__fixed_number_of_queries(admin_client, django_assert_num_queries, address, queries):
    """Session, user, count, and rows; and the proxies of the filter."""
    for count in (1, 29):
        for i in range(count):
            insert(proxy=WorkspaceProxy.objects.create(name=f"p{count}-{i}"))
            insert_gap()
        with django_assert_num_queries(queries):
            page(admin_client, address)


def test_list__counts_no_further_than_it_shows(admin_client, monkeypatch, django_assert_num_queries):
    monkeypatch.setattr(history, "MAX_ROWS", 150)
    Transition.objects.bulk_create(
        Transition(proxy_uuid=uuid4(), proxy_name=str(i), token=i, at=NOW, watched=0) for i in range(400)
    )
    with django_assert_num_queries(5) as queries:
        text = page(admin_client)
    assert "150 transitions" in text
    assert "These are the newest 150 rows. The filters lead to older ones." in text
    counts = [query["sql"] for query in queries if "COUNT" in query["sql"]]
    assert len(counts) == 1
    assert "LIMIT 151" in counts[0]
    assert listed(admin_client, "?p=2") == [str(i) for i in range(299, 249, -1)]
    Transition.objects.filter(token__gte=150).delete()
    assert "These are the newest" not in page(admin_client)


def test_filter__by_proxy(admin_client):
    paris, oslo = (WorkspaceProxy.objects.create(name=name) for name in ("paris", "oslo"))
    insert("paris", proxy=paris)
    insert("oslo", proxy=oslo)
    gone = insert("gone")
    assert listed(admin_client, f"?proxy={oslo.pk}") == ["oslo"]
    assert listed(admin_client, f"?proxy={gone.proxy_uuid}") == ["gone"]
    assert f"?proxy={paris.pk}" in page(admin_client)
    response = admin_client.get(f"{LIST}?proxy=nonsense")
    assert (response.status_code, response["Location"]) == (302, f"{LIST}?e=1")


def test_filter__of_a_large_fleet_has_the_chosen_proxy(admin_client):
    proxies = [WorkspaceProxy.objects.create(name=f"p{i}") for i in range(31)]
    insert(proxy=proxies[7])
    assert "By proxy" not in page(admin_client)
    text = page(admin_client, f"{LIST}?proxy={proxies[7].pk}")
    assert "By proxy" in text
    assert f"?proxy={proxies[8].pk}" not in text


def test_filter__by_status_and_time(admin_client):
    insert("up", after="ok", age=30)
    insert("gone", after="removed")
    insert("down", age=2)
    assert listed(admin_client, "?status=ok") == ["up"]
    assert listed(admin_client, "?status=removed") == ["gone"]
    assert listed(admin_client, "?hours=1") == ["gone"]
    assert listed(admin_client, "?hours=24") == ["gone", "down"]
    assert listed(admin_client, "?hours=168&status=ok") == ["up"]
    assert len(listed(admin_client, "?hours=nonsense")) == 3


def test_search__by_name_or_id(admin_client):
    paris = WorkspaceProxy.objects.create(name="paris", display_name="Paris Nord")
    insert("old-name", proxy=paris)
    gone = insert("gone")
    for words in ("par", "nord+PARIS"):
        assert listed(admin_client, f"?q={words}") == ["old-name"]
    assert listed(admin_client, f"?q={gone.proxy_uuid}") == ["gone"]
    assert listed(admin_client, "?q=paris+sud") == []
    assert len(listed(admin_client, "?q=+")) == 2


def test_search__that_finds_many_proxies(admin_client, monkeypatch):
    monkeypatch.setattr(history, "_MAX_FOUND", 1)
    for name in ("p1", "p2", "x"):
        insert(name, proxy=WorkspaceProxy.objects.create(name=name))
    assert listed(admin_client, "?q=p") == ["p2", "p1"]


def test_row__shows_its_report(admin_client):
    row = insert(report={"errors": ["<b>refused</b>", "שגיאה"], "warnings": ["slow"]}, signal_due_at=NOW)
    text = page(admin_client, f"{LIST}{row.pk}/change/")
    assert '<li class="proxyhealth-error" dir="auto">&lt;b&gt;refused&lt;/b&gt;</li>' in text
    assert '<li class="proxyhealth-warning" dir="auto">slow</li>' in text
    assert str(row.proxy_uuid) in text
    assert "0 attempts so far" in text
    row = insert(report=["nonsense"])
    text = page(admin_client, f"{LIST}{row.pk}/change/")
    assert "nothing to send" in text
    assert 'type="text"' not in text


def test_texts__are_escaped_and_isolated(admin_client):
    insert("<b>x\u202e", before="<i>", after="x" * 32, reason="<u>")
    insert("\u202e")
    text = page(admin_client)
    assert "<bdi>&lt;b&gt;x</bdi>" in text
    assert '<span class="proxyhealth-badge proxyhealth-&lt;i&gt;">&lt;i&gt;</span>' in text
    assert '<td class="field-reason">&lt;u&gt;</td>' in text
    assert "\u202e" not in text


def test_gaps__show_their_duration_and_reason(admin_client):
    insert_gap(why="redis_lost")
    insert_gap(end=NOW + timedelta(hours=30, seconds=5), why="offline")
    text = page(admin_client, GAPS)
    assert '<bdi dir="ltr">0:05:00</bdi>' in text
    assert '<bdi dir="ltr">1 day, 6:00:05</bdi>' in text
    assert "Redis lost its data" in text
    assert admin_client.get(f"{GAPS}?why__exact=offline").context["cl"].result_count == 1
    assert page(admin_client, f"{GAPS}{Gap.objects.first().pk}/change/")


def test_history__nobody_changes_it(admin_client):
    for path, row in ((LIST, insert()), (GAPS, insert_gap())):
        assert admin_client.get(f"{path}add/").status_code == 403
        assert admin_client.post(f"{path}{row.pk}/change/", {"after": "ok"}).status_code == 403
        assert admin_client.post(f"{path}{row.pk}/delete/", {"post": "yes"}).status_code == 403
        action = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
        admin_client.post(path, action)
        assert type(row).objects.get() == row


@pytest.mark.parametrize(("path", "permission"), [(LIST, "view_transition"), (GAPS, "view_gap")])
def test_permissions__each_list_has_its_own(path, permission):
    assert staff("view_workspaceproxy").get(path).status_code == 403
    User.objects.all().delete()
    assert staff(permission).get(path).status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_permissions__async_has_perm_is_denied(admin_client, monkeypatch, caplog, path):
    async def has_perm(self, *args):
        return True

    monkeypatch.setattr("django.contrib.auth.models.User.has_perm", has_perm)
    assert admin_client.get(path).status_code == 403
    assert "has_perm() must be True or False, not of type coroutine." in caplog.text


def test_form__links_to_the_changes_of_its_proxy(admin_client):
    paris = WorkspaceProxy.objects.create(name="paris")
    insert(proxy=paris)
    form = f"/admin/proxyhealth/workspaceproxy/{paris.pk}/change/"
    assert f'<a href="{LIST}?proxy={paris.pk}">Status changes</a>' in page(admin_client, form)
    client = staff("view_workspaceproxy")
    assert "Status changes" not in page(client, form)


@pytest.mark.parametrize("path", [LIST, "/admin/proxyhealth/outage/"])
def test_rows__link_to_no_proxy_that_the_user_may_not_see(path):
    paris = WorkspaceProxy.objects.create(name="paris")
    row = insert(proxy=paris)
    Outage.objects.create(proxy=paris, proxy_uuid=paris.pk, proxy_name="paris", began_at=row.at, token=1)
    client = staff("view_transition", "view_outage")
    for each in (path, f"{path}{row.pk if path == LIST else Outage.objects.get().pk}/change/"):
        text = page(client, each)
        assert "<bdi>paris</bdi>" in text
        assert "/workspaceproxy/" not in text


@pytest.mark.parametrize("model", [WorkspaceProxy, Transition])
def test_pages__link_to_no_admin_that_is_unregistered(admin_client, monkeypatch, settings, model):
    paris = WorkspaceProxy.objects.create(name="paris")
    insert(proxy=paris)
    monkeypatch.delitem(site._registry, model)
    other = LIST if model is WorkspaceProxy else f"/admin/proxyhealth/workspaceproxy/{paris.pk}/change/"
    settings.ROOT_URLCONF = ModuleType("urls")
    others = [each for each in urls.urlpatterns if getattr(each, "namespace", "") != "admin"]
    settings.ROOT_URLCONF.urlpatterns = [django_path("admin/", site.urls), *others]
    assert f"/{model._meta.model_name}/" not in page(admin_client, other)


def test_deletion__of_a_proxy_keeps_its_rows(admin_client, sent):
    paris = WorkspaceProxy.objects.create(name="paris")
    row = insert(proxy=paris)
    delete = f"/admin/proxyhealth/workspaceproxy/{paris.pk}/delete/"
    assert "Transition" not in page(admin_client, delete).partition('id="content-main"')[2]
    admin_client.post(delete, {"post": "yes"})
    row.refresh_from_db()
    assert row.proxy_id == paris.pk
    paris.delete()
    row.refresh_from_db()
    assert (row.proxy_id, row.proxy_name) == (None, "paris")
    assert "<bdi>paris</bdi></td>" in page(admin_client)
