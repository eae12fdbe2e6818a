"""The OpenAPI description, compared with the views."""

from __future__ import annotations

import json

import pytest
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.test import Client
from openapi_spec_validator import validate

from proxyhealth.access import Authenticated
from proxyhealth.api.query import DEFAULT_OUTAGES, DEFAULT_TRANSITIONS, MAX_LIMIT, MAX_TEXT
from proxyhealth.api.views import DESCRIPTION
from proxyhealth.models import Transition
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.statuses import Reason, Status
from proxyhealth.urls import urlpatterns
from tests.support.api import LIST

PATH = f"{LIST}/openapi.json"


@pytest.fixture
def description():
    return json.loads(DESCRIPTION.read_bytes())


def test_description__is_public(description):
    response = Client().get(PATH)
    assert response.json() == description
    assert response["Content-Type"] == "application/json"
    assert Client().get(PATH, headers={"If-None-Match": response["ETag"]}).status_code == 304
    assert Client().head(PATH).status_code == 200
    assert Client().post(PATH).status_code == 405


@pytest.mark.urls("tests.support.urls_with_prefix")
def test_description__has_the_url_prefix_of_the_project(description):
    response = Client().get(f"/elsewhere{PATH}")
    assert response.json() == {**description, "servers": [{"url": "/elsewhere"}]}


def test_description__is_valid_openapi_3_1(description):
    assert description["openapi"].startswith("3.1.")
    validate(description)


def test_description__has_every_view(description):
    described = {path.replace("{id_or_name}", "<str:id_or_name>") for path in description["paths"]}
    assert described == {f"/{pattern.pattern}" for pattern in urlpatterns}


def test_description__has_the_enums_and_limits_of_the_code(description):
    components = description["components"]
    assert components["schemas"]["Status"]["enum"] == list(Status)
    assert components["schemas"]["Reason"]["enum"] == list(Reason)
    assert components["parameters"]["Limit"]["schema"]["maximum"] == MAX_LIMIT
    assert components["parameters"]["HistoryLimit"]["schema"]["maximum"] == MAX_LIMIT
    assert components["parameters"]["HistoryLimit"]["schema"]["default"] == DEFAULT_TRANSITIONS
    assert components["schemas"]["History"]["properties"]["transitions"]["maxItems"] == MAX_LIMIT
    assert components["parameters"]["OutagesLimit"]["schema"]["maximum"] == MAX_LIMIT
    assert components["parameters"]["OutagesLimit"]["schema"]["default"] == DEFAULT_OUTAGES
    assert components["schemas"]["OutageList"]["properties"]["outages"]["maxItems"] == MAX_LIMIT
    assert components["schemas"]["Outage"]["properties"]["status"]["enum"] == list(BAD_STATUSES)
    assert components["schemas"]["PastStatus"]["enum"] == [*Status, Transition.REMOVED]
    assert components["parameters"]["Text"]["schema"]["maxLength"] == MAX_TEXT


class Caller:
    is_authenticated = True

    def has_perm(self, permission):
        return True


def authenticate(request):
    """Return the user, or raise the error, that the header ``X-Case`` names."""
    case = request.headers["X-Case"]
    for code, error in (("403", PermissionDenied), ("500", RuntimeError), ("503", OperationalError)):
        if case == code:
            raise error(case)
    return None if case == "401" else Authenticated(Caller(), csrf_exempt=case != "400")


def send(case, method, path, etag):
    """Send the request that makes this operation respond with the status ``case``."""
    url = path.replace("{id_or_name}", "rome" if case == "404" else "paris")
    headers = {"X-Case": case, **({"If-None-Match": etag} if case == "304" else {})}
    if case == "400" and method == "post":  # with a body that the check of the CSRF token cannot read
        client = Client(enforce_csrf_checks=True)
        client.get("/admin/login/")
        return client.post(url, b"x", "multipart/form-data", headers=headers)
    url += "?limit=many" if case == "400" else ""
    return getattr(Client(), "put" if case == "405" else method)(url, headers=headers)


@pytest.mark.django_db
@pytest.mark.parametrize("stale", [False, True])
def test_description__every_response_is_as_described(
    description, paris, sent, configure, redis_client, stale
):
    configure(AUTHENTICATE="tests.api.test_openapi.authenticate")
    if stale:
        redis_client.flushall()
    shared = description["components"]["responses"]
    for path, operations in description["paths"].items():
        operations.pop("parameters", None)
        for method, operation in operations.items():
            etag = None
            for case, described in operation["responses"].items():
                response = send(case, method, path, etag)
                etag = response.get("ETag", etag)
                assert response.status_code == int(case), (path, case)
                described = shared.get(described.get("$ref", "").rpartition("/")[2], described)
                missing = set(described["headers"]) - set(response.headers)
                assert missing <= {"Last-Modified", "WWW-Authenticate"}
                assert response["Proxyhealth-Stale"] == ("true" if stale or case == "503" else "false")
                assert (response.get("Content-Type") == "application/json") == (case != "304")


@pytest.mark.django_db
def test_description__django_refuses_a_bad_host(paris):
    response = Client().get(LIST, headers={"host": "no host"})
    assert (response.status_code, response["Content-Type"]) == (400, "text/html; charset=utf-8")
