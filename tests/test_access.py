"""Authentication by Django's session or the project's function, and permissions."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.test import Client
from django.utils.functional import SimpleLazyObject

from proxyhealth import health
from proxyhealth.access import Authenticated
from tests.support.api import LIST, REGIONS, assert_error, signed_in

pytestmark = pytest.mark.django_db

VIEWS = [("get", LIST), ("get", f"{LIST}/paris"), ("post", f"{LIST}/paris/check"), ("get", REGIONS)]
every_view = pytest.mark.parametrize(("method", "path"), VIEWS)


# An AUTHENTICATE function: bearer tokens, and Django's session for requests without one.

TOKENS: dict[str, User] = {}


def by_token(request):
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Bearer":
        return Authenticated(TOKENS.get(key), csrf_exempt=True)
    return request.user


def broken(request):
    raise RuntimeError("the token service is down")


def denying(request):
    raise PermissionDenied("The token was withdrawn.")


def without_database(request):
    raise OperationalError("gone")


async def abroken(request):
    broken(request)


async def adenying(request):
    denying(request)


async def awithout_database(request):
    without_database(request)


def no_user(request):
    return None


class UserWithBrokenPermissions:
    is_authenticated = True

    def has_perm(self, permission):
        raise RuntimeError("the policy service is down")


class UserOfOldDjango:
    def is_authenticated(self):
        return False


def broken_lazily(request):
    return SimpleLazyObject(lambda: broken(request))


def broken_permissions(request):
    return UserWithBrokenPermissions()


not_a_function = "a text"


@pytest.fixture
def token(configure):
    """The header of a user with both permissions."""
    configure(AUTHENTICATE="tests.test_access.by_token")
    user = User.objects.create_user("robot")
    user.user_permissions.set(
        Permission.objects.filter(codename__in=["view_workspaceproxy", "change_workspaceproxy"])
    )
    TOKENS["secret"] = user
    yield {"Authorization": "Bearer secret"}
    TOKENS.clear()


@every_view
def test_authenticate__valid_token(paris, sent, token, method, path):
    client = Client(enforce_csrf_checks=True)
    response = getattr(client, method)(path, headers=token)
    assert response.status_code == (202 if method == "post" else 200)


@every_view
@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "Basic secret", ""])
def test_authenticate__invalid_token_is_401(paris, sent, token, method, path, header):
    response = getattr(Client(), method)(path, headers={"Authorization": header})
    assert_error(response, 401, "Not signed in.", "Send valid credentials with the request.")
    assert "WWW-Authenticate" not in response
    assert sent == []


@every_view
def test_authenticate__user_without_permissions_is_403(paris, sent, token, method, path):
    TOKENS["secret"].user_permissions.clear()
    response = getattr(Client(), method)(path, headers=token)
    if path == REGIONS:
        assert response.status_code == 200
    else:
        assert_error(response, 403, "Not allowed.")
    assert sent == []


def test_authenticate__session_user_needs_the_csrf_token(paris, sent, token):
    client = signed_in("change_workspaceproxy", enforce_csrf_checks=True)
    assert client.get(REGIONS).status_code == 200
    assert_error(client.post(f"{LIST}/paris/check"), 403, "CSRF verification failed.")
    assert sent == []


@pytest.mark.parametrize("user", [None, AnonymousUser(), object(), "robot", 0, User, UserOfOldDjango()])
def test_authenticate__invalid_user_is_401(paris, token, user):
    TOKENS["secret"] = user
    for path in (LIST, REGIONS):
        assert_error(Client().get(path, headers=token), 401, "Not signed in.")


@every_view
def test_authenticate__inactive_user_is_401(paris, sent, token, method, path):
    TOKENS["secret"].is_active = False
    assert_error(getattr(Client(), method)(path, headers=token), 401, "Not signed in.")
    assert sent == []


@every_view
@pytest.mark.parametrize("name", ["broken", "abroken"])
def test_authenticate__exception_is_500(paris, sent, configure, caplog, method, path, name):
    configure(AUTHENTICATE=f"tests.test_access.{name}")
    response = getattr(signed_in("view_workspaceproxy"), method)(path)
    assert_error(response, 500, "Not authenticated.", "Authentication failed. See the server log.")
    assert "the token service is down" in caplog.text
    assert sent == []


@pytest.mark.parametrize(
    ("name", "cause"),
    [("broken_lazily", "the token service is down"), ("broken_permissions", "the policy service is down")],
)
def test_authenticate__late_exception_is_500(paris, configure, caplog, name, cause):
    configure(AUTHENTICATE=f"tests.test_access.{name}")
    assert_error(Client().get(LIST), 500, "Not authenticated.")
    assert cause in caplog.text


@pytest.mark.parametrize("name", ["denying", "adenying"])
def test_authenticate__permission_denied_is_403_with_its_text(paris, configure, name):
    configure(AUTHENTICATE=f"tests.test_access.{name}")
    assert_error(Client().get(REGIONS), 403, "Not allowed.", "The token was withdrawn.")


@pytest.mark.parametrize("name", ["without_database", "awithout_database"])
def test_authenticate__database_error_is_503(paris, configure, name):
    configure(AUTHENTICATE=f"tests.test_access.{name}")
    assert_error(
        Client().get(REGIONS), 503, "Not available.", "The database is not available. Try again later."
    )


def test_authenticate__replaces_the_session(paris, configure):
    configure(AUTHENTICATE="tests.test_access.no_user")
    assert_error(signed_in("view_workspaceproxy").get(LIST), 401, "Not signed in.")


# Django's session


@every_view
def test_session__anonymous_is_401_with_instructions(paris, method, path):
    response = getattr(Client(), method)(path)
    assert_error(response, 401, "Not signed in.", "Sign in and send the session cookie.")
    assert response["WWW-Authenticate"] == 'Session realm="proxyhealth"'


@every_view
def test_session__deactivated_user_is_401(paris, sent, method, path):
    client = signed_in("view_workspaceproxy", "change_workspaceproxy")
    User.objects.update(is_active=False)
    assert_error(getattr(client, method)(path), 401, "Not signed in.")
    assert sent == []


def test_session__backend_down_is_500(paris, settings, stopped, caplog):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    client = signed_in("view_workspaceproxy")
    assert client.get(LIST).status_code == 200
    stopped()
    assert_error(client.get(LIST), 500, "Not authenticated.")
    assert "cannot authenticate a request" in caplog.text


def test_session__without_the_permission_gets_no_304(paris):
    client = signed_in("view_workspaceproxy")
    etag = client.get(LIST)["ETag"]
    User.objects.get().user_permissions.clear()
    assert_error(client.get(LIST, headers={"If-None-Match": etag}), 403, "Not allowed.")
    client.logout()
    assert_error(client.get(LIST, headers={"If-None-Match": "*"}), 401, "Not signed in.")


@pytest.mark.parametrize("path", ["/nobody", "/nobody/check", "?limit=many", "/paris"])
def test_refusal__does_not_reveal_names(paris, path):
    method = "post" if path.endswith("check") else "get"
    assert getattr(Client(), method)(f"{LIST}{path}").status_code == 401
    assert getattr(signed_in(), method)(f"{LIST}{path}").status_code == 403


# Requests that Django cannot parse


@pytest.mark.parametrize("path", [LIST, REGIONS])
def test_query__with_too_many_parameters_is_400(paris, path):
    response = signed_in("view_workspaceproxy").get(f"{path}?{'q=x&' * 1001}")
    assert_error(response, 400, "Bad request.")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("application/x-www-form-urlencoded", b"x=1&" * 1001),
        ("application/x-www-form-urlencoded", b"x" * 2_700_000),
        ("application/x-www-form-urlencoded; charset=latin-1", b"x=1"),
    ],
)
def test_body__that_cannot_be_parsed_is_400(paris, sent, content_type, body):
    client = signed_in("change_workspaceproxy", enforce_csrf_checks=True)
    client.get("/admin/login/")  # sets the cookie
    assert_error(client.post(f"{LIST}/paris/check", body, content_type), 400, "Bad request.")
    assert sent == []


# Public regions


def test_public_regions__need_no_user_but_other_views_do(paris, configure, django_assert_num_queries):
    configure(PUBLIC_REGIONS=True)
    health.snapshot()
    with django_assert_num_queries(4):  # fingerprint, rows, outages, silences, but no session or user
        response = Client().get(REGIONS)
    assert [region["name"] for region in response.json()["regions"]] == ["paris"]
    assert Client().get(REGIONS, headers={"If-None-Match": response["ETag"]}).status_code == 304
    for method, path in VIEWS[:-1]:
        assert_error(getattr(Client(), method)(path), 401, "Not signed in.")


def test_public_regions__do_not_call_authenticate(paris, configure):
    configure(PUBLIC_REGIONS=True, AUTHENTICATE="tests.test_access.broken")
    assert Client().get(REGIONS).status_code == 200


def test_regions__have_no_details(paris):
    text = signed_in().get(REGIONS).content.decode()
    for detail in ("kaputt", "warm", "unhealthy", "report", "checked_at", "latency", "version", "created"):
        assert detail not in text
