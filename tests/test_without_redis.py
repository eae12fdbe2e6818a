"""A web process that starts while Redis is down: it shows what the database knows, and says so."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.http import HttpResponse
from django.template import Context, Template
from django.test import AsyncClient, Client, RequestFactory

from proxyhealth import health
from proxyhealth.middleware import ProxyHostsMiddleware
from proxyhealth.storage import reader
from tests.metrics.scraping import scrape
from tests.support.api import LIST, REGIONS
from tests.support.confirmed import CONFIRMED, LAST_ROUND, add_fleet
from tests.support.csp import ENFORCED
from tests.support.machine import at_most
from tests.support.ports import free_port

pytestmark = pytest.mark.django_db(transaction=True)

HEALTH = "/admin/proxyhealth/workspaceproxy/health/"


@pytest.fixture(autouse=True)
def redis_down(settings):
    cache = {**django_settings.CACHES["default"], "LOCATION": f"redis://127.0.0.1:{free_port()}/0"}
    settings.CACHES = {"default": cache}


@pytest.fixture
def fleet(sent):
    return add_fleet()


def test_json__confirmed_statuses(fleet, admin_client):
    with at_most(1):
        body = admin_client.get(LIST).json()
    found = {region["name"]: region["status"] for region in body["regions"]}
    assert {name: status["status"] for name, status in found.items()} == {"Oslo": "unhealthy", "paris": "ok"}
    assert found["Oslo"]["report"] == {"errors": ["kaputt"], "warnings": ["warm"]}
    assert body["snapshot"]["stale"] is True
    assert body["snapshot"]["stale_reason"].endswith(CONFIRMED)
    assert body["snapshot"]["checked_at"]


@pytest.mark.parametrize("is_async", [False, True])
def test_regions__stay_healthy(fleet, configure, is_async):
    configure(PUBLIC_REGIONS=True)
    get = async_to_sync(AsyncClient().get) if is_async else Client().get
    response = get(REGIONS)
    assert {each["name"]: each["healthy"] for each in response.json()["regions"]} == {
        "Oslo": False,
        "paris": True,
    }
    assert response["Proxyhealth-Stale"] == "true"


def test_health_page__says_where_the_statuses_come_from(fleet, admin_client):
    page = admin_client.get(HEALTH)
    assert CONFIRMED in page.content.decode()
    assert [(row.proxy.name, row.status) for row in page.context["page"]] == [
        ("Oslo", "unhealthy"),
        ("paris", "ok"),
    ]


def test_badge__is_stale(fleet):
    template = Template("{% load proxyhealth %}{% proxy_badge proxy %}")
    badge = template.render(Context({"proxy": fleet["paris"]}))
    assert "ok" in badge
    assert "stale" in badge


def test_policy__has_the_hosts(fleet, configure):
    configure(PUBLIC_CSP=True)
    view = ProxyHostsMiddleware(lambda request: HttpResponse(headers={ENFORCED: "connect-src 'self'"}))
    policy = view(RequestFactory().get("/"))[ENFORCED]
    assert "https://paris.example.com" in policy
    assert "https://oslo.example.com" in policy


def test_readyz__serves_the_confirmed_statuses(fleet):
    response = Client().get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    part = response.json()["parts"]["snapshot"]
    age = (datetime.now(UTC) - LAST_ROUND).total_seconds()
    assert part.pop("age_seconds") == pytest.approx(age, abs=2)
    assert part == {
        "ok": False,
        "required": False,
        "message": "It cannot be read from the cache. The last statuses are served.",
    }


def test_readyz__nothing_in_the_database_either(sent):
    response = Client().get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "failed")


def test_metrics__are_only_those_of_the_cache(fleet):
    assert health.snapshot().statuses
    assert [line for line in scrape().splitlines() if line.startswith("proxyhealth_")] == [
        "proxyhealth_snapshot_up 0.0"
    ]


def test_python__status_of_a_row(fleet):
    assert health.status_of(fleet["paris"]).status == "ok"
    fleet["paris"].url = "https://elsewhere.example.com"
    assert health.status_of(fleet["paris"]).status == "unknown"
    assert not reader.has_nothing_to_serve()
