import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage.counters import count_round
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


def messages_of(response):
    return [str(message) for message in response.context["messages"]]


def test_list__shows_status_reason_latency_and_last_check(admin, fleet):
    text = text_of(admin.get(LIST))
    checked = health.snapshot().checked_at.strftime("%Y-%m-%d %H:%M:%S")
    assert text.count(checked) == 4
    for status in ("ok", "unhealthy", "unreachable", "unregistered"):
        assert f'<span class="proxyhealth-badge proxyhealth-{status}">{status}</span>' in text
    assert '<td class="field-reason">connect</td>' in text
    assert " ms</td>" in text
    assert HEALTH in text


def test_list__a_proxy_that_was_not_probed_yet(admin):
    WorkspaceProxy.objects.create(name="new", url="http://127.0.0.1:1")
    text = text_of(admin.get(LIST))
    assert "proxyhealth-unknown" in text
    assert '<td class="field-last_check">never</td>' in text


def test_list__costs_no_query_a_row(admin, fleet, django_assert_max_num_queries):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i}") for i in range(80))
    admin.get(LIST)
    with django_assert_max_num_queries(8):
        admin.get(LIST)


def test_list__says_that_the_snapshot_is_stale(admin, fleet, redis_client):
    assert "Stale." not in text_of(admin.get(LIST))
    redis_client.flushall()
    admin.force_login(User.objects.get())
    assert "The cache has lost the snapshot" in text_of(admin.get(LIST))


def test_list__hides_the_deleted_until_asked(admin):
    WorkspaceProxy.objects.create(name="kept")
    WorkspaceProxy.objects.create(name="gone", deleted=True)
    names = {
        query: {row.name for row in admin.get(LIST + query).context["cl"].result_list}
        for query in ("", "?deleted=yes", "?deleted=all")
    }
    assert names == {"": {"kept"}, "?deleted=yes": {"gone"}, "?deleted=all": {"kept", "gone"}}


def test_add__a_bad_proxy_gets_clear_messages(admin):
    response = admin.post(f"{LIST}add/", {"name": "primary", "url": "https://user:secret@example.com"})
    text = text_of(response)
    assert "is reserved for the control plane itself." in text
    assert "This URL cannot be used: it must not contain a user name or a password." in text


@pytest.mark.django_db(transaction=True)
def test_add_and_change__have_the_proxy_checked(admin, sent):
    admin.post(f"{LIST}add/", {"name": "paris", "url": "https://paris.example.com"})
    paris = WorkspaceProxy.objects.get()
    wait_for(lambda: sent == [{str(paris.pk)}])
    admin.post(f"{LIST}{paris.pk}/change/", {"name": "paris", "url": "https://other.example.com"})
    wait_for(lambda: len(sent) == 2)
    paris.refresh_from_db()
    assert paris.url == "https://other.example.com"


@pytest.mark.django_db(transaction=True)
def test_delete__keeps_the_row_and_has_it_taken_out(admin, sent):
    paris = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com")
    wait_for(lambda: len(sent) == 1)
    admin.post(f"{LIST}{paris.pk}/delete/", {"post": "yes"})
    paris.refresh_from_db()
    assert paris.deleted
    assert paris.url == "https://paris.example.com"
    wait_for(lambda: sent == [{str(paris.pk)}] * 2)


@pytest.mark.django_db(transaction=True)
def test_delete__many_are_one_task(admin, sent):
    proxies = [WorkspaceProxy.objects.create(name=f"p{i}") for i in range(3)]
    health.request_check([]).result(30)
    sent.clear()
    ids = [proxy.pk for proxy in proxies]
    admin.post(LIST, {"action": "delete_selected", "_selected_action": ids, "post": "yes"})
    assert not WorkspaceProxy.objects.active().exists()
    wait_for(lambda: sent == [{str(id) for id in ids}])


def test_check_now__asks_the_workers(admin, sent):
    proxies = [WorkspaceProxy.objects.create(name=f"p{i}") for i in range(2)]
    ids = [proxy.pk for proxy in proxies]
    response = admin.post(LIST, {"action": "check_now", "_selected_action": ids}, follow=True)
    assert messages_of(response) == ["2 proxies are being checked now."]
    assert sent == [{str(id) for id in ids}]


def test_check_now__broker_down_says_that_it_comes_later(admin, monkeypatch):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    paris = WorkspaceProxy.objects.create(name="paris")
    response = admin.post(LIST, {"action": "check_now", "_selected_action": [paris.pk]}, follow=True)
    (message,) = messages_of(response)
    assert message.startswith("The workers cannot be asked now")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("what", ["add", "change", "delete", "delete many"])
def test_save_and_delete__broker_down_says_that_the_check_comes_later(admin, monkeypatch, what):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    if what == "add":
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
        }[what]
        response = admin.post(path, form, follow=True)
    done, late = messages_of(response)
    assert "successfully" in done.lower()
    assert late.endswith("The next round checks every proxy.")
    row = WorkspaceProxy.objects.get()
    assert row.deleted == what.startswith("delete")


@pytest.mark.django_db(transaction=True)
def test_save__of_a_request_that_is_not_committed_yet_says_nothing_of_another(admin, monkeypatch):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    assert health.request_check().exception(30)
    response = admin.post(f"{LIST}add/", {"name": "paris"}, follow=True)
    (done,) = messages_of(response)
    assert "successfully" in done


def test_check_now__a_broker_that_hangs_does_not_hold_the_page_up(admin, monkeypatch):
    import threading

    end = threading.Event()
    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", lambda ids: end.wait(30))
    monkeypatch.setattr("proxyhealth.admin._TIMEOUT", 0.1)
    response = admin.post(f"{HEALTH}check/", follow=True)
    (message,) = messages_of(response)
    end.set()
    assert message.startswith("The workers cannot be asked now")


def test_health_page__shows_counts_rows_reasons_and_texts(admin, fleet):
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
    assert "It has no URL yet." in text
    assert "Snapshot 1." in text
    assert "Stale." not in text


def test_health_page__what_a_proxy_says_is_no_markup(admin, fleet):
    text = text_of(admin.get(HEALTH))
    assert "old &lt;b&gt;version&lt;/b&gt;" in text
    assert "<b>version" not in text


def test_health_page__the_worst_come_first(admin, fleet):
    page = admin.get(HEALTH).context["page"]
    assert [row.proxy.name for row in page] == ["dead", "sick", "new", "good"]


def test_health_page__by_status(admin, fleet):
    assert [row.proxy.name for row in admin.get(f"{HEALTH}?status=unhealthy").context["page"]] == ["sick"]
    assert "No proxy is unknown." in text_of(admin.get(f"{HEALTH}?status=unknown"))
    assert "No proxy is &lt;x&gt;." in text_of(admin.get(f"{HEALTH}?status=<x>"))


def test_health_page__before_any_round(admin):
    text = text_of(admin.get(HEALTH))
    assert "No round has ended yet. Are the Celery worker and beat running?" in text
    assert "There are no workspace proxies." in text


def test_health_page__why_it_is_stale(admin, fleet, configure):
    configure(STALE_AFTER=0.001)
    health.force_update()
    text = text_of(admin.get(HEALTH))
    assert "<strong>Stale.</strong> No round has ended since the one of" in text
    assert "kaputt" in text


def test_health_page__why_the_last_round_failed(admin, fleet):
    count_round("failure", "the database <is> gone")
    assert "the database &lt;is&gt; gone" in text_of(admin.get(HEALTH))


def test_health_page__many_proxies_are_paged(admin):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i:03}") for i in range(250))
    first, second = (admin.get(f"{HEALTH}?page={page}") for page in (1, 2))
    assert (len(first.context["page"]), len(second.context["page"])) == (200, 50)
    assert "page=2" in text_of(first)
    assert "page=1" in text_of(second)


def test_health_page__check_all(admin, sent):
    response = admin.post(f"{HEALTH}check/", follow=True)
    assert response.redirect_chain == [(HEALTH, 302)]
    assert messages_of(response) == ["All proxies are being checked now."]
    assert sent == [None]


def test_health_page__check_all_wants_a_post(admin, sent):
    assert admin.get(f"{HEALTH}check/").status_code == 405
    assert sent == []


def test_permissions__view_only_sees_and_does_not_check(fleet, sent):
    client = staff("view_workspaceproxy")
    assert "Check all now" not in text_of(client.get(HEALTH))
    assert client.post(f"{HEALTH}check/").status_code == 403
    assert "check_now" not in text_of(client.get(LIST))
    assert sent == []


def test_permissions__none_and_anonymous(fleet):
    assert staff().get(HEALTH).status_code == 403
    assert Client().get(HEALTH)["Location"].startswith("/admin/login/")


def test_permissions__view_only_reads_a_proxy_and_cannot_change_it(fleet):
    proxy = WorkspaceProxy.objects.get(name="dead")
    client = staff("view_workspaceproxy")
    assert "http://127.0.0.1:1" in text_of(client.get(f"{LIST}{proxy.pk}/change/"))
    assert client.post(f"{LIST}{proxy.pk}/change/", {"name": "x"}).status_code == 403
