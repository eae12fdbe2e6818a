"""The list of the outages in the admin, and the page of each, on which a person acknowledges it."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from proxyhealth import health
from proxyhealth.admin import history
from proxyhealth.models import Channel, Delivery, Outage, Silence, Transition, WorkspaceProxy
from proxyhealth.testing import fake_snapshot
from tests.support.values import NOW
from tests.test_admin_history import page, staff

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/outage/"
HEALTH = "/admin/proxyhealth/workspaceproxy/health/"
HOUR = 3_600 * 1_000_000


def insert(name="paris", proxy=None, age=0.0, hours=None, **values):
    """Insert an outage that began ``age`` hours ago, and lasted some ``hours`` or still lasts."""
    token = time.time_ns() // 1_000 - int(age * HOUR)
    return Outage.objects.create(
        **{
            "proxy": proxy,
            "proxy_uuid": proxy.pk if proxy else uuid4(),
            "proxy_name": name,
            "status": "unreachable",
            "reason": "timeout",
            "began_at": NOW,
            "token": token,
            "ended_at": hours and NOW + timedelta(hours=hours),
            "end_token": hours and token + int(hours * HOUR),
            **values,
        }
    )


def listed(client, query=""):
    response = client.get(LIST + query)
    assert response.status_code == 200, response
    return [row.proxy_name for row in response.context["cl"].result_list]


def post(client, outage, *buttons, note=""):
    data = {"note": note, **dict.fromkeys(buttons, "1")}
    response = client.post(f"{LIST}{outage.pk}/change/", data, follow=True)
    outage.refresh_from_db()
    return response


def said(response):
    return [str(message) for message in response.context["messages"]]


def test_list__shows_begin_proxy_status_and_duration(admin_client):
    paris = WorkspaceProxy.objects.create(name="paris")
    insert(proxy=paris, hours=30, acknowledged_at=NOW, acknowledged_name="<b>ana</b>\u202e")
    insert("oslo", age=1, began_at=timezone.now() - timedelta(hours=1))
    text = page(admin_client, LIST)
    assert f'<a href="/admin/proxyhealth/workspaceproxy/{paris.pk}/detail/"><bdi>paris</bdi></a>' in text
    assert '<span class="proxyhealth-badge proxyhealth-unreachable">unreachable</span>' in text
    assert '<bdi dir="ltr">1 day, 6:00:00</bdi>' in text
    assert "open, <bdi>1\xa0hour</bdi> so far" in text
    assert "by <bdi>&lt;b&gt;ana&lt;/b&gt;</bdi>" in text
    assert '<td class="field-acknowledged">no</td>' in text


def test_filters__state_status_time_and_proxy(admin_client):
    paris = WorkspaceProxy.objects.create(name="paris")
    insert("paris", paris, age=30)
    insert("oslo", age=2, hours=1, status="unhealthy")
    insert("lima", acknowledged_at=NOW)
    assert listed(admin_client) == ["lima", "oslo", "paris"]
    assert listed(admin_client, "?state=open") == ["lima", "paris"]
    assert listed(admin_client, "?state=unacknowledged") == ["paris"]
    assert listed(admin_client, "?state=ended") == ["oslo"]
    assert listed(admin_client, "?status=unhealthy") == ["oslo"]
    assert listed(admin_client, "?hours=24") == ["lima", "oslo"]
    assert listed(admin_client, f"?proxy={paris.pk}&state=open") == ["paris"]
    assert listed(admin_client, "?q=par") == ["paris"]


def test_filter__by_label(admin_client):
    eu, us, other = (
        WorkspaceProxy.objects.create(name=name, labels=labels)
        for name, labels in (("eu", {"region": "eu", "a.b/c": "x"}), ("us", {"region": "us"}), ("other", {}))
    )
    for row in (eu, us, other):
        insert(row.name, row)
    assert listed(admin_client, "?label=region:eu") == ["eu"]
    assert listed(admin_client, "?label=a.b/c:x") == ["eu"]
    assert listed(admin_client, "?label=region:x") == []
    assert listed(admin_client, "?label=nonsense'") == []
    assert "?label=region%3Aeu" in page(admin_client, LIST)


def test_list__fixed_number_of_queries(admin_client, django_assert_num_queries):
    """Session, user, count, and rows; and the proxies and the labels of the filters."""
    for count in (1, 29):
        for i in range(count):
            insert(proxy=WorkspaceProxy.objects.create(name=f"p{count}-{i}", labels={"a": "b"}))
        with django_assert_num_queries(6):
            page(admin_client, LIST)


def test_list__counts_no_further_than_it_shows(admin_client, monkeypatch):
    monkeypatch.setattr(history, "MAX_ROWS", 5)
    for _ in range(7):
        insert()
    assert "These are the newest 5 rows." in page(admin_client, LIST)


@pytest.mark.parametrize("query", ["", "?state=open", "?state=unacknowledged"])
def test_list__uses_an_index(admin_client, query):
    """A list of a million rows must not be sorted. Those that are open are few."""
    Outage.objects.bulk_create(
        Outage(proxy_uuid=uuid4(), proxy_name="x", began_at=NOW, ended_at=NOW, end_token=i, token=i)
        for i in range(300)
    )
    insert()
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("ANALYZE")
    rows = admin_client.get(LIST + query).context["cl"].result_list
    plan = rows.explain()
    if query:
        assert "proxyhealth_outage_open" in plan or "proxyhealth_one_open_outage" in plan
    else:
        assert "proxyhealth_outage_token" in plan
        assert not re.search("B-TREE|->  Sort", plan)


def test_page__shows_its_transitions_and_deliveries(admin_client):
    outage = insert(hours=1)
    other = {"proxy_uuid": outage.proxy_uuid, "proxy_name": "paris", "at": NOW, "watched": 0}
    begin, end, _, _ = (
        Transition.objects.create(before=before, after=after, token=token, report={"errors": errors}, **other)
        for before, after, token, errors in (
            ("ok", "unreachable", outage.token, ["<b>no answer</b>"]),
            ("unreachable", "ok", outage.end_token, []),
            ("ok", "unhealthy", outage.end_token + 1, ["later"]),
            ("unknown", "ok", outage.token - 1, ["earlier"]),
        )
    )
    channel = Channel.objects.create(name="<i>ops", kind="email", listens_since=NOW)
    values = {"channel": channel, "outage": outage, "created_at": NOW}
    Delivery.objects.create(transition=begin, state="sent", sent_at=NOW, **values)
    Delivery.objects.create(transition=begin, number=2, state="failed", error="no such <u>host", **values)
    Delivery.objects.create(transition=end, state="pending", **values)
    text = page(admin_client, f"{LIST}{outage.pk}/change/")
    assert text.count("&lt;b&gt;no answer&lt;/b&gt;") == 1
    assert "later" not in text
    assert "earlier" not in text
    assert "<bdi>&lt;i&gt;ops</bdi>" in text
    assert "<td>reminder 2</td><td>failed</td>" in text
    assert "no such &lt;u&gt;host" in text
    assert '<td>ok</td><td>pending<div class="help">It is due. A worker sends it' in text
    assert str(outage.proxy_uuid) in text


def test_page__links_to_a_silence_of_its_proxy(admin_client):
    outage = insert("paris")
    page = admin_client.get(f"{LIST}{outage.pk}/change/").content.decode()
    assert 'href="/admin/proxyhealth/silence/add/?proxies=paris"' in page


def test_page__without_transitions_and_deliveries(admin_client):
    text = page(admin_client, f"{LIST}{insert().pk}/change/")
    assert "The changes of this outage have been deleted." in text
    assert "No channel was told." in text
    assert '<div class="readonly">not yet</div>' in text
    assert ">None<" not in text


def test_acknowledge__on_the_page(admin_client, admin_user):
    outage = insert()
    assert "_unacknowledge" not in page(admin_client, f"{LIST}{outage.pk}/change/")
    response = post(admin_client, outage, "_acknowledge", note="the switch")
    assert said(response) == ["The outage was acknowledged."]
    assert (outage.acknowledged_by, outage.acknowledged_name) == (admin_user, "admin")
    assert (outage.note, bool(outage.acknowledged_at)) == ("the switch", True)
    text = response.content.decode()
    assert "_unacknowledge" in text
    assert 'name="_acknowledge"' not in text
    response = post(admin_client, outage, "_unacknowledge", note="the switch")
    assert said(response) == ["The acknowledgement was taken back."]
    assert (outage.acknowledged_at, outage.acknowledged_by, outage.note) == (None, None, "the switch")
    changes = [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]
    assert changes == ["Acknowledged.", "Acknowledgement taken back."]


def test_note__is_saved_and_nothing_else(admin_client):
    outage = insert(hours=1)
    response = post(admin_client, outage, "_save", note="it was\nthe switch")
    assert said(response) == ["The note was saved."]
    assert outage.note.split() == ["it", "was", "the", "switch"]
    data = {"note": "", "status": "ok", "ended_at_0": "2020-01-01", "proxy_name": "x"}
    admin_client.post(f"{LIST}{outage.pk}/change/", data)
    outage.refresh_from_db()
    assert (outage.note, outage.status, outage.proxy_name) == ("", "unreachable", "paris")
    response = post(admin_client, outage, "_save", note="x" * 2_001)
    assert "at most 2000 characters" in response.content.decode()


def test_acknowledge__an_outage_that_has_ended_meanwhile(admin_client):
    outage = insert(hours=1)
    text = page(admin_client, f"{LIST}{outage.pk}/change/")
    assert "_acknowledge" not in text
    response = post(admin_client, outage, "_acknowledge", note="late")
    assert said(response) == ["The outage has ended. Only the note was saved."]
    assert (outage.acknowledged_at, outage.note) == (None, "late")


def test_acknowledge__does_not_reopen_an_outage(admin_client):
    """It ends after the page was loaded, and before the note is saved."""
    outage = insert()

    def end(execute, sql, *args):
        if sql.startswith("UPDATE") and "note" in sql:
            Outage.objects.filter(ended_at=None).update(ended_at=NOW, end_token=1)
        return execute(sql, *args)

    with connection.execute_wrapper(end):
        post(admin_client, outage, "_acknowledge")
    assert outage.ended_at == NOW


def test_acknowledge__several_in_the_list(admin_client):
    rows = [insert() for _ in range(3)]
    health.acknowledge(rows[0], "ana")
    data = {"action": "acknowledge_selected", "_selected_action": [row.pk for row in rows]}
    response = admin_client.post(LIST, data, follow=True)
    assert said(response) == ["2 outages were acknowledged."]
    names = Outage.objects.order_by("pk").values_list("acknowledged_name", flat=True)
    assert list(names) == ["ana", "admin", "admin"]


def test_permissions__view_only(admin_client):
    outage = insert()
    client = staff("view_outage")
    text = page(client, f"{LIST}{outage.pk}/change/")
    assert "_acknowledge" not in text
    assert "<textarea" not in text
    assert client.post(f"{LIST}{outage.pk}/change/", {"_acknowledge": "1"}).status_code == 403
    data = {"action": "acknowledge_selected", "_selected_action": [outage.pk]}
    client.post(LIST, data)
    outage.refresh_from_db()
    assert outage.acknowledged_at is None
    assert "acknowledge_selected" not in page(client, LIST)


def test_permissions__acknowledge_is_one_of_its_own():
    outage = insert()
    assert staff("view_workspaceproxy", "view_transition").get(LIST).status_code == 403
    User.objects.all().delete()
    client = staff("acknowledge_outage")
    assert client.get(LIST).status_code == 200
    post(client, outage, "_acknowledge")
    assert outage.acknowledged_name == "staff"
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{outage.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Outage.objects.exists()


def test_permissions__async_has_perm_is_denied(admin_client, monkeypatch, caplog):
    async def has_perm(self, *args):
        return True

    monkeypatch.setattr("django.contrib.auth.models.User.has_perm", has_perm)
    assert admin_client.get(LIST).status_code == 403
    assert "has_perm() must be True or False, not of type coroutine." in caplog.text


# The health page


def test_health_page__links_to_open_outages_and_shows_silences(admin_client):
    paris, oslo, lima = (
        WorkspaceProxy.objects.create(name=name, url="http://127.0.0.1:1")
        for name in ("paris", "oslo", "lima")
    )
    outage = insert(proxy=paris, acknowledged_at=NOW, acknowledged_name="<b>ana")
    other = insert("oslo", oslo)
    insert("lima", lima, hours=1)
    now = timezone.now()
    Silence.objects.create(proxies="lima", starts=now, ends=now + timedelta(hours=1), reason="work")
    with fake_snapshot(paris="unreachable", oslo="unhealthy", lima="ok"):
        text = page(admin_client, HEALTH)
        assert f'href="{LIST}{outage.pk}/change/">Acknowledged by <bdi>&lt;b&gt;ana</bdi></a>' in text
        assert f'href="{LIST}{other.pk}/change/">Not acknowledged</a>' in text
        assert text.count("Silenced until <time") == 1
        assert not re.search(r"Silenced until <time[^>]* data-ago", text)  # it is a time to come
        assert text.count(LIST + str(outage.pk)) == 1
        text = page(staff("view_workspaceproxy"), HEALTH)
    assert f"{LIST}{other.pk}" not in text
    assert "cknowledged by" not in text
    assert "Not acknowledged</a>" not in text
