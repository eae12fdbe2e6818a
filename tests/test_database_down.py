"""Every view and page while the database is down."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.db import InterfaceError, OperationalError, ProgrammingError, connection
from django.http import HttpResponse
from django.template.response import TemplateResponse
from django.test import Client, RequestFactory

from proxyhealth import access, health
from proxyhealth.models import WorkspaceProxy
from tests.support.api import LIST, REGIONS, assert_error
from tests.support.databases import extra_database
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db

ADMIN = "/admin/proxyhealth/workspaceproxy/"
ID = "6a3f25bf-ea91-43a1-9955-5cb7034c04ce"
PAGES = [
    ("get", f"{ADMIN}health/"),
    ("post", f"{ADMIN}health/check/"),
    ("get", ADMIN),
    ("post", ADMIN),
    ("get", f"{ADMIN}add/"),
    ("post", f"{ADMIN}add/"),
    ("get", f"{ADMIN}{ID}/change/"),
    ("post", f"{ADMIN}{ID}/change/"),
    ("get", f"{ADMIN}{ID}/delete/"),
    ("get", f"{ADMIN}{ID}/history/"),
    ("get", "/"),
    ("get", "/regions/"),
    ("get", "/login/"),
    ("post", "/logout/"),
]
every_page = pytest.mark.parametrize(("method", "path"), PAGES)


@pytest.fixture
def down(settings, tmp_path):
    """``down()`` sends all queries of the models to a database file that cannot be opened."""

    class Router:
        def db_for_read(self, model, **hints):
            return "gone"

        db_for_write = db_for_read

    def lose():
        settings.DATABASE_ROUTERS = [Router()]

    with extra_database("gone", tmp_path / "no such folder" / "db.sqlite3"):
        yield lose


def assert_page_503(response):
    assert response.status_code == 503
    assert response["Content-Type"].startswith("text/html")
    assert "no-store" in response["Cache-Control"]
    assert "The database is not available. Try again later." in response.content.decode()


@every_page
def test_page__is_503(admin_client, down, caplog, method, path):
    down()
    assert_page_503(getattr(admin_client, method)(path))
    assert "unable to open database file" in caplog.text


@pytest.mark.parametrize(("method", "path"), PAGES[:2])
def test_health_page__with_atomic_requests(admin_client, monkeypatch, method, path):
    """Django would begin the transaction, and fail, before it calls the view."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    with connection.execute_wrapper(refuse_queries):
        assert_page_503(getattr(admin_client, method)(path))


@pytest.mark.parametrize(
    ("method", "path"), [("get", LIST), ("get", f"{LIST}/x"), ("post", f"{LIST}/x/check")]
)
def test_json__is_503(admin_client, down, method, path):
    down()
    assert_error(getattr(admin_client, method)(path), 503, "Not available.")


def test_pages_without_a_session__respond(client, down, paris, configure):
    configure(PUBLIC_REGIONS=True)
    assert client.get(REGIONS).status_code == 200
    down()
    response = client.get(REGIONS)
    assert (response.status_code, response["Proxyhealth-Stale"]) == (200, "true")
    for path in ("/", f"{LIST}/openapi.json", "/latency-check"):
        assert client.get(path).status_code == 200
    assert Client().get(f"{ADMIN}health/").status_code == 302


def failing_later(error):
    """Return a view whose template fails, as one with a lazy query does."""

    def view(request):
        response = TemplateResponse(request, "proxyhealth/badge.html", {})
        response.resolve_context = lambda context: raise_(error)
        return response

    return view


def raise_(error):
    raise error


@pytest.mark.parametrize("error", [OperationalError("gone"), InterfaceError("connection already closed")])
def test_page__fails_while_it_is_rendered(error):
    response = access.page(failing_later(error))(RequestFactory().get("/")).render()
    assert_page_503(response)


def test_page__other_errors_are_not_hidden():
    """A missing table is a mistake of the deployment, which 503 and "try again" would hide."""
    error = ProgrammingError("no such table")
    with pytest.raises(ProgrammingError):
        access.page(failing_later(error))(RequestFactory().get("/")).render()
    with pytest.raises(ProgrammingError):
        access.page(lambda request: raise_(error))(RequestFactory().get("/"))
    response = HttpResponse("x")
    assert access.page(lambda request: response)(RequestFactory().get("/")) is response


@pytest.mark.django_db(transaction=True)
def test_page__rolls_back_with_atomic_requests(admin_client, monkeypatch, sent):
    paris = WorkspaceProxy.objects.create(name="paris")
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    def fail_late(execute, sql, *args):
        if sql.startswith("UPDATE") and "proxyhealth_workspaceproxy" in sql:
            execute(sql, *args)
            raise OperationalError("the connection is lost")
        return execute(sql, *args)

    data = {"action": "delete_selected", "_selected_action": [paris.pk], "post": "yes"}
    with connection.execute_wrapper(fail_late):
        assert_page_503(admin_client.post(ADMIN, data))
    paris.refresh_from_db()
    assert not paris.deleted
    assert not LogEntry.objects.exists(), "nor does the log say that it was deleted"


def test_health_page__is_back_with_the_database(admin_client, down, settings, paris):
    down()
    assert_page_503(admin_client.get(f"{ADMIN}health/"))
    settings.DATABASE_ROUTERS = []
    assert admin_client.get(f"{ADMIN}health/").status_code == 200
    assert health.snapshot().number == 1
