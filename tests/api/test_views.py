import json
from datetime import datetime
from uuid import uuid4

import pytest
from django.core.cache import caches
from django.db import OperationalError, connection
from django.test import Client

from proxyhealth import health
from proxyhealth.api import inventory
from proxyhealth.models import WorkspaceProxy
from tests.support.api import LIST, REGIONS, assert_error, signed_in

pytestmark = pytest.mark.django_db


def test_list__shape(viewer, paris):
    body = viewer.get(LIST).json()
    (proxy,) = body["regions"]
    latency = proxy["status"].pop("latency_ms")
    assert latency == pytest.approx(health.health_status()[paris.pk].latency * 1000, abs=0.001)
    snapshot = health.snapshot()
    assert proxy == {
        "id": str(paris.pk),
        "name": "paris",
        "display_name": "Paris",
        "icon_url": "/emojis/fr.png",
        "healthy": False,
        "path_app_url": paris.url,
        "wildcard_hostname": "*.paris.example.com",
        "status": {
            "status": "unhealthy",
            "reason": "report_errors",
            "report": {"errors": ["kaputt"], "warnings": ["warm"]},
            "checked_at": f"{snapshot.checked_at:%Y-%m-%dT%H:%M:%S.%f}Z",
            "since": f"{health.health_status()[paris.pk].since:%Y-%m-%dT%H:%M:%S.%f}Z",
            "silenced": None,
            "acknowledged": None,
        },
        "created_at": f"{paris.created_at:%Y-%m-%dT%H:%M:%S.%f}Z",
        "updated_at": f"{paris.updated_at:%Y-%m-%dT%H:%M:%S.%f}Z",
        "deleted": False,
        "version": "v2",
        "labels": {"region": "eu"},
    }
    assert list(body) == ["regions", "stale", "stale_reason", "snapshot"]
    assert body["snapshot"] == {
        "number": 1,
        "checked_at": f"{snapshot.checked_at:%Y-%m-%dT%H:%M:%S.%f}Z",
        "duration_ms": round(snapshot.duration * 1000, 3),
        "stale_at": f"{snapshot.stale_at:%Y-%m-%dT%H:%M:%S.%f}Z",
        "stale": False,
        "stale_reason": "",
    }


def test_list__before_the_first_round(viewer):
    body = viewer.get(LIST).json()
    assert body["regions"] == []
    assert body["snapshot"]["stale"] is True
    assert body["snapshot"]["checked_at"] is None
    assert body["snapshot"]["stale_reason"]


def test_list__new_proxy_is_unknown(viewer):
    WorkspaceProxy.objects.create(name="new", url="http://127.0.0.1:1")
    (proxy,) = viewer.get(LIST).json()["regions"]
    assert proxy["healthy"] is False
    assert proxy["display_name"] == "new"
    assert proxy["status"] == {
        "status": "unknown",
        "reason": "",
        "report": {"errors": [], "warnings": []},
        "checked_at": None,
        "latency_ms": None,
        "since": None,
        "silenced": None,
        "acknowledged": None,
    }


def test_list__without_deleted_proxies(viewer, paris):
    WorkspaceProxy.objects.update(deleted=True)
    assert viewer.get(LIST).json()["regions"] == []


def test_list__makes_no_query_between_changes(viewer, configure, django_assert_num_queries):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i}") for i in range(50))
    with django_assert_num_queries(8):  # session, user, two for permissions, fingerprint, rows, two for marks
        assert len(viewer.get(LIST).json()["regions"]) == 50
    with django_assert_num_queries(7):  # after READ_INTERVAL: the fingerprint and the marks
        viewer.get(LIST)
    configure(READ_INTERVAL=60)
    viewer.get(LIST)
    for path in (LIST, REGIONS, f"{LIST}/p7", f"{LIST}?q=p7"):
        with django_assert_num_queries(2 if path == REGIONS else 4):
            assert viewer.get(path).status_code == 200


@pytest.mark.parametrize("path", [LIST, f"{LIST}/paris", f"{LIST}/paris/history", REGIONS, f"{LIST}?q=par"])
def test_every_list__must_be_revalidated(viewer, paris, path):
    response = viewer.get(path)
    assert response["Cache-Control"] == "private, no-cache"
    assert response["ETag"].startswith('"')
    assert response["Vary"] == "Accept-Encoding, Authorization, Cookie"


def test_list__lost_snapshot_is_served_stale_with_the_reason(viewer, paris, redis_client):
    viewer.get(LIST)
    redis_client.delete(caches["default"].make_key("proxyhealth:snapshot"))
    body = viewer.get(LIST).json()
    assert body["regions"][0]["status"]["status"] == "unhealthy"
    assert body["snapshot"]["stale"] is True
    assert "lost the snapshot" in body["snapshot"]["stale_reason"]


@pytest.mark.parametrize("key", ["id", "name", "NAME"])
def test_proxy__by_id_and_by_name(viewer, paris, key):
    value = {"id": str(paris.pk), "name": "paris", "NAME": "PARIS"}[key]
    body = viewer.get(f"{LIST}/{value}").json()
    assert body == viewer.get(LIST).json()["regions"][0]


def test_proxy__name_that_looks_like_an_id(viewer):
    name = uuid4().hex
    WorkspaceProxy.objects.create(name=name)
    assert viewer.get(f"{LIST}/{name}").json()["name"] == name


@pytest.mark.parametrize("value", ["nobody", "6a3f25bf-ea91-43a1-9955-5cb7034c04ce", "%00", "a b", "é"])
def test_proxy__unknown_is_404(viewer, value):
    assert_error(viewer.get(f"{LIST}/{value}"), 404, "Not found.")


def test_proxy__long_unknown_name_is_cut(viewer):
    detail = f"No workspace proxy has the id or name '{'x' * 63}…'."
    assert_error(viewer.get(f"{LIST}/{'x' * 60_000}"), 404, "Not found.", detail)


def test_proxy__deleted_is_404(viewer, paris):
    WorkspaceProxy.objects.update(deleted=True)
    detail = "No workspace proxy has the id or name 'paris'."
    assert_error(viewer.get(f"{LIST}/paris"), 404, "Not found.", detail)


def test_check__requests_a_probe(operator, paris, sent):
    response = operator.post(f"{LIST}/paris/check")
    assert response.status_code == 202
    assert response.json()["message"] == "Check requested."
    health.request_check([]).result(30)  # waits until the request before is sent
    assert sent == [{str(paris.pk)}]


def test_check__unknown_is_404(operator, sent):
    assert_error(operator.post(f"{LIST}/nobody/check"), 404, "Not found.")
    assert sent == []


def test_check__requires_the_csrf_token(paris, sent):
    client = signed_in("change_workspaceproxy", enforce_csrf_checks=True)
    assert_error(client.post(f"{LIST}/paris/check"), 403, "CSRF verification failed.")
    assert sent == []
    client.get("/admin/login/")  # sets the cookie
    token = client.cookies["csrftoken"].value
    assert client.post(f"{LIST}/paris/check", headers={"X-CSRFToken": token}).status_code == 202


def test_regions__shape_for_a_user_without_permissions(paris):
    assert signed_in().get(REGIONS).json() == {
        "regions": [
            {
                "id": str(paris.pk),
                "name": "paris",
                "display_name": "Paris",
                "icon_url": "/emojis/fr.png",
                "healthy": False,
                "path_app_url": paris.url,
                "wildcard_hostname": "*.paris.example.com",
            }
        ],
        "stale": False,
        "stale_reason": "",
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", LIST),
        ("get", f"{LIST}/paris"),
        ("get", f"{LIST}/paris/history"),
        ("post", f"{LIST}/paris/check"),
        ("get", REGIONS),
    ],
)
def test_every_view__anonymous_is_401(paris, method, path):
    response = getattr(Client(), method)(path)
    assert_error(response, 401, "Not signed in.", "Sign in and send the session cookie.")


@pytest.mark.parametrize(
    ("method", "path", "permission"),
    [
        ("get", LIST, "view"),
        ("get", f"{LIST}/paris", "view"),
        ("get", f"{LIST}/nobody/history", "view"),  # nor does it say which proxies exist
        ("post", f"{LIST}/paris/check", "change"),
    ],
)
def test_every_view__without_the_permission_is_403(paris, method, path, permission):
    other = {"view": "change_workspaceproxy", "change": "view_workspaceproxy"}[permission]
    response = getattr(signed_in(other), method)(path)
    detail = f"The user needs the permission proxyhealth.{permission}_workspaceproxy."
    assert_error(response, 403, "Not allowed.", detail)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (LIST, "GET, HEAD, OPTIONS"),
        (f"{LIST}/paris", "GET, HEAD, OPTIONS"),
        (f"{LIST}/paris/history", "GET, HEAD, OPTIONS"),
        (f"{LIST}/paris/check", "POST, OPTIONS"),
        (REGIONS, "GET, HEAD, OPTIONS"),
    ],
)
@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "options"])
def test_every_view__other_methods_are_405(operator, paris, path, allowed, method):
    if method.upper() in allowed:
        assert getattr(operator, method)(path).status_code < 300
        return
    response = getattr(operator, method)(path)
    assert_error(response, 405, "Method not allowed.", f"Allowed methods: {allowed}.")
    assert response["Allow"] == allowed


@pytest.mark.parametrize(
    "path",
    [
        LIST,
        f"{LIST}/nobody",
        f"{LIST}/nobody/history",
        f"{LIST}/nobody/check",
        f"{LIST}/openapi.json",
        REGIONS,
    ],
)
def test_every_view__options_without_a_user(path, django_assert_num_queries):
    with django_assert_num_queries(0):  # the response says nothing about the proxies
        response = Client().options(path, headers={"Origin": "https://app.example.com"})
    assert (response.status_code, response.content) == (204, b"")
    assert response["Allow"] == ("POST, OPTIONS" if path.endswith("check") else "GET, HEAD, OPTIONS")
    assert "Access-Control-Allow-Origin" not in response


def test_every_view__head(viewer, paris):
    for path in (LIST, f"{LIST}/paris", f"{LIST}/paris/history", REGIONS):
        response = viewer.head(path)
        assert response.status_code == 200
        assert response.content == b""


def test_every_view__has_no_trailing_slash(viewer, paris):
    assert viewer.get(f"{LIST}/").status_code == 404


def test_report__with_markup_stays_text(viewer, serve):
    text = '</script><script>alert("x")</script>'
    WorkspaceProxy.objects.create(name="evil", url=serve(report={"errors": [text]}).url)
    health.force_update()
    response = viewer.get(LIST)
    assert response["X-Content-Type-Options"] == "nosniff"
    assert json.loads(response.content)["regions"][0]["status"]["report"]["errors"] == [text]


def test_database_down__is_503_as_json(viewer, caplog):
    def refuse(*args):
        raise OperationalError("gone")

    with connection.execute_wrapper(refuse):
        response = viewer.get(LIST)
    assert_error(response, 503, "Not available.", "The database is not available. Try again later.")
    assert "OperationalError: gone" in caplog.text


def test_atomic_requests__do_not_apply(viewer, monkeypatch, django_assert_num_queries, configure):
    """With the database down, a transaction would fail outside of the view, as an HTML page."""
    configure(PUBLIC_REGIONS=True)
    viewer.get(REGIONS)
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    with django_assert_num_queries(3):  # the fingerprint and the marks, and no savepoint
        assert viewer.get(REGIONS).status_code == 200


def test_database_down__unknown_proxy_is_503(operator, paris, monkeypatch, sent):
    operator.get(LIST)

    def refuse():
        raise OperationalError("gone")

    monkeypatch.setattr(inventory, "_take_fingerprint", refuse)  # only this query fails, not the session
    assert operator.get(f"{LIST}/paris").status_code == 200
    assert operator.post(f"{LIST}/paris/check").status_code == 202
    assert_error(operator.get(f"{LIST}/oslo"), 503, "Not available.")
    assert_error(operator.post(f"{LIST}/oslo/check"), 503, "Not available.")
    # The other responses say so, too, without a query of their own.
    for path in (f"{LIST}?limit=many", f"{LIST}/openapi.json", f"{LIST}/paris/check"):
        assert operator.get(path)["Proxyhealth-Stale"] == "true"


def test_login_required_middleware__is_401_without_redirect(paris, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    for path in (LIST, f"{LIST}/paris", REGIONS):
        assert_error(Client().get(path), 401, "Not signed in.")
    assert_error(Client().post(f"{LIST}/paris/check"), 401, "Not signed in.")


def test_no_authentication_middleware__is_401(settings):
    settings.MIDDLEWARE = []
    assert_error(Client().get(LIST), 401, "Not signed in.")


def test_list__is_sorted_by_name_ignoring_case(viewer):
    for name in ("b", "C", "a"):
        WorkspaceProxy.objects.create(name=name)
    assert [region["name"] for region in viewer.get(LIST).json()["regions"]] == ["a", "b", "C"]


def test_times__are_rfc_3339_in_utc(viewer, paris, settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    (proxy,) = viewer.get(LIST).json()["regions"]
    for text in (proxy["created_at"], proxy["updated_at"], proxy["status"]["checked_at"]):
        assert text.endswith("Z")
        assert abs((datetime.fromisoformat(text) - paris.created_at).total_seconds()) < 60
