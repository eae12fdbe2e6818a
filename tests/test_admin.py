import re
import threading
from datetime import UTC, datetime
from functools import partial

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.counters import count_round
from proxyhealth.templatetags.proxyhealth_admin import runbook
from tests.contrib.expressions import ALERTS
from tests.support.proxies import wait_for

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/workspaceproxy/"
HEALTH = f"{LIST}health/"


@pytest.fixture
def admin():
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def staff(*permissions):
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def fleet(serve):
    WorkspaceProxy.objects.create(name="good", url=serve(report={"warnings": ["old <b>version</b>"]}).url)
    WorkspaceProxy.objects.create(name="sick", url=serve(report={"errors": ["kaputt"]}).url)
    WorkspaceProxy.objects.create(name="dead", display_name="Dead", url="http://127.0.0.1:1")
    WorkspaceProxy.objects.create(name="new")
    health.force_update()


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


def cells(text, column):
    """Return the contents of a column of the list, as HTML."""
    return re.findall(f'<td class="field-{column}"><div data-live[^>]*>(.*?)</div></td>', text)


def messages_of(response):
    return [str(message) for message in response.context["messages"]]


def test_list__shows_status_reason_latency_and_last_check(admin, fleet):
    text = text_of(admin.get(LIST))
    checked = health.snapshot().checked_at.strftime("%Y-%m-%d %H:%M:%S")
    assert len(re.findall(f'<td class="field-last_check"><div data-live.*{checked}', text)) == 4
    for status in ("ok", "unhealthy", "unreachable", "unregistered"):
        assert f'<span class="proxyhealth-badge proxyhealth-{status}">{status}</span>' in text
    assert cells(text, "reason").count("connect") == 1
    assert " ms</bdi></div></td>" in text
    assert HEALTH in text


def test_list__proxy_without_a_probe(admin):
    WorkspaceProxy.objects.create(name="new", url="http://127.0.0.1:1")
    text = text_of(admin.get(LIST))
    assert "proxyhealth-unknown" in text
    assert cells(text, "last_check") == ["never"]


def test_list__no_query_per_row(admin, fleet, django_assert_max_num_queries):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i}") for i in range(80))
    admin.get(LIST)
    with django_assert_max_num_queries(8):
        admin.get(LIST)


def test_list__stale_snapshot(admin, fleet, redis_client):
    assert "Stale." not in text_of(admin.get(LIST))
    redis_client.flushall()
    admin.force_login(User.objects.get())
    assert "The cache has lost the snapshot" in text_of(admin.get(LIST))


def test_list__hides_deleted_proxies_by_default(admin):
    WorkspaceProxy.objects.create(name="kept")
    WorkspaceProxy.objects.create(name="gone", deleted=True)
    names = {
        query: {row.name for row in admin.get(LIST + query).context["cl"].result_list}
        for query in ("", "?deleted=yes", "?deleted=all")
    }
    assert names == {"": {"kept"}, "?deleted=yes": {"gone"}, "?deleted=all": {"kept", "gone"}}


def test_add__invalid_proxy(admin):
    response = admin.post(f"{LIST}add/", {"name": "primary", "url": "https://user:secret@example.com"})
    text = text_of(response)
    assert "is reserved for the control plane itself." in text
    assert "This URL cannot be used: it must not contain a user name or a password." in text


@pytest.mark.django_db(transaction=True)
def test_add_and_change__request_a_check(admin, sent):
    admin.post(f"{LIST}add/", {"name": "paris", "url": "https://paris.example.com"})
    paris = WorkspaceProxy.objects.get()
    wait_for(lambda: sent == [{str(paris.pk)}])
    admin.post(f"{LIST}{paris.pk}/change/", {"name": "paris", "url": "https://other.example.com"})
    wait_for(lambda: len(sent) == 2)
    paris.refresh_from_db()
    assert paris.url == "https://other.example.com"


@pytest.mark.django_db(transaction=True)
def test_delete__keeps_the_row_and_requests_a_check(admin, sent):
    paris = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com")
    wait_for(lambda: len(sent) == 1)
    admin.post(f"{LIST}{paris.pk}/delete/", {"post": "yes"})
    paris.refresh_from_db()
    assert paris.deleted
    assert paris.url == "https://paris.example.com"
    wait_for(lambda: sent == [{str(paris.pk)}] * 2)


@pytest.mark.django_db(transaction=True)
def test_delete__many_proxies_in_one_task(admin, sent):
    proxies = [WorkspaceProxy.objects.create(name=f"p{i}") for i in range(3)]
    health.request_check([]).result(30)
    sent.clear()
    ids = [proxy.pk for proxy in proxies]
    admin.post(LIST, {"action": "delete_selected", "_selected_action": ids, "post": "yes"})
    assert not WorkspaceProxy.objects.active().exists()
    wait_for(lambda: sent == [{str(id) for id in ids}])


def test_check_now__requests_a_check(admin, sent):
    proxies = [WorkspaceProxy.objects.create(name=f"p{i}") for i in range(2)]
    ids = [proxy.pk for proxy in proxies]
    response = admin.post(LIST, {"action": "check_now", "_selected_action": ids}, follow=True)
    (message,) = messages_of(response)
    assert message.startswith("A check of 2 proxies is requested.")
    assert sent == [{str(id) for id in ids}]


def test_check_now__broker_down(admin, monkeypatch):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    paris = WorkspaceProxy.objects.create(name="paris")
    response = admin.post(LIST, {"action": "check_now", "_selected_action": [paris.pk]}, follow=True)
    (message,) = messages_of(response)
    assert message.startswith("The check could not be requested")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("action", ["add", "change", "delete", "delete many"])
def test_save_and_delete__broker_down(admin, monkeypatch, action):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    if action == "add":
        response = admin.post(f"{LIST}add/", {"name": "paris"}, follow=True)
    else:
        paris = WorkspaceProxy.objects.create(name="paris")
        path, form = {
            "change": (f"{LIST}{paris.pk}/change/", {"name": "paris", "version": "v2"}),
            "delete": (f"{LIST}{paris.pk}/delete/", {"post": "yes"}),
            "delete many": (
                LIST,
                {"action": "delete_selected", "_selected_action": [paris.pk], "post": "yes"},
            ),
        }[action]
        response = admin.post(path, form, follow=True)
    success, warning = messages_of(response)
    assert "successfully" in success.lower()
    assert warning.endswith("The next round checks all proxies.")
    row = WorkspaceProxy.objects.get()
    assert row.deleted == action.startswith("delete")


@pytest.mark.django_db(transaction=True)
def test_save__no_warning_before_the_commit(admin, monkeypatch):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    assert health.request_check().exception(30)
    response = admin.post(f"{LIST}add/", {"name": "paris"}, follow=True)
    (success,) = messages_of(response)
    assert "successfully" in success


def test_check_all__silent_broker_does_not_block(admin, monkeypatch):
    end = threading.Event()
    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", lambda ids: end.wait(30))
    monkeypatch.setattr("proxyhealth.admin.check_page._BROKER_TIMEOUT", 0.1)
    response = admin.post(f"{HEALTH}check/", {"all": "1"}, follow=True)
    (message,) = messages_of(response)
    end.set()
    assert message.startswith("The check could not be requested")


def test_health_page__counts_reasons_and_reports(admin, fleet):
    text = text_of(admin.get(HEALTH))
    for count in (
        "<b>4</b> all",
        "<b>1</b> ok",
        "<b>1</b> unhealthy",
        "<b>1</b> unreachable",
        "<b>0</b> unknown",
    ):
        assert count in text
    assert "kaputt" in text
    assert "request to proxy failed: Connection refused" in text
    assert "Not registered: it has no URL yet." in text
    assert "Snapshot 1." in text
    assert "Stale." not in text


def test_health_page__escapes_reports(admin, fleet):
    text = text_of(admin.get(HEALTH))
    assert "old &lt;b&gt;version&lt;/b&gt;" in text
    assert "<b>version" not in text


def test_health_page__most_urgent_first(admin, fleet):
    page = admin.get(HEALTH).context["page"]
    assert [row.proxy.name for row in page] == ["dead", "sick", "new", "good"]


def test_health_page__filter_by_status(admin, fleet):
    assert [row.proxy.name for row in admin.get(f"{HEALTH}?status=unhealthy").context["page"]] == ["sick"]
    assert "No proxy matches these filters." in text_of(admin.get(f"{HEALTH}?status=unknown"))
    text = text_of(admin.get(f"{HEALTH}?status=<x>"))
    assert "status cannot be &#x27;&lt;x&gt;&#x27;. Valid: ok, unhealthy," in text
    assert "data-proxy=" not in text


def test_health_page__before_any_round(admin):
    text = text_of(admin.get(HEALTH))
    assert "No round has ended yet. Are the Celery worker and beat running?" in text
    assert "There are no workspace proxies." in text


def test_health_page__before_a_full_round(admin, fleet, redis_client):
    redis_client.flushall()
    reader.forget()
    count_round("failure", "the database is gone")
    text = text_of(admin.get(HEALTH))
    assert text.count("No full round has ended yet.") == 2
    assert "No round has ended yet." not in text, "the failed one has ended"
    assert text.count("No result of a probe at this URL yet.") == 4


def test_list__url_changed_since_the_last_check(admin, fleet):
    WorkspaceProxy.objects.filter(name="good").update(url="http://127.0.0.1:1")
    text = text_of(admin.get(LIST))
    assert cells(text, "last_check").count("not at this URL") == 1
    assert "never" not in cells(text, "last_check")


@pytest.mark.parametrize(
    ("method", "path"),
    [("get", LIST), ("get", HEALTH), ("post", f"{HEALTH}check/"), ("get", f"{LIST}add/"), ("post", LIST)],
)
def test_permissions__async_has_perm_is_denied(admin, sent, monkeypatch, caplog, method, path):
    async def has_perm(self, *args):
        return True

    monkeypatch.setattr("django.contrib.auth.models.User.has_perm", has_perm)
    assert getattr(admin, method)(path).status_code == 403
    assert "has_perm() must be True or False, not of type coroutine." in caplog.text
    assert sent == []


def test_health_page__redis_down_in_a_fresh_process(admin, fleet, stopped):
    """The process has never read the snapshot, so it knows nothing of rounds and probes."""
    reader.forget()
    stopped()
    text = text_of(admin.get(HEALTH))
    assert "The cache cannot be read" in text
    assert "This process has not read a snapshot yet, so no status is known." in text
    assert "The last full round is not known." in text
    assert text.count("Not known: the current snapshot is not available.") == 4
    assert "No proxy is known to match these filters." in text_of(admin.get(f"{HEALTH}?status=ok"))
    assert cells(text_of(admin.get(LIST)), "last_check") == ["not known"] * 4
    for untrue in ("that was read.", "Not probed", "No round has ended yet", "Snapshot 0"):
        assert untrue not in text


def test_health_page__redis_down_shows_the_last_copy(admin, fleet, stopped):
    admin.get(HEALTH)
    stopped()
    WorkspaceProxy.objects.create(name="later", url="http://127.0.0.1:1")
    text = text_of(admin.get(HEALTH))
    assert "This is the last snapshot that was read." in text
    assert "Last full round:" in text
    assert text.count("Not known: the current snapshot is not available.") == 1, "it may have been probed"
    assert "Not probed" not in text
    assert cells(text_of(admin.get(LIST)), "last_check").count("not known") == 1


def test_health_page__stale_reason(admin, fleet, configure):
    configure(STALE_AFTER=0.001)
    health.force_update()
    text = text_of(admin.get(HEALTH))
    assert "<strong>Stale.</strong> No round has ended since the one of" in text
    assert "kaputt" in text


RUNBOOK = "https://example.com/runbook"


@pytest.mark.parametrize(
    ("state", "alert"),
    [
        ({"stale_at": datetime(2026, 1, 1, tzinfo=UTC)}, "ProxyhealthSnapshotStale"),
        ({"fault": "The cache cannot be read."}, "ProxyhealthSnapshotUnreadable"),
        ({"offline": "Prober offline."}, "ProxyhealthProberOffline"),
        ({"fault": "The cache cannot be read.", "refusal": "OOM"}, "ProxyhealthCacheRefusesRounds"),
        ({"status": Status.UNHEALTHY}, "ProxyhealthProxyUnhealthy"),
        ({"status": Status.UNREACHABLE}, "ProxyhealthProxyUnreachable"),
        ({"status": Status.OK}, None),
    ],
)
def test_runbook_link__leads_to_the_section_of_the_alert(configure, state, alert):
    kind = (
        ProxyStatus if "status" in state else partial(Snapshot, checked_at=datetime(2026, 1, 1, tzinfo=UTC))
    )
    subject = kind(proxy=None, proxy_host="", **state) if kind is ProxyStatus else kind(**state)
    assert runbook(subject) == ""
    configure(RUNBOOK_URL=RUNBOOK)
    assert runbook(subject) == (f"{RUNBOOK}#{alert.lower()}" if alert else "")
    assert alert is None or alert in ALERTS


def test_health_page__links_to_the_runbook(admin, fleet, configure):
    assert RUNBOOK not in text_of(admin.get(HEALTH))
    configure(RUNBOOK_URL=RUNBOOK, STALE_AFTER=0.001)
    health.force_update()
    text = text_of(admin.get(HEALTH))
    assert f'href="{RUNBOOK}#proxyhealthproxyunreachable">Runbook: connect</a>' in text
    assert f'href="{RUNBOOK}#proxyhealthproxyunhealthy">Runbook: report_errors</a>' in text
    assert f'href="{RUNBOOK}#proxyhealthsnapshotstale">Runbook</a>' in text
    assert text.count(RUNBOOK) == 3


def test_health_page__error_of_the_last_round(admin, fleet):
    count_round("failure", "the database <is> gone")
    assert "the database &lt;is&gt; gone" in text_of(admin.get(HEALTH))


def test_health_page__pagination(admin):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i:03}") for i in range(70))
    first, second = (admin.get(f"{HEALTH}?page={page}") for page in (1, 2))
    assert (len(first.context["page"]), len(second.context["page"])) == (50, 20)
    assert "page=2" in text_of(first)
    assert 'rel="prev" href="?"' in text_of(second)


def test_permissions__viewer_cannot_check(fleet, sent):
    client = staff("view_workspaceproxy")
    assert "Check all now" not in text_of(client.get(HEALTH))
    assert client.post(f"{HEALTH}check/").status_code == 403
    assert "check_now" not in text_of(client.get(LIST))
    assert sent == []


def test_permissions__no_permission_and_anonymous(fleet):
    assert staff().get(HEALTH).status_code == 403
    assert Client().get(HEALTH)["Location"].startswith("/admin/login/")


def test_permissions__viewer_cannot_change_a_proxy(fleet):
    proxy = WorkspaceProxy.objects.get(name="dead")
    client = staff("view_workspaceproxy")
    assert "http://127.0.0.1:1" in text_of(client.get(f"{LIST}{proxy.pk}/change/"))
    assert client.post(f"{LIST}{proxy.pk}/change/", {"name": "x"}).status_code == 403
