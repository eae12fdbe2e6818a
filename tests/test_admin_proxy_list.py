"""The list of proxies: its filters, its links, restoring, and the status at the top of a form."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.snapshot import Snapshot
from proxyhealth.testing import FakeStatus, fake_snapshot
from tests.support.proxies import wait_for

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/workspaceproxy/"
FLEET = {"paris": "ok", "oslo": "ok", "rome": "ok", "lima": "unreachable"}


def make(name, **values):
    return WorkspaceProxy.objects.create(name=name, **{"url": f"https://{name}.example.com", **values})


@pytest.fixture
def fleet():
    rows = {name: make(name, labels={"region": "eu" if name != "lima" else "sa"}) for name in FLEET}
    with fake_snapshot(**FLEET):
        yield rows


def staff(*permissions):
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def names(response):
    return {row.name for row in response.context["cl"].result_list}


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


def messages_of(response):
    return [str(message) for message in response.context["messages"]]


# Filters


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=ok", {"paris", "oslo", "rome"}),
        ("status=unreachable", {"lima"}),
        ("status=unhealthy", {"broken"}),
        ("status=unknown", {"new", "moved"}),
        ("status=unregistered", set()),
        ("status=ok&label=region:eu&q=OSL", {"oslo"}),
        ("status=ok&deleted=yes", set()),
        ("status=unknown&deleted=all", {"new", "moved"}),
        ("label=region:sa", {"lima"}),
        ("label=region:gone", set()),
    ],
)
def test_filter__agrees_with_the_badges(admin_client, fleet, query, expected):
    make("gone", deleted=True)
    make("broken", url="ftp://broken.example.com")
    with fake_snapshot(moved="ok", **FLEET):
        make("new")
        make("moved")
        WorkspaceProxy.objects.filter(name="moved").update(url="https://elsewhere.example.com")
        response = admin_client.get(f"{LIST}?{query}")
    assert names(response) == expected
    if "status=" in query:
        shown = re.findall(r'data-live="status-[^"]*" data-status="(\w*)"', text_of(response))
        assert set(shown) <= {query.split("&")[0].partition("=")[2]}


def test_filter__unknown_status(admin_client, fleet):
    assert admin_client.get(f"{LIST}?status=fine")["Location"] == f"{LIST}?e=1"


def test_filter__lists_the_chosen_label(admin_client, fleet):
    text = text_of(admin_client.get(f"{LIST}?label=tier:<b>"))
    assert "tier:&lt;b&gt;" in text


@pytest.mark.parametrize("query", ["", "?status=ok", "?status=unreachable&label=region:eu", "?deleted=all"])
def test_list__fixed_number_of_queries(admin_client, fleet, query, django_assert_max_num_queries):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i}", labels={"n": f"{i}"}) for i in range(50))
    admin_client.get(LIST)
    with django_assert_max_num_queries(8):
        admin_client.get(f"{LIST}{query}")


def test_list__one_snapshot_for_all_rows(admin_client, fleet, monkeypatch):
    reads = []
    monkeypatch.setattr("proxyhealth.health.snapshot", lambda: reads.append(1) or Snapshot())
    admin_client.get(f"{LIST}?status=unknown")
    assert len(reads) == 1


# Links


def test_list__whole_url_and_a_link_to_the_form(admin_client):
    url = f"https://{'a' * 60}.{'b' * 60}.{'c' * 60}.example.com:8443"
    row = make("paris", url=url, display_name="<i>Paris</i>")
    text = text_of(admin_client.get(f"{LIST}?q=paris"))
    assert f'<bdi dir="ltr">{url}</bdi>' in text
    assert "&lt;i&gt;Paris&lt;/i&gt;" in text
    assert f'{LIST}{row.pk}/change/?_changelist_filters=q%3Dparis"' in text


def test_list__chooses_a_row_in_a_popup(admin_client):
    row = make("paris")
    assert f'data-popup-opener="{row.pk}"' in text_of(admin_client.get(f"{LIST}?_popup=1"))


@pytest.mark.parametrize(("deleted", "expected"), [("", 0), ("yes", 1), ("all", 1)])
def test_actions__fit_the_rows(admin_client, deleted, expected):
    make("paris")
    make("gone", deleted=True)
    text = text_of(admin_client.get(f"{LIST}?deleted={deleted}" if deleted else LIST))
    assert text.count('<option value="restore">') == expected
    assert text.count('<option value="check_now">') == (deleted != "yes")


# The form


def test_form__begins_with_the_status(admin_client, fleet):
    errors = ["<b>refused</b>", "two", "three", "four"]
    with fake_snapshot(lima=FakeStatus("unreachable", "connect", errors=errors)):
        text = text_of(admin_client.get(f"{LIST}{fleet['lima'].pk}/change/"))
    status = text.index("proxyhealth-badge proxyhealth-unreachable")
    assert text.index("<form") < status < text.index('name="name"')
    assert "<strong>connect</strong>" in text
    assert "&lt;b&gt;refused&lt;/b&gt;" in text
    assert "four" in text


def test_form__before_the_first_probe(admin_client, fleet):
    text = text_of(admin_client.get(f"{LIST}{make('new').pk}/change/"))
    assert "No result of a probe at this URL yet." in text
    assert "proxyhealth-now" not in text_of(admin_client.get(f"{LIST}add/"))


def test_form__of_a_deleted_proxy(admin_client):
    row = make("gone", deleted=True)
    text = text_of(admin_client.get(f"{LIST}{row.pk}/change/"))
    assert "This proxy is deleted" in text
    assert f'href="{LIST}{row.pk}/restore/"' in text
    assert "deletelink" not in text


# Restoring


@pytest.mark.django_db(transaction=True)
def test_restore__asks_then_restores_and_requests_one_check(admin_client, sent):
    rows = [make(name, deleted=True) for name in ("paris", "oslo")]
    health.request_check([]).result(30)
    sent.clear()
    chosen = {"action": "restore", "_selected_action": [row.pk for row in rows]}
    text = text_of(admin_client.post(f"{LIST}?deleted=yes", chosen))
    assert "These proxies will be probed" in text
    assert not WorkspaceProxy.objects.active().exists()
    response = admin_client.post(f"{LIST}?deleted=yes", {**chosen, "post": "yes"}, follow=True)
    assert messages_of(response) == ["2 proxies were restored."]
    assert WorkspaceProxy.objects.active().count() == 2
    wait_for(lambda: sent == [{str(row.pk) for row in rows}])


def test_restore__one_from_its_form(admin_client):
    row = make("paris", deleted=True)
    page = f"{LIST}{row.pk}/restore/"
    assert "This proxy will be probed" in text_of(admin_client.get(page))
    response = admin_client.post(page, {"post": "yes"}, follow=True)
    assert response.redirect_chain == [(f"{LIST}{row.pk}/change/", 302)]
    assert messages_of(response)[0] == "1 proxy was restored."
    assert messages_of(admin_client.get(page, follow=True)) == ["None of these proxies is deleted."]
    assert admin_client.get(f"{LIST}{uuid4()}/restore/").status_code == 404


def test_restore__name_is_taken_meanwhile(admin_client):
    """Nothing is lost: the others are restored, and the row stays as it was."""
    old, other, twin = (make(name, deleted=True) for name in ("paris", "oslo", "OSLO"))
    make("Paris", url="https://new.example.com")
    chosen = {"action": "restore", "_selected_action": [old.pk, other.pk, twin.pk]}
    asked = text_of(admin_client.post(f"{LIST}?deleted=yes", chosen))
    assert asked.count("another proxy has this name now") == 1
    response = admin_client.post(f"{LIST}?deleted=yes", {**chosen, "post": "yes"}, follow=True)
    success, *errors = messages_of(response)
    assert success == "1 proxy was restored."
    assert len(errors) == 2
    assert "“paris” was not restored, because another proxy has this name now." in errors[-1] + errors[0]
    old.refresh_from_db()
    assert (old.deleted, old.url) == (True, "https://paris.example.com")
    assert WorkspaceProxy.objects.active().filter(name__iexact="oslo").count() == 1


def test_restore__broker_down(admin_client, monkeypatch, transactional_db):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    row = make("paris", deleted=True)
    response = admin_client.post(f"{LIST}{row.pk}/restore/", {"post": "yes"}, follow=True)
    success, warning = messages_of(response)
    assert success == "1 proxy was restored."
    assert warning.startswith("The check could not be requested")


@pytest.mark.parametrize("permission", ["view_workspaceproxy", "change_workspaceproxy"])
def test_restore__needs_the_permission_to_delete(permission):
    row = make("paris", deleted=True)
    client = staff(permission)
    assert client.post(f"{LIST}{row.pk}/restore/", {"post": "yes"}).status_code == 403
    assert "Restore it" not in text_of(client.get(f"{LIST}{row.pk}/change/"))
    client.post(f"{LIST}{row.pk}/change/", {"name": "paris", "deleted": ""})
    row.refresh_from_db()
    assert row.deleted


def test_delete__leaves_deleted_rows_alone(admin_client):
    gone, kept = make("gone", deleted=True), make("paris")
    before = gone.updated_at
    chosen = {"action": "delete_selected", "_selected_action": [gone.pk, kept.pk], "post": "yes"}
    admin_client.post(f"{LIST}?deleted=all", chosen)
    gone.refresh_from_db()
    kept.refresh_from_db()
    assert (gone.updated_at, kept.deleted) == (before, True)
